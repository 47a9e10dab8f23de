# SPDX-License-Identifier: GPL-3.0-or-later
"""Mirrors of substitute servers, which go on when the server is gone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.rig import guix
from tests.e2e.rig.nodes import Node, wait_for
from tests.e2e.rig.site import CONFIG, TRACKER, Fetcher, Site, toml

pytestmark = pytest.mark.e2e

PORT = 6881
PUBLISH = 8090
CLOSURE = ("e2e-app", "e2e-leaf", "busybox")
BAKED = ("single", "medium")


class Server:
    """A `guix publish` on A that everybody can reach."""

    def __init__(self, site: Site, *args: str) -> None:
        self.node = site.node
        listen = ("--listen=0.0.0.0", f"--port={PUBLISH}")
        self.service = self.node.spawn("server", "guix", "publish", *listen, *args)
        self.service.wait_ready(lambda: self.node.listening(PUBLISH))
        self.url = f"http://A:{PUBLISH}"

    def narinfo(self, item: str) -> str:
        """What it says of an item, empty as long as that is being baked."""
        name = f"{item.rpartition('/')[2][:32]}.narinfo"
        command = ("curl", "-s", "-f", f"http://127.0.0.1:{PUBLISH}/{name}")
        return self.node.run(*command, check=False).stdout

    def stop(self) -> None:
        """It is gone."""
        if "server" in self.node.services:
            self.node.kill("server")


class Mirror:
    """A seeder without a store."""

    def __init__(self, site: Site, node: Node, **more: object) -> None:
        self.node = node
        values = {
            "state": "/srv/mirror",
            "store_db": "/srv/none",
            "acl": "/etc/guix/acl",
            "trackers": [f"{TRACKER}/announce"],
            "substitute_urls": [],
            "listen": [f"0.0.0.0:{PORT}"],
            "dht_nodes": site.dht_nodes,
            "lsd": False,
            "upnp": False,
            "private_network": True,
            "web": "",
            **more,
        }
        node.write(CONFIG, toml("seeder", values))
        self.start()

    def start(self) -> None:
        """Start it."""
        service = self.node.spawn("mirror", "seeder", "run")
        service.wait_ready(lambda: self.node.listening(PORT))

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        answer: dict[str, Any] = json.loads(self.node.run("seeder", "status", "--json").stdout)
        return answer


def seeded(site: Site, label: str) -> bool:
    """Whether the tracker knows a server's file of an item, with a seed."""
    answer = site.index(label)
    return answer is not None and any(
        torrent["kind"] == "server" and torrent["seeders"] for torrent in answer["torrents"]
    )


@pytest.fixture
def server(site: Site) -> Iterator[Callable[..., Server]]:
    """Starts servers, one at a time; the seeder of A stays out of it."""
    site.stop("seeder")
    made: list[Server] = []

    def start(*args: str) -> Server:
        made.append(Server(site, *args))
        return made[-1]

    yield start
    for each in made:
        each.stop()


@pytest.mark.parametrize(
    ("compression", "words", "items"),
    # Others each time: the tracker still knows the mirrors of the tests before.
    [("zstd", ["--closure"], CLOSURE), ("lzip", [], ("tree",)), ("gzip", [], ("many",))],
)
def test_a_server_that_is_gone(
    site: Site,
    fetcher: Callable[..., Fetcher],
    server: Callable[..., Server],
    compression: str,
    words: list[str],
    items: tuple[str, ...],
) -> None:
    """What was mirrored of it, closure and all, is still to be had, also after a restart."""
    publish = server("-C", compression)
    node = site.cluster.node(f"M{compression}")
    try:
        guix.authorize(node, guix.signing_key(site.node))
        mirror = Mirror(site, node)
        node.run("seeder", "mirror", *words, publish.url, site.items[items[0]])
        for label in items:
            wait_for(f"{label} mirrored", lambda: seeded(site, label), 300)  # noqa: B023
        publish.stop()
        node.kill("mirror")
        mirror.start()
        b = fetcher(servers=(publish.url,))
        b.build(items[0])
        b.assert_equal(*items)
        wait_for("what was sent", lambda: mirror.status()["uploaded"] > 0)
        state = mirror.status()["mirror"]
        assert state["files"] >= len(items)
        assert len(state["rules"]) == 1
    finally:
        site.cluster.remove(node)


def test_what_guix_publish_has_baked(
    site: Site, fetcher: Callable[..., Fetcher], server: Callable[..., Server]
) -> None:
    """Files of its cache are seeded where they are, and not any more when it deletes them."""
    publish = server("--cache=/srv/cache", "-C", "zstd", "-C", "lzip")
    for label in BAKED:
        item = site.items[label]
        # Of a small item there is a narinfo before it is baked.
        publish.narinfo(item)
        name = item.rpartition("/")[2]
        for kind in ("zstd", "lzip"):
            narinfo = site.node.path(f"/srv/cache/{kind}/{name}.narinfo")
            wait_for(f"{label} baked", narinfo.exists)
    publish.stop()
    config = site.node.read(CONFIG)
    try:
        mirror = Mirror(site, site.node, publish_cache="/srv/cache")
        for label in BAKED:
            wait_for(f"{label} in the index", lambda: seeded(site, label), 300)  # noqa: B023
        state = mirror.status()["mirror"]
        assert (state["in_place"], state["bytes"]) == (len(BAKED), 0)
        b = fetcher(servers=(publish.url,))
        b.build(*BAKED)
        b.assert_equal(*BAKED)
        name = site.items["single"].rpartition("/")[2]
        site.node.run("sh", "-c", f"rm /srv/cache/*/{name}.*")
        wait_for("one file fewer", lambda: mirror.status()["mirror"]["in_place"] == 1, 300)
    finally:
        site.node.kill("mirror")
        site.node.write(CONFIG, config)
