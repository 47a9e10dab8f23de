# SPDX-License-Identifier: GPL-3.0-or-later
"""Publishing: patient with trackers that fail, brief about items that are refused."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from narswarm.errors import NetworkError
from narswarm.httpsig import PublisherKey
from narswarm.trackerclient import RefusedError, TrackerIndex
from seeder.publications import Published
from seeder.publish import MAX_FORBIDDEN, REFUSED_PAUSE, REPEAT, Publisher
from seeder.state import Nar, State

URL = "http://t/announce"


class Tracker:
    """A tracker that answers what the test says, in turn, and then takes everything."""

    def __init__(self, *answers: NetworkError) -> None:
        self.answers = list(answers)
        self.taken: list[bytes] = []
        self.asked = 0

    def publish(self, _key: object, nar_hash: bytes, *_: object) -> bool:
        """As `TrackerIndex.publish` does."""
        self.asked += 1
        if self.answers:
            raise self.answers.pop(0)
        self.taken.append(nar_hash)
        return True


class Steady(random.Random):
    """Randomness without any."""

    def uniform(self, a: float, b: float) -> float:
        """The middle."""
        return (a + b) / 2


class Bench:
    """A publisher with its surroundings in the test's hands."""

    def __init__(self, directory: Path, tracker: Tracker, count: int = 1) -> None:
        self.state = State(directory)
        self.hashes = [bytes([number]) * 32 for number in range(count)]
        for number, nar_hash in enumerate(self.hashes):
            path = f"/gnu/store/{number}"
            self.state.add(Nar(nar_hash, path, 1, f"{number}", 1, "ab", b"t", b"n"), [URL], 0)
        self.now = 1000.0
        self.stopping = False
        self.told: list[bytes] = []
        self.tracker = tracker
        self.publisher = self.with_trackers((URL, tracker))

    def with_trackers(self, *trackers: tuple[str, Tracker]) -> Publisher:
        """A publisher to several trackers."""
        return Publisher(
            self.state,
            PublisherKey.generate(),
            [(url, cast("TrackerIndex", tracker)) for url, tracker in trackers],
            clock=lambda: self.now,
            stopping=lambda: self.stopping,
            published=self.told.append,
            rng=Steady(),
        )

    def run_at(self, now: float) -> None:
        """Let the job run at a time."""
        self.now = now
        self.publisher.run()


Make = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A maker of benches, which are closed at the end."""
    made: list[Bench] = []

    def bench(tracker: Tracker, count: int = 1) -> Bench:
        made.append(Bench(tmp_path, tracker, count))
        return made[-1]

    yield bench
    for each in made:
        each.state.close()


def test_everything_due_is_published(make: Make) -> None:
    """Each item once, in any number of batches; and again after about a week."""
    tracker = Tracker()
    bench = make(tracker, 205)
    bench.run_at(1000)
    bench.run_at(1001)
    assert tracker.taken == bench.told == bench.hashes
    assert bench.state.publications() == [Published(URL, 205, 0, "")]
    bench.run_at(1000 + REPEAT)
    assert len(tracker.taken) == 410


def test_a_tracker_that_fails_is_left_alone(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """One attempt, then a pause that doubles up to ten minutes; one line for all of it."""
    caplog.set_level("INFO")
    tracker = Tracker(*[NetworkError("http://t", "connection refused")] * 10)
    bench = make(tracker, 3)
    pauses = []
    now = 1000.0
    for _ in range(10):
        bench.run_at(now)
        asked = tracker.asked
        begin = now
        while tracker.asked == asked:
            now += 5
            bench.run_at(now)
            asked = min(asked, tracker.asked)
        pauses.append(now - begin)
        bench.run_at(now)
    assert pauses[:8] == [5, 10, 20, 40, 80, 160, 320, 600]
    assert set(tracker.taken) == set(bench.hashes)
    assert caplog.messages == [
        f"{URL}: can't be published to: connection refused",
        f"{URL}: answers again",
    ]


def test_an_item_that_breaks_a_tracker_lets_others_go_first(make: Make) -> None:
    """The item that an attempt failed with isn't the first one of the next attempt."""
    tracker = Tracker(NetworkError("http://t", "answers 500: no reason given"))
    bench = make(tracker, 2)
    bench.run_at(1000)
    bench.run_at(1005)
    assert tracker.taken == [bench.hashes[1], bench.hashes[0]]


