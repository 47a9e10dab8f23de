# SPDX-License-Identifier: GPL-3.0-or-later
"""From a NAR hash to torrents: those learned before, then what trackers say.

What is kept here are claims of strangers. A torrent whose payload turned out wrong is refused
from then on; a new one is only taken if it may carry the NAR at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    InvalidStateError,
    ThreadPoolExecutor,
    wait,
)
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from narswarm import base32, metainfo
from narswarm.errors import NarswarmError, NetworkError
from narswarm.files import write_atomically
from narswarm.httpwire import UnreachableError
from narswarm.payload import Kind

if TYPE_CHECKING:
    from narswarm.trackerclient import IndexedTorrent, TrackerIndex

MAX_PEERS = 50

MAX_KNOWN = 16
"""Torrents of one NAR that are read from disk: strangers may have named any number."""

KEEP = 90 * 86400.0
"""Seconds after which a torrent that no tracker has named again is removed."""

PRUNE_INTERVAL = 86400.0
"""Seconds from one clean-up to the next."""

WORKERS = 4
"""Requests that each tracker gets at a time: one that hangs must not keep others from answering."""

BREAK = 10.0
"""Seconds that a tracker which can't be reached is left alone."""

MAX_FAILURES = 3
"""Requests in a row that a tracker may fail until it is left alone, too."""

WAIT = 5
"""Seconds for which a tracker is asked to wait for a torrent that is being made; connections
that are silent for longer may be cut on the way."""

FIRST_AGAIN = 0.2
"""Seconds until a tracker is asked again that doesn't wait; they double up to what it said."""

MAKING_RATE = 8 << 20
"""Bytes of NAR a second that whoever makes a torrent is given time for."""

BUSY = 8.0
"""Seconds more that trackers get to answer when the line is busy with what is wanted."""

_PAUSE = 0.25
"""Seconds after which a search looks whether it was cancelled."""

_MAX_FILE = 8 << 20
_STAMP = ".pruned"


class Candidate(NamedTuple):
    """A torrent that may carry a NAR.

    Attributes:
        torrent: its metainfo, bencoded.
        infohash: the hexadecimal v2 infohash.
        length: bytes of its payload.
        kind: what its payload is.
        peers: addresses that a tracker named.
        name: of the payload's file, if it isn't the one that follows from NAR and kind.
    """

    torrent: bytes
    infohash: str
    length: int
    kind: Kind
    peers: tuple[tuple[str, int], ...] = ()
    name: str = ""


