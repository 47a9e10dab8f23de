# SPDX-License-Identifier: GPL-3.0-or-later
"""What is answered to datagrams, and the thread that answers them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm.errors import BusyError, SettingsError
from tests import needs
from tests.ports import free_port
from tracker import udp
from tracker.announcer import Announcer
from tracker.blocks import BlockList
from tracker.native import NativeAnnouncer, NativeSwarms, NativeUdpServer
from tracker.policy import Policy
from tracker.swarms import Limits
from tracker.swarmstore import MemorySwarms, StoreDownError, SwarmStore
from tracker.udp import UdpResponder, UdpServer, UdpSockets, load_key
from tracker.wire_http import MAX_SCRAPE, AnnounceRequest
from tracker.wire_udp import ConnectionIds

LISTED = b"l" * 20
UNLISTED = b"u" * 20
TRANSACTION = b"\xde\xad\xbe\xef"
CONNECT = bytes.fromhex("0000041727101980 00000000") + TRANSACTION
FOUR = b"\xc0\0\2\1"
SIX = bytes.fromhex("20010db8000000000000000000000001")
NOW = 1_700_000_000
IDS = ConnectionIds(b"k" * 32)


class Client:
    """Somebody at an address who proved it."""

    def __init__(self, responder: Responder, address: bytes = FOUR) -> None:
        self._respond = responder.respond
        self._address = address
        self.id = IDS.issue(address, NOW)

    def send(self, packet: bytes) -> bytes | None:
        """The answer to a packet."""
        return self._respond(packet, self._address, NOW)

    def announce(
        self,
        port: int = 1,
        *,
        left: int = 5,
        event: int = 0,
        numwant: int = -1,
        info_hash: bytes = LISTED,
        more: bytes = b"",
    ) -> bytes:
        """The answer to an announce, without action and transaction."""
        packet = self.id + b"\0\0\0\1" + TRANSACTION + info_hash + b"p" * 20 + bytes(8)
        packet += left.to_bytes(8) + bytes(8) + event.to_bytes(4) + b"\6\6\6\6" + b"key!"
        reply = self.send(packet + numwant.to_bytes(4, signed=True) + port.to_bytes(2) + more)
        assert reply is not None
        assert reply[:8] == b"\0\0\0\1" + TRANSACTION
        return reply[8:]

    def scrape(self, *info_hashes: bytes) -> list[int]:
        """The numbers that are answered to a scrape."""
        reply = self.send(self.id + b"\0\0\0\2" + TRANSACTION + b"".join(info_hashes))
        assert reply is not None
        assert reply[:8] == b"\0\0\0\2" + TRANSACTION
        return [int.from_bytes(reply[at : at + 4]) for at in range(8, len(reply), 4)]


class NativeResponder:
    """What the native engine answers; it counts by itself."""

    def __init__(self, announcer: NativeAnnouncer, swarms: NativeSwarms) -> None:
        self.announcer = announcer  # which told the engine what is granted
        self._server = NativeUdpServer([], swarms, b"k" * 32)

    def respond(self, packet: bytes, address: bytes, now: int) -> bytes | None:
        """The answer to a packet."""
        return self._server.respond(packet, address, now)

    def count(self, seconds: float) -> None:
        """Nothing is left to be counted."""


Responder = UdpResponder | NativeResponder


def make_announcer(
    engine: str, policy: Policy, limits: Limits, listed: set[bytes]
) -> tuple[Announcer, SwarmStore]:
    """An announcer of a closed tracker, with what is granted and listed, and its store."""
    rng = Random(1)  # noqa: S311 - the same at each run
    if engine == "python":
        memory = MemorySwarms(limits, keep_downloads=True)
        return Announcer(policy, memory, listed.__contains__, rng), memory
    needs.native()
    native = NativeSwarms(limits, is_open=False, keep_downloads=True)
    native.replace_listed(listed)
    return NativeAnnouncer(policy, native, listed.__contains__, rng), native


def make_responder(announcer: Announcer, swarms: SwarmStore) -> Responder:
    """What answers for them."""
    if isinstance(announcer, NativeAnnouncer) and isinstance(swarms, NativeSwarms):
        return NativeResponder(announcer, swarms)
    return UdpResponder(announcer, IDS)


@pytest.fixture(name="engine", params=["python", "native"])
def engine_fixture(request: pytest.FixtureRequest) -> str:
    """Each engine has the same rules."""
    return str(request.param)


PYTHON_ONLY = pytest.mark.parametrize("engine", ["python"], indirect=True)


@pytest.fixture(name="made")
def made_fixture(engine: str) -> tuple[Announcer, SwarmStore]:
    """A closed tracker with one infohash."""
    policy = Policy(interval=1000, leecher_interval=100, numwant=50, max_numwant=1000)
    return make_announcer(engine, policy, Limits(address_ports=1000), {LISTED})


@pytest.fixture(name="swarms")
def swarms_fixture(made: tuple[Announcer, SwarmStore]) -> SwarmStore:
    """Its swarms."""
    return made[1]


@pytest.fixture(name="announcer")
def announcer_fixture(made: tuple[Announcer, SwarmStore]) -> Announcer:
    """Its announcer."""
    return made[0]


@pytest.fixture(name="responder")
def responder_fixture(made: tuple[Announcer, SwarmStore]) -> Responder:
    """What answers for it."""
    return make_responder(*made)


@pytest.fixture(name="python")
def python_fixture(responder: Responder) -> UdpResponder:
    """What answers in Python."""
    assert isinstance(responder, UdpResponder)
    return responder


@pytest.fixture(name="client")
def client_fixture(responder: Responder) -> Client:
    """An IPv4 client."""
    return Client(responder)


def _numbers(reply: bytes) -> tuple[int, int, int]:
    return (
        int.from_bytes(reply[:4]),
        int.from_bytes(reply[4:8]),
        int.from_bytes(reply[8:12]),
    )


@pytest.mark.parametrize("address", [FOUR, SIX])
@pytest.mark.parametrize("more", [b"", b"x", b"x" * 500])
def test_connect(responder: Responder, address: bytes, more: bytes) -> None:
    """Who asks gets an id that holds, in as many bytes as were asked for."""
    reply = responder.respond(CONNECT + more, address, NOW)
    assert reply == bytes(4) + TRANSACTION + IDS.issue(address, NOW)


def test_announce(client: Client) -> None:
    """A seed and a leecher find each other at the addresses that they were seen at."""
    reply = client.announce(258, left=0)
    assert _numbers(reply)[0] in range(900, 1101)
    assert _numbers(reply)[1:] == (0, 1)
    reply = client.announce(2)
    assert _numbers(reply)[0] in range(90, 111)
    assert _numbers(reply)[1:] == (1, 1)
    assert reply[12:] == b"\xc0\0\2\1\1\2"


def test_same_swarm_as_http(client: Client, announcer: Announcer) -> None:
    """Peers over HTTP and over UDP are in one swarm."""
    client.announce(258, left=0)
    query = b"info_hash=%b&peer_id=%b&port=772&left=1" % (LISTED, b"q" * 20)
    assert b"5:peers6:\xc0\0\2\1\1\2e" in announcer.announce_http(query, "192.0.2.9", None, NOW)
    assert client.announce(3)[12:] in {
        b"\xc0\0\2\1\1\2" + b"\xc0\0\2\x09\3\4",
        b"\xc0\0\2\x09\3\4" + b"\xc0\0\2\1\1\2",
    }


def test_families(responder: Responder) -> None:
    """Counts are of all, peers only of the packet's family: strides are told by nothing else."""
    four, six = Client(responder), Client(responder, SIX)
    for port in range(1, 4):
        four.announce(port, left=0)
        six.announce(port, left=0)
    for client, address in ((four, FOUR), (six, SIX)):
        reply = client.announce(9, numwant=2)
        assert _numbers(reply)[2] == 6
        peers = [address + port.to_bytes(2) for port in range(1, 4)]
        stride = len(address) + 2
        chosen = {reply[at : at + stride] for at in range(12, len(reply), stride)}
        assert len(chosen) == 2
        assert chosen <= set(peers)


