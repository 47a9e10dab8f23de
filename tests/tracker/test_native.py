# SPDX-License-Identifier: GPL-3.0-or-later
"""The native engine: as the one in Python where the two can be compared, and what only it has."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from ipaddress import ip_network
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narswarm.acl import Acl
from tests import needs
from tests.ports import free_port
from tracker import native
from tracker.blocks import BlockList
from tracker.database import Place
from tracker.index import Index
from tracker.native import NativeAnnouncer, NativeSwarms, NativeUdpServer
from tracker.policy import Policy
from tracker.publication import check
from tracker.swarms import Limits
from tracker.swarmstore import MemorySwarms
from tracker.udp import UdpSockets
from tracker.wire_http import AnnounceRequest, Counts, Event
from tracker.wire_udp import ConnectionIds

NOW = 1_700_000_000
PEER = b"p" * 20
KEY = b"k" * 32
IDS = ConnectionIds(KEY)
CONNECT = bytes.fromhex("0000041727101980 00000000 deadbeef")


@pytest.fixture(autouse=True)
def built_fixture() -> None:
    """Nothing here can be tested where it isn't built."""
    needs.native()


def make(limits: Limits | None = None, *, is_open: bool = True) -> NativeSwarms:
    """Empty swarms."""
    return NativeSwarms(limits or Limits(), is_open=is_open, keep_downloads=not is_open)


def request(info_hash: bytes, port: int = 1, **more: Any) -> AnnounceRequest:
    """An announce of a leecher unless said otherwise."""
    return AnnounceRequest(info_hash, PEER, port, **{"left": 1, **more})


class Step(NamedTuple):
    """Something that happens to a store."""

    kind: str
    info_hash: bytes
    address: bytes
    port: int
    left: int
    event: Event
    numwant: int
    one_family: bool
    passed: int


# Few of each, so that the same peers come again in other roles.
_addresses = st.sampled_from(
    [b"\x0a\0\0\1", b"\x0a\0\0\2", *(b"\x20\x01%b%c" % (bytes(13), n) for n in (1, 2))]
)
_steps = st.builds(
    Step,
    kind=st.sampled_from(["announce"] * 12 + ["expire", "block", "restore"]),
    info_hash=st.sampled_from([bytes([n]) * 20 for n in range(3)]),
    address=_addresses,
    port=st.integers(0, 2),
    left=st.sampled_from([-1, 0, 0, 1, 2**64 - 1]),
    event=st.sampled_from([Event.NONE, Event.COMPLETED, *Event]),
    numwant=st.sampled_from([0, 1, 200, 200]),
    one_family=st.booleans(),
    passed=st.sampled_from([0, 1, 60, 700]),
)
_limits = st.builds(
    Limits,
    swarms=st.sampled_from([2, 100, 100]),
    peers=st.sampled_from([3, 1000, 1000]),
    swarm_peers=st.sampled_from([3, 1000, 1000]),
    address_ports=st.sampled_from([1, 2, 32, 32]),
    seed_timeout=st.just(1000),
    leecher_timeout=st.just(500),
)


def _peers(packed: bytes, size: int) -> set[bytes]:
    return {packed[at : at + size] for at in range(0, len(packed), size)}


def _take(
    step: Step, now: int, one: MemorySwarms, two: NativeSwarms, blocked: Callable[[bytes], bool]
) -> None:
    """Have both stores go through a step, and compare what can be seen of them."""
    if step.kind == "expire":
        assert one.expire(now, blocked) == two.expire(now)
    elif step.kind == "restore":
        one.restore({step.info_hash: step.passed})
        two.restore({step.info_hash: step.passed})
    else:
        asked = AnnounceRequest(
            step.info_hash,
            PEER,
            step.port,
            step.left,
            step.event,
            compact=False,
            one_family=step.one_family,
        )
        first = one.announce(asked, step.address, step.numwant, now)
        second = two.announce(asked, step.address, step.numwant, now)
        assert first.counts == second.counts
        for mine, other in zip(first.selection, second.selection, strict=True):
            assert len(mine) == len(other)
        if step.numwant == 200:
            # All of them, in whichever order.
            assert _peers(first.selection.peers4, 6) == _peers(second.selection.peers4, 6)
            assert _peers(first.selection.peers6, 18) == _peers(second.selection.peers6, 18)


