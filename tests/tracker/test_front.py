# SPDX-License-Identifier: GPL-3.0-or-later
"""What gunicorn sees of the front, and what it gives back."""

from __future__ import annotations

import io
import os
import socket
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.workers.gthread import ThreadWorker

from tracker.front import Front, FrontWorker, PassedOn
from tracker.policy import parse_networks


class Native:
    """The front in C, as far as Python has to do with it."""

    def __init__(self, swarms: object, listeners: list[tuple[int, int]], **limits: int) -> None:
        self.swarms, self.listeners, self.limits = swarms, listeners, limits
        self.proxies: list[tuple[bytes, int]] = []
        self.back: list[tuple[int, int]] = []
        self.takes = True
        self.stopped = False

    def run(self) -> None:
        """End at once."""

    def stop(self) -> None:
        """Be told to end."""
        self.stopped = True

    def give_back(self, descriptor: int, listener: int, /) -> bool:
        """Take over a connection, if that is wanted."""
        self.back.append((descriptor, listener))
        return self.takes

    def set_proxies(self, networks: list[tuple[bytes, int]], /) -> None:
        """Note them."""
        self.proxies = networks

    def numbers(self) -> dict[str, int]:
        """Nothing was done."""
        return {"waiting": 0}


@pytest.fixture(name="listeners")
def listeners_fixture() -> Iterator[list[socket.socket]]:
    """Two listening sockets."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        yield [one, two]


@pytest.fixture(name="passed_on")
def passed_on_fixture(listeners: list[socket.socket]) -> Iterator[PassedOn]:
    """What takes the place of the first of them."""
    passed_on = PassedOn(listeners[0])
    yield passed_on
    passed_on.discard()


@pytest.fixture(name="made")
def made_fixture(listeners: list[socket.socket]) -> Iterator[tuple[Front, Native]]:
    """A front of both."""
    made: list[Native] = []

    def make(swarms: object, listeners: list[tuple[int, int]], **limits: int) -> Native:
        made.append(Native(swarms, listeners, **limits))
        return made[0]

    front = Front(make, "swarms", listeners, parse_networks(["10.0.0.0/8", "::1"]))
    yield front, made[0]
    for each in front.listeners:
        each.discard()


def _pass_on(passed_on: PassedOn, sock: socket.socket) -> None:
    os.write(passed_on.pipe, sock.detach().to_bytes(4, sys.byteorder))


def test_listener(passed_on: PassedOn, listeners: list[socket.socket]) -> None:
    """Gunicorn accepts from it what was passed on, as if from the listener itself."""
    name = listeners[0].getsockname()
    assert passed_on.getsockname() == name
    passed_on.setblocking(False)
    with pytest.raises(BlockingIOError):
        passed_on.accept()
    with socket.create_connection(name) as client:
        accepted, address = listeners[0].accept()
        accepted.setblocking(False)
        _pass_on(passed_on, accepted)
        sock, found = passed_on.accept()
        with sock:
            assert (found, sock.gettimeout()) == (address, None)
            sock.sendall(b"answer")
            assert client.recv(6) == b"answer"


def test_client_that_left(passed_on: PassedOn) -> None:
    """A connection that is gone is one that gunicorn knows how to pass over."""
    _pass_on(passed_on, socket.socket())
    with pytest.raises(ConnectionAbortedError, match=r"the client left"):
        passed_on.accept()


def test_discard(listeners: list[socket.socket]) -> None:
    """What nobody took is closed."""
    passed_on = PassedOn(listeners[0])
    ours, theirs = socket.socketpair()
    with theirs:
        _pass_on(passed_on, ours)
        passed_on.close()
        passed_on.discard()
        assert theirs.recv(1) == b""


def test_front(made: tuple[Front, Native], listeners: list[socket.socket]) -> None:
    """It is made of swarms, sockets that don't block, and trusted proxies, which may change."""
    front, native = made
    assert native.swarms == "swarms"
    assert native.listeners == [
        (sock.fileno(), each.pipe) for sock, each in zip(listeners, front.listeners, strict=True)
    ]
    assert not any(sock.getblocking() for sock in listeners)
    assert native.proxies == [(b"\x0a\0\0\0", 8), (bytes(15) + b"\1", 128)]
    front.reconfigure([])
    assert native.proxies == []
    assert front.numbers() == {"waiting": 0}


