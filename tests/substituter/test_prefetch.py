# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.prefetch: sources that do as they are told, real threads."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from narswarm import narinfo
from narswarm.errors import NetworkError
from narswarm.narinfo import Narinfo
from narswarm.plans import FAST, FAST_AT_ONCE, LARGE
from substituter import prefetch
from substituter.ahead import Ahead
from substituter.lane import NarSource, Runner
from substituter.prefetch import Prefetcher
from substituter.race import LEAST_RATE, Policy, Way
from substituter.report import Transfer
from substituter.schedule import TINY
from substituter.spool import Spool
from tests.substituter.conftest import Item

Make = Callable[..., Item]
PATIENCE = 120.0


class Fake:
    """A source that gives what it is told, when it is told."""

    def __init__(self, nar: bytes, *, found: bool = True) -> None:
        self.key = "fake"
        self.allowed = threading.Event()
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.dropped = threading.Event()
        self.first = b""
        self.peers = 2
        self._nar = nar
        self._found = found

    @contextlib.contextmanager
    def nar(self, runner: Runner) -> Iterator[Iterator[bytes]]:
        """Give the beginning, wait, and give the rest."""
        runner.on_drop(self.dropped.set)
        if self._found:
            runner.source(Transfer("http://host/nar", len(self._nar), lambda: 0, lambda: "host"))
        try:
            yield self._chunks()
        finally:
            self.ended.set()

    def _chunks(self) -> Iterator[bytes]:
        if self.first:
            yield self.first
        self.begun.set()
        assert self.allowed.wait(PATIENCE)
        if self.dropped.is_set():
            raise NetworkError(self.key, "dropped")
        if not self._found:
            raise NetworkError(self.key, "has it not")
        yield self._nar[len(self.first) :]


class Lab:
    """A prefetcher whose sources are fakes, and what it asked for."""

    def __init__(self, directory: Path, limit: int = 1 << 20, policy: Policy = Policy.RACE) -> None:
        self.asked: list[tuple[str, Way]] = []
        self.sources: dict[tuple[str, Way], list[NarSource]] = {}
        self.busy: list[bool] = []
        self.ways: frozenset[Way] = frozenset(Way)
        self.existing: set[str] = set()
        self.spool = Spool(directory, limit)
        self.rates: dict[Way, float] = {}
        self.prefetcher = Prefetcher(
            self.spool,
            policy,
            self._find,
            lambda _: self.ways,
            self.existing.__contains__,
            self.rates,
        )
        self._news = threading.Condition()

    def _find(self, narinfo: Narinfo, way: Way, busy: Callable[[], bool]) -> Iterator[NarSource]:
        self.busy.append(busy())
        with self._news:
            self.asked.append((narinfo.store_path, way))
            self._news.notify_all()
        return iter(self.sources.get((narinfo.store_path, way), []))

    def source(self, item: Item, way: Way = Way.HTTP, *, found: bool = True) -> Fake:
        """A further source of an item."""
        fake = Fake(item.nar, found=found)
        self.sources.setdefault((item.path, way), []).append(fake)
        return fake

    def add(self, *items: Item) -> None:
        """Have items fetched."""
        self.prefetcher.add({item.path: parsed(item) for item in items})

    def wait(self, count: int) -> list[tuple[str, Way]]:
        """What was asked for, once it is so much."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.asked) >= count, PATIENCE)
            return list(self.asked)


class Race:
    """What a source sees of a race."""

    def __init__(self) -> None:
        self.dropped = False
        self.alone = False
        self.shown: list[str] = []

    def source(self, transfer: Transfer) -> None:
        """Note it."""
        url, total, done, label = transfer
        self.shown.append(f"{url} {total} {done()} {label()}")

    def on_drop(self, callback: Callable[[], None]) -> None:
        """Nobody drops it."""


def parsed(item: Item) -> Narinfo:
    """The narinfo of an item."""
    return narinfo.parse(item.narinfo)


def taken(lab: Lab, item: Item) -> Ahead:
    """What there is of an item."""
    ahead = lab.prefetcher.take(parsed(item))
    assert ahead is not None
    return ahead


def followed(ahead: Ahead) -> bytes:
    """All of an item, once it is there."""
    return b"".join(ahead.file.follow(0.01))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A prefetcher."""
    made = Lab(tmp_path / "spool")
    yield made
    for sources in made.sources.values():
        for source in sources:
            assert isinstance(source, Fake)
            source.allowed.set()
    made.prefetcher.close()