@settings(max_examples=150, deadline=None)
@given(_limits, st.booleans(), st.lists(_steps, min_size=20, max_size=60))
def test_same_as_python(limits: Limits, keep: bool, steps: list[Step]) -> None:
    """The same announces lead to the same swarms, whatever the limits."""
    one = MemorySwarms(limits, keep_downloads=keep, rng=Random(1))  # noqa: S311
    two = NativeSwarms(limits, is_open=True, keep_downloads=keep)
    blocks, now = BlockList(), NOW
    for step in steps:
        now += step.passed
        if step.kind == "block":
            blocks = BlockList(networks=[ip_network(step.address).supernet(1)])
            two.block(blocks)
        else:
            _take(step, now, one, two, blocks.has_address)
    hashes = [bytes([n]) * 20 for n in range(3)]
    assert one.totals() == two.totals()
    assert one.counts(hashes) == two.counts(hashes)
    for some in (hashes[:1], hashes[:2], hashes):
        counts, peers = one.sample(some, 1000)
        others, found = two.sample(some, 1000)
        assert (counts, set(peers)) == (others, set(found))
        assert len(two.sample(some, 3)[1]) == min(3, len(peers))
    if keep:
        taken = {info_hash: n for info_hash, n in one.take_downloads().items() if n}
        # Python hands out a number again that a peer's second "completed" left as it was.
        assert two.take_downloads().items() <= taken.items()


def test_large_swarms() -> None:
    """Thousands of peers come and go in any order; lists are fair and without the asker."""
    rng = Random(5)  # noqa: S311 - the same at each run
    swarms = make(Limits(address_ports=5000))
    info_hash = b"h" * 20
    peers = [bytes([10, n >> 8, n & 255, 1]) for n in range(3000)]
    for address in rng.sample(peers, len(peers)):
        swarms.announce(request(info_hash, left=0), address, 0, NOW)
    assert swarms.counts([info_hash]) == [Counts(3000, 0, 0, 0)]
    for address in rng.sample(peers, 500):
        answer = swarms.announce(request(info_hash, left=1), address, 200, NOW)
        assert len(_peers(answer.selection.peers4, 6)) == 200
        assert address + b"\0\1" not in _peers(answer.selection.peers4, 6)
        swarms.announce(request(info_hash, left=0), address, 0, NOW)
    seen: set[bytes] = set()
    for _ in range(300):
        seen |= _peers(swarms.announce(request(info_hash, 9), b"\1\1\1\1", 60, NOW).selection[0], 6)
    assert len(seen) > 2900
    gone = rng.sample(peers, 2900)
    for address in gone:
        stop = request(info_hash, event=Event.STOPPED)
        swarms.announce(stop, address, 0, NOW)
    left = {address + b"\0\1" for address in set(peers) - set(gone)}
    assert set(swarms.sample([info_hash], 1000)[1]) == left | {b"\1\1\1\1\0\x09"}
    for number, address in enumerate(sorted(set(peers) - set(gone))):
        swarms.announce(request(info_hash, left=0), address, 0, NOW + number)
    assert swarms.expire(NOW + 2700 + 50) == 50 + 1
    assert swarms.totals()[1:] == (50, 0, 0, 0)


@pytest.mark.parametrize("network", [b"\x0a\0\0%c", b"\x20\x01\0\0\0\0\0%c" + bytes(8)])
def test_ports_in_two_chunks(network: bytes) -> None:
    """The ports of one address are counted, and the oldest makes room, wherever they stand."""
    swarms = make(Limits(address_ports=32))
    info_hash = b"h" * 20
    # A chunk holds 128 peers and is halved: 16 ports of the address are in each half.
    below = [(network % n, 1) for n in range(48)]
    ports = [(network % 100, port) for port in range(1, 33)]
    above = [(network % n, 1) for n in range(101, 150)]
    for address, port in above + below:
        swarms.announce(request(info_hash, port), address, 0, NOW)
    for number, (address, port) in enumerate(ports):
        swarms.announce(request(info_hash, port), address, 0, NOW + number)
    assert swarms.counts([info_hash])[0].incomplete == 129
    for dropped in range(1, 33):
        swarms.announce(request(info_hash, 32 + dropped), network % 100, 0, NOW + 100)
        there = {
            int.from_bytes(peer[-2:])
            for peer in swarms.sample([info_hash], 1000)[1]
            if peer[:-2] == network % 100
        }
        assert there == set(range(1 + dropped, 33 + dropped))


