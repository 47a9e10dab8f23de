# SPDX-License-Identifier: GPL-3.0-or-later
"""The rest of a file from a server that has stopped in the middle.

A connection may fall silent although the server, or another one behind the same name, would go on:
a router forgot it, a backend hangs. So when nothing comes for a second a further connection asks
for the rest (RFC 9110, section 14), and takes over if it has a byte first. Where a server doesn't
know ranges it sends the file anew, and what is here already is passed over. Either way nothing that
has arrived is lost, and decompression goes on where it was.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from narswarm.errors import NetworkError

if TYPE_CHECKING:
    from narswarm.httpclient import HttpClient, Stream

SILENCE: Final = 1.0
"""Seconds without a byte after which a further connection is tried; they double with each."""

WATCHED: Final = 16 << 10
"""Bytes of a file from which on somebody watches whether it comes; others are there at once."""

MAX_TRIES: Final = 3
"""Further connections for one file."""

_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-[0-9]{1,19}/([0-9]{1,19})")


class Resuming:
    """The body of an answer, with further connections where one isn't enough.

    Args:
        client: makes them.
        url: of the file.
        stream: the answer, with status 200; its owner closes it.
        silence: seconds without a byte after which a further connection is tried.

    Attributes:
        done: bytes that were given.
    """

    def __init__(
        self, client: HttpClient, url: str, stream: Stream, silence: float = SILENCE
    ) -> None:
        self.done = 0
        self._client = client
        self._url = url
        self._length = stream.length
        self._headers = stream.headers
        self._silence = silence
        self._tries = 0
        self._changed = threading.Condition()
        self._closed = False
        self._waiting: float | None = None
        self._current = stream
        self._beside: Stream | None = None
        self._next: tuple[contextlib.ExitStack, Stream, Iterator[bytes]] | None = None
        self._open = contextlib.ExitStack()

    def abort(self) -> None:
        """Have the reader, in another thread maybe, fail at once."""
        with self._changed:
            self._closed = True
            streams = [each for each in (self._current, self._beside) if each is not None]
            self._changed.notify_all()
        for stream in streams:
            stream.abort()

    def __iter__(self) -> Iterator[bytes]:
        """Give the body in pieces as they arrive.

        Raises:
            NetworkError: it stops, and the server doesn't go on by another connection.
        """
        if self._length is not None and self._length >= WATCHED:
            threading.Thread(target=self._watch, name="silence", daemon=True).start()
        pieces = iter(self._current)
        try:
            while True:
                try:
                    yield from self._pieces(pieces)
                except NetworkError:
                    taken = self._take() or self._again()
                    if taken is None:
                        raise
                    pieces = taken
                else:
                    return
        finally:
            with self._changed:
                self._closed = True
                beside, unused = self._beside, self._next
                self._changed.notify_all()
            if beside is not None:
                beside.abort()
            if unused is not None:
                unused[0].close()
            self._open.close()

    def _pieces(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """What one connection gives.

        Raises:
            NetworkError: it stops, or another one has taken over.
        """
        while True:
            with self._changed:
                self._waiting = time.monotonic()
            piece = next(pieces, None)
            with self._changed:
                self._waiting = None
                if self._next is not None:  # which goes on from here, too
                    raise NetworkError(self._url, "is silent")
                if piece is None:
                    return
                self.done += len(piece)
            yield piece

    def _take(self) -> Iterator[bytes] | None:
        """Go on with the connection that has taken over."""
        with self._changed:
            self._waiting = None
            if self._next is None or self._closed:
                return None
            stack, stream, pieces = self._next
            self._next = None
        self._adopt(stack, stream)
        return pieces

    def _again(self) -> Iterator[bytes] | None:
        """The rest by a new connection, now that one broke."""
        with self._changed:
            if self._closed or not self.done or self._tries >= MAX_TRIES:
                return None
            self._tries += 1
        try:
            stack, stream, pieces = self._rest(self.done)
        except NetworkError:
            return None
        self._adopt(stack, stream)
        return pieces

    def _adopt(self, stack: contextlib.ExitStack, stream: Stream) -> None:
        """Read from another connection from now on."""
        with self._changed:
            self._current, self._beside = stream, None
            self._open.push(stack)
            closed = self._closed
        if closed:
            stream.abort()

    def _watch(self) -> None:
        """Try further connections as long as there is silence."""
        silence = self._silence
        while True:
            with self._changed:
                while not self._closed and (left := self._left(silence)) > 0:
                    self._changed.wait(left)
                if self._closed or self._tries >= MAX_TRIES:
                    return
                self._tries += 1
                start = self.done
            with contextlib.suppress(NetworkError):
                self._overtake(start)
            silence *= 2

    def _left(self, silence: float) -> float:
        """Seconds until the silence is long enough; the lock is held."""
        if self._waiting is None or self._next is not None:
            return silence
        return self._waiting + silence - time.monotonic()

    def _overtake(self, start: int) -> None:
        """Take over from a silent connection, if that is silent still when there is a byte.

        Raises:
            NetworkError: there is none.
        """
        stack, stream, pieces = self._rest(start)
        with stack:
            first = next(pieces, b"")
            with self._changed:
                self._beside = None
                if self._closed or self._waiting is None or self.done != start:
                    return
                self._next = stack.pop_all(), stream, _chain(first, pieces)
                silent = self._current
            silent.abort()

    def _rest(self, start: int) -> tuple[contextlib.ExitStack, Stream, Iterator[bytes]]:
        """The file from a byte on.

        Raises:
            NetworkError: the server doesn't send that, or has another file by now.
        """
        headers = {"Range": f"bytes={start}-"}
        tag = self._headers.get("etag", "")
        condition = tag if tag.startswith('"') else self._headers.get("last-modified", "")
        if condition:
            headers["If-Range"] = condition
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(self._client.stream(self._url, headers=headers))
            with self._changed:
                self._beside = stream
                closed = self._closed
            if closed:
                stream.abort()
            if stream.status == 206:
                found = _RANGE.fullmatch(stream.headers.get("content-range", ""))
                same = (
                    found is not None and int(found[1]) == start and int(found[2]) == self._length
                )
                begin = start
            else:
                said = (stream.length or -1, stream.status)
                same = said == (self._length, 200) and tag == stream.headers.get("etag", "")
                begin = 0
            if not same:
                raise NetworkError(self._url, f"the server answered {stream.status}")
            pieces = iter(stream)
            rest = _after(pieces, start - begin)
            return stack.pop_all(), stream, _chain(rest, pieces)
        raise AssertionError  # the stack swallows nothing


def _after(pieces: Iterator[bytes], passed: int) -> bytes:
    """Pass over some bytes; what has come after them with the last of them."""
    for piece in pieces if passed else ():
        if len(piece) > passed:
            return piece[passed:]
        passed -= len(piece)
        if not passed:
            break
    return b""


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest
