# SPDX-License-Identifier: GPL-3.0-or-later
"""npm's bittorrent-tracker as a client of our tracker, over HTTP and UDP."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import wire_trackers
from tests.conformance.wire_clients import Endpoint

pytestmark = pytest.mark.conformance

INFOHASH = bytes(range(0x70, 0x84)).hex()
DEADLINE = 120


@pytest.fixture(params=["native", "python"])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Endpoint]:
    """An open tracker with an engine."""
    with wire_trackers.ours(tmp_path, request.param, "--open") as found:
        yield found


def _announces(endpoint: Endpoint, protocol: str, family: str) -> float:
    """How many announces of this kind the tracker counts as answered."""
    url = f"http://127.0.0.1:{endpoint.http}/metrics"
    with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
        text = answer.read().decode()
    labels = f'action="announce",family="{family}",outcome="ok",protocol="{protocol}"'
    line = f"narswarm_tracker_requests_total{{{labels}}} "
    return sum(float(each.removeprefix(line)) for each in text.splitlines() if line in each)


# Its UDP knows IPv4 alone.
@pytest.mark.parametrize(
    ("protocol", "host"), [("http", "127.0.0.1"), ("http", "[::1]"), ("udp", "127.0.0.1")]
)
def test_three_clients(endpoint: Endpoint, tmp_path: Path, protocol: str, host: str) -> None:
    """They start, update, complete, scrape and stop, and are told who is there."""
    directory = tmp_path / "node"
    directory.mkdir()
    url = f"{protocol}://{host}:{endpoint.http}/announce"
    command = [*wire_trackers.node_script(directory, "client.mjs"), url, INFOHASH]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    at = [f"{host}:{port}" for port in (6001, 6002, 6003)]
    assert json.loads(done.stdout) == [
        _told("one starts", 0, 1),
        _told("one updates", 0, 1),
        _told("one completes", 1, 0),
        {"name": "one scrapes", "complete": 1, "incomplete": 0, "downloaded": 1},
        _told("two starts", 1, 1, at[0]),
        _told("three starts", 1, 2, *at[:2]),
        _told("three wants one peer", 1, 2, at[0]),
        _told("three completes, not knowing its size", 2, 1, at[1]),
        {"name": "two scrapes", "complete": 2, "incomplete": 1, "downloaded": 2},
        _told("two stops", 2, 0),
        _told("three stops", 1, 0),
        {"name": "one scrapes again", "complete": 1, "incomplete": 0, "downloaded": 2},
    ]
    assert _announces(endpoint, protocol, "ipv6" if host == "[::1]" else "ipv4") == 9


def _told(name: str, complete: int, incomplete: int, *peers: str) -> dict[str, Any]:
    return {"name": name, "complete": complete, "incomplete": incomplete, "peers": list(peers)}
