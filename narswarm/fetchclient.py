# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the seeder of this machine to fetch NARs, and reads their payloads while they arrive.

A machine needs one BitTorrent session, which is the seeder's. Programs that come and go, as
guix-daemon's helpers do, ask it through its Unix socket; it passes them the payload's file, open
for reading, and says how much of it is there from the beginning. What is read is advice like
everything else: whoever reads it checks the NAR.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from narswarm import base32
from narswarm.control import NAME
from narswarm.download import Progress, SwarmStalledError
from narswarm.errors import BusyError, NarswarmError, NetworkError, NotFoundError
from narswarm.fetchwire import Connection
from narswarm.payload import Kind

SOCKETS: Final = (
    Path("/run/narswarm/seeder.sock"),
    Path("/var/lib/narswarm/seeder") / NAME,
)
"""Where a seeder may listen, in the order in which they are tried."""

TICK = 0.25
"""Seconds between two looks at the progress."""

CHUNK = 1 << 20
"""Bytes that are read at a time."""

BATCH = 2000
"""Items of a plan that are sent at a time."""


class Wanted(NamedTuple):
    """A NAR to be fetched.

    Attributes:
        nar_hash: SHA-256, 32 bytes, from an authorised narinfo.
        nar_size: bytes of the NAR, from the same; bounds the payload.
        store_path: of the item.
    """

    nar_hash: bytes
    nar_size: int
    store_path: str


class Source(NamedTuple):
    """Where a payload comes from.

    Attributes:
        infohash: hexadecimal, of version 2.
        kind: what the payload is.
        length: its bytes.
    """

    infohash: str
    kind: Kind
    length: int


class SourceChangedError(NetworkError):
    """The seeder has given up one torrent for another: the payload begins again.

    `Fetching.chunks` then gives the other one from its beginning.
    """


class SeederClient:
    """The seeder of this machine.

    Args:
        path: of its socket.
        timeout: seconds to wait for a connection, and for an answer to what needs no peers.
    """

    def __init__(self, path: Path, *, timeout: float = 2.0) -> None:
        self._path = path
        self._timeout = timeout
        self._plan: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what was asked for ahead: the seeder cancels what isn't complete of it."""
        if self._plan is not None:
            self._plan.close()
            self._plan = None

    def fetch(self, wanted: Wanted, *, more: bool = False) -> Fetching:
        """Have a NAR's payload fetched, before all that is fetched ahead.

        Args:
            wanted: the NAR.
            more: it belongs to a plan, of which others may be fetching the same at this moment.

        Returns:
            A context manager, which cancels the fetch when it ends.

        Raises:
            NotFoundError: no seeder listens there, or this user may not ask it. Known within
                milliseconds.
            BusyError: it doesn't answer.
        """
        connection = Connection(self._path, self._timeout)
        connection.send({"op": "fetch", "more": more, **_described(wanted)})
        return Fetching(connection, wanted)

    def prefetch(self, items: Sequence[Wanted]) -> int:
        """Have NARs fetched ahead, in this order, as far as that is in nobody's way.

        They belong to this client: `close`, or this process's end, cancels what isn't complete.
        Calling it again adds more.

        Returns:
            How many of them the seeder took.

        Raises:
            NotFoundError: as for `fetch`.
            BusyError: it doesn't answer.
            NarswarmError: it refuses.
        """
        if self._plan is None:
            self._plan = Connection(self._path, self._timeout)
        accepted = 0
        try:
            for start in range(0, len(items), BATCH):
                described = [_described(item) for item in items[start : start + BATCH]]
                answer = self._plan.ask({"op": "prefetch", "items": described})
                accepted += int(answer.get("accepted", 0))
        except (BusyError, NotFoundError):
            self.close()
            raise
        return accepted

    def refuse(self, nar_hash: bytes, infohash: str) -> None:
        """Say that a torrent's payload was another NAR: it is never used for this one again.

        Raises:
            NotFoundError: as for `fetch`.
            BusyError: it doesn't answer.
            NarswarmError: it refuses.
        """
        with contextlib.closing(Connection(self._path, self._timeout)) as connection:
            connection.ask(
                {"op": "refuse", "nar_hash": base32.format_hash(nar_hash), "infohash": infohash}
            )


