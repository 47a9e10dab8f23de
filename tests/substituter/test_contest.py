# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.contest: who is read, who joins, and what is known in the end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping

import pytest

from substituter import contest as module
from substituter import lane
from substituter.contest import NobodyLeftError
from substituter.lane import Runner
from substituter.race import Decision, Policy, Standing, State, Way
from tests.substituter.racing import NAR, PIECE, SIZE, WAIT, Race, Told


def test_one_source_is_enough() -> None:
    """All bytes come, in order, and the user sees where from."""
    race = Race(http=[Told("a")])
    assert race.read() == NAR
    assert race.used() == ["a"]
    assert race.shown.urls == ["x:a"]
    assert race.failures == []


def test_a_silent_source_is_overtaken() -> None:
    """The other way joins, passes over what was read, and goes on from there."""
    hanging = Told("a", SIZE // 2, "hang")
    race = Race(Policy.RACE, http=[hanging], swarm=[Told("b")])
    assert race.read() == NAR
    assert race.used() in (["a", "b"], ["b"])
    assert race.shown.urls[-1] == "x:b"
    assert hanging.closed.is_set()
    assert race.failures == []


@pytest.mark.parametrize("upto", [0, PIECE, SIZE // 2])
def test_another_server_joins_one_that_is_silent(upto: int) -> None:
    """Nothing that came is lost; what else the silent one has is tried when the other fails."""
    silent, same = Told("a", upto, "hang", host="one"), Told("c", host="one")
    failing = Told("b", SIZE - 1, "fail", host="two")
    race = Race(http=[silent, same, failing, Told("d", host="three")])
    assert race.read() == NAR
    assert same.sent == 0
    assert race.used()[-1] == "d"
    assert race.used()[:-1] == (["a"] if upto else []) + ["b"]
    assert silent.closed.is_set()


def test_a_server_alone_is_waited_for() -> None:
    """Others of the same server would be as silent; it may go on after all."""
    silent, same = Told("a", PIECE, "hang", host="one"), Told("b", host="one")
    race = Race(http=[silent, same])
    chunks = race.contest.chunks()
    assert next(chunks) == NAR[:PIECE]
    reader = threading.Thread(target=lambda: [None for _ in chunks])
    reader.start()
    while race.contest.clock() < 100.0:
        pass
    assert same.sent == 0
    silent.release()
    reader.join(WAIT)
    assert race.used() == ["a", "b"]


@pytest.mark.parametrize("policy", [Policy.RACE, Policy.HTTP_FIRST, Policy.SWARM_FIRST])
def test_when_all_have_failed_nobody_is_left(policy: Policy) -> None:
    """Each failure is told with its reason, once."""
    race = Race(policy, http=[Told("a", 5, "fail"), Told("b", 0, "fail")], swarm=[])
    with pytest.raises(NobodyLeftError) as caught:
        race.read()
    assert str(caught.value) == "race: no source is left"
    assert [failure[0] for failure in race.failures] == ["a", "b"]


def test_a_reader_that_stops_closes_all_sources() -> None:
    """Also those that hang."""
    sources = [Told("a", PIECE, "hang"), Told("b", 0, "hang")]
    race = Race(swarm=sources[:1], http=sources[1:])
    chunks = race.contest.chunks()
    assert next(chunks) == NAR[:PIECE]
    race.contest.close()
    race.contest.join(WAIT)
    assert sources[0].closed.is_set()
    assert race.failures == []


def test_rates_are_those_of_ways_that_were_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that waits for the reader says nothing about the network."""
    for ahead, known in ((1 << 20, True), (PIECE, False)):
        monkeypatch.setattr(lane, "AHEAD", ahead)
        race = Race(timed=True, http=[Told("a")])
        race.read()
        rates: Mapping[Way, float] = race.contest.rates()
        assert not rates or known


def test_the_rate_of_one_that_was_let_go_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it needn't be tried again with each further item, nor with this one."""
    known: list[Mapping[Way, float]] = []
    server, swarm = Told("a", 2 * PIECE, "hang"), Told("b", 0, "hang")
    stopped: list[float] = []

    def decided(
        policy: Policy,
        size: int,
        ways: Mapping[Way, Standing],
        now: float,
        expected: Mapping[Way, float],
        **more: object,
    ) -> Decision:
        del policy, size, now, more
        known.append(expected)
        for way in Way:
            if ways[way].state is State.WAITING and not stopped:
                return Decision(start=way)
        if (rate := ways[Way.HTTP].rate) and not stopped:
            stopped.append(rate)
            swarm.release()
            return Decision(stop=Way.HTTP)
        return Decision()

    monkeypatch.setattr(module, "decide", decided)
    race = Race(timed=True, http=[server], swarm=[swarm, Told("c")])
    assert race.read() == NAR
    assert race.contest.rates()[Way.HTTP] == stopped[0]
    assert (known[0], known[-1]) == ({}, {Way.HTTP: stopped[0]})


class Tidying(Told):
    """A source that takes its time to close."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.may_close = threading.Event()

    @contextlib.contextmanager
    def nar(self, runner: Runner) -> Iterator[Iterator[bytes]]:
        """Deliver, and close when the test allows it."""
        with super().nar(runner) as nar:
            try:
                yield nar
            finally:
                self.may_close.wait(WAIT)


def test_whoever_delivered_may_tidy_up_and_others_are_not_waited_for() -> None:
    """When `settle` is back the one has closed, and the other one may still be at it."""
    stuck, whole = Tidying("a", SIZE // 2, "hang"), Tidying("b")
    race = Race(Policy.RACE, http=[stuck], swarm=[whole])
    assert b"".join(race.contest.chunks()) == NAR
    assert not whole.closed.is_set()
    whole.may_close.set()
    race.contest.settle(WAIT * 1000)
    assert whole.closed.is_set()
    assert not stuck.closed.is_set()
    stuck.may_close.set()
    race.contest.join(WAIT)
