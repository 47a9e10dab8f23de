# SPDX-License-Identifier: GPL-3.0-or-later
"""What Prometheus reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from narswarm.errors import NarswarmError
from tracker.bulk import BulkTotals
from tracker.exposition import exposition, receive_buffer_errors
from tracker.index import Totals
from tracker.metrics import Metrics
from tracker.swarmstore import SwarmTotals

SNMP = """\
Ip: Forwarding DefaultTTL
Ip: 1 64
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors
Udp: 10 2 3 4 5 6
UdpLite: InDatagrams RcvbufErrors
UdpLite: 7 8
"""
SNMP6 = "Ip6InReceives                   \t9\nUdp6RcvbufErrors                \t11\n"


@pytest.fixture(name="proc")
def proc_fixture(tmp_path: Path) -> Path:
    """A /proc with numbers of the kernel."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net/snmp").write_text(SNMP)
    (tmp_path / "net/snmp6").write_text(SNMP6)
    return tmp_path


def _index() -> Totals:
    return Totals(nars=1, torrents=2, narinfos=3, blocks=4, info_hashes=5, size=6)


def _bulk() -> BulkTotals:
    return BulkTotals(holders=1, held=2, wanted=3, polls=4, preparing=5)


def _samples(text: bytes) -> dict[str, float]:
    """All samples, by name and labels as they are written."""
    return {
        f"{sample.name}{{{','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))}}}": (
            sample.value
        )
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_names_and_labels(proc: Path) -> None:
    """Every number has the name that dashboards rely on."""
    metrics = Metrics()
    metrics.requests.inc("udp", "ipv6", "announce", "ok", 3)
    metrics.latency.observe("http", "scrape", 0.002, 2)
    metrics.udp_drops = lambda: {"[::]:6969": 7}
    text = exposition(metrics, lambda: SwarmTotals(1, 2, 3, 4, 5), _index, _bulk, proc)()
    found = _samples(text)
    process = {name for name in found if name.startswith("process_")}
    assert {"process_resident_memory_bytes{}", "process_open_fds{}"} <= process
    name = "narswarm_tracker_"
    buckets = {
        key: found.pop(key)
        for key in list(found)
        if key.startswith(f"{name}reply_duration_seconds_bucket")
    }
    assert {key: found[key] for key in found.keys() - process} == {
        f"{name}requests_total{{action=announce,family=ipv6,outcome=ok,protocol=udp}}": 3,
        f"{name}reply_duration_seconds_count{{action=scrape,protocol=http}}": 2,
        f"{name}reply_duration_seconds_sum{{action=scrape,protocol=http}}": 0.004,
        f"{name}swarms{{}}": 1,
        f"{name}peers{{family=ipv4,role=seeder}}": 2,
        f"{name}peers{{family=ipv6,role=seeder}}": 3,
        f"{name}peers{{family=ipv4,role=leecher}}": 4,
        f"{name}peers{{family=ipv6,role=leecher}}": 5,
        f"{name}index_up{{}}": 1,
        f"{name}index_nars{{}}": 1,
        f"{name}index_torrents{{}}": 2,
        f"{name}index_narinfos{{}}": 3,
        f"{name}index_blocks{{}}": 4,
        f"{name}index_infohashes{{}}": 5,
        f"{name}index_size_bytes{{}}": 6,
        f"{name}holders{{}}": 1,
        f"{name}held_items{{}}": 2,
        f"{name}wanted{{}}": 3,
        f"{name}parked_polls{{}}": 4,
        f"{name}preparing_answers_total{{}}": 5,
        f"{name}kernel_udp_receive_buffer_errors_total{{family=ipv4}}": 5,
        f"{name}kernel_udp_receive_buffer_errors_total{{family=ipv6}}": 11,
        f"{name}udp_dropped_datagrams_total{{listen=[::]:6969}}": 7,
        f"{name}engine_info{{engine=python}}": 1,
    }
    bucket = f"{name}reply_duration_seconds_bucket{{action=scrape,le=%s,protocol=http}}"
    assert (buckets[bucket % "0.001"], buckets[bucket % "0.0025"]) == (0, 2)
    assert buckets[bucket % "+Inf"] == 2


def test_index_that_cannot_be_read(proc: Path) -> None:
    """The other numbers are still told, and that it is down."""

    def broken() -> Totals:
        raise NarswarmError("index", "is broken")

    totals = SwarmTotals(1, 0, 0, 0, 0)
    found = _samples(exposition(Metrics(), lambda: totals, broken, _bulk, proc)())
    assert found["narswarm_tracker_index_up{}"] == 0
    assert found["narswarm_tracker_swarms{}"] == 1
    assert "narswarm_tracker_index_nars{}" not in found


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("snmp", None, {"ipv6": 11}),
        ("snmp6", None, {"ipv4": 5}),
        ("snmp", "Udp: RcvbufErrors\n", {"ipv6": 11}),
        ("snmp", "Udp: InDatagrams\nUdp: 1\n", {"ipv6": 11}),
        ("snmp", "Udp: RcvbufErrors\nUdp: x\n", {"ipv6": 11}),
        ("snmp6", "", {"ipv4": 5}),
        ("snmp6", "Udp6RcvbufErrors\n", {"ipv4": 5}),
    ],
)
def test_other_kernels(proc: Path, file: str, text: str | None, expected: dict[str, int]) -> None:
    """What the kernel doesn't tell is left out."""
    path = proc / "net" / file
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    assert receive_buffer_errors(proc) == expected


def test_this_kernel() -> None:
    """The real files are understood."""
    found = receive_buffer_errors(Path("/proc"))
    assert "ipv4" in found
    assert ("ipv6" in found) == os.path.exists("/proc/net/snmp6")  # noqa: PTH110 - no path needed