def test_an_item_is_there_before_it_is_asked_for(lab: Lab, make_item: Make) -> None:
    """What was fetched is given once, with what the user sees, and its room is free afterwards."""
    item = make_item("a")
    source = lab.source(item)
    lab.add(item)
    assert lab.wait(1) == [(item.path, Way.HTTP)]
    ahead = taken(lab, item)
    source.allowed.set()
    assert followed(ahead) == item.nar
    assert ahead.found is not None
    assert ahead.found.url == "http://host/nar"
    assert ahead.used is source
    lab.prefetcher.give_back(ahead)
    assert source.ended.wait(PATIENCE)
    assert lab.prefetcher.take(parsed(item)) is None


def test_items_come_in_the_order_in_which_they_are_asked_for(lab: Lab, make_item: Make) -> None:
    """One that nothing refers to may wait for those that come first."""
    low = make_item("z-low")
    top = make_item("a-top", references=(low.path,))
    lab.add(top, low)
    assert lab.wait(2)[0] == (low.path, Way.HTTP)


def test_what_a_way_has_not_is_the_others(lab: Lab, make_item: Make) -> None:
    """A server without the file isn't asked again; the swarm is."""
    item = make_item("a")
    lab.source(item, found=False).allowed.set()
    lab.source(item, Way.SWARM).allowed.set()
    lab.add(item)
    assert lab.wait(2) == [(item.path, Way.HTTP), (item.path, Way.SWARM)]
    ahead = taken(lab, item)
    assert followed(ahead) == item.nar
    lab.prefetcher.give_back(ahead)


def test_a_second_source_is_tried_as_long_as_nothing_came(lab: Lab, make_item: Make) -> None:
    """What a file has from one source isn't continued by another."""
    item = make_item("a")
    lab.ways = frozenset({Way.HTTP})
    lab.source(item, found=False).allowed.set()
    good = lab.source(item)
    good.allowed.set()
    lab.add(item)
    lab.wait(1)
    ahead = taken(lab, item)
    assert followed(ahead) == item.nar
    assert ahead.used is good
    lab.prefetcher.give_back(ahead)


@pytest.mark.parametrize("reason", ["store", "asked"])
def test_nothing_is_fetched_in_vain(lab: Lab, make_item: Make, reason: str) -> None:
    """Not what is in the store already, nor what was asked for before."""
    item, other = make_item("a"), make_item("b")
    if reason == "store":
        lab.existing.add(item.path)
    else:
        assert lab.prefetcher.take(parsed(item)) is None
    lab.source(other)
    lab.add(item, other)
    assert lab.wait(1) == [(other.path, Way.HTTP)]


def test_what_waits_is_left_to_whoever_asks(lab: Lab, make_item: Make) -> None:
    """An item that isn't begun is taken out of the plan."""
    lab.spool.limit = 0
    item = make_item("a")
    lab.add(item)
    assert lab.prefetcher.take(parsed(item)) is None
    lab.spool.limit = 1 << 20
    other = make_item("b")
    lab.add(other)
    assert lab.wait(1)[0] == (other.path, Way.HTTP)


def test_another_narinfo_than_before_has_another_nar(lab: Lab, make_item: Make) -> None:
    """What counts is the narinfo of the moment when the item is asked for."""
    item = make_item("a")
    source = lab.source(item)
    lab.add(item)
    assert source.begun.wait(PATIENCE)
    changed = dataclasses.replace(parsed(item), nar_hash=bytes(32))
    assert lab.prefetcher.take(changed) is None
    assert source.dropped.wait(PATIENCE)


