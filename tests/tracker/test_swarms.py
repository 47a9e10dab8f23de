# SPDX-License-Identifier: GPL-3.0-or-later
"""What swarms in memory have beyond the rules of every store: sweeps in parts."""

from __future__ import annotations

from random import Random

from tests.tracker.announces import HASH, NOW, OTHER, asked
from tracker.swarms import Limits, Swarms, Swept
from tracker.wire_http import Counts, Event

RNG = Random(1)  # noqa: S311 - the same at each run
THIRD = b"t" * 20


def test_expiry_goes_on_where_it_stopped() -> None:
    """With a small budget, all swarms have their turn, and new ones in the next round."""
    swarms = Swarms(Limits(), keep_downloads=False)
    for number in range(10):
        swarms.announce(*asked(info_hash=b"%020d" % number), RNG)
    later = NOW + 10_000
    swept = [swarms.expire(later, 3) for _ in range(4)]
    assert swept == [(3, False), (3, False), (3, False), (1, True)]
    assert len(swarms) == 0
    swarms.announce(*asked(), RNG)
    assert swarms.expire(later, 3) == Swept(1, finished=True)


def test_expiry_survives_changes_between_calls() -> None:
    """A swarm may vanish while a sweep is under way."""
    swarms = Swarms(Limits(), keep_downloads=False)
    for number in range(4):
        swarms.announce(*asked(info_hash=b"%020d" % number), RNG)
    assert swarms.expire(NOW, 1) == Swept(0, finished=False)
    for number in range(4):
        swarms.announce(*asked(info_hash=b"%020d" % number, event=Event.STOPPED), RNG)
    assert swarms.expire(NOW + 10_000, 10) == Swept(0, finished=True)


def test_restored_downloads() -> None:
    """Numbers that were kept go on, where swarms without peers are remembered."""
    swarms = Swarms(Limits(swarms=2), keep_downloads=True)
    swarms.restore({HASH: 7, OTHER: 0, THIRD: 1, b"x" * 20: 2})
    assert len(swarms) == 2
    assert swarms.announce(*asked(event=Event.COMPLETED), RNG).counts == Counts(1, 0, 8, 0)
    assert swarms.counts(THIRD) == Counts(0, 0, 1, 0)
    forgetful = Swarms(Limits(), keep_downloads=False)
    forgetful.restore({HASH: 7})
    assert len(forgetful) == 0
