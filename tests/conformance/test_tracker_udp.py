# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker over UDP, the real program over real sockets; docs/tracker-wire.md."""

from __future__ import annotations

import http.client
import os
import random
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest

from narswarm.download import Progress
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.swarm import Swarm
from narswarm.swarm_settings import SwarmSettings
from tests import needs
from tests.ports import free_port
from tests.processes import end, start_tracker, tracker_command

pytestmark = pytest.mark.conformance

HASH = bytes(range(0xEC, 0x100))
MAGIC = bytes.fromhex("0000041727101980")
DEADLINE = 120


class Reply(NamedTuple):
    """What an announce is answered: interval, leechers, seeders and packed peers."""

    interval: int
    leechers: int
    seeders: int
    peers: bytes


class Client:
    """A UDP client that hears only the address and port which it asks."""

    def __init__(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.settimeout(DEADLINE)
        self.socket.connect((host, port))
        self._transactions = 0
        self.id = b""

    def ask(self, action: int, body: bytes = b"", *, connection_id: bytes | None = None) -> bytes:
        """The answer to a request, without its transaction."""
        self._transactions += 1
        transaction = self._transactions.to_bytes(4)
        head = (connection_id or self.id) + action.to_bytes(4) + transaction
        self.socket.send(head + body)
        reply = self.socket.recv(2048)
        assert reply[4:8] == transaction
        return reply[:4] + reply[8:]

    def connect(self) -> None:
        """Get a connection id."""
        reply = self.ask(0, connection_id=MAGIC)
        assert reply[:4] == bytes(4)
        self.id = reply[4:]
        assert len(self.id) == 8

    def announce(self, port: int, *, left: int = 5, event: int = 0) -> Reply:
        """Announce `HASH` at a port."""
        body = HASH + b"p" * 20 + bytes(8) + left.to_bytes(8) + bytes(8) + event.to_bytes(4)
        reply = self.ask(1, body + bytes(8) + b"\xff\xff\xff\xff" + port.to_bytes(2))
        assert reply[:4] == b"\0\0\0\1"
        interval, leechers, seeders = (int.from_bytes(reply[at : at + 4]) for at in (4, 8, 12))
        return Reply(interval, leechers, seeders, reply[16:])


class Server(NamedTuple):
    """A running tracker."""

    process: subprocess.Popen[str]
    port: int
    stack: ExitStack

    def client(self, host: str = "127.0.0.1") -> Client:
        """A client that has a connection id."""
        client = Client(host, self.port)
        self.stack.callback(client.socket.close)
        client.connect()
        return client

    def http(self, target: str, host: str = "127.0.0.1") -> bytes:
        """The answer to an HTTP request."""
        connection = http.client.HTTPConnection(host, self.port, timeout=DEADLINE)
        try:
            connection.request("GET", target)
            return connection.getresponse().read()
        finally:
            connection.close()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to all its processes, and wait."""
        os.killpg(self.process.pid, number)
        return self.process.wait(DEADLINE)

    def workers(self) -> list[int]:
        """Its child processes."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(child) for child in path.read_text().split()]


Start = Callable[..., Server]


@contextmanager
def _starter(directory: Path, engine: str) -> Iterator[Start]:
    """A starter of trackers with an engine, which end with the test."""
    with ExitStack() as stack:

        def start(*flags: str, listen: str = "[::]:0") -> Server:
            process, (port,) = start_tracker(
                directory, [listen], *flags, NARSWARM_TRACKER_ENGINE=engine
            )
            stack.callback(end, process)
            return Server(process, port, stack)

        yield start


@pytest.fixture(name="start", params=["native", "python"])
def start_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """A starter of trackers that have one directory, with either engine."""
    if request.param == "native":
        needs.native()
    with _starter(tmp_path, request.param) as start:
        yield start


@pytest.mark.parametrize("listen", ["[::]:0", "0.0.0.0:0"])
def test_one_swarm_for_all(start: Start, listen: str) -> None:
    """HTTP and UDP have the same port and the same peers; each family sees peers of its own.

    Answers leave from the address that was asked, or the connected sockets wouldn't hear them.
    """
    server = start("--open", listen=listen)
    four = server.client("127.0.0.77")
    assert four.announce(257, left=0)[1:] == (0, 1, b"")
    target = f"/announce?info_hash={quote(HASH)}&peer_id={'q' * 20}&port=258"
    assert b"5:peers6:\x7f\0\0\1\1\1e" in server.http(target)
    assert four.announce(257, left=0)[1:] == (1, 1, b"\x7f\0\0\1\1\2")
    if listen.startswith("["):
        six = server.client("::1")
        assert six.announce(259)[1:] == (2, 1, b"")
        assert six.announce(260)[1:] == (3, 1, bytes(15) + b"\1" + b"\1\3")
        assert four.announce(257, left=0)[1:] == (3, 1, b"\x7f\0\0\1\1\2")
        assert four.ask(2, HASH) == b"\0\0\0\2" + bytes.fromhex("000000010000000000000003")


def test_events(start: Start) -> None:
    """Downloads are counted once, and who stops is gone."""
    client = start("--open").client()
    assert client.announce(1, event=2)[1:3] == (1, 0)
    assert client.announce(1, left=0, event=1)[1:3] == (0, 1)
    assert client.announce(1, left=0, event=1)[1:3] == (0, 1)
    assert client.announce(2, left=5, event=4)[1:3] == (1, 1)
    assert client.ask(2, HASH) == b"\0\0\0\2" + bytes.fromhex("000000010000000100000001")
    assert client.announce(1, left=0, event=3)[1:] == (1, 0, b"")


def test_refusals(start: Start) -> None:
    """A closed tracker says that it doesn't track an infohash, and nobody can listen at port 0."""
    client = start().client()
    body = HASH + b"p" * 60
    refusal = b"\0\0\0\3info_hash: is not in this tracker's index"
    assert client.ask(1, body + b"\0\1") == refusal
    assert client.ask(1, body + b"\0\0") == b"\0\0\0\3port: is not between 1 and 65535"
    assert client.ask(2, HASH * 75) == b"\0\0\0\2" + bytes(74 * 12)


def test_silence(start: Start) -> None:
    """Whoever doesn't prove its address gets nothing, and neither does nonsense."""
    client = start("--open").client()
    wrong = (int.from_bytes(client.id) ^ 1).to_bytes(8)
    rest = b"\0\0\0\1tran" + HASH + b"p" * 60 + b"\0\1"
    for packet in (b"", b"x", MAGIC, MAGIC + bytes(7), MAGIC + rest, wrong + rest, bytes(2000)):
        client.socket.send(packet)
    for action in (3, 9):
        client.socket.send(client.id + action.to_bytes(4) + rest[4:])
    client.socket.send(client.id + rest[:-1])
    # What comes next is the answer to this, as its transaction shows.
    assert client.announce(2)[1:] == (1, 0, b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ids_outlive_the_process(start: Start, number: signal.Signals) -> None:
    """After a restart or a kill a client goes on with the id that it has."""
    first = start("--open", listen="127.0.0.1:0")
    client = first.client()
    client.announce(1)
    first.stop(number)
    start("--open", listen=f"127.0.0.1:{first.port}")
    assert client.announce(1)[1:] == (1, 0, b"")


def test_a_worker_that_is_killed(start: Start) -> None:
    """Another worker takes the sockets over, with the same key."""
    server = start("--open")
    client = server.client()
    (worker,) = server.workers()
    descriptor = os.pidfd_open(worker)
    server.stack.callback(os.close, descriptor)
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    assert select.select([descriptor], [], [], DEADLINE)[0]
    # The socket is the master's, so what comes meanwhile waits in it.
    assert client.announce(1)[1:] == (1, 0, b"")
    (successor,) = server.workers()
    assert successor != worker
    assert server.stop() == 0


def test_says_what_it_is(start: Start) -> None:
    """Addresses and engine are said when it is ready; the engine is told to Prometheus, too."""
    server = start("--open")
    assert server.process.stdout is not None
    assert server.process.stdout.readline() == f"tracker: listening on udp://[::]:{server.port}\n"
    word, _, engine = server.process.stdout.readline().rpartition(" ")
    assert word == "tracker: engine:"
    server.client().announce(1)
    labels = 'action="announce",family="ipv4",outcome="ok",protocol="udp"'
    metrics = ""

    def counted() -> bool:
        nonlocal metrics
        metrics = server.http("/metrics").decode()
        return f"narswarm_tracker_requests_total{{{labels}}} 1.0\n" in metrics

    _wait(counted)  # which is done after the answer
    assert f'narswarm_tracker_engine_info{{engine="{engine.strip()}"}} 1.0\n' in metrics
    dropped = "narswarm_tracker_udp_dropped_datagrams_total"
    assert f'{dropped}{{listen="[::]:{server.port}"}} 0.0\n' in metrics


def test_without_udp(start: Start) -> None:
    """Nothing listens on the port if it isn't wanted."""
    server = start("--open", "--no-udp", listen="127.0.0.1:0")
    client = Client("127.0.0.1", server.port)
    with client.socket, pytest.raises(ConnectionRefusedError):
        client.connect()
    assert server.http("/scrape").startswith(b"d14:failure reason")


def test_port_that_is_taken(tmp_path: Path) -> None:
    """A port that somebody has for UDP alone is an error that says so."""
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", free_port()))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command, environment = tracker_command(tmp_path, [address])
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
    assert (done.stdout, done.stderr) == ("", f"tracker: udp://{address}: is in use\n")
    assert done.returncode == 9


def _too_long(progress: Progress) -> bool:
    return progress.idle > DEADLINE


def _fetch(directory: Path, host: str, url: str, number: int) -> tuple[bytes, bytes]:
    """Seed a payload, and fetch it with nothing but a tracker to find the seeder."""
    data = random.Random(number).randbytes(100_000)  # noqa: S311 - the same at each run
    hasher = PieceHasher()
    hasher.update(data)
    torrent = Metainfo.of(f"{number}.bin", hasher.finish()).encode()
    payload = directory / f"payload-{number}"
    payload.write_bytes(data)

    def swarm(role: str) -> Swarm:
        return Swarm(
            SwarmSettings(
                listen=(f"{host}:0",),
                dht=False,
                lsd=False,
                upnp=False,
                private_network=True,
                role="seed" if role == "seed" else "fetch",
            )
        )

    with swarm("seed") as seeder, swarm("fetch") as leecher:
        seeder.seed(torrent, payload, [url])
        _wait(lambda: any(tracker.replies for tracker in seeder.trackers()))
        fetched = leecher.fetch(torrent, directory / f"got-{number}", trackers=[url])
        return b"".join(fetched.chunks(stall=_too_long)), data


def _wait(ready: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(DEADLINE * 20):
        if ready():
            return
        pause.wait(0.05)
    pytest.fail("it did not happen")


# Each another address: libtorrent keeps the connection id of an address for a minute, and trackers
# of other tests have other keys.
@pytest.mark.parametrize(
    ("start", "host"),
    [("native", "127.0.0.1"), ("native", "[::1]"), ("python", "127.0.0.3")],
    indirect=["start"],
)
def test_libtorrent_clients_find_each_other(start: Start, tmp_path: Path, host: str) -> None:
    """Stock clients, which know nothing but the announce URL, and after a kill as before.

    libtorrent keeps its connection id across both, as it does for all trackers of an address.
    """
    server = start("--open")
    url = f"udp://{host}:{server.port}/announce"
    fetched, data = _fetch(tmp_path, host, url, 1)
    assert fetched == data
    server.stop(signal.SIGKILL)
    start("--open", listen=f"[::]:{server.port}")
    fetched, data = _fetch(tmp_path, host, url, 2)
    assert fetched == data
