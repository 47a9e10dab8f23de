# SPDX-License-Identifier: GPL-3.0-or-later
"""How long `guix build` takes to substitute whole closures over slow and distant links.

    python3 bench/guix_closures.py [--rounds N] [CELL]...        as root

A cell is CLOSURE:MBIT:RTT:SEEDER, such as small:200:50:warm; without any, all are measured, but for
those with `slow` or `:own`. Two nodes of the same link fetch the same closures from a third node,
in turns: one with the substituter, one with Guix's own `guix substitute` over HTTP, both from one
`guix publish --cache` that has compressed everything beforehand (zstd).

CLOSURE: `small`, 200 items of 50 MB in all, half of them below 100 KiB; `large`, 20 items of 1 GB.
MBIT and RTT are of the link of the node that fetches (see link.c; no other link is limited).
SEEDER: `warm`, its payloads are made; `cold`, it has only said what it holds; `empty`, nobody has
anything and only HTTP is left.

The items are slices of this machine's /usr, so they compress as programs do. Each round starts
cold: the node knows no narinfo, torrent or item. Prints a line for each cell: seconds by both (the
median of the rounds), their ratio, and how many bytes came over HTTP.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.links import Links, Wire
from tests.e2e.rig import guix, ownseeder
from tests.e2e.rig.nodes import Cluster, wait_for
from tests.e2e.rig.rootfs import cache_directory, rootfs
from tests.e2e.rig.site import SEEDER_PORT, Fetcher, Site

HERE = Path(__file__).resolve().parent
CLOSURES = {"small": (200, 50_000_000), "large": (20, 1_000_000_000), "crowd": (20, 300_000_000)}
WIRES = [Wire(mbit, rtt) for mbit in (20, 200) for rtt in (1, 50)]
SEEDERS = ("warm", "cold", "empty")
SLOW = "slow"
SLOW_DOWN = (
    # libtorrent's own limits don't count in a private network.
    "qdisc add dev eth0 root handle 1: htb default 10",
    "class add dev eth0 parent 1: classid 1:10 htb rate 10gbit quantum 60000",
    "class add dev eth0 parent 1: classid 1:20 htb rate 8mbit",
    f"filter add dev eth0 parent 1: u32 match ip sport {SEEDER_PORT} 0xffff classid 1:20",
)
LIMIT = 1800.0


class Cell(NamedTuple):
    """One combination to be measured."""

    closure: str
    wire: Wire
    seeder: str
    own: bool = False

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read CLOSURE:MBIT:RTT:SEEDER[:own]."""
        closure, mbit, rtt, seeder, *own = text.split(":")
        if closure not in CLOSURES or seeder not in (*SEEDERS, SLOW) or own not in ([], ["own"]):
            raise ValueError(text)
        return cls(closure, Wire(float(mbit), float(rtt)), seeder, bool(own))


