# SPDX-License-Identifier: GPL-3.0-or-later
"""A tracker with a million peers: memory, how fast it answers, mass expiry, a kill and a restart.

    python3 bench/tracker_million.py [ENGINE] [PEERS] [SECONDS]

Needs root, gcc and iproute2: it runs in a network namespace of its own, where all of fd00::/8 is
local, so that peers of IPv6 have a /64 each. ENGINE is native or python.

`tracker serve --open` with the default limits gets a crowd over UDP (bench/udp_million.c): 8 peers
at each address, one address in five of IPv6, 100,000 swarms chosen by Zipf's law, none with more
than 20,000 peers; three of four peers are seeds. Meanwhile a probe announces 1,000 times a second
whatever happens, wants 30 peers, and has its answers stamped by the kernel; another asks over HTTP
50 times a second, with a connection for each announce. SECONDS is how long each phase lasts:

- filling: the crowd comes, 192 requests at a time
- idle: nobody but the probes
- busy: the crowd announces again, 192 at a time
- busy, silent peers: the same, while who said nothing for 5 seconds is forgotten, every second
- all expire: the crowd is silent, and all of it is forgotten in one pass
- killed: the crowd is back, the tracker is killed with SIGKILL and started again at once

Peers are forgotten after 20 minutes at least, which no setting shortens. Here the tracker reads
that time from a file, on SIGHUP, and looks for silent peers each second; all else is as it is.

Prints for each phase how many announces of a probe were answered, milliseconds to an answer
(median, 99 of 100, and the longest) and answers that did not come; memory; each look at all peers;
and how long the restart took.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

ROOT = Path(__file__).resolve().parents[1]
PEERS = 1_000_000
SWARMS = 100_000
SIX_PERCENT = 20
SECONDS = 10
RATE = 1000
HTTP_RATE = 50
DEADLINE = 60
USUAL_SILENCE = 1200

PROGRAM = """
import pathlib, sys, time
from tracker import server, settings
from tracker.announcer import Announcer
from tracker.cli import main

silence = pathlib.Path(sys.argv.pop(1))
usual_limits, usual_expire = settings.Settings.limits, Announcer.expire

def limits(self):
    seconds = int(silence.read_text())
    return usual_limits(self)._replace(seed_timeout=seconds, leecher_timeout=seconds)

def expire(self, now):
    began = time.time()
    expired = usual_expire(self, now)
    print("pass", began, time.time(), expired, file=sys.stderr, flush=True)
    return expired

settings.Settings.limits, Announcer.expire, server.TIDY_SECONDS = limits, expire, 1
sys.argv[0] = "tracker"
main()
"""


class Sample(NamedTuple):
    """One announce of the probe.

    Attributes:
        sent: seconds since the epoch.
        took: milliseconds, or -1 without an answer.
    """

    sent: float
    took: float


class Pass(NamedTuple):
    """One look at all peers; seconds since the epoch, and how many were forgotten."""

    began: float
    ended: float
    expired: int


class Tracker:
    """A tracker, its directory and its port."""

    def __init__(self, directory: Path, engine: str) -> None:
        self._directory = directory
        self._log = directory / "log"
        (directory / "empty.toml").write_text("")
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NARSWARM_CONFIG": str(directory / "empty.toml"),
            "NARSWARM_TRACKER_ENGINE": engine,
            "NARSWARM_TRACKER_DATA": str(directory / "data"),
        }
        self.port = _free_port()
        self.forget_after(USUAL_SILENCE, tell=False)
        self.start()

    def start(self) -> None:
        """Serve, and wait until it says so."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", PROGRAM, str(self._directory / "silence")),
                    *("serve", "--open", "--listen", f"[::]:{self.port}"),
                ],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                text=True,
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith("tracker: listening"):
            raise SystemExit(self._log.read_text())

    def forget_after(self, seconds: int, *, tell: bool = True) -> None:
        """Set how long peers may be silent."""
        (self._directory / "silence").write_text(str(seconds))
        if tell:
            self._process.send_signal(signal.SIGHUP)

    def end(self, number: signal.Signals) -> None:
        """Send a signal to all its processes, and wait."""
        os.killpg(self._process.pid, number)
        self._process.communicate(timeout=DEADLINE)

    def passes(self) -> list[Pass]:
        """The looks at all peers so far."""
        found = re.findall(r"pass (\S+) (\S+) (\d+)", self._log.read_text())
        return [Pass(float(began), float(ended), int(expired)) for began, ended, expired in found]

    def resident(self) -> int:
        """Bytes of memory that the worker has."""
        pid = self._process.pid
        worker = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def peers(self) -> int:
        """How many it says that there are."""
        done = subprocess.run(
            [sys.executable, "-c", "from tracker.cli import main; main()", "stats", "--json"],
            env=self._environment,
            check=True,
            stdout=subprocess.PIPE,
        )
        stats = json.loads(done.stdout)
        return sum(
            stats[f"{role}_{family}"]
            for role in ("seeders", "leechers")
            for family in ("ipv4", "ipv6")
        )


