# SPDX-License-Identifier: GPL-3.0-or-later
"""Telling trackers what there is, and hearing what is wanted."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import cast

import pytest

from narswarm.errors import NetworkError
from narswarm.httpsig import PublisherKey
from narswarm.trackeranswers import HoldingsReply, WantedNar, WantedReply
from narswarm.trackerclient import LaterError, RefusedError, StaleHoldingsError
from seeder import holdings
from seeder.holdings import (
    GAP,
    LONGEST_PAUSE,
    REFUSED_PAUSE,
    Correspondence,
    Listener,
    Teller,
)
from seeder.items import Change

URL = "http://t/announce"
KEY = PublisherKey.generate()
LEASE = 1800


class Steady(random.Random):
    """Randomness without any."""

    def uniform(self, a: float, b: float) -> float:
        """One, which is in all of the ranges."""
        assert a <= 1.0 <= b
        return 1.0


class Holdings:
    """A list that the test changes."""

    def __init__(self) -> None:
        self.now = 10

    def generation(self) -> int:
        """As `ItemTable.generation` does."""
        return self.now

    def change(self, base: int) -> Change:
        """As `ItemTable.change` does."""
        return Change(base, self.now, b"added since %d" % base, b"")


class Tracker:
    """A tracker that answers what the test says, in turn, and then takes everything."""

    def __init__(self) -> None:
        self.errors: list[NetworkError] = []
        self.told: list[tuple[int, int]] = []
        self.added: list[bytes] = []
        self.asked: list[int] = []
        self.wanted_next: list[WantedReply | NetworkError] = []

    def holdings(
        self,
        key: PublisherKey,
        *,
        base: int,
        generation: int,
        added: bytes,
        removed: bytes,
        port: int,
        now: float,
    ) -> HoldingsReply:
        """As `TrackerIndex.holdings` does."""
        assert (key, removed, port, now) == (KEY, b"", 6881, 5e9)
        self.told.append((base, generation))
        self.added.append(added)
        if self.errors:
            raise self.errors.pop(0)
        return HoldingsReply(generation, 3, LEASE)

    def wanted(self, key: PublisherKey, since: int, wait: int, now: float) -> WantedReply:
        """As `TrackerIndex.wanted` does."""
        assert (key, wait, now) == (KEY, 50, 5e9)
        self.asked.append(since)
        answer = self.wanted_next.pop(0)
        if isinstance(answer, NetworkError):
            raise answer
        return answer


class Bench:
    """A teller and a listener with everything around them in the test's hands."""

    def __init__(self, told: int = 0) -> None:
        self.now = 100.0
        self.tracker = Tracker()
        self.list = Holdings()
        self.teller = Teller(
            URL,
            self.tracker,
            KEY,
            self.list,
            port=6881,
            told=told,
            clock=lambda: self.now,
            wall_clock=lambda: 5e9,
            rng=Steady(),
        )
        self.wants: list[tuple[bytes, str]] = []
        self.listener = Listener(
            self.teller,
            self.tracker,
            KEY,
            lambda *want: self.wants.append(want),
            clock=lambda: self.now,
            wall_clock=lambda: 5e9,
            rng=Steady(),
        )

    def pass_time(self, seconds: float) -> None:
        """Let the teller do what it has to in this time, as its thread does."""
        end = self.now + seconds
        while True:
            pause = self.teller.step()
            if self.now + pause > end:
                break
            self.now += pause
        self.now = end


def test_all_is_told_first_and_then_what_changed() -> None:
    """Changes some seconds after each other at most; refreshes at half of the lease."""
    bench = Bench()
    bench.pass_time(1)
    assert bench.tracker.told == [(0, 10)]
    assert (bench.teller.told, bench.teller.held) == (10, 3)
    bench.list.now = 11
    bench.pass_time(GAP - 1.5)
    assert len(bench.tracker.told) == 1
    bench.pass_time(1)
    assert bench.tracker.told[1:] == [(10, 11)]
    bench.pass_time(LEASE / 2 - 1)
    assert len(bench.tracker.told) == 2
    bench.pass_time(LEASE / 2 + 1)
    assert bench.tracker.told[2:] == [(11, 11), (11, 11)]


