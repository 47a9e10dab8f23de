# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is in which swarm: the rules that every store of swarms keeps."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from random import Random
from typing import Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import needs
from tracker import swarmstore
from tracker.blocks import BlockList
from tracker.native import NativeSwarms
from tracker.redis_swarms import RedisSwarms
from tracker.swarms import Answer, Limits
from tracker.swarmstore import MemorySwarms, SwarmStore, SwarmTotals
from tracker.wire_http import AnnounceRequest, Counts, Event

HASH = b"h" * 20
OTHER = b"o" * 20
PEER = b"p" * 20
NOW = 1_700_000_000

_LIMITS = Limits()
_names = itertools.count()


class Swarm:
    """One swarm as a test speaks about it: peers by text, replies as sets."""

    def __init__(self, store: SwarmStore) -> None:
        self.swarms = store

    def announce(
        self,
        address: str = "10.0.0.1",
        port: int = 1,
        *,
        left: int = 1,
        event: Event = Event.NONE,
        numwant: int = 50,
        now: int = NOW,
        info_hash: bytes = HASH,
        peer_id: bytes = PEER,
        compact: bool = True,
    ) -> Answer:
        """One announce, of a leecher unless said otherwise."""
        request = AnnounceRequest(info_hash, peer_id, port, left, event, compact=compact)
        packed = ip_address(address).packed
        return self.swarms.announce(request, packed, numwant, now)

    @property
    def totals(self) -> list[int]:
        """Peers by role and family."""
        return list(self.swarms.totals()[1:])

    @property
    def kept(self) -> int:
        """Peers that are kept."""
        return sum(self.totals)

    def peers(self, *arguments: str | int, **named: int | Event) -> list[str]:
        """The peers that an announce brings."""
        return texts(self.announce(*arguments, **named))  # type: ignore[arg-type]  # forwarded


def texts(answer: Answer) -> list[str]:
    """The peers of an answer, IPv4 first and in order of addresses."""
    found = []
    for packed, size in ((answer.selection.peers4, 6), (answer.selection.peers6, 18)):
        ordered = sorted(packed[at : at + size] for at in range(0, len(packed), size))
        found += [f"{ip_address(peer[:-2])} {int.from_bytes(peer[-2:])}" for peer in ordered]
    return found


class Make(Protocol):
    """Makes an empty store."""

    def __call__(self, limits: Limits = ..., *, keep_downloads: bool = ...) -> Swarm:
        """Make one."""


@pytest.fixture(name="make", params=["memory", "native", "redis"], scope="module")
def make_fixture(request: pytest.FixtureRequest) -> Iterator[Make]:
    """What makes stores of each kind."""
    stores = []
    if request.param == "native":
        needs.native()
    url = request.getfixturevalue("redis").url if request.param == "redis" else ""

    def make(limits: Limits = _LIMITS, *, keep_downloads: bool = False) -> Swarm:
        store: SwarmStore
        if url:
            named = f"{url}?prefix=test-{next(_names)}"
            store = RedisSwarms(named, limits, keep_downloads=keep_downloads, sweep_seconds=0)
        elif request.param == "native":
            store = NativeSwarms(limits, is_open=True, keep_downloads=keep_downloads)
        else:
            store = MemorySwarms(limits, keep_downloads=keep_downloads)
        stores.append(store)
        return Swarm(store)

    yield make
    for store in stores:
        store.close()


def test_first_peer_is_alone_and_counted(make: Make) -> None:
    """Counts include the asker; the list of peers never does."""
    swarm = make()
    answer = swarm.announce(left=1)
    assert answer == Answer(Counts(0, 1, 0, 1), answer.selection)
    assert texts(answer) == []
    assert swarm.peers(left=1) == []
    assert swarm.peers("10.0.0.2") == ["10.0.0.1 1"]