class Torrents:
    """The torrents of this machine, in a directory that several helpers share.

    Args:
        directory: `<NarHash>/<infohash>.torrent` and `.peers`, `.bad` beside it.
        trackers: whose indexes are asked.
        workers: requests that each tracker gets at a time.
    """

    def __init__(
        self, directory: Path, trackers: Sequence[TrackerIndex], *, workers: int = WORKERS
    ) -> None:
        self._directory = directory
        self._trackers = [_Tracker(tracker, workers) for tracker in trackers]
        self._refused: set[tuple[bytes, str]] = set()

    def close(self) -> None:
        """Let go of the threads; a helper that is killed needs no such thing."""
        for tracker in self._trackers:
            tracker.executor.shutdown(cancel_futures=True)

    def known(self, nar_hash: bytes, nar_size: int) -> list[Candidate]:
        """Those learned before, the newest first."""
        directory = self._directory / base32.encode(nar_hash)
        try:
            files = sorted(directory.glob("*.torrent"), key=_mtime, reverse=True)
        except OSError:
            return []
        found = []
        for file in files[:MAX_KNOWN]:
            if self._is_refused(nar_hash, file.stem):
                continue
            try:
                data = _read(file)
                candidate = self._check(data, nar_hash, nar_size, str(file))
            except (OSError, NarswarmError):
                continue
            # The name is what a refusal goes by.
            if candidate.infohash == file.stem:
                found.append(candidate._replace(peers=_read_peers(file.with_suffix(".peers"))))
        return found

    def ask(
        self,
        nar_hash: bytes,
        nar_size: int,
        timeout: float,
        warn: Callable[[str], None],
        cancelled: threading.Event | None = None,
        *,
        patient: bool = False,
        preparing: Callable[[], None] | None = None,
        busy: Callable[[], bool] | None = None,
    ) -> Iterator[Candidate]:
        """Those that trackers name, as their answers come in; each is kept.

        A tracker that has somebody prepare one is waited for, or asked again.

        Args:
            nar_hash: what is looked for.
            nar_size: from the authorised narinfo; bounds the payload.
            timeout: seconds for all trackers together. What has come when the caller is back for
                more is still given afterwards.
            warn: gets one line per tracker that gave no proper answer.
            cancelled: ends the search when it is set.
            patient: while somebody prepares one, the search takes longer, by the time that it
                takes to read and compress so large a NAR.
            preparing: called once, by whoever looks for the next one, as soon as a tracker has
                somebody prepare one, or seed one that nobody seeds.
            busy: asked once, when time is up: whether the search may take `BUSY` seconds more.
        """
        from narswarm.trackerclient import PreparingError  # noqa: PLC0415 - see `_ask_one`

        cancelled = cancelled or threading.Event()
        deadline = time.monotonic() + timeout
        extra = nar_size / MAKING_RATE if patient else 0.0
        notice: Future[None] = Future()
        pending = self._submit(self._trackers, nar_hash, nar_size, notice)
        again: dict[_Tracker, float] = {}
        pauses: dict[_Tracker, float] = {}
        seen: set[str] = set()
        try:
            while (pending or again) and not cancelled.is_set():
                now = time.monotonic()
                pending |= self._submit(_pop_due(again, now), nar_hash, nar_size, notice)
                left = max(0.0, min([deadline, now + _PAUSE, *again.values()]) - now)
                awaited: set[Future[Any]] = {*pending}
                if preparing is not None and pending:
                    awaited.add(notice)
                done = wait(awaited, left, FIRST_COMPLETED).done - {notice}
                if preparing is not None and notice.done():
                    preparing()
                    preparing = None
                if not pending:
                    cancelled.wait(left)
                if not done and time.monotonic() >= deadline:
                    if busy is None or not busy():
                        return
                    deadline, busy = deadline + BUSY, None
                for future in done:
                    tracker = pending.pop(future)
                    error = future.exception()
                    if isinstance(error, PreparingError):
                        deadline, extra = deadline + extra, 0.0
                        pause = pauses.get(tracker, FIRST_AGAIN)
                        pauses[tracker] = 2 * pause
                        again[tracker] = time.monotonic() + min(pause, error.retry_after)
                        continue
                    for candidate in _result(future, warn):
                        if candidate.infohash not in seen:
                            seen.add(candidate.infohash)
                            yield candidate
        finally:
            for future in pending:
                future.cancel()

    def learn(self, nar_hash: bytes, nar_size: int, warn: Callable[[str], None]) -> None:
        """Have the trackers asked in the background, and keep what they name."""
        for future in self._submit(self._trackers, nar_hash, nar_size, None):
            future.add_done_callback(lambda future: future.cancelled() or _result(future, warn))

    def refuse(self, nar_hash: bytes, infohash: str) -> None:
        """Never use a torrent again: its payload was not the NAR."""
        self._refused.add((nar_hash, infohash))
        self._keep(self._path(nar_hash, infohash, "bad"), b"")

    def prune_if_due(self, now: float) -> None:
        """Remove torrents that haven't been named for long, once a day over all processes.

        Args:
            now: seconds since 1970.

        Refusals stay: each has cost a download.
        """
        stamp = self._directory / _STAMP
        try:
            if 0 <= now - _mtime(stamp) < PRUNE_INTERVAL:
                return
            stamp.touch()
            os.utime(stamp, (now, now))
            for directory in self._directory.iterdir():
                if directory.is_dir():
                    _prune(directory, now)
        except OSError:
            pass  # nothing there, or another process is at it

    def _submit(
        self,
        trackers: Iterable[_Tracker],
        nar_hash: bytes,
        nar_size: int,
        notice: Future[None] | None,
    ) -> dict[Future[list[Candidate]], _Tracker]:
        return {
            tracker.executor.submit(self._ask_one, tracker, nar_hash, nar_size, notice): tracker
            for tracker in trackers
            if not tracker.is_down()
        }

    def _ask_one(
        self, tracker: _Tracker, nar_hash: bytes, nar_size: int, notice: Future[None] | None
    ) -> list[Candidate]:
        """What a tracker names; NOTICE is of whoever waits for it, and told of preparations."""
        # Not at the top: a helper without trackers starts sooner.
        from narswarm.trackerclient import PreparingError  # noqa: PLC0415

        if tracker.is_down():
            return []
        found: list[Candidate] = []
        try:
            for _ in range(2):
                entry = tracker.index.lookup(nar_hash)
                for listed in entry.torrents if entry else ():
                    if not self._is_refused(nar_hash, listed.infohash_v2.hex()):
                        found += self._obtain(tracker.index, listed, nar_hash, nar_size)
                if not entry or not entry.holders or any(each.seeders for each in entry.torrents):
                    break
                # Asking is what has one of the holders seed it.
                if notice is not None:
                    with contextlib.suppress(InvalidStateError):  # another tracker was first
                        notice.set_result(None)
                waits = notice is not None and not entry.torrents
                made = tracker.prepare(nar_hash, wait=waits)
                if entry.torrents or not made:
                    break
        except PreparingError:
            if not found:
                raise
        except NetworkError as error:
            tracker.failed(error)
            if not found:
                # One subject for all its failures, so that they are told once.
                raise NetworkError(tracker.index.announce_url, error.reason) from error
        else:
            tracker.succeeded()
        return found

    def _obtain(
        self, index: TrackerIndex, listed: IndexedTorrent, nar_hash: bytes, nar_size: int
    ) -> Iterator[Candidate]:
        """The torrent that a tracker lists, from disk or from it, if it is what was listed."""
        infohash = listed.infohash_v2.hex()
        file = self._path(nar_hash, infohash, "torrent")
        reads: tuple[Callable[[], bytes | None], ...] = (
            lambda: _read(file),
            lambda: index.torrent(nar_hash, listed.infohash_v2),
        )
        for read in reads:
            try:
                data = read()
                if data is None:
                    return
                candidate = self._check(data, nar_hash, nar_size, index.announce_url)
            except NetworkError:
                raise
            except (OSError, NarswarmError):
                continue
            if candidate.infohash != infohash:
                continue
            self._keep(file, data)
            peers = tuple((peer.address, peer.port) for peer in listed.peers[:MAX_PEERS])
            if peers:
                self._keep(file.with_suffix(".peers"), json.dumps(peers).encode())
            yield candidate._replace(peers=peers)
            return

    def _check(self, data: bytes, nar_hash: bytes, nar_size: int, source: str) -> Candidate:
        meta = metainfo.decode(data, source)
        metainfo.require_for(meta, nar_hash, nar_size)
        name = meta.name if meta.kind is Kind.SERVER else ""
        return Candidate(data, meta.infohash_v2.hex(), meta.length, meta.kind, name=name)

    def _is_refused(self, nar_hash: bytes, infohash: str) -> bool:
        # Not Path.exists, which raises where a directory can't be entered.
        return (nar_hash, infohash) in self._refused or os.path.exists(  # noqa: PTH110
            self._path(nar_hash, infohash, "bad")
        )

    def _path(self, nar_hash: bytes, infohash: str, suffix: str) -> Path:
        return self._directory / base32.encode(nar_hash) / f"{infohash}.{suffix}"

    def _keep(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        except OSError:
            pass  # a cache that can't be written only costs a look-up the next time


class _Tracker:
    """A tracker, the threads that ask it, and whether that makes sense."""

    def __init__(self, index: TrackerIndex, workers: int) -> None:
        self.index = index
        self.executor = ThreadPoolExecutor(workers, thread_name_prefix="tracker")
        self._waiting = threading.BoundedSemaphore(max(1, workers // 2))
        self._failures = 0
        self._down_until = 0.0

    def is_down(self) -> bool:
        """Whether it is left alone for now."""
        return time.monotonic() < self._down_until

    def prepare(self, nar_hash: bytes, *, wait: bool) -> bool:
        """Have a torrent made and seeded, and wait for it if threads can be spared.

        Returns:
            Whether there is one.

        Raises:
            PreparingError: there is none yet.
            NetworkError: the tracker can't be reached, or its answer isn't one.
        """
        waits = wait and self._waiting.acquire(blocking=False)
        try:
            return self.index.torrent(nar_hash, wait=WAIT if waits else 0) is not None
        finally:
            if waits:
                self._waiting.release()

    def succeeded(self) -> None:
        """Note that it answered."""
        self._failures = 0

    def failed(self, error: NetworkError) -> None:
        """Note that it did not."""
        self._failures += 1
        if self._failures >= MAX_FAILURES or isinstance(error, UnreachableError):
            self._failures = 0
            self._down_until = time.monotonic() + BREAK


def flatten(groups: Iterable[Iterable[Candidate]]) -> Iterator[Candidate]:
    """Candidates of several groups in order, each infohash once."""
    seen: set[str] = set()
    for group in groups:
        for candidate in group:
            if candidate.infohash not in seen:
                seen.add(candidate.infohash)
                yield candidate


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > _MAX_FILE:
            raise OSError(f"{path}: too large")
        return file.read(_MAX_FILE)


def _read_peers(path: Path) -> tuple[tuple[str, int], ...]:
    """Peers as `_ask_one` wrote them; libtorrent takes nothing but addresses and ports."""
    try:
        peers = json.loads(_read(path))
        return tuple((str(ip_address(host)), _port(port)) for host, port in list(peers)[:MAX_PEERS])
    except (OSError, ValueError, TypeError, RecursionError):
        return ()


def _port(value: object) -> int:
    if type(value) is not int or not 0 < value < 65536:
        raise ValueError
    return value


def _pop_due(again: dict[_Tracker, float], now: float) -> list[_Tracker]:
    """Take out those whose time has come."""
    due = [tracker for tracker, when in again.items() if when <= now]
    for tracker in due:
        del again[tracker]
    return due


def _result(future: Future[list[Candidate]], warn: Callable[[str], None]) -> list[Candidate]:
    try:
        return future.result()
    except NarswarmError as error:
        warn(str(error))
        return []


def _prune(directory: Path, now: float) -> None:
    for file in directory.iterdir():
        if file.suffix != ".bad" and _mtime(file) + KEEP < now:
            file.unlink(missing_ok=True)
    if not any(directory.iterdir()):
        directory.rmdir()
