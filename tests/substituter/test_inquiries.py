# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.inquiries: `weather` and `challenge` as people run them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from substituter.settings import SubstituterSettings
from tests.substituter import daemon, trackers
from tests.substituter.conftest import Item, Site, torrent_of
from tests.substituter.test_commands import Run

Make = Callable[..., Item]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program."""
    return Run(capsys)


@pytest.fixture
def config(settings: SubstituterSettings, tmp_path: Path, site: Site) -> Path:
    """Settings with one tracker."""
    tracker = f'trackers = ["{site.url}/announce"]'
    return daemon.config(settings, tmp_path / "config", tracker)


def test_weather(run: Run, config: Path, site: Site, make_item: Make, tmp_path: Path) -> None:
    """An item of each sort; exit code 5 because one is missing."""
    a, b, c = make_item("a"), make_item("b", b"b"), make_item("c", b"c")
    site.offer(a, "zstd")
    site.offer(b, "none")
    trackers.serve(site, a, torrent_of(a, tmp_path)[0])
    arguments = ("weather", "--config", config, "--substitute-urls", site.url)
    code, out, err = run(*arguments, a.path, b.path, c.path)
    assert (code, err) == (5, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["SWARM", "2", "-", "-", "1"]
    assert lines[-1].startswith("1 of 3 from the swarm, 2 over HTTP, 1 missing; ")
    code, out, _ = run(*arguments, "--json", a.path, b.path)
    assert code == 0
    shown = json.loads(out)
    assert shown["summary"] == {"items": 2, "swarm": 1, "http": 2, "missing": 0}
    assert [each["available"] for each in shown["items"]] == [["swarm", "http"], ["http"]]


def test_weather_by_another_policy(
    run: Run, config: Path, site: Site, make_item: Make, tmp_path: Path
) -> None:
    """With swarm-only what only a server has is missing; that the DHT isn't asked is said."""
    a, b = make_item("a"), make_item("b", b"b")
    site.offer(a, "zstd")
    site.offer(b, "zstd")
    trackers.serve(site, a, torrent_of(a, tmp_path)[0])
    arguments = ("weather", "--config", config, "--substitute-urls", site.url, a.path, b.path)
    assert run(*arguments)[0] == 0
    code, out, _ = run(*arguments, "--policy", "swarm-only")
    assert code == 5
    assert out.splitlines()[-1].startswith("1 of 2 from the swarm, 0 over HTTP, 1 missing; ")
    config.write_text(config.read_text().replace("dht = false", "dht = true"))
    code, out, _ = run(*arguments)
    assert out.splitlines()[-1] == "The DHT was not asked; it may know seeds that no tracker knows."
    shown = json.loads(run(*arguments, "--json", "--policy", "http-first")[1])
    assert (shown["policy"], shown["dht"]) == ("http-first", "not asked")
    code, _, err = run(*arguments, "--policy", "fast")
    assert code == 2
    assert "'fast' is not one of 'race', 'swarm-only', 'swarm-first', 'http-first'" in err


def test_nobody_answers(run: Run, config: Path, site: Site, make_item: Make) -> None:
    """That is no weather at all."""
    path = make_item("a").path
    site.close()
    code, out, err = run("weather", "--config", config, "--substitute-urls", site.url, path)
    assert (code, out) == (8, "")
    assert err.splitlines() == [
        f"substituter: {site.url}: connection refused",
        f"substituter: {site.url}/announce: connection refused",
        "substituter: servers and trackers: none of them answers",
    ]


def test_nothing_is_asked_about(run: Run, config: Path) -> None:
    """That is a mistake on the command line."""
    code, _, err = run("weather", "--config", config)
    assert code == 2
    assert err.endswith("Error: name a store path, - or --manifest\n")


def test_challenge(run: Run, config: Path, site: Site, make_item: Make, tmp_path: Path) -> None:
    """Two servers with different NARs of one item: exit code 7, in capitals."""
    a, other = make_item("a"), make_item("a", b"other\n")
    site.offer(a, "zstd")
    other_site = Site()
    try:
        other_site.offer(other, "zstd")
        urls = f"{site.url} {other_site.url}"
        arguments = ("challenge", "--config", config, "--database", tmp_path / "none")
        code, out, err = run(*arguments, "--substitute-urls", urls, a.path)
        assert code == 7
        assert out.splitlines()[0] == f"DISAGREEMENT: {a.path}"
        assert err == f"substituter: {tmp_path / 'none'}: No such file or directory\n"
        code, out, _ = run(*arguments, "--substitute-urls", site.url, "--json", a.path)
        assert (code, json.loads(out)["items"][0]["outcome"]) == (0, "alone")
    finally:
        other_site.close()
