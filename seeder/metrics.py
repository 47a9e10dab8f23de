# SPDX-License-Identifier: GPL-3.0-or-later
"""What Prometheus reads of a seeder: its numbers, with names and units of its conventions.

Names and labels are promises to dashboards: docs/seeder.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "narswarm_seeder"

_GAUGES = (
    ("items", "items", "Store items that are offered."),
    ("payloads", "payloads", "Payloads that are seeded."),
    ("waiting", "waiting_payloads", "Payloads that somebody wants and that are being made."),
    ("payload_bytes", "payload_bytes", "Bytes of payloads on disk."),
    ("max_disk", "payload_limit_bytes", "Bytes that payloads may take."),
    ("peers", "peers", "Peers that are connected."),
    ("dht_nodes", "dht_nodes", "Nodes of the DHT that are known."),
    ("fetching", "fetches", "Items that are being fetched for this machine."),
    ("planned", "planned_fetches", "Items that will be fetched ahead."),
    ("paused", "paused", "1 while seeding is paused."),
    ("started", "start_time_seconds", "When the seeder was started, since the epoch."),
)
_MIRROR_GAUGES = (
    ("files", "mirrored_files", "Files of substitute servers that are seeded."),
    ("bytes", "mirrored_bytes", "Bytes of those that were copied."),
    ("max_disk", "mirror_limit_bytes", "Bytes that these may take."),
    ("missing", "mirror_missing_items", "Items that are followed and aren't here."),
)
_COUNTERS = (
    ("uploaded", "uploaded_bytes", "Bytes of payload that were sent to peers."),
    ("downloaded", "downloaded_bytes", "Bytes of payload that came from peers."),
    ("incoming", "incoming_connections", "Connections that peers have opened."),
)
_TRACKER_COUNTERS = (
    ("announces", "announces", "Announces that a tracker has answered."),
    ("announce_errors", "announce_errors", "Announces that a tracker hasn't answered, or refused."),
)
_TRACKER_GAUGES = (
    ("held", "held_items", "Items that a tracker was told this seeder could offer."),
    ("published", "published_items", "Items that a tracker's index has taken."),
    ("pending", "unpublished_items", "Items that are to be published to a tracker."),
)


def exposition(status: Callable[[], Mapping[str, Any]]) -> Callable[[], bytes]:
    """Prepare what `/metrics` answers.

    Args:
        status: says how the seeder is doing, as `seeder status --json` shows it.

    Returns:
        A function for the text of now.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(status))
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)


class _Collector(Collector):
    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def describe(self) -> Iterator[Metric]:
        """Say nothing: to ask for names isn't to ask how the seeder is doing."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All numbers, as of now."""
        status = self._status()
        for key, name, text in _GAUGES:
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=float(status[key]))
        for key, name, text in _MIRROR_GAUGES:
            value = float(status["mirror"][key])
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=value)
        for key, name, text in _COUNTERS:
            yield CounterMetricFamily(f"{_PREFIX}_{name}", text, value=float(status[key]))
        misses = GaugeMetricFamily(
            f"{_PREFIX}_items_not_offered", "Items that are not offered.", labels=["reason"]
        )
        for reason, count in sorted(status["not_offered"].items()):
            misses.add_metric([reason], count)
        yield misses
        for families, kind in (
            (_TRACKER_COUNTERS, CounterMetricFamily),
            (_TRACKER_GAUGES, GaugeMetricFamily),
        ):
            for key, name, text in families:
                family = kind(f"{_PREFIX}_{name}", text, labels=["tracker"])
                for tracker in status["trackers"]:
                    family.add_metric([tracker["url"]], tracker[key])
                yield family
