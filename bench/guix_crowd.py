# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a crowd takes to fetch one closure from one slow uplink.

    python3 bench/guix_crowd.py [CLIENTS]        as root

CLIENTS nodes (8 unless said) start `guix build` of the same closure, 20 items of 100 MB in all, at
the same moment. Everything comes from one node whose link carries 20 Mbit/s; the clients' own links
are fast. First all use the substituter, then the same nodes use Guix's own `guix substitute` over
HTTP, from the same uplink. Every round starts cold.

Prints the seconds until the last client has the closure, beside the limit: the closure's compressed
bytes over the uplink, once; and what all clients together got over HTTP.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.guix_closures import Bench
from bench.links import Wire
from tests.e2e.rig.nodes import Cluster
from tests.e2e.rig.rootfs import cache_directory, rootfs
from tests.e2e.rig.site import Fetcher

CLIENTS = 8
UPLINK = Wire(20, 10)
LIMIT = 1800.0


def together(bench: Bench, fetchers: Sequence[Fetcher], name: str) -> list[float]:
    """Seconds until each of the nodes has a closure that all begin to fetch at once."""
    seconds = [0.0] * len(fetchers)

    def one(index: int) -> None:
        fetchers[index].build(name, timeout=LIMIT)
        seconds[index] = time.perf_counter() - start

    for fetcher in fetchers:
        bench.clean(fetcher, name)
    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(fetchers))]
    with redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for fetcher in fetchers:
        if not fetcher.has(name):
            raise SystemExit(f"{fetcher.node.name} did not get {name}")
    return sorted(seconds)


def main(clients: int) -> None:
    """Measure and print."""
    with Cluster(rootfs(cache_directory()), cache_directory()) as cluster:
        bench = Bench(cluster, {"crowd"})
        with bench.links:
            bench.prepare("warm")
            lengths = [bench.site.payload_length(path) for path in bench.items["crowd"]]
            limit = sum(lengths) * 8 / (UPLINK.mbit * 1e6)
            bench.links.put(bench.site.node, UPLINK)
            print(f"{sum(lengths) / 1e6:.1f} MB compressed, {clients} clients", flush=True)
            heads = f"{'first':>9}{'last':>9}{'last/limit':>12}{'HTTP MB':>10}"
            print(f"{'':<16}{heads}   (seconds)")
            print(f"{'limit':<16}{'':>9}{limit:>9.1f}{1:>12.2f}", flush=True)
            for by, program in (("narswarm", "extension"), ("guix, HTTP", "guix")):
                crowd = [
                    Fetcher(bench.site, f"{program[0]}{number}", program=program)
                    for number in range(clients)
                ]
                done = together(bench, crowd, "crowd")
                over_http = sum(fetcher.http_bytes() for fetcher in crowd) / 1e6
                figures = f"{done[0]:>9.1f}{done[-1]:>9.1f}{done[-1] / limit:>12.2f}"
                print(f"{by:<16}{figures}{over_http:>10.1f}", flush=True)
                for fetcher in crowd:
                    cluster.remove(fetcher.node)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else CLIENTS)
