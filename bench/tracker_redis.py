# SPDX-License-Identifier: GPL-3.0-or-later
"""How many announces a second a store of swarms takes, in batches: Redis, beside those in memory.

    python3 bench/tracker_redis.py [ROUNDS] [SECONDS]

Needs redis-server; one is started for the measurement, on loopback and without persistence. The
load is that of `tracker_announces.py`: 100,000 peers, three of four of them seeds, each in one of
50,000 swarms, few of which have many peers; 30 peers are wanted. All have announced once before it
is measured. Batches have 64 announces, as many as a datagram socket is asked for at once.

Prints, for each store, which is asked from Python in any case: announces a second (median, slowest
and fastest round), CPU microseconds of this process and of Redis for each announce, and the memory
of Redis.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import engines  # noqa: E402 - from where this file is
from tracker.native import AVAILABLE, NativeSwarms  # noqa: E402
from tracker.redis_link import Link, parse_url  # noqa: E402
from tracker.redis_swarms import RedisSwarms  # noqa: E402
from tracker.swarms import Limits  # noqa: E402
from tracker.swarmstore import Asked, MemorySwarms, SwarmStore  # noqa: E402
from tracker.wire_http import AnnounceRequest  # noqa: E402

ROUNDS = 5
SECONDS = 4
BATCH = 64
PEERS = 100_000
SWARMS = 50_000


def batches(rng: random.Random) -> list[list[Asked]]:
    """The announces of all peers, in no order."""
    hashes = [rng.randbytes(20) for _ in range(SWARMS)]
    now = int(time.time())
    asked = []
    for number in range(PEERS):
        place = min(int(rng.gammavariate(0.2, 100) / 100 * SWARMS), SWARMS - 1)
        left = 0 if rng.random() < 0.75 else 1 << 20
        request = AnnounceRequest(hashes[place], rng.randbytes(20), 1024 + number % 60_000, left)
        asked.append(Asked(request, rng.randbytes(4), 30, now))
    return [asked[start : start + BATCH] for start in range(0, PEERS, BATCH)]


def measure(store: SwarmStore, load: Iterator[Sequence[Asked]], seconds: float) -> float:
    """Announces a second."""
    done, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        done += len(store.announce_many(next(load)))
    return done / elapsed


def redis_numbers(link: Link) -> dict[str, float]:
    """What Redis says of itself."""
    text = link.ask("INFO", "everything")
    assert isinstance(text, bytes)
    pairs = (line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
    return {
        name: float(value)
        for name, value in pairs
        if name in {"used_cpu_user", "used_cpu_sys", "used_memory"}
    }


def main() -> None:
    """Measure both stores."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    load = batches(random.Random(1))  # noqa: S311 - the same at each run
    print("store    announces/s (slowest to fastest)  µs here  µs in Redis")
    with engines.redis_server() as engine:
        link = Link(parse_url(engine.url)[0])
        empty = redis_numbers(link)["used_memory"]
        stores: dict[str, SwarmStore] = {
            "python": MemorySwarms(Limits(), keep_downloads=True),
            "redis": RedisSwarms(engine.url, Limits(), keep_downloads=True),
        }
        if AVAILABLE:
            stores["native"] = NativeSwarms(Limits(), is_open=True, keep_downloads=True)
        for name, store in stores.items():
            for batch in load:
                store.announce_many(batch)
            before, cpu = redis_numbers(link), time.process_time()
            going = cycle(load)
            rates = [measure(store, going, seconds) for _ in range(rounds)]
            after, cpu = redis_numbers(link), time.process_time() - cpu
            announces = sum(rates) * seconds
            there = sum(after[key] - before[key] for key in ("used_cpu_user", "used_cpu_sys"))
            print(
                f"{name:7} {statistics.median(rates):10,.0f}"
                f" ({min(rates):,.0f} to {max(rates):,.0f})"
                f" {cpu / announces * 1e6:8.1f} {there / announces * 1e6:8.1f}"
            )
            store.close()
        used = redis_numbers(link)["used_memory"] - empty
        print(
            f"Redis keeps {PEERS:,} peers in {used / 1e6:,.1f} MB, {used / PEERS:,.0f} bytes each"
        )
        link.close()


if __name__ == "__main__":
    main()
