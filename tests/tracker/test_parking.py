# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that wait for their answer."""

from __future__ import annotations

import logging
import resource
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tracker import parking as parking_module
from tracker.parking import (
    ENVIRON,
    Answered,
    Parking,
    ParkingMiddleware,
    Poll,
    Reply,
    room_for_descriptors,
)

WAIT = 120.0
"""Longer than any test takes."""


class Lot:
    """A parking whose answers are what the test sets, and connections to park."""

    def __init__(self) -> None:
        self.answers: dict[bytes, bytes] = {}
        self.asked = threading.Semaphore(0)
        self.parking = Parking(self.answer, 3)
        self.clients: list[socket.socket] = []

    def answer(self, poll: Poll, final: bool) -> Answered:
        """What was set for a key."""
        self.asked.release()
        body = self.answers.get(poll.key, b"none" if final else None)
        return None if body is None else Reply(body)

    def park(
        self, key: bytes, wait: float = WAIT, own: Callable[[bool], Answered] | None = None
    ) -> socket.socket:
        """Park a connection, and wait until it is looked at."""
        client, server = socket.socketpair()
        client.settimeout(WAIT)
        self.clients.append(client)
        self.parking.park(Poll(key, 0, wait, own), server)
        assert self.asked.acquire(timeout=WAIT)
        return client

    def until(self, number: int) -> None:
        """Wait until so many are parked, while the thread has its turns."""
        while len(self.parking) != number:
            self.parking.wake([b"nobody"])


@pytest.fixture(name="lot")
def lot_fixture() -> Iterator[Lot]:
    """A parking."""
    lot = Lot()
    yield lot
    lot.parking.close()
    for client in lot.clients:
        client.close()


def _read(client: socket.socket) -> bytes:
    """All that comes until the end."""
    received = b""
    while piece := client.recv(1 << 16):
        received += piece
    return received


def _body(client: socket.socket) -> bytes:
    head, _, body = _read(client).partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    assert status == "HTTP/1.1 200 OK"
    found = dict(field.split(": ", 1) for field in fields)
    assert found.pop("Date").endswith(" GMT")
    assert found == {
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
    }
    return body


def test_woken(lot: Lot) -> None:
    """Who is woken gets its answer when there is one; the others wait on."""
    one, two = lot.park(b"1"), lot.park(b"2")
    lot.until(2)
    lot.parking.wake([b"1"])
    assert lot.asked.acquire(timeout=WAIT)
    lot.until(2)
    lot.answers = {b"1": b"{1}", b"2": b"{2}"}
    lot.parking.wake([b"1", b"absent"])
    assert _body(one) == b"{1}"
    lot.until(1)
    lot.parking.wake([b"2"])
    assert _body(two) == b"{2}"


def test_what_came_meanwhile(lot: Lot) -> None:
    """What came before a connection is here is looked for when it is."""
    lot.answers = {b"1": b"{1}"}
    assert _body(lot.park(b"1")) == b"{1}"


def test_the_wait_ends(lot: Lot) -> None:
    """After its time a connection is answered, in whatever order they came."""
    other = lot.park(b"2")
    assert _body(lot.park(b"1", wait=0.01)) == b"none"
    lot.until(1)
    lot.answers = {b"2": b"{2}"}
    lot.parking.wake([b"2"])
    assert _body(other) == b"{2}"


def test_a_newer_one(lot: Lot) -> None:
    """A second connection of a key ends the first."""
    first, second = lot.park(b"1"), lot.park(b"1")
    assert _body(first) == b"none"
    lot.answers = {b"1": b"{1}"}
    lot.parking.wake([b"1"])
    assert _body(second) == b"{1}"
    lot.until(0)


def test_clients_that_leave(lot: Lot) -> None:
    """A connection that the client closed, or floods, is forgotten at once."""
    lot.park(b"1").close()
    lot.until(0)
    client = lot.park(b"2")
    client.send(b"x")
    lot.until(1)
    client.sendall(b"x" * 8192)
    lot.until(0)


def test_long_answers(lot: Lot) -> None:
    """An answer that the kernel doesn't take at once is sent as it is received."""
    body = bytes(4 << 20)
    lot.answers = {b"1": body}
    client = lot.park(b"1")
    assert _body(client) == body


