# SPDX-License-Identifier: GPL-3.0-or-later
"""What the seeder's page shows, worked out from numbers: rates, a day's plot, classes of peers.

Nothing here asks a clock or a network.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

STEP: Final = 300.0
"""Seconds of one bar of the plot."""

BARS: Final = 288
"""Bars of a day."""

WIDTH: Final = 576.0
HEIGHT: Final = 120.0

CLASSES: Final = ("IPv4", "IPv6", "local network", "this machine")


class Bar(NamedTuple):
    """A bar of the plot, in the drawing's units from its upper left corner."""

    x: float
    y: float
    width: float
    height: float


class History:
    """Bytes that were sent in the last day, in steps of five minutes.

    Args:
        text: what `dump` gave an earlier process; anything else is an empty history.
    """

    def __init__(self, text: str = "") -> None:
        self._bars: deque[tuple[int, int]] = deque(maxlen=BARS)
        self._last: int | None = None
        try:
            for step, sent in json.loads(text)[-BARS:]:
                if type(step) is int and type(sent) is int and sent >= 0:
                    self._bars.append((step, sent))
        except (ValueError, TypeError, RecursionError):
            self._bars.clear()

    def note(self, uploaded: int, now: float) -> None:
        """Note how much was sent since the start of the process.

        Args:
            uploaded: bytes, which only grow.
            now: seconds since the epoch.
        """
        sent = max(0, uploaded - (self._last or 0))
        self._last = uploaded
        step = int(now // STEP)
        if self._bars and self._bars[-1][0] == step:
            sent += self._bars.pop()[1]
        self._bars.append((step, sent))

    def steps(self, now: float) -> list[int]:
        """Bytes of each step of the last day, the oldest first; the last one isn't over yet."""
        last = int(now // STEP)
        known = dict(self._bars)
        return [known.get(step, 0) for step in range(last - BARS + 1, last + 1)]

    def dump(self) -> str:
        """A text from which it can be made again."""
        return json.dumps(list(self._bars))


def bars(steps: Iterable[int]) -> list[Bar]:
    """The plot of a day; empty steps have no bar."""
    values = list(steps)
    top = max(values, default=0)
    width = WIDTH / max(1, len(values))
    drawn = []
    for number, value in enumerate(values):
        if value:
            height = max(1.0, round(HEIGHT * value / top, 2))
            drawn.append(Bar(round(number * width, 2), HEIGHT - height, width, height))
    return drawn


class Rates:
    """Bytes a second between two looks."""

    def __init__(self) -> None:
        self._last: tuple[float, int, int] | None = None
        self._rates = (0.0, 0.0)

    def note(self, uploaded: int, downloaded: int, now: float) -> tuple[float, float]:
        """The rates up and down since the last look that was at least a second ago.

        Args:
            uploaded: bytes since the start.
            downloaded: bytes since the start.
            now: seconds, of a clock that doesn't jump.
        """
        if self._last is None:
            self._last = (now, uploaded, downloaded)
        before, up, down = self._last
        if now - before >= 1:
            span = now - before
            self._rates = ((uploaded - up) / span, (downloaded - down) / span)
            self._last = (now, uploaded, downloaded)
        return self._rates


def classes(addresses: Iterable[str]) -> dict[str, int]:
    """How many peers are where, by class of their addresses, each class at least with 0."""
    counts = Counter(map(address_class, addresses))
    return {name: counts[name] for name in CLASSES}


def address_class(text: str) -> str:
    """Where an address is: one of `CLASSES`."""
    address: IPv4Address | IPv6Address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return "this machine"
    if address.is_private or address.is_link_local:
        return "local network"
    return f"IPv{address.version}"
