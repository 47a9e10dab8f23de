# SPDX-License-Identifier: GPL-3.0-or-later
"""What is fetched ahead, in which order, and how fast.

guix-daemon substitutes one item after another, but it asks about all of them before. So the rest of
a plan is fetched while its first items are restored: in the plan's order, small items many at a
time, as they cost round trips, large ones few at a time, as they cost bandwidth, and some of those
out of turn (`narswarm.plans`). When somebody has waited for an item longer than a moment, only a
few small ones go beside it. Large ones use what the line carries, since all are wanted in the end
and one connection seldom fills it; where the operator limits the rate they get half of it together.
Small ones have no limit of their own: one that was made slow would take half a second to become
fast again, which is longer than it lasts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from itertools import islice
from random import Random

from narswarm.fetchclient import Wanted
from narswarm.plans import LARGE, LOOK_AHEAD, at_once, pick

MAX_SMALL = 16
MAX_BESIDE = 4
"""Small items at a time beside an item that somebody waits for."""

MAX_ITEMS = 20_000
"""Items of all plans together."""

MIN_RATE = 256 * 1024
"""Bytes a second that fetching ahead gets at least."""


class Plans:
    """The plans of all clients. Not thread-safe: its owner has a lock.

    Args:
        random: takes large items out of turn.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._plans: dict[Hashable, dict[bytes, Wanted]] = {}

    def __len__(self) -> int:
        return sum(len(plan) for plan in self._plans.values())

    def add(self, owner: Hashable, items: Iterable[Wanted]) -> int:
        """Add to a client's plan; returns how many items are in it that weren't.

        Args:
            owner: of the plan.
            items: in the order in which they will be wanted.
        """
        plan = self._plans.setdefault(owner, {})
        room = MAX_ITEMS - len(self)
        before = len(plan)
        for item in items:
            if len(plan) - before >= room:
                break
            plan.setdefault(item.nar_hash, item)
        return len(plan) - before

    def drop(self, owner: Hashable) -> None:
        """Forget a client's plan."""
        self._plans.pop(owner, None)

    def done(self, nar_hash: bytes) -> None:
        """Take an item out of all plans: it is being fetched, or was, or can't be."""
        for plan in self._plans.values():
            plan.pop(nar_hash, None)

    def owners(self, nar_hash: bytes) -> set[Hashable]:
        """Whose plans have an item."""
        return {owner for owner, plan in self._plans.items() if nar_hash in plan}

    def next(
        self,
        running: Mapping[bytes, int],
        room: int,
        *,
        waiting: bool = False,
        rate: float | None = None,
    ) -> Wanted | None:
        """What to begin with now, fairly from each plan; None if it is enough for now.

        Args:
            running: sizes in bytes of the NARs of plans that are fetched now, by hash.
            room: bytes of disk for them.
            waiting: whether somebody has been waiting for an item.
            rate: bytes of NARs a second that come lately, None if that isn't known.
        """
        most = MAX_BESIDE if waiting else MAX_SMALL, at_once(rate)
        large = sum(size >= LARGE for size in running.values())
        now = len(running) - large, large
        # The plan that has been served least recently is first.
        for owner, plan in list(self._plans.items()):
            able = (
                each
                for each in plan.values()
                if each.nar_hash not in running and each.nar_size <= room
            )
            for item in able:
                is_large = item.nar_size >= LARGE
                if now[is_large] < most[is_large]:
                    self._plans[owner] = self._plans.pop(owner)
                    if not is_large:
                        return item
                    behind = islice(able, LOOK_AHEAD)
                    others = (each for each in behind if LARGE <= each.nar_size <= room // 2)
                    return pick(item, others, large, self._random)
                if now[0] >= most[0] and now[1] >= most[1]:
                    return None
        return None


def share(limit: int, ahead: int) -> int:
    """Bytes a second for each large item that is fetched ahead, 0 without limit.

    Args:
        limit: bytes a second that the operator allows for all that is fetched, 0 for any number.
        ahead: how many large items are fetched ahead.
    """
    return max(MIN_RATE, limit // 2) // ahead or 1 if limit and ahead else 0