@pytest.mark.parametrize(("address", "size"), [(FOUR, 1472), (SIX, 1442)])
def test_replies_fit_into_a_packet(responder: Responder, address: bytes, size: int) -> None:
    """Whatever is wanted and allowed."""
    client = Client(responder, address)
    for port in range(1, 302):
        client.announce(port, left=0, numwant=0)
    assert len(client.announce(302, numwant=2**31 - 1)) + 8 == size


@pytest.mark.parametrize(("numwant", "count"), [(-(2**31), 50), (-1, 50), (0, 0), (1, 1)])
def test_numwant(client: Client, numwant: int, count: int) -> None:
    """What the client doesn't say the tracker decides."""
    for port in range(1, 62):
        client.announce(port, left=0)
    assert len(client.announce(99, numwant=numwant)[12:]) == count * 6


def test_events(client: Client) -> None:
    """Completed counts once, stopped removes, paused is a partial seed: as over HTTP."""
    client.announce(1, event=2)
    client.announce(2, event=4)
    assert client.scrape(LISTED) == [0, 0, 2]
    assert client.announce(3, left=5)[12:] != b""
    assert client.announce(2, event=4)[12:] in {
        FOUR + b"\0\1" + FOUR + b"\0\3",
        FOUR + b"\0\3" + FOUR + b"\0\1",
    }
    client.announce(1, left=7, event=1)
    client.announce(1, left=0, event=1)
    assert client.scrape(LISTED) == [1, 1, 2]
    assert _numbers(client.announce(1, left=0, event=3))[1:] == (2, 0)
    assert _numbers(client.announce(0, event=3))[1:] == (2, 0)


