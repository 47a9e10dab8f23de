# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet, deployed once from bare machines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

# pytest alone, unlike `python -m pytest`, doesn't put the checkout on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests import needs
from tests.e2e.rig.rootfs import ArchiveError, RigError, cache_directory
from tests.fleet import wheels
from tests.fleet.deployment import ADDRESSES, Deployment, Recap
from tests.fleet.machines import Fleet


class Deployed(NamedTuple):
    """A fleet that serves.

    Attributes:
        fleet: its machines.
        wheel: of the release that they run.
        recap: how that came about.
    """

    fleet: Deployment
    wheel: Path
    recap: Recap


@pytest.fixture(scope="session")
def deployed() -> Iterator[Deployed]:
    """All machines, after the first run of Ansible."""
    needs.root()
    needs.program("systemd-nspawn", "systemd-container")
    needs.program("mmdebstrap")
    if not Path(sys.executable).with_name("ansible-playbook").exists():
        needs.missing("ansible-core is not installed")
    cache = cache_directory() / "fleet"
    try:
        with Fleet(cache, ADDRESSES) as fleet:
            deployment = Deployment.bare(fleet, cache)
            wheel = wheels.build(fleet.directory / "wheels", "0.1.0", {})
            yield Deployed(deployment, wheel, deployment.play(wheel))
    except ArchiveError as error:
        pytest.skip(f"the archive lacks packages: {error}")
    except RigError as error:
        needs.missing(str(error))
