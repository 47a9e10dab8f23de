# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.web_data."""

from __future__ import annotations

import json

import pytest

from seeder.web_data import BARS, HEIGHT, Bar, History, Rates, address_class, bars, classes


def test_a_day_of_uploads() -> None:
    """Each step has what was sent in it, whichever process sent it."""
    first = History()
    first.note(100, 1000.0)
    first.note(150, 1100.0)
    first.note(450, 1200.0)
    second = History(first.dump())
    second.note(7, 1499.0)
    second.note(8, 1500.0)
    steps = second.steps(1800.0)
    assert len(steps) == BARS
    assert steps[-4:] == [150, 307, 1, 0]
    assert sum(steps) == 458


def test_a_day_is_over_after_a_day() -> None:
    """Older steps are forgotten, as is a counter that began anew."""
    history = History()
    history.note(5, 0.0)
    assert sum(history.steps(BARS * 300.0 - 1)) == 5
    assert sum(history.steps(BARS * 300.0)) == 0
    history.note(3, 300.0)
    assert history.steps(300.0)[-2:] == [5, 0]
    for step in range(1000):
        history.note(step, step * 300.0)
    assert len(json.loads(history.dump())) == BARS


@pytest.mark.parametrize("text", ["", "x", "{}", "[1]", "[[1, -1]]", '[["a", 1]]', "[[1]]", "5"])
def test_a_history_that_cannot_be_read(text: str) -> None:
    """Is an empty one."""
    assert sum(History(text).steps(300.0)) == 0


def test_bars_reach_from_the_line_to_the_top() -> None:
    """The highest is as high as the plot; what is there at all can be seen."""
    assert bars([0, 1, 1000, 500]) == [
        Bar(144.0, HEIGHT - 1, 144.0, 1.0),
        Bar(288.0, 0.0, 144.0, HEIGHT),
        Bar(432.0, HEIGHT / 2, 144.0, HEIGHT / 2),
    ]
    assert bars([0, 0]) == bars([]) == []


def test_rates_are_of_a_second_at_least() -> None:
    """Those who look more often see the same."""
    rates = Rates()
    assert rates.note(100, 10, 5.0) == (0.0, 0.0)
    assert rates.note(500, 20, 5.9) == (0.0, 0.0)
    assert rates.note(500, 30, 7.0) == (200.0, 10.0)
    assert rates.note(900, 30, 7.5) == (200.0, 10.0)


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("8.8.8.8", "IPv4"),
        ("2a00:1450::1", "IPv6"),
        ("::ffff:8.8.8.8", "IPv4"),
        ("10.1.2.3", "local network"),
        ("169.254.1.1", "local network"),
        ("fd00::1", "local network"),
        ("fe80::1%eth0", "local network"),
        ("127.0.0.2", "this machine"),
        ("::1", "this machine"),
        ("::ffff:127.0.0.1", "this machine"),
    ],
)
def test_where_an_address_is(address: str, where: str) -> None:
    """Of either family, mapped ones as what they stand for."""
    assert address_class(address) == where


def test_all_classes_are_counted() -> None:
    """Also those without a peer."""
    assert classes(["::1", "127.0.0.1", "8.8.8.8"]) == {
        "IPv4": 1,
        "IPv6": 0,
        "local network": 0,
        "this machine": 2,
    }
