# SPDX-License-Identifier: GPL-3.0-or-later
"""With every tracker down, what was learned before and the DHT are enough."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.rig.nodes import wait_for
from tests.e2e.rig.site import Fetcher, Site

pytestmark = pytest.mark.e2e

TORRENTS = "/var/guix/narswarm"


def _learn_torrent(site: Site, b: Fetcher, label: str) -> None:
    """Fetch an item once and delete it: only what the substituter keeps for itself stays."""
    b.build(label)
    b.assert_equal(label)
    b.forget(label)
    assert not b.has(label)
    assert list(b.node.path(TORRENTS).rglob("*.torrent"))
    site.stop("tracker")


def test_dht_alone(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """A torrent without any peer address finds the seeder in the DHT."""
    site.wait_published("medium")
    wait_for("medium in the DHT", lambda: site.in_dht("medium"), 300)
    b = fetcher()
    _learn_torrent(site, b, "medium")
    for peers in b.node.path(TORRENTS).rglob("*.peers"):
        peers.unlink()
    before = site.uploaded()
    b.build("medium")
    b.assert_equal("medium")
    assert b.http_bytes() == 0
    wait_for("the seeder's counter", lambda: site.uploaded() > before)


def test_torrent_learned_before(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """A torrent and the peers it had are enough, without tracker and DHT."""
    site.wait_published("tree")
    b = fetcher(dht=False)
    _learn_torrent(site, b, "tree")
    b.build("tree")
    b.assert_equal("tree")
    assert b.http_bytes() == 0