class HttpProbe:
    """Announces over HTTP at a steady rate, each time with another connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due += 1 / HTTP_RATE
            began, took = time.time(), -1.0
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port), timeout=5) as client,
            ):
                client.sendall(
                    b"GET /announce?info_hash=the-probe-over-HTTP.&peer_id=-XX0001-the-probe---"
                    b"&port=1&left=1&numwant=30&compact=1 HTTP/1.0\r\n\r\n"
                )
                if client.recv(65536)[8:13] == b" 200 ":
                    took = (time.time() - began) * 1000
            self.samples.append(Sample(began, took))


class Probes:
    """Both probes for some seconds."""

    def __init__(self, program: Path, port: int, seconds: int) -> None:
        self._udp = subprocess.Popen(
            [str(program), "probe", str(port), str(SWARMS), str(seconds), str(RATE)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._http = HttpProbe(port)
        self.udp: list[Sample] = []
        self.http: list[Sample] = []

    def __enter__(self) -> Self:
        self._http.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        out: str = self._udp.communicate()[0]
        self._http.__exit__()
        numbers = (map(float, line.split()) for line in out.splitlines())
        self.udp = [Sample(sent, took) for sent, took in numbers]
        self.http = self._http.samples


@contextlib.contextmanager
def crowd(program: Path, port: int, peers: int, seconds: int) -> Iterator[subprocess.Popen[str]]:
    """Have the crowd come; its first line is written when all of it is there."""
    numbers = map(str, (port, peers, SWARMS, SIX_PERCENT, seconds))
    with subprocess.Popen(
        [str(program), "crowd", *numbers], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def numbers_of(process: subprocess.Popen[str]) -> tuple[float, int, int]:
    """What the crowd says: seconds, answers, lost requests."""
    assert process.stdout is not None
    seconds, answers, lost = process.stdout.readline().split()
    return float(seconds), int(answers), int(lost)


def row(name: str, samples: list[Sample], note: str = "") -> None:
    """Print a line of the table."""
    took = sorted(sample.took for sample in samples if sample.took >= 0)
    lost = len(samples) - len(took)
    if took:
        middle, late = statistics.median(took), took[int(len(took) * 0.99)]
        print(
            f"{name:30} {len(took):8,} {middle:8.2f} {late:8.2f} {took[-1]:8.1f} {lost:6}  {note}"
        )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def measure(tracker: Tracker, program: Path, peers: int, seconds: int) -> None:
    """All phases but the last."""
    empty = tracker.resident()
    print(f"{'':30} {'answers':>8} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'lost':>6}")
    with crowd(program, tracker.port, peers, seconds * 2 + 2) as process:
        with Probes(program, tracker.port, seconds) as probes:
            took, answers, lost = numbers_of(process)
        row("filling", probes.udp, f"{answers / took:,.0f} announces/s, {lost} lost")
        row("filling, HTTP", probes.http)
        with Probes(program, tracker.port, seconds) as probes:
            pass
        row("busy", probes.udp)
        row("busy, HTTP", probes.http)
        took, answers, lost = numbers_of(process)
        print(f"{'':30} meanwhile {answers / took:,.0f} announces/s, {lost} lost")
    there, full = tracker.peers(), tracker.resident()
    with Probes(program, tracker.port, seconds) as probes:
        pass
    row("idle", probes.udp)
    row("idle, HTTP", probes.http)
    tracker.forget_after(1)
    with Probes(program, tracker.port, seconds) as probes:
        pass
    passes = [each for each in tracker.passes() if each.expired > peers / 100]
    during = [
        sample
        for sample in probes.udp
        if any(each.began - 0.01 <= sample.sent <= each.ended for each in passes)
    ]
    row("all expire: while they do", during)
    row("all expire", probes.udp)
    row("all expire, HTTP", probes.http)
    after = tracker.resident()
    tracker.forget_after(5)
    with crowd(program, tracker.port, peers, seconds + 1) as process:
        numbers_of(process)
        before = len(tracker.passes())
        with Probes(program, tracker.port, seconds) as probes:
            pass
        took, answers, lost = numbers_of(process)
    row("busy, silent peers", probes.udp, f"{answers / took:,.0f} announces/s, {lost} lost")
    row("busy, silent peers, HTTP", probes.http)
    churned = [each for each in tracker.passes()[before:] if each.expired]
    print(
        f"memory: {empty / 2**20:.0f} MiB empty, {full / 2**20:.0f} MiB with {there:,} peers,"
        f" which is {(full - empty) / there:.0f} bytes for each; {after / 2**20:.0f} MiB after"
    )
    for what, some in (("all expire", passes), ("busy", churned)):
        for each in some:
            print(f"pass, {what}: {each.expired:,} peers in {each.ended - each.began:.3f} s")


def kill(tracker: Tracker, program: Path, peers: int, seconds: int) -> None:
    """Kill it while the crowd announces, and start it again."""
    tracker.forget_after(USUAL_SILENCE)
    with crowd(program, tracker.port, peers, seconds + 30) as process:
        numbers_of(process)
        with Probes(program, tracker.port, seconds) as probes:
            time.sleep(seconds / 4)
            killed = time.time()
            tracker.end(signal.SIGKILL)
            tracker.start()
            ready = time.time()
    answered = [each.sent for each in probes.udp if each.took >= 0]
    # The probe asks for no other connection id, so an answer says that its own still holds.
    again = min(sent for sent in answered if sent > killed + 0.1)
    print(
        f"killed: ready after {ready - killed:.2f} s, announces with an old connection id answered"
        f" after {again - killed:.2f} s, {tracker.peers():,} peers then"
    )


def main() -> None:
    """Measure and print."""
    if "--inside" not in sys.argv:
        inside = ["unshare", "--net", sys.executable, *sys.argv, "--inside"]
        raise SystemExit(subprocess.run(inside, check=False).returncode)
    arguments = [each for each in sys.argv[1:] if each != "--inside"]
    engine = arguments[0] if arguments else "native"
    peers = int(arguments[1]) if arguments[1:] else PEERS
    seconds = int(arguments[2]) if arguments[2:] else SECONDS
    for command in ("ip link set lo up", "ip -6 route add local fd00::/8 dev lo"):
        subprocess.run(command.split(), check=True)
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "million"
        source = Path(__file__).with_name("udp_million.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-o", program, source], check=True)
        print(f"{engine}, {peers:,} peers; load average {os.getloadavg()[0]:.1f}")
        tracker = Tracker(Path(name), engine)
        try:
            measure(tracker, program, peers, seconds)
            kill(tracker, program, peers, seconds)
        finally:
            tracker.end(signal.SIGTERM)
        print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
