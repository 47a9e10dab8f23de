# SPDX-License-Identifier: GPL-3.0-or-later
"""monitoring/: dashboards and alerts name what a tracker and a seeder really tell Prometheus."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import needs
from tests.ports import free_port
from tests.processes import ROOT, end, start_tracker

MONITORING = ROOT / "monitoring"
RULES = MONITORING / "alerts.yml"
DASHBOARDS = sorted(MONITORING.glob("grafana-*.json"))
#: What Prometheus itself makes, and the labels that it gives to all.
MADE = {"up"}
GIVEN = {"instance", "job"}
_SEEDER = "import sys; sys.argv[0] = 'seeder'; from seeder.cli import main; main()"
_METRIC = re.compile(r"\b((?:narswarm|process)_\w+|up)\b(?:\{([^}]*)\})?")
_QUOTED = re.compile(r'"[^"]*"')


class Told(NamedTuple):
    """What programs tell Prometheus.

    Attributes:
        names: of all series.
        labels: of those that have a sample.
    """

    names: set[str]
    labels: dict[str, set[str]]


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=120) as answer:
        body: bytes = answer.read()
    return body


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """The series of a tracker that was announced to, and of a seeder that knows it."""
    directory = tmp_path_factory.mktemp("monitoring")
    (directory / "nars").mkdir()
    (directory / "acl").write_text("(acl)")
    web = free_port()
    tracker, (port,) = start_tracker(directory, ["127.0.0.1:0"], "--open")
    settings = directory / "seeder.toml"
    settings.write_text(
        f"[seeder]\nstate = '{directory}/state'\nnars = '{directory}/nars'\n"
        f"acl = '{directory}/acl'\n"
        f"trackers = ['http://127.0.0.1:{port}/announce']\nlisten = ['127.0.0.1:0']\n"
        f"web = '127.0.0.1:{web}'\nsubstitute_urls = []\nprivate_network = true\n"
        f"dht = false\nlsd = false\nupnp = false\nsocket = '{directory}/seeder.sock'\n"
    )
    seeder = subprocess.Popen(
        [sys.executable, "-c", _SEEDER, "run", "--config", str(settings)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert seeder.stderr is not None
        said = []
        for line in seeder.stderr:
            said.append(line)
            if "ready" in line:
                break
        assert "ready" in said[-1], said
        announce = f"info_hash={'x' * 20}&peer_id={'y' * 20}&port=7&left=0"
        _read(f"http://127.0.0.1:{port}/announce?{announce}")
        texts = [_read(f"http://127.0.0.1:{each}/metrics").decode() for each in (port, web)]
        names: set[str] = set(MADE)
        labels: dict[str, set[str]] = {}
        for family in (each for text in texts for each in text_string_to_metric_families(text)):
            ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
            names |= {family.name + suffix for suffix in ends.get(family.type, ("",))}
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
        yield Told(names, labels)
    finally:
        end(tracker)
        seeder.terminate()
        seeder.communicate(timeout=120)


def _expressions(path: Path) -> list[str]:
    """All that a dashboard asks Prometheus."""
    board: dict[str, Any] = json.loads(path.read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert found
    return found


def _alerts() -> list[str]:
    """All that the rules ask."""
    found = re.findall(r"expr: (?:\|\n((?: {10}.*\n)+)|(.*)\n)", RULES.read_text())
    assert len(found) == RULES.read_text().count("- alert:")
    return [block or line for block, line in found]


def _unknown(expression: str, told: Told) -> set[str]:
    """Names, and labels of names, that nobody tells."""
    unknown = set()
    for name, selector in _METRIC.findall(expression):
        if name not in told.names:
            unknown.add(name)
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", _QUOTED.sub('""', selector)))
        if name in told.labels:
            unknown |= {f"{name}.{label}" for label in used - told.labels[name] - GIVEN}
    return unknown


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_show_what_there_is(path: Path, told: Told) -> None:
    """Every series of a panel, with its labels, is in what the programs answer."""
    assert {each: _unknown(each, told) for each in _expressions(path)} == {
        each: set() for each in _expressions(path)
    }


def test_alerts_ask_for_what_there_is(told: Told) -> None:
    """A rule about a series that doesn't exist would never fire."""
    assert {each: _unknown(each, told) for each in _alerts()} == {each: set() for each in _alerts()}


