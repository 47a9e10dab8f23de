# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a crowd takes to fetch one closure from one slow uplink.

    python3 bench/guix_crowd.py [--by NAME]... [--rounds N] [--timeline] [CLIENTS]        as root

CLIENTS nodes (8 unless said) start `guix build` of the same closure, 20 items of 300 MB, which
are 93 MB compressed, at the same moment. Everything comes from one node whose link carries 20
Mbit/s; the clients' own links are fast, and one network, on which they find each other without a
tracker, too. Every round starts cold. They fetch

    alone       with the substituter alone, which fetches and uploads while `guix build` runs;
    seeder      with the substituter and a seeder on each node, which fetches for it;
    guix        with Guix's own `guix substitute`, over HTTP from the same uplink.

Prints for each the seconds until the first and the last client have the closure, and the last
beside the limit, which is the closure's compressed bytes over the uplink, once. Then what bytes
there were, which no other work on this machine changes, in closures (1 is the compressed bytes
once): all that the uplink carried, headers and what was sent again included; payload that its
seeder sent; NARs that its server sent; and what clients got from each other. Last, from the start
to the end: seconds until the uplink was first used for half a second in full, the share of its
capacity that was used from then on, and the share of all processors' time.
"""

from __future__ import annotations

import argparse
import io
import sys
import threading
import time
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.guix_closures import Bench
from bench.links import Wire, port_of
from tests.e2e.rig.nodes import Cluster, Node
from tests.e2e.rig.rootfs import cache_directory, rootfs
from tests.e2e.rig.site import SEEDER_PORT, SEEDER_STATE, SERVER, TRACKER, Fetcher, toml

CLIENTS = 8
UPLINK = Wire(20, 10)
LIMIT = 1800.0
BYTES_A_SECOND = UPLINK.mbit * 1e6 / 8
BY = ("alone", "seeder", "guix")
LOOK = 0.5


class Traffic(NamedTuple):
    """Bytes that came out of a network device, and that went into it."""

    received: int
    sent: int

    @classmethod
    def of(cls, pid: int, device: str) -> Traffic:
        """What it has carried so far, in the network namespace of a process."""
        table = Path(f"/proc/{pid}/net/dev").read_text()
        words = next(line for line in table.splitlines() if f" {device}:" in f" {line}").split()
        return cls(int(words[1]), int(words[9]))


class Watch:
    """Looks at an uplink and the processors, twice a second, while its context lasts.

    Args:
        cluster: has the uplink's other end: what the link dropped doesn't count.
        node: whose uplink it is.
    """

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self._end_of_link = cluster.hub, port_of(node)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.sent: list[int] = []
        self._processors = _processors()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        busy, total = _processors()
        self.processors = (busy - self._processors[0]) / max(total - self._processors[1], 1)

    def _look(self) -> None:
        self.sent.append(Traffic.of(*self._end_of_link).received)
        while not self._end.wait(LOOK):
            self.sent.append(Traffic.of(*self._end_of_link).received)

    @property
    def shares(self) -> list[float]:
        """Of the uplink's capacity that was used, for each LOOK seconds."""
        pairs = pairwise(self.sent)
        return [(after - before) / (BYTES_A_SECOND * LOOK) for before, after in pairs]

    @property
    def delay(self) -> float:
        """Seconds until it was used in full."""
        return LOOK * next((n for n, share in enumerate(self.shares) if share > 0.9), 0)


def _processors() -> tuple[float, float]:
    """Busy time and all time of this machine's processors."""
    words = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return sum(words) - words[3] - words[4], sum(words)


