# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells trackers which torrents carry which NARs, until they know.

A tracker that can't be reached is left alone for a while, and longer each time. One that doesn't
allow what it is sent (403) may learn of this seeder's key any time: the item is sent again after a
minute, then at intervals that double up to an hour, and when a few in a row weren't allowed, so are
all others. One that refuses an item for what it is gets it again a day later. What a tracker took
is repeated after a week, in case it lost its index.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from narswarm.errors import NetworkError
from narswarm.httpsig import PublisherKey
from narswarm.trackerclient import RefusedError, TrackerIndex
from seeder.publications import Due

log = logging.getLogger(__name__)

FIRST_PAUSE = 5.0
LONGEST_PAUSE = 600.0
REFUSED_PAUSE = 86_400.0
FIRST_FORBIDDEN = 60.0
LONGEST_FORBIDDEN = 3600.0
MAX_FORBIDDEN = 3
"""Items in a row that aren't allowed until it is the tracker that isn't asked any more."""

REPEAT = 7 * 86_400.0
BATCH = 100

_SPREAD = 1.2
"""Times are multiplied by up to this. What is later than it can be was noted by a wrong clock."""

_COMPANY = 0.5
"""Seconds that a tracker which wants a NAR waits for the others to be told, too."""

_BUSY = frozenset({408, 425, 429})
_FORBIDDEN = frozenset({401, 403})
"""Of somebody whose clock is wrong, too."""


class Publications(Protocol):
    """What is to be published: a `seeder.publications.PublicationTable` that has the NARs, too."""

    def get(self, nar_hash: bytes) -> Publishable:
        """What is published of a NAR; raises NotFoundError."""

    def due(self, tracker: str, now: float, latest: float, limit: int) -> list[Due]:
        """What is to be published to a tracker now."""

    def published(self, nar_hash: bytes, tracker: str, now: float, due: float) -> None:
        """A tracker took it."""

    def refused(self, nar_hash: bytes, tracker: str, due: float, message: str) -> None:
        """A tracker didn't."""

    def retry(self, tracker: str) -> None:
        """All that a tracker didn't take is due now."""


class Publishable(Protocol):
    """What is published of a NAR."""

    @property
    def nar_hash(self) -> bytes:
        """32 bytes."""

    @property
    def torrent(self) -> bytes:
        """Metainfo."""

    @property
    def narinfo(self) -> bytes:
        """Vouches for it."""


@dataclass(slots=True)
class _Tracker:
    announce: str
    index: TrackerIndex
    failures: int = 0
    paused_until: float = 0.0
    said: str = ""
    forbidden: dict[bytes, int] = field(default_factory=dict)
    """How often each NAR wasn't allowed."""
    in_a_row: int = 0
    """Items that weren't allowed since one was."""

    def is_open(self, now: float) -> bool:
        """Whether it isn't left alone."""
        return not 0 < self.paused_until - now <= LONGEST_FORBIDDEN * _SPREAD