def test_the_race_reads_what_is_on_its_way(lab: Lab, make_item: Make) -> None:
    """It says where it comes from, and gives what has come before the rest has."""
    item = make_item("a")
    source = lab.source(item)
    source.first = item.nar[:10]
    lab.add(item)
    assert source.begun.wait(PATIENCE)
    ahead, race = taken(lab, item), Race()
    with lab.prefetcher.source(ahead).nar(race) as chunks:
        assert next(chunks) == item.nar[:10]
        source.allowed.set()
        assert b"".join(chunks) == item.nar[10:]
    assert race.shown == [f"http://host/nar {len(item.nar)} 0 host"]
    lab.prefetcher.give_back(ahead)
    with (
        pytest.raises(NetworkError, match=f"^{item.path}: is not fetched any more$"),
        lab.prefetcher.source(ahead).nar(race),
    ):
        pass


def test_who_loses_the_race_is_dropped(lab: Lab, make_item: Make) -> None:
    """No further byte is fetched of an item that came by the other way."""
    item = make_item("a")
    source = lab.source(item)
    source.first = item.nar[:10]
    lab.add(item)
    assert source.begun.wait(PATIENCE)
    ahead, race = taken(lab, item), Race()
    with lab.prefetcher.source(ahead).nar(race) as chunks:
        next(chunks)
        race.dropped = True
        with pytest.raises(NetworkError, match=f"^{item.path}: is not wanted any more$"):
            next(chunks)
    assert source.dropped.wait(PATIENCE)
    lab.prefetcher.give_back(ahead)


def test_the_infohash_is_that_of_its_torrent(lab: Lab, make_item: Make) -> None:
    """So that a torrent which lied is refused."""
    item = make_item("a", bytes(TINY))
    source = lab.source(item, Way.SWARM)
    source.infohash = "ab" * 32  # type: ignore[attr-defined]
    lab.add(item)
    assert source.begun.wait(PATIENCE)
    ahead = taken(lab, item)
    assert lab.prefetcher.source(ahead).infohash == "ab" * 32
    lab.prefetcher.give_back(ahead)


def test_an_item_is_begun_out_of_turn(lab: Lab, make_item: Make) -> None:
    """With more of a plan beside it, one that the swarm should have is fetched like the others."""
    item, tiny = make_item("a", bytes(TINY)), make_item("tiny")
    source = lab.source(item, Way.SWARM)
    source.allowed.set()
    assert lab.prefetcher.take(parsed(tiny), begin=True) is None
    ahead = lab.prefetcher.take(parsed(item), begin=True)
    assert ahead is not None
    assert followed(ahead) == item.nar
    assert lab.asked == [(item.path, Way.SWARM)]
    lab.prefetcher.give_back(ahead)


@pytest.mark.parametrize("why", ["server", "room"])
def test_an_item_is_not_begun_out_of_turn(lab: Lab, make_item: Make, why: str) -> None:
    """One that only servers have, or for which there is no room, is raced for."""
    if why == "server":
        lab.ways = frozenset({Way.HTTP})
    else:
        lab.spool.limit = 0
    assert lab.prefetcher.take(parsed(make_item("a", bytes(TINY))), begin=True) is None
    assert lab.asked == []


def test_the_end_drops_everything(tmp_path: Path, make_item: Make) -> None:
    """Room is given back, and what runs is told."""
    lab = Lab(tmp_path / "spool")
    item, other = make_item("a"), make_item("b")
    ready, source = lab.source(other), lab.source(item)
    ready.allowed.set()
    lab.add(item, other)
    assert source.begun.wait(PATIENCE)
    assert ready.ended.wait(PATIENCE)
    lab.prefetcher.close()
    assert source.dropped.is_set()
    source.allowed.set()
    lab.add(make_item("c"))
    assert lab.prefetcher.take(parsed(item)) is None or source.ended.wait(PATIENCE)


