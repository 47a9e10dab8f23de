# SPDX-License-Identifier: GPL-3.0-or-later
"""A tracker with thousands of clients over UDP: killed, ended, and left by most of them.

docs/tracker.md, "Signals, and what lasts". Nothing here is timed; `bench/tracker_million.py` is.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import struct
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from narswarm import base32, gcrypt, metainfo, narinfo, sexp
from narswarm.acl import render
from narswarm.httpclient import HttpClient
from narswarm.httpsig import PublisherKey
from narswarm.merkle import PieceHasher
from narswarm.payload import file_name
from narswarm.trackerclient import TrackerIndex
from tests import needs
from tests.processes import end, start_tracker, tracker_command
from tracker.index import Index

pytestmark = pytest.mark.conformance

DEADLINE = 120.0
PEERS_EACH = 8
WINDOW = 64
"""Requests under way: no queue of the kernel overflows with so many."""

IP_PKTINFO = 8
"""Linux', which Python has a name for since 3.14 only."""

NONE, COMPLETED = 0, 1
CONNECT = bytes.fromhex("0000041727101980")
SIZES = {"native": 20_000, "python": 4_000}

SILENCE = """
import pathlib
from tracker import server, settings

def limits(self):
    seconds = int((self.data / "silence").read_text())
    return usual(self)._replace(seed_timeout=seconds, leecher_timeout=seconds)

usual, settings.Settings.limits, server.TIDY_SECONDS = settings.Settings.limits, limits, 0.2
"""
"""No setting forgets peers within 20 minutes: begins a tracker that reads the time from a file."""


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    give_up = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.02)