def test_turns_in_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the parts of a sweep there is a pause, in which announces have the mutex."""
    pauses: list[int] = []
    swarms = make()
    for number in range(3000):
        swarms.announce(request(number.to_bytes(20)), b"\x0a\0\0\1", 0, NOW)

    def pause(took: float) -> None:
        assert took > 0
        # Who asks now is answered.
        swarms.announce(request(b"n" * 20), b"\x0a\0\0\1", 0, NOW + 10_000)
        pauses.append(swarms.totals().swarms)

    monkeypatch.setattr(native, "give_way", pause)
    assert swarms.expire(NOW + 10_000) == 3000
    assert len(pauses) > 5
    assert pauses == sorted(pauses, reverse=True)
    assert swarms.totals().swarms == 1


def test_many_swarms() -> None:
    """The table grows with them, keeps each, and is emptied by a sweep in parts."""
    swarms = make()
    hashes = [number.to_bytes(20) for number in range(5000)]
    for number, info_hash in enumerate(hashes):
        swarms.announce(request(info_hash), b"\x0a\0\0\1", 0, NOW + number % 2)
    assert swarms.totals().swarms == 5000
    assert swarms.counts(hashes) == [Counts(0, 1, 0, 1)] * 5000
    limits = swarms.limits
    assert swarms.expire(NOW + limits.leecher_timeout + 1) == 2500
    assert swarms.counts(hashes) == [Counts(0, n, 0, n) for n in (0, 1) * 2500]
    finished, rounds = False, 0
    while not finished:
        _, finished = swarms.core.expire(NOW + limits.leecher_timeout + 2, 100)
        rounds += 1
    assert rounds > 20
    assert swarms.totals().swarms == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=400))
def test_listed(changes: list[tuple[bool, int]]) -> None:
    """What comes to the list and goes from it is known at once."""
    swarms = make(is_open=False)
    announcer = NativeAnnouncer(Policy(), swarms, lambda _: True, Random(1))  # noqa: S311
    listed: set[bytes] = {bytes(20)}
    swarms.replace_listed(listed)
    for add, number in changes:
        info_hash = number.to_bytes(20)
        (listed.add if add else listed.discard)(info_hash)
        swarms.change_listed(*(([info_hash], []) if add else ([], [info_hash])))
    del announcer
    server = NativeUdpServer([], swarms, KEY)
    for number in range(0, 301, 7):
        info_hash = number.to_bytes(20)
        assert (_announce(server, info_hash)[:4] == b"\0\0\0\1") == (info_hash in listed)
    swarms.replace_listed([b"x" * 20])
    assert _announce(server, bytes(20))[:4] == b"\0\0\0\3"
    assert _announce(server, b"x" * 20)[:4] == b"\0\0\0\1"


def _announce(server: NativeUdpServer, info_hash: bytes, address: bytes = b"\x0a\0\0\1") -> bytes:
    """The answer to an announce."""
    packet = IDS.issue(address, NOW) + b"\0\0\0\1tran" + info_hash + b"p" * 60 + b"\0\1"
    reply = server.respond(packet, address, NOW)
    assert reply is not None
    return reply


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
                lambda pair: ip_network(pair, strict=False)
            ),
            st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 128)).map(
                lambda pair: ip_network(pair, strict=False)
            ),
        ),
        max_size=8,
    ),
    st.lists(
        st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
        max_size=20,
    ),
)
def test_blocked_networks(networks: list[Any], addresses: list[bytes]) -> None:
    """An address is refused when Python says that it is blocked."""
    swarms = make()
    announcer = NativeAnnouncer(Policy(), swarms, lambda _: True, Random(1))  # noqa: S311
    announcer.blocks = blocks = BlockList(networks=networks)
    server = NativeUdpServer([], swarms, KEY)
    addresses += [bytes(network[0].packed) for network in networks]
    addresses += [bytes(network[-1].packed) for network in networks]
    for address in addresses:
        reply = server.respond(CONNECT, address, NOW)
        assert (reply is None) == blocks.has_address(address)


@given(
    st.binary(min_size=32, max_size=32),
    st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
    st.integers(-200, 2**33),
)
def test_connection_ids(key: bytes, address: bytes, now: int) -> None:
    """They are those of the other engine, so a tracker may change its engine."""
    server = NativeUdpServer([], make(), key)
    reply = server.respond(CONNECT, address, now)
    assert reply is not None
    assert reply[8:] == ConnectionIds(key).issue(address, now)


@pytest.mark.parametrize("later", [-61, -60, 0, 119, 120, 179, 180, 240, 256 * 60])
def test_age_of_connection_ids(later: int) -> None:
    """They hold as long as those of the other engine."""
    server = NativeUdpServer([], make(), KEY)
    address, issued = b"\x0a\0\0\1", NOW - NOW % 60
    scrape = IDS.issue(address, issued) + b"\0\0\0\2tran"
    reply = server.respond(scrape, address, issued + later)
    assert (reply is not None) == IDS.holds(scrape[:8], address, issued + later)


def test_index_is_followed(place: Place, make_item: Callable[..., Any], acl: Acl) -> None:
    """What is published is tracked at once, and what is blocked or revoked isn't any more."""
    index, swarms = Index(place), make(is_open=False)
    swarms.decide(Policy())
    index.watch(swarms)
    server = NativeUdpServer([], swarms, KEY)
    item = make_item()
    hashes = [item.meta.infohash_v2[:20], item.meta.infohash_v1]

    def tracked() -> list[bool]:
        return [_announce(server, info_hash)[:4] == b"\0\0\0\1" for info_hash in hashes]

    assert tracked() == [False, False]
    checked = check(item.nar_hash, item.body, acl, ("https://bordeaux.guix.gnu.org",))
    index.publish(checked, bytes(32), NOW)
    assert tracked() == [True, True]
    index.authorize(lambda _: False)
    assert tracked() == [False, False]
    index.authorize(lambda _: True)
    assert tracked() == [True, True]
    swarms.block(BlockList(info_hashes=hashes[:1]))
    assert tracked() == [False, True]
    index.close()


