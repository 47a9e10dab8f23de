# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker's counters."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tracker.metrics import BOUNDS, Latency, Metrics, RequestKey, Requests, family_of


def test_requests() -> None:
    """Each combination has its own number, and a batch counts as many."""
    requests = Metrics().requests
    assert requests.values() == {}
    requests.inc("http", "ipv4", "announce", "ok")
    requests.inc("http", "ipv4", "announce", "ok")
    requests.inc("udp", "ipv6", "scrape", "malformed", 7)
    assert requests.values() == {
        RequestKey("http", "ipv4", "announce", "ok"): 2,
        RequestKey("udp", "ipv6", "scrape", "malformed"): 7,
    }


def test_no_request_is_lost() -> None:
    """Threads that count at the same time don't overwrite each other's numbers."""
    metrics = Metrics()

    def count(_: int) -> None:
        for _ in range(2000):
            metrics.requests.inc("http", "ipv4", "announce", "ok")
            metrics.latency.observe("http", "announce", 0.5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    assert list(metrics.requests.values().values()) == [8000]
    assert metrics.latency.values()["http", "announce"].cumulative[-1] == 8000


@pytest.mark.parametrize(
    ("seconds", "first"),
    [
        (0.0, 0),
        (BOUNDS[0], 0),
        (BOUNDS[0] * 1.001, 1),
        (BOUNDS[-1], len(BOUNDS) - 1),
        (BOUNDS[-1] * 1.001, len(BOUNDS)),
    ],
)
def test_buckets(seconds: float, first: int) -> None:
    """An observation is in the first bucket whose bound it doesn't exceed, and all above."""
    latency = Latency()
    latency.observe("udp", "announce", seconds, 3)
    (histogram,) = latency.values().values()
    assert histogram.cumulative == (0,) * first + (3,) * (len(BOUNDS) + 1 - first)
    assert histogram.seconds == pytest.approx(3 * seconds)


def test_latency_of_each_action() -> None:
    """Actions and protocols are apart, and reading changes nothing."""
    latency = Latency()
    latency.observe("http", "announce", 0.25)
    latency.observe("http", "scrape", 2)
    for _ in range(2):
        found = latency.values()
        assert set(found) == {("http", "announce"), ("http", "scrape")}
        assert found["http", "announce"].cumulative[-1] == 1


def test_numbers_of_others() -> None:
    """What is counted elsewhere is added whenever somebody asks."""
    requests, latency = Requests(), Latency()
    other = RequestKey("udp", "ipv4", "connect", "ok")
    counts = {other: 1}
    requests.join(lambda: counts)
    requests.inc("udp", "ipv4", "connect", "ok", 5)
    latency.observe("udp", "connect", 0.25)
    buckets = [1] + [0] * len(BOUNDS)
    latency.join(lambda: {("udp", "connect"): (buckets, 0.5), ("http", "scrape"): (buckets, 1)})
    for number in (1, 2):
        counts[other] = number
        assert requests.values() == {other: 5 + number}
        found = latency.values()
        assert found["udp", "connect"].cumulative == (*[1] * 9, 2, 2, 2)
        assert found["udp", "connect"].seconds == 0.75
        assert found["http", "scrape"].cumulative[-1] == 1


@pytest.mark.parametrize(("address", "family"), [(bytes(4), "ipv4"), (bytes(16), "ipv6")])
def test_family(address: bytes, family: str) -> None:
    """The length of a packed address tells its family."""
    assert family_of(address) == family
