# SPDX-License-Identifier: GPL-3.0-or-later
"""The race for one item: threads around the decisions of `substituter.race`.

Each way has a thread that goes through its sources and makes NAR bytes of what they send. The
reader takes the NAR in order, each byte from whoever has it first. A source that joins late begins
at the start of the NAR, and what the reader has had already is passed over; so any of them can take
over at any byte. Which of them told the truth is seen at the end, by the hash of what was read.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol, runtime_checkable

from narswarm.errors import NarswarmError, NetworkError
from substituter.race import Meter, Policy, Standing, State, Way, decide, overtaken, stalls

AHEAD: Final = 16 << 20
"""Bytes of NAR that each way may have in memory for the reader."""

MAX_SPARES: Final = 3
"""Further servers that join for one item while others are silent."""

TICK: Final = 0.02
"""Seconds from one look at the race to the next."""


class NobodyLeftError(NarswarmError):
    """All sources have failed."""


class Runner(Protocol):
    """What a source sees of the race."""

    def source(
        self,
        url: str,
        total: int | None,
        done: Callable[[], int],
        label: Callable[[], str] | None = None,
    ) -> None:
        """Take note that somebody was found who has the item; see `Report.source`."""

    @property
    def dropped(self) -> bool:
        """Whether nobody wants its bytes any more."""

    @property
    def alone(self) -> bool:
        """Whether there is no other way left, so that patience makes sense."""

    def on_drop(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, from any thread, when nobody wants the bytes any more."""


class NarSource(Protocol):
    """Something that can deliver the NAR of an item.

    Attributes:
        key: tells it from others, and names it in messages.
    """

    key: str

    def nar(self, runner: Runner) -> contextlib.AbstractContextManager[Iterator[bytes]]:
        """The NAR in chunks; raises a NarswarmError when it can't go on."""


@runtime_checkable
class Ahead(Protocol):
    """A source that knows better than its lane how far it is."""

    def standing(self, one: Standing, now: float) -> Standing:
        """How far it is, from what the lane knows."""


class Shown(Protocol):
    """What the user sees: a `substituter.report.Report`."""

    def source(
        self,
        url: str,
        total: int | None,
        done: Callable[[], int],
        label: Callable[[], str] | None = None,
    ) -> None:
        """Say where the item comes from now."""


Sources = Callable[["Lane"], Iterator[NarSource]]
"""Gives the sources of a way one after another; called in the thread of the lane that it is given,
where it may wait."""

Failed = Callable[[NarSource, Exception, bool], None]
"""Is told of each source that failed, why, and whether the user has seen it."""


