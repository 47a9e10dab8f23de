# SPDX-License-Identifier: GPL-3.0-or-later
"""A strict pull parser of NARs, for bytes that come from strangers.

Every part of the format has one encoding, so anything else is refused: names out of order, padding
that isn't zero, bytes after the end.  What is read goes to a `Sink`, which is a scan when it keeps
nothing and a restorer when it writes.  Lengths, depth and the whole archive are bounded before
memory is taken for them.  The format is described in `narswarm.nar`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NamedTuple, NoReturn

from narswarm.nar import (
    CLOSE,
    CONTENTS,
    DIRECTORY,
    ENTRY,
    EXECUTABLE,
    FILE_END,
    MAGIC,
    MAX_DEPTH,
    MAX_NAME,
    MAX_TARGET,
    NODE,
    REGULAR,
    SYMLINK,
    NarError,
)
from narswarm.worker import Worker

_BESIDE: Final = 2 << 20
"""Bytes from which on an archive is hashed in a thread beside the one that reads it."""

_MAX_FILE: Final = 2**63 - 1
"""Larger lengths aren't file sizes on any system (off_t)."""


class NarDigest(NamedTuple):
    """What the bytes that were parsed turned out to be.

    Attributes:
        sha256: 32 bytes, what a narinfo's NarHash is compared with.
        size: bytes, what its NarSize is compared with.
    """

    sha256: bytes
    size: int


class Sink:
    """Takes what a NAR holds, in the order of the archive; this one keeps nothing.

    Names are entry names, checked; the root's name is empty.
    """

    def directory(self, name: bytes) -> None:
        """Enter a directory."""

    def leave(self) -> None:
        """Leave the directory that was entered last."""

    def symlink(self, name: bytes, target: bytes) -> None:
        """Take a symbolic link."""

    def regular(self, name: bytes, size: int, *, executable: bool) -> None:
        """Begin a regular file of `size` bytes."""

    def write(self, data: memoryview) -> None:
        """Take some of the contents of the file that began last."""

    def close(self) -> None:
        """End the file that began last; it has had all its contents."""