def test_life_of_three_clients(make: Make) -> None:
    """Started, completed and stopped add up as clients expect."""
    swarm = make()
    steps = [
        (1, 1, Event.STARTED, (0, 1, 0)),
        (1, 0, Event.COMPLETED, (1, 0, 1)),
        (2, 1, Event.STARTED, (1, 1, 1)),
        (3, 1, Event.STARTED, (1, 2, 1)),
        (2, 1, Event.STOPPED, (1, 1, 1)),
        (3, 1, Event.STOPPED, (1, 0, 1)),
        (1, 0, Event.STOPPED, (0, 0, 1)),
    ]
    for port, left, event, expected in steps:
        assert swarm.announce(port=port, left=left, event=event).counts[:3] == expected
    assert swarm.swarms.totals() == SwarmTotals(0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("steps", "downloaded"),
    [
        ([(0, Event.COMPLETED)], 1),
        ([(1, Event.STARTED), (0, Event.COMPLETED)], 1),
        ([(1, Event.STARTED), (5, Event.COMPLETED)], 1),
        ([(1, Event.STARTED), (0, Event.COMPLETED), (0, Event.COMPLETED)], 1),
        ([(1, Event.STARTED), (0, Event.COMPLETED), (1, Event.NONE), (0, Event.COMPLETED)], 1),
        ([(0, Event.STARTED), (0, Event.COMPLETED)], 0),
        ([(1, Event.STARTED), (0, Event.NONE)], 0),
    ],
)
def test_downloads_are_counted_once_a_peer(
    make: Make, steps: list[tuple[int, Event]], downloaded: int
) -> None:
    """`completed` counts when somebody who wasn't a seed becomes one, and once for each peer."""
    swarm = make()
    for left, event in steps:
        counts = swarm.announce(left=left, event=event).counts
    assert counts.downloaded == downloaded


def test_completed_makes_a_seed_whatever_left_says(make: Make) -> None:
    """Some clients complete without knowing what is left."""
    assert make().announce(left=16384, event=Event.COMPLETED).counts == Counts(1, 0, 1, 0)


def test_leechers_get_seeds_first(make: Make) -> None:
    """A list that is too short for everybody has the seeds."""
    swarm = make()
    for port in range(1, 11):
        swarm.announce(port=port, left=port % 2)
    seeds = [f"10.0.0.1 {port}" for port in range(2, 11, 2)]
    assert sorted(swarm.peers("10.0.0.2", numwant=5)) == sorted(seeds)
    assert len(swarm.peers("10.0.0.2", numwant=8)) == 8
    assert len(swarm.peers("10.0.0.2", numwant=50)) == 10


@pytest.mark.parametrize(
    ("left", "event"), [(0, Event.NONE), (1, Event.COMPLETED), (1, Event.PAUSED)]
)
def test_who_needs_nothing_gets_leechers_only(make: Make, left: int, event: Event) -> None:
    """A seed has no use for seeds, nor has a partial seed."""
    swarm = make()
    for port in range(1, 5):
        swarm.announce(port=port, left=port % 2)
    peers = swarm.peers("10.0.0.2", left=left, event=event)
    assert sorted(peers) == ["10.0.0.1 1", "10.0.0.1 3"]


def test_partial_seeds_are_not_downloaders(make: Make) -> None:
    """BEP 21: a paused peer is incomplete but downloads nothing, until it resumes or leaves."""
    swarm = make()
    swarm.announce(port=1)
    assert swarm.announce(port=2, event=Event.PAUSED).counts == Counts(0, 2, 0, 1)
    assert swarm.announce(port=2, event=Event.PAUSED).counts == Counts(0, 2, 0, 1)
    assert swarm.announce(port=2).counts == Counts(0, 2, 0, 2)
    assert swarm.announce(port=2, event=Event.PAUSED).counts == Counts(0, 2, 0, 1)
    assert swarm.announce(port=2, event=Event.STOPPED).counts == Counts(0, 1, 0, 1)


@pytest.mark.parametrize("numwant", [0, 1, 2, 3, 4])
def test_numwant(make: Make, numwant: int) -> None:
    """Nobody gets more peers than asked for."""
    swarm = make()
    for port in (1, 2, 3):
        swarm.announce(port=port)
    assert len(swarm.peers("10.0.0.2", numwant=numwant)) == min(numwant, 3)


def test_peers_of_both_families(make: Make) -> None:
    """The asker's own family comes first, within each role; the other fills the list."""
    swarm = make()
    for address in ("10.0.0.1", "2001:db8::1"):
        swarm.announce(address, 1, left=0)
        swarm.announce(address, 2, left=1)
    assert swarm.peers("10.0.0.9", numwant=1) == ["10.0.0.1 1"]
    assert swarm.peers("2001:db8::9", numwant=1) == ["2001:db8::1 1"]
    assert swarm.peers("10.0.0.9", numwant=2) == ["10.0.0.1 1", "2001:db8::1 1"]
    assert swarm.peers("10.0.0.9", numwant=3) == ["10.0.0.1 1", "10.0.0.1 2", "2001:db8::1 1"]


