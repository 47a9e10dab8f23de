# SPDX-License-Identifier: GPL-3.0-or-later
"""The Guix channel, as far as a real Guix goes without a network: everything but building."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from narswarm import settings
from seeder.settings import Settings as SeederSettings
from substituter.settings import SubstituterSettings
from tests.e2e.rig import guix
from tests.e2e.rig.nodes import Cluster, Node
from tracker.settings import Settings as TrackerSettings

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
CHANNEL = "/srv/narswarm"
PACKAGES = ("narswarm", "python-bencode.py", "python-zstandard@0.25.0")


def documented_system() -> str:
    """The operating-system declaration of docs/guix.md."""
    blocks = (ROOT / "docs/guix.md").read_text().split("```scheme\n")[1:]
    (found,) = (text for block in blocks if "(operating-system" in (text := block.split("```")[0]))
    return found


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Iterator[Node]:
    """A node with guix-daemon and a checkout of this tree."""
    node = cluster.node("Channel")
    guix.daemon_start(node)
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    for name in listed.decode().split("\0"):
        source = ROOT / name
        if name and source.is_file() and not name.startswith(("tests/", "bench/", "ansible/")):
            node.write(f"{CHANNEL}/{name}", source.read_bytes())
    node.write("/srv/system.scm", documented_system())
    yield node
    cluster.remove(node)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_lowers_to_a_derivation(node: Node, package: str) -> None:
    """Guix finds the package with all its inputs and makes a derivation of it."""
    command = ("guix", "build", "-L", f"{CHANNEL}/guix", "-d", "--no-grafts", package)
    assert node.run(*command, timeout=300).stdout.endswith(".drv\n")


def test_the_developers_file_is_the_package(node: Node) -> None:
    """guix.scm names what the channel has."""
    command = ("guix", "build", "-d", "--no-grafts", "-f", f"{CHANNEL}/guix.scm")
    assert "-narswarm-" in node.run(*command, timeout=300).stdout


def test_lint_has_nothing_to_say(node: Node) -> None:
    """Those checks of `guix lint` that need no network pass."""
    command = ("guix", "lint", "--no-network", "-L", f"{CHANNEL}/guix", *PACKAGES)
    done = node.run(*command, timeout=300)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_documented_system_lowers_to_a_derivation(node: Node) -> None:
    """The services of docs/guix.md compose into an operating system."""
    command = ("guix", "system", "build", "-L", f"{CHANNEL}/guix", "-d", "--no-grafts")
    assert node.run(*command, "/srv/system.scm", timeout=300).stdout.endswith("-system.drv\n")


def test_the_services_write_settings_that_the_programs_take(node: Node, tmp_path: Path) -> None:
    """Each program loads its file, and has the values of the declaration."""
    node.write("/opt/rig/channel.scm", (ROOT / "tests/e2e/rig/channel.scm").read_text())
    command = ("guix", "repl", "-L", f"{CHANNEL}/guix", "--", "/opt/rig/channel.scm")
    found: dict[str, Any] = json.loads(node.run(*command, "/srv/system.scm", timeout=300).stdout)
    for program in ("tracker", "seeder", "substituter"):
        (tmp_path / f"{program}.toml").write_text(found[program])
    load = settings.load
    tracker = load(TrackerSettings, "tracker", file=tmp_path / "tracker.toml", environ={})
    assert tracker.url == "http://tracker.example.org:6969"
    assert tracker.listen == ("[::]:6969",)
    seeder = load(SeederSettings, "seeder", file=tmp_path / "seeder.toml", environ={})
    assert seeder.trackers == ("http://tracker.example.org:6969/announce",)
    assert seeder.max_disk == 50 << 30
    file = tmp_path / "substituter.toml"
    substituter = load(SubstituterSettings, "substituter", file=file, environ={})
    assert substituter.trackers == seeder.trackers
    profile = "/run/current-system/profile"
    assert found["environment"][:2] == [
        f"GUIX_EXTENSIONS_PATH={profile}/share/guix/extensions",
        f"NARSWARM_SUBSTITUTER={profile}/bin/substituter",
    ]
    assert {"narswarm-tracker", "narswarm-seeder", "guix-daemon"} <= set(found["provisions"])
