# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker's wire behaviour, of the real program over real sockets; docs/tracker-wire.md."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from narswarm import base32, bencoding, gcrypt, metainfo, narinfo, sexp
from narswarm.acl import render
from narswarm.gcrypt import KeyPair
from narswarm.httpclient import HttpClient
from narswarm.httpsig import PublisherKey
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import file_name
from narswarm.trackerclient import RefusedError, TrackerIndex
from tests.processes import ROOT, end, start_tracker

pytestmark = pytest.mark.conformance

HASH = bytes(range(0xEC, 0x100))
OTHER = b"o" * 20
DEADLINE = 120


class Server(NamedTuple):
    """A running tracker."""

    process: subprocess.Popen[str]
    ports: tuple[int, ...]

    def request(
        self, target: str, *, method: str = "GET", host: str = "127.0.0.1", which: int = 0
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a new connection."""
        connection = http.client.HTTPConnection(host, self.ports[which], timeout=DEADLINE)
        try:
            connection.request(method, target)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def announce(self, more: str = "", port: int = 1, **named: Any) -> dict[bytes, Any]:
        """The decoded reply to an announce of `HASH`, unless another is among the parameters."""
        info_hash = "" if "info_hash=" in more else f"info_hash={quote(HASH)}&"
        target = f"/announce?{info_hash}peer_id={'p' * 20}&port={port}&{more}"
        status, headers, body = self.request(target, **named)
        assert (status, headers["Content-Type"]) == (200, "text/plain")
        reply = bencoding.decode(body, "reply")
        assert isinstance(reply, dict)
        return reply

    def scrape(self, *info_hashes: bytes) -> dict[bytes, Any]:
        """The decoded reply to a scrape."""
        query = "&".join(f"info_hash={quote(info_hash)}" for info_hash in info_hashes)
        reply = bencoding.decode(self.request(f"/scrape?{query}")[2], "reply")
        assert isinstance(reply, dict)
        return reply

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to its processes, and wait."""
        if number is signal.SIGKILL:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE)


Start = Callable[..., Server]


@contextmanager
def _starter(directory: Path) -> Iterator[Start]:
    """A starter of trackers, which end with the test."""
    with ExitStack() as stack:

        def start(*flags: str, listen: tuple[str, ...] = ("127.0.0.1:0",), **more: str) -> Server:
            process, ports = start_tracker(directory, listen, *flags, **more)
            stack.callback(end, process)
            return Server(process, ports)

        yield start


@pytest.fixture(name="start")
def start_fixture(tmp_path: Path) -> Iterator[Start]:
    """A starter of trackers."""
    with _starter(tmp_path) as start:
        yield start


@pytest.fixture(scope="module", name="shared")
def shared_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An open tracker for requests that don't change it."""
    with _starter(tmp_path_factory.mktemp("tracker")) as start:
        yield start("--open", listen=("[::]:0", "127.0.0.1:0"))


@pytest.fixture(scope="module", name="signer")
def signer_fixture() -> KeyPair:
    """The key of a substitute server."""
    return gcrypt.generate_key()


def _missing(name: str) -> str:
    pairs = {"info_hash": quote(HASH), "peer_id": "p" * 20, "port": "1"}
    return "&".join(f"{key}={value}" for key, value in pairs.items() if key != name)


REFUSALS = [
    ("/announce", "info_hash: is missing"),
    ("/announce?", "info_hash: is missing"),
    (f"/announce?{_missing('info_hash')}", "info_hash: is missing"),
    (f"/announce?{_missing('peer_id')}", "peer_id: is missing"),
    (f"/announce?{_missing('port')}", "port: is missing"),
    (f"/announce?{_missing('')}&info_hash=x", "info_hash: only one may be announced at a time"),
    (
        f"/announce?{_missing('info_hash')}&info_hash=%00",
        "info_hash: has 1 bytes instead of 20",
    ),
    (f"/announce?{_missing('port')}&port=0", "port: is not between 1 and 65535"),
    (f"/announce?{_missing('port')}&port=65536", "port: is not between 1 and 65535"),
    (f"/announce?{_missing('')}&left=x", "left: is not a number of 64 bits"),
    (f"/announce?{_missing('')}&numwant=x", "numwant: is not a number of 64 bits"),
    ("/scrape", "info_hash: is missing, and full scrapes are not served"),
    ("/scrape?info_hash=x", "info_hash: has 1 bytes instead of 20"),
]


