# SPDX-License-Identifier: GPL-3.0-or-later
"""What the running tracker counts instead of keeping a log of requests.

Counting is on the way of every announce, so it is no more than an addition under a lock. What
Prometheus reads is made of these numbers elsewhere, when it asks.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from typing import Final, Literal, NamedTuple

Protocol = Literal["http", "udp"]
Family = Literal["ipv4", "ipv6", "unknown"]
Action = Literal["connect", "announce", "scrape", "index", "publish"]
Outcome = Literal["ok", "malformed", "unlisted", "blocked", "refused", "dropped", "failed"]
"""How a request ended.

`ok`: answered; `malformed`: can't be read or served; `unlisted`: of an infohash or a NAR that isn't
in the index; `blocked`: by the operator; `refused`: not allowed; `dropped`: not answered at all;
`failed`: for a reason of the tracker's own.
"""

BOUNDS: Final = (
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0,
)  # fmt: skip
"""Upper bounds of the latency histogram's buckets, in seconds; the last bucket has none."""


class RequestKey(NamedTuple):
    """What requests are told apart by."""

    protocol: Protocol
    family: Family
    action: Action
    outcome: Outcome


class Requests:
    """How many requests there were, by protocol, family, action and outcome.

    May be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Keyed by plain tuples: to make a named one takes longer than the addition.
        self._counts: Counter[tuple[Protocol, Family, Action, Outcome]] = Counter()

    def inc(
        self,
        protocol: Protocol,
        family: Family,
        action: Action,
        outcome: Outcome,
        amount: int = 1,
    ) -> None:
        """Count requests; who takes a batch of packets can count it at once."""
        with self._lock:
            self._counts[protocol, family, action, outcome] += amount

    def values(self) -> dict[RequestKey, int]:
        """The numbers as they are now."""
        with self._lock:
            return {RequestKey(*key): count for key, count in self._counts.items()}


class Histogram(NamedTuple):
    """How many observations were at most each of `BOUNDS` and in all, and their sum in seconds."""

    cumulative: tuple[int, ...]
    seconds: float


class Latency:
    """How long replies took from the request's last byte here to the reply's first, in seconds.

    May be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: defaultdict[tuple[Protocol, Action], list[int]] = defaultdict(
            lambda: [0] * (len(BOUNDS) + 1)
        )
        self._seconds: defaultdict[tuple[Protocol, Action], float] = defaultdict(float)

    def observe(self, protocol: Protocol, action: Action, seconds: float, amount: int = 1) -> None:
        """Note how long a reply took; of a batch, how long each of its replies took."""
        bucket = bisect_left(BOUNDS, seconds)
        key = (protocol, action)
        with self._lock:
            self._buckets[key][bucket] += amount
            self._seconds[key] += seconds * amount

    def values(self) -> dict[tuple[Protocol, Action], Histogram]:
        """The distributions as they are now."""
        with self._lock:
            copy = [
                (key, list(counts), self._seconds[key]) for key, counts in self._buckets.items()
            ]
        found = {}
        for key, counts, seconds in copy:
            for index in range(1, len(counts)):
                counts[index] += counts[index - 1]
            found[key] = Histogram(tuple(counts), seconds)
        return found


class Metrics:
    """All that the tracker counts.

    Attributes:
        requests: requests by what came of them.
        latency: how long replies took.
    """

    def __init__(self) -> None:
        self.requests = Requests()
        self.latency = Latency()


def family_of(address: bytes) -> Family:
    """The family of an address of 4 or 16 bytes."""
    return "ipv4" if len(address) == 4 else "ipv6"
