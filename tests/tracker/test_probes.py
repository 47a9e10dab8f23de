# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of tracker.probes: ports on loopback that are open, closed, silent, or of libtorrent."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm.swarm import Swarm
from narswarm.swarm_settings import SwarmSettings
from tests.ports import free_port
from tracker import probes
from tracker.probes import Attempts, Found, Seen, answer_to, farewell, syn

LOOPBACK = socket.inet_aton("127.0.0.1")
IDENTITY, SEQUENCE = 0x1234, 0x5678


def datagram(kind: int, identity: int = IDENTITY, acknowledged: int = SEQUENCE) -> bytes:
    """What the other side says in uTP, of version 1 and with sequence number 9."""
    return struct.pack(">BBHIIIHH", kind << 4 | 1, 0, identity, 0, 0, 0, 9, acknowledged)


@pytest.fixture
def attempts() -> Iterator[Attempts]:
    """The thread that tries."""
    made = Attempts()
    yield made
    made.close()


def seen(attempts: Attempts, port: int, address: bytes = LOOPBACK) -> Found:
    """Try a port, and wait for what is seen."""
    told: SimpleQueue[Found] = SimpleQueue()
    assert attempts.begin(address, port, told.put)
    return told.get(timeout=120)


@contextlib.contextmanager
def udp(answer: Callable[[bytes, int], list[bytes]]) -> Iterator[tuple[int, list[bytes]]]:
    """A port of UDP that answers a datagram, given its number, with others."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                data, sender = sock.recvfrom(4096)
                if not data:
                    return
                heard.append(data)
                for each in answer(data, len(heard)):
                    sock.sendto(each, sender)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1], heard
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"", sock.getsockname())
            thread.join()


def granted(data: bytes) -> bytes:
    """The answer that grants the connection which was asked for."""
    _, _, identity, _, _, _, sequence, _ = struct.unpack(">BBHIIIHH", data)
    return datagram(2, identity, sequence)


def test_the_datagram_that_asks() -> None:
    """Type 4 of version 1, without extensions, as BEP 29 has it."""
    assert syn(IDENTITY, SEQUENCE, (7 << 32) + 5) == bytes.fromhex(
        "4100 1234 00000005 00000000 00010000 5678 0000"
    )


@pytest.mark.parametrize(
    ("data", "meant"),
    [
        (datagram(2), Seen.OPEN),
        (datagram(2) + b"more", Seen.OPEN),
        (datagram(3), Seen.REFUSED),
        (datagram(3, acknowledged=0), Seen.REFUSED),
        (datagram(2)[:-1], None),
        (datagram(2, identity=IDENTITY + 1), None),
        (datagram(2, acknowledged=SEQUENCE + 1), None),
        (datagram(0), Seen.OPEN),
        (datagram(1), Seen.OPEN),
        (datagram(1, acknowledged=0), None),
        (datagram(4), None),
        (datagram(5), None),
        (b"\x22" + datagram(2)[1:], None),
        (b"", None),
    ],
)
def test_answers(data: bytes, meant: Seen | None) -> None:
    """One that grants and one that refuses, with the same connection id; nothing else counts."""
    assert answer_to(data, IDENTITY, SEQUENCE) is meant


@given(st.binary(max_size=40), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_any_answer(data: bytes, identity: int, sequence: int) -> None:
    """Nothing that a stranger sends breaks it."""
    meant = answer_to(data, identity, sequence)
    assert meant in {None, Seen.OPEN, Seen.REFUSED}
    if meant is Seen.OPEN:
        assert len(farewell(data, identity, sequence, 1 << 40)) == 20


def test_what_was_granted_is_given_back() -> None:
    """By a reset with the other connection id, which acknowledges the answer."""
    assert farewell(datagram(2), 0xFFFF, 0xFFFF, 5) == bytes.fromhex(
        "3100 0000 00000005 00000000 00000000 0000 0009"
    )


@pytest.mark.parametrize("utp", [True, False])
def test_a_seeder(attempts: Attempts, utp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of libtorrent is seen, and whether it takes connections of uTP."""
    if utp:
        monkeypatch.setattr(probes, "SECONDS", 120.0)
    settings = SwarmSettings(
        listen=("127.0.0.1:0",),
        dht=False,
        lsd=False,
        upnp=False,
        private_network=True,
        role="seed",
        extra={"enable_incoming_utp": utp},
    )
    with Swarm(settings) as swarm:
        found = seen(attempts, swarm.listen_port)
    assert found.tcp is Seen.OPEN
    assert (found.utp is Seen.OPEN) is utp


