# SPDX-License-Identifier: GPL-3.0-or-later
"""What offering a store costs: this seeder beside Transmission and qBittorrent.

Usage (as root): python bench/seeder_clients.py [ITEMS] [SECONDS] [CONTENDER...]

The items are small files in a store, with a database as guix-daemon's, and vouched for already.
The other clients can't read a store: they get a payload and a torrent of each item. All announce
to one HTTP tracker and in one DHT, in nodes whose network leads nowhere else (tests/e2e/rig).
SECONDS is how long each is watched while nobody wants anything.

Prints a table: the first start until all items are offered, the next start, memory, processor time
while idle, and what is on the disk beside the store. Then, for this seeder, how long it takes from
the first question for an item of 50 MiB that nobody has a payload of to its first byte at a peer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.seeder_store import make_store
from narswarm import base32, nar
from narswarm.cli import format_size
from narswarm.errors import NarswarmError
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import compress_chunk, file_name, max_length
from seeder import control
from seeder.inventory import Item
from tests.e2e.rig.nodes import Cluster, Node, Service, family, wait_for
from tests.e2e.rig.rootfs import cache_directory, rootfs
from tests.e2e.rig.site import CONFIG, DHT_PORT, SEEDER_PORT, TRACKER_PORT, toml

ITEMS = 5_000
SECONDS = 60.0
SETTLE = 15.0
ROUNDS = 3
DEADLINE = 180.0
HERE = "/srv/bench"
RPC_PORT = 9091
WEB_PORT = 8090

PROBE = """import sys, time
sys.path.insert(0, "/opt/narswarm")
from pathlib import Path
from narswarm import base32
from narswarm.candidates import Torrents
from narswarm.httpclient import HttpClient
from narswarm.swarm import Swarm
from narswarm.swarm_settings import SwarmSettings
from narswarm.trackerclient import TrackerIndex
url, nar_hash, nar_size = sys.argv[1], base32.decode(sys.argv[2]), int(sys.argv[3])
settings = SwarmSettings(("0.0.0.0:6999",), dht=False, lsd=False, upnp=False, private_network=True)
with Swarm(settings) as swarm, HttpClient(environ={}) as client:
    torrents = Torrents(Path("/srv/torrents"), [TrackerIndex(client, url)])
    begin = time.monotonic()
    found = next(torrents.ask(nar_hash, nar_size, 60, print, patient=True))
    named = time.monotonic()
    directory = Path("/srv/fetched")
    directory.mkdir()
    trackers = [url + "/announce"]
    download = swarm.fetch(found.torrent, directory, trackers=trackers, peers=found.peers)
    chunks = download.chunks(stall=lambda progress: progress.idle > 30)
    next(chunks)
    first = time.monotonic()
    for _ in chunks:
        pass
    end = time.monotonic()
    print("times", named - begin, first - begin, end - begin)
    torrents.close()
"""


class World(NamedTuple):
    """The nodes and files that all contenders have in common.

    Attributes:
        cluster: of the nodes.
        root: the files, on this machine.
        items: how many.
        cold: the item of 50 MiB.
        tracker: the URL of the tracker.
        dht: where the DHT is joined.
    """

    cluster: Cluster
    root: Path
    items: int
    cold: Item
    tracker: str
    dht: str


class Contender(NamedTuple):
    """A program that offers items.

    Attributes:
        name: as the table shows it.
        files: what it needs, of the world's.
        configure: writes its settings.
        start: starts it.
        add: gives it the items, the first time.
        offered: how many items it offers now.
        kept: what it has on disk beside the store.
    """

    name: str
    files: tuple[str, ...]
    configure: Callable[[World, Node], None]
    start: Callable[[Node], Service]
    add: Callable[[Node], None]
    offered: Callable[[Node], int]
    kept: tuple[str, ...]


def seeder(name: str, **settings: object) -> Contender:
    """This project's."""

    def configure(world: World, node: Node) -> None:
        values = {
            "state": f"{HERE}/state",
            "store_db": f"{HERE}/db.sqlite",
            "store": f"{HERE}/store",
            "acl": f"{HERE}/acl",
            "substitute_urls": ["http://127.0.0.1:9"],
            "trackers": [f"{world.tracker}/announce"],
            "listen": [f"0.0.0.0:{SEEDER_PORT}"],
            "dht_nodes": [world.dht],
            "private_network": True,
            "lsd": False,
            "upnp": False,
            **settings,
        }
        node.write(CONFIG, toml("seeder", values))

    def count(node: Node) -> int:
        try:
            answer = control.ask(node.path(f"{HERE}/state"), "status")
        except NarswarmError:
            return 0  # it is starting
        return int(answer["payloads" if "premake" in settings else "held"])

    return Contender(
        name,
        ("store", "db.sqlite", "acl", "state"),
        configure,
        lambda node: node.spawn("client", "seeder", "run"),
        lambda _: None,
        count,
        (f"{HERE}/state",),
    )