@pytest.mark.parametrize(("target", "reason"), REFUSALS)
def test_refusals(shared: Server, target: str, reason: str) -> None:
    """What can't be served is a failure reason with status 200."""
    status, _, body = shared.request(target)
    assert status == 200
    assert bencoding.decode(body, "reply") == {b"failure reason": reason.encode()}


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("POST", "/announce", 405),
        ("PUT", "/scrape", 405),
        ("GET", "/announce/", 404),
        ("GET", "/v1/nar/x", 404),
        ("GET", f"/v1/nar/{'e' * 52}", 400),
        ("POST", f"/v1/nar/{'0' * 52}", 405),
        ("PUT", f"/v1/nar/{'0' * 52}", 401),
        ("GET", f"/{'0' * 32}.narinfo", 404),
        ("GET", "/nix-cache-info", 200),
        ("HEAD", "/nix-cache-info", 200),
        ("GET", "/announce?" + "x" * 8200, 414),
    ],
)
def test_statuses(shared: Server, method: str, target: str, status: int) -> None:
    """Everything else has the status that HTTP gives it."""
    found, headers, body = shared.request(target, method=method)
    assert found in ({status, 400} if status == 414 else {status})
    if target.startswith("/v1/"):
        assert list(json.loads(body)) == ["error"]
        assert headers["Content-Type"] == "application/json"


def test_scrape_of_as_many_as_udp_allows(shared: Server) -> None:
    """74 infohashes fit into a request line with all bytes escaped; further ones are cut off."""
    hashes = [hashlib.sha256(b"%d" % number).digest()[:20] for number in range(80)]
    query = "&".join(
        "info_hash=" + "".join(f"%{byte:02X}" for byte in info_hash) for info_hash in hashes
    )
    assert len(query) < 8000
    reply = bencoding.decode(shared.request(f"/scrape?{query}")[2], "reply")
    assert isinstance(reply, dict)
    files = reply[b"files"]
    assert isinstance(files, dict)
    assert set(files) == set(hashes[:74])


def test_scenario_of_three_clients(start: Start) -> None:
    """Clients of all kinds start, complete and stop, and scrapes agree with announces."""
    server = start("--open")
    steps = [
        (1, "event=started&left=10", (0, 1, 0)),
        (1, "event=completed&left=0", (1, 0, 1)),
        (1, "event=completed&left=0", (1, 0, 1)),
        (2, "event=started&left=10", (1, 1, 1)),
        (3, "event=paused&left=5", (1, 2, 1)),
        (4, "event=completed&left=18446744073709551615", (2, 2, 2)),
        (2, "event=stopped&left=10", (2, 1, 2)),
        (0, "event=stopped&left=10", (2, 1, 2)),
        (4, "event=stopped&left=0", (1, 1, 2)),
    ]
    for port, more, expected in steps:
        reply = server.announce(more, port)
        counts = (reply[b"complete"], reply[b"incomplete"], reply[b"downloaded"])
        assert counts == expected, (port, more)
        file = server.scrape(HASH)[b"files"][HASH]
        assert (file[b"complete"], file[b"incomplete"], file[b"downloaded"]) == expected
        if "stopped" in more:
            assert reply[b"peers"] == b""
    assert server.scrape(HASH)[b"files"][HASH] == {
        b"complete": 1,
        b"downloaded": 2,
        b"downloaders": 0,
        b"incomplete": 1,
    }


def test_replies(start: Start) -> None:
    """Keys, forms and selection of a reply."""
    server = start("--open")
    first = server.announce("left=0")
    assert set(first) == {
        b"complete",
        b"downloaded",
        b"external ip",
        b"incomplete",
        b"interval",
        b"min interval",
        b"peers",
    }
    assert (first[b"peers"], first[b"external ip"]) == (b"", b"\x7f\0\0\1")
    assert 1620 <= first[b"interval"] <= 1980
    assert first[b"min interval"] == 900
    second = server.announce("left=1", 2)
    assert second[b"peers"] == b"\x7f\0\0\1\0\1"
    assert 81 <= second[b"interval"] <= 99
    assert server.announce("left=1&compact=0", 3)[b"peers"] in [
        [_peer(1), _peer(2)],
        [_peer(2), _peer(1)],
    ]
    assert server.announce("left=0&compact=0&no_peer_id=1", 1)[b"peers"] in [
        [{b"ip": b"127.0.0.1", b"port": 2}, {b"ip": b"127.0.0.1", b"port": 3}],
        [{b"ip": b"127.0.0.1", b"port": 3}, {b"ip": b"127.0.0.1", b"port": 2}],
    ]
    assert server.announce("left=1&numwant=0", 4)[b"peers"] == b""
    assert server.announce("left=1&numwant=1", 4)[b"peers"] == b"\x7f\0\0\1\0\1"
    assert len(server.announce("left=1&numwant=-1", 4)[b"peers"]) == 18
    spoofed = server.announce("left=1&ip=6.6.6.6&ipv4=6.6.6.6&ipv6=::6", 5)
    assert spoofed[b"external ip"] == b"\x7f\0\0\1"


