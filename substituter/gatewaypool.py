# SPDX-License-Identifier: GPL-3.0-or-later
"""Payloads that the gateway is fetching or has lately fetched, each once for all who want it.

Whoever asks reads from the payload's file while it grows, from any place. The NAR in it is hashed
on its way in, and the last bytes are kept back until the hash is right: nobody ever gets the whole
of a wrong payload. Files have no names, so that nothing is left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from narswarm import compression
from narswarm.errors import BusyError, InvalidInputError, MismatchError, NarswarmError, NetworkError
from narswarm.narinfo import Narinfo
from narswarm.payload import max_length
from substituter.gatewaysources import Attempt, Finder
from substituter.nargate import WrongNarError

HOLD: Final = 64 * 1024
"""Bytes that nobody gets before the whole is known to be right."""

LINGER: Final = 30.0
"""Seconds that a payload is fetched on although nobody reads it any more."""

KEEP: Final = 3600.0
"""Seconds that a complete payload stays after its last use."""

PENANCE: Final = 5.0
"""Seconds in which what could not be fetched isn't tried again."""

MAX_FETCHES: Final = 32
"""Payloads that are fetched at a time."""


class ChangedError(NetworkError):
    """The payload begins anew, with other bytes of maybe another length."""


class State(NamedTuple):
    """What a payload is at a moment.

    Attributes:
        serial: counts the beginnings.
        compression: `zstd`, or `none` where the file has the NAR itself.
        length: bytes that there will be, None if nobody knows yet.
        tag: tells these bytes from others.
    """

    serial: int
    compression: str
    length: int | None
    tag: str


