# SPDX-License-Identifier: GPL-3.0-or-later
"""The race for one item: lanes around the decisions of `substituter.race`.

Each way has a `substituter.lane.Lane`, a thread that makes NAR bytes of what its sources send. The
reader takes the NAR in order, each byte from whoever has it first. Which of them told the truth is
seen at the end, by the hash of what was read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from narswarm.errors import NarswarmError
from substituter.lane import Lane, NarSource, Shown, Sources
from substituter.race import Policy, Standing, Way, decide, overtaken, stalls

MAX_SPARES: Final = 3
"""Further servers that join for one item while others are silent."""

TICK: Final = 0.02
"""Seconds from one look at the race to the next."""


class NobodyLeftError(NarswarmError):
    """All sources have failed."""


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
            # What was let go is expected to be as fast as it was here.
            {**(self._expected or {}), **self._before},
            ahead=self._ahead,
            begun=self._begun,
        )
        actions = []
        if decision.start is not None:
            lane = Lane(self, decision.start)
            self._lanes[decision.start] = lane
            self._all.append(lane)
            actions.append(lambda: lane.begin(self._sources[lane.way]))
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
