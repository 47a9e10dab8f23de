# SPDX-License-Identifier: GPL-3.0-or-later
"""What offering a store costs: this seeder beside Transmission and qBittorrent.

Usage (as root): python bench/seeder_clients.py [ITEMS] [SECONDS] [CONTENDER...]

The items are small files in a store, with a database as guix-daemon's, and vouched for already. The
other clients can't read a store: they get a payload and a torrent of each item, with the payloads
in place. Each contender has an HTTP tracker and a DHT of its own, in nodes whose network leads
nowhere else (tests/e2e/rig), so that none is a peer of another's.

One after the other is started, ended, and started again. Then all of them run, and SECONDS is how
long they are watched together while nobody wants anything: each by the processor time that its own
processes have used. What else the machine does lengthens the times; the load average is printed.

Columns, a time each being from the start of the process:

- first start, next start: until it says that it offers all items; looked at twice a second.
- announced: until the tracker knows all of them, after the next start.
- resident: MiB of its processes after SECONDS.
- idle: processor time in SECONDS, in percent of a core; in brackets the minute with the most.
- disk: what it keeps beside the store, or in place of it.

Then, for this seeder, how long it takes from the first question for an item of 50 MiB that nobody
has a payload of to its torrent, and to its first and last byte at a peer.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.contenders import CONTENDERS, DEADLINE, HERE, Contender, Site, nothing_more
from bench.seeder_store import make_store
from narswarm import base32, nar
from narswarm.cli import format_size
from narswarm.control import Control
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import compress_chunk, file_name, max_length
from seeder.inventory import Item
from tests.e2e.rig.nodes import Cluster, DeadlineError, Node, Service, family, wait_for
from tests.e2e.rig.rootfs import cache_directory, rootfs
from tests.e2e.rig.site import DHT_PORT, TRACKER_PORT

ITEMS = 5_000
SECONDS = 600.0
SETTLE = 15.0
MINUTE = 60.0
ROUNDS = 3
STILL = 120.0
"""Seconds after which what doesn't go on won't."""
PAUSE = 0.5
"""Seconds between two looks: those who answer with a list of all torrents do nothing else in
between if they are asked all the time."""

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
    """The files that all contenders have in common.

    Attributes:
        cluster: of the nodes.
        root: the files, on this machine.
        items: how many.
        cold: the item of 50 MiB.
        torrents: of payloads of the others, by their names.
    """

    cluster: Cluster
    root: Path
    items: int
    cold: Item
    torrents: dict[str, Metainfo]


class Running(NamedTuple):
    """A contender that offers everything.

    Attributes:
        contender: which.
        node: it runs there.
        times: seconds of its first start, its next one, and until that was announced.
    """

    contender: Contender
    node: Node
    times: list[float]


def main() -> None:
    """Measure, and print a table."""
    words = sys.argv[1:]
    count = int(words.pop(0)) if words else ITEMS
    seconds = float(words.pop(0)) if words else SECONDS
    say(f"{count:,} items; {os.cpu_count()} processors; idle for {seconds:g} s")
    fs = rootfs(cache_directory())
    with Cluster(fs, fs.path.parent) as cluster, ExitStack() as stack:
        # It is deleted with the nodes, also after a run that was killed.
        root = cluster.directory / "items"
        root.mkdir()
        chosen = [CONTENDERS[word] for word in words or CONTENDERS]
        alone = words == ["on-demand"]
        world = make_world(cluster, root, count, 0 if alone else count - 1)
        running = [stack.enter_context(offering(world, contender)) for contender in chosen]
        watch(running, seconds)
        stack.close()
        if CONTENDERS["on-demand"] in chosen:
            measure_cold(world, CONTENDERS["on-demand"])


def say(text: str) -> None:
    """Print a line, at once, and how busy the machine is."""
    print(f"{text}; load average {os.getloadavg()[0]:.1f}", flush=True)


def make_world(cluster: Cluster, root: Path, count: int, small: int) -> World:
    """The items, and a payload of each small item that exists."""
    cold = make_store(root, count, small)
    payloads = root / "payloads"
    payloads.mkdir()
    torrents = {}
    for path in sorted((root / "store").iterdir())[1:]:
        data = b"".join(nar.dump(path))
        payload = compress_chunk(data)
        hasher = PieceHasher(max_length(len(data)))
        hasher.update(payload)
        name = file_name(hashlib.sha256(data).digest())
        (payloads / name).write_bytes(payload)
        torrents[name] = Metainfo.of(name, hasher.finish())
    return World(cluster, root, count, cold, torrents)


def make_site(world: World, name: str) -> Site:
    """A tracker and a DHT."""
    node = world.cluster.node(name)
    dht = node.spawn("dht", "python3", "/opt/rig/dhtnodes.py", node.address, str(DHT_PORT), "6")
    dht.wait_ready(lambda: "ready" in dht.tail())
    node.write("/etc/guix/acl", (world.root / "acl").read_bytes())
    start_tracker(node)
    return Site(node, f"http://{node.address}:{TRACKER_PORT}", f"{node.address}:{DHT_PORT}")


def start_tracker(node: Node) -> None:
    """Start a tracker that knows nobody; what it has indexed it keeps."""
    node.kill("tracker")
    command = ("tracker", "serve", "--listen", f"0.0.0.0:{TRACKER_PORT}", "--open")
    service = node.spawn("tracker", *command, "--data", "/srv/tracker")
    service.wait_ready(lambda: node.listening(TRACKER_PORT))


@contextmanager
def node_for(world: World, contender: Contender, site: Site) -> Iterator[Node]:
    """A node with the files of a contender."""
    node = world.cluster.node(f"C-{site.node.name}")
    try:
        target = node.path(HERE)
        target.mkdir()
        for name in contender.files:
            subprocess.run(["cp", "-a", world.root / name, target], check=True)
        if "payloads" in contender.files:
            for name, meta in world.torrents.items():
                content = meta.encode([f"{site.tracker}/announce"])
                node.write(f"{HERE}/torrents/{name}.torrent", content)
        contender.configure(site, node)
        yield node
    finally:
        world.cluster.remove(node)


@contextmanager
def offering(world: World, contender: Contender) -> Iterator[Running]:
    """A contender that offers everything, at its second start, until the block ends."""
    site = make_site(world, contender.name.translate({ord(each): None for each in " ,-"}))
    try:
        with node_for(world, contender, site) as node:
            first = starting(world, contender, node, contender.add)
            # QBittorrent writes down what it has long after it offers it, and forgets the rest.
            await_all(world, contender, lambda: contender.saved(node))
            node.services.pop("client").stop(timeout=DEADLINE)
            start_tracker(site.node)
            begin = time.monotonic()
            following = starting(world, contender, node, nothing_more)
            await_all(world, contender, lambda: announced(contender, site))
            times = [first, following, time.monotonic() - begin]
            say(f"{contender.name}: {', '.join(f'{each:.1f} s' for each in times)}")
            yield Running(contender, node, times)
    finally:
        world.cluster.remove(site.node)


def starting(world: World, contender: Contender, node: Node, then: Callable[[Node], None]) -> float:
    """Start a contender; seconds until it offers everything.

    Raises:
        DeadlineError: it stands still before.
    """
    begin = time.monotonic()
    contender.start(node)
    then(node)
    await_all(world, contender, lambda: contender.offered(node))
    return time.monotonic() - begin


def await_all(world: World, contender: Contender, count: Callable[[], int]) -> None:
    """Wait until as many are counted as a contender has.

    Raises:
        DeadlineError: it stands still.
    """
    # What is made in advance is without the large item.
    wanted = world.items - (contender.hashes > 0)
    before, since = -1, time.monotonic()
    while (found := count()) < wanted:
        if found != before:
            before, since = found, time.monotonic()
        elif time.monotonic() - since > STILL:
            raise DeadlineError(f"{contender.name}: still {found} of {wanted} after {STILL:g} s")
        time.sleep(PAUSE)


def announced(contender: Contender, site: Site) -> int:
    """How many items a tracker knows."""
    with Control(site.node.path("/srv/tracker"), "tracker") as tracker:
        stats = tracker.ask("stats")
    return int(stats["swarms"] // contender.hashes if contender.hashes else stats["held"])


def watch(running: list[Running], seconds: float) -> None:
    """Watch them idle, all at the same time, and print the table."""
    time.sleep(SETTLE)
    say("idle from now on")
    clients = [each.node.services["client"] for each in running]
    begin = time.monotonic()
    seen = [(begin, [cpu(client) for client in clients])]
    while (left := begin + seconds - seen[-1][0]) > 0:
        time.sleep(min(MINUTE, left))
        seen.append((time.monotonic(), [cpu(client) for client in clients]))
    say("until now")
    titles = ("first start", "next start", "announced", "resident", "idle (most)", "disk")
    print(f"{'':<22}" + "".join(f"{title:>{16 if '(' in title else 12}}" for title in titles))
    for number, (contender, node, times) in enumerate(running):
        shares = [
            100 * (used[number] - before[number]) / (now - then)
            for (then, before), (now, used) in pairwise(seen)
        ]
        idle = 100 * (seen[-1][1][number] - seen[0][1][number]) / (seen[-1][0] - begin)
        resident = sum(memory(pid) for pid in family(clients[number].pid))
        disk = sum(int(node.run("du", "-sB1", path).stdout.split()[0]) for path in contender.kept)
        print(
            f"{contender.name:<22}{''.join(f'{each:>10.1f} s' for each in times)}"
            f"{format_size(resident):>12}{f'{idle:.2f} % ({max(shares):.2f})':>16}"
            f"{format_size(disk):>12}",
            flush=True,
        )


def measure_cold(world: World, contender: Contender) -> None:
    """Print how long it takes until somebody has something of an item without a payload."""
    times: list[list[float]] = []
    site = make_site(world, "T")
    for _ in range(ROUNDS):
        site.node.kill("tracker")
        site.node.run("rm", "-rf", "/srv/tracker")
        start_tracker(site.node)
        with node_for(world, contender, site) as node:
            starting(world, contender, node, nothing_more)
            peer = world.cluster.node("P")
            try:
                name = base32.encode(world.cold.nar_hash)
                wait_held(peer, f"{site.tracker}/v1/nar/{name}")
                probe = ("python3", "-c", PROBE, site.tracker, name, str(world.cold.nar_size))
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
