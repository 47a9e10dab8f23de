# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.metrics."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from seeder.metrics import exposition

STATUS: dict[str, Any] = {
    "items": 2,
    "payloads": 17,
    "waiting": 18,
    "payload_bytes": 3,
    "max_disk": 4,
    "peers": 5,
    "dht_nodes": 6,
    "fetching": 7,
    "planned": 8,
    "mirror": {"files": 20, "bytes": 21, "missing": 22, "max_disk": 23},
    "paused": True,
    "started": 1000,
    "uploaded": 9,
    "downloaded": 10,
    "incoming": 11,
    "not_offered": {"not vouched for": 12},
    "trackers": [
        {
            "url": 'http://t/"announce',
            "announces": 13,
            "announce_errors": 14,
            "published": 15,
            "held": 19,
            "pending": 16,
        }
    ],
}


def test_names_and_values() -> None:
    """They are promises: dashboards go by them."""
    text = exposition(lambda: STATUS)().decode()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    ours = {key: value for key, value in samples.items() if key[0].startswith("narswarm_")}
    tracker = 'http://t/"announce'
    assert ours == {
        ("narswarm_seeder_items",): 2,
        ("narswarm_seeder_payloads",): 17,
        ("narswarm_seeder_waiting_payloads",): 18,
        ("narswarm_seeder_held_items", tracker): 19,
        ("narswarm_seeder_payload_bytes",): 3,
        ("narswarm_seeder_payload_limit_bytes",): 4,
        ("narswarm_seeder_peers",): 5,
        ("narswarm_seeder_dht_nodes",): 6,
        ("narswarm_seeder_fetches",): 7,
        ("narswarm_seeder_mirrored_files",): 20,
        ("narswarm_seeder_mirrored_bytes",): 21,
        ("narswarm_seeder_mirror_limit_bytes",): 23,
        ("narswarm_seeder_mirror_missing_items",): 22,
        ("narswarm_seeder_planned_fetches",): 8,
        ("narswarm_seeder_paused",): 1,
        ("narswarm_seeder_start_time_seconds",): 1000,
        ("narswarm_seeder_uploaded_bytes_total",): 9,
        ("narswarm_seeder_downloaded_bytes_total",): 10,
        ("narswarm_seeder_incoming_connections_total",): 11,
        ("narswarm_seeder_items_not_offered", "not vouched for"): 12,
        ("narswarm_seeder_announces_total", tracker): 13,
        ("narswarm_seeder_announce_errors_total", tracker): 14,
        ("narswarm_seeder_published_items", tracker): 15,
        ("narswarm_seeder_unpublished_items", tracker): 16,
    }
    assert ("process_resident_memory_bytes",) in samples