class Fetching:
    """A payload that is being fetched; made by `SeederClient.fetch`.

    One thread reads; others may ask for `progress` and `source_now`.
    """

    def __init__(self, connection: Connection, wanted: Wanted) -> None:
        self._connection = connection
        self._name = wanted.store_path.rpartition("/")[2]
        self._source: Source | None = None
        self._file = -1
        self._serial = 0
        self._contiguous = 0
        self._complete = False
        self._preparing = False
        self._pace: tuple[float, float] | None = None
        self._members = 0
        self._failure: NarswarmError | None = None
        self._progress = Progress(0, 0, 0, 0, 0.0, 0)
        self._heard = self._started = time.monotonic()
        self._mutex = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the fetch, unless somebody else waits for it or it is complete."""
        self._connection.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def source_now(self) -> Source | None:
        """The torrent that is being used; None as long as none was found."""
        return self._source

    @property
    def preparing(self) -> bool:
        """Whether somebody makes the payload, or is about to seed it, as a tracker says.

        So it is worth waiting although no byte has come: known before there is a torrent, and not
        said any more once bytes come. `source` and `chunks` take in what the seeder says.
        """
        return self._preparing

    @property
    def members(self) -> int:
        """How many others fetch what the seeder fetches, as far as it met them lately."""
        return self._members

    def source(self, timeout: float) -> Source:
        """Wait until a torrent was found.

        Args:
            timeout: seconds.

        Raises:
            SwarmStalledError: none was, in that time.
            NetworkError: there is none, or the seeder is gone.
        """
        deadline = time.monotonic() + timeout
        while self._source is None:
            self._raise_failure()
            left = deadline - time.monotonic()
            if left <= 0 or not self._hear(left):
                raise SwarmStalledError(self._name, "the seeder has found no torrent yet")
        return self._source

    def progress(self) -> Progress:
        """How far it is, as the seeder said last; zeros before a torrent is found.

        `idle` goes on while the seeder says nothing.
        """
        with self._mutex:
            silent = time.monotonic() - self._heard
            return Progress(
                done=self._progress.done,
                total=self._progress.total,
                peers=self._progress.peers,
                rate=self._progress.rate,
                idle=self._progress.idle + silent,
                received=self._progress.received,
            )

    def pace(self) -> tuple[float, float] | None:
        """Of all that the seeder fetches: bytes of NARs a second, seconds since the last came.

        None as long as nothing comes, or if it doesn't say.
        """
        with self._mutex:
            if self._pace is None:
                return None
            rate, quiet = self._pace
            return rate, quiet + time.monotonic() - self._heard

    def chunks(
        self, *, stall: Callable[[Progress], bool] | None = None, tick: float = TICK
    ) -> Iterator[bytes]:
        """The payload in order, as soon as it is there.

        Args:
            stall: called about every TICK seconds until all bytes are here; True gives up.
            tick: seconds.

        Yields:
            At most a MiB.

        Raises:
            SwarmStalledError: STALL said so.
            SourceChangedError: another torrent is used from now on, and something of the first
                was given already. Calling `chunks` again gives that one.
            NetworkError: the seeder found nothing that works, or is gone.
        """
        position, serial = 0, self._serial
        next_look = time.monotonic() + tick
        while True:
            if serial != self._serial:
                if position:
                    raise SourceChangedError(self._name, "another torrent is tried")
                serial = self._serial
            length = self._source.length if self._source else -1
            if position == length and self._complete:
                return
            if position < self._contiguous:
                data = os.pread(self._file, min(CHUNK, self._contiguous - position), position)
                if not data:
                    raise NetworkError(self._name, "the payload is shorter than the seeder says")
                position += len(data)
                yield data
                self._hear(0.0)
            else:
                self._raise_failure()
                self._hear(max(0.0, next_look - time.monotonic()))
            if time.monotonic() >= next_look and not self._complete:
                next_look = time.monotonic() + tick
                progress = self.progress()
                if stall is not None and stall(progress):
                    raise SwarmStalledError(
                        self._name,
                        f"the swarm stalled at {progress.done} of {progress.total} bytes "
                        f"with {progress.peers} peers",
                    )

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _hear(self, timeout: float) -> bool:
        """Take what the seeder has said; False if it said nothing in that time."""
        if self._complete or self._failure is not None:
            return False
        try:
            answers = self._connection.receive(timeout)
        except NarswarmError as error:
            self._failure = NetworkError(self._name, error.reason)
            return True
        for answer, descriptor in answers:
            try:
                self._take(answer, descriptor)
            except (KeyError, TypeError, ValueError, OverflowError):
                if descriptor is not None and descriptor != self._file:
                    os.close(descriptor)
                self._failure = NetworkError(self._name, "the seeder answers something else")
        return bool(answers)

    def _take(self, answer: dict[str, Any], descriptor: int | None) -> None:
        with self._mutex:
            if not answer.get("ok"):
                reason = str(answer.get("error", "")).partition(": ")[2]
                self._failure = NetworkError(self._name, reason or "the seeder can't fetch it")
                return
            event = answer["event"]
            if event == "source":
                if descriptor is None:
                    raise ValueError
                source = Source(
                    str(answer["infohash"]), Kind(answer["kind"]), int(answer["length"])
                )
                if self._file >= 0:
                    os.close(self._file)
                self._file, self._source = descriptor, source
                self._serial += 1
                self._contiguous = 0
                self._complete = False
                self._progress = Progress(0, source.length, 0, 0, 0.0, 0)
            elif event == "progress":
                length = self._source.length if self._source is not None else 0
                self._contiguous = min(int(answer["contiguous"]), length)
                self._preparing = answer.get("preparing") is True
                self._members = max(0, int(answer.get("members", 0)))
                pace, quiet = answer.get("pace"), answer.get("quiet")
                self._pace = None
                if pace is not None and quiet is not None:
                    self._pace = _amount(pace), _amount(quiet)
                self._progress = Progress(
                    done=int(answer["done"]),
                    total=length,
                    peers=int(answer["peers"]),
                    rate=int(answer["rate"]),
                    idle=float(answer["idle"]),
                    received=int(answer["received"]),
                )
            elif self._source is None:
                raise ValueError
            elif event == "done":
                self._contiguous = self._source.length
                self._complete = True
            self._heard = time.monotonic()


def _amount(value: float) -> float:
    """A number from 0 on.

    Raises:
        ValueError: it is something else, such as the NaN that JSON in Python has.
    """
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError
    return number


def find(path: str | None = None) -> Path | None:
    """Where to ask: the setting's path, or the first of the usual places that has a socket.

    Args:
        path: the setting: None for the usual places, "" for none at all.
    """
    if path is not None:
        return Path(path) if path else None
    # Not Path.exists, which raises where a directory can't be entered.
    return next((each for each in SOCKETS if os.path.exists(each)), None)  # noqa: PTH110


def _described(wanted: Wanted) -> dict[str, Any]:
    return {
        "nar_hash": base32.format_hash(wanted.nar_hash),
        "nar_size": wanted.nar_size,
        "store_path": wanted.store_path,
    }