def _conn(sock: socket.socket, server: Any, *, buffered: bytes = b"", body: bytes = b"") -> Any:
    """A connection of gunicorn's that has served a request."""
    message = SimpleNamespace(body=io.BytesIO(body))
    unreader = SimpleNamespace(buf=io.BytesIO(buffered))
    return SimpleNamespace(
        sock=sock, server=server, parser=SimpleNamespace(mesg=message, unreader=unreader)
    )


def test_take_back(made: tuple[Front, Native], listeners: list[socket.socket]) -> None:
    """A connection goes back to the place of its listener, and gunicorn has nothing to close."""
    front, native = made
    ours, theirs = socket.socketpair()
    with theirs:
        conn = _conn(ours, listeners[1].getsockname())
        front.take_back(conn)
        ((descriptor, place),) = native.back
        assert place == 1
        conn.sock.close()
        with socket.socket(fileno=descriptor) as sock:
            assert not os.get_blocking(descriptor)
            sock.send(b"x")
            assert theirs.recv(1) == b"x"
        native.takes = False
        ours, more = socket.socketpair()
        with more:
            conn = _conn(ours, "unknown")
            front.take_back(conn)
            assert native.back[1][1] == 0
            assert more.recv(1) == b""
            conn.sock.close()


@pytest.mark.parametrize("rest", [{"buffered": b"G"}, {"body": b"x"}])
def test_rests_stay(made: tuple[Front, Native], rest: dict[str, bytes]) -> None:
    """With bytes read ahead, or unread of a body, a connection isn't fit for another request."""
    front, native = made
    ours, theirs = socket.socketpair()
    with ours, theirs:
        conn = _conn(ours, None, **rest)
        front.take_back(conn)
        assert native.back == []
        assert conn.sock is ours


@pytest.mark.parametrize(
    ("result", "fronted", "expected", "back"),
    [
        (True, True, False, 1),
        (False, True, False, 0),
        (None, True, None, 0),
        (True, False, True, 0),
        ((True, "conn"), True, (False, "conn"), 1),
        ((False, "conn"), True, (False, "conn"), 0),
        ((True, "conn"), False, (True, "conn"), 0),
    ],
)
def test_worker(
    made: tuple[Front, Native],
    monkeypatch: pytest.MonkeyPatch,
    result: Any,
    fronted: bool,
    expected: Any,
    back: int,
) -> None:
    """What gunicorn, of any version, would keep goes back, if there is a front."""
    front, native = made
    worker = FrontWorker.__new__(FrontWorker)
    monkeypatch.setattr(worker, "_front", front if fronted else None, raising=False)
    ours, theirs = socket.socketpair()
    with theirs:
        conn = _conn(ours, None)
        filled = (result[0], conn) if isinstance(result, tuple) else result
        monkeypatch.setattr(ThreadWorker, "handle", lambda *_: filled)
        found = worker.handle(conn)
        assert found == ((expected[0], conn) if isinstance(expected, tuple) else expected)
        assert len(native.back) == back
        for descriptor, _ in native.back:
            os.close(descriptor)
        conn.sock.close()


def test_socket_that_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the application took a connection, gunicorn gets a socket that it can close."""
    worker = FrontWorker.__new__(FrontWorker)
    monkeypatch.setattr(ThreadWorker, "handle", lambda *_: False)
    ours, theirs = socket.socketpair()
    with theirs, socket.socket(fileno=ours.detach()):
        conn = _conn(ours, None)
        assert worker.handle(conn) is False
        conn.sock.setblocking(True)
        conn.sock.close()
