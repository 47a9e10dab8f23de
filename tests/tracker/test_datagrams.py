# SPDX-License-Identifier: GPL-3.0-or-later
"""Batches of datagrams over real sockets of loopback."""

from __future__ import annotations

import errno
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tracker import datagrams as datagrams_module
from tracker.datagrams import BATCH, MAX_REPLY, MAX_REQUEST, Datagrams

LOOPBACK = b"\x7f\0\0\1"
LOOPBACK6 = bytes(15) + b"\1"
_SO_MEMINFO = 55


class Sockets:
    """Makes sockets that are closed with the test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def bound(self, host: str, *, dual: bool = False) -> socket.socket:
        """A UDP socket at a free port."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self._stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        sock.bind((host, 0))
        sock.settimeout(120)
        return sock

    def send(self, server: socket.socket, *sent: tuple[socket.socket, bytes]) -> None:
        """Send datagrams of about a size, and wait until the server has them all."""
        each = 0
        for number, (client, data) in enumerate(sent, 1):
            client.send(data)
            while not (queued := _queued(server)) or queued < each * number:
                select.select([server], [], [], 0.01)
            each = each or queued

    def client(self, server: socket.socket, host: str) -> socket.socket:
        """A socket that hears nobody but the server at one of its addresses."""
        client = self.bound("::1" if ":" in host else "127.0.0.1")
        client.connect((host, server.getsockname()[1]))
        return client


def _queued(sock: socket.socket) -> int:
    """Memory of what waits to be received; see `SO_MEMINFO` of Linux."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36)[:4], sys.byteorder)


@pytest.fixture(name="sockets")
def sockets_fixture() -> Iterator[Sockets]:
    """A maker of sockets."""
    with ExitStack() as stack:
        yield Sockets(stack)


@pytest.mark.parametrize(
    ("host", "dual", "asked", "address"),
    [
        ("127.0.0.1", False, "127.0.0.1", LOOPBACK),
        ("0.0.0.0", False, "127.0.0.1", LOOPBACK),  # noqa: S104
        ("0.0.0.0", False, "127.0.0.77", LOOPBACK),  # noqa: S104
        ("::1", False, "::1", LOOPBACK6),
        ("::", False, "::1", LOOPBACK6),
        ("::", True, "::1", LOOPBACK6),
        ("::", True, "127.0.0.77", LOOPBACK),
    ],
)
def test_answers_leave_from_the_address_that_was_asked(
    sockets: Sockets, host: str, *, dual: bool, asked: str, address: bytes
) -> None:
    """Also from a socket for any address; and IPv4 is IPv4 whatever the socket is."""
    server = sockets.bound(host, dual=dual)
    client = sockets.client(server, asked)
    datagrams = Datagrams(server)
    for text in (b"one", b"two"):  # buffers serve again
        sockets.send(server, (client, text))
        (received,) = datagrams.receive()
        assert (received.address, received.data) == (address, text)
        assert datagrams.send([(received.slot, text * 2)]) == 1
        assert client.recv(100) == text * 2


def test_nothing_there(sockets: Sockets) -> None:
    """An empty queue is no error, and nothing to answer isn't either."""
    datagrams = Datagrams(sockets.bound("127.0.0.1"))
    assert datagrams.receive() == []
    assert datagrams.send([]) == 0


def test_more_than_a_batch(sockets: Sockets) -> None:
    """A batch is what fits, in order; the rest waits. Some of it may stay without an answer."""
    server = sockets.bound("127.0.0.1")
    clients = [sockets.client(server, "127.0.0.1") for _ in range(3)]
    sockets.send(server, *((clients[n % 3], b"%d" % n) for n in range(BATCH + 1)))
    datagrams = Datagrams(server)
    batch = datagrams.receive()
    assert [received.data for received in batch] == [b"%d" % number for number in range(BATCH)]
    assert datagrams.send((each.slot, each.data) for each in batch if each.slot % 2) == BATCH // 2
    answers = {1: clients[1].recv(9), 3: clients[0].recv(9), 5: clients[2].recv(9)}
    assert answers == {number: b"%d" % number for number in answers}
    assert [received.data for received in datagrams.receive()] == [b"%d" % BATCH]


@pytest.mark.parametrize("size", [0, 1, MAX_REQUEST - 1, MAX_REQUEST, MAX_REQUEST + 1, 60_000])
def test_sizes_of_requests(sockets: Sockets, size: int) -> None:
    """Empty datagrams are datagrams, and long ones are cut."""
    server = sockets.bound("127.0.0.1")
    client = sockets.client(server, "127.0.0.1")
    data = bytes(number % 251 for number in range(size))
    sockets.send(server, (client, data))
    (received,) = Datagrams(server).receive()
    assert received.data == data[:MAX_REQUEST]


def test_largest_replies(sockets: Sockets) -> None:
    """A whole batch of replies of the largest size stays apart."""
    server = sockets.bound("127.0.0.1")
    client = sockets.client(server, "127.0.0.1")
    datagrams = Datagrams(server)
    sockets.send(server, *[(client, b"")] * BATCH)
    replies = [(each.slot, bytes([each.slot]) * MAX_REPLY) for each in datagrams.receive()]
    assert datagrams.send(replies) == BATCH
    assert [client.recv(2000) for _ in replies] == [reply for _, reply in replies]


def test_answers_that_cannot_be_sent(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the system refuses doesn't keep the others back; a full queue does."""
    server = sockets.bound("127.0.0.1")
    client = sockets.client(server, "127.0.0.1")
    datagrams = Datagrams(server)
    sockets.send(server, *((client, text) for text in (b"a", b"b", b"c")))
    replies = [(received.slot, received.data) for received in datagrams.receive()]
    sizes, size = datagrams._lengths, datagrams._lengths[0]
    sizes[0] = sizes[2] = (3, size[1])  # no address has three bytes
    assert datagrams.send(replies) == 1
    assert client.recv(9) == b"b"
    monkeypatch.setattr(datagrams_module, "_FULL", {errno.EINVAL})
    assert datagrams.send(replies) == 0
    client.settimeout(0)
    with pytest.raises(BlockingIOError):
        client.recv(9)


def test_broken_socket(sockets: Sockets) -> None:
    """What isn't a socket any more is said."""
    server = sockets.bound("127.0.0.1")
    datagrams = Datagrams(server)
    server.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        datagrams.receive()


def test_port_zero(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who claims to send from port 0 is not heard: no answer could be sent."""
    server = sockets.bound("127.0.0.1")
    client = sockets.client(server, "127.0.0.1")
    datagrams = Datagrams(server)
    sockets.send(server, (client, b"x"))
    received = datagrams_module._libc.recvmmsg

    def forged(*arguments: object) -> int:
        count: int = received(*arguments)
        datagrams._names.bytes[2:4] = bytes(2)
        return count

    class Libc:
        recvmmsg = staticmethod(forged)

    monkeypatch.setattr(datagrams_module, "_libc", Libc)
    assert datagrams.receive() == []
