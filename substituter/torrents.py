# SPDX-License-Identifier: GPL-3.0-or-later
"""From a NAR hash to torrents: those learned before, then what trackers say.

What is kept here are claims of strangers. A torrent whose payload turned out wrong is refused
from then on; a new one is only taken if it may carry the NAR at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import NamedTuple

from narswarm import base32, metainfo
from narswarm.errors import NarswarmError
from narswarm.files import write_atomically
from narswarm.payload import Kind
from narswarm.trackerclient import TrackerIndex

MAX_PEERS = 50
_MAX_FILE = 8 << 20


class Candidate(NamedTuple):
    """A torrent that may carry a NAR.

    Attributes:
        torrent: its metainfo, bencoded.
        infohash: the hexadecimal v2 infohash.
        length: bytes of its payload.
        kind: what its payload is.
        peers: addresses that a tracker named.
    """

    torrent: bytes
    infohash: str
    length: int
    kind: Kind
    peers: tuple[tuple[str, int], ...] = ()


class Torrents:
    """The torrents of this machine, in a directory that several helpers share.

    Args:
        directory: `<NarHash>/<infohash>.torrent` and `.peers`, `.bad` beside it.
        trackers: whose indexes are asked.
        executor: asks them in parallel.
    """

    def __init__(
        self, directory: Path, trackers: Sequence[TrackerIndex], executor: ThreadPoolExecutor
    ) -> None:
        self._directory = directory
        self._trackers = trackers
        self._executor = executor

    def known(self, nar_hash: bytes, nar_size: int) -> list[Candidate]:
        """Those learned before, the newest first."""
        directory = self._directory / base32.encode(nar_hash)
        found = []
        for file in sorted(directory.glob("*.torrent"), key=_mtime, reverse=True):
            if file.with_suffix(".bad").exists():
                continue
            try:
                data = _read(file)
                candidate = self._check(data, nar_hash, nar_size, str(file))
            except (OSError, NarswarmError):
                continue
            found.append(candidate._replace(peers=_read_peers(file.with_suffix(".peers"))))
        return found

    def ask(
        self, nar_hash: bytes, nar_size: int, timeout: float, warn: Callable[[str], None]
    ) -> Iterator[Candidate]:
        """Those that trackers name, as their answers come in; each is kept.

        Args:
            nar_hash: what is looked for.
            nar_size: from the authorised narinfo; bounds the payload.
            timeout: seconds for all trackers together.
            warn: gets one line per tracker that gave no proper answer.
        """
        futures: dict[Future[list[Candidate]], TrackerIndex] = {
            self._executor.submit(self._ask_one, tracker, nar_hash, nar_size): tracker
            for tracker in self._trackers
        }
        seen: set[str] = set()
        try:
            for future in as_completed(futures, timeout=timeout):
                try:
                    candidates = future.result()
                except NarswarmError as error:
                    warn(str(error))
                    continue
                for candidate in candidates:
                    if candidate.infohash not in seen:
                        seen.add(candidate.infohash)
                        yield candidate
        except FutureTimeoutError:
            return

    def refuse(self, nar_hash: bytes, infohash: str) -> None:
        """Never use a torrent again: its payload was not the NAR."""
        self._keep(self._path(nar_hash, infohash, "bad"), b"")

    def _ask_one(self, tracker: TrackerIndex, nar_hash: bytes, nar_size: int) -> list[Candidate]:
        entry = tracker.lookup(nar_hash)
        if entry is None:
            return []
        found = []
        for listed in entry.torrents:
            infohash = listed.infohash_v2.hex()
            if self._path(nar_hash, infohash, "bad").exists():
                continue
            file = self._path(nar_hash, infohash, "torrent")
            try:
                data = _read(file)
            except OSError:
                answer = tracker.torrent(nar_hash, listed.infohash_v2)
                if answer is None:
                    continue
                data = answer
            try:
                candidate = self._check(data, nar_hash, nar_size, tracker.announce_url)
            except NarswarmError:
                continue
            if candidate.infohash != infohash:
                continue
            candidate = candidate._replace(
                peers=tuple((peer.address, peer.port) for peer in listed.peers[:MAX_PEERS])
            )
            self._keep(file, data)
            if candidate.peers:
                self._keep(file.with_suffix(".peers"), json.dumps(candidate.peers).encode())
            found.append(candidate)
        return found

    def _check(self, data: bytes, nar_hash: bytes, nar_size: int, source: str) -> Candidate:
        meta = metainfo.decode(data, source)
        metainfo.require_for(meta, nar_hash, nar_size)
        return Candidate(data, meta.infohash_v2.hex(), meta.length, meta.kind)

    def _path(self, nar_hash: bytes, infohash: str, suffix: str) -> Path:
        return self._directory / base32.encode(nar_hash) / f"{infohash}.{suffix}"

    def _keep(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        except OSError:
            pass  # a cache that can't be written only costs a look-up the next time


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
    try:
        peers = json.loads(_read(path))
        return tuple((str(host), int(port)) for host, port in peers[:MAX_PEERS])
    except (OSError, ValueError, TypeError):
        return ()
