# SPDX-License-Identifier: GPL-3.0-or-later
"""Announces again when a tracker is back.

libtorrent tries a tracker that failed at ever longer intervals, for each torrent on its own. After
a tracker was down for an hour, thousands of torrents would come back over the next hour. So one
torrent is announced again and again, and as soon as that works, all are.

What libtorrent is told while an announce is under way it forgets when that fails: a tracker may
refuse a torrent that it is told of a moment later. So such a torrent is announced twice.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from narswarm.errors import NotFoundError
from narswarm.swarm_events import TrackerStatus

log = logging.getLogger(__name__)

BATCH = 100
"""Torrents that are announced in one go; a second lies between two of these."""


class Announces(Protocol):
    """What announces: a `narswarm.swarm.Swarm`."""

    def trackers(self) -> list[TrackerStatus]:
        """How announces went."""

    def reannounce(self, infohash: str) -> None:
        """Announce a torrent now."""


@dataclass(slots=True)
class _Seen:
    replies: int = 0
    errors: int = 0
    failing: bool = False


class Reannouncer:
    """Watches how announces go.

    Args:
        swarm: announces.
        infohashes: asked what there is to announce.
        pause: waits a number of seconds; true if the seeder is about to end.
    """

    def __init__(
        self,
        swarm: Announces,
        infohashes: Callable[[], Sequence[str]],
        pause: Callable[[float], bool],
    ) -> None:
        self._swarm = swarm
        self._infohashes = infohashes
        self._pause = pause
        self._seen: dict[str, _Seen] = {}
        self._again: deque[str] = deque()

    def announce(self, infohash: str) -> None:
        """Announce a torrent which a tracker knows by now, and once more at the next look."""
        self._announce([infohash])
        self._again.append(infohash)

    def run(self) -> None:
        """Look at what happened since the last call."""
        again = [self._again.popleft() for _ in range(len(self._again))]
        probe = revived = False
        for status in self._swarm.trackers():
            seen = self._seen.setdefault(status.url, _Seen())
            answered = status.replies > seen.replies
            failed = status.errors > seen.errors
            seen.replies, seen.errors = status.replies, status.errors
            if answered and seen.failing:
                seen.failing, revived = False, True
                log.info("%s: takes announces again", status.url)
            elif failed and not answered:
                if not seen.failing:
                    log.warning("%s: announce failed: %s", status.url, status.message)
                seen.failing = True
            probe = probe or seen.failing
        infohashes = self._infohashes()
        if revived:
            self.announce_all()
        else:
            self._announce([*again, *(infohashes[-1:] if probe else ())])

    def announce_all(self) -> None:
        """Announce everything that there is."""
        self._announce(self._infohashes())

    def _announce(self, infohashes: Sequence[str]) -> None:
        for start in range(0, len(infohashes), BATCH):
            if start and self._pause(1.0):
                return
            for infohash in infohashes[start : start + BATCH]:
                with suppress(NotFoundError):
                    self._swarm.reannounce(infohash)