def test_policy_changes() -> None:
    """Intervals and wanted peers are those that are set last."""
    swarms = make(Limits(address_ports=1000))
    announcer = NativeAnnouncer(Policy(), swarms, lambda _: True, Random(1))  # noqa: S311
    server = NativeUdpServer([], swarms, KEY)
    for port in range(1, 100):
        swarms.announce(request(b"h" * 20, port, left=0), b"\x0a\0\0\2", 0, NOW)
    policy = Policy(interval=5000, leecher_interval=1000, numwant=7, max_numwant=9)
    announcer.reconfigure(policy, Limits(address_ports=1))
    reply = _announce(server, b"h" * 20)
    assert int.from_bytes(reply[8:12]) in range(900, 1101)
    assert swarms.limits.address_ports == 1


def test_counting() -> None:
    """What C answers, or doesn't, is among the tracker's numbers."""
    swarms = make(is_open=False)
    announcer = NativeAnnouncer(Policy(), swarms, lambda _: True, Random(1))  # noqa: S311
    announcer.metrics.requests.inc("udp", "ipv4", "connect", "ok", 5)
    announcer.metrics.latency.observe("udp", "connect", 0.5)
    server = NativeUdpServer([], swarms, KEY)
    server.respond(CONNECT, b"\x0a\0\0\1", NOW)
    server.respond(CONNECT, b"\x20\1" + bytes(14), NOW)
    _announce(server, b"u" * 20)
    server.respond(bytes(8) + b"\0\0\0\2tran", b"\x0a\0\0\1", NOW)
    assert announcer.metrics.requests.values() == {
        ("udp", "ipv4", "connect", "ok"): 6,
        ("udp", "ipv6", "connect", "ok"): 1,
        ("udp", "ipv4", "announce", "unlisted"): 1,
        ("udp", "ipv4", "scrape", "dropped"): 1,
    }
    latency = announcer.metrics.latency.values()
    assert latency["udp", "connect"] == ((2,) * 9 + (2, 3, 3), 0.5)
    assert announcer.metrics.engine == "native"