def test_peer_ids_follow_their_peers(make: Make) -> None:
    """Ids come in the order of the addresses, for lists that aren't packed."""
    swarm = make()
    for number in range(1, 4):
        swarm.announce(port=number, peer_id=bytes([number]) * 20)
        swarm.announce("::1", port=number, peer_id=bytes([number]) * 20)
    assert swarm.announce("10.0.0.2").selection[2:] == (b"", b"")
    selection = swarm.announce("10.0.0.2", compact=False).selection
    for peers, ids, size in (
        (selection.peers4, selection.ids4, 6),
        (selection.peers6, selection.ids6, 18),
    ):
        assert ids[::20] == peers[size - 1 :: size]
        assert len(ids) == 60


def test_same_peer_id_from_another_address_is_another_peer(make: Make) -> None:
    """Nobody can replace or remove somebody else by copying a peer id."""
    swarm = make()
    swarm.announce("10.0.0.1", 1)
    assert swarm.announce("10.0.0.2", 1).counts.incomplete == 2
    assert swarm.announce("10.0.0.3", 1, event=Event.STOPPED).counts.incomplete == 2


def test_choice_is_fair(make: Make) -> None:
    """Every peer is as likely as every other to be in a list that is too short for all."""
    swarm = make(Limits(address_ports=100))
    for port in range(1, 41):
        swarm.announce(port=port)
    chosen = Counter(
        itertools.chain.from_iterable(swarm.peers("10.0.0.2", numwant=10) for _ in range(2000))
    )
    assert len(chosen) == 40
    # 500 are expected of each, with a deviation of 19.
    assert all(380 < count < 620 for count in chosen.values())


def test_choice_without_the_asker(make: Make) -> None:
    """Wherever the asker stands among the others, it gets all of them, or each as likely."""
    swarm = make(Limits(address_ports=100))
    ports = range(1, 9)
    for port in ports:
        swarm.announce(port=port)
    for port in ports:
        others = [f"10.0.0.1 {other}" for other in ports if other != port]
        assert swarm.peers(port=port) == others
        assert swarm.peers(port=port, numwant=7) == others
        chosen: Counter[str] = Counter()
        for _ in range(700):
            peers = swarm.peers(port=port, numwant=3)
            assert len(set(peers)) == 3
            chosen.update(peers)
        # 300 are expected of each, with a deviation of 13.
        assert sorted(chosen) == others
        assert all(200 < count < 400 for count in chosen.values())
    assert swarm.kept == 8


def test_an_announce_takes_the_place_of_the_last(make: Make) -> None:
    """Time, id and role are those of the last announce."""
    swarm = make(Limits(leecher_timeout=100))
    swarm.announce(port=1, peer_id=b"a" * 20)
    swarm.announce(port=1, peer_id=b"b" * 20, now=NOW + 50, event=Event.PAUSED)
    answer = swarm.announce("10.0.0.2", compact=False, now=NOW + 50)
    assert (answer.selection.ids4, answer.counts) == (b"b" * 20, Counts(0, 2, 0, 1))
    assert swarm.swarms.expire(NOW + 150) == 0
    assert swarm.swarms.expire(NOW + 151) == 2
    assert swarm.announce(port=1).counts == Counts(0, 1, 0, 1)


def test_one_address_holds_few_ports(make: Make) -> None:
    """What a single address may fill is bounded; its longest unheard peer makes room."""
    swarm = make(Limits(address_ports=3))
    for port, now in ((1, 30), (2, 10), (3, 20), (4, 40)):
        swarm.announce(port=port, now=NOW + now)
    swarm.announce("10.0.0.2", 9)
    assert swarm.peers("10.0.0.3") == ["10.0.0.1 1", "10.0.0.1 3", "10.0.0.1 4", "10.0.0.2 9"]
    assert swarm.kept == 5


