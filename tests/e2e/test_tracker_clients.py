# SPDX-License-Identifier: GPL-3.0-or-later
"""Stock clients fetch a payload with our tracker alone to find its seed, over HTTP and over UDP."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import bencodepy
import pytest

from tests import needs
from tests.e2e.rig.nodes import Cluster, Node, wait_for
from tests.e2e.rig.rootfs import RootFs

pytestmark = pytest.mark.e2e

PORT = 6969
SEED_PORT = 6881
CLIENT_PORT = 6900
SIZE = 2_500_000
DOWNLOADS = "/srv/downloads"
TORRENT = "/srv/item.torrent"
OTHER = {"http": "udp", "udp": "http"}
FETCHING = 300.0

#: Bytes a second that the seed sends: whoever takes part in two swarms has announced itself in both
#: before it has everything.
RATE = "1000000"


class Tracker:
    """A node with the tracker, open and with the engine that it takes by itself."""

    def __init__(self, node: Node) -> None:
        self.node = node
        command = ("tracker", "serve", "--open", "--listen", f"0.0.0.0:{PORT}")
        service = node.spawn("tracker", *command, "--data", "/srv/tracker")
        service.wait_ready(lambda: node.listening(PORT))

    def url(self, protocol: str) -> str:
        """Where to announce."""
        return f"{protocol}://{self.node.address}:{PORT}/announce"

    def metrics(self) -> str:
        """What it tells Prometheus."""
        return self.node.run("curl", "-sS", "-f", f"http://127.0.0.1:{PORT}/metrics").stdout

    def announces(self, protocol: str) -> int:
        """How many announces over a protocol were answered."""
        labels = f'action="announce",family="ipv4",outcome="ok",protocol="{protocol}"'
        pattern = rf"^narswarm_tracker_requests_total{{{re.escape(labels)}}} ([\d.]+)$"
        return int(sum(map(float, re.findall(pattern, self.metrics(), re.MULTILINE))))

    def has(self, infohash: str, *, seeds: int, downloads: int) -> bool:
        """Whether a torrent has so many seeds and downloads, and no leechers."""
        escaped = re.sub("..", r"%\g<0>", infohash[:40])
        url = f"http://127.0.0.1:{PORT}/scrape?info_hash={escaped}"
        self.node.run("curl", "-sS", "-f", "-o", "/srv/scraped", url)
        (file,) = bencodepy.decode(self.node.read("/srv/scraped"))[b"files"].values()
        counts = (file[b"complete"], file[b"incomplete"], file[b"downloaded"])
        return counts == (seeds, 0, downloads)


class Item(NamedTuple):
    """A payload and its torrent, which has one tracker.

    Attributes:
        name: of the payload.
        data: its bytes.
        torrent: its file.
        infohashes: the v1 and the v2 one, in hexadecimal.
    """

    name: str
    data: bytes
    torrent: bytes
    infohashes: tuple[str, str]


@pytest.fixture(scope="module")
def tracker(cluster: Cluster, programs: None) -> Iterator[Tracker]:  # noqa: ARG001
    """The tracker, for all tests."""
    needs.native()
    node = cluster.node("T")
    yield Tracker(node)
    cluster.remove(node)


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Node]:
    """A node for a client."""
    node = cluster.node("C")
    node.run("mkdir", "-p", DOWNLOADS)
    yield node
    cluster.remove(node)


@pytest.fixture(params=["http", "udp"])
def protocol(request: pytest.FixtureRequest) -> str:
    """What the client announces over."""
    return str(request.param)


@pytest.fixture
def item(tracker: Tracker, protocol: str) -> Iterator[Item]:
    """A new payload, with a seed that has announced over the other protocol."""
    node = tracker.node
    made = make_item(node, tracker.url(protocol))
    node.write(TORRENT, made.torrent)
    command = ("python3", "/opt/rig/peer.py", TORRENT, "/srv/items", str(SEED_PORT))
    seed = node.spawn("seed", *command, tracker.url(OTHER[protocol]), RATE)
    try:
        for infohash in made.infohashes:
            seed.wait_ready(partial(tracker.has, infohash, seeds=1, downloads=0))
        yield made
    finally:
        node.kill("seed")


def make_item(node: Node, url: str) -> Item:
    """Have mkmeta make a payload and its hybrid torrent of new contents."""
    node.write("/srv/contents", random.SystemRandom().randbytes(SIZE))
    node.run("rm", "-rf", "/srv/items")
    node.run("mkdir", "/srv/items")
    command = ("mkmeta", "create", "--json", "--tracker", url, "-o", "/srv/items", "/srv/contents")
    made = json.loads(node.run(*command).stdout)
    (name,) = (path.name for path in node.path("/srv/items").iterdir() if path.suffix == ".zst")
    data, torrent = (node.read(f"/srv/items/{name}{end}") for end in ("", ".torrent"))
    return Item(name, data, torrent, (made["infohash_v1"], made["infohash_v2"]))


# -- clients: each is started with the torrent, and goes on as a seed ------------------------------


def libtorrent(node: Node, url: str) -> None:
    """Our engine, with no program around it; it takes both infohashes of a hybrid."""
    command = ("python3", "/opt/rig/peer.py", TORRENT, DOWNLOADS, str(CLIENT_PORT), url)
    node.spawn("client", *command)


def transmission(node: Node, url: str) -> None:
    """Transmission; the v1 infohash."""
    del url
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
    daemon = node.spawn("client", "transmission-daemon", "-f", "-g", "/srv/transmission")
    daemon.wait_ready(lambda: node.listening(9091))
    node.run("transmission-remote", "-a", TORRENT)


def qbittorrent(node: Node, url: str) -> None:
    """qBittorrent; both infohashes."""
    del url
    node.write(
        "/srv/qb/qBittorrent/config/qBittorrent.conf",
        "[LegalNotice]\nAccepted=true\n[BitTorrent]\nSession\\DHTEnabled=false\n"
        "Session\\LSDEnabled=false\nSession\\PeXEnabled=false\n"
        f"Session\\DefaultSavePath={DOWNLOADS}\n",
    )
    node.spawn("client", "qbittorrent-nox", "--profile=/srv/qb", TORRENT)


def aria2(node: Node, url: str) -> None:
    """aria2; the v1 infohash. It asks over UDP only with DHT, of which it knows no node here."""
    dht = f"--enable-dht={json.dumps(url.startswith('udp:'))}"
    off = (dht, "--enable-dht6=false", "--bt-enable-lpd=false")
    more = ("--enable-peer-exchange=false", f"--listen-port={CLIENT_PORT}", "--seed-ratio=0.0")
    node.spawn("client", "aria2c", *off, *more, f"--dir={DOWNLOADS}", TORRENT)


def rtorrent(node: Node, url: str) -> None:
    """rTorrent, by default without DHT; the v1 infohash."""
    del url
    lines = [
        # As a daemon, version 0.16.17 never ends the check of all that it has just fetched and
        # checked, and says that it completed only then.
        "pieces.hash.on_completion.set = no",
        "system.daemon.set = true",
        f"directory.default.set = {DOWNLOADS}",
        "session.path.set = /srv/session",
        "dht.mode.set = disable",
        "protocol.pex.set = no",
        f"network.port_range.set = {CLIENT_PORT}-{CLIENT_PORT}",
    ]
    node.run("mkdir", "-p", "/srv/session")
    node.write("/srv/rtorrent.rc", "\n".join(lines) + "\n")
    node.spawn("client", "rtorrent", "-n", "-o", "import=/srv/rtorrent.rc", TORRENT)


HYBRID = {libtorrent, qbittorrent}
"""Those that take part in both swarms of a hybrid torrent."""


@pytest.mark.parametrize("start", [libtorrent, transmission, qbittorrent, aria2, rtorrent])
def test_transfer(
    tracker: Tracker,
    client: Node,
    root_fs: RootFs,
    item: Item,
    start: Callable[[Node, str], None],
    protocol: str,
) -> None:
    """It gets the payload of a seed that announces over the other protocol, and says so."""
    if reason := root_fs.missing.get(start.__name__):
        pytest.skip(reason)
    before = tracker.announces(protocol)
    client.write(TORRENT, item.torrent)
    start(client, tracker.url(protocol))
    payload = client.path(f"{DOWNLOADS}/{item.name}")
    client.services["client"].wait_ready(
        lambda: payload.exists() and payload.read_bytes() == item.data, FETCHING
    )
    swarms = 2 if start in HYBRID else 1
    for infohash in item.infohashes[:swarms]:
        what = f"{start.__name__} among the downloads"
        wait_for(what, partial(tracker.has, infohash, seeds=2, downloads=1))
    # It started and it completed, in each swarm that it knows of.
    wait_for("all announces", lambda: tracker.announces(protocol) >= before + 2 * swarms)
    assert 'narswarm_tracker_engine_info{engine="native"} 1.0' in tracker.metrics()
