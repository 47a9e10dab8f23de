# SPDX-License-Identifier: GPL-3.0-or-later
"""NARs that were fetched before they were asked for, in files that have no names.

guix-daemon kills its helpers without a word, so what is left of one must not need anybody to clean
up: a file without a name goes with the process. How much disk they may take is bounded.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from narswarm.errors import NarswarmError, NetworkError

BLOCK: Final = 256 << 10
"""Bytes that are read at a time."""


class Spool:
    """Room for NARs.

    Args:
        directory: where the files are; made when the first one is.
        limit: bytes of NARs that there is room for.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self.limit = limit
        self._used = 0

    @property
    def room(self) -> int:
        """Bytes that are free."""
        return self.limit - self._used

    def open(self, name: str, size: int) -> SpoolFile | None:
        """A file for a NAR of SIZE bytes; None if there is no room for it.

        Raises:
            OSError: no file can be made there.
        """
        with self._lock:
            if size > self.room:
                return None
            self._used += size
        try:
            return SpoolFile(name, size, _nameless(self._directory), self)
        except BaseException:
            self.give_back(size)
            raise

    def give_back(self, size: int) -> None:
        """Have room again."""
        with self._lock:
            self._used -= size


class SpoolFile:
    """A NAR that one thread writes and another may read meanwhile.

    Args:
        name: of the item, for messages.
        size: bytes of the NAR.
        descriptor: of the file, which is closed with this.
        spool: gets its room back.
    """

    def __init__(self, name: str, size: int, descriptor: int, spool: Spool) -> None:
        self._name = name
        self._size = size
        self._file = descriptor
        self._spool = spool
        self._changed = threading.Condition()
        self._written = 0
        self._error: Exception | None = None
        self._users = 1

    @property
    def written(self) -> int:
        """Bytes that are there."""
        return self._written

    @property
    def complete(self) -> bool:
        """Whether all of it is there."""
        return self._written == self._size and self._error is None

    def write(self, data: bytes) -> None:
        """Add bytes at the end.

        Raises:
            NarswarmError: more than the NAR has, or the disk is full.
        """
        if self._written + len(data) > self._size:
            raise NarswarmError(self._name, f"is longer than {self._size} bytes")
        view, position = memoryview(data), self._written
        try:
            while view:
                done = os.pwrite(self._file, view, position)
                view, position = view[done:], position + done
        except OSError as error:
            raise NarswarmError(self._name, error.strerror or str(error)) from error
        with self._changed:
            self._written = position
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """No more bytes will come."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def follow(self, look: float) -> Iterator[bytes]:
        """The NAR from its beginning as it comes; b"" now and then while nothing does.

        Args:
            look: seconds of nothing.

        Raises:
            NetworkError: not all of it came.
        """
        position = 0
        while position < self._size:
            with self._changed:
                if position >= self._written and self._error is None:
                    self._changed.wait(look)
                if position >= self._written and self._error is not None:
                    raise NetworkError(self._name, str(self._error))
                most = min(BLOCK, self._written - position)
            data = os.pread(self._file, most, position) if most else b""
            if most and not data:
                raise NetworkError(self._name, "the file was cut short")
            position += len(data)
            yield data

    def chunks(self) -> Iterator[bytes]:
        """The NAR, all of which is there."""
        return (data for data in self.follow(0.0) if data)

    def share(self) -> bool:
        """Have one more `close` to come; False when the last one has been."""
        with self._changed:
            if self._users:
                self._users += 1
            return self._users > 0

    def close(self) -> None:
        """Give it up; the last one to do so frees its room."""
        with self._changed:
            self._users -= 1
            if self._users:
                return
        with suppress(OSError):
            os.close(self._file)
        self._spool.give_back(self._size)


def _nameless(directory: Path) -> int:
    """A new file that has no name."""
    directory.mkdir(parents=True, exist_ok=True)
    flag = getattr(os, "O_TMPFILE", 0)
    if flag:
        with suppress(OSError):  # not all file systems can
            return os.open(directory, os.O_RDWR | flag | os.O_CLOEXEC, 0o600)
    descriptor, name = tempfile.mkstemp(prefix="ahead-", dir=directory)
    Path(name).unlink()
    return descriptor
