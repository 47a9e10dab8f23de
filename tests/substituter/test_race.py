# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.race, by simulated clocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pytest

from narswarm.pace import Meter
from substituter import race
from substituter.race import Decision, Policy, Standing, State, Way, decide, first

TICK = 0.02
SMALL = 300_000
LARGE = 100_000_000
MB = 1_000_000


class Simulated(NamedTuple):
    """How a way behaves: seconds until somebody is found and until the first byte, bytes a second.

    It fails when it has delivered `fails_at` bytes, falls silent at `silent_at`.
    """

    found: float
    first_byte: float
    rate: float
    fails_at: float = float("inf")
    silent_at: float = float("inf")


class Outcome(NamedTuple):
    """What came of it."""

    seconds: float
    moved: dict[Way, int]
    log: list[str]


def run(
    size: int,
    *,
    policy: Policy = Policy.RACE,
    expected: Mapping[Way, float] | None = None,
    limit: float = 600.0,
    **behaviour: Simulated,
) -> Outcome:
    """Simulate an item; the reader takes whatever there is."""
    sources = {Way(name): each for name, each in behaviour.items()}
    ways = {way: Standing() for way in sources}
    meters: dict[Way, Meter] = {}
    moved = dict.fromkeys(sources, 0)
    log: list[str] = []
    step = 0
    while True:
        now = step * TICK
        step += 1
        for way, source in sources.items():
            standing = ways[way]
            if standing.state is not State.RUNNING:
                continue
            elapsed = now - standing.since
            reached = max(0.0, elapsed - source.first_byte) * source.rate
            position = int(min(reached, source.silent_at, size))
            if position > standing.position:
                moved[way] += position - standing.position
                standing = standing._replace(position=position, last=now)
                meters[way].add(now, position)
            failed = position >= source.fails_at or source.found == float("inf")
            ways[way] = standing._replace(
                found=elapsed >= source.found,
                rate=meters[way].rate(now),
                state=State.OVER if failed else State.RUNNING,
            )
            if failed:
                log.append(f"{now:.2f} {way} fails")
        if any(standing.position >= size for standing in ways.values()):
            return Outcome(now, moved, log)
        assert now < limit, log
        decision = decide(policy, size, ways, now, expected)
        if decision.start:
            log.append(f"{now:.2f} {decision.start} starts")
            ways[decision.start] = Standing(State.RUNNING, now, last=now)
            meters[decision.start] = Meter()
        if decision.stop:
            log.append(f"{now:.2f} {decision.stop} stops")
            ways[decision.stop] = Standing()


NEVER = float("inf")
GONE = Simulated(NEVER, NEVER, 0)
SILENT = Simulated(0.0, NEVER, 0)
HTTP = Simulated(0.05, 0.1, 10 * MB)
SWARM = Simulated(0.05, 0.2, 50 * MB)


def names(outcome: Outcome) -> list[str]:
    """The events without their times."""
    return [entry.partition(" ")[2] for entry in outcome.log]


@pytest.mark.parametrize(
    ("policy", "size", "way"),
    [
        (Policy.RACE, race.SMALL - 1, Way.HTTP),
        (Policy.RACE, race.SMALL, Way.HTTP),
        (Policy.RACE, race.SMALL + 1, Way.SWARM),
        (Policy.SWARM_FIRST, 1, Way.SWARM),
        (Policy.SWARM_ONLY, 1, Way.SWARM),
        (Policy.HTTP_FIRST, LARGE, Way.HTTP),
    ],
)
def test_size_and_policy_say_who_begins(policy: Policy, size: int, way: Way) -> None:
    """A race over a small item is begun by servers, one over a large one by the swarm."""
    assert first(policy, size) is way


def test_a_small_item_comes_from_servers_alone() -> None:
    """It is there before a swarm would have met."""
    outcome = run(SMALL, http=HTTP, swarm=SWARM)
    assert outcome.moved == {Way.HTTP: SMALL, Way.SWARM: 0}
    assert names(outcome) == ["http starts"]