def test_one_ipv6_network_holds_few_peers(make: Make) -> None:
    """A /64 is one household, not 2^64 peers."""
    swarm = make(Limits(address_ports=2))
    for host in range(1, 5):
        swarm.announce(f"2001:db8::{host}", 1, now=NOW + host, event=Event.PAUSED)
    swarm.announce("2001:db8:0:1::1", 1)
    answer = swarm.announce("10.0.0.1", 1)
    assert texts(answer) == ["2001:db8::3 1", "2001:db8::4 1", "2001:db8:0:1::1 1"]
    assert answer.counts == Counts(0, 4, 0, 2)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [(Limits(swarm_peers=2), 2), (Limits(peers=2), 2), (Limits(peers=3, swarm_peers=3), 3)],
)
def test_full_swarms_answer_but_do_not_keep(make: Make, limits: Limits, kept: int) -> None:
    """Beyond a limit one is told of peers, and who is in stays in."""
    swarm = make(limits)
    for port in (1, 2, 3):
        answer = swarm.announce(port=port)
    assert len(texts(answer)) == 2
    assert answer.counts.incomplete == swarm.kept == kept
    assert swarm.announce(port=1, left=0).counts == Counts(1, kept - 1, 0, kept - 1)


def test_number_of_swarms_is_limited(make: Make) -> None:
    """Infohashes beyond the limit have no memory spent on them."""
    swarm = make(Limits(swarms=1))
    swarm.announce()
    answer = swarm.announce(info_hash=OTHER)
    assert (answer.counts, texts(answer)) == (Counts(0, 0, 0, 0), [])
    assert swarm.swarms.totals().swarms == 1


def test_leaving_nobody_allocates_nothing(make: Make) -> None:
    """A peer that stops without having been here leaves no trace."""
    swarm = make()
    assert swarm.announce(event=Event.STOPPED).counts == Counts(0, 0, 0, 0)
    assert swarm.swarms.totals().swarms == 0


@pytest.mark.parametrize(("keep", "downloaded"), [(True, 1), (False, 0)])
def test_downloads_of_an_empty_swarm(make: Make, keep: bool, downloaded: int) -> None:
    """A closed tracker remembers downloads of swarms that emptied; an open one can't."""
    swarm = make(keep_downloads=keep)
    swarm.announce(left=0, event=Event.COMPLETED)
    swarm.announce(left=0, event=Event.STOPPED)
    assert swarm.swarms.counts([HASH]) == [Counts(0, 0, downloaded, 0)]


@pytest.mark.parametrize(
    ("after", "left"), [(99, 2), (100, 2), (101, 1), (200, 1), (201, 0), (10_000, 0)]
)
def test_silent_peers_are_forgotten(make: Make, after: int, left: int) -> None:
    """Leechers are forgotten sooner than seeds, as they were told to come back sooner."""
    swarm = make(Limits(leecher_timeout=100, seed_timeout=200))
    swarm.announce("10.0.0.1", left=1, event=Event.PAUSED)
    swarm.announce("::1", left=0)
    assert swarm.swarms.expire(NOW + after) == 2 - left
    assert swarm.kept == left
    assert swarm.swarms.counts([HASH]) == [Counts(int(left > 0), int(left > 1), 0, 0)]
    assert swarm.swarms.totals().swarms == int(left > 0)


@pytest.mark.parametrize(
    ("unwanted", "totals"),
    [(ip_address("10.0.0.1"), [0, 0, 1, 0]), (ip_address("2001:db8::1"), [1, 0, 0, 0])],
)
def test_unwanted_addresses_are_forgotten(
    make: Make, unwanted: IPv4Address | IPv6Address, totals: list[int]
) -> None:
    """All ports of an address go at once, in time or not."""
    swarm = make()
    if unwanted.version == 6:
        swarm.announce("10.0.0.1", left=0)
    else:
        swarm.announce("10.0.0.2", left=1)
    for port in (1, 2):
        swarm.announce(str(unwanted), port, left=port - 1, info_hash=OTHER)
    blocks = BlockList(networks=[ip_network(str(unwanted))])
    if isinstance(swarm.swarms, NativeSwarms):
        swarm.swarms.block(blocks)
    assert swarm.swarms.expire(NOW, blocks.has_address) == 2
    assert swarm.totals == totals
    assert swarm.kept == 1


