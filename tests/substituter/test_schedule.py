# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.schedule."""

from __future__ import annotations

from random import Random

import pytest

from narswarm.plans import AT_ONCE, FAST, FAST_AT_ONCE, LARGE
from substituter.race import Policy, Way
from substituter.schedule import (
    HTTP_AT_ONCE,
    SWARM_AT_ONCE,
    TINY,
    Entry,
    Waiting,
    choose,
    order,
    preferred,
)

BOTH = frozenset(Way)
HTTP = frozenset({Way.HTTP})
SWARM = frozenset({Way.SWARM})
ROOM = 1 << 40


def dice(seed: int) -> Random:
    """Chance that is the same each time."""
    return Random(seed)  # noqa: S311 -- nobody is to be surprised


def entry(size: int, ways: frozenset[Way] = BOTH, number: int = 0) -> Entry:
    """An item to be fetched."""
    return Entry(f"/gnu/store/{number}-item", size, ways)


@pytest.mark.parametrize(
    ("policy", "size", "way"),
    [
        (Policy.RACE, TINY, Way.HTTP),
        (Policy.RACE, TINY + 1, Way.SWARM),
        (Policy.HTTP_FIRST, LARGE, Way.HTTP),
        (Policy.SWARM_FIRST, 1, Way.SWARM),
        (Policy.SWARM_ONLY, 1, Way.SWARM),
    ],
)
def test_small_items_are_a_servers(policy: Policy, size: int, way: Way) -> None:
    """The policy decides, and for a race the size."""
    assert preferred(policy, size) is way


def test_items_come_after_what_they_refer_to() -> None:
    """What has no reference left that is missing is taken by its name, not by its hash."""
    items = {
        "/s/1-top": ["/s/2-b", "/s/3-a", "/s/1-top", "/s/9-here"],
        "/s/2-b": ["/s/4-z"],
        "/s/3-a": [],
        "/s/4-z": [],
        "/s/0-c": [],
    }
    assert order(items) == ["/s/3-a", "/s/0-c", "/s/4-z", "/s/2-b", "/s/1-top"]


def test_a_circle_is_not_lost() -> None:
    """No good store has one; a bad narinfo must not lose the others."""
    assert order({"/s/1-a": ["/s/2-b"], "/s/2-b": ["/s/1-a"], "/s/3-c": []}) == [
        "/s/3-c",
        "/s/1-a",
        "/s/2-b",
    ]


def waiting(*entries: Entry) -> Waiting:
    """Items that are to be fetched."""
    made = Waiting(Policy.RACE)
    for each in entries:
        made.add(each)
    return made


def test_each_way_takes_its_own_in_order() -> None:
    """Large ones aren't in the way of small ones, nor the other way round."""
    items = [entry(TINY, number=1), entry(TINY + 1, number=2), entry(TINY, number=3)]
    made = waiting(*items)
    made.sort([items[2].path, items[1].path, items[0].path])
    assert made.of(Way.HTTP) == [items[2], items[0]]
    assert made.of(Way.SWARM) == [items[1]]
    assert made.pop(items[2].path) == items[2]
    assert made.pop(items[2].path) is None
    assert made.of(Way.HTTP) == [items[0]]


def test_what_one_way_has_not_is_the_others_in_its_order() -> None:
    """An item that only one way is left for is that one's, whatever its size."""
    items = [entry(LARGE, HTTP, 1), entry(TINY, SWARM, 2), entry(TINY, number=3)]
    made = waiting()
    made.sort([item.path for item in items])
    for item in reversed(items):
        made.add(item)
    assert made.of(Way.HTTP) == [items[0], items[2]]
    assert made.of(Way.SWARM) == [items[1]]


@pytest.mark.parametrize(("way", "most"), [(Way.HTTP, HTTP_AT_ONCE), (Way.SWARM, SWARM_AT_ONCE)])
def test_each_way_has_its_limit(way: Way, most: int) -> None:
    """Servers are asked by a few connections."""
    wanted = entry(1, frozenset({way}), 100)
    running = {entry(1, number=number) for number in range(most)}
    assert choose([wanted], way, running, ROOM) is None
    running.pop()
    assert choose([wanted], way, running, ROOM) == wanted


@pytest.mark.parametrize(
    ("rate", "most"),
    [(None, AT_ONCE), (FAST - 1.0, AT_ONCE), (float(FAST), FAST_AT_ONCE)],
)
def test_few_large_ones_at_a_time(rate: float | None, most: int) -> None:
    """The next ones wait, smaller ones behind them don't; more run where bytes come fast."""
    running = {entry(LARGE, number=number) for number in range(most)}
    large, smaller = entry(LARGE, number=98), entry(LARGE - 1, number=99)
    assert choose([large, smaller], Way.SWARM, running, ROOM, rate) == smaller
    running.pop()
    assert choose([large, smaller], Way.SWARM, running, ROOM, rate) == large


@pytest.mark.parametrize(("room", "fits"), [(999, False), (1000, True), (1001, True)])
def test_what_does_not_fit_waits(room: int, *, fits: bool) -> None:
    """Items take disk until they are asked for."""
    wanted = entry(1000)
    assert choose([wanted], Way.HTTP, set(), room) == (wanted if fits else None)


def test_a_crowd_spreads() -> None:
    """The first is taken in turn, and the next one beside it anywhere: large ones of the swarm."""
    items = [entry(LARGE, number=number) for number in range(100)]
    assert choose(items, Way.SWARM, set(), ROOM, None, dice(1)) == items[0]
    chosen = {
        choose(items[1:], Way.SWARM, {items[0]}, ROOM, None, dice(seed)) for seed in range(20)
    }
    assert len(chosen) > 10
    small = entry(LARGE - 1, number=100)
    found = choose([small, *items[1:]], Way.SWARM, {items[0]}, ROOM, None, dice(1))
    assert found == small


def test_what_is_taken_out_of_turn_leaves_room() -> None:
    """What comes next must not have to wait for what comes last."""
    items = [entry(LARGE, number=1), *(entry(2 * LARGE, number=number) for number in range(2, 9))]
    running, room = {entry(LARGE, number=0)}, 3 * LARGE
    assert choose(items, Way.SWARM, running, room, None, dice(1)) == items[0]