def test_a_large_item_comes_from_the_swarm_alone() -> None:
    """As long as the swarm is fast, no server is asked."""
    outcome = run(LARGE, http=HTTP, swarm=SWARM)
    assert outcome.moved == {Way.HTTP: 0, Way.SWARM: LARGE}


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_miss_costs_less_than_a_tenth_of_a_second(size: int) -> None:
    """Without anybody in the swarm it takes as long as HTTP alone, and the budget at most."""
    alone = run(size, http=HTTP).seconds
    assert run(size, http=HTTP, swarm=GONE).seconds <= alone + 2 * TICK
    nobody = Simulated(NEVER - 1, NEVER, 0)
    slow_look_up = run(size, http=HTTP, swarm=nobody._replace(found=1e9))
    assert slow_look_up.seconds <= alone + race.BUDGET + TICK


def test_somebody_who_has_it_gets_time_for_the_first_byte() -> None:
    """A swarm that has been found may take longer to begin than one that hasn't."""
    late = SWARM._replace(first_byte=race.FIRST_BYTE - TICK)
    assert names(run(LARGE, http=HTTP, swarm=late)) == ["swarm starts"]
    later = SWARM._replace(first_byte=race.FIRST_BYTE + 2 * TICK)
    assert names(run(LARGE, http=HTTP, swarm=later))[:2] == ["swarm starts", "http starts"]


@pytest.mark.parametrize("swarm", [SILENT, Simulated(0.0, 0.1, 100_000)])
def test_a_swarm_that_brings_nothing_or_little_is_overtaken(swarm: Simulated) -> None:
    """HTTP joins, takes over, and ends about as soon as it would have by itself."""
    alone = run(LARGE, http=HTTP).seconds
    outcome = run(LARGE, http=HTTP, swarm=swarm)
    assert outcome.seconds <= alone + race.SLOW + 2 * TICK
    assert names(outcome)[:2] == ["swarm starts", "http starts"]


def test_the_slower_one_is_kept_until_it_is_overtaken() -> None:
    """What it has in advance counts: it is let go only when it is behind."""
    outcome = run(LARGE, http=HTTP, swarm=Simulated(0.0, 0.0, 2 * MB))
    events = {name: when for when, _, name in (entry.partition(" ") for entry in outcome.log)}
    stopped, joined = float(events["swarm stops"]), float(events["http starts"])
    passed = (stopped - joined - HTTP.first_byte) * HTTP.rate
    assert passed == pytest.approx(stopped * 2 * MB, abs=0.6 * HTTP.rate)


def test_a_server_that_is_no_faster_is_let_go() -> None:
    """A server that was expected to be fast but isn't doesn't stay beside a slow swarm."""
    swarm = Simulated(0.0, 0.0, 2 * MB)
    outcome = run(LARGE, http=HTTP._replace(rate=1 * MB), swarm=swarm)
    assert outcome.seconds == pytest.approx(LARGE / swarm.rate, abs=2 * TICK)
    assert "http stops" in names(outcome)


def test_what_a_server_was_worth_before_decides_whether_it_joins() -> None:
    """A swarm of 3 MB/s is slow beside a server known for 30, and fast beside one known for 3."""
    swarm = Simulated(0.0, 0.0, 3 * MB)
    fast = run(LARGE, http=HTTP._replace(rate=30 * MB), swarm=swarm, expected={Way.HTTP: 30.0 * MB})
    assert names(fast)[:2] == ["swarm starts", "http starts"]
    slow = run(LARGE, http=HTTP._replace(rate=3 * MB), swarm=swarm, expected={Way.HTTP: 3.0 * MB})
    assert names(slow) == ["swarm starts"]