class Payload:
    """A payload of one NAR; made by `Pool`.

    Args:
        narinfo: authorised.
        file: descriptor of an empty file, which becomes this object's.
        finder: gives the attempts.
        clock: seconds from any start.
    """

    def __init__(
        self, narinfo: Narinfo, file: int, finder: Finder, clock: Callable[[], float]
    ) -> None:
        self.narinfo = narinfo
        self.readers = 0
        self.used = clock()
        self.complete = False
        self.failure: NarswarmError | None = None
        self.failed = 0.0
        """When it failed."""
        self._finder = finder
        self._clock = clock
        self._file = file
        self._state = State(0, "", None, "")
        self._available = 0
        self._changed = threading.Condition()

    # Those who read

    def wait_ready(self, timeout: float) -> State:
        """Wait until something has come, so that it is known what it is.

        Raises:
            NetworkError: nothing comes.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._available or self.complete or self.failure, timeout
            )
            if self.failure is not None:
                raise self.failure
            if not self._available and not self.complete:
                raise NetworkError(self.narinfo.store_path, f"nothing came in {timeout:.0f} s")
            return self._state

    def read(self, serial: int, position: int, size: int, timeout: float) -> bytes:
        """Some bytes, as soon as they are there; none at the end.

        Raises:
            ChangedError: the payload of this serial number is gone.
            NetworkError: they don't come.
        """

        def is_over() -> bool:
            return (
                self._state.serial != serial
                or self._available > position
                or self.complete
                or self.failure is not None
            )

        with self._changed:
            self._changed.wait_for(is_over, timeout)
            if self.failure is not None:
                raise self.failure
            if self._state.serial != serial:
                raise ChangedError(self.narinfo.store_path, "another source is tried")
            left = self._available - position
            if left <= 0:
                if self.complete:
                    return b""
                raise NetworkError(self.narinfo.store_path, f"nothing came in {timeout:.0f} s")
            # Under the lock: the file may be begun anew at any other moment.
            return os.pread(self._file, min(size, left), position)

    # The thread that fetches

    def run(self) -> None:
        """Fetch, by one attempt after the other."""
        notes: list[str] = []
        try:
            for attempt in self._finder.attempts(self.narinfo, self._is_wanted):
                if not self._is_wanted():
                    break
                if self._succeeds(attempt, notes):
                    return
            reason = "; ".join(notes[-3:]) or "nobody has it"
        except Exception as error:  # noqa: BLE001 -- those who wait must be told, whatever it was
            reason = str(error) if isinstance(error, NarswarmError) else repr(error)
        with self._changed:
            self.failed = self._clock()
            self.failure = NetworkError(self.narinfo.store_path, reason)
            self._changed.notify_all()

    @property
    def taken(self) -> int:
        """Bytes of disk that it takes, or will take at most."""
        return self._available if self.complete else max_length(self.narinfo.nar_size)

    def close(self) -> None:
        """Let go of the file; nobody reads or writes it any more."""
        os.close(self._file)

    def _is_wanted(self) -> bool:
        return self.readers > 0 or self._clock() - self.used < LINGER

    def _succeeds(
        self, context: contextlib.AbstractContextManager[Attempt], notes: list[str]
    ) -> bool:
        infohash = ""
        try:
            with context as attempt:
                infohash = attempt.infohash
                self._take(attempt)
        except (MismatchError, InvalidInputError) as error:
            notes.append(str(error))
            if infohash:
                self._finder.refuse(self.narinfo, infohash)
            return False
        except NarswarmError as error:
            notes.append(str(error))
            return False
        return True

    def _take(self, attempt: Attempt) -> None:
        """Write what comes, and hash the NAR in it.

        Raises:
            WrongNarError: it is another NAR.
            InvalidInputError: it is none.
            NarswarmError: what the source says.
        """
        narinfo = self.narinfo
        as_it_comes = attempt.compression == "zstd"
        length = attempt.length if as_it_comes else narinfo.nar_size
        if length is not None and length > max_length(narinfo.nar_size):
            raise InvalidInputError(attempt.tag, f"has {length} bytes, more than the NAR may need")
        with self._changed:
            kind = "zstd" if as_it_comes else "none"
            self._state = State(self._state.serial + 1, kind, length, attempt.tag)
            self._available = 0
            os.ftruncate(self._file, 0)
            self._changed.notify_all()
        writer = _Writer(self._file, max_length(narinfo.nar_size), attempt.tag, self._arrived)
        chunks = writer.through(attempt.chunks) if as_it_comes else attempt.chunks
        nar = compression.decompress(
            chunks, attempt.compression, limit=narinfo.nar_size, subject=attempt.tag
        )
        digest, size = hashlib.sha256(), 0
        for piece in nar if as_it_comes else writer.through(nar):
            digest.update(piece)
            size += len(piece)
            if not self._is_wanted():
                raise NetworkError(attempt.tag, "nobody waits for it any more")
        if (digest.digest(), size) != (narinfo.nar_hash, narinfo.nar_size):
            raise WrongNarError(narinfo, digest.digest())
        with self._changed:
            self._available = writer.written
            self._state = self._state._replace(length=writer.written)
            self.complete = True
            self._changed.notify_all()

    def _arrived(self, written: int) -> None:
        available = written - HOLD
        if available > self._available:
            with self._changed:
                self._available = available
                self._changed.notify_all()


class _Writer:
    """Appends to a file what passes through."""

    def __init__(self, file: int, limit: int, subject: str, arrived: Callable[[int], None]) -> None:
        self.written = 0
        self._file = file
        self._limit = limit
        self._subject = subject
        self._arrived = arrived

    def through(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if self.written + len(chunk) > self._limit:
                raise InvalidInputError(self._subject, "is longer than the NAR may need")
            try:
                view = memoryview(chunk)
                while view:
                    done = os.pwrite(self._file, view, self.written)
                    self.written += done
                    view = view[done:]
            except OSError as error:
                raise BusyError("payload", error.strerror or str(error)) from error
            self._arrived(self.written)
            yield chunk


class Pool:
    """All payloads.

    Args:
        directory: where their files are made.
        room: bytes that they may have together.
        finder: gives the attempts.
        clock: seconds from any start.
    """

    def __init__(
        self,
        directory: Path,
        room: int,
        finder: Finder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._room = room
        self._finder = finder
        self._clock = clock
        self._payloads: dict[bytes, Payload] = {}
        self._fetching = 0
        self._lock = threading.Lock()

    @contextmanager
    def payload(self, narinfo: Narinfo) -> Iterator[Payload]:
        """The payload of a NAR, which is fetched if it isn't being already.

        Raises:
            BusyError: too much is going on, or there is no room.
        """
        with self._lock:
            self._prune()
            payload = self._payloads.get(narinfo.nar_hash)
            if payload is None:
                payload = self._begin(narinfo)
            payload.readers += 1
        try:
            yield payload
        finally:
            with self._lock:
                payload.readers -= 1
                payload.used = self._clock()

    def prune(self) -> None:
        """Forget what hasn't been used for long."""
        with self._lock:
            self._prune()

    def _begin(self, narinfo: Narinfo) -> Payload:
        needed = max_length(narinfo.nar_size)
        if self._fetching >= MAX_FETCHES:
            raise BusyError(narinfo.store_path, f"{MAX_FETCHES} items are being fetched already")
        if needed > self._room:
            raise BusyError(narinfo.store_path, "is larger than the room for payloads")
        idle = sorted(self._idle(), key=lambda payload: payload.used)
        while self._used() + needed > self._room:
            if not idle:
                raise BusyError(narinfo.store_path, "the room for payloads is in use")
            self._forget(idle.pop(0))
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
                descriptor = os.dup(file.fileno())
        except OSError as error:
            raise BusyError(self._directory, error.strerror or str(error)) from error
        payload = Payload(narinfo, descriptor, self._finder, self._clock)
        self._payloads[narinfo.nar_hash] = payload
        self._fetching += 1
        threading.Thread(target=self._fetch, args=(payload,), name="fetch", daemon=True).start()
        return payload

    def _fetch(self, payload: Payload) -> None:
        try:
            payload.run()
        finally:
            with self._lock:
                self._fetching -= 1

    def _idle(self) -> list[Payload]:
        return [
            payload
            for payload in self._payloads.values()
            if not payload.readers and (payload.complete or payload.failure)
        ]

    def _used(self) -> int:
        """Bytes that are taken, or will be."""
        return sum(payload.taken for payload in self._payloads.values())

    def _prune(self) -> None:
        now = self._clock()
        for payload in self._idle():
            over = now - (payload.failed if payload.failure else payload.used)
            if over >= (PENANCE if payload.failure else KEEP):
                self._forget(payload)

    def _forget(self, payload: Payload) -> None:
        del self._payloads[payload.narinfo.nar_hash]
        payload.close()
