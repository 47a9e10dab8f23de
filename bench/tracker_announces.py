# SPDX-License-Identifier: GPL-3.0-or-later
"""How many announces a second the tracker answers over UDP, beside opentracker on the same core.

    python3 bench/tracker_announces.py [ROUNDS] [SECONDS]
    python3 bench/tracker_announces.py memory

Needs gcc for the load generator, which is compiled for each run, and two cores: each tracker has
one for itself, the generator has the other. Both engines of this tracker are measured, and
opentracker when it is installed; Debian's knows only IPv4 and only infohashes that it is told, so
it is told all of them, while ours runs with `--open`. The trackers take turns, beginning with the
last one in every other round.

The load is modelled on aquatic's: of 101 requests 50 are to connect, 50 announces and one a scrape;
three of four peers are seeds; a peer is in one swarm, chosen by a gamma distribution (0.2, 100), so
that few swarms have many peers; 30 peers are wanted. 100,000 peers at 256 loopback addresses
announce to 50,000 swarms, with one request under way for each address: whoever gets an answer asks
for the next thing, so no queue overflows. Answers are counted, not requests, after each peer
announced once.

While the load goes on an HTTP scrape a time is timed as well, since one process serves both.

Prints a table: answers to announces and all answers a second (median, slowest and fastest round),
CPU microseconds of the tracker for each answer, lost requests, and what HTTP took meanwhile. With
`memory`, what a million peers take in each engine: the growth of its resident memory for each peer,
where 50 swarms have them, and where each swarm has two.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Self

from tracker.native import NativeSwarms
from tracker.swarms import Limits
from tracker.swarmstore import MemorySwarms
from tracker.wire_http import AnnounceRequest

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 5
SECONDS = 8
ADDRESSES = 256
PEERS = 100_000
SWARMS = 50_000
TRACKER_CORE, LOAD_CORE = 0, 1
DEADLINE = 30
USER = "nobody"


class Measured(NamedTuple):
    """One round.

    Attributes:
        announces: answers to announces a second.
        answers: all answers a second.
        cpu: CPU seconds of the tracker for each answer.
        lost: share of the requests that had no answer.
        http: seconds for each HTTP scrape meanwhile.
    """

    announces: float
    answers: float
    cpu: float
    lost: float
    http: list[float]


def write_peers(path: Path, rng: random.Random) -> list[bytes]:
    """Write the peers for the load generator; return the infohashes.

    A record has the infohash, port and whether it is a seed; the next address has the next record.
    """
    hashes = [rng.randbytes(20) for _ in range(SWARMS)]
    with path.open("wb") as file:
        for number in range(PEERS):
            place = min(int(rng.gammavariate(0.2, 100) / 100 * SWARMS), SWARMS - 1)
            port = 1024 + number // ADDRESSES
            file.write(hashes[place] + struct.pack("=HBx", port, rng.random() < 0.75))
    return hashes


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def native(directory: Path, port: int, hashes: list[bytes]) -> AbstractContextManager[list[int]]:
    """Run this tracker with its engine in C."""
    return ours("native", directory, port, hashes)


def python(directory: Path, port: int, hashes: list[bytes]) -> AbstractContextManager[list[int]]:
    """Run this tracker with its engine in Python."""
    return ours("python", directory, port, hashes)


@contextlib.contextmanager
def ours(engine: str, directory: Path, port: int, hashes: list[bytes]) -> Iterator[list[int]]:
    """Run this tracker; give its processes. It needs no list of infohashes."""
    del hashes
    (directory / "empty.toml").write_text("")
    program = "from tracker.cli import main; main()"
    arguments = [sys.executable, "-c", program, "serve", "--open", "--listen", f"127.0.0.1:{port}"]
    arguments += ["--data", str(directory / "data"), "--config", str(directory / "empty.toml")]
    more = {"PYTHONPATH": str(ROOT), "NARSWARM_TRACKER_ENGINE": engine}
    with _running(arguments, {**os.environ, **more}) as pid:
        wait_for(port)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        yield [pid, *map(int, children.split())]


@contextlib.contextmanager
def opentracker(directory: Path, port: int, hashes: list[bytes]) -> Iterator[list[int]]:
    """Run opentracker; give its process."""
    whitelist, config = directory / "whitelist", directory / "opentracker.conf"
    whitelist.write_text("".join(f"{info_hash.hex()}\n" for info_hash in hashes))
    lines = [
        f"listen.tcp_udp 127.0.0.1:{port}",
        f"access.whitelist {whitelist}",
        f"tracker.user {USER}",
    ]
    config.write_text("\n".join(lines) + "\n")
    directory.chmod(0o755)
    with _running(["opentracker", "-f", str(config)], dict(os.environ)) as pid:
        wait_for(port)
        time.sleep(1)  # it reads the list after it listens
        yield [pid]


@contextlib.contextmanager
def _running(arguments: list[str], environment: dict[str, str]) -> Iterator[int]:
    """Run a program on the trackers' core."""
    process = subprocess.Popen(
        ["taskset", "-c", str(TRACKER_CORE), *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def scrape(port: int) -> None:
    """Ask a tracker over HTTP, on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request("GET", "/scrape?info_hash=aaaaaaaaaaaaaaaaaaaa")
        connection.getresponse().read()
    finally:
        connection.close()


def wait_for(port: int) -> None:
    """Wait until a tracker answers."""
    for _ in range(DEADLINE * 20):
        with contextlib.suppress(ConnectionRefusedError):
            scrape(port)
            return
        time.sleep(0.05)
    raise TimeoutError("the tracker does not answer")


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class HttpProbe:
    """Times HTTP scrapes, one after the other on new connections, until it is stopped."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seconds: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            start = time.perf_counter()
            scrape(self._port)
            self.seconds.append(time.perf_counter() - start)


def measure(load: Path, peers: Path, port: int, pids: list[int], seconds: int) -> Measured:
    """Load a tracker."""
    with subprocess.Popen(
        ["taskset", "-c", str(LOAD_CORE), str(load), str(port), str(peers), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "warm\n"
        before = cpu_seconds(pids)
        with HttpProbe(port) as probe:
            line = process.stdout.readline()
        cpu = cpu_seconds(pids) - before
    elapsed, connects, announces, scrapes, lost = map(float, line.split())
    answers = connects + announces + scrapes
    return Measured(
        announces / elapsed,
        answers / elapsed,
        cpu / answers,
        lost / (answers + lost),
        probe.seconds,
    )


def row(name: str, rounds: list[Measured]) -> str:
    """A line of the table."""

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):9,.0f} ({min(values):,.0f} to {max(values):,.0f})"

    probes = sorted(value for each in rounds for value in each.http)
    percentiles = " / ".join(
        f"{probes[int(len(probes) * share)] * 1000:.1f}" for share in (0.5, 0.99)
    )
    return (
        f"{name:12} {spread([each.announces for each in rounds]):32}"
        f" {spread([each.answers for each in rounds]):32}"
        f" {statistics.median(each.cpu for each in rounds) * 1e6:6.1f}"
        f" {max(each.lost for each in rounds):7.2%}  {percentiles}"
    )


def fill(engine: str, swarms: int) -> None:
    """Have a million peers in this process, and print what each takes."""
    peers = 1_000_000
    store: NativeSwarms | MemorySwarms
    if engine == "native":
        store = NativeSwarms(Limits(), is_open=True, keep_downloads=False)
    else:
        store = MemorySwarms(Limits(), keep_downloads=False)
    before = resident()
    for number in range(peers):
        swarm, peer = number % swarms, number // swarms
        request = AnnounceRequest(swarm.to_bytes(20), b"-XX0001-".ljust(20), 6881, number % 4)
        store.announce(request, struct.pack(">I", 0x0A000000 + peer * 7919 % (1 << 24)), 0, 1)
    taken = resident() - before
    if sum(store.totals()[1:]) != peers:
        raise SystemExit(f"{engine}: does not have all peers")
    print(f"{engine:12} {swarms:9,} swarms {taken / peers:8.0f} bytes for each peer")


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory() -> None:
    """Measure memory, each time in a process of its own."""
    for engine in ("native", "python"):
        for swarms in (50, 500_000):
            subprocess.run(
                [sys.executable, __file__, "memory", engine, str(swarms)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                check=True,
            )


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["memory"]:
        if sys.argv[2:]:
            fill(sys.argv[2], int(sys.argv[3]))
        else:
            memory()
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds = int(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    trackers = {"native": native, "python": python}
    if shutil.which("opentracker", path=f"{os.environ['PATH']}:/usr/sbin"):
        trackers["opentracker"] = opentracker
    results: dict[str, list[Measured]] = {name: [] for name in trackers}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        load, peers = directory / "load", directory / "peers"
        source = Path(__file__).with_name("udp_load.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-o", str(load), str(source)], check=True)
        hashes = write_peers(peers, random.Random(1))  # noqa: S311 - the same at each run
        for number in range(rounds):
            names = list(trackers)[:: -1 if number % 2 else 1]
            for each in names:
                port, place = free_port(), directory / f"{each}-{number}"
                place.mkdir()
                directory.chmod(0o755)
                with trackers[each](place, port, hashes) as pids:
                    results[each].append(measure(load, peers, port, pids, seconds))
    print(
        f"{'':12} {'announces/s':32} {'all answers/s':32} {'CPU µs':>6} {'lost':>7}"
        "  HTTP ms, p50 / p99"
    )
    for each, measured in results.items():
        print(row(each, measured))
    if "opentracker" in results:
        announces, cpu = (
            [
                statistics.median(getattr(one, field) for one in results[each])
                for each in ("native", "opentracker")
            ]
            for field in ("announces", "cpu")
        )
        print(
            f"native answers {announces[0] / announces[1]:.2f} times as many announces as"
            f" opentracker, with {cpu[0] / cpu[1]:.2f} times the CPU time for each answer"
        )


if __name__ == "__main__":
    main()
