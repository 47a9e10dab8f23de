# SPDX-License-Identifier: GPL-3.0-or-later
"""A crowd: peers who fetch the same torrents as this session at the same moment.

When many fetch the same files from few who have them, a byte crosses the seeds' uplinks as often as
it is asked for there before it can be had from another member of the crowd. So, once members were
met, a download listens before it asks seeds: it asks members alone at first, and seeds only if
nothing comes from members for a time that chance chooses. Who is first brings a file into the
crowd, and all others get it there. Nobody relies on what others say that they have or do, nor waits
for somebody who has gone: what counts is what comes. Decisions, no clock and no session.
"""

from __future__ import annotations

from random import Random
from typing import Final

MEMORY: Final = 30.0
"""Seconds for which somebody who was met is taken to be there."""

AT_LEAST: Final = 0.3
"""Seconds for which members alone are asked when none of them sends anything."""

EACH: Final = 0.4
"""Seconds more for each member, times a number between 0 and 1 that chance chooses."""

AT_MOST: Final = 3.0
"""Seconds in all, however many members there are."""

SILENCE: Final = 1.5
"""Seconds of silence after which seeds are asked as well when something has come."""

STALLED: Final = 2.0
"""Seconds of silence after which connections to seeds are taken to be stuck."""

RECALL: Final = 4.0
"""Seconds that a connection to a seed gets to bring something."""

MIN_RATE: Final = 96 << 10
"""Bytes a second that members have to bring, or seeds are asked as well."""

MIN_LENGTH: Final = 256 << 10
"""Bytes of a payload below which there is too little to be won."""

MAX_MET: Final = 1000
"""Addresses that are kept, of either kind: strangers may come and go."""


class Crowd:
    """Who was met. Not thread-safe: its owner has a lock."""

    def __init__(self) -> None:
        self._members: dict[str, float] = {}
        self._seeds: dict[tuple[str, int], None] = {}

    def meet(self, address: str, port: int, now: float, *, seed: bool, called: bool) -> None:
        """Note a connected peer.

        Args:
            address: IP address.
            port: of the connection's other end.
            now: seconds.
            seed: it has everything.
            called: it was connected to, so that the port is where it listens.
        """
        if not seed:
            self._members.pop(address, None)
            self._members[address] = now
            if len(self._members) > MAX_MET:
                del self._members[next(iter(self._members))]
        elif called and len(self._seeds) < MAX_MET:
            self._seeds[address, port] = None

    def members(self, now: float) -> int:
        """How many members were met lately."""
        return sum(now - met < MEMORY for met in self._members.values())

    @property
    def seeds(self) -> list[tuple[str, int]]:
        """Those who had everything whenever they were met."""
        return [seed for seed in self._seeds if seed[0] not in self._members]


class Listening:
    """How long one download asks members alone.

    Args:
        now: seconds.
        members: how many there are.
        random: tells members apart.
        received: bytes that came before.
    """

    def __init__(self, now: float, members: int, random: Random, received: int = 0) -> None:
        self._before = received
        self._until = now + AT_LEAST + random.random() * min(EACH * members, AT_MOST - AT_LEAST)

    def is_over(self, now: float, received: int, idle: float) -> bool:
        """Whether seeds are to be asked from now on.

        Args:
            now: seconds.
            received: bytes that have come in all.
            idle: seconds since the last one came.
        """
        received -= self._before
        if not received:
            return now >= self._until
        return idle >= SILENCE or received < (now - self._until) * MIN_RATE