def test_one_that_falls_silent_in_the_middle_is_replaced() -> None:
    """Also by one that was let go before."""
    dying = SWARM._replace(silent_at=LARGE / 2)
    outcome = run(LARGE, http=HTTP, swarm=dying)
    assert names(outcome)[:2] == ["swarm starts", "http starts"]
    silence = LARGE / 2 / SWARM.rate + SWARM.first_byte
    alone = run(LARGE, http=HTTP).seconds
    assert outcome.seconds <= silence + race.QUIET + alone + 2 * TICK


def test_of_two_that_are_silent_both_are_waited_for() -> None:
    """Whoever begins to speak again is heard."""
    silent = Standing(State.RUNNING, 0.0, True, 1000, 1.0, 0.0)
    ways = {Way.SWARM: silent, Way.HTTP: silent._replace(position=1)}
    assert decide(Policy.RACE, LARGE, ways, 1.0 + race.QUIET) == Decision()
    ways[Way.SWARM] = silent._replace(last=1.01)
    assert decide(Policy.RACE, LARGE, ways, 1.0 + race.QUIET) == Decision(stop=Way.HTTP)


def test_one_that_fails_is_replaced_at_once() -> None:
    """An error needs no patience."""
    outcome = run(LARGE, http=HTTP, swarm=SWARM._replace(fails_at=0, first_byte=0.0))
    assert names(outcome) == ["swarm starts", "swarm fails", "http starts"]
    small = run(SMALL, http=HTTP._replace(fails_at=1000), swarm=SWARM)
    assert names(small) == ["http starts", "http fails", "swarm starts"]


@pytest.mark.parametrize(
    ("policy", "events"),
    [
        (Policy.SWARM_FIRST, ["swarm starts"]),
        (Policy.HTTP_FIRST, ["http starts"]),
        (Policy.RACE, ["swarm starts", "http starts"]),
    ],
)
def test_without_a_race_only_a_failure_lets_the_other_begin(
    policy: Policy, events: list[str]
) -> None:
    """Whoever wants an order gets it, however slow the first is."""
    slow = Simulated(0.0, 0.5, 1 * MB)
    assert names(run(LARGE, http=slow, swarm=slow, policy=policy))[:2] == events
    failing = slow._replace(fails_at=MB)
    way = first(policy, LARGE)
    behaviour: dict[str, Simulated] = {way.value: failing, way.other.value: slow}
    outcome = run(LARGE, policy=policy, http=behaviour["http"], swarm=behaviour["swarm"])
    assert f"{way.other} starts" in names(outcome)


@pytest.mark.parametrize("way", list(Way))
def test_one_way_alone_is_not_raced(way: Way) -> None:
    """Where there is only one, it begins, whatever its size."""
    assert decide(Policy.RACE, SMALL, {way: Standing()}, 0.0) == Decision(start=way)
    silent = Standing(State.RUNNING)
    assert decide(Policy.RACE, SMALL, {way: silent}, 1e6) == Decision()
    assert decide(Policy.RACE, SMALL, {way: Standing(State.OVER)}, 1.0) == Decision()


def test_nobody_joins_one_that_waits_for_the_reader() -> None:
    """When restoring is what takes long, another source is of no use, and is let go."""
    full = Standing(State.RUNNING, 0.0, True, 1000, 1.0, 10.0, True)
    assert decide(Policy.RACE, LARGE, {Way.SWARM: full, Way.HTTP: Standing()}, 60.0) == Decision()
    beside = Standing(State.RUNNING, 0.0, True, 10, 1.0)
    ways = {Way.SWARM: full, Way.HTTP: beside}
    assert decide(Policy.RACE, LARGE, ways, 60.0) == Decision(stop=Way.HTTP)


