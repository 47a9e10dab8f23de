# SPDX-License-Identifier: GPL-3.0-or-later
"""Stock clients fetch a payload from the seeder, and alone seed it to the substituter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.rig.nodes import Cluster, Node, wait_for
from tests.e2e.rig.rootfs import RootFs
from tests.e2e.rig.site import Fetcher, Site

pytestmark = pytest.mark.e2e

ITEM = "medium"
DOWNLOADS = "/srv/downloads"


@pytest.fixture
def client(cluster: Cluster, site: Site) -> Iterator[Node]:
    """A node for a client, with the torrent of the item and no Guix running."""
    site.wait_published(ITEM)
    node = cluster.node("C")
    node.run("mkdir", "-p", DOWNLOADS)
    node.write("/srv/item.torrent", site.torrent(ITEM))
    yield node
    cluster.remove(node)


def transmission(node: Node) -> Callable[[], bool]:
    """Start Transmission with the torrent; the answer says whether it has all of it."""
    settings = {
        "download-dir": DOWNLOADS,
        "dht-enabled": False,
        "lpd-enabled": False,
        "pex-enabled": False,
        "utp-enabled": False,
        "port-forwarding-enabled": False,
        "rpc-authentication-required": False,
        "rpc-port": 9091,
    }
    # Without a route to the internet it believes that it has no network at all. This one ends at
    # the bridge.
    node.run("ip", "route", "add", "default", "dev", "eth0")
    node.write("/srv/transmission/settings.json", json.dumps(settings))
    daemon = node.spawn("transmission", "transmission-daemon", "-f", "-g", "/srv/transmission")
    daemon.wait_ready(lambda: node.listening(9091))
    node.run("transmission-remote", "-a", "/srv/item.torrent")

    def complete() -> bool:
        shown = node.run("transmission-remote", "-t", "1", "-i").stdout
        return "Percent Done: 100%" in shown

    return complete


def qbittorrent(node: Node) -> Callable[[], bool]:
    """Start qBittorrent with the torrent; the answer says whether it has all of it."""
    node.write(
        "/srv/qb/qBittorrent/config/qBittorrent.conf",
        "[LegalNotice]\nAccepted=true\n[BitTorrent]\nSession\\DHTEnabled=false\n"
        f"Session\\LSDEnabled=false\nSession\\DefaultSavePath={DOWNLOADS}\n"
        "[Preferences]\nWebUI\\LocalHostAuth=false\nWebUI\\Port=8090\n",
    )
    command = ("qbittorrent-nox", "--profile=/srv/qb", "/srv/item.torrent")
    daemon = node.spawn("qbittorrent", *command)
    daemon.wait_ready(lambda: node.listening(8090))

    def complete() -> bool:
        url = "http://127.0.0.1:8090/api/v2/torrents/info"
        shown = node.run("curl", "-s", url, check=False).stdout
        torrents = json.loads(shown) if shown.startswith("[") else []
        return bool(torrents) and torrents[0]["state"] in {"uploading", "stalledUP"}

    return complete


@pytest.mark.parametrize("start", [transmission, qbittorrent])
def test_stock_client(
    site: Site,
    fetcher: Callable[..., Fetcher],
    client: Node,
    root_fs: RootFs,
    start: Callable[[Node], Callable[[], bool]],
) -> None:
    """It gets the payload from our seeder, and alone gives it to our substituter."""
    if reason := root_fs.missing.get(start.__name__):
        pytest.skip(reason)
    answer = site.index(ITEM)
    assert answer is not None
    (torrent,) = answer["torrents"]
    complete = start(client)
    wait_for(f"{start.__name__} has it all", complete, 300)
    payload = client.read(f"{DOWNLOADS}/{torrent['name']}")
    assert len(payload) == torrent["length"]

    def announced() -> bool:
        answer = site.index(ITEM)
        assert answer is not None
        return any(peer.startswith(f"{client.address}:") for peer in answer["torrents"][0]["peers"])

    wait_for(f"{start.__name__} at the tracker", announced)
    site.stop("seeder")
    b = fetcher(dht=False)
    b.build(ITEM)
    b.assert_equal(ITEM)
    assert b.http_bytes() == 0
