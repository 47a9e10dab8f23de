# SPDX-License-Identifier: GPL-3.0-or-later
"""A closure of a dozen items, with those gone that one might think it depends on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.rig import guix, ownseeder
from tests.e2e.rig.guix import Mode
from tests.e2e.rig.nodes import wait_for
from tests.e2e.rig.site import Fetcher, Site

pytestmark = pytest.mark.e2e

LENGTH = 12
"""Items of the chain; the last refers, by all others, to the first."""


@pytest.fixture(scope="module", name="chain")
def chain_fixture(whole_site: Site) -> list[str]:
    """The labels of a chain, the item that refers to all others last."""
    whole_site.ensure()
    labels = whole_site.add_many("chain", LENGTH)
    whole_site.wait_published(*labels, timeout=120)
    return labels


def test_servers_gone(site: Site, fetcher: Callable[..., Fetcher], chain: list[str]) -> None:
    """Without substitute servers narinfos come from the tracker's mirror, and NARs from peers."""
    site.wait_published(*chain)
    site.stop("proxy", number=signal.SIGKILL)
    b = fetcher(Mode.UNPRIVILEGED)
    b.build(chain[-1])
    b.assert_equal(*chain)
    guix.verify_contents(b.node)


def test_all_but_peers_gone(site: Site, fetcher: Callable[..., Fetcher], chain: list[str]) -> None:
    """Without tracker and servers what is remembered, and the DHT, are enough for a closure."""
    site.wait_published(*chain)
    for label in chain:
        wait_for(f"{label} in the DHT", lambda label=label: site.in_dht(label), 300)  # type: ignore[misc]
    b = fetcher()
    b.build(chain[-1])
    b.assert_equal(*chain)
    b.forget(*reversed(chain))
    assert not any(b.has(label) for label in chain)
    for peers in b.node.path("/var/guix/narswarm").rglob("*.peers"):
        peers.unlink()
    site.stop("tracker", "proxy", number=signal.SIGKILL)
    before = b.http_bytes()
    b.build(chain[-1])
    b.assert_equal(*chain)
    assert b.http_bytes() == before


@pytest.fixture(name="many")
def many_fixture(site: Site) -> Iterator[list[str]]:
    """The labels of items that are no round trip only; what A sends takes seconds for all."""
    labels = [f"many-{number}" for number in range(LENGTH)]
    for label in labels:
        site.add(label, os.urandom(1 << 20))
    site.stop("seeder")
    site.start_seeder()
    site.wait_published(*labels)
    site.node.limit(16)
    yield labels
    site.node.limit(None)


def test_through_the_seeder_of_the_machine(
    site: Site, fetcher: Callable[..., Fetcher], many: list[str]
) -> None:
    """Where a seeder runs it fetches the items, the later ones ahead, and seeds them then."""
    b = fetcher()
    ownseeder.start(b)
    build = b.node.spawn("build", "guix", "build", *(site.items[label] for label in many))

    def ahead() -> bool:
        shown = ownseeder.status(b)
        return bool(shown["fetching"] > 1 and shown["planned"])

    wait_for("a plan", ahead)
    build.wait(300)
    b.assert_equal(*many)
    assert b.http_bytes() == 0
    wait_for("the payloads", lambda: ownseeder.status(b)["payloads"] >= LENGTH, 120)
    for label in many:
        wait_for(f"{label} by B", lambda label=label: b.node.address in peers(site, label), 120)  # type: ignore[misc]


def peers(site: Site, label: str) -> set[str]:
    """Who seeds an item, as the tracker says."""
    torrents = (site.index(label) or {"torrents": []})["torrents"]
    return {peer.rpartition(":")[0] for torrent in torrents for peer in torrent["peers"]}
