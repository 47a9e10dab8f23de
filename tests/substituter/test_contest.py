# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.contest: sources that tests control, a clock that runs with each look."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest

from narswarm.errors import NetworkError
from substituter import contest as module
from substituter.contest import Contest, Lane, NarSource, NobodyLeftError, Runner, Sources
from substituter.race import Decision, Policy, Standing, State, Way

NAR = bytes(range(256)) * 64
SIZE = len(NAR)
PIECE = 1000
WAIT = 120.0


class Told:
    """A source of which a test says what it does.

    Args:
        key: its name.
        upto: bytes that it delivers before `then`.
        then: what it does afterwards: end, fail, or hang until it isn't wanted any more.
        host: of its server.
    """

    def __init__(
        self, key: str, upto: int = SIZE, then: str = "end", data: bytes = NAR, host: str = ""
    ) -> None:
        self.key = key
        self.host = host
        self.closed = threading.Event()
        self.hangs = False
        self.sent = 0
        self._upto, self._then, self._data = upto, then, data
        self._unwanted = threading.Event()

    @contextlib.contextmanager
    def nar(self, runner: Runner) -> Iterator[Iterator[bytes]]:
        """Deliver."""
        # One that was let go may be begun anew while it still ends.
        self._unwanted = unwanted = threading.Event()
        self.hangs = False
        runner.source(f"x:{self.key}", None, lambda: 0)
        runner.on_drop(unwanted.set)
        try:
            yield self._chunks(unwanted)
        finally:
            self.closed.set()

    def release(self) -> None:
        """Have it end."""
        self._unwanted.set()

    def _chunks(self, unwanted: threading.Event) -> Iterator[bytes]:
        for start in range(0, self._upto, PIECE):
            chunk = self._data[start : min(start + PIECE, self._upto)]
            self.sent += len(chunk)
            yield chunk
        if self._then == "fail":
            raise NetworkError(self.key, "broke")
        if self._then == "hang":
            self.hangs = True
            unwanted.wait(WAIT)
            self.hangs = False


class Shown:
    """What the user sees."""

    def __init__(self) -> None:
        self.urls: list[str] = []

    def source(
        self,
        url: str,
        total: int | None,
        done: Callable[[], int],
        label: Callable[[], str] | None = None,
    ) -> None:
        """Note whose bytes are read."""
        del total, done, label
        self.urls.append(url)


class Race:
    """A contest, and all that came of it.

    Args:
        policy: what the user wants of the two ways.
        timed: whether time goes by with each look; else it does so only while all that run hang,
            as sources of which a thread waits for the processor aren't silent.
        ways: their sources.
    """

    def __init__(
        self, policy: Policy = Policy.RACE, *, timed: bool = False, **ways: list[Told] | Sources
    ) -> None:
        self.shown = Shown()
        self.failures: list[tuple[str, str, bool]] = []
        self._timed = timed
        self._ticks = 0
        self._lanes: list[Lane] = []
        self.contest = Contest(
            SIZE,
            policy,
            {Way(name): _sources(each) for name, each in ways.items()},
            self.shown,
            lambda source, error, seen: self.failures.append((source.key, str(error), seen)),
            clock=self._clock,
        )
        self._lanes = self.contest._all

    def _clock(self) -> float:
        if self._timed or not any(map(self._is_busy, self._lanes)):
            self._ticks += 1
        return self._ticks * 0.05

    @staticmethod
    def _is_busy(lane: Lane) -> bool:
        hangs = isinstance(lane.current, Told) and lane.current.hangs
        return not (lane.over or lane.dropped or hangs)

    def read(self) -> bytes:
        """All of the NAR."""
        try:
            return b"".join(self.contest.chunks())
        finally:
            self.contest.join(WAIT)

    def used(self) -> list[str]:
        """Whose bytes were read."""
        return [source.key for source in self.contest.used]


def _sources(given: list[Told] | Sources) -> Sources:
    return (lambda _: iter(given)) if isinstance(given, list) else given


def test_one_source_is_enough() -> None:
    """All bytes come, in order, and the user sees where from."""
    race = Race(http=[Told("a")])
    assert race.read() == NAR
    assert race.used() == ["a"]
    assert race.shown.urls == ["x:a"]
    assert race.failures == []


@pytest.mark.parametrize("upto", [0, 1, PIECE, PIECE + 1, SIZE - 1])
def test_the_next_source_goes_on_where_one_fails(upto: int) -> None:
    """What was read is not read again, whether the first breaks off or ends early."""
    for then, reason in (("fail", "broke"), ("end", f"ended after {upto} of {SIZE} bytes")):
        race = Race(swarm=[Told("a", upto, then), Told("b")])
        assert race.read() == NAR
        assert [failure[:2] for failure in race.failures] == [("a", f"a: {reason}")]
        assert race.used()[-1] == ("a" if upto == SIZE else "b")


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


def test_no_source_runs_far_ahead_of_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays the same for small and large items."""
    monkeypatch.setattr(module, "AHEAD", 3 * PIECE)
    source = Told("a")
    race = Race(swarm=[source])
    read = 0
    for chunk in race.contest.chunks():
        read += len(chunk)
        assert source.sent - read <= 5 * PIECE
    assert read == SIZE


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


def test_rates_are_those_of_ways_that_were_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that waits for the reader says nothing about the network."""
    for ahead, known in ((1 << 20, True), (PIECE, False)):
        monkeypatch.setattr(module, "AHEAD", ahead)
        race = Race(timed=True, http=[Told("a")])
        race.read()
        rates: Mapping[Way, float] = race.contest.rates()
        assert not rates or known


def test_the_rate_of_one_that_was_let_go_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it needn't be tried again with each further item."""
    server, swarm = Told("a", 2 * PIECE, "hang"), Told("b", 0, "hang")
    stopped: list[float] = []

    def decided(
        policy: Policy, size: int, ways: Mapping[Way, Standing], *rest: object, **more: object
    ) -> Decision:
        del policy, size, rest, more
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