def test_clients_that_do_not_receive(lot: Lot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who doesn't take its answer in time loses the connection."""
    monkeypatch.setattr(parking_module, "SEND_SECONDS", 0.05)
    lot.answers = {b"1": bytes(4 << 20)}
    client = lot.park(b"1")
    lot.until(0)
    other = lot.park(b"2", wait=0.2)
    assert _body(other) == b"none"
    assert len(_read(client)) < 4 << 20


def test_answers_that_break(lot: Lot, caplog: pytest.LogCaptureFixture) -> None:
    """A fault in making one answer doesn't keep the others from theirs."""
    answer: Callable[[Poll, bool], Answered] = lot.answer

    def broken(poll: Poll, final: bool) -> Answered:
        if poll.key == b"1":
            raise RuntimeError("broken")
        return answer(poll, final)

    lot.parking._answer = broken
    client, server = socket.socketpair()
    client.settimeout(WAIT)
    lot.clients.append(client)
    with caplog.at_level(logging.ERROR):
        lot.parking.park(Poll(b"1", 0, WAIT), server)
        assert _body(client) == b"{}"
    assert caplog.messages == ["a poll could not be answered"]
    lot.answers = {b"2": b"{2}"}
    assert _body(lot.park(b"2")) == b"{2}"


def test_the_end(lot: Lot) -> None:
    """Who waits when it ends is answered; who comes later finds the connection closed."""
    clients = [lot.park(b"1"), lot.park(b"2")]
    lot.answers = {b"2": bytes(1 << 10)}
    lot.parking.close()
    assert [_body(client) for client in clients] == [b"none", bytes(1 << 10)]
    assert not lot.parking.has_room()
    late, server = socket.socketpair()
    with late:
        lot.parking.park(Poll(b"3", 0, WAIT), server)
        assert late.recv(1) == b""
    lot.parking.wake([b"1"])
    lot.parking.close()


def test_room(lot: Lot) -> None:
    """No more wait than may."""
    for key in (b"1", b"2"):
        lot.park(key)
    assert lot.parking.has_room()
    lot.park(b"3")
    assert not lot.parking.has_room()


def test_an_answer_of_their_own(lot: Lot) -> None:
    """Any number may wait for the same thing, and each is answered as its request was."""
    ready = threading.Event()

    def own(number: int) -> Callable[[bool], Answered]:
        def answer(_final: bool) -> Answered:
            lot.asked.release()
            return (
                Reply(b"%d" % number, "text/plain", "202 ACCEPTED", 2) if ready.is_set() else None
            )

        return answer

    lot.parking = Parking(lot.answer, 10)
    clients = [lot.park(b"1", own=own(number)) for number in (1, 2)]
    other = lot.park(b"1")
    lot.until(3)
    ready.set()
    lot.answers = {b"1": b"{}"}
    lot.parking.wake([b"1"])
    for number, client in enumerate(clients, 1):
        head, _, body = _read(client).partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[0] == "HTTP/1.1 202 ACCEPTED"
        assert {"Content-Type: text/plain", "Retry-After: 2"} < set(lines)
        assert body == b"%d" % number
    assert _body(other) == b"{}"
    lot.until(0)


def test_looking_again(lot: Lot) -> None:
    """An answer that may come without anybody ringing is looked for until it is there."""
    looks: list[bool] = []

    def own(final: bool) -> Answered:
        lot.asked.release()
        looks.append(final)
        return Reply(b"{1}") if len(looks) == 3 else 0.01

    assert _body(lot.park(b"1", own=own)) == b"{1}"
    assert looks == [False] * 3


def test_room_for_an_answer_of_their_own(lot: Lot) -> None:
    """They take no more than half of the room, so that others always find some."""
    assert lot.parking.has_room(own=True)
    client = lot.park(b"1", own=lambda final: lot.answer(Poll(b"1", 0, 0), final))
    lot.until(1)
    assert not lot.parking.has_room(own=True)
    assert lot.parking.has_room()
    client.close()
    lot.until(0)
    assert lot.parking.has_room(own=True)


def test_descriptors() -> None:
    """Half of the descriptors that the process may have are for those who wait."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        room = room_for_descriptors()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert hard == before[1]
        assert (room, room <= 32768) == (soft // 2, True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class _Body(list[bytes]):
    """A body that has to be closed."""

    closed = False

    def close(self) -> None:
        """Note it."""
        self.closed = True


def _app(poll: Poll | None, body: Iterable[bytes]) -> Any:
    def app(environ: dict[str, Any], _start: object) -> Iterable[bytes]:
        if poll is not None:
            environ[ENVIRON] = poll
        return body

    return app


def test_middleware(lot: Lot) -> None:
    """A connection is taken out of the server's hands, which see one that is closed already."""
    client, server = socket.socketpair()
    client.settimeout(WAIT)
    lot.clients.append(client)
    body = _Body([b"now"])
    app = ParkingMiddleware(_app(Poll(b"1", 0, 0.01), body), lot.parking)
    with pytest.raises(BrokenPipeError):
        app({"gunicorn.socket": server}, None)  # type: ignore[arg-type]
    assert server.fileno() == -1
    assert body.closed
    assert _body(client) == b"none"


@pytest.mark.parametrize("waits", [True, False])
def test_middleware_leaves_the_rest(lot: Lot, waits: bool) -> None:
    """Other requests, and other servers, are answered at once."""
    poll = Poll(b"1", 0, WAIT) if waits else None
    app = ParkingMiddleware(_app(poll, [b"now"]), lot.parking)
    environ: dict[str, Any] = {} if waits else {"gunicorn.socket": None}
    assert list(app(environ, None)) == [b"now"]  # type: ignore[arg-type]
    assert len(lot.parking) == 0