def test_what_was_fetched_ahead_is_taken_first() -> None:
    """A small item that the seeder may have is asked of it; a server joins after a moment."""
    assert first(Policy.RACE, SMALL, ahead=True) is Way.SWARM
    ways = {way: Standing() for way in Way}
    assert decide(Policy.RACE, SMALL, ways, 0.0, ahead=True) == Decision(start=Way.SWARM)
    ways[Way.SWARM] = Standing(State.RUNNING)
    join = Decision(start=Way.HTTP)
    for size, budget in ((SMALL, race.BUDGET * race.AHEAD), (LARGE, race.BUDGET)):
        assert decide(Policy.RACE, size, ways, budget - 0.001, ahead=True) == Decision()
        assert decide(Policy.RACE, size, ways, budget, ahead=True) == join


def test_what_is_on_its_way_goes_on() -> None:
    """It begins the race, and the other way joins later than else."""
    ways = {Way.HTTP: Standing(), Way.SWARM: Standing()}
    assert first(Policy.RACE, SMALL, begun=Way.SWARM) is Way.SWARM
    assert decide(Policy.RACE, SMALL, ways, 0.0, begun=Way.SWARM) == Decision(start=Way.SWARM)


@pytest.mark.parametrize(
    ("one", "joins"),
    [
        (Standing(State.RUNNING), 0.8),
        (Standing(State.RUNNING, found=True), 4.0),
        (Standing(State.RUNNING, found=True, position=1, last=1.0), 5.0),
        (
            Standing(State.RUNNING, found=True, position=1, last=100.0, rate=race.LEAST_RATE / 2),
            8.0,
        ),
        (
            Standing(State.RUNNING, found=True, position=1, last=-2.0, rate=race.LEAST_RATE * 2),
            2.0,
        ),
        (Standing(State.RUNNING, found=True, position=1, last=100.0, rate=race.LEAST_RATE), None),
    ],
)
def test_what_is_on_its_way_has_more_time(one: Standing, joins: float | None) -> None:
    """All of a plan shares the line."""
    ways = {Way.SWARM: one, Way.HTTP: Standing()}
    for now, expected in ((joins or 50.0) - 0.01, False), (joins or 50.0, joins is not None):
        found = decide(Policy.RACE, LARGE, ways, now, begun=Way.SWARM)
        assert found == Decision(start=Way.HTTP if expected else None)


@pytest.mark.parametrize(
    ("changes", "beside", "begun", "after"),
    [
        ({}, None, None, race.STALLED),
        ({"position": 5, "last": 7.0}, None, None, 7.0 + race.STALLED),
        ({"full": True}, None, None, None),
        ({"state": State.OVER}, None, None, None),
        ({"state": State.WAITING}, None, None, None),
        ({}, Standing(State.RUNNING, 0.0, True, 5, 3.0), None, 3.0 + race.STALLED),
        ({}, Standing(State.OVER, 0.0, True, 5, 3.0), None, race.STALLED),
        ({}, None, Way.HTTP, 2 * race.STALLED),
    ],
)
def test_a_silent_server_gets_another_one_beside_it(
    changes: dict[str, object], beside: Standing | None, begun: Way | None, after: float | None
) -> None:
    """Unless it waits for the reader, or the swarm moves."""
    ways = {Way.HTTP: Standing(State.RUNNING)._replace(**changes)}  # type: ignore[arg-type]
    if beside is not None:
        ways[Way.SWARM] = beside
    limit = 1000.0 if after is None else after
    assert not race.stalls(ways, limit - 0.001, begun=begun)
    assert race.stalls(ways, limit, begun=begun) is (after is not None)


@pytest.mark.parametrize(
    ("rate", "joins"), [(race.ASSUMED_RATE / 2, True), (race.ASSUMED_RATE, False)]
)
def test_one_peer_is_no_crowd(rate: float, *, joins: bool) -> None:
    """Beside that a server of which nothing is known is tried; what is known counts more."""
    one = Standing(State.RUNNING, 0.0, True, 1, 8.0, rate, lonely=True)
    ways = {Way.SWARM: one, Way.HTTP: Standing()}
    found = decide(Policy.RACE, LARGE, ways, 8.0, begun=Way.SWARM)
    assert found == Decision(start=Way.HTTP if joins else None)
    known = {Way.HTTP: rate}
    assert decide(Policy.RACE, LARGE, ways, 8.0, known, begun=Way.SWARM) == Decision()
    fast = {Way.HTTP: rate * 2}
    join = Decision(start=Way.HTTP)
    assert decide(Policy.RACE, LARGE, ways, race.SLOW, fast, begun=Way.SWARM) == join
    ways[Way.SWARM] = one._replace(lonely=False)
    assert decide(Policy.RACE, LARGE, ways, race.SLOW, fast, begun=Way.SWARM) == Decision()