def parse(
    chunks: Iterable[bytes],
    sink: Sink,
    *,
    subject: str = "NAR",
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> NarDigest:
    """Read one NAR to its end and hash it on the way.

    Args:
        chunks: the archive in pieces of any size; drained to its end.
        sink: where the contents go.
        subject: what errors are about.
        limit: bytes that the archive may have at most.
        progress: called with the number of bytes that have come, once a chunk.

    Returns:
        The SHA-256 and the size of the whole archive.

    Raises:
        NarError: the bytes aren't exactly one NAR, or more than `limit`.
    """
    parser = _Parser(chunks, sink, subject, limit, progress)
    try:
        return parser.run()
    finally:
        parser.close()


class _Parser:
    """The state of `parse`: a buffer over the chunks, and the names that lead to the position."""

    __slots__ = (
        "_buffer",
        "_chunks",
        "_hash",
        "_last",
        "_limit",
        "_position",
        "_progress",
        "_received",
        "_sink",
        "_subject",
        "_view",
        "_worker",
    )

    def __init__(
        self,
        chunks: Iterable[bytes],
        sink: Sink,
        subject: str,
        limit: int | None,
        progress: Callable[[int], object] | None,
    ) -> None:
        self._chunks = iter(chunks)
        self._sink = sink
        self._subject = subject
        self._limit = limit
        self._progress = progress
        self._hash = hashlib.sha256()
        self._received = 0
        self._buffer = b""
        self._view = memoryview(b"")
        self._position = 0
        self._worker = Worker("NAR hash")
        self._last: list[bytes] = []  # of each open directory, the name that came last in it

    def run(self) -> NarDigest:
        """Parse everything."""
        self._expect(MAGIC, "the magic of a NAR")
        self._node(b"")
        while self._last:
            if self._accept(ENTRY):
                name = self._name()
                self._expect(NODE, "a node")
                self._node(name)
            else:
                self._expect(CLOSE, "an entry or the end of the directory", ENTRY)
                self._sink.leave()
                self._last.pop()
                if self._last:
                    self._expect(CLOSE, "the end of the entry")
        if self._position < len(self._buffer) or self._next():
            self._fail("has data after its end")
        self._worker.drain()
        return NarDigest(self._hash.digest(), self._received)

    def close(self) -> None:
        """End the thread that hashes."""
        self._worker.close()

    def _node(self, name: bytes) -> None:
        """Read a node; a directory only up to its entries, and its entry is closed after it."""
        if self._accept(REGULAR):
            self._regular(name)
        elif self._accept(SYMLINK):
            target = self._string(MAX_TARGET, "a target")
            if not target or b"\0" in target:
                self._fail(f"has an impossible target {target!r}")
            self._expect(CLOSE, "the end of the symbolic link")
            self._sink.symlink(name, target)
        else:
            what = "a regular file, symbolic link or directory"
            self._expect(DIRECTORY, what, REGULAR, SYMLINK)
            if len(self._last) >= MAX_DEPTH:
                self._fail(f"is deeper than {MAX_DEPTH} levels")
            self._sink.directory(name)
            self._last.append(b"")
            return
        if self._last:
            self._expect(CLOSE, "the end of the entry")

    def _regular(self, name: bytes) -> None:
        executable = self._accept(EXECUTABLE)
        self._expect(CONTENTS, "the contents of the file", EXECUTABLE)
        size = left = self._number()
        if size > _MAX_FILE or (self._limit is not None and size > self._limit - self._offset()):
            self._fail(f"has a file of {size} bytes, more than it may have")
        sink = self._sink
        sink.regular(name, size, executable=executable)
        while left:
            if self._position == len(self._buffer):
                self._buffer = self._next()
                self._view = memoryview(self._buffer)
                self._position = 0
                if not self._buffer:
                    self._truncated()
            taken = min(left, len(self._buffer) - self._position)
            end = self._position + taken
            sink.write(self._view[self._position : end])
            self._position = end
            left -= taken
        self._expect(FILE_END[size % 8], "zero padding and the end of the file")
        sink.close()

    def _name(self) -> bytes:
        """Read the name of an entry and check its place."""
        name = self._string(MAX_NAME, "a name")
        if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
            self._fail(f"has an impossible name {name!r}")
        last = self._last[-1]
        if name <= last:
            self._fail(f"has the name {name!r} after {last!r}")
        self._last[-1] = name
        return name

    def _string(self, longest: int, what: str) -> bytes:
        length = self._number()
        if length > longest:
            self._fail(f"has {what} of {length} bytes, more than {longest}")
        padded = length + -length % 8
        if len(self._buffer) - self._position < padded and not self._fill(padded):
            self._truncated()
        start = self._position
        value = self._buffer[start : start + length]
        self._position += padded
        if padded > length and any(self._buffer[start + length : self._position]):
            self._fail("has padding that isn't zero")
        return value

    def _number(self) -> int:
        if len(self._buffer) - self._position < 8 and not self._fill(8):
            self._truncated()
        start = self._position
        self._position += 8
        return int.from_bytes(self._buffer[start : self._position], "little")

    def _accept(self, wanted: bytes) -> bool:
        """Pass over `wanted` if it comes next."""
        if len(self._buffer) - self._position < len(wanted):
            self._fill(len(wanted))
        if self._buffer.startswith(wanted, self._position):
            self._position += len(wanted)
            return True
        return False

    def _expect(self, wanted: bytes, what: str, *others: bytes) -> None:
        """Pass over `wanted`, which must come next, as none of `others` did."""
        if not self._accept(wanted):
            for option in (wanted, *others):
                if option.startswith(self._buffer[self._position :][: len(option)]):
                    self._truncated()
            self._fail(f"does not have {what} at byte {self._offset()}")

    def _fill(self, wanted: int) -> bool:
        """Have `wanted` bytes in the buffer if the archive still has as many."""
        parts = [self._buffer[self._position :]]
        have = len(parts[0])
        while have < wanted:
            chunk = self._next()
            if not chunk:
                break
            parts.append(chunk)
            have += len(chunk)
        self._buffer = b"".join(parts)
        self._view = memoryview(self._buffer)
        self._position = 0
        return have >= wanted

    def _next(self) -> bytes:
        """Return the next chunk that isn't empty, hashed and counted, or nothing at the end."""
        for chunk in self._chunks:
            if not chunk:
                continue
            self._received += len(chunk)
            if self._limit is not None and self._received > self._limit:
                self._fail(f"is longer than {self._limit} bytes")
            if self._received < _BESIDE:
                self._hash.update(chunk)
            else:
                self._worker.put(partial(self._hash.update, chunk), len(chunk))
            if self._progress is not None:
                self._progress(self._received)
            return chunk
        return b""

    def _offset(self) -> int:
        return self._received - len(self._buffer) + self._position

    def _truncated(self) -> NoReturn:
        self._fail(f"is cut off after {self._received} bytes")

    def _fail(self, reason: str) -> NoReturn:
        raise NarError(self._subject, reason)
