# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.pace."""

from __future__ import annotations

import math

from narswarm.pace import LEAST, STEADY, Meter, Pace


def test_a_rate_takes_time_to_tell() -> None:
    """No rate before half a second; then that of the window alone."""
    meter = Meter(window=2.0)
    assert meter.rate(0.0) is None
    meter.add(0.0, 0)
    meter.add(0.25, 250)
    assert meter.rate(LEAST - 0.01) is None
    assert meter.rate(0.5) == 500
    for tenth in range(5, 101):
        meter.add(tenth / 10, 250)
    assert meter.rate(10.0) == 0
    meter.add(12.0, 4250)
    assert meter.rate(12.0) == 2000
    assert meter.rate(14.0) == 0


def test_a_way_moves_as_long_as_bytes_come() -> None:
    """Positions are looked at a few times a second, however often it is asked."""
    looks: list[int] = []

    def position() -> int:
        looks.append(0)
        return len(looks)

    pace = Pace(position)
    for _ in range(100):
        assert pace.look(5.0) == (5.0, None)
    assert len(looks) == 1
    assert pace.look(6.0) == (6.0, 1.0)


def test_a_way_never_goes_back() -> None:
    """What is let go had come all the same; rates below zero would call servers for nothing."""
    positions = iter([0, 1000, 400, 500])
    pace = Pace(lambda: next(positions))
    looks = [pace.look(float(now)) for now in range(4)]
    assert [last for last, _ in looks] == [-math.inf, 1.0, 1.0, 3.0]
    assert [rate for _, rate in looks[1:]] == [1000.0, 500.0, 1100 / 3]


def test_a_slow_moment_is_none() -> None:
    """A way that was fast lately is slow only when it has been slow for ten seconds."""
    position = 0
    pace = Pace(lambda: position)
    for now in range(int(STEADY) + 1):
        position = now * 1000
        assert now == 0 or pace.look(float(now))[1] == 1000.0
        pace.look(float(now))
    rates = [pace.look(STEADY + now)[1] for now in range(1, int(STEADY) + 1)]
    assert rates == [1000.0 - 100.0 * now for now in range(1, int(STEADY) + 1)]