def _peer(port: int) -> dict[bytes, Any]:
    return {b"ip": b"127.0.0.1", b"peer id": b"p" * 20, b"port": port}


def test_both_families(start: Start) -> None:
    """One socket for both, with IPv4 peers told as such to everybody."""
    server = start("--open", listen=("[::]:0",))
    server.announce("left=0", 1)
    six = server.announce("left=0", 2, host="::1")
    assert six[b"external ip"] == bytes(15) + b"\1"
    assert (six[b"peers"], six[b"peers6"]) == (b"", b"")
    four = server.announce("left=1", 3)
    assert four[b"external ip"] == b"\x7f\0\0\1"
    assert four[b"peers"] == b"\x7f\0\0\1\0\1"
    assert four[b"peers6"] == bytes(15) + b"\1\0\2"
    assert server.announce("left=1&numwant=1", 4, host="::1")[b"peers6"] == bytes(15) + b"\1\0\2"


def test_raw_bytes_in_the_query(start: Start) -> None:
    """A plus sign is a byte like others, and so are bytes that needn't be escaped."""
    server = start("--open")
    plus = b"+" * 20
    server.announce(f"info_hash={'+' * 20}&left=0")
    assert server.scrape(plus)[b"files"][plus][b"complete"] == 1
    with socket.create_connection(("127.0.0.1", server.ports[0]), timeout=DEADLINE) as raw:
        raw.sendall(b"GET /scrape?info_hash=" + plus + b" HTTP/1.0\r\n\r\n")
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
    assert b"d8:completei1e" in answer


def test_pipelined_and_kept_connections(shared: Server) -> None:
    """Clients may ask again on the same connection."""
    connection = http.client.HTTPConnection("127.0.0.1", shared.ports[0], timeout=DEADLINE)
    for _ in range(3):
        connection.request("GET", "/announce")
        response = connection.getresponse()
        assert response.status == 200
        assert response.read()[:2] == b"d1"
    connection.close()


def test_silent_and_half_requests_block_nobody(start: Start) -> None:
    """Connections that say little or nothing don't hold up others."""
    server = start("--open", NARSWARM_TRACKER_THREADS="2")
    sockets = [
        socket.create_connection(("127.0.0.1", server.ports[0]), timeout=DEADLINE)
        for _ in range(20)
    ]
    assert server.announce("left=0")[b"complete"] == 1
    for sock in sockets:
        sock.close()


def test_closed_tracker(start: Start) -> None:
    """Nothing but the index is tracked, and who asks is told to come back in minutes."""
    server = start()
    assert server.announce() == {
        b"failure reason": b"info_hash: is not in this tracker's index",
        b"interval": 300,
        b"retry in": 5,
    }
    zero = {b"complete": 0, b"downloaded": 0, b"downloaders": 0, b"incomplete": 0}
    assert server.scrape(HASH) == {
        b"files": {HASH: zero},
        b"flags": {b"min_request_interval": 90},
    }


def test_trusted_proxy(start: Start) -> None:
    """Behind a proxy that is trusted, its header says who asks."""
    server = start("--open", NARSWARM_TRACKER_TRUSTED_PROXIES="127.0.0.1")
    connection = http.client.HTTPConnection("127.0.0.1", server.ports[0], timeout=DEADLINE)
    target = f"/announce?{_missing('')}"
    connection.request("GET", target, headers={"X-Forwarded-For": "6.6.6.6, 198.51.100.7"})
    assert b"11:external ip4:\xc6\x33\x64\x07" in connection.getresponse().read()
    connection.close()
    assert server.announce() == {
        b"failure reason": b"X-Forwarded-For: the proxy did not name the client"
    }


