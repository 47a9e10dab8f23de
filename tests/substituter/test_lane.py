# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.lane: one source after another, and the bytes that wait for the reader."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from narswarm.errors import NetworkError
from substituter import lane
from substituter.lane import Lane, NarSource, Runner
from substituter.race import Policy, Standing, State, Way
from tests.substituter.racing import NAR, PIECE, SIZE, WAIT, Race, Told


class Course:
    """A race in which nobody reads.

    Args:
        consumed: bytes that the reader has had.
    """

    def __init__(self, consumed: int = 0) -> None:
        self.nar_size = SIZE
        self.consumed = consumed
        self.changed = threading.Condition()
        self.failures: list[str] = []

    def clock(self) -> float:
        """Time stands still."""
        return 7.0

    def is_alone(self, way: Way) -> bool:
        """Nobody else takes part."""
        del way
        return True

    def report_failure(self, source: NarSource, error: Exception) -> None:
        """Note it."""
        del source
        self.failures.append(str(error))


@pytest.mark.parametrize("consumed", [0, 1, PIECE - 1, PIECE, PIECE + 1, SIZE - 1])
def test_bytes_that_the_reader_has_had_are_passed_over(consumed: int) -> None:
    """A lane that joins late gives what follows, to the byte."""
    one = Lane(Course(consumed), Way.HTTP)
    one.begin(lambda _: iter([Told("a")]))
    one.thread.join(WAIT)
    got = b""
    while (taken := one.take(consumed + len(got))) is not None:
        got += taken[1]
    assert got == NAR[consumed:]
    assert one.is_complete()


def test_what_was_read_elsewhere_meanwhile_is_dropped() -> None:
    """Whole chunks by `skip`, the rest of one by `take`."""
    one = Lane(Course(), Way.HTTP)
    one.begin(lambda _: iter([Told("a")]))
    one.thread.join(WAIT)
    one.skip(2 * PIECE + 1)
    taken = one.take(2 * PIECE + 1)
    assert taken is not None
    assert taken[1] == NAR[2 * PIECE + 1 : 3 * PIECE]


def test_two_lanes_share_sources_and_not_a_host() -> None:
    """Each source is tried once; those of the host that is silent are left for the first."""
    course = Course()
    silent, same = Told("a", PIECE, "hang", host="one"), Told("b", host="one")
    other = Told("c", 0, "fail", host="two")
    first, second = Lane(course, Way.HTTP), Lane(course, Way.HTTP)
    first.begin(lambda _: iter([silent, same, other]))
    with course.changed:
        assert course.changed.wait_for(lambda: first.standing().position == PIECE, WAIT)
    second.begin_beside(first)
    second.thread.join(WAIT)
    assert course.failures == ["c: broke"]
    assert same.sent == 0
    silent.release()
    first.thread.join(WAIT)
    assert course.failures == ["c: broke", f"a: ended after {PIECE} of {SIZE} bytes"]
    assert same.sent == SIZE
    assert first.is_complete()


def test_a_lane_that_was_dropped_says_so_at_once() -> None:
    """A source that asks to be told afterwards would wait for ever."""
    told: list[str] = []
    one = Lane(Course(), Way.SWARM)
    one.on_drop(lambda: told.append("never"))
    one.on_drop(lambda: told.append("before"))
    one.drop()
    assert told == ["before"]
    one.on_drop(lambda: told.append("after"))
    assert told == ["before", "after"]


class Knowing(Told):
    """A source that knows better than its lane how far it is."""

    def standing(self, one: Standing, now: float) -> Standing:
        """Twice as far."""
        return one._replace(position=2 * one.position, last=now)


def test_a_source_may_know_how_far_it_is() -> None:
    """What it has, and hasn't given yet, counts."""
    one = Lane(Course(), Way.SWARM)
    one.begin(lambda _: iter([Knowing("a")]))
    one.thread.join(WAIT)
    assert one.standing() == Standing(State.OVER, 7.0, True, 2 * SIZE, 7.0, None, False)


@pytest.mark.parametrize("upto", [0, 1, PIECE, PIECE + 1, SIZE - 1])
def test_the_next_source_goes_on_where_one_fails(upto: int) -> None:
    """What was read is not read again, whether the first breaks off or ends early."""
    for then, reason in (("fail", "broke"), ("end", f"ended after {upto} of {SIZE} bytes")):
        race = Race(swarm=[Told("a", upto, then), Told("b")])
        assert race.read() == NAR
        assert [failure[:2] for failure in race.failures] == [("a", f"a: {reason}")]
        assert race.used()[-1] == ("a" if upto == SIZE else "b")


def test_no_source_runs_far_ahead_of_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays the same for small and large items."""
    monkeypatch.setattr(lane, "AHEAD", 3 * PIECE)
    source = Told("a")
    race = Race(swarm=[source])
    read = 0
    for chunk in race.contest.chunks():
        read += len(chunk)
        assert source.sent - read <= 5 * PIECE
    assert read == SIZE


def test_a_way_may_rest_until_it_is_the_last() -> None:
    """Torrents that need patience are tried when servers have failed, not before."""
    order: list[str] = []

    def swarm(lane: Lane) -> Iterator[NarSource]:
        order.append(f"swarm, alone: {lane.alone}")
        lane.rest()
        order.append(f"swarm, alone: {lane.alone}")
        yield Told("b")

    def http(_: Lane) -> Iterator[NarSource]:
        order.append("http")
        yield Told("a", 10, "fail")

    race = Race(Policy.SWARM_FIRST, swarm=swarm, http=http)
    assert race.read() == NAR
    assert order == ["swarm, alone: False", "http", "swarm, alone: True"]
    assert race.used()[-1] == "b"


def test_one_that_rests_ends_when_it_is_not_needed() -> None:
    """The item came another way: nobody waits for ever."""
    rested: list[bool] = []

    def swarm(lane: Lane) -> Iterator[NarSource]:
        rested.append(lane.rest())
        yield from ()

    race = Race(Policy.SWARM_FIRST, swarm=swarm, http=[Told("a")])
    assert race.read() == NAR
    assert rested == [False]


def test_an_error_that_nobody_thought_of_is_one_way_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one goes on."""
    broken = Told("a")

    def nar(_: Runner) -> None:
        raise RuntimeError("oops")

    monkeypatch.setattr(broken, "nar", nar)
    race = Race(swarm=[broken], http=[Told("b")])
    assert race.read() == NAR
    assert ("a", "oops", False) in race.failures or race.used() == ["b"]


def test_a_way_whose_sources_cannot_be_named_is_over() -> None:
    """Looking for sources may fail as well."""

    def swarm(_: Lane) -> Iterator[NarSource]:
        raise NetworkError("tracker", "is down")

    assert Race(swarm=swarm, http=[Told("b")]).read() == NAR