class Crowd:
    """Nodes that fetch.

    Args:
        bench: the node that has everything.
        by: what they fetch with.
        clients: how many there are.
    """

    def __init__(self, bench: Bench, by: str, clients: int) -> None:
        self._bench = bench
        program = "guix" if by == "guix" else "extension"
        self.fetchers = [
            Fetcher(bench.site, f"{by}{number}", program=program, lsd=True)
            for number in range(clients)
        ]
        if by == "seeder":
            for fetcher in self.fetchers:
                self._seeder(fetcher.node)

    def _seeder(self, node: Node) -> None:
        site = self._bench.site
        config = node.path("/etc/narswarm/narswarm.toml")
        values = {
            "state": SEEDER_STATE,
            "trackers": [f"{TRACKER}/announce"],
            "substitute_urls": [SERVER],
            "listen": [f"0.0.0.0:{SEEDER_PORT}"],
            "dht_nodes": site.dht_nodes,
            "lsd": True,
            "upnp": False,
            "private_network": True,
        }
        config.write_text(config.read_text() + toml("seeder", values))
        service = node.spawn("seeder", "seeder", "run")
        service.wait_ready(lambda: node.listening(SEEDER_PORT))

    def fetch(self, name: str) -> list[float]:
        """Seconds until each of the nodes has a closure that all begin to fetch at once."""
        seconds = [0.0] * len(self.fetchers)

        def one(index: int) -> None:
            self.fetchers[index].build(name, timeout=LIMIT)
            seconds[index] = time.perf_counter() - start

        threads = [threading.Thread(target=one, args=(n,)) for n in range(len(seconds))]
        with redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for fetcher in self.fetchers:
            if not fetcher.has(name):
                raise SystemExit(f"{fetcher.node.name} did not get {name}")
        return sorted(seconds)

    def close(self) -> None:
        """End all nodes."""
        for fetcher in self.fetchers:
            self._bench.site.cluster.remove(fetcher.node)


def measure(bench: Bench, by: str, clients: int, size: int, *, timeline: bool) -> None:
    """Measure one round and print its line."""
    crowd = Crowd(bench, by, clients)
    uploaded = bench.site.uploaded()
    traffic = [Traffic.of(fetcher.node.pid, "eth0") for fetcher in crowd.fetchers]
    with Watch(bench.site.cluster, bench.site.node) as watch:
        done = crowd.fetch("crowd")
    received = sum(
        Traffic.of(fetcher.node.pid, "eth0").received - before.received
        for fetcher, before in zip(crowd.fetchers, traffic, strict=True)
    )
    by_uplink = watch.sent[-1] - watch.sent[0]
    parts = [
        by_uplink,
        bench.site.uploaded() - uploaded,
        sum(fetcher.http_bytes() for fetcher in crowd.fetchers),
        received - by_uplink,
    ]
    limit = size / BYTES_A_SECOND
    used = by_uplink / BYTES_A_SECOND / max(done[-1] - watch.delay, 1)
    print(
        f"{by:<8}{done[0]:>7.1f}{done[-1]:>7.1f}{done[-1] / limit:>7.2f}   "
        + "".join(f"{part / size:>8.2f}" for part in parts)
        + f"{watch.delay:>8.1f}{used:>7.0%}{watch.processors:>7.0%}",
        flush=True,
    )
    if timeline:
        print("  " + " ".join(f"{share:.0%}" for share in watch.shares), flush=True)
    crowd.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--by", action="append", choices=BY, help="one of them alone")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--timeline", action="store_true", help="the uplink's use, twice a second")
    parser.add_argument("clients", nargs="?", type=int, default=CLIENTS)
    words = parser.parse_args()
    with Cluster(rootfs(cache_directory()), cache_directory()) as cluster:
        bench = Bench(cluster, {"crowd"})
        with bench.links:
            bench.prepare("warm")
            size = sum(bench.site.payload_length(path) for path in bench.items["crowd"])
            bench.links.put(bench.site.node, UPLINK)
            limit = size / BYTES_A_SECOND
            print(f"{size / 1e6:.1f} MB compressed, {words.clients} clients, limit {limit:.1f} s")
            print(f"{'':<8}{'seconds':>21}   {'closures':>32}{'':>8}{'used':>14}")
            heads = ("first", "last", "/limit")
            parts = ("uplink", "seeder", "server", "others")
            print(
                f"{'':<8}{''.join(f'{head:>7}' for head in heads)}   "
                f"{''.join(f'{part:>8}' for part in parts)}{'delay':>8}{'link':>7}{'CPUs':>7}",
                flush=True,
            )
            for _ in range(words.rounds):
                for by in words.by or BY:
                    measure(bench, by, words.clients, size, timeline=words.timeline)


if __name__ == "__main__":
    main()