@pytest.fixture(name="listeners")
def listeners_fixture() -> Iterator[list[socket.socket]]:
    """TCP sockets on one address of loopback, and on all addresses of both families."""
    with (
        socket.create_server(("127.0.0.1", free_port())) as one,
        socket.create_server(("", free_port(""))) as four,
        socket.create_server(
            ("::", free_port("::")), family=socket.AF_INET6, dualstack_ipv6=True
        ) as six,
    ):
        yield [one, four, six]


def test_server(listeners: list[socket.socket]) -> None:
    """One thread serves several sockets until it is stopped; answers leave from who was asked."""
    with UdpSockets(listeners) as sockets:
        server = NativeUdpServer(sockets, make(), KEY)
        server.start()
        for sock, address in (
            (sockets[0], "127.0.0.1"),
            (sockets[1], "127.0.0.9"),
            (sockets[2], "127.0.0.7"),
            (sockets[2], "::1"),
        ):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as client:
                client.settimeout(120)
                client.connect((address, sock.getsockname()[1]))
                client.send(b"short")
                client.send(b"x" * 5000)
                client.send(CONNECT)
                reply = client.recv(100)
                assert reply[:8] == CONNECT[8:]
                own = socket.inet_pton(family, client.getsockname()[0])
                assert IDS.holds(reply[8:], own, int(time.time()))
        server.stop()
        assert not server._thread.is_alive()


def test_server_survives(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A socket that breaks is said, and served again."""
    monkeypatch.setattr(native, "_PAUSE_SECONDS", 0)

    class Faulty:
        calls = 0

        def serve(self) -> None:
            self.calls += 1
            if self.calls == 1:
                raise OSError(5, "Input/output error")

    server = NativeUdpServer([], make(), KEY)
    faulty = Faulty()
    monkeypatch.setattr(server, "_udp", faulty)
    server.start()
    server._thread.join()
    assert faulty.calls == 2
    assert [record.message for record in caplog.records] == [
        "a batch of datagrams could not be served"
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda core: core.set_listed(b"x" * 19), "info_hashes: are not 20 bytes each"),
        (lambda core: core.scrape(b"x" * 21), "info_hashes: are not 20 bytes each"),
        (lambda core: core.sample(b"x", 1), "info_hashes: are not 20 bytes each"),
        (lambda core: core.restore(b"x", 1), "info_hash: has not 20 bytes"),
        (lambda core: core.set_networks([(b"abc", 1)]), "networks: have no such addresses"),
        (lambda core: core.set_networks([(b"abcd", 33)]), "networks: have no such addresses"),
        (
            lambda core: core.enter(PEER, PEER, b"abc", 1, 1, 0, 1, False, False, NOW),
            "announce: a hash, id or address has another size",
        ),
        (lambda core: type(core)(b"short", True, True), "seed: has not 48 bytes"),
    ],
)
def test_senseless_calls(call: Callable[[Any], Any], message: str) -> None:
    """What would read or write beyond a value is refused."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(make().core)


@pytest.mark.parametrize(
    ("descriptors", "message"),
    [([-1], "Bad file descriptor"), ([0] * 65, "^udp: takes a key of 32 bytes, and 64 sockets")],
)
def test_sockets_that_are_none(descriptors: list[int], message: str) -> None:
    """They are refused before anything is served."""
    udp = import_module("tracker._native").Udp
    with pytest.raises((OSError, ValueError), match=message):
        udp(make().core, KEY, descriptors)


def test_swarms_that_are_none() -> None:
    """Nothing else is taken for them."""
    udp = import_module("tracker._native").Udp
    with pytest.raises(TypeError, match=r"^swarms: is no tracker\._native\.Swarms$"):
        udp("x", KEY, [])