def test_untrusted_header(shared: Server) -> None:
    """Anybody else can write what they like into it."""
    connection = http.client.HTTPConnection("127.0.0.1", shared.ports[1], timeout=DEADLINE)
    headers = {"X-Forwarded-For": "198.51.100.7", "X-Real-IP": "198.51.100.7"}
    connection.request("GET", f"/announce?{_missing('')}&left=0", headers=headers)
    assert b"11:external ip4:\x7f\0\0\1" in connection.getresponse().read()
    connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop(start: Start, number: signal.Signals) -> None:
    """It ends when it is told to, with success."""
    server = start()
    server.announce()
    assert server.stop(number) == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2])
def test_signals_that_would_split_the_swarms(start: Start, number: signal.Signals) -> None:
    """There is one worker, before and after the signals that tell gunicorn to have others."""
    server = start("--open")
    server.announce("left=0")
    before = _children(server)
    server.process.send_signal(number)
    for port in range(2, 12):
        assert server.announce("left=0", port)[b"complete"] == port
    assert _children(server) == before


def _children(server: Server) -> list[str]:
    pid = server.process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _fails(directory: Path, *flags: str) -> tuple[int, str]:
    """Run a tracker that can't start; its exit code and complaint."""
    program = "from tracker.cli import main; main()"
    finished = subprocess.run(
        [sys.executable, "-c", program, "serve", "--data", str(directory), *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return finished.returncode, finished.stderr


def test_port_in_use(start: Start, tmp_path: Path) -> None:
    """A second tracker says why it can't start, at once."""
    address = f"127.0.0.1:{start().ports[0]}"
    code, complaint = _fails(tmp_path / "other", "--listen", address)
    assert (code, complaint.partition(": ")[2]) == (9, f"{address}: is in use\n")


def test_data_in_use(start: Start, tmp_path: Path) -> None:
    """Two trackers never share a directory."""
    start()
    code, complaint = _fails(tmp_path / "data", "--listen", "127.0.0.1:0")
    assert code == 9
    assert complaint.partition(": ")[2] == f"{tmp_path / 'data'}: is in use by another tracker\n"


def _publishable(signer: KeyPair, payload: bytes, number: int = 1) -> tuple[Metainfo, bytes]:
    """A torrent of a payload, and the narinfo of an item that it claims to carry."""
    nar_hash = hashlib.sha256(b"%d" % number + payload).digest()
    unsigned = narinfo.compose(f"/gnu/store/{number:032}-x", nar_hash, len(payload), [])
    raw = narinfo.sign(unsigned, signer, "example.org")
    source = narinfo.Source("https://ci.guix.gnu.org/nar/zstd/x", "zstd", 10)
    hasher = PieceHasher()
    hasher.update(payload)
    meta = Metainfo.of(file_name(nar_hash), hasher.finish())
    return meta, narinfo.with_sources(raw, [source])


def _acl(directory: Path, signer: KeyPair) -> Path:
    path = directory / "acl"
    path.write_bytes(render([sexp.parse(signer.public)]))
    return path


def test_publish_kill_and_restart(start: Start, tmp_path: Path, signer: KeyPair) -> None:
    """What was published is found through our client, also after SIGKILL."""
    acl = _acl(tmp_path, signer)
    server = start("--acl", str(acl))
    key = PublisherKey.load_or_create(tmp_path / "publisher.pem")
    items = [_publishable(signer, b"payload", number) for number in range(1, 6)]
    for restart in range(2):
        base = f"http://127.0.0.1:{server.ports[0]}"
        with HttpClient(environ={}) as client:
            index = TrackerIndex(client, base)
            for meta, raw in items:
                sent = index.publish(key, meta.nar_hash, meta.encode(), raw, time.time())
                assert sent is (restart == 0)
                entry = index.lookup(meta.nar_hash)
                assert entry is not None
                (torrent,) = entry.torrents
                hashes = (torrent.infohash_v1, torrent.infohash_v2)
                assert hashes == (meta.infohash_v1, meta.infohash_v2)
                found = index.torrent(meta.nar_hash)
                assert found == meta.encode([f"{base}/announce"])
                assert metainfo.decode(found, "x") == meta
                answer = client.request("GET", f"{base}/{narinfo.parse(raw).hash_part}.narinfo")
                assert answer.body == raw
            assert index.lookup(bytes(32)) is None
            meta, raw = items[0]
            with pytest.raises(RefusedError) as caught:
                index.publish(key, items[1][0].nar_hash, meta.encode(), raw, time.time())
            assert caught.value.status == 409
            with pytest.raises(RefusedError) as caught:
                index.publish(key, meta.nar_hash, meta.encode(), raw, time.time() - 400)
            assert caught.value.status == 401
        server.announce(f"info_hash={quote(items[0][0].infohash_v1)}&left=0")
        if not restart:
            server.stop(signal.SIGKILL)
            server = start("--acl", str(acl))


def test_acl_that_changes(start: Start, tmp_path: Path, signer: KeyPair) -> None:
    """The list of keys is the file's at the time of publishing."""
    acl = tmp_path / "acl"
    server = start("--acl", str(acl))
    meta, raw = _publishable(signer, b"payload")
    key = PublisherKey.generate()
    with HttpClient(environ={}) as client:
        index = TrackerIndex(client, f"http://127.0.0.1:{server.ports[0]}")
        with pytest.raises(RefusedError) as caught:
            index.publish(key, meta.nar_hash, meta.encode(), raw, time.time())
        assert caught.value.status == 403
        assert str(caught.value).endswith(f"{acl}: can't be read, so nothing can be published")
        _acl(tmp_path, signer)
        assert index.publish(key, meta.nar_hash, meta.encode(), raw, time.time())


def test_large_torrents(start: Start, tmp_path: Path, signer: KeyPair) -> None:
    """The torrent of a large payload passes; one beyond the limit is refused, not read."""
    server = start("--acl", str(_acl(tmp_path, signer)))
    meta, raw = _publishable(signer, os.urandom(1 << 16) * 1024)
    base = f"http://127.0.0.1:{server.ports[0]}"
    with HttpClient(environ={}) as client:
        index = TrackerIndex(client, base)
        assert index.publish(
            PublisherKey.generate(), meta.nar_hash, meta.encode(), raw, time.time()
        )
    connection = http.client.HTTPConnection("127.0.0.1", server.ports[0], timeout=DEADLINE)
    connection.putrequest("PUT", f"/v1/nar/{base32.encode(meta.nar_hash)}")
    connection.putheader("Content-Length", str((4 << 20) + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


class Client:
    """A libtorrent session with one torrent, which knows nothing but its tracker."""

    def __init__(self, directory: Path, torrent: bytes, payload: tuple[str, bytes] | None) -> None:
        import libtorrent as lt

        directory.mkdir()
        if payload is not None:
            (directory / payload[0]).write_bytes(payload[1])
        self.session = lt.session(
            {
                "listen_interfaces": "127.0.0.1:0",
                "enable_dht": False,
                "enable_lsd": False,
                "enable_upnp": False,
                "enable_natpmp": False,
                "enable_ip_notifier": False,
                "allow_multiple_connections_per_ip": True,
                "enable_outgoing_utp": False,
                "stop_tracker_timeout": 60,
            }
        )
        parameters = lt.load_torrent_buffer(torrent)
        parameters.save_path = str(directory)
        self.handle = self.session.add_torrent(parameters)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Look again after each event, until something is so."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "it never came to pass"
            self.session.wait_for_alert(50)
            self.session.pop_alerts()


def test_libtorrent_clients_meet(start: Start, tmp_path: Path, signer: KeyPair) -> None:
    """Two real clients find each other through the tracker alone, transfer, and say goodbye.

    libtorrent announces both infohashes of a hybrid. The swarm whose first announce is still under
    way when the download ends may hear of that only with the next one.
    """
    server = start("--acl", str(_acl(tmp_path, signer)))
    payload = os.urandom(1 << 16) * 5 + b"end"
    meta, raw = _publishable(signer, payload)
    with HttpClient(environ={}) as client:
        index = TrackerIndex(client, f"http://127.0.0.1:{server.ports[0]}")
        index.publish(PublisherKey.generate(), meta.nar_hash, meta.encode(), raw, time.time())
        torrent = index.torrent(meta.nar_hash)
    assert torrent is not None
    wire_hashes = (meta.infohash_v1, meta.infohash_v2[:20])

    def counts(name: bytes) -> list[int]:
        files = server.scrape(*wire_hashes)[b"files"]
        return [files[info_hash][name] for info_hash in wire_hashes]

    seed = Client(tmp_path / "seed", torrent, (meta.name, payload))
    seed.wait_until(lambda: counts(b"complete") == [1, 1])
    leecher = Client(tmp_path / "leecher", torrent, None)
    leecher.wait_until(lambda: 2 in counts(b"complete"))
    # What has come may be on its way to the disk.
    leecher.wait_until(lambda: (tmp_path / "leecher" / meta.name).read_bytes() == payload)
    assert max(counts(b"downloaded")) == 1
    for each in (seed, leecher):
        each.session.pause()
    leecher.wait_until(lambda: counts(b"complete") + counts(b"incomplete") == [0] * 4)