def test_nothing_is_told_of_nothing() -> None:
    """A seeder that has just begun knows its items in a moment, and is woken then."""
    bench = Bench()
    change = bench.list.change
    bench.list.change = lambda base: change(base)._replace(added=b"")  # type: ignore[method-assign]
    bench.pass_time(100)
    assert bench.tracker.told == []
    bench.list.change = change  # type: ignore[method-assign]
    bench.pass_time(0)
    assert bench.tracker.told == [(0, 10)]


def test_a_restart_goes_on_where_it_was() -> None:
    """A tracker that still has the list is told what changed, or only that we are back."""
    bench = Bench(told=10)
    bench.pass_time(1)
    assert bench.tracker.told == [(10, 10)]
    bench = Bench(told=7)
    bench.pass_time(1)
    assert bench.tracker.told == [(7, 10)]


def test_a_tracker_that_has_forgotten_is_told_all() -> None:
    """At once; if even all isn't what it wants, later."""
    bench = Bench(told=9)
    stale = StaleHoldingsError(URL, "answers 409: another generation", 3)
    bench.tracker.errors = [stale]
    bench.pass_time(0)
    assert bench.tracker.told == [(9, 10), (0, 10)]
    bench = Bench(told=9)
    bench.tracker.errors = [stale, stale]
    bench.pass_time(4)
    assert bench.tracker.told == [(9, 10), (0, 10)]
    assert not bench.teller.known.is_set()
    bench.pass_time(1)
    assert bench.tracker.told == [(9, 10), (0, 10), (0, 10)]


def test_a_tracker_that_is_down_for_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    """A handful of attempts, one line in the log, and the list again when it is back."""
    caplog.set_level("INFO")
    bench = Bench()
    bench.pass_time(0)
    bench.list.now = 11
    bench.tracker.errors = [NetworkError(URL, "connection refused")] * 12
    bench.pass_time(3600)
    assert len(bench.tracker.told) == 13
    assert bench.teller.patience.message == "connection refused"
    bench.pass_time(LONGEST_PAUSE)
    assert bench.tracker.told[-1] == (10, 11)
    assert caplog.messages == [f"{URL}: connection refused", f"{URL}: answers again"]
    assert bench.teller.patience.message == ""


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (LaterError(URL, "answers 429: slower", 77), 77),
        (LaterError(URL, "answers 503: busy", 0), 1),
        (RefusedError(URL, "answers 404: no such thing", 404), REFUSED_PAUSE),
        (RefusedError(URL, "answers 403: not you", 403), 60),
        (RefusedError(URL, "answers 401: stale", 401), 60),
        (NetworkError(URL, "timed out"), 5),
    ],
)
def test_how_long_a_tracker_is_left_alone(error: NetworkError, seconds: float) -> None:
    """As long as it says; an hour if it doesn't know of holdings."""
    bench = Bench()
    bench.tracker.errors = [error]
    bench.pass_time(seconds - 0.5)
    assert len(bench.tracker.told) == 1
    bench.pass_time(0.5)
    assert len(bench.tracker.told) == 2
    bench.tracker.wanted_next = [error]
    assert bench.listener.step() == seconds


@pytest.mark.parametrize("who", ["teller", "listener"])
def test_a_tracker_that_does_not_know_the_key_yet(who: str) -> None:
    """It is asked again after a minute, two, and so on up to an hour; at once when told so."""
    bench = Bench()
    refusal = RefusedError(URL, "answers 403: not you", 403)
    step = {"teller": bench.teller.step, "listener": bench.listener.step}[who]
    pauses = []
    for _ in range(8):
        bench.tracker.errors, bench.tracker.wanted_next = [refusal], [refusal]
        pauses.append(step())
        bench.now += pauses[-1]
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_a_tracker_that_is_asked_at_once() -> None:
    """Though it is left alone for an hour; then its pauses are short again."""
    bench = Bench()
    refusal = RefusedError(URL, "answers 403: not you", 403)
    bench.tracker.errors = [refusal] * 9
    bench.pass_time(3 * 3600)
    asked = len(bench.tracker.told)
    bench.teller.hurry()
    bench.tracker.errors = [refusal]
    assert bench.teller.step() == 60
    assert len(bench.tracker.told) == asked + 1
    bench.teller.hurry()
    bench.pass_time(0)
    assert bench.teller.known.is_set()