def test_a_port_that_nobody_has(attempts: Attempts) -> None:
    """The system says so at once."""
    assert seen(attempts, free_port()) == Found(Seen.REFUSED, Seen.REFUSED)


def test_ipv6(attempts: Attempts) -> None:
    """Is tried by itself."""
    address = socket.inet_pton(socket.AF_INET6, "::1")
    port = free_port("::1")
    with socket.create_server(("::1", port), family=socket.AF_INET6):
        assert seen(attempts, port, address) == Found(Seen.OPEN, Seen.REFUSED)


def test_what_this_network_does_not_allow(attempts: Attempts) -> None:
    """Says nothing of the port."""
    broadcast = socket.inet_aton("255.255.255.255")
    assert seen(attempts, 6881, broadcast) == Found(Seen.FAILED, Seen.FAILED)


def test_a_port_that_is_silent(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a firewall that drops everything: it is asked three times by uTP, and given up."""
    monkeypatch.setattr(probes, "SECONDS", 3.0)
    monkeypatch.setattr(probes, "RESENDS", (0.1, 0.2))
    with contextlib.ExitStack() as stack:
        port, heard = stack.enter_context(udp(lambda *_: []))
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        for _ in range(3):  # a full queue drops who comes then
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        assert seen(attempts, port) == Found(Seen.SILENT, Seen.SILENT)
    assert len(heard) == 3
    assert len({heard[0][16:18] + each[2:4] for each in heard}) == 1


def test_a_datagram_that_was_lost(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is sent again; what isn't an answer is passed over, and the connection is given back."""
    monkeypatch.setattr(probes, "SECONDS", 120.0)
    monkeypatch.setattr(probes, "RESENDS", (0.05, 100.0))

    def answer(data: bytes, number: int) -> list[bytes]:
        if data[0] >> 4 != 4:
            given_back.set()
        return [b"", b"\0", b"x" * 3000, granted(data)] if number == 2 else []

    given_back = threading.Event()
    with udp(answer) as (port, heard):
        assert seen(attempts, port).utp is Seen.OPEN
        assert given_back.wait(120)
    assert [data[0] >> 4 for data in heard] == [4, 4, 3]
    assert heard[2][2:4] == struct.pack(">H", struct.unpack(">H", heard[0][2:4])[0] + 1 & 0xFFFF)


def test_only_so_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others aren't tried; those that are under way when it ends are told to nobody."""
    monkeypatch.setattr(probes, "MAX_ATTEMPTS", 2)
    attempts = Attempts()
    told: SimpleQueue[Found] = SimpleQueue()
    with udp(lambda *_: []) as (port, _):
        assert attempts.begin(LOOPBACK, port, told.put)
        assert attempts.begin(LOOPBACK, port, told.put)
        assert not attempts.begin(LOOPBACK, port, told.put)
        attempts.close()
    assert told.empty()
    assert not attempts.begin(LOOPBACK, port, told.put)


def test_many_at_the_same_time(attempts: Attempts) -> None:
    """Each is told what was seen of its own port."""
    told: SimpleQueue[tuple[int, Found]] = SimpleQueue()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ports = [listener.getsockname()[1], free_port()]
        for number in range(40):
            port = ports[number % 2]
            assert attempts.begin(LOOPBACK, port, lambda found, port=port: told.put((port, found)))  # type: ignore[misc]
        results = [told.get(timeout=120) for _ in range(40)]
    assert {found.tcp for port, found in results if port == ports[0]} == {Seen.OPEN}
    assert {found.tcp for port, found in results if port == ports[1]} == {Seen.REFUSED}


def test_one_that_was_never_used() -> None:
    """Has no thread to be ended."""
    Attempts().close()
