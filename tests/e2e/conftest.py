# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the end-to-end tests: real Guix and real clients in namespaced nodes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest alone, unlike `python -m pytest`, doesn't put the checkout on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.rig.nodes import Cluster
from tests.e2e.rig.rootfs import ArchiveError, RigError, RootFs, cache_directory, rootfs


@pytest.fixture(scope="session")
def root_fs() -> RootFs:
    """The root file system of all nodes; a machine that can't make it skips, but not in CI."""
    try:
        return rootfs(cache_directory())
    except ArchiveError as error:
        pytest.skip(f"the archive lacks packages: {error}")
    except RigError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cluster(root_fs: RootFs) -> Iterator[Cluster]:
    """The network of all nodes, which end with it."""
    with Cluster(root_fs, root_fs.path.parent) as cluster:
        yield cluster
