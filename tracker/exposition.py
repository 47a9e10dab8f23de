# SPDX-License-Identifier: GPL-3.0-or-later
"""What Prometheus reads: the tracker's numbers with names and units of its conventions.

The numbers are counted elsewhere and only put into words here, when somebody asks. Names and labels
are promises to dashboards: docs/tracker.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from narswarm.errors import NarswarmError
from tracker.bulk import BulkTotals
from tracker.index import Totals
from tracker.metrics import BOUNDS, Metrics
from tracker.swarmstore import SwarmTotals

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "narswarm_tracker"


def exposition(
    metrics: Metrics,
    swarms: Callable[[], SwarmTotals],
    index: Callable[[], Totals],
    bulk: Callable[[], BulkTotals],
    proc: Path = Path("/proc"),
) -> Callable[[], bytes]:
    """Prepare what `/metrics` answers.

    Args:
        metrics: what was counted.
        swarms: says how many swarms and peers there are.
        index: says how large the index is, or raises a NarswarmError.
        bulk: says what seeders hold and what is wanted of it.
        proc: the kernel's numbers.

    Returns:
        A function for the text of now.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(metrics, swarms, index, bulk, proc))
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)


class _Collector(Collector):
    def __init__(
        self,
        metrics: Metrics,
        swarms: Callable[[], SwarmTotals],
        index: Callable[[], Totals],
        bulk: Callable[[], BulkTotals],
        proc: Path,
    ) -> None:
        self._metrics = metrics
        self._swarms = swarms
        self._index = index
        self._bulk = bulk
        self._proc = proc

    def collect(self) -> Iterator[Metric]:
        """All that is told, anew at each call."""
        yield from self._requests()
        yield from self._swarm_gauges()
        yield from self._index_gauges()
        yield from self._bulk_metrics()
        drops = CounterMetricFamily(
            f"{_PREFIX}_kernel_udp_receive_buffer_errors",
            "Datagrams that the kernel dropped as a receive buffer was full, of the whole host.",
            labels=["family"],
        )
        for family, count in receive_buffer_errors(self._proc).items():
            drops.add_metric([family], count)
        yield drops
        dropped = CounterMetricFamily(
            f"{_PREFIX}_udp_dropped_datagrams",
            "Datagrams that the kernel dropped at a socket of this tracker.",
            labels=["listen"],
        )
        for listen, count in sorted(self._metrics.udp_drops().items()):
            dropped.add_metric([listen], count)
        yield dropped
        engine = InfoMetricFamily(f"{_PREFIX}_engine", "What answers announces.")
        engine.add_metric([], {"engine": self._metrics.engine})
        yield engine

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            f"{_PREFIX}_requests",
            "Requests by what came of them.",
            labels=["protocol", "family", "action", "outcome"],
        )
        for key, count in sorted(self._metrics.requests.values().items()):
            requests.add_metric(key, count)
        yield requests
        latency = HistogramMetricFamily(
            f"{_PREFIX}_reply_duration_seconds",
            "Time to make a reply.",
            labels=["protocol", "action"],
        )
        bounds = [*map(str, BOUNDS), "+Inf"]
        for labels, histogram in sorted(self._metrics.latency.values().items()):
            buckets = list(zip(bounds, map(float, histogram.cumulative), strict=True))
            latency.add_metric(labels, buckets, histogram.seconds)
        yield latency

    def _swarm_gauges(self) -> Iterator[Metric]:
        totals = self._swarms()
        yield GaugeMetricFamily(f"{_PREFIX}_swarms", "Swarms in memory.", totals.swarms)
        peers = GaugeMetricFamily(f"{_PREFIX}_peers", "Peers in memory.", labels=["family", "role"])
        peers.add_metric(["ipv4", "seeder"], totals.seeders_ipv4)
        peers.add_metric(["ipv6", "seeder"], totals.seeders_ipv6)
        peers.add_metric(["ipv4", "leecher"], totals.leechers_ipv4)
        peers.add_metric(["ipv6", "leecher"], totals.leechers_ipv6)
        yield peers

    def _index_gauges(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(f"{_PREFIX}_index_up", "Whether the index's database can be read.")
        try:
            totals = self._index()
        except NarswarmError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        for name, text, value in (
            ("nars", "NARs in the index.", totals.nars),
            ("torrents", "Torrents in the index.", totals.torrents),
            ("narinfos", "Narinfos in the index.", totals.narinfos),
            ("infohashes", "Infohashes that a closed tracker tracks.", totals.info_hashes),
            ("blocks", "Blocks by the operator.", totals.blocks),
            ("size_bytes", "Size of the index's database.", totals.size),
        ):
            yield GaugeMetricFamily(f"{_PREFIX}_index_{name}", text, value)

    def _bulk_metrics(self) -> Iterator[Metric]:
        totals = self._bulk()
        for name, text, value in (
            ("holders", "Seeders that said what they hold.", totals.holders),
            ("held_items", "Items that they hold, together.", totals.held),
            ("wanted", "NARs that somebody waits for.", totals.wanted),
            ("parked_polls", "Seeders that wait for something to be wanted.", totals.polls),
        ):
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", text, value)
        yield CounterMetricFamily(
            f"{_PREFIX}_preparing_answers",
            "Answers that said that a torrent is being made.",
            totals.preparing,
        )


def receive_buffer_errors(proc: Path) -> dict[str, int]:
    """Datagrams that the kernel dropped because nobody read them in time, by family.

    They are the only trace of requests that were never seen here. A family that the kernel doesn't
    have is left out.

    Args:
        proc: where /proc is.
    """
    found = {}
    try:
        lines = (proc / "net/snmp").read_text("ascii").splitlines()
        names, values = (line.split() for line in lines if line.startswith("Udp:"))
        found["ipv4"] = int(dict(zip(names, values, strict=True))["RcvbufErrors"])
    except (OSError, ValueError, KeyError):
        pass
    try:
        lines = (proc / "net/snmp6").read_text("ascii").splitlines()
        found["ipv6"] = int(dict(line.split() for line in lines)["Udp6RcvbufErrors"])
    except (OSError, ValueError, KeyError):
        pass
    return found