def transmission() -> Contender:
    """Transmission, with its defaults but for what needs the internet."""
    home = f"{HERE}/transmission"

    def configure(world: World, node: Node) -> None:
        node.run("ip", "route", "add", "default", "dev", "eth0")
        settings = {
            "download-dir": f"{HERE}/payloads",
            "lpd-enabled": False,
            "port-forwarding-enabled": False,
            "rpc-authentication-required": False,
            "rpc-port": RPC_PORT,
        }
        node.write(f"{home}/settings.json", json.dumps(settings))
        node.write(f"{home}/dht.bootstrap", world.dht.replace(":", " ") + "\n")

    def start(node: Node) -> Service:
        service = node.spawn("client", "transmission-daemon", "-f", "-g", home)
        service.wait_ready(lambda: node.listening(RPC_PORT), DEADLINE)
        return service

    def add(node: Node) -> None:
        fields = f"ls | sed 's/^/-a /' | xargs -n 400 transmission-remote {RPC_PORT}"
        command = f"cd {HERE}/torrents && {fields} >../log"
        node.run("sh", "-c", command, timeout=DEADLINE)

    def count(node: Node) -> int:
        url = f"http://127.0.0.1:{RPC_PORT}/transmission/rpc"
        shown = node.run("curl", "-s", url, check=False).stdout
        session = re.search(r"X-Transmission-Session-Id: (\w+)", shown)
        if session is None:
            return 0
        question = {"method": "torrent-get", "arguments": {"fields": ["status", "leftUntilDone"]}}
        answer = node.run("curl", "-s", "-H", session[0], "-d", json.dumps(question), url).stdout
        torrents = json.loads(answer)["arguments"]["torrents"]
        return sum(each["status"] == 6 and not each["leftUntilDone"] for each in torrents)

    return Contender(
        "transmission-daemon",
        ("payloads", "torrents"),
        configure,
        start,
        add,
        count,
        (f"{HERE}/payloads", home),
    )


def qbittorrent() -> Contender:
    """QBittorrent without a queue, which would offer five torrents at a time."""
    home = f"{HERE}/qbittorrent"
    url = f"http://127.0.0.1:{WEB_PORT}/api/v2/torrents"

    def configure(world: World, node: Node) -> None:
        node.write(
            f"{home}/qBittorrent/config/qBittorrent.conf",
            "[LegalNotice]\nAccepted=true\n[BitTorrent]\n"
            "Session\\LSDEnabled=false\nSession\\QueueingSystemEnabled=false\n"
            "Session\\MaxActiveCheckingTorrents=1000\n"  # else it looks at one in a second
            f"Session\\DHTBootstrapNodes={world.dht}\n"
            f"Session\\DefaultSavePath={HERE}/payloads\n"
            "[Network]\nPortForwardingEnabled=false\n"
            f"[Preferences]\nWebUI\\LocalHostAuth=false\nWebUI\\Port={WEB_PORT}\n",
        )

    def start(node: Node) -> Service:
        service = node.spawn("client", "qbittorrent-nox", f"--profile={home}")
        service.wait_ready(lambda: node.listening(WEB_PORT), DEADLINE)
        return service

    def add(node: Node) -> None:
        fields = "ls | sed 's/.*/-F torrents=@&/' | xargs -n 200"
        command = (
            f"cd {HERE}/torrents && {fields} curl -sSf -o ../log -F skip_checking=true {url}/add"
        )
        node.run("sh", "-c", command, timeout=DEADLINE)

    def count(node: Node) -> int:
        shown = node.run("curl", "-s", f"{url}/info?filter=seeding", check=False).stdout
        return len(json.loads(shown)) if shown.startswith("[") else 0

    return Contender(
        "qbittorrent-nox",
        ("payloads", "torrents"),
        configure,
        start,
        add,
        count,
        (f"{HERE}/payloads", home),
    )


CONTENDERS = {
    "on-demand": seeder("seeder, nothing made"),
    "made": seeder("seeder, all made", premake="10 GiB", exclude=["item-1"]),
    "transmission": transmission(),
    "qbittorrent": qbittorrent(),
}


def main() -> None:
    """Measure, and print a table."""
    words = sys.argv[1:]
    count = int(words.pop(0)) if words else ITEMS
    seconds = float(words.pop(0)) if words else SECONDS
    print(f"{count:,} items; {os.cpu_count()} processors; idle for {seconds:g} s", flush=True)
    print(f"{'':<24}{'first start':>12}{'next start':>12}{'resident':>12}{'idle':>9}{'disk':>11}")
    fs = rootfs(cache_directory())
    with Cluster(fs, fs.path.parent) as cluster:
        # It is deleted with the nodes, also after a run that was killed.
        root = cluster.directory / "items"
        root.mkdir()
        chosen = [CONTENDERS[word] for word in words or CONTENDERS]
        real = 0 if words == ["on-demand"] else count - 1
        world = make_world(cluster, root, count, real)
        for contender in chosen:
            measure(world, contender)
            if contender is CONTENDERS["on-demand"]:
                measure_cold(world, contender)


