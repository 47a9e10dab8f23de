# SPDX-License-Identifier: GPL-3.0-or-later
"""How many announces a second the tracker answers over HTTP, beside opentracker on the same core.

    python3 bench/tracker_http.py [ROUNDS] [SECONDS]

Needs gcc for the load generator, which is compiled for each run, and two cores: each tracker has
one for itself, the generator has the other. Ours is measured with its native engine and with the
one in Python; opentracker when it is installed. They take turns, in the other order in each round.

The load is that of `tracker_announces.py` with 20,000 peers and 10,000 swarms: three of four peers
are seeds, a gamma distribution (0.2, 100) says who is where, 30 peers are wanted, and of 51
requests one is a scrape. 256 connections are open at any time, from 256 loopback addresses. First
each request has a connection of its own, as with BitTorrent clients; then each connection has 1000
requests, as behind a proxy, which opentracker doesn't offer. Answers are counted, and looked at,
not requests, after each peer announced once.

To connect costs the generator more than the tracker, so the generator's core is the busy one and
the rate of a fast tracker is a lower bound. As root, both are therefore measured with a quarter of
a core as well (see quota.py), where each is as busy as it may be: those rates compare.

Prints for each tracker: answers to announces a second (median, slowest and fastest round), CPU
microseconds of the tracker for each answer, how busy its core and the generator's were, and answers
that were wrong or missing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import tracker_announces as udp
from bench.quota import limited

ROUNDS = 5
SECONDS = 5
CONNECTIONS = 256
KEPT = 1000
"""Requests on a connection that is kept."""
SHARE = 0.25
"""Of its core, where a tracker is limited."""


Tracker = Callable[[Path, int, list[bytes]], AbstractContextManager[list[int]]]
"""Runs one in a directory, on a port, for infohashes; its processes."""


class Case(NamedTuple):
    """One line of the table.

    Attributes:
        name: what is printed.
        tracker: what is measured.
        requests: on each connection.
        share: of a core that it may take.
    """

    name: str
    tracker: Tracker
    requests: int = 1
    share: float = 1.0


class Measured(NamedTuple):
    """One round.

    Attributes:
        announces: answers to announces a second.
        cpu: CPU seconds of the tracker for each answer.
        busy: share of its core that the tracker took.
        load: the same of the generator.
        wrong: answers that were none, and connections that failed.
    """

    announces: float
    cpu: float
    busy: float
    load: float
    wrong: int


@contextlib.contextmanager
def ours(engine: str, directory: Path, port: int, hashes: list[bytes]) -> Iterator[list[int]]:
    """Run this tracker with an engine; give its processes."""
    with udp.ours(engine, directory, port, hashes) as pids:
        yield pids


def measure(load: list[str], pids: list[int], share: float) -> Measured:
    """Load a tracker."""
    with (
        subprocess.Popen(load, stdout=subprocess.PIPE, text=True) as process,
        contextlib.ExitStack() as stack,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "warm\n"
        if share < 1:
            stack.enter_context(limited(pids, share))
        before = udp.cpu_seconds(pids)
        line = process.stdout.readline()
        cpu = udp.cpu_seconds(pids) - before
    elapsed, announces, scrapes, wrong, failed, load_cpu = map(float, line.split())
    return Measured(
        announces / elapsed,
        cpu / (announces + scrapes),
        cpu / elapsed,
        load_cpu / elapsed,
        int(wrong + failed),
    )


def row(name: str, rounds: list[Measured]) -> str:
    """A line of the table."""
    rates = [each.announces for each in rounds]
    spread = f"{statistics.median(rates):9,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
    cpu, busy, load = (
        statistics.median(getattr(each, field) for each in rounds)
        for field in ("cpu", "busy", "load")
    )
    wrong = sum(each.wrong for each in rounds)
    return f"{name:26} {spread:32} {cpu * 1e6:7.1f} {busy:6.0%} {load:6.0%} {wrong:6}"


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds = sys.argv[2] if len(sys.argv) > 2 else str(SECONDS)
    udp.PEERS, udp.SWARMS = 20_000, 10_000
    native, python = (functools.partial(ours, engine) for engine in ("native", "python"))
    cases = [Case("native", native), Case("Python", python)]
    installed = shutil.which("opentracker", path=f"{os.environ['PATH']}:/usr/sbin") is not None
    if installed:
        cases.append(Case("opentracker", udp.opentracker))
    root = os.geteuid() == 0
    if root:
        cases.append(Case(f"native, {SHARE:.0%} of a core", native, share=SHARE))
    if root and installed:
        cases.append(Case(f"opentracker, {SHARE:.0%}", udp.opentracker, share=SHARE))
    cases += [Case("native, kept", native, KEPT), Case("Python, kept", python, KEPT)]
    results: dict[str, list[Measured]] = {case.name: [] for case in cases}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        binary, peers = directory / "load", directory / "peers"
        source = Path(__file__).with_name("http_load.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-o", str(binary), str(source)], check=True)
        hashes = udp.write_peers(peers, random.Random(1))  # noqa: S311 - the same at each run
        for number in range(rounds):
            for case in cases[:: -1 if number % 2 else 1]:
                port, place = udp.free_port(), directory / f"{case.name}-{number}"
                place.mkdir()
                directory.chmod(0o755)
                with case.tracker(place, port, hashes) as pids:
                    load = ["taskset", "-c", str(udp.LOAD_CORE), str(binary), str(port)]
                    load += [str(peers), seconds, str(CONNECTIONS), str(case.requests)]
                    results[case.name].append(measure(load, pids, case.share))
    print(f"{'':26} {'announces/s':32} {'CPU µs':>7} {'busy':>6} {'load':>6} {'wrong':>6}")
    for title, measured in results.items():
        print(row(title, measured))
    for more in ("", f", {SHARE:.0%}"):
        if f"opentracker{more}" not in results:
            continue
        mine = f"native{more}{' of a core' if more else ''}"
        rate, cpu = (
            statistics.median(getattr(each, field) for each in results[mine])
            / statistics.median(getattr(each, field) for each in results[f"opentracker{more}"])
            for field in ("announces", "cpu")
        )
        print(
            f"{mine}: {rate:.2f} times as many announces as opentracker,"
            f" {cpu:.2f} times the CPU time for each answer"
        )


if __name__ == "__main__":
    main()
