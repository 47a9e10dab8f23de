# SPDX-License-Identifier: GPL-3.0-or-later
"""Rates by the day of the week and the time of the day."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from narswarm.errors import SettingsError

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_RULE = re.compile(
    r"(?:(?P<days>[a-z,-]+)\s+)?(?P<from>\d\d:\d\d)-(?P<to>\d\d:\d\d)(?P<rates>(?:\s+\S+=\S+)+)"
)
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(B|kB|KB|KiB|MB|MiB|GB|GiB)?(?:/s)?")
_UNITS = {
    "": 1,
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "KiB": 1 << 10,
    "MB": 1000**2,
    "MiB": 1 << 20,
    "GB": 1000**3,
    "GiB": 1 << 30,
}
_DAY = 24 * 60


class Moment(NamedTuple):
    """A local time.

    Attributes:
        weekday: 0 is Monday.
        minute: of the day.
    """

    weekday: int
    minute: int


class Rates(NamedTuple):
    """Bytes a second at most, 0 without limit."""

    upload: int
    download: int


class Rule(NamedTuple):
    """What holds for a span of time on some days.

    Attributes:
        days: on which it begins, 0 is Monday.
        start: minute of the day.
        end: minute of the day; not after `start` if it is of the next day.
        upload: bytes a second, None to leave it.
        download: bytes a second, None to leave it.
    """

    days: frozenset[int]
    start: int
    end: int
    upload: int | None
    download: int | None

    def holds(self, moment: Moment) -> bool:
        """Whether it holds at a time."""
        if self.start < self.end:
            return moment.weekday in self.days and self.start <= moment.minute < self.end
        before = (moment.weekday - 1) % 7
        return (moment.weekday in self.days and moment.minute >= self.start) or (
            before in self.days and moment.minute < self.end
        )


def parse(text: str) -> Rule:
    """Read a rule such as `mon-fri 08:00-18:00 up=1MB/s down=10MB/s`.

    Without days it is for all of them; a span that ends before it begins ends on the next day.

    Raises:
        SettingsError: it isn't one.
    """
    match = _RULE.fullmatch(text.strip())
    if match is None:
        raise SettingsError("schedule", f"{text!r} is not like 'mon-fri 08:00-18:00 up=1MB/s'")
    rates: dict[str, int] = {}
    for part in match["rates"].split():
        name, _, value = part.partition("=")
        if name not in {"up", "down"} or name in rates:
            raise SettingsError("schedule", f"{text!r} has {part!r} where up= and down= can be")
        rates[name] = _rate(value, text)
    return Rule(
        _days(match["days"], text),
        _minute(match["from"], text),
        _minute(match["to"], text),
        rates.get("up"),
        rates.get("down"),
    )


def rates_at(rules: Iterable[Rule], moment: Moment, default: Rates) -> Rates:
    """The rates of a time: of each direction the first rule that holds and says it."""
    upload = download = None
    for rule in rules:
        if rule.holds(moment):
            upload = rule.upload if upload is None else upload
            download = rule.download if download is None else download
    return Rates(
        default.upload if upload is None else upload,
        default.download if download is None else download,
    )


def _days(text: str | None, rule: str) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in _DAYS or (dash and last not in _DAYS):
            raise SettingsError(
                "schedule", f"{rule!r} has {part!r} where days such as 'mon' can be"
            )
        start = _DAYS.index(first)
        count = (_DAYS.index(last) - start) % 7 + 1 if dash else 1
        days |= {(start + day) % 7 for day in range(count)}
    return frozenset(days)


def _minute(text: str, rule: str) -> int:
    hours, minutes = int(text[:2]), int(text[3:])
    if minutes >= 60 or hours * 60 + minutes > _DAY:
        raise SettingsError("schedule", f"{rule!r} has {text!r}, which is no time of a day")
    return hours * 60 + minutes


def _rate(text: str, rule: str) -> int:
    match = _RATE.fullmatch(text)
    if match is None:
        raise SettingsError("schedule", f"{rule!r} has {text!r}, which is no rate such as 1MB/s")
    return int(float(match[1]) * _UNITS[match[2] or ""])
