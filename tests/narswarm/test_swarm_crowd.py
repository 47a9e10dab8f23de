# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.swarm_crowd, with times and chance as arguments."""

from __future__ import annotations

from random import Random

import pytest

from narswarm.swarm_crowd import (
    AT_LEAST,
    AT_MOST,
    EACH,
    MAX_MET,
    MEMORY,
    MIN_RATE,
    SILENCE,
    Crowd,
    Listening,
)


class Chance(Random):
    """Chance that is told what to choose."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def random(self) -> float:
        """What it was told."""
        return self._value


@pytest.mark.parametrize(("later", "members"), [(MEMORY - 0.1, 1), (MEMORY, 0), (MEMORY + 1, 0)])
def test_members_are_those_met_lately(later: float, members: int) -> None:
    """Whoever lacked something less than MEMORY seconds ago is a member."""
    crowd = Crowd()
    assert crowd.members(100.0) == 0
    crowd.meet("10.0.0.1", 5000, 100.0, seed=False, called=False)
    assert crowd.members(100.0 + later) == members


def test_a_member_counts_once() -> None:
    """A member is one address, in however many torrents and at however many ports it is met."""
    crowd = Crowd()
    for port in (5000, 5001):
        crowd.meet("10.0.0.1", port, 100.0, seed=False, called=True)
    crowd.meet("10.0.0.1", 5000, 109.0, seed=False, called=True)
    assert crowd.members(115.0) == 1


def test_seeds_are_those_that_never_lacked_anything() -> None:
    """A member that has become a seed in one torrent is still one to be asked."""
    crowd = Crowd()
    crowd.meet("10.0.0.1", 5000, 100.0, seed=True, called=True)
    crowd.meet("10.0.0.2", 5000, 100.0, seed=True, called=True)
    assert crowd.seeds == [("10.0.0.1", 5000), ("10.0.0.2", 5000)]
    crowd.meet("10.0.0.2", 5000, 101.0, seed=False, called=True)
    assert crowd.seeds == [("10.0.0.1", 5000)]
    crowd.meet("10.0.0.2", 5000, 200.0, seed=True, called=True)
    assert crowd.seeds == [("10.0.0.1", 5000)]


def test_who_has_connected_to_us_says_no_port() -> None:
    """The port of an incoming connection is not one that could be connected to."""
    crowd = Crowd()
    crowd.meet("10.0.0.1", 41234, 100.0, seed=True, called=False)
    assert crowd.seeds == []


def test_no_more_are_kept_than_fit() -> None:
    """Of members those met last are kept, of seeds those met first."""
    crowd = Crowd()
    for number in range(MAX_MET + 1):
        crowd.meet(f"2001:db8::{number:x}", 5000, float(number), seed=False, called=False)
        crowd.meet(f"2001:db9::{number:x}", 5000, float(number), seed=True, called=True)
    assert crowd.members(MAX_MET) == MEMORY
    assert len(crowd.seeds) == MAX_MET
    crowd.meet("2001:db8::0", 5000, 0.0, seed=True, called=True)
    assert len(crowd.seeds) == MAX_MET


@pytest.mark.parametrize(
    ("members", "chance", "seconds"),
    [
        (1, 0.0, AT_LEAST),
        (1, 0.5, AT_LEAST + EACH / 2),
        (4, 0.5, AT_LEAST + 2 * EACH),
        (1000, 0.999999, AT_MOST),
    ],
)
def test_chance_says_who_is_first(members: int, chance: float, seconds: float) -> None:
    """With nothing from members seeds are asked after a time that grows with their number."""
    listening = Listening(100.0, members, Chance(chance))
    assert not listening.is_over(100.0 + seconds - 0.01, 0, seconds - 0.01)
    assert listening.is_over(100.0 + seconds + 0.01, 0, seconds + 0.01)


@pytest.mark.parametrize(("idle", "over"), [(SILENCE - 0.1, False), (SILENCE, True)])
def test_members_may_pause(idle: float, over: bool) -> None:
    """Once bytes have come, seeds are asked after SILENCE seconds without one."""
    listening = Listening(100.0, 1, Chance(0.0))
    assert listening.is_over(102.0, 1 << 30, idle) is over


@pytest.mark.parametrize(("missing", "over"), [(-1, False), (0, False), (1, True)])
def test_members_may_not_be_slow(missing: int, over: bool) -> None:
    """Members that bring less than MIN_RATE get help."""
    listening = Listening(100.0, 1, Chance(0.0))
    received = 2 * MIN_RATE - missing
    assert listening.is_over(100.0 + AT_LEAST + 2.0, received, 0.0) is over
