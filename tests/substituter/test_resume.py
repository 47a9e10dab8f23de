# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.resume, with a server that stops when a test wants it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from narswarm.errors import NetworkError
from narswarm.httpclient import HttpClient
from substituter.resume import MAX_TRIES, WATCHED, Resuming
from tests.substituter.conftest import Site

PATIENCE = 120.0
BODY = bytes(range(256)) * 8192
STOP = 300_000
SILENCE = 0.5


class Server:
    """Gives the beginning of a file to the first who asks, and what a test wants to the others.

    Args:
        site: the server.
        ends: whether it breaks the first connection instead of falling silent.
        ranges: whether it knows ranges.
    """

    def __init__(self, site: Site, *, ends: bool = False, ranges: bool = True) -> None:
        self.url = f"{site.url}/file"
        self.wanted: list[str | None] = []
        self.conditions: list[str | None] = []
        self.more = threading.Event()
        self.tag = '"one"'
        self.body = BODY
        self.total: int | None = None
        self._ends, self._ranges = ends, ranges
        self._lock = threading.Lock()
        site.bodies["/file"] = self._answer

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.wanted.append(handler.headers["Range"])
            self.conditions.append(handler.headers["If-Range"])
            first = len(self.wanted) == 1
        if first:
            self._begin(handler, 200, len(BODY), '"one"')
            handler.wfile.write(BODY[:STOP])
            handler.wfile.flush()
            if not self._ends:
                self.more.wait(PATIENCE)
                handler.wfile.write(BODY[STOP:])
            handler.close_connection = True
            return
        start = 0
        if self._ranges and (asked := handler.headers["Range"]):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        rest = self.body[start:]
        total = len(self.body) if self.total is None else self.total
        extra = {"Content-Range": f"bytes {start}-{len(self.body) - 1}/{total}"} if start else {}
        self._begin(handler, 206 if start else 200, len(rest), self.tag, extra)
        handler.wfile.write(rest)

    def _begin(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        length: int,
        tag: str,
        extra: dict[str, str] | None = None,
    ) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(length), "ETag": tag, **(extra or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()


@pytest.fixture
def client() -> Iterator[HttpClient]:
    """The connections."""
    with HttpClient(PATIENCE) as made:
        yield made


@pytest.fixture
def start(site: Site) -> Iterator[Callable[..., Server]]:
    """Makes the server; what hangs ends with the test."""
    made: list[Server] = []

    def make(**how: bool) -> Server:
        made.append(Server(site, **how))
        return made[-1]

    yield make
    for server in made:
        server.more.set()


def fetch(client: HttpClient, url: str, silence: float = SILENCE) -> bytes:
    """The file."""
    with client.stream(url) as stream:
        body = Resuming(client, url, stream, silence)
        data = b"".join(body)
        assert body.done == len(data)
        return data


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("ranges", [False, True])
def test_the_rest_comes_by_another_connection(
    start: Callable[..., Server], client: HttpClient, *, ends: bool, ranges: bool
) -> None:
    """Whether the first fell silent or broke, and whether the server knows ranges or not."""
    server = start(ends=ends, ranges=ranges)
    assert fetch(client, server.url, PATIENCE if ends else SILENCE) == BODY
    first, *others = server.wanted
    assert first is None
    # On a busy machine there may be silence before it stops, too.
    assert others == [f"bytes={STOP}-"] if ends else others
    assert set(server.conditions[1:]) == {'"one"'}


def test_who_is_only_slow_goes_on(start: Callable[..., Server], client: HttpClient) -> None:
    """Nobody else is asked before there was silence for the time that was said."""
    server = start()
    with client.stream(server.url) as stream:
        pieces = iter(Resuming(client, server.url, stream, PATIENCE))
        data = next(pieces)
        server.more.set()
        assert data + b"".join(pieces) == BODY
    assert server.wanted == [None]


@pytest.mark.parametrize("what", ["tag", "length", "total", "status"])
def test_another_file_is_no_rest(
    start: Callable[..., Server], client: HttpClient, site: Site, what: str
) -> None:
    """One that changed meanwhile isn't put behind the beginning of the other."""
    server = start(ends=True, ranges=what == "total")
    if what == "tag":
        server.tag = '"two"'
    elif what == "length":
        server.body = BODY + b"x"
    elif what == "total":
        server.total = len(BODY) + 1
    else:
        answer = site.bodies["/file"]
        assert callable(answer)

        def once(handler: BaseHTTPRequestHandler) -> None:
            del site.bodies["/file"]
            answer(handler)

        site.bodies["/file"] = once
    with pytest.raises(NetworkError) as caught:
        fetch(client, server.url, PATIENCE)
    assert str(caught.value) == f"{server.url}: ended after {STOP} of {len(BODY)} bytes"


def test_a_server_that_always_breaks_off_is_given_up(site: Site, client: HttpClient) -> None:
    """A few further connections are enough to see that it makes no sense."""
    asked: list[int] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        begin = int((handler.headers["Range"] or "bytes=0-")[6:-1])
        asked.append(begin)
        handler.send_response(206 if begin else 200)
        handler.send_header("Content-Length", str(len(BODY) - begin))
        handler.send_header("Content-Range", f"bytes {begin}-{len(BODY) - 1}/{len(BODY)}")
        handler.end_headers()
        handler.wfile.write(BODY[begin : begin + 1000])
        handler.close_connection = True

    site.bodies["/file"] = answer
    with pytest.raises(NetworkError, match=f": ended after 1000 of {len(BODY) - 3000} bytes$"):
        fetch(client, f"{site.url}/file")
    assert asked == [1000 * number for number in range(MAX_TRIES + 1)]


def test_who_is_not_wanted_any_more_ends(start: Callable[..., Server], client: HttpClient) -> None:
    """Whoever reads sees an end at once, and no further connection is made."""
    server = start()
    with client.stream(server.url) as stream:
        body = Resuming(client, server.url, stream, PATIENCE)
        pieces = iter(body)
        got = len(next(pieces))
        while got < STOP:
            got += len(next(pieces))
        body.abort()
        with pytest.raises(NetworkError):
            next(pieces)
    assert server.wanted == [None]


@pytest.mark.parametrize("length", [WATCHED - 1, WATCHED])
def test_short_files_are_not_watched(
    site: Site, client: HttpClient, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """They come too quickly for a thread of their own."""
    watched = threading.Event()
    monkeypatch.setattr(Resuming, "_watch", lambda _: watched.set())
    site.bodies["/file"] = BODY[:length]
    assert fetch(client, f"{site.url}/file") == BODY[:length]
    assert watched.wait(PATIENCE if length == WATCHED else 0) is (length == WATCHED)