@pytest.mark.parametrize(("took", "pause"), [(0.0, 0.0), (0.001, 0.004), (0.006, 0.02)])
def test_pause_after_a_part_of_a_sweep(
    took: float, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is four times as long as the part was, but not longer than 20 ms."""
    pauses: list[float] = []
    monkeypatch.setattr(swarmstore, "sleep", pauses.append)
    swarmstore.give_way(took)
    assert pauses == [pause]


def test_turns_in_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the parts of a sweep there is a pause, in which announces have the lock."""
    swarms = MemorySwarms(Limits(seed_timeout=10), keep_downloads=False, rng=Random(1))  # noqa: S311
    address = b"\x0a\0\0\1"

    def announce(info_hash: bytes, now: int) -> None:
        swarms.announce(AnnounceRequest(info_hash, b"p" * 20, 1, 0), address, 0, now)

    for number in range(250):
        announce(number.to_bytes(20), NOW)
    left: list[int] = []

    def pause(took: float) -> None:
        assert took > 0
        announce(b"n" * 20, NOW + 11)
        left.append(swarms.totals().swarms)

    monkeypatch.setattr(swarmstore, "give_way", pause)
    assert swarms.expire(NOW + 11) == 250
    assert left == [151, 51]


def test_totals_follow_what_makes_room(make: Make) -> None:
    """A port that makes room for another isn't counted any more, a silent peer neither."""
    swarm = make(Limits(address_ports=1, seed_timeout=10))
    for port in (1, 2, 3):
        swarm.announce("::1", port, left=0)
    assert swarm.totals == [0, 1, 0, 0]
    swarm.swarms.expire(NOW + 11)
    assert swarm.totals == [0, 0, 0, 0]


def test_other_limits(make: Make) -> None:
    """New limits hold for who comes; who is there stays."""
    swarm = make()
    for port in (1, 2):
        swarm.announce("10.0.0.1", port)
    swarm.swarms.limit(Limits(swarm_peers=1))
    swarm.announce("10.0.0.2")
    assert swarm.kept == 2


def test_sample_joins_the_swarms_of_a_hybrid(make: Make) -> None:
    """A client that announces both infohashes is one peer; a seed in either is a seed."""
    swarm = make()
    for info_hash in (HASH, OTHER):
        swarm.announce("10.0.0.1", 1, left=0, info_hash=info_hash)
    swarm.announce("10.0.0.2", 2, left=1, info_hash=HASH)
    swarm.announce("10.0.0.2", 2, left=0, event=Event.COMPLETED, info_hash=OTHER)
    swarm.announce("::1", 3, left=1, info_hash=OTHER)
    counts, peers = swarm.swarms.sample([HASH, OTHER], 50)
    assert counts == Counts(2, 1, 1, 1)
    assert peers == [
        b"\x0a\0\0\1\0\1",
        b"\x0a\0\0\2\0\2",
        bytes(15) + b"\1\0\3",
    ]
    assert len(swarm.swarms.sample([HASH, OTHER], 1)[1]) == 1
    assert swarm.swarms.sample([PEER], 50) == (Counts(0, 0, 0, 0), [])


ADDRESSES = st.sampled_from(
    ["10.0.0.1", "10.0.0.2", "1.1.1.1", "255.255.255.255", "::", "::1", "2001:db8::1"]
)
STEPS = st.lists(
    st.tuples(ADDRESSES, st.integers(1, 3), st.integers(0, 1), st.sampled_from(Event)),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_packed_swarm_equals_a_dictionary(
    make: Make, steps: list[tuple[str, int, int, Event]]
) -> None:
    """Whatever is announced, the packed records say what a plain dictionary would."""
    swarm = make()
    model: dict[tuple[str, int], tuple[bool, bool]] = {}
    for address, port, left, event in steps:
        answer = swarm.announce(address, port, left=left, event=event, numwant=100)
        model.pop((address, port), None)
        seed = left == 0 or event is Event.COMPLETED
        visible = {
            f"{other} {number}"
            for (other, number), (is_seed, _) in model.items()
            if not is_seed or not (seed or event is Event.PAUSED)
        }
        if event is not Event.STOPPED:
            model[address, port] = (seed, event is Event.PAUSED and not seed)
            assert set(texts(answer)) == visible
        else:
            assert texts(answer) == []
        seeds = sum(is_seed for is_seed, _ in model.values())
        partial = sum(is_partial for _, is_partial in model.values())
        incomplete = len(model) - seeds
        counts = answer.counts
        assert (counts.complete, counts.incomplete) == (seeds, incomplete)
        assert counts.downloaders == incomplete - partial
        assert swarm.kept == len(model)
        assert swarm.totals == [
            sum((is_seed, ":" in other) == place for (other, _), (is_seed, _) in model.items())
            for place in ((True, False), (True, True), (False, False), (False, True))
        ]