def test_an_unknown_series_is_found(told: Told) -> None:
    """The tests above could fail."""
    wrong = 'sum(narswarm_tracker_swarm{instance="a"}) + narswarm_tracker_peers{rolle="seeder"}'
    assert _unknown(wrong, told) == {"narswarm_tracker_swarm", "narswarm_tracker_peers.rolle"}


def test_dashboards_have_a_place_for_each_panel() -> None:
    """Panels don't overlap, and two dashboards have no id in common."""
    boards = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({board["uid"] for board in boards}) == len(boards) == 2
    for board in boards:
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken, panel["title"]
            assert at["x"] + at["w"] <= 24
            taken |= cells


def test_prometheus_takes_every_expression(tmp_path: Path) -> None:
    """Promtool parses the rules, and those that dashboards ask as rules of their own."""
    promtool = needs.program("promtool", "prometheus")
    asked = [each for path in DASHBOARDS for each in _expressions(path)]
    rules = [{"record": f"asked{number}", "expr": each} for number, each in enumerate(asked)]
    # JSON is YAML, too.
    text = json.dumps({"groups": [{"name": "asked", "rules": rules}]})
    (tmp_path / "asked.yml").write_text(text)
    for file in (RULES, tmp_path / "asked.yml"):
        done = subprocess.run(
            [promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_each_alert_is_explained() -> None:
    """docs/monitoring.md says what to do about it."""
    explained = re.findall(r"(?m)^\| `(Narswarm\w+)` \|", (ROOT / "docs/monitoring.md").read_text())
    assert explained == re.findall(r"- alert: (\w+)", RULES.read_text())


def test_alerts_fire(tmp_path: Path) -> None:
    """A tracker that fails, a database that is gone, and a box that nobody reaches are told of."""
    promtool = needs.program("promtool", "prometheus")
    labels = 'instance="a",job="narswarm-tracker"'
    series = {
        f"up{{{labels}}}": "0x60",
        f"narswarm_tracker_index_up{{{labels}}}": "0x60",
        f'narswarm_tracker_requests_total{{{labels},outcome="ok"}}': "0+50x60",
        f'narswarm_tracker_requests_total{{{labels},outcome="failed"}}': "0+1x60",
        'narswarm_tracker_peers{instance="a",role="seeder"}': "0x60",
        'narswarm_seeder_announces_total{instance="b",tracker="t"}': "0x60",
        'narswarm_seeder_announce_errors_total{instance="b",tracker="t"}': "0+1x60",
        'narswarm_seeder_mirrored_files{instance="a"}': "5x800",
        'narswarm_seeder_mirror_missing_items{instance="a"}': "0x60 3x800",
    }
    fire = {
        "NarswarmTrackerDown": {"job": "narswarm-tracker", "severity": "critical"},
        "NarswarmIndexDown": {"job": "narswarm-tracker", "severity": "critical"},
        "NarswarmTrackerFails": {"severity": "critical"},
    }
    silent = ["NarswarmTrackerSlow", "NarswarmRestartsOften", "NarswarmSeederDown"]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": value} for name, value in series.items()],
            "alert_rule_test": [
                {
                    "eval_time": "45m",
                    "alertname": name,
                    "exp_alerts": [{"exp_labels": {"instance": "a", **fire[name]}}]
                    if name in fire
                    else [],
                }
                for name in (*fire, *silent)
            ]
            + [
                {"eval_time": when, "alertname": "NarswarmMirrorIsStuck", "exp_alerts": alerts}
                for when, alerts in (
                    ("6h", []),
                    ("8h", [{"exp_labels": {"instance": "a", "severity": "warning"}}]),
                )
            ],
        }
    ]
    # What an alert says isn't compared here.
    text = re.sub(r"\n +annotations:\n +summary: .*", "", RULES.read_text())
    (tmp_path / "alerts.yml").write_text(text)
    (tmp_path / "tests.yml").write_text(json.dumps({"rule_files": ["alerts.yml"], "tests": tests}))
    done = subprocess.run(
        [promtool, "test", "rules", str(tmp_path / "tests.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