class Contest:
    """The race for one item.

    Args:
        nar_size: bytes of the NAR.
        policy: what the user wants of the two ways.
        ways: the sources of each way that there is.
        report: is told whose bytes are read.
        failed: is told of sources that failed.
        expected: the rates that ways had with earlier items.
        ahead: whether the seeder was told of the item before.
        begun: the way by which this process fetches it already.
        clock: seconds from any start.
    """

    def __init__(
        self,
        nar_size: int,
        policy: Policy,
        ways: Mapping[Way, Sources],
        report: Shown,
        failed: Failed,
        expected: Mapping[Way, float] | None = None,
        *,
        ahead: bool = False,
        begun: Way | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.nar_size = nar_size
        self.used: list[NarSource] = []
        """The sources whose bytes were read, in order."""
        self.changed = threading.Condition()
        self.consumed = 0
        self.clock = clock
        self._policy = policy
        self._sources = ways
        self._report = report
        self._failed = failed
        self._expected = expected
        self._lanes: dict[Way, Lane] = {}
        self._spare: Lane | None = None
        self._spares = 0
        self._before: dict[Way, float] = {}
        self._all: list[Lane] = []
        self._shown: NarSource | None = None
        self._looked = float("-inf")
        self._ahead = ahead
        self._begun = begun

    def chunks(self) -> Iterator[bytes]:
        """The NAR in order.

        Raises:
            NobodyLeftError: before its end.
        """
        try:
            while self.consumed < self.nar_size:
                lane, source, chunk = self._next()
                if source is not self._shown:
                    self._shown = source
                    if source not in self.used:
                        self.used.append(source)
                    lane.show(self._report)
                yield chunk
        finally:
            self.close()

    def close(self) -> None:
        """Let go of all sources."""
        with self.changed:
            lanes = self._running()
        for lane in lanes:
            lane.drop()

    def join(self, timeout: float) -> None:
        """Wait until the sources are closed, for some seconds at most."""
        end = self.clock() + timeout
        for lane in self._all:
            lane.thread.join(max(0.0, end - self.clock()))

    def settle(self, timeout: float) -> None:
        """Wait until those that have delivered everything have tidied up, for some seconds at most.

        This process may be killed as soon as an item is in place.
        """
        end = self.clock() + timeout
        for lane in self._all:
            if lane.has_delivered():
                lane.thread.join(max(0.0, end - self.clock()))

    def rates(self) -> dict[Way, float]:
        """The rates of ways that were not slowed down by the reader, as far as they are known."""
        found = {way: lane.standing().rate for way, lane in self._lanes.items()}
        return self._before | {
            way: rate
            for way, rate in found.items()
            if rate and not self._lanes[way].was_full and not self._lanes[way].is_quiet()
        }

    def report_failure(self, source: NarSource, error: Exception) -> None:
        """Pass on why a source failed."""
        self._failed(source, error, source is self._shown)

    def is_alone(self, way: Way) -> bool:
        """Whether the other way is over, or there is none."""
        if way.other not in self._sources:
            return True
        other = self._lanes.get(way.other)
        return other is not None and other.over and not other.resting and not other.is_complete()

    def _next(self) -> tuple[Lane, NarSource, bytes]:
        """The next bytes from any lane that has them, the one that was read last before others."""
        while True:
            with self.changed:
                now = self.clock()
                if now - self._looked >= TICK:
                    self._looked = now
                    decided = self._decide(now)
                else:
                    decided = []
                if not decided:
                    lanes = self._running()
                    for lane in lanes:
                        lane.skip(self.consumed)
                    for lane in sorted(lanes, key=self._rank):
                        if (taken := lane.take(self.consumed)) is not None:
                            source, chunk = taken
                            self.consumed += len(chunk)
                            return lane, source, chunk
                    if self._is_over():
                        raise NobodyLeftError("race", "no source is left")
                    self.changed.wait(TICK)
                    self._looked = float("-inf")
            for action in decided:
                action()

    def _rank(self, lane: Lane) -> bool:
        return lane.current is not self._shown

    def _is_over(self) -> bool:
        return len(self._lanes) == len(self._sources) and all(
            lane.over and not lane.resting for lane in self._running()
        )

    def _running(self) -> list[Lane]:
        """All lanes, whether they are over or not."""
        return [*self._lanes.values(), *([self._spare] if self._spare else [])]

    def _decide(self, now: float) -> list[Callable[[], None]]:
        """What has to be done outside of the lock."""
        lanes = self._running()
        if any(lane.is_complete() for lane in lanes):
            return [lane.drop for lane in lanes if not (lane.over or lane.dropped)]
        if (actions := self._decide_spare(now)) is not None:
            return actions
        standings = {
            way: self._lanes[way].standing() if way in self._lanes else Standing()
            for way in self._sources
        }
        decision = decide(
            self._policy,
            self.nar_size,
            standings,
            now,
            self._expected,
            ahead=self._ahead,
            begun=self._begun,
        )
        actions = []
        if decision.start is not None:
            lane = Lane(self, decision.start)
            self._lanes[decision.start] = lane
            self._all.append(lane)
            actions.append(lambda: lane.begin(_Shared(self._sources[lane.way], lane)))
        if decision.stop is not None:
            stopped = self._lanes.pop(decision.stop)
            actions.append(stopped.drop)
            if (rate := standings[decision.stop].rate) and not stopped.was_full:
                self._before[decision.stop] = rate
            if self._spare is not None and self._spare.way is decision.stop:
                actions.append(self._spare.drop)
                self._spare = None
        return actions or self._start_spare(standings, now)

    def _start_spare(
        self, standings: Mapping[Way, Standing], now: float
    ) -> list[Callable[[], None]]:
        """Have another server join those that are silent."""
        if (
            self._spare is not None
            or self._spares >= MAX_SPARES
            or not stalls(standings, now, begun=self._begun)
        ):
            return []
        first = self._lanes[Way.HTTP]
        self._spares += 1
        self._spare = lane = Lane(self, Way.HTTP)
        self._all.append(lane)
        return [lambda: lane.begin_beside(first)]

    def _decide_spare(self, now: float) -> list[Callable[[], None]] | None:
        """Who of two servers goes on; None if there is nothing to do."""
        spare, first = self._spare, self._lanes.get(Way.HTTP)
        if spare is None or first is None:
            return None
        if spare.over:
            self._spare = None
            return None
        won = True if first.over else None
        won = won or overtaken(self.nar_size, first.standing(), spare.standing(), now)
        if won is None:
            return None
        self._spare = None
        if won:
            self._lanes[Way.HTTP] = spare
        return [first.drop if won else spare.drop]


class Lane:
    """One way as it runs: a thread, and the bytes that wait for the reader."""

    def __init__(self, contest: Contest, way: Way) -> None:
        self.way = way
        self.over = False
        self.resting = False
        self.was_full = False
        self.current: NarSource | None = None
        self.thread = threading.Thread(target=self._run, name=str(way), daemon=True)
        self._contest = contest
        self._sources: _Shared | None = None
        self._besides = ""
        self._dropped = False
        self._callbacks: list[Callable[[], None]] = []
        self._meter = Meter()
        self._since = self._last = contest.clock()
        self._found: tuple[str, int | None, Callable[[], int], Callable[[], str] | None] | None = (
            None
        )
        self._position = 0
        self._full = False
        self._waiting = 0
        self._queue: deque[tuple[int, NarSource, bytes]] = deque()

    # What sources see

    @property
    def dropped(self) -> bool:
        """Whether nobody wants its bytes any more."""
        return self._dropped

    @property
    def alone(self) -> bool:
        """Whether there is no other way left."""
        with self._contest.changed:
            return self._contest.is_alone(self.way)

    def source(
        self,
        url: str,
        total: int | None,
        done: Callable[[], int],
        label: Callable[[], str] | None = None,
    ) -> None:
        """Take note that somebody was found who has the item."""
        with self._contest.changed:
            self._found = (url, total, done, label)

    def on_drop(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the lane is dropped; the last one given counts."""
        with self._contest.changed:
            self._callbacks = [callback]
            dropped = self._dropped
        if dropped:
            callback()

    def rest(self) -> bool:
        """Wait until no other way is left; False when this one isn't wanted any more either."""
        contest = self._contest
        with contest.changed:
            self.over = self.resting = True
            contest.changed.notify_all()
            contest.changed.wait_for(lambda: self._dropped or contest.is_alone(self.way))
            self.over = self.resting = False
            return not self._dropped

    # What the contest sees

    def begin(self, sources: _Shared) -> None:
        """Start the thread."""
        self._sources = sources
        self.thread.start()

    def begin_beside(self, other: Lane) -> None:
        """Start the thread, with the sources that another lane hasn't tried, of other hosts."""
        self._besides = _host(other.current)
        self._sources = other._sources
        self.thread.start()

    def drop(self) -> None:
        """Tell the thread to end; doesn't wait for it."""
        with self._contest.changed:
            self._dropped = True
            callbacks, self._callbacks = self._callbacks, []
            self._queue.clear()
            self._contest.changed.notify_all()
        for callback in callbacks:
            callback()

    def standing(self) -> Standing:
        """How far it is."""
        now = self._contest.clock()
        found = Standing(
            State.OVER if self.over else State.RUNNING,
            self._since,
            self._found is not None,
            self._position,
            self._last,
            self._meter.rate(now),
            self._full,
        )
        return self.current.standing(found, now) if isinstance(self.current, Ahead) else found

    def is_quiet(self) -> bool:
        """Whether nothing came lately."""
        return self._contest.clock() - self._last > 1.0

    def show(self, report: Shown) -> None:
        """Let the user see where the bytes come from."""
        if self._found is not None:
            report.source(*self._found)

    def is_complete(self) -> bool:
        """Whether all of the NAR has come."""
        return self.over and self._position >= self._contest.nar_size

    def has_delivered(self) -> bool:
        """Whether all of the NAR has come, though it may not be over."""
        return self._position >= self._contest.nar_size

    def skip(self, consumed: int) -> None:
        """Drop what the reader has had."""
        while self._queue and self._queue[0][0] + len(self._queue[0][2]) <= consumed:
            self._pop()

    def take(self, consumed: int) -> tuple[NarSource, bytes] | None:
        """The bytes at a position, if they are here."""
        if not self._queue:
            return None
        start, source, chunk = self._pop()
        return source, chunk[consumed - start :] if start < consumed else chunk

    def _pop(self) -> tuple[int, NarSource, bytes]:
        entry = self._queue.popleft()
        self._waiting -= len(entry[2])
        if self._full:
            self._full = False
            self._contest.changed.notify_all()
        return entry

    # The thread

    def _run(self) -> None:
        contest = self._contest
        try:
            assert self._sources is not None  # noqa: S101 -- begin() has set it
            while (source := self._sources.next(self._besides)) is not None:
                if self._dropped or self._serve(source):
                    return
        except Exception as error:  # noqa: BLE001 -- the other way goes on
            if not self._dropped and self.current is not None:
                contest.report_failure(self.current, error)
        finally:
            with contest.changed:
                self.over = True
                contest.changed.notify_all()

    def _serve(self, source: NarSource) -> bool:
        """Take the NAR from a source; whether nothing more is to be done."""
        contest = self._contest
        with contest.changed:
            self.current, self._found, self._position = source, None, 0
            self._meter = Meter()
            self._since = self._last = contest.clock()
        try:
            with source.nar(self) as nar:
                for chunk in nar:
                    if not self._put(source, chunk):
                        return True
            if self._position < contest.nar_size:
                raise NetworkError(
                    source.key, f"ended after {self._position} of {contest.nar_size} bytes"
                )
        except Exception as error:  # noqa: BLE001 -- one source never ends the search
            if self._dropped:
                return True
            contest.report_failure(source, error)
            return False
        return True

    def _put(self, source: NarSource, chunk: bytes) -> bool:
        """Hand bytes to the reader, waiting while it has enough; False when it wants no more."""
        contest = self._contest
        with contest.changed:
            start, self._position = self._position, self._position + len(chunk)
            now = self._last = contest.clock()
            self._meter.add(now, self._position)
            if self._position > contest.consumed:
                self._queue.append((start, source, chunk))
                self._waiting += len(chunk)
                contest.changed.notify_all()
                if self._waiting >= AHEAD:
                    self._full = self.was_full = True
                    contest.changed.wait_for(lambda: self._dropped or not self._full)
                    self._last = contest.clock()
            return not self._dropped and self._position < contest.nar_size


class _Shared:
    """The sources of a way, each of which is given once, to whichever lane asks.

    Args:
        sources: gives them.
        lane: the first that asks.
    """

    def __init__(self, sources: Sources, lane: Lane) -> None:
        self._sources = sources
        self._lane = lane
        self._lock = threading.Lock()
        self._iterator: Iterator[NarSource] | None = None
        self._passed: deque[NarSource] = deque()

    def next(self, besides: str = "") -> NarSource | None:
        """The next one; may wait.

        Args:
            besides: a host whose sources are left for others.
        """
        with self._lock:
            if self._passed and not besides:
                return self._passed.popleft()
            if self._iterator is None:
                self._iterator = self._sources(self._lane)
            for source in self._iterator:
                if not besides or _host(source) != besides:
                    return source
                self._passed.append(source)
            return None


def _host(source: NarSource | None) -> str:
    """The server that a source is of, "" where there is none."""
    return str(getattr(source, "host", ""))
