# SPDX-License-Identifier: GPL-3.0-or-later
"""What is fetched ahead next, and by which way: decisions, no threads and no clock.

guix-daemon substitutes one item after another, and waits for each. So while it restores one, the
next are fetched. Items that are a round trip and little else come from a server, several at a
time; all others from the swarm, which spares servers, and whose members pass on to each other what
they have so far. Here the ways don't race for an item, as no byte should come twice: an item that
the swarm has not, or gives up, is a server's from then on.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from random import Random
from typing import Final, NamedTuple

from narswarm.plans import LARGE, LOOK_AHEAD, at_once, pick
from substituter.race import Policy, Way

TINY: Final = 128 << 10
"""Bytes of a NAR up to which it comes from a server, if it may."""

HTTP_AT_ONCE: Final = 6
"""Connections to servers at a time."""

SWARM_AT_ONCE: Final = 12
"""Items that are fetched from swarms at a time."""


class Entry(NamedTuple):
    """An item to be fetched ahead.

    Attributes:
        path: the store path.
        size: bytes of the NAR.
        ways: those that it may come by.
    """

    path: str
    size: int
    ways: frozenset[Way]


def preferred(policy: Policy, size: int) -> Way:
    """Which way is tried first for an item that nobody waits for yet."""
    if policy is Policy.RACE:
        return Way.HTTP if size <= TINY else Way.SWARM
    return Way.HTTP if policy is Policy.HTTP_FIRST else Way.SWARM


def order(items: Mapping[str, Iterable[str]]) -> list[str]:
    """Store paths in the order in which guix-daemon is going to ask for them.

    It takes an item when all that it refers to is there, and of several the one whose name (that
    is, what follows the hash) sorts first (Guix: nix/libstore/build.cc `SubstitutionGoal::key`).

    Args:
        items: what each refers to; what isn't itself one of them is there already.
    """
    missing = {path: {r for r in items[path] if r in items and r != path} for path in items}
    users: dict[str, list[str]] = {}
    for path, references in missing.items():
        for reference in references:
            users.setdefault(reference, []).append(path)
    ready = [(_name(path), path) for path, references in missing.items() if not references]
    heapq.heapify(ready)
    found: list[str] = []
    while ready:
        _, path = heapq.heappop(ready)
        found.append(path)
        for user in users.get(path, ()):
            missing[user].discard(path)
            if not missing[user]:
                heapq.heappush(ready, (_name(user), user))
    # Items that refer to each other in a circle come last; there are none in a good store.
    return found + [path for path in items if missing[path]]


class Waiting:
    """Items that nobody fetches yet, for each way in the order in which they will be asked for.

    Args:
        policy: what the user wants.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._entries: dict[str, Entry] = {}
        self._order: dict[str, int] = {}
        self._lists: dict[Way, list[Entry]] = {way: [] for way in Way}

    def add(self, entry: Entry) -> None:
        """Add an item: to the way that is preferred, if it may come by that."""
        self._entries[entry.path] = entry
        insort(self._lists[self._way(entry)], entry, key=self._rank)

    def pop(self, path: str) -> Entry | None:
        """Take an item out, if it is there."""
        entry = self._entries.pop(path, None)
        if entry is not None:
            self._lists[self._way(entry)].remove(entry)
        return entry

    def of(self, way: Way) -> Sequence[Entry]:
        """Those that a way fetches."""
        return self._lists[way]

    def sort(self, paths: Iterable[str]) -> None:
        """Have another order."""
        self._order = {path: number for number, path in enumerate(paths)}
        for entries in self._lists.values():
            entries.sort(key=self._rank)

    def _rank(self, entry: Entry) -> int:
        return self._order.get(entry.path, -1)

    def _way(self, entry: Entry) -> Way:
        way = preferred(self._policy, entry.size)
        return way if way in entry.ways else way.other


def choose(
    entries: Iterable[Entry],
    way: Way,
    running: AbstractSet[Entry],
    room: int,
    rate: float | None = None,
    random: Random | None = None,
) -> Entry | None:
    """The next item for a way that is free, None if there is none for now.

    Args:
        entries: what is still to be fetched by this way, in the order in which it will be asked
            for.
        way: the one that is free.
        running: what this way fetches now.
        room: bytes of disk.
        rate: bytes of NARs a second that this way brings lately, None if that isn't known.
        random: of large items from the swarm every second one is taken out of turn by this. Of a
            crowd that begins at the same time each then has something that others lack.
    """
    if len(running) >= (HTTP_AT_ONCE if way is Way.HTTP else SWARM_AT_ONCE):
        return None
    most = at_once(rate)
    large = sum(entry.size >= LARGE for entry in running)
    able = (each for each in entries if each.size <= room and (each.size < LARGE or large < most))
    found = next(able, None)
    if found is None or found.size < LARGE or random is None or way is Way.HTTP:
        return found
    behind = islice(able, LOOK_AHEAD)
    others = (each for each in behind if LARGE <= each.size <= room // 2)
    return pick(found, others, large, random)


def _name(path: str) -> str:
    """What follows the hash of a store path."""
    return path.rpartition("/")[2].partition("-")[2]