def test_farewell() -> None:
    """Nobody shall wait for a seeder that has ended; a tracker that knows nothing isn't told."""
    bench = Bench()
    bench.teller.farewell()
    assert bench.tracker.told == []
    bench.pass_time(0)
    bench.tracker.errors = [NetworkError(URL, "down")]
    bench.teller.farewell()
    assert bench.tracker.told == [(0, 10), (0, 11)]
    assert bench.tracker.added[1] == b""
    assert bench.teller.told == 0


def test_what_is_wanted() -> None:
    """Each NAR is passed on, with the tracker; the cursor goes on."""
    bench = Bench()
    bench.tracker.wanted_next = [
        WantedReply(7, (WantedNar(b"a", 1), WantedNar(b"b", 2))),
        WantedReply(8, ()),
    ]
    assert bench.listener.step() == 0
    assert bench.wants == [(b"a", URL), (b"b", URL)]
    assert bench.listener.step() == 1.0
    assert bench.tracker.asked == [0, 7]


def test_a_tracker_that_lets_us_wait_is_asked_again_at_once() -> None:
    """Only one that answers nothing at once is left alone for a second."""
    bench = Bench()

    class Waits(Tracker):
        def wanted(self, *_: object) -> WantedReply:
            bench.now += 50
            return WantedReply(1, ())

    bench.listener._index = Waits()
    assert bench.listener.step() == 0


def test_a_tracker_without_a_list_is_sent_one() -> None:
    """Who asks what is wanted hears of it first that a tracker was restarted."""
    bench = Bench()
    bench.pass_time(0)
    bench.tracker.wanted_next = [
        WantedReply(7, ()),
        StaleHoldingsError(URL, "answers 409: no list", 0),
        WantedReply(1, ()),
    ]
    bench.listener.step()
    assert bench.listener.step() == 1.0
    assert not bench.teller.known.is_set()
    bench.pass_time(GAP)
    assert bench.tracker.told == [(0, 10), (0, 10)]
    bench.listener.step()
    assert bench.tracker.asked == [0, 7, 0]


class Fake:
    """A teller or listener that says what it was asked."""

    announce = URL

    def __init__(self) -> None:
        self.told = 0
        self.known = threading.Event()
        self.stepped = threading.Semaphore(0)
        self.ended = threading.Event()
        self.hurried = False

    def hurry(self) -> None:
        """As `Teller.hurry` does."""
        self.hurried = True

    def step(self) -> float:
        """As both do."""
        self.told += 1
        self.known.set()
        self.stepped.release()
        return 100.0

    def farewell(self) -> None:
        """As `Teller.farewell` does."""
        self.ended.set()


def test_threads_speak_with_each_tracker() -> None:
    """They wait until somebody wakes them, and say goodbye."""
    teller, listener = Fake(), Fake()
    stopping = threading.Event()
    kept: list[tuple[str, int]] = []
    pair = (cast("Teller", teller), cast("Listener", listener))
    threads = Correspondence([pair], stopping, lambda *told: kept.append(told))
    assert threads.tellers == [cast("Teller", teller)]
    threads.start()
    acquire: Callable[..., bool] = teller.stepped.acquire
    assert acquire(timeout=120)
    assert listener.stepped.acquire(timeout=120)
    threads.wake()
    assert acquire(timeout=120)
    threads.retry()
    assert acquire(timeout=120)
    assert teller.hurried
    stopping.set()
    assert threads.join(120)
    assert teller.ended.is_set()
    assert kept[:2] == [(URL, 1), (URL, 2)]


def test_a_step_that_breaks_ends_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    """What nobody thought of is a line in the log, and a long pause."""

    def broken() -> float:
        raise RuntimeError("database disk image is malformed")

    assert holdings._guarded(broken) == LONGEST_PAUSE
    assert caplog.messages == ["a tracker could not be told or heard"]
