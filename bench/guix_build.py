# SPDX-License-Identifier: GPL-3.0-or-later
"""How long `guix build` takes to substitute an item: over BitTorrent, and by Guix itself over HTTP.

    python3 bench/guix_build.py [ROUNDS]        as root

Nodes fetch the same items from a third, in turns: one with the substituter and its race, started
by the launcher, as `substituter install` does it for a distribution's guix-daemon; one that starts
it by Guix's extension, as for a daemon from `guix pull`; one to which servers give narinfos only
(`policy = "swarm-only"`), with the launcher; one with Guix's own `guix substitute`. The
server is a `guix publish --cache` that has compressed everything beforehand (zstd). All nodes are
namespaces of this machine, so the network is as fast as memory, and what is measured is what the
programs add. Each round starts cold: no narinfo, torrent or item is known to the nodes.

Prints a table: median, fastest and slowest round in seconds, and the peak memory (VmHWM) of each
program.
"""

from __future__ import annotations

import io
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.rig.nodes import Cluster, Node, peak_memory, wait_for
from tests.e2e.rig.rootfs import cache_directory, rootfs
from tests.e2e.rig.site import Fetcher, Site

ROUNDS = 7
ITEMS = {"300 KB": "medium", "230 MB": "e2e-big"}
HTTP_PORT = 8082


class MemoryWatch:
    """The largest VmHWM of short-lived processes of a node, sampled while they run."""

    def __init__(self, node: Node, word: str) -> None:
        self.peak = 0
        self._node = node
        self._word = word
        self._end = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample as long as the block runs."""
        self._end.clear()
        thread = threading.Thread(target=self._sample)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def _sample(self) -> None:
        while not self._end.wait(0.05):
            for pid in self._node.processes(self._word):
                self.peak = max(self.peak, peak_memory(pid))


def publish(site: Site) -> str:
    """Serve the items compressed beforehand; the server's URL."""
    listen = ("--listen=0.0.0.0", f"--port={HTTP_PORT}")
    site.node.run("mkdir", "/srv/cache")
    command = ("guix", "publish", *listen, "-C", "zstd", "--cache=/srv/cache", "--workers=2")
    service = site.node.spawn("publish-cache", *command)
    service.wait_ready(lambda: site.node.listening(HTTP_PORT))
    url = f"http://A:{HTTP_PORT}"
    for label in ITEMS.values():
        name = site.items[label].removeprefix("/gnu/store/")

        def baked(name: str = name) -> bool:
            site.node.run("curl", "-s", f"{url}/{name[:32]}.narinfo")
            return site.node.path(f"/srv/cache/zstd/{name}.nar").exists()

        wait_for(f"{label} compressed", baked, 60)
    return url


def build(fetcher: Fetcher, label: str) -> float:
    """Seconds of one `guix build`, of which the output is dropped."""
    with redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        fetcher.build(label)
        return time.perf_counter() - start


def once(fetcher: Fetcher, label: str) -> float:
    """Seconds of one cold substitution."""
    caches = ("/var/guix/substitute", "/var/guix/narswarm")
    if fetcher.exists(label):
        fetcher.forget(label)
    fetcher.node.run("rm", "-rf", *caches)
    seconds = build(fetcher, label)
    if not fetcher.has(label):
        raise SystemExit(f"{fetcher.node.name} did not get {label}")
    return seconds


def main(rounds: int) -> None:
    """Measure and print."""
    with Cluster(rootfs(cache_directory()), cache_directory()) as cluster:
        site = Site(cluster)
        url = publish(site)
        site.wait_published(*ITEMS.values())
        fetchers = {
            "race": Fetcher(site, "Race", servers=[url], program="launcher"),
            "race, extension": Fetcher(site, "Extended", servers=[url]),
            "swarm only": Fetcher(
                site, "Swarm", servers=[url], program="launcher", policy="swarm-only"
            ),
            "guix, HTTP": Fetcher(site, "Guix", program="guix", servers=[url]),
        }
        watches = {
            by: MemoryWatch(fetcher.node, "--substitute") for by, fetcher in fetchers.items()
        }
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(rounds):
            for size, label in ITEMS.items():
                for by, fetcher in fetchers.items():
                    with watches[by].watching():
                        times.setdefault((size, by), []).append(once(fetcher, label))
        idle = [build(fetchers["race"], "medium") for _ in range(rounds)]
        times["(already there)", "nobody"] = idle
        print(f"{'item':<16}{'by':<16}{'median':>9}{'fastest':>9}{'slowest':>9}   seconds")
        for (size, by), all_rounds in times.items():
            low, middle, high = min(all_rounds), statistics.median(all_rounds), max(all_rounds)
            print(f"{size:<16}{by:<16}{middle:>9.2f}{low:>9.2f}{high:>9.2f}")
        print(f"\n{'program':<18}{'peak memory':>12}   MiB")
        peaks = {name: watch.peak for name, watch in watches.items()}
        for name in ("seeder", "tracker"):
            peaks[name] = site.node.services[name].peak_memory()
        for name, peak in peaks.items():
            print(f"{name:<18}{peak / 2**20:>12.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else ROUNDS)
