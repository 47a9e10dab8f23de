# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the end-to-end tests: real Guix and real clients in namespaced nodes."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# pytest alone, unlike `python -m pytest`, doesn't put the checkout on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.rig.guix import Mode
from tests.e2e.rig.nodes import Cluster
from tests.e2e.rig.rootfs import ArchiveError, RigError, RootFs, cache_directory, rootfs
from tests.e2e.rig.site import Fetcher, Site

_numbers = itertools.count(1)


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


@pytest.fixture(scope="session")
def programs(root_fs: RootFs) -> None:
    """Debian has what our programs need."""
    if reason := root_fs.missing.get("programs"):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def whole_site(cluster: Cluster, programs: None) -> Site:  # noqa: ARG001
    """Node A, started once."""
    return Site(cluster)


@pytest.fixture
def site(whole_site: Site) -> Site:
    """Node A in order: all services run, NARs are blocked over HTTP."""
    whole_site.ensure()
    return whole_site


@pytest.fixture
def fetcher(site: Site) -> Iterator[Callable[..., Fetcher]]:
    """Makes nodes B, with the arguments of `Fetcher`; they end with the test."""
    made: list[Fetcher] = []

    def make(mode: Mode = Mode.ROOT, **more: Any) -> Fetcher:
        made.append(Fetcher(site, f"B{next(_numbers)}", mode, **more))
        return made[-1]

    yield make
    for each in made:
        site.cluster.remove(each.node)
