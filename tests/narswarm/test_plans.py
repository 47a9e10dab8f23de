# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.plans."""

from __future__ import annotations

from random import Random

import pytest

from narswarm.plans import AT_ONCE, FAST, FAST_AT_ONCE, at_once, pick


@pytest.mark.parametrize(
    ("rate", "number"),
    [(None, AT_ONCE), (0.0, AT_ONCE), (FAST - 1.0, AT_ONCE), (float(FAST), FAST_AT_ONCE)],
)
def test_a_fast_line_carries_more(rate: float | None, number: int) -> None:
    """As long as nothing is known, it is taken to be slow."""
    assert at_once(rate) == number


@pytest.mark.parametrize("running", range(4))
def test_every_second_one_is_taken_out_of_turn(running: int) -> None:
    """So each of a crowd has something that others lack, and goes on with what it needs next."""
    dice = Random(1)  # noqa: S311 -- nobody gains by guessing it
    picked = {pick(0, range(1, 100), running, dice) for _ in range(50)}
    assert (len(picked) > 10) if running % 2 else picked == {0}
    assert pick(0, (), running, dice) == 0