class Steady:
    """The pace of a way that doesn't change."""

    rate: float | None = None
    last = math.inf

    def __init__(self, _: Callable[[], int]) -> None:
        pass

    def moves(self) -> bool:
        """Something comes."""
        return True

    def look(self, _: float) -> tuple[float, float | None]:
        """Always the same."""
        return self.last, self.rate


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> type[Steady]:
    """What paces are, until a test says something else."""
    monkeypatch.setattr(prefetch, "Pace", Steady)
    monkeypatch.setattr(Steady, "rate", None)
    monkeypatch.setattr(Steady, "last", math.inf)
    monkeypatch.setattr(prefetch, "MOVES", 0.0)
    monkeypatch.setattr(prefetch, "_SETTLED", 0.0)
    monkeypatch.setattr(prefetch, "_AGAIN", 0.05)
    return Steady


@contextlib.contextmanager
def large_ones(
    directory: Path, make_item: Make, policy: Policy = Policy.RACE, *, found: bool = True
) -> Iterator[tuple[Lab, list[Item]]]:
    """More large items than the swarm fetches at a time, none of which comes by itself."""
    lab = Lab(directory, 64 << 20, policy)
    items = [make_item(f"{number}", bytes([number]) * LARGE) for number in range(FAST_AT_ONCE + 1)]
    sources = [lab.source(item, Way.SWARM, found=found) for item in items]
    try:
        yield lab, items
    finally:
        for source in sources:
            source.allowed.set()
        lab.prefetcher.close()


@pytest.mark.parametrize("why", ["silent", "slow"])
def test_servers_help_a_swarm(
    tmp_path: Path, make_item: Make, steady: type[Steady], why: str
) -> None:
    """One of which nobody is found, or much slower than they: they fetch what it hasn't begun."""
    with large_ones(tmp_path, make_item, found=why == "slow") as (lab, items):
        if why == "silent":
            steady.last = 0.0
        else:
            steady.rate = 1e6
            lab.rates[Way.HTTP] = 4e6 + 1
        lab.add(*items)
        asked = lab.wait(3)
        assert Way.HTTP in {way for _, way in asked}
        assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("why", ["found", "moves", "fast", "policy", "only"])
def test_servers_leave_a_swarm_alone(
    tmp_path: Path, make_item: Make, steady: type[Steady], why: str
) -> None:
    """One that brings something, as far as is known not less than they; or if nobody wants that."""
    policy = Policy.SWARM_FIRST if why == "policy" else Policy.RACE
    with large_ones(tmp_path, make_item, policy, found=why == "found") as (lab, items):
        if why == "fast":
            steady.rate = 1e6
            lab.rates[Way.HTTP] = 4e6
        if why in ("policy", "only"):
            steady.last = 0.0
        if why == "only":
            lab.ways = frozenset({Way.SWARM})
        tiny = make_item("tiny")
        lab.add(*items)
        asked = lab.wait(2)
        if why == "found":
            for each in asked[:2]:
                source = lab.sources[each][0]
                assert isinstance(source, Fake)
                assert source.begun.wait(PATIENCE)
            steady.last = 0.0
        if why != "only":
            server = lab.source(tiny)
            lab.source(tiny, Way.SWARM)
            lab.add(tiny)
            lab.wait(3)
            server.allowed.set()
        beside = {path for path, way in lab.asked if way is Way.HTTP} - {tiny.path}
        assert not beside


@pytest.mark.parametrize(
    ("rate", "known", "helps"),
    [
        (FAST - 1.0, None, True),
        (float(FAST), None, False),
        (1e6, 2e6, False),
        (1e6, 2e6 + 1, True),
    ],
)
def test_one_peer_is_no_crowd(
    tmp_path: Path,
    make_item: Make,
    steady: type[Steady],
    rate: float,
    known: float | None,
    *,
    helps: bool,
) -> None:
    """Beside one that isn't fast a server shows with one item what it brings."""
    with large_ones(tmp_path, make_item) as (lab, items):
        for (_, way), sources in lab.sources.items():
            for source in sources:
                assert isinstance(source, Fake)
                assert way is Way.SWARM
                source.peers = 1
        lab.add(*items[:1])
        lab.wait(1)
        steady.rate = rate
        if known is not None:
            lab.rates[Way.HTTP] = known
        lab.source(items[1]).allowed.set()
        ahead = lab.prefetcher.take(parsed(items[1]), begin=True)
        assert ahead is not None
        assert ahead.way is (Way.HTTP if helps else Way.SWARM)
        lab.prefetcher.give_back(ahead)


