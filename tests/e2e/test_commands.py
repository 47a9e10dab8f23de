# SPDX-License-Identifier: GPL-3.0-or-later
"""What the substituter tells people, beside a real guix-daemon: doctor, weather, challenge."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.rig import guix
from tests.e2e.rig.guix import Mode
from tests.e2e.rig.nodes import Node
from tests.e2e.rig.site import Fetcher, Site

pytestmark = pytest.mark.e2e


def ask(node: Node, *words: str) -> tuple[int, Any]:
    """Exit code and answer of a command."""
    done = node.run("substituter", *words, "--json", check=False)
    print(done.stdout, done.stderr)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("mode", [Mode.ROOT, Mode.UNPRIVILEGED])
def test_the_doctor_finds_nothing(fetcher: Callable[..., Fetcher], mode: Mode) -> None:
    """The daemon is found, its environment leads to the program, and that starts as its user."""
    b = fetcher(mode)
    code, shown = ask(b.node, "doctor")
    failed = [each for each in shown["findings"] if each["verdict"] == "failed"]
    assert (code, failed) == (0, [])
    checks = {each["check"]: each for each in shown["findings"]}
    assert checks["program"]["message"].endswith(", starts")
    assert "the next `guix build` asks the swarm" in shown["conclusion"].replace("The", "the")


def test_the_doctor_finds_a_daemon_that_was_not_told(fetcher: Callable[..., Fetcher]) -> None:
    """One without the extension is guix's own."""
    b = fetcher(Mode.ROOT, program="guix")
    code, shown = ask(b.node, "doctor")
    assert code == 1
    assert "it has not been told of the substituter" in shown["conclusion"]


def test_weather_and_challenge(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """The swarm and the server have the item; the store agrees with them until it is damaged."""
    site.wait_published("single")
    item = site.items["single"]
    missing = "/gnu/store/" + "0" * 32 + "-missing"
    b = fetcher(Mode.ROOT)
    code, shown = ask(b.node, "weather", item, missing)
    assert (code, shown["summary"]) == (5, {"items": 2, "swarm": 1, "http": 1, "missing": 1})
    assert shown["items"][0]["swarm"]["seeds"] == 1
    assert shown["items"][0]["download_size"] == site.payload_length("single")
    b.build("single")
    b.assert_equal("single")
    code, shown = ask(b.node, "challenge", item)
    assert (code, shown["items"][0]["outcome"]) == (0, "agreement")
    assert shown["items"][0]["local"] == f"sha256:{guix.nar_hash(b.node, item)}"
    database = "/var/guix/db/db.sqlite"
    script = (
        "import sqlite3; db = sqlite3.connect('%s'); "
        "db.execute(\"UPDATE ValidPaths SET hash = 'sha256:' || substr('%s', 1, 64)\"); db.commit()"
    )
    b.node.run("python3", "-c", script % (database, "0" * 64))
    code, shown = ask(b.node, "challenge", item)
    assert (code, shown["items"][0]["outcome"]) == (7, "disagreement")