@pytest.mark.parametrize(
    ("members", "known", "least"),
    [
        (0, None, race.LEAST_RATE),
        (3, None, race.LEAST_RATE),
        (7, None, race.ASSUMED_RATE / 16),
        (0, 4e6, 1e6),
        (1, 4e6, 1e6),
        (7, 4e6, 0.25e6),
        (15, 4e6, 0.125e6),
        (1000, 4e6, 0.125e6),
    ],
)
def test_a_crowd_is_let_be(members: int, known: float | None, least: float) -> None:
    """Beside a swarm a server has to be faster, by the number of those who fetch the same."""
    expected = None if known is None else {Way.HTTP: known}
    for rate, join in ((least * 0.7, Way.HTTP), (least, None)):
        one = Standing(State.RUNNING, 0.0, True, 1, 8.0, rate, members=members)
        ways = {Way.SWARM: one, Way.HTTP: Standing()}
        found = decide(Policy.RACE, 1 << 40, ways, 8.0, expected, begun=Way.SWARM)
        assert found == Decision(start=join)


def test_others_of_a_plan_come_first() -> None:
    """What waits while others come by the same way is not silent, unless that way is slow."""
    one = Standing(State.RUNNING, 0.0, True, 0, 9.9, race.LEAST_RATE, members=7)
    ways = {Way.SWARM: one, Way.HTTP: Standing()}
    join = Decision(start=Way.HTTP)
    assert decide(Policy.RACE, LARGE, ways, 10.0, begun=Way.SWARM) == Decision()
    assert decide(Policy.RACE, LARGE, ways, 13.9, begun=Way.SWARM) == join
    ways[Way.SWARM] = one._replace(rate=race.LEAST_RATE / 4)
    assert decide(Policy.RACE, LARGE, ways, 10.0, begun=Way.SWARM) == join
    ways[Way.SWARM] = one._replace(last=0.0)
    assert decide(Policy.RACE, LARGE, ways, 3.9, begun=Way.SWARM) == Decision()
    assert decide(Policy.RACE, LARGE, ways, 4.0, begun=Way.SWARM) == join


def test_a_crowd_takes_its_time_to_be_found() -> None:
    """Whoever knows of torrents may be on the line that the crowd shares."""
    one = Standing(State.RUNNING, 0.0)
    join = Decision(start=Way.HTTP)
    for members, budget in ((0, race.BUDGET), (1, race.FIRST_BYTE)):
        ways = {Way.SWARM: one._replace(members=members), Way.HTTP: Standing()}
        assert decide(Policy.RACE, LARGE, ways, budget - 0.001) == Decision()
        assert decide(Policy.RACE, LARGE, ways, budget) == join


def test_without_servers_none_is_silent() -> None:
    """Nothing is said of swarms."""
    assert not race.stalls({Way.SWARM: Standing(State.RUNNING)}, 1000.0)


def test_who_of_two_servers_has_won() -> None:
    """As of two ways."""
    ahead = Standing(State.RUNNING, 0.0, True, 2000, 10.0, 100.0)
    behind = ahead._replace(position=1000)
    assert race.overtaken(LARGE, ahead, behind, 10.0) is False
    assert race.overtaken(LARGE, behind, ahead, 10.0) is True
    assert race.overtaken(LARGE, ahead, behind._replace(rate=200.0), 10.0) is None
