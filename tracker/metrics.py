# SPDX-License-Identifier: GPL-3.0-or-later
"""What the running tracker counts instead of keeping a log of requests.

Counting is on the way of every announce, so it is no more than an addition under a lock. What
Prometheus reads is made of these numbers elsewhere, when it asks.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from itertools import accumulate
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

Engine = Literal["native", "python"]

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
        self._others: list[Callable[[], Mapping[RequestKey, int]]] = []

    def join(self, other: Callable[[], Mapping[RequestKey, int]]) -> None:
        """Tell the numbers of another counter as well, which is asked when these are."""
        self._others.append(other)

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
            found = Counter({RequestKey(*key): count for key, count in self._counts.items()})
        for other in self._others:
            found.update(other())
        return dict(found)


Buckets = tuple[list[int], float]
"""Observations in each bucket, one more than `BOUNDS`, and their sum in seconds."""


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
        self._others: list[Callable[[], Mapping[tuple[Protocol, Action], Buckets]]] = []

    def join(self, other: Callable[[], Mapping[tuple[Protocol, Action], Buckets]]) -> None:
        """Tell the observations of another one as well, which is asked when these are."""
        self._others.append(other)

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
            found = {
                key: (list(counts), self._seconds[key]) for key, counts in self._buckets.items()
            }
        for other in self._others:
            for key, (counts, seconds) in other().items():
                before, more = found.get(key, ([0] * len(counts), 0.0))
                summed = [one + two for one, two in zip(before, counts, strict=True)]
                found[key] = (summed, more + seconds)
        return {
            key: Histogram(tuple(accumulate(counts)), seconds)
            for key, (counts, seconds) in found.items()
        }


class Metrics:
    """All that the tracker counts.

    Attributes:
        requests: requests by what came of them.
        latency: how long replies took.
        engine: what answers announces: `native` or `python`.
        udp_drops: says how many datagrams the kernel dropped at each UDP socket, by its address.
    """

    def __init__(self) -> None:
        self.requests = Requests()
        self.latency = Latency()
        self.engine: Engine = "python"
        self.udp_drops: Callable[[], Mapping[str, int]] = dict


def family_of(address: bytes) -> Family:
    """The family of an address of 4 or 16 bytes."""
    return "ipv4" if len(address) == 4 else "ipv6"
