# SPDX-License-Identifier: GPL-3.0-or-later
"""Notices that a tracker has forgotten what it was told.

A tracker keeps peers in memory, and a seed announces every half hour. So after a tracker was
restarted, nobody finds a seed until then, and no announce ever failed that would tell the seed. If
the tracker lost its index, nobody would for a week. Asking about one item a minute shows both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from narswarm.errors import NetworkError
from narswarm.trackerclient import TrackerIndex

log = logging.getLogger(__name__)

SETTLED = 60.0
"""Seconds after which a tracker that took an item has had our announce of it."""

PAUSE = 600.0
"""Seconds that a tracker isn't asked after it had forgotten something: telling it again takes
time, and one that never remembers us mustn't be told all the time."""


class Sample(Protocol):
    """Something that a tracker took."""

    @property
    def nar_hash(self) -> bytes:
        """32 bytes."""

    @property
    def infohash(self) -> str:
        """Hex, of version 2."""


class Taken(Protocol):
    """What trackers took: a `seeder.state.State`, or a `seeder.mirror_table.MirrorTable`."""

    def sample(self, tracker: str, before: float) -> Sample | None:
        """Any of what a tracker took before a time."""

    def republish(self, tracker: str) -> None:
        """Have a tracker told again of everything."""


@dataclass(slots=True)
class _Tracker:
    announce: str
    index: TrackerIndex
    paused_until: float = 0.0


class Presence:
    """Asks trackers about items that they took.

    Args:
        state: knows what they took.
        trackers: announce URL and index of each tracker that has one.
        announce: announces everything again.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        state: Taken,
        trackers: Iterable[tuple[str, TrackerIndex]],
        *,
        announce: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._trackers = [_Tracker(announce, index) for announce, index in trackers]
        self._announce = announce
        self._clock = clock

    def run(self) -> None:
        """Ask each tracker about one item."""
        lost = False
        for tracker in self._trackers:
            now = self._clock()
            sample = self._state.sample(tracker.announce, now - SETTLED)
            if sample is None or 0 < tracker.paused_until - now <= PAUSE:
                continue
            try:
                entry = tracker.index.lookup(sample.nar_hash)
            except NetworkError:
                continue  # publishing and announcing fail as well, and say so
            torrents = () if entry is None else entry.torrents
            seeders = [t.seeders for t in torrents if t.infohash_v2.hex() == sample.infohash]
            if any(seeders):
                continue
            tracker.paused_until = now + PAUSE
            if seeders:
                log.info("%s: has forgotten its peers", tracker.announce)
                lost = True
            else:
                # What is published is announced.
                log.info("%s: has forgotten what it indexed", tracker.announce)
                self._state.republish(tracker.announce)
        if lost:
            self._announce()
