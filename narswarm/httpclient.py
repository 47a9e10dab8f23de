# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP towards substitute servers and trackers, with everything bounded.

The other side may be slow, broken or hostile, and guix-daemon waits for the caller. So besides the
wait for each byte a whole exchange has its deadline, headers and bodies have their limits, and a
body that ends early is an error.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self

from narswarm.errors import NetworkError
from narswarm.httpconnections import Connections
from narswarm.httpmessage import Answer
from narswarm.httpwire import BLOCK, Connection, Deadline, Target, reasons, split

VERSION: Final = "0.1.0"
USER_AGENT: Final = f"narswarm/{VERSION}"

MAX_REDIRECTS: Final = 5
MIN_RATE: Final = 4096
"""Bytes per second which a stream without a deadline has to bring on average."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})


@dataclass(frozen=True, slots=True)
class Response:
    """An answer with its whole body."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name; of a repeated field the first."""
    body: bytes
    url: str
    """Where it came from in the end, after redirects."""


class Stream:
    """An answer whose body arrives in pieces; iterate over it once."""

    def __init__(
        self, url: str, response: Answer, deadline: Deadline, connection: Connection
    ) -> None:
        self.url = url
        self.status: int = response.status
        self.headers: dict[str, str] = {}
        for name, value in response.fields:
            self.headers.setdefault(name, value)
        self.length: int | None = response.length
        """Bytes of the body, None where the server doesn't say."""
        self.complete = response.length == 0
        """Whether the body has arrived to its end."""
        self._response = response
        self._deadline = deadline
        self._connection = connection

    def abort(self) -> None:
        """Have the reader, in another thread maybe, fail at once."""
        self._connection.abort()

    def __iter__(self) -> Iterator[bytes]:
        """Give the body in pieces as they arrive.

        Raises:
            NetworkError: it stops, takes too long, or ends before its announced length.
        """
        received = 0
        while not self.complete:
            with reasons(self.url):
                piece = self._response.read1(BLOCK)
            if not piece and self.length is not None:
                raise NetworkError(self.url, f"ended after {received} of {self.length} bytes")
            received += len(piece)
            self._deadline.received(len(piece))
            self.complete = received == self.length or not piece
            if piece:
                yield piece


