# SPDX-License-Identifier: GPL-3.0-or-later
"""Rates by the time of the week."""

from __future__ import annotations

import pytest

from narswarm.errors import SettingsError
from seeder.schedule import Moment, Rates, parse, rates_at

DEFAULT = Rates(7, 8)


def at(day: int, hour: int, minute: int = 0) -> Moment:
    """A time; Monday is 0."""
    return Moment(day, 60 * hour + minute)


@pytest.mark.parametrize(
    ("text", "moment", "holds"),
    [
        ("mon-fri 08:00-18:00 up=1MB/s", at(0, 8), True),
        ("mon-fri 08:00-18:00 up=1MB/s", at(0, 7, 59), False),
        ("mon-fri 08:00-18:00 up=1MB/s", at(4, 17, 59), True),
        ("mon-fri 08:00-18:00 up=1MB/s", at(4, 18), False),
        ("mon-fri 08:00-18:00 up=1MB/s", at(5, 12), False),
        ("08:00-18:00 up=1", at(6, 12), True),
        ("00:00-24:00 up=1", at(6, 23, 59), True),
        ("sat-mon 00:00-24:00 up=1", at(6, 3), True),
        ("sat-mon 00:00-24:00 up=1", at(0, 3), True),
        ("sat-mon 00:00-24:00 up=1", at(1, 3), False),
        ("sun 22:00-06:00 up=1", at(6, 22), True),
        ("sun 22:00-06:00 up=1", at(0, 5, 59), True),
        ("sun 22:00-06:00 up=1", at(0, 6), False),
        ("sun 22:00-06:00 up=1", at(6, 5), False),
        ("mon,wed 10:00-11:00 up=1", at(2, 10), True),
        ("mon,wed 10:00-11:00 up=1", at(1, 10), False),
        ("  mon   10:00-11:00   up=1 ", at(0, 10), True),
    ],
)
def test_when_a_rule_holds(text: str, moment: Moment, holds: bool) -> None:
    """From the first minute to the one before the last, on its days; nights end on the next."""
    assert parse(text).holds(moment) is holds


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("0", 0),
        ("1500", 1500),
        ("1B/s", 1),
        ("1.5kB/s", 1500),
        ("2KiB", 2048),
        ("1MB/s", 1_000_000),
        ("1MiB/s", 1 << 20),
        ("1GB", 10**9),
        ("2GiB/s", 2 << 30),
    ],
)
def test_rates(text: str, rate: int) -> None:
    """With or without units and `/s`."""
    rule = parse(f"00:00-24:00 up={text} down={text}")
    assert (rule.upload, rule.download) == (rate, rate)


def test_the_first_rule_that_says_it_counts() -> None:
    """Each direction on its own; what no rule says is as ever."""
    rules = [parse("mon 08:00-12:00 up=1"), parse("mon 00:00-24:00 up=2 down=3")]
    assert rates_at(rules, at(0, 9), DEFAULT) == Rates(1, 3)
    assert rates_at(rules, at(0, 13), DEFAULT) == Rates(2, 3)
    assert rates_at(rules, at(1, 9), DEFAULT) == DEFAULT
    assert rates_at([parse("mon 00:00-24:00 up=0")], at(0, 9), DEFAULT) == Rates(0, 8)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not like 'mon-fri 08:00-18:00 up=1MB/s'"),
        ("mon up=1", "'mon up=1' is not like 'mon-fri 08:00-18:00 up=1MB/s'"),
        ("08:00-18:00", "'08:00-18:00' is not like 'mon-fri 08:00-18:00 up=1MB/s'"),
        ("8:00-18:00 up=1", "'8:00-18:00 up=1' is not like 'mon-fri 08:00-18:00 up=1MB/s'"),
        (
            "day 08:00-18:00 up=1",
            "'day 08:00-18:00 up=1' has 'day' where days such as 'mon' can be",
        ),
        (
            "mon-x 08:00-18:00 up=1",
            "'mon-x 08:00-18:00 up=1' has 'mon-x' where days such as 'mon' can be",
        ),
        ("08:00-24:01 up=1", "'08:00-24:01 up=1' has '24:01', which is no time of a day"),
        ("08:60-09:00 up=1", "'08:60-09:00 up=1' has '08:60', which is no time of a day"),
        ("08:00-09:00 to=1", "'08:00-09:00 to=1' has 'to=1' where up= and down= can be"),
        ("08:00-09:00 up=1 up=2", "'08:00-09:00 up=1 up=2' has 'up=2' where up= and down= can be"),
        ("08:00-09:00 up=fast", "'08:00-09:00 up=fast' has 'fast', which is no rate such as 1MB/s"),
        ("08:00-09:00 up=-1", "'08:00-09:00 up=-1' has '-1', which is no rate such as 1MB/s"),
    ],
)
def test_what_is_no_rule(text: str, reason: str) -> None:
    """The error shows the rule and what is wrong with it."""
    with pytest.raises(SettingsError) as caught:
        parse(text)
    assert str(caught.value) == f"schedule: {reason}"