def make_world(cluster: Cluster, root: Path, count: int, small: int) -> World:
    """The items, the tracker and the DHT."""
    cold = make_store(root, count, small)
    dht, node = cluster.node("D"), cluster.node("T")
    tracker = f"http://{node.address}:{TRACKER_PORT}"
    make_torrents(root, f"{tracker}/announce")
    service = dht.spawn("dht", "python3", "/opt/rig/dhtnodes.py", dht.address, str(DHT_PORT), "6")
    service.wait_ready(lambda: "ready" in service.tail())
    node.write("/etc/guix/acl", (root / "acl").read_bytes())
    start_tracker(node)
    return World(cluster, root, count, cold, tracker, f"{dht.address}:{DHT_PORT}")


def start_tracker(node: Node) -> None:
    """Start a tracker that knows nothing."""
    node.kill("tracker")
    node.run("rm", "-rf", "/srv/tracker")
    command = ("tracker", "serve", "--listen", f"0.0.0.0:{TRACKER_PORT}", "--open")
    service = node.spawn("tracker", *command, "--data", "/srv/tracker")
    service.wait_ready(lambda: node.listening(TRACKER_PORT))


def make_torrents(root: Path, announce: str) -> None:
    """A payload and a torrent of each small item that exists."""
    payloads, torrents = root / "payloads", root / "torrents"
    payloads.mkdir()
    torrents.mkdir()
    for path in sorted((root / "store").iterdir())[1:]:
        data = b"".join(nar.dump(path))
        payload = compress_chunk(data)
        hasher = PieceHasher(max_length(len(data)))
        hasher.update(payload)
        name = file_name(hashlib.sha256(data).digest())
        (payloads / name).write_bytes(payload)
        torrent = Metainfo.of(name, hasher.finish()).encode([announce])
        (torrents / f"{name}.torrent").write_bytes(torrent)


@contextmanager
def node_for(world: World, contender: Contender) -> Iterator[Node]:
    """A node with the files of a contender."""
    node = world.cluster.node("C")
    try:
        target = node.path(HERE)
        target.mkdir()
        for name in contender.files:
            subprocess.run(["cp", "-a", world.root / name, target], check=True)
        contender.configure(world, node)
        yield node
    finally:
        world.cluster.remove(node)


def measure(world: World, contender: Contender) -> None:
    """Print one row."""
    with node_for(world, contender) as node:
        first = starting(world, contender, node, contender.add)
        node.services.pop("client").stop(timeout=60)
        following = starting(world, contender, node, lambda _: None)
        time.sleep(SETTLE)
        client = node.services["client"]
        before = cpu(client)
        time.sleep(seconds())
        used = 100 * (cpu(client) - before) / seconds()
        resident = sum(memory(pid) for pid in family(client.pid))
        disk = sum(int(node.run("du", "-sB1", path).stdout.split()[0]) for path in contender.kept)
        print(
            f"{contender.name:<24}{first:>10.1f} s{following:>10.1f} s{format_size(resident):>12}"
            f"{used:>7.2f} %{format_size(disk):>11}",
            flush=True,
        )


def seconds() -> float:
    """How long each is watched."""
    return float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS


def starting(world: World, contender: Contender, node: Node, then: Callable[[Node], None]) -> float:
    """Start a contender; seconds until it offers everything."""
    # What the seeder makes in advance is without the large item.
    wanted = world.items if contender.name == CONTENDERS["on-demand"].name else world.items - 1
    begin = time.monotonic()
    contender.start(node)
    then(node)
    wait_for(contender.name, lambda: contender.offered(node) >= wanted, DEADLINE)
    return time.monotonic() - begin


def measure_cold(world: World, contender: Contender) -> None:
    """Print how long it takes until somebody has something of an item without a payload."""
    times: list[list[float]] = []
    for _ in range(ROUNDS):
        start_tracker(world.cluster.nodes["T"])
        with node_for(world, contender) as node:
            starting(world, contender, node, lambda _: None)
            peer = world.cluster.node("P")
            try:
                name = base32.encode(world.cold.nar_hash)
                url = f"{world.tracker}/v1/nar/{name}"
                wait_held(peer, url)
                probe = ("python3", "-c", PROBE, world.tracker, name, str(world.cold.nar_size))
                line = peer.run(*probe, timeout=120).stdout.splitlines()[-1]
                times.append([float(word) for word in line.split()[1:]])
            finally:
                world.cluster.remove(peer)
    labels = ("torrent", "first byte", "last byte")
    for label, column in zip(labels, zip(*times, strict=True), strict=True):
        print(
            f"a cold item of 50 MiB, {label}: median {statistics.median(column):.2f} s "
            f"({min(column):.2f} to {max(column):.2f}, {len(column)} rounds)"
        )


def wait_held(node: Node, url: str) -> None:
    """Wait until a tracker knows of somebody who holds an item."""
    ask = ("curl", "-sf", url)
    wait_for("a holder", lambda: '"holders":1' in node.run(*ask, check=False).stdout)


def cpu(client: Service) -> float:
    """Seconds of processor time so far, of all its processes."""
    total = 0.0
    for pid in family(client.pid):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def memory(pid: int) -> int:
    """Bytes that are resident."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