class HttpClient:
    """Makes requests; one instance serves any number of threads.

    Args:
        timeout: seconds that connecting, or the wait for the next bytes, may take.
        total: seconds that a request takes at most, unless it says otherwise.
        max_idle: see `Connections`.
        environ: the same.
        clock: seconds from any start, never going back.
    """

    def __init__(
        self,
        timeout: float = 10.0,
        total: float = 60.0,
        max_idle: int = 32,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout = timeout
        self._total = total
        self._clock = clock
        self._connections = Connections(max_idle, environ, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that wait for further requests, and keep none from now on."""
        self._connections.close()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int = 1 << 20,
        timeout: float | None = None,
    ) -> Response:
        """Make a request and read the whole answer, whatever its status.

        Args:
            method: GET, PUT and so on. Redirects of GET are followed.
            url: `http` or `https`.
            headers: further header fields.
            body: what to send.
            max_bytes: longest answer that is taken.
            timeout: seconds for everything together.

        Raises:
            UnreachableError: the server can't be connected to.
            NetworkError: there is no complete answer in that time and size.
        """
        deadline = self._deadline(timeout)
        with self._respond(method, url, headers, body, deadline, keep=True) as stream:
            return _whole(stream, max_bytes)

    def pipeline(
        self,
        urls: Sequence[str],
        *,
        headers: Sequence[Mapping[str, str]] | None = None,
        max_bytes: int = 1 << 20,
        timeout: float | None = None,
    ) -> Iterator[Response]:
        """GET several small things from one server by one connection, without waiting in between.

        Where the server doesn't go on after some answers, the rest is asked for one by one.

        Args:
            urls: of one server; redirects are followed.
            headers: further header fields for each URL.
            max_bytes: longest answer that is taken.
            timeout: seconds for everything together.

        Yields:
            The answers in the order of the URLs.

        Raises:
            UnreachableError: the server can't be connected to.
            NetworkError: there is no complete answer in that time and size.
        """
        deadline = self._deadline(timeout)
        targets = [split(url) for url in urls]
        more = [{}] * len(urls) if headers is None else headers
        done = 0
        if len(targets) > 1:
            for response in self._pipelined(targets, more, deadline, max_bytes):
                if response.status in _REDIRECTS:
                    break
                done += 1
                yield response
        for url, fields in zip(urls[done:], more[done:], strict=True):
            with self._respond("GET", url, fields, None, deadline, keep=True) as stream:
                yield _whole(stream, max_bytes)

    def _pipelined(
        self,
        targets: Sequence[Target],
        more: Sequence[Mapping[str, str]],
        deadline: Deadline,
        max_bytes: int,
    ) -> Iterator[Response]:
        """The answers that come on one connection, maybe none."""
        target = targets[0]
        common = {"User-Agent": USER_AGENT, "Connection": "keep-alive", "Host": target.authority}
        connection = self._connections.take(target)
        if connection is None:
            connection = self._connections.open(target, deadline)
        complete = False
        try:
            requests = [
                (each, {**fields, **common}) for each, fields in zip(targets, more, strict=True)
            ]
            answers = connection.pipeline("GET", requests, None, deadline)
            for number, each in enumerate(targets):
                with reasons(each.name):
                    try:
                        answer = next(answers, None)
                    except (EOFError, ConnectionError):
                        return  # those that are left are asked for one by one
                if answer is None:
                    return
                response = _whole(Stream(each.name, answer, deadline, connection), max_bytes)
                complete = number + 1 == len(targets)
                yield response
        finally:
            if connection.response is not None:
                connection.response.close()
                connection.response = None
            if complete and connection.is_open():
                self._connections.put(connection)
            else:
                connection.close()

    @contextmanager
    def stream(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        keep: bool = False,
    ) -> Iterator[Stream]:
        """GET something large. Use it as `with client.stream(url) as stream`.

        Args:
            url: `http` or `https`.
            headers: further header fields.
            timeout: seconds for everything together; without it, as long as bytes arrive at
                `MIN_RATE`.
            keep: whether to keep the connection. `guix publish` sends uncompressed NARs without a
                length and then leaves a connection open which was to be kept, so that their end
                can't be seen.

        Raises:
            NetworkError: there is no answer, also while iterating.
        """
        deadline = self._deadline(timeout)
        if timeout is None:
            deadline.min_rate = MIN_RATE
        with self._respond("GET", url, headers, None, deadline, keep=keep) as stream:
            yield stream

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._clock, self._timeout, self._total if timeout is None else timeout)

    @contextmanager
    def _respond(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        body: bytes | None,
        deadline: Deadline,
        *,
        keep: bool,
    ) -> Iterator[Stream]:
        """Give the answer at the end of redirects and put the connection back if it is clean."""
        target = split(url)
        for _ in range(MAX_REDIRECTS + 1):
            sent = {"User-Agent": USER_AGENT, "Connection": "keep-alive" if keep else "close"}
            sent |= dict(headers or {}) | {"Host": target.authority}
            with reasons(target.name):
                connection, response = self._exchange(method, target, sent, body, deadline, keep)
            stream = Stream(target.name, response, deadline, connection)
            try:
                location = stream.headers.get("location")
                redirected = method == "GET" and stream.status in _REDIRECTS and location
                if not redirected:
                    yield stream
                    return
            finally:
                response.close()
                connection.response = None
                if stream.complete and keep and connection.is_open():
                    self._connections.put(connection)
                else:
                    connection.close()
            from urllib.parse import urljoin  # noqa: PLC0415 -- few servers redirect

            following = split(urljoin(target.url, redirected))
            if target.scheme == "https" and following.scheme == "http":
                raise NetworkError(target.name, "redirects from https to http")
            target = following
        raise NetworkError(split(url).name, f"redirects more than {MAX_REDIRECTS} times")

    def _exchange(
        self,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: Deadline,
        keep: bool,
    ) -> tuple[Connection, Answer]:
        """Send a request on a kept or a new connection and read the header of the answer."""
        kept = self._connections.take(target) if keep else None
        if kept is not None:
            try:
                return kept, kept.send(method, target, headers, body, deadline)
            except TimeoutError:
                kept.close()
                raise
            except (OSError, EOFError):
                # The server may close it at any time. That says nothing about a new one.
                kept.close()
                if method not in _IDEMPOTENT:
                    raise
            except BaseException:
                kept.close()
                raise
        connection = self._connections.open(target, deadline)
        try:
            return connection, connection.send(method, target, headers, body, deadline)
        except BaseException:
            connection.close()
            raise


def _whole(stream: Stream, max_bytes: int) -> Response:
    """The answer with its whole body, if that isn't too long."""
    if stream.length is not None and stream.length > max_bytes:
        raise NetworkError(stream.url, f"is longer than {max_bytes} bytes")
    pieces, size = [], 0
    for piece in stream:
        size += len(piece)
        if size > max_bytes:
            raise NetworkError(stream.url, f"is longer than {max_bytes} bytes")
        pieces.append(piece)
    return Response(stream.status, stream.headers, b"".join(pieces), stream.url)
