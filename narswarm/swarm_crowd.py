# SPDX-License-Identifier: GPL-3.0-or-later
"""A crowd: peers who fetch the same torrents as this session at the same moment.

When many fetch the same files from few who have them, a byte crosses the seeds' uplinks as often as
it is asked for there before it can be had from another member of the crowd. So, once members were
met, a download listens before it asks seeds: it asks members alone at first, and seeds only if
nothing comes from members until it is its turn. Members take turns in an order that follows from
what they call themselves, another one for each file, so that they agree on it without a word. Who
is first brings a file into the crowd, and all others get it there. Nobody relies on what others say
that they have or do, nor waits long for somebody who has gone: what counts is what comes.
Decisions, no clock and no session.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from typing import Final

MEMORY: Final = 30.0
"""Seconds for which somebody who was met is taken to be there."""

AT_LEAST: Final = 0.5
"""Seconds for which members alone are asked when none of them sends anything."""

EACH: Final = 1.5
"""Seconds more for each member whose turn is before: what the first asks for has come by then."""

AT_MOST: Final = 4.0
"""Seconds more, however many members there are."""

SILENCE: Final = 2.0
"""Seconds of silence after which seeds are asked as well when something has come."""

NEW: Final = 3.0
"""Seconds after its beginning in which a download that met nobody before may still listen."""

STALLED: Final = 2.0
"""Seconds of silence after which connections to seeds are taken to be stuck."""

RECALL: Final = 4.0
"""Seconds that a connection to a seed gets to bring something."""

MIN_RATE: Final = 64 << 10
"""Bytes a second that members have to bring, or seeds are asked as well."""

MIN_LENGTH: Final = 256 << 10
"""Bytes of a payload below which there is too little to be won."""

MAX_MET: Final = 1000
"""Addresses that are kept, of either kind: strangers may come and go."""

MAX_CALLED: Final = 32
"""Members that are called for what is begun."""

_NAME: Final = "narswarm "
_LENGTH: Final = len(_NAME) + 8


def session_name() -> str:
    """What a session calls itself (the "v" of BEP 10): no two have the same."""
    return _NAME + secrets.token_hex(4)


def turn(own: str, others: Iterable[str], torrent: str) -> int:
    """How many members of a crowd ask seeds of a torrent before this one; they all agree on it.

    Args:
        own: name of this session.
        others: what peers that fetch the torrent call themselves; clients of other kinds know no
            turns, and don't count, nor do names that aren't as long as ours.
        torrent: its infohash.
    """
    mine = _draw(own, torrent)
    names = (name for name in others if name.startswith(_NAME) and len(name) == _LENGTH)
    return sum(_draw(name, torrent) < mine for name in names)


def _draw(name: str, torrent: str) -> bytes:
    return hashlib.sha256(f"{torrent} {name}".encode()).digest()


class Crowd:
    """Who was met. Not thread-safe: its owner has a lock."""

    def __init__(self) -> None:
        self._members: dict[str, tuple[float, int]] = {}
        self._seeds: dict[str, int] = {}

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
            _, before = self._members.pop(address, (now, 0))
            self._members[address] = now, port if called else before
            if len(self._members) > MAX_MET:
                del self._members[next(iter(self._members))]
        elif address in self._seeds or len(self._seeds) < MAX_MET:
            self._seeds[address] = port if called else self._seeds.get(address, 0)

    def members(self, now: float) -> int:
        """How many members were met lately."""
        return sum(now - met < MEMORY for met, _ in self._members.values())

    def addresses(self, now: float) -> list[tuple[str, int]]:
        """Where members listen that were met lately, those met last first."""
        known = reversed(self._members.items())
        lately = [(it, port) for it, (met, port) in known if port and now - met < MEMORY]
        return lately[:MAX_CALLED]

    @property
    def seeds(self) -> list[tuple[str, int]]:
        """Those who had everything whenever they were met; port 0 where none is known."""
        return [seed for seed in self._seeds.items() if seed[0] not in self._members]


class Listening:
    """How long one download asks members alone.

    Args:
        now: seconds.
        received: bytes that came before.
    """

    def __init__(self, now: float, received: int = 0) -> None:
        self._begun = now
        self._before = received

    def is_over(self, now: float, received: int, idle: float, place: int) -> bool:
        """Whether seeds are to be asked from now on.

        Args:
            now: seconds.
            received: bytes that have come in all.
            idle: seconds since the last one came.
            place: how many members ask seeds before this one.
        """
        received -= self._before
        wait = min(place * EACH, AT_MOST)
        late = now - self._begun - AT_LEAST - wait
        if not received:
            return late >= 0
        return idle >= SILENCE + wait or received < late * MIN_RATE