def test_a_slow_swarm_gets_nothing_more(
    tmp_path: Path, make_item: Make, steady: type[Steady]
) -> None:
    """What it has begun it may finish; all else is the servers'."""
    with large_ones(tmp_path, make_item) as (lab, items):
        lab.add(*items[:1])
        lab.wait(1)
        steady.rate, lab.rates[Way.HTTP] = 1e6, 1e9
        held = [lab.source(item) for item in items]
        lab.add(*items[1:])
        asked = lab.wait(1 + FAST_AT_ONCE // 2)
        assert [way for _, way in asked] == [Way.SWARM] + [Way.HTTP] * (len(asked) - 1)
        for source in held:
            source.allowed.set()


def test_servers_alone_give_more_at_a_time(
    tmp_path: Path, make_item: Make, steady: type[Steady]
) -> None:
    """A connection may be slow on a fast line, and nobody else needs that."""
    assert steady.rate is None
    with large_ones(tmp_path, make_item) as (lab, items):
        lab.ways = frozenset({Way.HTTP})
        held = [lab.source(item) for item in items]
        lab.add(*items)
        assert [way for _, way in lab.wait(FAST_AT_ONCE)] == [Way.HTTP] * FAST_AT_ONCE
        for source in held:
            source.allowed.set()


def test_an_item_out_of_turn_is_a_server_s_while_swarms_are_slow(
    tmp_path: Path, make_item: Make, steady: type[Steady]
) -> None:
    """Nobody waits for a swarm in which nobody is found."""
    with large_ones(tmp_path, make_item, found=False) as (lab, items):
        lab.add(*items[:2])
        lab.wait(2)
        steady.last = 0.0
        source = lab.source(items[2])
        source.allowed.set()
        ahead = lab.prefetcher.take(parsed(items[2]), begin=True)
        assert ahead is not None
        assert ahead.way is Way.HTTP
        assert followed(ahead) == items[2].nar
        lab.prefetcher.give_back(ahead)


@pytest.mark.parametrize(
    ("size", "pace", "before", "after"),
    [
        (1, LEAST_RATE, None, None),
        (1, LEAST_RATE + 1, None, LEAST_RATE + 1),
        (1, 2e9, 1e9, 2e9),
        (1, 1e9, 2e9, 2e9),
        (256 << 10, 1e12, 2e12, 1e12),
        (256 << 10, None, 1e12, 0.0),
    ],
)
def test_what_servers_bring_is_learned(
    tmp_path: Path,
    make_item: Make,
    steady: type[Steady],
    size: int,
    pace: float | None,
    before: float | None,
    after: float | None,
) -> None:
    """Small items say how fast servers are at least, larger ones how fast they are."""
    before_it, lab = set(threading.enumerate()), Lab(tmp_path)
    lab.ways = frozenset({Way.HTTP})
    steady.rate = pace
    if before is not None:
        lab.rates[Way.HTTP] = before
    item = make_item("a", bytes(size))
    lab.source(item).allowed.set()
    lab.add(item)
    lab.wait(1)
    ahead = taken(lab, item)
    assert followed(ahead) == item.nar
    lab.prefetcher.give_back(ahead)
    lab.prefetcher.close()
    for thread in set(threading.enumerate()) - before_it:
        thread.join(PATIENCE)
    found = lab.rates.get(Way.HTTP)
    assert (found == after) if after != 0.0 else 0 < (found or 0) < 1e12