class Crowd:
    """Clients at many addresses of loopback, with one socket.

    Args:
        size: how many peers; eight have the same address.
        info_hashes: their swarms, in turn.
    """

    def __init__(self, size: int, info_hashes: Sequence[bytes]) -> None:
        self.port = 0
        """The tracker's."""
        self.size = size
        self._info_hashes = info_hashes
        self._ids: dict[int, bytes] = {}
        self._round = 0
        self._left: list[int] = []
        self._waiting: dict[int, bytes] = {}
        self._event = NONE
        self.sent: set[int] = set()
        """Who asked since `ask`."""
        self.answered: set[int] = set()
        """And who was answered."""
        self._socket = socket.socket(type=socket.SOCK_DGRAM)
        self._socket.bind(("0.0.0.0", 0))  # noqa: S104 - each datagram says where it is from
        self._socket.settimeout(0.2)

    def close(self) -> None:
        """Nobody hears answers any more."""
        self._socket.close()

    def swarm_of(self, peer: int) -> bytes:
        """The infohash of a peer."""
        return self._info_hashes[peer % len(self._info_hashes)]

    def expected(self, peers: Sequence[int]) -> list[int]:
        """How many of some peers each swarm has."""
        counts = Counter(self.swarm_of(peer) for peer in peers)
        return [counts[info_hash] for info_hash in self._info_hashes]

    def connect(self) -> None:
        """Get a connection id for each address."""
        self._begin(range(self.size // PEERS_EACH), None)
        self.finish()

    def ask(self, peers: Sequence[int], event: int = NONE) -> None:
        """Have peers announce, with the next calls of `step`."""
        self._begin(peers, event)

    def announce(self, peers: Sequence[int], event: int = NONE) -> None:
        """Have peers announce until each was answered."""
        self.ask(peers, event)
        self.finish()

    def finish(self) -> None:
        """Go on until everyone was answered."""
        give_up = time.monotonic() + DEADLINE
        while self._left or self._waiting:
            assert time.monotonic() < give_up, f"{len(self._left)} weren't answered"
            self.step()

    def step(self) -> None:
        """Ask as much as may be under way, and take in what was answered or wait a moment."""
        while self._left and len(self._waiting) < WINDOW:
            number = self._left.pop()
            self.sent.add(number)
            self._waiting[number] = self._packet(number)
            self._send(number)
        try:
            while True:
                self._take(self._socket.recv(2048))
                self._socket.setblocking(False)
        except TimeoutError:
            for number in self._waiting:
                self._send(number)
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(0.2)

    def scrape(self) -> list[tuple[int, int]]:
        """Peers and downloads of each swarm."""
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(DEADLINE)
            client.connect(("127.0.0.1", self.port))
            client.send(CONNECT + bytes(8))
            packet = client.recv(99)[8:16] + struct.pack(">II", 2, 1)
            client.send(packet + b"".join(self._info_hashes))
            reply = client.recv(2048)
        assert reply[:8] == struct.pack(">II", 2, 1)
        return [
            (seeds + leechers, downloads)
            for seeds, downloads, leechers in struct.iter_unpack(">III", reply[8:])
        ]

    def _begin(self, numbers: Sequence[int], event: int | None) -> None:
        self._round += 1
        self._left, self._waiting = list(reversed(numbers)), {}
        self._event = -1 if event is None else event
        self.sent, self.answered = set(), set()

    def _packet(self, number: int) -> bytes:
        transaction = self._round << 20 | number
        if self._event < 0:
            return CONNECT + struct.pack(">II", 0, transaction)
        return (
            self._ids[number // PEERS_EACH]
            + struct.pack(">II", 1, transaction)
            + self.swarm_of(number)
            + b"-XX0001-%012d" % number
            + struct.pack(">QQQIIIiH", 0, 1, 0, self._event, 0, 0, 0, 1000 + number % PEERS_EACH)
        )

    def _send(self, number: int) -> None:
        place = number if self._event < 0 else number // PEERS_EACH
        source = struct.pack("=i4s4x", 0, struct.pack(">I", 0x7F020000 + place))
        self._socket.sendmsg(
            [self._waiting[number]],
            [(socket.IPPROTO_IP, IP_PKTINFO, source)],
            0,
            ("127.0.0.1", self.port),
        )

    def _take(self, reply: bytes) -> None:
        action, transaction = struct.unpack_from(">II", reply)
        round_number, number = transaction >> 20, transaction & 0xFFFFF
        if round_number != self._round or self._waiting.pop(number, None) is None:
            return
        assert action == (self._event >= 0), reply
        if action == 0:
            self._ids[number] = reply[8:16]
        self.answered.add(number)


class Loaded(NamedTuple):
    """A closed tracker with an index, and its crowd."""

    crowd: Crowd
    directory: Path
    start: Callable[[], subprocess.Popen[str]]

    def kept(self) -> int:
        """How many downloads are written down."""
        index = Index(self.directory / "data")
        try:
            return sum(index.downloads().values())
        finally:
            index.close()


@pytest.fixture(name="engine", params=["native", "python"])
def engine_fixture(request: pytest.FixtureRequest) -> str:
    """Each engine."""
    engine: str = request.param
    if engine == "native":
        needs.native()
    return engine


@pytest.fixture(name="processes")
def processes_fixture() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        end(process)


@pytest.fixture(name="loaded")
def loaded_fixture(
    engine: str, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> Iterator[Loaded]:
    """A tracker whose index has ten NARs, which all peers of the crowd have announced."""
    signer, publisher = gcrypt.generate_key(), PublisherKey.generate()
    (tmp_path / "acl").write_bytes(render([sexp.parse(signer.public)]))
    info_hashes: list[bytes] = []
    crowd = Crowd(SIZES[engine], info_hashes)

    def start() -> subprocess.Popen[str]:
        process, (crowd.port,) = start_tracker(
            tmp_path,
            [f"127.0.0.1:{crowd.port}"],
            *("--acl", str(tmp_path / "acl")),
            NARSWARM_TRACKER_ENGINE=engine,
        )
        processes.append(process)
        return process

    start()
    client = HttpClient(timeout=DEADLINE)
    try:
        index = TrackerIndex(client, f"http://127.0.0.1:{crowd.port}")
        for number in range(10):
            nar_hash, hasher = _nar_hash(number), PieceHasher()
            hasher.update(b"payload %d" % number)
            meta = metainfo.Metainfo.of(file_name(nar_hash), hasher.finish())
            unsigned = narinfo.compose(f"/gnu/store/{number:032}-item", nar_hash, 1000, [])
            signed = narinfo.sign(unsigned, signer, "example.org")
            index.publish(publisher, nar_hash, meta.encode(), signed, time.time())
            info_hashes += [meta.infohash_v1, meta.infohash_v2[:20]]
        crowd.connect()
        crowd.announce(range(crowd.size))
        yield Loaded(crowd, tmp_path, start)
    finally:
        client.close()
        crowd.close()


def _nar_hash(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def test_killed_under_load(loaded: Loaded, processes: list[subprocess.Popen[str]]) -> None:
    """After SIGKILL in the middle of announces and a restart nothing is needed but announces."""
    crowd = loaded.crowd
    everyone, some = range(crowd.size), range(crowd.size // 4)
    counts = crowd.expected(everyone)
    assert [peers for peers, _ in crowd.scrape()] == counts
    crowd.announce(some, COMPLETED)
    processes[0].send_signal(signal.SIGHUP)  # which also writes numbers down
    until(lambda: loaded.kept() == len(some))

    crowd.ask(everyone)
    while len(crowd.answered) < crowd.size // 3:
        crowd.step()
    os.killpg(processes[0].pid, signal.SIGKILL)
    processes[0].wait(DEADLINE)
    loaded.start()
    # With the ids of before, and who was asked when it was killed asks again.
    crowd.finish()
    downloads = crowd.expected(some)
    assert [downloaded for _, downloaded in crowd.scrape()] == downloads
    crowd.announce(everyone)
    assert crowd.scrape() == list(zip(counts, downloads, strict=True))
    for number in range(10):
        url = f"http://127.0.0.1:{crowd.port}/v1/nar/{base32.encode(_nar_hash(number))}"
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            assert response.status == 200


def test_ended_under_load(loaded: Loaded, processes: list[subprocess.Popen[str]]) -> None:
    """Of downloads that were answered before SIGTERM took effect, each is counted."""
    crowd = loaded.crowd
    crowd.ask(range(crowd.size), COMPLETED)
    while len(crowd.answered) < crowd.size // 3:
        crowd.step()
    processes[0].send_signal(signal.SIGTERM)
    give_up = time.monotonic() + DEADLINE
    while processes[0].poll() is None:
        crowd.step()
        assert time.monotonic() < give_up
    assert processes[0].returncode == 0
    answered, sent = sorted(crowd.answered), sorted(crowd.sent)
    loaded.start()
    for least, (_, downloaded), most in zip(
        crowd.expected(answered), crowd.scrape(), crowd.expected(sent), strict=True
    ):
        assert least <= downloaded <= most


def test_left_by_most(engine: str, tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    """All who fell silent are forgotten, while those who didn't are answered and stay."""
    crowd = Crowd(SIZES[engine], [bytes([n]) * 20 for n in range(50)])
    silence = tmp_path / "data/silence"
    silence.parent.mkdir()
    silence.write_text("1200")
    command, environment = tracker_command(tmp_path, ["127.0.0.1:0"], "--open")
    command[2] = SILENCE + command[2]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        env=environment | {"NARSWARM_TRACKER_ENGINE": engine},
        start_new_session=True,
        text=True,
    )
    processes.append(process)
    assert process.stdout is not None
    crowd.port = int(process.stdout.readline().rpartition(":")[2])
    try:
        crowd.connect()
        crowd.announce(range(crowd.size))
        assert [peers for peers, _ in crowd.scrape()] == crowd.expected(range(crowd.size))
        silence.write_text("3")
        process.send_signal(signal.SIGHUP)
        stay = range(100)

        def only_these() -> bool:
            crowd.announce(stay)
            return [peers for peers, _ in crowd.scrape()] == crowd.expected(stay)

        until(only_these)
        until(lambda: crowd.scrape() == [(0, 0)] * 50)
    finally:
        crowd.close()