@pytest.mark.parametrize("more", [b"\0", b"\1\2\4/abc", b"\2\xff", b"\xff\1a\2", b"x" * 1000])
def test_longer_announces(client: Client, more: bytes) -> None:
    """Whatever follows the fields, the announce counts."""
    client.announce(1)
    assert client.announce(2, more=more)[12:] == FOUR + b"\0\1"


def test_scrape(client: Client, swarms: SwarmStore) -> None:
    """In the order that was asked for, repeated and unknown ones too; nothing changes."""
    client.announce(1, left=0)
    client.announce(2)
    assert client.scrape() == []
    assert client.scrape(UNLISTED, LISTED, LISTED) == [0, 0, 0, 1, 0, 1, 1, 0, 1]
    assert len(client.scrape(*[UNLISTED] * 80)) == MAX_SCRAPE * 3
    assert swarms.totals().swarms == 1


@PYTHON_ONLY
def test_batches(python: UdpResponder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each datagram of a batch has its own answer; its announces are one request of the store."""
    asked: list[int] = []
    announcer = python._announcer
    original = announcer.announce_many

    def watched(some: list[tuple[AnnounceRequest, bytes]], now: int) -> list[Any]:
        asked.append(len(some))
        return original(some, now)

    monkeypatch.setattr(announcer, "announce_many", watched)
    first, second = IDS.issue(FOUR, NOW), IDS.issue(SIX, NOW)
    body = TRANSACTION + LISTED + b"p" * 20 + bytes(24) + bytes(12) + b"\xff" * 4 + b"\0\1"
    announce = b"\0\0\0\1" + body
    unlisted = announce.replace(LISTED, UNLISTED)
    packets = [
        (first + announce, FOUR),
        (CONNECT, FOUR),
        (first + announce, SIX),
        (second + unlisted, SIX),
        (second + announce, SIX),
    ]
    one, connect, dropped, refused, two = python.respond_many(packets, NOW)
    assert asked == [3]
    assert one is not None
    assert two is not None
    assert one[12:20] == b"\0\0\0\0\0\0\0\1"
    assert two[12:20] == b"\0\0\0\0\0\0\0\2"
    assert connect == bytes(4) + TRANSACTION + first
    assert dropped is None
    assert refused == b"\0\0\0\3" + TRANSACTION + b"info_hash: is not in this tracker's index"


@PYTHON_ONLY
def test_store_that_does_not_answer(
    client: Client, python: UdpResponder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Announces and scrapes get an error; connection ids are given out all the same."""

    def fail(*_: object) -> None:
        raise StoreDownError("store", "is down")

    store = python._announcer._swarms
    monkeypatch.setattr(store, "announce_many", fail)
    monkeypatch.setattr(store, "counts", fail)
    text = b"tracker: does not reach its swarms now"
    body = TRANSACTION + LISTED + b"p" * 20 + bytes(24) + bytes(12) + b"\xff" * 4 + b"\0\1"
    for packet in (b"\0\0\0\1" + body, b"\0\0\0\2" + TRANSACTION + LISTED):
        assert client.send(client.id + packet) == b"\0\0\0\3" + TRANSACTION + text
    assert client.send(CONNECT) == bytes(4) + TRANSACTION + client.id


def test_unlisted_infohashes_cost_nothing(client: Client, swarms: SwarmStore) -> None:
    """They are refused in words before anything is allocated."""
    packet = client.id + b"\0\0\0\1" + TRANSACTION + UNLISTED + b"p" * 60 + b"\0\1"
    assert (
        client.send(packet)
        == b"\0\0\0\3" + TRANSACTION + b"info_hash: is not in this tracker's index"
    )
    assert swarms.totals().swarms == 0


def test_port_zero(client: Client, swarms: SwarmStore) -> None:
    """Nobody could connect to it; it isn't replaced by the port of the packet."""
    packet = client.id + b"\0\0\0\1" + TRANSACTION + LISTED + b"p" * 40 + bytes(22)
    reply = b"\0\0\0\3" + TRANSACTION + b"port: is not between 1 and 65535"
    assert client.send(packet) == reply
    assert swarms.totals().swarms == 0


@pytest.mark.parametrize("size", range(99))
def test_announces_that_are_cut_off(client: Client, swarms: SwarmStore, size: int) -> None:
    """Silence for each length but the whole one."""
    packet = client.id + b"\0\0\0\1" + TRANSACTION + LISTED + b"p" * 60 + b"\0\1"
    assert len(packet) == 98
    assert (client.send(packet[:size]) is not None) == (size == 98)
    assert swarms.totals().swarms == (size == 98)


@pytest.mark.parametrize("size", range(17))
def test_connects_that_are_cut_off(responder: Responder, size: int) -> None:
    """Silence for less than 16 bytes."""
    assert (responder.respond(CONNECT[:size], FOUR, NOW) is not None) == (size >= 16)


@pytest.mark.parametrize("action", [0, 3, 4, 5, 256, 2**32 - 1])
def test_unknown_actions(client: Client, action: int) -> None:
    """Silence, even for who proved its address."""
    assert client.send(client.id + action.to_bytes(4) + TRANSACTION + LISTED * 5) is None


@pytest.mark.parametrize("action", [1, 2])
@pytest.mark.parametrize(
    ("connection_id", "address", "later"),
    [
        (CONNECT[:8], FOUR, 0),
        (bytes(8), FOUR, 0),
        (IDS.issue(b"\xc0\0\2\2", NOW), FOUR, 0),
        (IDS.issue(FOUR, NOW), FOUR, 181),
        (ConnectionIds(b"l" * 32).issue(FOUR, NOW), FOUR, 0),
    ],
)
def test_unproven(
    responder: Responder,
    swarms: SwarmStore,
    action: int,
    connection_id: bytes,
    address: bytes,
    later: int,
) -> None:
    """Silence for who may be somebody else."""
    packet = connection_id + action.to_bytes(4) + TRANSACTION + LISTED + b"p" * 60 + b"\0\1"
    assert responder.respond(packet, address, NOW + later) is None
    assert swarms.totals().swarms == 0


def _listed(packet: bytes) -> set[bytes]:
    """The infohash of a packet, as if it were listed."""
    return {packet[16:36]} if len(packet) >= 36 else set()


_actions = st.sampled_from([bytes(3) + bytes([action]) for action in range(5)])
_headers = st.one_of(st.just(CONNECT[:8]), st.binary(max_size=8))


@given(
    st.one_of(
        st.binary(max_size=2048),
        st.builds(lambda *parts: b"".join(parts), _headers, _actions, st.binary(max_size=1600)),
    ),
    st.sampled_from([FOUR, SIX]),
)
@pytest.mark.parametrize("engine", ["python", "native"])
def test_any_datagram(engine: str, packet: bytes, address: bytes) -> None:
    """Nothing raises, and nobody unproven gets more than it sent or leaves a trace."""
    announcer, swarms = make_announcer(engine, Policy(), Limits(), _listed(packet))
    reply = make_responder(announcer, swarms).respond(packet, address, NOW)
    assert reply is None or (len(reply) <= len(packet) and packet.startswith(CONNECT[:12]))
    assert swarms.totals().swarms == 0


@given(_actions, st.binary(max_size=1600), st.sampled_from([FOUR, SIX]))
@pytest.mark.parametrize("engine", ["python", "native"])
def test_any_datagram_of_who_is_proven(
    engine: str, action: bytes, rest: bytes, address: bytes
) -> None:
    """Nothing raises, and every reply fits into a packet and repeats the transaction."""
    packet = IDS.issue(address, NOW) + action + rest
    made = make_announcer(engine, Policy(), Limits(), _listed(packet))
    reply = make_responder(*made).respond(packet, address, NOW)
    assert reply is None or (len(reply) <= 1452 and reply[4:8] == rest[:4])


def test_blocked_infohashes(client: Client, announcer: Announcer, swarms: SwarmStore) -> None:
    """What the operator blocks is refused in words, and has zeros."""
    client.announce(1)
    announcer.blocks = BlockList(info_hashes={LISTED})
    packet = client.id + b"\0\0\0\1" + TRANSACTION + LISTED + b"p" * 60 + b"\0\2"
    refusal = b"info_hash: is blocked by this tracker's operator"
    assert client.send(packet) == b"\0\0\0\3" + TRANSACTION + refusal
    assert client.scrape(LISTED) == [0, 0, 0]
    assert sum(swarms.totals()[1:]) == 1


def test_blocked_addresses(
    client: Client, responder: Responder, announcer: Announcer, swarms: SwarmStore
) -> None:
    """They get nothing at all, not even a connection id; others do."""
    announcer.blocks = BlockList(networks=[ip_network("192.0.2.0/24")])
    assert client.send(CONNECT) is None
    assert client.send(client.id + b"\0\0\0\1" + TRANSACTION + LISTED + b"p" * 62) is None
    assert client.send(client.id + b"\0\0\0\2" + TRANSACTION + LISTED) is None
    assert swarms.totals().swarms == 0
    assert Client(responder, SIX).send(CONNECT) is not None
    responder.count(0.25)
    assert announcer.metrics.requests.values() == {
        ("udp", "ipv4", "connect", "refused"): 1,
        ("udp", "ipv4", "announce", "refused"): 1,
        ("udp", "ipv4", "scrape", "refused"): 1,
        ("udp", "ipv6", "connect", "ok"): 1,
    }


@PYTHON_ONLY
def test_counting(python: UdpResponder, announcer: Announcer) -> None:
    """What came of datagrams is counted, a batch at a time, whatever their number."""
    client, six = Client(python), Client(python, SIX)
    rest = b"p" * 60 + b"\0\1"
    head = b"\0\0\0\1" + TRANSACTION
    client.send(CONNECT)
    client.send(bytes(16))
    six.send(CONNECT)
    client.announce(1)
    client.announce(2)
    client.send(client.id + head + UNLISTED + rest)
    client.send(client.id + head + LISTED + bytes(62))
    client.send(client.id + head + LISTED)
    client.send(bytes(8) + head + LISTED + rest)
    client.scrape(LISTED)
    client.send(client.id + b"\0\0\0\7" + TRANSACTION)
    assert announcer.metrics.requests.values() == {}
    python.count(0.25)
    assert announcer.metrics.requests.values() == {
        ("udp", "ipv4", "connect", "ok"): 1,
        ("udp", "ipv4", "connect", "malformed"): 1,
        ("udp", "ipv6", "connect", "ok"): 1,
        ("udp", "ipv4", "announce", "ok"): 2,
        ("udp", "ipv4", "announce", "unlisted"): 1,
        ("udp", "ipv4", "announce", "malformed"): 2,
        ("udp", "ipv4", "announce", "dropped"): 1,
        ("udp", "ipv4", "scrape", "ok"): 1,
    }
    latency = announcer.metrics.latency.values()
    assert {action: found.seconds for (_, action), found in latency.items()} == {
        "connect": 0.5,
        "announce": 0.5,
        "scrape": 0.25,
    }
    python.count(0.25)
    assert sum(announcer.metrics.requests.values().values()) == 10


def test_key(tmp_path: Path) -> None:
    """Made once, readable by its owner only, and the same ever after."""
    key = load_key(tmp_path)
    path = tmp_path / "udp.key"
    assert len(key) == 32
    assert key == path.read_bytes() == load_key(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["udp.key"]


@pytest.mark.parametrize("damaged", [b"", b"k" * 31, b"k" * 33])
def test_damaged_key(tmp_path: Path, damaged: bytes) -> None:
    """One of another size is replaced."""
    (tmp_path / "udp.key").write_bytes(damaged)
    key = load_key(tmp_path)
    assert len(key) == 32
    assert load_key(tmp_path) == key


def test_keys_differ(tmp_path: Path) -> None:
    """Each directory has its own."""
    for name in "ab":
        (tmp_path / name).mkdir()
    assert load_key(tmp_path / "a") != load_key(tmp_path / "b")


def test_key_that_cannot_be_read(tmp_path: Path) -> None:
    """It is said which file."""
    (tmp_path / "udp.key").mkdir()
    with pytest.raises(SettingsError) as caught:
        load_key(tmp_path)
    assert str(caught.value) == f"{tmp_path}/udp.key: Is a directory"


@pytest.fixture(name="listener")
def listener_fixture() -> Iterator[socket.socket]:
    """A TCP socket that listens on loopback."""
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        yield listener


def test_sockets(listener: socket.socket) -> None:
    """A UDP socket has the address and port of the TCP socket, and is closed in the end."""
    with UdpSockets([listener]) as (sock,):
        assert sock.getsockname() == listener.getsockname()
        assert sock.type == socket.SOCK_DGRAM
    assert sock.fileno() == -1


@pytest.mark.parametrize(("host", "named"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_dropped_datagrams(host: str, named: str) -> None:
    """What the kernel drops as nobody reads it is known by the socket it was for."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, free_port(host)), family=family) as listener:
        name = f"{named}:{listener.getsockname()[1]}"
        with UdpSockets([listener]) as sockets, socket.socket(family, socket.SOCK_DGRAM) as client:
            sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            assert udp.dropped_datagrams(sockets) == {name: 0}
            for _ in range(50):
                client.sendto(bytes(1000), listener.getsockname())
            sockets[0].setblocking(False)
            received = 0
            # On a busy machine the kernel may have some of them still on their way.
            while received + udp.dropped_datagrams(sockets)[name] < 50:
                with contextlib.suppress(BlockingIOError):
                    received += bool(sockets[0].recv(2000))
            assert 0 < received < 50
            assert udp.dropped_datagrams(sockets) == {name: 50 - received}


@pytest.mark.parametrize("only", [0, 1])
def test_sockets_of_ipv6(only: int) -> None:
    """A UDP socket takes IPv4 when the TCP socket does."""
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        listener.bind(("::", free_port("::")))
        with UdpSockets([listener]) as (sock,):
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == only
            assert sock.getsockname() == listener.getsockname()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_that_is_taken(host: str) -> None:
    """It is said which, and sockets that were already made are let go."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, free_port(host)), family=family) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(BusyError) as caught, UdpSockets([listener, listener]):
            pass
        name = f"[{host}]" if ":" in host else host
        assert str(caught.value) == f"udp://{name}:{port}: is in use"
        with UdpSockets([listener]):
            pass


def test_socket_that_cannot_be_made(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another reason is the system's."""
    monkeypatch.setattr(udp, "RECEIVE_BUFFER", "large")
    monkeypatch.setattr(socket.socket, "setsockopt", _refuse)
    port = listener.getsockname()[1]
    with pytest.raises(SettingsError) as caught, UdpSockets([listener]):
        pass
    assert str(caught.value) == f"udp://127.0.0.1:{port}: Operation not permitted"


def _refuse(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@PYTHON_ONLY
def test_server(python: UdpResponder) -> None:
    """One thread serves several sockets until it is stopped."""
    with (
        socket.create_server(("127.0.0.1", free_port())) as one,
        socket.create_server(("", free_port(""))) as two,
        UdpSockets([one, two]) as sockets,
    ):
        server = UdpServer(sockets, python, clock=lambda: NOW + 0.5)
        server.start()
        for sock in sockets:
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.settimeout(120)
                client.connect(("127.0.0.1", sock.getsockname()[1]))
                client.send(b"short")
                client.send(CONNECT)
                expected = bytes(4) + TRANSACTION + IDS.issue(b"\x7f\0\0\1", NOW)
                assert client.recv(100) == expected
        server.stop()
        assert not server._thread.is_alive()


def test_server_survives(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of a batch is logged, and the next one is served."""
    monkeypatch.setattr(udp, "_PAUSE_SECONDS", 0)

    class Faulty:
        calls = 0

        def respond_many(self, received: list[tuple[bytes, bytes]], _now: int) -> list[bytes]:
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("a fault")
            return [b"well"] * len(received)

        def count(self, seconds: float) -> None:
            assert seconds > 0

    responder: Any = Faulty()
    with UdpSockets([listener]) as sockets, socket.socket(type=socket.SOCK_DGRAM) as client:
        server = UdpServer(sockets, responder)
        server.start()
        client.settimeout(0.2)
        client.connect(sockets[0].getsockname())
        reply = b""
        for _ in range(600):
            client.send(b"x")
            try:
                reply = client.recv(9)
                break
            except TimeoutError:
                continue
        server.stop()
    assert reply == b"well"
    assert caplog.record_tuples[0][1:] == (
        logging.ERROR,
        "a batch of datagrams could not be served",
    )