class Publisher:
    """Publishes what is due.

    Args:
        state: what there is.
        key: whose claims these are.
        trackers: announce URL and index of each tracker that has one.
        clock: seconds since the epoch.
        stopping: asked between two requests whether to stop.
        published: told of each NAR that a tracker took.
        rng: spreads what many seeders would otherwise do at the same time.
    """

    def __init__(
        self,
        state: Publications,
        key: PublisherKey,
        trackers: Iterable[tuple[str, TrackerIndex]],
        *,
        clock: Callable[[], float],
        stopping: Callable[[], bool],
        published: Callable[[bytes], None],
        rng: random.Random,
    ) -> None:
        self._state = state
        self._key = key
        self._trackers = [_Tracker(announce, index) for announce, index in trackers]
        self._clock = clock
        self._stopping = stopping
        self._published = published
        self._rng = rng

    def run(self) -> None:
        """Publish everything that is due, as far as trackers answer."""
        for tracker in self._trackers:
            # Bounded by what was due at the start, so that nothing can be sent round and round.
            begin = self._clock()
            while tracker.is_open(begin) and not self._stopping():
                latest = begin + REPEAT * _SPREAD
                batch = self._state.due(tracker.announce, begin, latest, BATCH)
                if not batch or not all(self._send(tracker, due) for due in batch):
                    break

    def retry(self) -> None:
        """Have trackers asked again at the next run that were left alone, or refused something."""
        for tracker in self._trackers:
            tracker.failures = tracker.in_a_row = 0
            tracker.forbidden.clear()
            tracker.paused_until = 0.0
            self._state.retry(tracker.announce)

    def publish(self, nar_hash: bytes, trackers: Collection[str] = ()) -> None:
        """Publish one NAR that is new, to all trackers that aren't left alone at the same time.

        Args:
            nar_hash: which.
            trackers: announce URLs of those that are waited for; all if there are none.
        """
        nar = self._state.get(nar_hash)
        due = Due(nar.nar_hash, nar.torrent, nar.narinfo)
        now = self._clock()
        threads: list[tuple[bool, threading.Thread]] = []
        for tracker in self._trackers:
            if self._stopping() or not tracker.is_open(now):
                continue
            thread = threading.Thread(target=self._send_one, args=(tracker, due), daemon=True)
            threads.append((not trackers or tracker.announce in trackers, thread))
            thread.start()
        for awaited, thread in sorted(threads, key=lambda pair: not pair[0]):
            thread.join(None if awaited else _COMPANY)

    def _send_one(self, tracker: _Tracker, due: Due) -> None:
        with suppress(sqlite3.ProgrammingError):  # the state was closed while a tracker was slow
            self._send(tracker, due)

    def _send(self, tracker: _Tracker, due: Due) -> bool:
        """Send one; whether the tracker wants more."""
        if self._stopping():
            return False
        now = self._clock()
        try:
            tracker.index.publish(self._key, due.nar_hash, due.torrent, due.narinfo, now)
        except RefusedError as error:
            if error.status in _FORBIDDEN:
                return self._forbid(tracker, due, now, error.reason)
            if error.status not in _BUSY:
                self._say(tracker, logging.WARNING, f"refuses items: {error.reason}")
                self._state.refused(
                    due.nar_hash, tracker.announce, now + REFUSED_PAUSE, error.reason
                )
                tracker.failures = 0
                return True
            self._pause(tracker, due, now, error.reason)
            return False
        except NetworkError as error:
            self._pause(tracker, due, now, error.reason)
            return False
        if tracker.failures:
            log.info("%s: answers again", tracker.announce)
        tracker.failures = tracker.in_a_row = 0
        tracker.said = ""
        tracker.forbidden.pop(due.nar_hash, None)
        later = now + REPEAT * self._rng.uniform(0.8, _SPREAD)
        self._state.published(due.nar_hash, tracker.announce, now, later)
        self._published(due.nar_hash)
        return True

    def _forbid(self, tracker: _Tracker, due: Due, now: float, reason: str) -> bool:
        """Note that an item wasn't allowed; whether others may be."""
        tries = tracker.forbidden.get(due.nar_hash, 0)
        tracker.forbidden[due.nar_hash] = tries + 1
        seconds = self._forbidden_pause(tries)
        self._state.refused(due.nar_hash, tracker.announce, now + seconds, reason)
        self._say(tracker, logging.WARNING, f"refuses items: {reason}")
        tracker.failures = 0
        tracker.in_a_row += 1
        rounds = tracker.in_a_row - MAX_FORBIDDEN
        if rounds < 0:
            return True
        tracker.paused_until = now + self._forbidden_pause(rounds)
        return False

    def _forbidden_pause(self, tries: int) -> float:
        seconds = min(LONGEST_FORBIDDEN, FIRST_FORBIDDEN * (1 << min(tries, 20)))
        return seconds * self._rng.uniform(0.8, _SPREAD)

    def _pause(self, tracker: _Tracker, due: Due, now: float, reason: str) -> None:
        """Leave a tracker alone, and let other items go first next time."""
        seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tracker.failures, 20))
        seconds *= self._rng.uniform(0.8, _SPREAD)
        tracker.failures += 1
        tracker.paused_until = now + seconds
        self._state.refused(due.nar_hash, tracker.announce, now + seconds, reason)
        self._say(tracker, logging.WARNING, f"can't be published to: {reason}")

    def _say(self, tracker: _Tracker, level: int, message: str) -> None:
        """One line for each new reason, not for each item."""
        if message != tracker.said:
            tracker.said = message
            log.log(level, "%s: %s", tracker.announce, message)
