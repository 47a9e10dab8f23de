# SPDX-License-Identifier: GPL-3.0-or-later
"""One torrent that is being fetched, read in order while it arrives.

The reader doesn't read the file: when a piece is on disk depends on libtorrent's storage, and
`read_piece` answers on all of them. Pieces come in order ("sequential download"), a few are asked
for ahead of the reader, and so memory stays the same for 10 MiB and for 10 GiB. Whoever gives the
file itself to somebody else (`follow`) has libtorrent write what is verified before it says so.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from narswarm.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from narswarm.lt_compat import TorrentFacts

WINDOW = 4 * 2**20
"""Bytes of pieces that may wait in memory for the reader; at least one piece."""

TICK = 0.25
"""Seconds between two looks at the progress."""

STARVING = 2.0
"""Seconds without a byte after which peers are also tried by uTP."""


class SwarmStalledError(NetworkError):
    """The caller's rule says that this swarm is too slow."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is.

    Attributes:
        done: bytes that are verified or on their way into a piece, also from an earlier run.
        total: bytes of the payload.
        peers: connected now.
        rate: payload bytes a second, as libtorrent smooths it.
        idle: seconds since the last byte of payload came from a peer, or since the start, or since
            what was here before was checked.
        received: bytes of payload that came from peers in this run.
    """

    done: int
    total: int
    peers: int
    rate: int
    idle: float
    received: int


class Download:
    """A torrent being fetched; made by `Swarm.fetch`.

    Attributes:
        infohash: hex, of version 2.
        name: the file's name.
        path: where the file is, complete when `chunks` ended.
        length: bytes of the payload.
        piece_length: bytes.
    """

    def __init__(
        self,
        facts: TorrentFacts,
        directory: Path,
        *,
        starving: Callable[[Download], None],
        remove: Callable[[Download, bool], None],
        looked: Callable[[Download, Progress], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.infohash = facts.infohash
        self.name = facts.name
        self.path = directory / facts.name
        self.length = facts.length
        self.piece_length = facts.piece_length
        self._pieces = facts.pieces
        self._starving = starving
        self._remove = remove
        self._looked = looked
        self._clock = clock
        self._changed = threading.Condition()
        self._handle: Any = None
        self._have: set[int] = set()
        self._asked: set[int] = set()
        self._read: dict[int, bytes] = {}
        self._prefix = 0
        self._flushing: int | None = None
        self._stored = 0
        self._follower: Callable[[], None] | None = None
        self._failure: str | None = None
        self._received = 0
        self._last_byte = clock()

    # What the session's alert thread says

    def attach(self, handle: Any) -> None:
        """Take libtorrent's handle; nothing can be read before."""
        with self._changed:
            self._handle = handle
            self._changed.notify_all()

    def have(self, pieces: set[int]) -> None:
        """These pieces are verified."""
        with self._changed:
            self._have |= pieces
            while self._prefix in self._have:
                self._prefix += 1
            self._changed.notify_all()
        self._tell()

    def flushed(self) -> None:
        """What was verified when `flush` was called is in the file."""
        with self._changed:
            if self._flushing is not None:
                self._stored, self._flushing = self._flushing, None
        self._tell()

    def deliver(self, piece: int, data: bytes) -> None:
        """The bytes of a piece that was asked for."""
        with self._changed:
            if piece in self._asked:
                self._read[piece] = data
                self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """No more bytes will come; the first reason stays."""
        with self._changed:
            if self._failure is None:
                self._failure = reason
            self._changed.notify_all()
        self._tell()

    def _tell(self) -> None:
        follower = self._follower
        if follower is not None:
            follower()

    # Those who read the file

    def follow(self, follower: Callable[[], None]) -> None:
        """Have a function called when `verified`, `stored` or `failure` may have changed.

        It is called by the thread that reads libtorrent's alerts, and must not wait.
        """
        self._follower = follower

    @property
    def failure(self) -> str | None:
        """Why no more bytes will come, if that is so."""
        return self._failure

    @property
    def complete(self) -> bool:
        """Whether all of it has the torrent's hashes."""
        return self._prefix == self._pieces

    @property
    def verified(self) -> int:
        """Bytes from the beginning that have the torrent's hashes."""
        return min(self._prefix * self.piece_length, self.length)

    @property
    def stored(self) -> int:
        """Bytes from the beginning that can be read from the file, as far as `flush` saw to it."""
        return min(self._stored * self.piece_length, self.length)

    def flush(self) -> bool:
        """Have what is verified written to the file.

        Returns:
            Whether anything is on its way.
        """
        with self._changed:
            if self._handle is None or self._failure is not None:
                return False
            if self._flushing is not None or self._prefix <= self._stored:
                return self._flushing is not None
            self._flushing = self._prefix
            handle = self._handle
        try:
            handle.flush_cache()
        except RuntimeError:
            self.fail("is no longer in a swarm")
        return True

    def limit(self, rate: int) -> None:
        """Set the bytes a second that are fetched at most, 0 for no limit."""
        with contextlib.suppress(RuntimeError):  # the handle of a torrent that is gone
            if self._handle is not None:
                self._handle.set_download_limit(rate)

    # What the caller asks

    def progress(self) -> Progress:
        """How far it is now.

        Raises:
            NetworkError: the torrent is gone.
        """
        handle = self._handle
        if handle is None or self._failure is not None:
            raise NetworkError(self.name, self._failure or "is not in a swarm")
        try:
            status = handle.status(0)
        except RuntimeError as error:
            raise NetworkError(self.name, "is no longer in a swarm") from error
        now = self._clock()
        received = status.total_payload_download
        # What was here before is hashed first; nothing can come meanwhile.
        checking = str(status.state).startswith("checking")
        with self._changed:
            if received > self._received or checking:
                self._received = received
                self._last_byte = now
            idle = now - self._last_byte
        return Progress(
            done=min(status.total_done, self.length),
            total=self.length,
            peers=status.num_peers,
            rate=status.download_payload_rate,
            idle=idle,
            received=received,
        )

    def chunks(
        self, *, stall: Callable[[Progress], bool] | None = None, tick: float = TICK
    ) -> Iterator[bytes]:
        """The payload in order, each piece as soon as it is verified.

        Args:
            stall: called about every TICK seconds until all bytes are here, however slowly they
                are then read; True gives up.
            tick: seconds.

        Yields:
            Bytes, a piece at a time.

        Raises:
            SwarmStalledError: STALL said so. The torrent stays until `cancel`.
            NetworkError: the disk is full, the file can't be read, or the torrent was removed.
        """
        next_look = self._clock() + tick
        for piece in range(self._pieces):
            while True:
                data = self._take(piece, max(0.0, next_look - self._clock()))
                if self._clock() >= next_look:
                    self._look(stall)
                    next_look = self._clock() + tick
                if data is not None:
                    break
            # The last piece of a version 2 torrent may come with its padding.
            yield data[: self.length - piece * self.piece_length]

    def cancel(self, *, keep: bool) -> None:
        """Leave the swarm.

        Args:
            keep: leave what was fetched on disk, for another attempt or for seeding it later.
        """
        self.fail("was cancelled")
        self._remove(self, keep)

    def _take(self, piece: int, timeout: float) -> bytes | None:
        """The bytes of PIECE, or None if they didn't come within TIMEOUT seconds."""
        window = max(1, WINDOW // self.piece_length)
        with self._changed:
            if not self._ready(piece, window):
                self._changed.wait_for(lambda: self._ready(piece, window), timeout)
            data = self._read.pop(piece, None)
            if data is not None:
                self._asked.discard(piece)
            elif self._failure is not None:
                raise NetworkError(self.name, self._failure)
            return data

    def _ready(self, piece: int, window: int) -> bool:
        """Whether waiting for PIECE is over; asks for what may be read by now on the way."""
        if self._failure is None and self._handle is not None:
            for ahead in range(piece, min(piece + window, self._pieces)):
                if ahead in self._have and ahead not in self._asked:
                    self._asked.add(ahead)
                    try:
                        self._handle.read_piece(ahead)
                    except RuntimeError:  # the handle of a torrent that is gone
                        self._failure = "is no longer in a swarm"
                        break
        return piece in self._read or self._failure is not None

    def look(self) -> Progress:
        """The progress; where there is none, peers are also tried by uTP from now on.

        Raises:
            NetworkError: the torrent is gone.
        """
        progress = self.progress()
        self._looked(self, progress)
        if progress.done < progress.total and progress.idle >= STARVING:
            self._starving(self)
        return progress

    def _look(self, stall: Callable[[Progress], bool] | None) -> None:
        progress = self.look()
        if progress.done >= progress.total:
            return
        if stall is not None and stall(progress):
            raise SwarmStalledError(
                self.name,
                f"the swarm stalled at {progress.done} of {progress.total} bytes "
                f"with {progress.peers} peers",
            )