def slices(count: int, total: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of items: log-normal sizes that add up to TOTAL, half of them small."""
    rng = random.Random(count)  # noqa: S311 - it makes the same items each time
    weights = [rng.lognormvariate(0, 1.5 if count > 50 else 0.5) for _ in range(count)]
    files = sorted(path for path in Path("/usr/lib").rglob("*.so*") if path.is_file())
    rng.shuffle(files)
    stream = (path.read_bytes() for path in files if not path.is_symlink())
    pool = b""
    for number, weight in enumerate(weights):
        size = max(int(total * weight / sum(weights)), 200)
        while len(pool) < size:
            more = next(stream, None)
            # Once through: the rest is as random as what is compressed already.
            pool += more if more is not None else rng.randbytes(1 << 20)
        yield f"item-{count}-{number:03}", pool[:size]
        pool = pool[size:]


class Bench:
    """The three nodes."""

    def __init__(self, cluster: Cluster, closures: set[str]) -> None:
        self.links = Links(cluster)
        self.site = Site(cluster)
        node = self.site.node
        self.tops: dict[str, str] = {}
        self.items: dict[str, list[str]] = {}
        node.write("/opt/rig/closure.scm", (HERE / "closure.scm").read_text())
        for name in sorted(closures):
            for file, content in slices(*CLOSURES[name]):
                node.write(f"/srv/{name}/{file}", content)
            command = ("guix", "repl", "--", "/opt/rig/closure.scm", f"bench-{name}")
            words = (f"/srv/{name}", self.site.items["busybox"])
            top = node.run(*command, *words, timeout=300).stdout
            self.tops[name] = self.site.items[name] = top
            node.run("rm", "-r", f"/srv/{name}")
            found = node.run("guix", "gc", "-R", top).stdout.split()
            self.items[name] = sorted(found)
        self._publish()

    def _publish(self) -> None:
        """Serve everything compressed beforehand."""
        node = self.site.node
        node.kill("guix-publish")
        node.run("mkdir", "-p", "/srv/cache")
        guix.publish_start(node, ("-C", "zstd", "--cache=/srv/cache", "--workers=2"))
        for path in (path for paths in self.items.values() for path in paths):
            name = path.removeprefix("/gnu/store/")

            def baked(name: str = name) -> bool:
                node.run("curl", "-s", f"http://127.0.0.1:{guix.PUBLISH_PORT}/{name[:32]}.narinfo")
                return node.path(f"/srv/cache/zstd/{name}.nar").exists()

            wait_for(f"{name} compressed", baked, 120)

    def prepare(self, seeder: str) -> None:
        """Have the swarm be as a cell says."""
        site = self.site
        site.stop("seeder", "tracker")
        site.node.run("rm", "-rf", "/srv/tracker")
        if seeder == "cold":
            site.node.run("rm", "-rf", "/var/lib/narswarm/seeder")
        site.configure_seeder(premake="10 GiB" if seeder in ("warm", SLOW) else "0 B")
        site.node.run("tc", "qdisc", "del", "dev", "eth0", "root", check=False)
        for command in SLOW_DOWN if seeder == SLOW else ():
            site.node.run("tc", *command.split())
        site.start_tracker()
        guix.proxy_rules(site.node, {})
        if seeder == "empty":
            return
        site.start_seeder()
        wanted = [path for paths in self.items.values() for path in paths]

        def offered() -> bool:
            return all(self._holders(path, seeder) for path in wanted)

        wait_for("the seeder's offers", offered, 900)

    def _holders(self, path: str, seeder: str) -> bool:
        site = self.site
        site.items[path] = path
        answer = site.index(path)
        if answer is None:
            return False
        if seeder == "cold":
            return bool(answer["holders"])
        return any(torrent["seeders"] for torrent in answer["torrents"])

    def clean(self, fetcher: Fetcher, name: str) -> None:
        """Have a node know and have nothing."""
        ownseeder.stop(fetcher)
        if fetcher.exists(name):
            fetcher.node.run("guix", "gc", "-D", *self.items[name], timeout=300)
        fetcher.node.run("rm", "-rf", "/var/guix/substitute", "/var/guix/narswarm")

    def once(self, fetcher: Fetcher, name: str, *, own: bool = False) -> float:
        """Seconds of one cold substitution of a closure, maybe with a seeder on the same node."""
        node = fetcher.node
        self.clean(fetcher, name)
        if own:
            ownseeder.start(fetcher)
        with redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            fetcher.build(name, timeout=LIMIT)
            seconds = time.perf_counter() - start
        if not fetcher.has(name):
            raise SystemExit(f"{node.name} did not get {name}")
        return seconds

    def measure(self, cell: Cell, rounds: int, one: Fetcher, other: Fetcher) -> None:
        """Measure a cell with our node and the other's, and print its line."""
        self.links.put(one.node, cell.wire)
        self.links.put(other.node, cell.wire)
        ours, theirs = [], []
        before = one.http_bytes()
        for _ in range(rounds):
            if cell.seeder == "cold":
                self.prepare(cell.seeder)  # what was fetched is warm afterwards
            ours.append(self.once(one, cell.closure, own=cell.own))
            theirs.append(self.once(other, cell.closure))
        over_http = (one.http_bytes() - before) / rounds / 1e6
        median, beside = statistics.median(ours), statistics.median(theirs)
        link = f"{cell.wire.mbit:g} Mbit/s, {cell.wire.rtt:g} ms"
        seeder = f"{cell.seeder}{', own' if cell.own else ''}"
        print(
            f"{cell.closure:<8}{link:<20}{seeder:<11}{median:>9.1f}{beside:>9.1f}"
            f"{median / beside:>8.2f}{over_http:>10.1f}",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("cells", nargs="*", type=Cell.parse, metavar="CELL")
    words = parser.parse_args()
    cells = words.cells or [Cell(*each) for each in product(("small", "large"), WIRES, SEEDERS)]
    with Cluster(rootfs(cache_directory()), cache_directory()) as cluster:
        bench = Bench(cluster, {cell.closure for cell in cells})
        nodes = Fetcher(bench.site, "Ours"), Fetcher(bench.site, "Guix", program="guix")
        heads = f"{'ours':>9}{'guix':>9}{'ratio':>8}{'HTTP MB':>10}"
        print(f"{'closure':<8}{'link':<20}{'seeder':<11}{heads}   (seconds)", flush=True)
        with bench.links:
            for seeder in (*SEEDERS, SLOW):
                todo = [cell for cell in cells if cell.seeder == seeder]
                if todo and seeder != "cold":
                    bench.prepare(seeder)
                for cell in todo:
                    bench.measure(cell, words.rounds, *nodes)


if __name__ == "__main__":
    main()
