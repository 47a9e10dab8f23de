# SPDX-License-Identifier: GPL-3.0-or-later
"""Races whose sources a test controls, with a clock that runs with each look."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from narswarm.errors import NetworkError
from substituter.contest import Contest
from substituter.lane import Lane, Runner, Sources
from substituter.race import Policy, Way
from substituter.report import Transfer

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
        runner.source(Transfer(f"x:{self.key}", None, lambda: 0))
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

    def source(self, transfer: Transfer) -> None:
        """Note whose bytes are read."""
        self.urls.append(transfer.url)


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
