# SPDX-License-Identifier: GPL-3.0-or-later
"""Announces torrents in the DHT, all of them in time.

A node forgets a peer that isn't announced again within about half an hour (BEP 5). Of itself
libtorrent announces a torrent every four seconds after a start, and later one a second at most: a
seeder of a few thousand torrents would be found in the DHT with a part of them only, and the last
of them hours after its start. So all are announced here, by turns, at a pace that a home's router
doesn't notice: each lookup is some thirty packets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Protocol

from narswarm.errors import NotFoundError

INTERVAL = 2.0
"""Seconds between two calls of `DhtAnnouncer.run`."""

BATCH = 10
"""Torrents that one call announces; beyond 6,000 the round takes longer than `PERIOD`."""

PERIOD = 20 * 60.0
"""Seconds from one announce of a torrent to its next."""

AGAIN = 60.0
"""Seconds from the first announce of a torrent to its second: datagrams get lost, and libtorrent
drops an announce without a word while it hasn't looked at the torrent's files yet."""

LOOK = 10.0
"""Seconds between two looks for torrents that came or went."""


class Announces(Protocol):
    """What announces: a `narswarm.swarm.Swarm`."""

    def announce_in_dht(self, infohash: str) -> None:
        """Announce a torrent now."""

    def counters(self) -> Mapping[str, int]:
        """Among others "dht_nodes", how many nodes are known."""


class DhtAnnouncer:
    """Whose turn it is to be announced.

    Args:
        swarm: announces.
        infohashes: asked what there is to announce.
        clock: seconds that only grow.
    """

    def __init__(
        self, swarm: Announces, infohashes: Callable[[], Iterable[str]], clock: Callable[[], float]
    ) -> None:
        self._swarm = swarm
        self._infohashes = infohashes
        self._clock = clock
        self._joined = False
        self._look_at = 0.0
        self._new: deque[str] = deque()
        self._last: dict[str, float | None] = {}
        self._once: deque[tuple[float, str]] = deque()
        self._told: deque[tuple[float, str]] = deque()

    def run(self) -> None:
        """Announce what is due: torrents that came, those that came lately, and then the others."""
        now = self._clock()
        if not self._joined:
            # Before the first node is known there is nobody to tell.
            self._joined = self._swarm.counters()["dht_nodes"] > 0
            if not self._joined:
                return
            self._look_at = now
        if now >= self._look_at:
            self._look(now)
        for _ in range(BATCH):
            infohash = self._next(now)
            if infohash is None:
                return
            # One that is gone comes with the next look if it comes back.
            before = self._last.pop(infohash)
            with suppress(NotFoundError):
                self._swarm.announce_in_dht(infohash)
                self._last[infohash] = now
                (self._once if before is None else self._told).append((now, infohash))

    def _look(self, now: float) -> None:
        self._look_at = now + LOOK
        last = self._last
        self._last = {infohash: last.get(infohash) for infohash in self._infohashes()}
        self._new.extend(infohash for infohash in self._last if infohash not in last)

    def _next(self, now: float) -> str | None:
        while self._new:
            infohash = self._new.popleft()
            if self._last.get(infohash, now) is None:
                return infohash
        for told, period in ((self._once, AGAIN), (self._told, PERIOD)):
            while told and told[0][0] <= now - period:
                when, infohash = told.popleft()
                if self._last.get(infohash) == when:
                    return infohash
        return None