def test_a_refused_item_waits_a_day(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The others are published all the same; the reason is kept, and said once."""
    refusal = RefusedError("http://t", "answers 400: not a torrent", 400)
    tracker = Tracker(refusal, refusal)
    bench = make(tracker, 3)
    bench.run_at(1000)
    assert tracker.taken == bench.hashes[2:]
    assert bench.state.publications() == [Published(URL, 1, 2, "answers 400: not a torrent")]
    assert caplog.messages == [f"{URL}: refuses items: answers 400: not a torrent"]
    bench.run_at(999 + REFUSED_PAUSE)
    assert len(tracker.taken) == 1
    bench.run_at(1000 + REFUSED_PAUSE)
    assert len(tracker.taken) == 3


FORBIDDEN = RefusedError("http://t", "answers 403: not allowed", 403)


def asked_at(bench: Bench, until: float) -> list[float]:
    """Let the job run every ten seconds; the times at which the tracker was asked."""
    times = []
    while bench.now < until:
        before = bench.tracker.asked
        bench.run_at(bench.now)
        times += [bench.now] * (bench.tracker.asked - before)
        bench.now += 10
    return times


def test_an_item_that_is_not_allowed(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """It is sent again after a minute, two, and so on up to an hour; the others aren't kept."""
    tracker = Tracker(FORBIDDEN)
    bench = make(tracker, 205)
    bench.run_at(1000)
    assert tracker.taken == bench.hashes[1:]
    assert caplog.messages == [f"{URL}: refuses items: answers 403: not allowed"]
    tracker.answers = [FORBIDDEN] * 7
    times = asked_at(bench, 1000 + 4 * 3600)
    gaps = [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert times == [1000 + sum(gaps[: number + 1]) for number in range(8)]
    assert tracker.taken[-1] == bench.hashes[0]


@pytest.mark.parametrize("status", [401, 403])
def test_a_tracker_that_does_not_know_the_key_yet(make: Make, status: int) -> None:
    """A few items a time tell that, an hour apart at most; when it does, all are told at once."""
    refusal = RefusedError("http://t", f"answers {status}: who are you?", status)
    tracker = Tracker(*[refusal] * 10_000)
    bench = make(tracker, 205)
    bench.now = 1000.0
    times = asked_at(bench, 1000 + 6 * 3600)
    assert times[:5] == [1000.0] * MAX_FORBIDDEN + [1060.0, 1180.0]
    assert len(times) < 20
    assert max(b - a for a, b in itertools.pairwise(times)) <= 3600 * 1.2
    tracker.answers.clear()
    after = asked_at(bench, bench.now + 3600)
    assert set(after) == {after[0]}
    assert set(tracker.taken) == set(bench.hashes)
    tracker.answers = [FORBIDDEN] * 2
    bench.publisher.publish(bench.hashes[0])
    bench.publisher.publish(bench.hashes[0])
    assert bench.publisher._trackers[0].is_open(bench.now)


def test_a_retry(make: Make) -> None:
    """Everything that a tracker refused, or couldn't take, is sent at the next run."""
    tracker = Tracker(
        RefusedError("http://t", "answers 400: not a torrent", 400),
        *[FORBIDDEN] * MAX_FORBIDDEN,
    )
    bench = make(tracker, 5)
    bench.run_at(1000)
    bench.run_at(1001)
    assert (tracker.asked, tracker.taken) == (1 + MAX_FORBIDDEN, [])
    bench.publisher.retry()
    bench.run_at(1002)
    assert set(tracker.taken) == set(bench.hashes)
    tracker.answers = [NetworkError("http://t", "timed out")]
    bench.run_at(1002 + 2 * REPEAT)
    taken = len(tracker.taken)
    bench.publisher.retry()
    bench.run_at(1003 + 2 * REPEAT)
    assert len(tracker.taken) > taken


def test_a_busy_tracker_is_left_alone(make: Make) -> None:
    """A tracker that says "slower" means all items."""
    tracker = Tracker(RefusedError("http://t", "answers 429: slower", 429))
    bench = make(tracker, 2)
    bench.run_at(1000)
    assert (tracker.asked, tracker.taken) == (1, [])


def test_a_new_item_is_published_at_once(make: Make) -> None:
    """Unless the tracker is left alone, or the seeder ends."""
    tracker = Tracker()
    bench = make(tracker, 2)
    bench.publisher.publish(bench.hashes[1])
    assert tracker.taken == [bench.hashes[1]]
    bench.stopping = True
    bench.publisher.publish(bench.hashes[0])
    bench.run_at(1000)
    assert len(tracker.taken) == 1
    bench.stopping = False
    tracker.answers = [NetworkError("http://t", "timed out")]
    bench.run_at(1000)
    bench.publisher.publish(bench.hashes[0])
    assert len(tracker.taken) == 1


def test_trackers_are_told_at_the_same_time(make: Make) -> None:
    """Who waits for one tracker doesn't wait for another one that is slow."""
    slow, entered = threading.Event(), threading.Event()

    class Slow(Tracker):
        def publish(self, _key: object, nar_hash: bytes, *_: object) -> bool:
            entered.set()
            slow.wait(120)
            return super().publish(_key, nar_hash)

    quick = Tracker()
    bench = make(Slow(), 1)
    other = "http://other/announce"
    bench.state.track([URL, other])
    publisher = bench.with_trackers((URL, bench.tracker), (other, quick))
    publisher.publish(bench.hashes[0], [other])
    assert entered.is_set()
    assert quick.taken == bench.hashes
    assert bench.tracker.taken == []
    slow.set()
    publisher.publish(bench.hashes[0])
    assert set(bench.tracker.taken) == set(bench.hashes)


def test_a_clock_that_was_wrong(make: Make) -> None:
    """What was noted for a time that is further off than it can be is done now."""
    tracker = Tracker()
    bench = make(tracker)
    bench.run_at(1e9)
    bench.run_at(1000)
    assert len(tracker.taken) == 2
    tracker.answers = [NetworkError("http://t", "timed out")]
    bench.run_at(1e9)
    bench.run_at(1000 + 2 * REPEAT)
    assert len(tracker.taken) == 3
