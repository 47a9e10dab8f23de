# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd/: the units are valid, confined, and docs/units.md says what they leave open."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs

CHECKOUT = Path(__file__).resolve().parents[2]
#: With the most points of exposure that docs/units.md admits.
UNITS = {"narswarm-tracker": 1.4, "narswarm-seeder": 1.6, "narswarm-gateway": 1.6}
SYSUSERS = "systemd/narswarm.sysusers.conf"
PROGRAMS = {"gateway": "substituter"}


def _analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [needs.program("systemd-analyze", "systemd-container"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(params=sorted(UNITS))
def unit(request: pytest.FixtureRequest) -> Path:
    """Each of the services."""
    return CHECKOUT / "systemd" / f"{request.param}.service"


def test_exposure_is_as_documented(unit: Path) -> None:
    """Each thing that `systemd-analyze security` finds is in docs/units.md with its reason."""
    threshold = str(round(UNITS[unit.stem] * 10))
    done = _analyze(
        "security",
        "--offline=true",
        "--no-pager",
        "--json=short",
        f"--threshold={threshold}",
        str(unit),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {row["name"] for row in json.loads(done.stdout) if row["set"] is False}
    program = unit.stem.removeprefix("narswarm-")
    documented = {
        name.replace("\\|", "|")
        for name, services in re.findall(
            r"^\| `([^`]+)` \| ([\w, ]+) \|", (CHECKOUT / "docs/units.md").read_text(), re.MULTILINE
        )
        if services == "all" or program in services.split(", ")
    }
    assert documented >= found
    assert {"PrivateNetwork=", "RootDirectory=/RootImage="} <= found


def test_units_say_nothing_that_systemd_does_not_know(unit: Path, tmp_path: Path) -> None:
    """A misspelt setting would be ignored in silence."""
    text = unit.read_text()
    programs = set(re.findall(r"^Exec\w+=(/\S+)", text, re.MULTILINE))
    assert programs
    # What is verified has to exist; the programs are not installed here.
    text = re.sub(r"^(Exec\w+=)/opt/\S+", r"\1/bin/true", text, flags=re.MULTILINE)
    copy = tmp_path / unit.name
    copy.write_text(text)
    done = _analyze("verify", "--man=no", str(copy))
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []


def test_verifying_finds_a_misspelt_setting(tmp_path: Path) -> None:
    """The test above could fail."""
    wrong = tmp_path / "wrong.service"
    wrong.write_text("[Service]\nExecStart=/bin/true\nWatchdogSeconds=3\n")
    done = _analyze("verify", "--man=no", str(wrong))
    assert "WatchdogSeconds" in done.stderr


def test_units_run_what_the_package_installs(unit: Path) -> None:
    """The programs are those of pyproject.toml, by the link that upgrades move."""
    program = unit.stem.removeprefix("narswarm-")
    found = set(re.findall(r"^Exec\w+=(/opt/\S+)", unit.read_text(), re.MULTILINE))
    assert found == {f"/opt/narswarm/current/bin/{PROGRAMS.get(program, program)}"}


def test_the_gateway_is_run_with_arguments_that_it_has() -> None:
    """Its state is where its unit has a directory for it; its command line is understood."""
    text = (CHECKOUT / "systemd/narswarm-gateway.service").read_text()
    (line,) = re.findall(r"^ExecStart=/\S+/substituter (.*)$", text, re.MULTILINE)
    arguments = [*line.split(), "--help"]
    done = subprocess.run(
        [sys.executable, "-c", "from substituter.cli import main; main()", *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    (directory,) = re.findall(r"^CacheDirectory=(\S+)$", text, re.MULTILINE)
    assert f"[default: /var/cache/{directory}]" in " ".join(done.stdout.split())
    users = dict(
        re.findall(r"^u +(\S+) +- .* (/\S+)$", (CHECKOUT / SYSUSERS).read_text(), re.MULTILINE)
    )
    (user,) = re.findall(r"^User=(\S+)$", text, re.MULTILINE)
    assert users[user] == f"/var/cache/{directory}"


def test_the_daemon_finds_the_extension_where_guix_looks() -> None:
    """Guix takes only directories of GUIX_EXTENSIONS_PATH that end in guix/extensions."""
    text = (CHECKOUT / "systemd/guix-daemon.service.d/narswarm.conf").read_text()
    environment = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
    assert environment["GUIX_EXTENSIONS_PATH"].endswith("/guix/extensions")
    assert environment["NARSWARM_SUBSTITUTER"] == "/opt/narswarm/current/bin/substituter"
