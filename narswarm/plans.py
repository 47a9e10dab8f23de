# SPDX-License-Identifier: GPL-3.0-or-later
"""Which large item of a plan is fetched ahead next: decisions, no threads and no clock.

Large items need a share of the line rather than round trips. Machines that fetch the same plan from
one slow line at the same moment pass on to each other what they have, so each should have something
that the others lack, and not ask for more than it can use.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Final, TypeVar

LARGE: Final = 1 << 20
"""Bytes of a NAR from which on it needs a share of the line rather than round trips."""

AT_ONCE: Final = 2
"""Large ones at a time. A crowd on one slow line starves if each asks for many."""

FAST_AT_ONCE: Final = 4
"""The same where bytes come fast."""

FAST: Final = 8 << 20
"""Bytes of NARs a second that are fast."""

LOOK_AHEAD: Final = 256
"""Items behind the one whose turn it is, among which one is chosen out of turn."""

_Item = TypeVar("_Item")


def at_once(rate: float | None) -> int:
    """How many large items are fetched at a time.

    Args:
        rate: bytes of NARs a second that come lately, None if that isn't known.
    """
    return FAST_AT_ONCE if (rate or 0.0) >= FAST else AT_ONCE


def pick(found: _Item, others: Iterable[_Item], running: int, random: Random) -> _Item:
    """The large item to fetch: every second one is taken out of turn.

    Of a crowd that begins at the same time each then has something that others lack.

    Args:
        found: whose turn it is.
        others: large ones behind it.
        running: how many large ones are fetched now.
        random: says which.
    """
    if not running % 2:
        return found
    return random.choice([found, *others])
