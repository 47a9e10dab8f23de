# SPDX-License-Identifier: GPL-3.0-or-later
"""What was sent and received, over restarts."""

from __future__ import annotations

from pathlib import Path

from seeder.state import State
from seeder.totals import DAY, Day

NOON = 1_700_000_000 // DAY * DAY + DAY // 2


def test_totals_survive(tmp_path: Path) -> None:
    """A session counts from 0 with each run; what is kept adds up, by days."""
    for _ in range(2):
        with State(tmp_path) as state:
            state.totals.count(100, 10, NOON)
            state.totals.count(100, 10, NOON + 1)
            state.totals.count(150, 10, NOON + DAY)
    with State(tmp_path) as state:
        assert state.totals.total() == (300, 20)
        first, second = NOON - DAY // 2, NOON + DAY // 2
        assert state.totals.days() == [Day(first, 200, 20), Day(second, 100, 0)]
        assert state.totals.days(1) == [Day(second, 100, 0)]


def test_without_traffic_nothing_is_written(tmp_path: Path) -> None:
    """An idle seeder doesn't wake the disk."""
    with State(tmp_path) as state:
        state.totals.count(0, 0, NOON)
        assert state.totals.days() == []
        assert state.totals.total() == (0, 0)
