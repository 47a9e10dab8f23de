# SPDX-License-Identifier: GPL-3.0-or-later
"""One NAR that is being fetched, for however many want it.

A job runs in a thread of its own: it finds torrents, fetches the first that moves, and leaves one
that doesn't for another. What it has got so far is a `View`, which is replaced as a whole, so that
whoever looks needs no lock.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from narswarm import webseeds
from narswarm.candidates import MAKING_RATE, Candidate
from narswarm.download import Download, Progress
from narswarm.errors import NarswarmError, NetworkError, NotFoundError
from narswarm.fetchclient import Wanted
from narswarm.payload import Kind, file_name
from seeder.fetching_store import FetchStore, NoRoomError

log = logging.getLogger(__name__)

FIRST_BYTE: Final = 3.0
"""Seconds without a byte after which another torrent is looked for."""

STALL: Final = 5.0
"""The same once bytes have come."""

PATIENCE: Final = 30.0
"""Seconds without a byte after which there is nothing to hope for; also for finding torrents."""

FLUSH: Final = 0.02
"""Seconds between two flushes of a file that others read."""

LOOK: Final = 0.25
"""Seconds between two looks at how fast it is."""

MAX_TORRENTS: Final = 16
"""Torrents that are tried for one NAR: strangers may name any number."""

NOTHING: Final = Progress(0, 0, 0, 0, 0.0, 0)


class Fetches(Protocol):
    """What fetches: a `narswarm.swarm.Swarm`."""

    def fetch(
        self,
        torrent: bytes,
        directory: Path,
        *,
        trackers: Sequence[str] = (),
        peers: Sequence[tuple[str, int]] = (),
        web_seeds: Sequence[str] = (),
        in_order: bool = True,
    ) -> Download:
        """Begin to fetch."""

    def members(self) -> int:
        """How many were met lately as they fetched what is fetched here, too."""


class Finds(Protocol):
    """What finds torrents: a `narswarm.candidates.Torrents`."""

    def known(self, nar_hash: bytes, nar_size: int) -> list[Candidate]:
        """Those learned before."""

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
    ) -> Iterator[Candidate]:
        """Those that trackers name."""

    def refuse(self, nar_hash: bytes, infohash: str) -> None:
        """Never name one again."""


@dataclass(frozen=True, slots=True)
class View:
    """How far a job is.

    Attributes:
        serial: counts the torrents that were tried.
        infohash: hexadecimal, of the one that is tried now; empty if there is none.
        kind: of its payload.
        length: bytes of its payload.
        path: its payload's file.
        contiguous: bytes that can be read from the file's beginning.
        progress: as of the last look.
        complete: all of it is there.
        error: why no more will come.
        preparing: nothing has come, but a tracker has somebody make the payload or seed it.
    """

    serial: int = 0
    infohash: str = ""
    kind: Kind = Kind.ZSTD
    length: int = 0
    path: Path | None = None
    contiguous: int = 0
    progress: Progress = NOTHING
    complete: bool = False
    error: NarswarmError | None = None
    preparing: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self.complete or self.error is not None


class _CancelledError(NarswarmError):
    """Nobody wants it any more."""

    def __init__(self) -> None:
        super().__init__("fetch", "was cancelled")


class Job:
    """A NAR that is fetched; its owner has a lock for `users` and `plans`.

    Args:
        wanted: the NAR.
        swarm: fetches.
        torrents: finds.
        store: where files go.
        trackers: announce URLs.
        web_seeds: URLs of directories that have payloads.

    Attributes:
        wanted: the NAR.
        users: how many wait for it.
        waited: since when, of a clock that doesn't jump.
        plans: who wants it ahead.
        more: whoever waits for it is going to want others of a plan.
        view: how far it is.
        torrent: the metainfo of the torrent in `view`.
        download: what goes on in the swarm; None before and after.
    """

    def __init__(
        self,
        wanted: Wanted,
        swarm: Fetches,
        torrents: Finds,
        store: FetchStore,
        trackers: Sequence[str],
        web_seeds: Sequence[str] = (),
    ) -> None:
        self.wanted = wanted
        self.users = 0
        self.waited = 0.0
        self.plans: set[Hashable] = set()
        self.more = False
        self.view = View()
        self.torrent = b""
        self.download: Download | None = None
        self._swarm = swarm
        self._torrents = torrents
        self._store = store
        self._trackers = tuple(trackers)
        self._web_seeds = tuple(web_seeds)
        self._cancelled = threading.Event()
        self._changed = threading.Event()
        self._listeners: list[Callable[[], None]] = []
        self._mutex = threading.Lock()

    def listen(self, listener: Callable[[], None]) -> None:
        """Have a function called whenever `view` changes; it must not wait."""
        with self._mutex:
            self._listeners.append(listener)

    def ignore(self, listener: Callable[[], None]) -> None:
        """Call it no more."""
        with self._mutex, contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    def cancel(self) -> None:
        """End it soon."""
        self._cancelled.set()
        self._changed.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was told to end."""
        return self._cancelled.is_set()

    @property
    def brought(self) -> int:
        """Bytes of the NAR that are here, as far as those of its payload tell."""
        view = self.view
        return self.wanted.nar_size * view.progress.done // view.length if view.length else 0

    def moved(self, path: Path) -> None:
        """The complete file has another name from now on."""
        self._show(replace(self.view, path=path))

    def run(self) -> None:
        """Fetch it; what comes of it is in `view`."""
        try:
            self._run()
        except NarswarmError as error:
            self._show(replace(self.view, error=error))
        except Exception as error:
            log.exception("%s", self.wanted.store_path)
            self._show(
                replace(self.view, error=NarswarmError(self.wanted.store_path, f"{error!r}"))
            )

    def leave(self) -> None:
        """Leave the swarm; the file stays."""
        download, self.download = self.download, None
        if download is not None:
            with contextlib.suppress(OSError):
                download.cancel(keep=True)

    def _show(self, view: View) -> None:
        self.view = view
        with self._mutex:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()

    def _run(self) -> None:
        candidates = self._candidates()
        stalled: list[Candidate] = []
        candidate = next(candidates, None)
        if candidate is None:
            self._check_cancelled()
            raise NotFoundError(self.wanted.store_path, "no torrent is known")
        while True:
            other: Candidate | None
            try:
                other = self._try(candidate, candidates)
                if other is None:
                    return
            except (_CancelledError, NoRoomError):
                raise
            except NarswarmError as error:
                other = next(candidates, None)
                if other is None:
                    raise
                log.info("%s", error)
            stalled.append(candidate)
            candidate = other
            if len(stalled) >= MAX_TORRENTS:
                raise NetworkError(
                    self.wanted.store_path, f"none of {len(stalled)} torrents was complete"
                )

    def _candidates(self) -> Iterator[Candidate]:
        wanted = self.wanted
        seen = set()
        for candidate in self._torrents.known(wanted.nar_hash, wanted.nar_size):
            seen.add(candidate.infohash)
            yield candidate
        for candidate in self._torrents.ask(
            wanted.nar_hash,
            wanted.nar_size,
            PATIENCE,
            log.info,
            self._cancelled,
            patient=True,
            preparing=lambda: self._show(replace(self.view, preparing=True)),
        ):
            if candidate.infohash not in seen:
                seen.add(candidate.infohash)
                yield candidate

    def _try(self, candidate: Candidate, others: Iterator[Candidate]) -> Candidate | None:
        """Fetch a torrent; None when it is complete, or else another one to be tried."""
        directory = self._store.take(candidate.infohash, candidate.length)
        other: Candidate | None = candidate
        try:
            # libtorrent makes the file when it writes the first piece; readers open it before.
            name = candidate.name or file_name(self.wanted.nar_hash, candidate.kind)
            (directory / name).touch()
            download = self._swarm.fetch(
                candidate.torrent,
                directory,
                trackers=self._trackers,
                peers=candidate.peers,
                web_seeds=webseeds.of_settings(self._web_seeds, candidate.kind),
                # Of a plan others may be at the same items, and all are wanted in the end.
                in_order=not (self.plans or self.more),
            )
            download.follow(self._changed.set)
            self.download, self.torrent = download, candidate.torrent
            self._show(
                View(
                    serial=self.view.serial + 1,
                    infohash=candidate.infohash,
                    kind=candidate.kind,
                    length=candidate.length,
                    path=download.path,
                    progress=replace(NOTHING, total=candidate.length),
                    # It may be known already, and be seeded only in a while.
                    preparing=self.view.preparing,
                )
            )
            other = self._follow(download, others)
        finally:
            if other is not None:
                self.leave()
                self._store.give_back(candidate.infohash, keep=True)
        return other

    def _follow(self, download: Download, others: Iterator[Candidate]) -> Candidate | None:
        patient = False
        flushed = looked = time.monotonic()
        while download.stored < download.length:
            self._changed.wait(FLUSH if download.verified > download.stored else LOOK)
            self._changed.clear()
            self._check_cancelled()
            if download.failure is not None:
                raise NetworkError(download.name, download.failure)
            now = time.monotonic()
            if download.stored > self.view.contiguous:
                self._show(replace(self.view, contiguous=download.stored, preparing=False))
            # The first bytes and the last at once, others as often as is useful.
            urgent = not download.stored or download.verified == download.length
            if download.verified > download.stored and (urgent or now - flushed >= FLUSH):
                flushed = now
                download.flush()
            if now - looked >= LOOK:
                looked = now
                progress = download.look()
                preparing = self.view.preparing and not progress.received
                self._show(replace(self.view, progress=progress, preparing=preparing))
                if progress.idle > (STALL if progress.received else FIRST_BYTE) and not patient:
                    other = next(others, None)
                    if other is not None:
                        return other
                    patient = True
                making = self.wanted.nar_size / MAKING_RATE if self.view.preparing else 0.0
                if progress.idle > PATIENCE + making:
                    raise NetworkError(
                        download.name,
                        f"stalled at {progress.done} of {progress.total} bytes "
                        f"with {progress.peers} peers",
                    )
        done = replace(NOTHING, done=download.length, total=download.length)
        self._show(
            replace(
                self.view,
                contiguous=download.length,
                progress=done,
                complete=True,
                preparing=False,
            )
        )
        return None

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise _CancelledError
