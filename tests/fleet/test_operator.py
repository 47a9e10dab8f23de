# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/operator.md: somebody who follows it has a public tracker in ten minutes.

The machine has what hosters give. Its apt has the packages and its pip the wheels that they would
fetch, and what stands for certbot gets its certificate from the fleet's own authority.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.rig.rootfs import cache_directory
from tests.fleet import guide, roots, wheels
from tests.fleet.conftest import Deployed
from tests.fleet.deployment import GUIDED, Deployment
from tests.fleet.guide import HERE, OPERATOR
from tests.fleet.machines import Machine

pytestmark = pytest.mark.fleet

_CERTBOT = f"""\
#!/bin/sh
set -eu
dpkg-query --show certbot >&2
[ "$*" = "certonly --standalone -d {GUIDED}" ]
live=/etc/letsencrypt/live/{GUIDED}
mkdir -p $live
cp /etc/ssl/fleet/tracker.pem $live/fullchain.pem
cp /etc/ssl/fleet/tracker.key $live/privkey.pem
"""


def _bare(fleet: Deployment, wheelhouse: Path) -> Machine:
    """The machine to be, with the packages and wheels of an archive and an index."""
    cache = cache_directory() / "fleet"
    machine = fleet.fleet.boot(GUIDED, roots.root(cache, "bare"))
    machine.wait()
    # Fresh enough, or it would be fetched anew.
    machine.run("touch /var/lib/apt/lists")
    fleet.fleet.copy(wheelhouse, GUIDED, "/srv/wheels")
    machine.write("/etc/pip.conf", "[global]\nno-index = true\nfind-links = /srv/wheels\n")
    fleet.certify(GUIDED)
    machine.write("/usr/local/bin/certbot", _CERTBOT, 0o755)
    return machine


def _repository(directory: Path) -> Path:
    """A repository with the files of this checkout, as one commit."""
    git = ["git", f"--git-dir={directory}", f"--work-tree={wheels.CHECKOUT}"]
    who = ["-c", "user.name=operator", "-c", "user.email=operator@example.org"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *who, *command], check=True, cwd=wheels.CHECKOUT)
    return directory


class _Terminal:
    """The operator's shell, which stays where the last command went."""

    def __init__(self, fleet: Deployment, cache: Path) -> None:
        directory = fleet.fleet.directory / "operator"
        directory.mkdir()
        self._fleet = fleet
        self._cwd = directory
        self._where = directory / "cwd"
        config = directory / "gitconfig"
        repository = _repository(directory / "narswarm.git")
        url = "https://example.org/narswarm.git"
        config.write_text(f'[url "{repository}"]\n\tinsteadOf = {url}\n')
        self._environment = {
            "GIT_CONFIG_GLOBAL": str(config),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels.operators(cache)),
        }

    def run(self, script: str) -> str:
        ended = f"{script}\npwd >{shlex.quote(str(self._where))}"
        shown = self._fleet.operate(ended, self._cwd, **self._environment)
        self._cwd = Path(self._where.read_text().strip())
        return shown


def test_a_public_tracker_in_ten_minutes(deployed: Deployed) -> None:
    """A machine that has nothing becomes a tracker where seed boxes publish, block by block."""
    fleet = deployed.fleet
    cache = cache_directory() / "fleet"
    machine = _bare(fleet, wheels.wheelhouse(cache))
    terminal = _Terminal(fleet, cache)
    where: dict[str, Callable[[str], str]] = {
        HERE: terminal.run,
        GUIDED: lambda script: machine.run(script).stdout,
        "anywhere": lambda script: fleet["u"].run(script).stdout,
    }
    blocks = guide.blocks(OPERATOR, "A public tracker in ten minutes", {})
    assert [block.where for block in blocks] == [HERE, HERE, GUIDED, HERE, "anywhere"]
    shown = []
    for block in blocks:
        began = time.monotonic()
        shown.append(where[block.where](block.script))
        print(f"{block.where}: {time.monotonic() - began:.0f} s")
    assert shown[-1] == "ok\n"
    page = fleet["u"].run(f"curl -sSf https://{GUIDED}/").stdout
    assert f"https://{GUIDED}/announce" in page
    assert f"udp://{GUIDED}:6969" in page
    assert fleet.udp_answer(GUIDED) == (0, 7)
    fleet.settings["announce"] = [f"https://{GUIDED}/announce"]
    assert fleet.play(deployed.wheel, "--limit", "s1").code == 0
    fleet.settings.clear()
    fleet.wait_seeded("first", tracker=GUIDED)
