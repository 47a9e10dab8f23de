# SPDX-License-Identifier: GPL-3.0-or-later
"""Holdings and what is wanted, of the real program over real sockets; docs/tracker-wire.md."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from narswarm import base32, gcrypt, httpsig, metainfo, narinfo, sexp
from narswarm.acl import render
from narswarm.gcrypt import KeyPair
from narswarm.httpclient import HttpClient, Response
from narswarm.httpsig import PublisherKey
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import file_name
from narswarm.trackerclient import (
    HoldingsReply,
    LaterError,
    PreparingError,
    StaleHoldingsError,
    TrackerIndex,
    WantedNar,
    pack_hashes,
)
from tests import engines
from tests.processes import end, start_tracker

pytestmark = pytest.mark.conformance

DEADLINE = 120
POLLS = 200
THREADS = 16


class Meter:
    """A client that remembers how much it sent."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self.sent: list[int] = []

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int = 1 << 20,
        timeout: float | None = None,
    ) -> Response:
        """Make a request."""
        fields = sum(len(name) + len(value) + 4 for name, value in (headers or {}).items())
        self.sent.append(len(body or b"") + fields)
        return self._client.request(
            method, url, headers=headers, body=body, max_bytes=max_bytes, timeout=timeout
        )


@dataclass
class Tracker:
    """A running tracker, and what asks it."""

    process: subprocess.Popen[str]
    port: int
    index: TrackerIndex
    meter: Meter

    def hold(
        self, key: PublisherKey, base: int, generation: int, added: bytes, removed: bytes = b""
    ) -> HoldingsReply:
        """Say what a key holds."""
        return self.index.holdings(
            key,
            base=base,
            generation=generation,
            added=added,
            removed=removed,
            port=6881,
            now=time.time(),
        )

    def get(self, target: str) -> tuple[int, Mapping[str, str], bytes]:
        """One request on a new connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """One of its numbers."""
        text = self.get("/metrics")[2].decode()
        match = re.search(rf"^narswarm_tracker_{name} (.*)$", text, re.MULTILINE)
        assert match
        return float(match[1])

    def until_parked(self, number: int) -> None:
        """Wait until so many polls wait."""
        deadline = time.monotonic() + DEADLINE
        while self.metric("parked_polls") != number:
            assert time.monotonic() < deadline, self.metric("parked_polls")

    def poll(self, key: PublisherKey, wait: int = 50, since: int = 0) -> socket.socket:
        """Begin to wait for something to be wanted."""
        headers = httpsig.sign_request(key, "GET", "/v1/wanted", b"", time.time())
        lines = [f"{name}: {value}" for name, value in headers.items()]
        request = f"GET /v1/wanted?since={since}&wait={wait} HTTP/1.1"
        sock = socket.create_connection(("127.0.0.1", self.port), DEADLINE)
        sock.sendall("\r\n".join([request, "Host: x", *lines, "", ""]).encode())
        return sock


@pytest.fixture(scope="module", name="signer")
def signer_fixture() -> KeyPair:
    """The key of a substitute server."""
    return gcrypt.generate_key()


@pytest.fixture(name="tracker")
def tracker_fixture(tmp_path: Path, signer: KeyPair) -> Iterator[Tracker]:
    """A closed tracker."""
    acl = tmp_path / "acl"
    acl.write_bytes(render([sexp.parse(signer.public)]))
    flags = ("--acl", str(acl), "--no-udp")
    with ExitStack() as stack:
        threads = {"NARSWARM_TRACKER_THREADS": str(THREADS)}
        process, (port,) = start_tracker(tmp_path, ["127.0.0.1:0"], *flags, **threads)
        stack.callback(end, process)
        client = stack.enter_context(HttpClient(DEADLINE * 2, environ={}))
        meter = Meter(client)
        index = TrackerIndex(meter, f"http://127.0.0.1:{port}", timeout=DEADLINE)
        yield Tracker(process, port, index, meter)


@pytest.fixture(name="pair")
def pair_fixture(tmp_path: Path) -> Iterator[tuple[Tracker, Tracker]]:
    """Two trackers that share what they are told through one Redis."""
    with ExitStack() as stack:
        redis = stack.enter_context(engines.redis_server())
        started = []
        for number in range(2):
            directory = tmp_path / f"{number}"
            directory.mkdir()
            process, (port,) = start_tracker(
                directory, ["127.0.0.1:0"], "--no-udp", NARSWARM_TRACKER_SWARMS=redis.url
            )
            stack.callback(end, process)
            started.append((process, port))
        meter = Meter(stack.enter_context(HttpClient(DEADLINE * 2, environ={})))
        one, other = (
            Tracker(
                process,
                port,
                TrackerIndex(meter, f"http://127.0.0.1:{port}", timeout=DEADLINE),
                meter,
            )
            for process, port in started
        )
        yield one, other


def _answer(sock: socket.socket) -> dict[str, Any]:
    """The complete answer on a connection that is closed after it."""
    with sock, closing(http.client.HTTPResponse(sock)) as response:
        response.begin()
        assert response.status == 200, response.read()
        assert response.getheader("Connection") == "close"
        assert response.getheader("Content-Type") == "application/json"
        answer = json.loads(response.read())
        assert sock.recv(1) == b""
    assert isinstance(answer, dict)
    return answer


def _hash(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def _text(nar_hash: bytes) -> str:
    return base32.encode(nar_hash)


def test_a_hundred_thousand_items(tracker: Tracker) -> None:
    """All items are one request, and from then on a request of a few hundred bytes."""
    key = PublisherKey.generate()
    rng = random.Random(1)  # noqa: S311 - the same at each run
    hashes = [rng.randbytes(32) for _ in range(100_000)]
    assert tracker.hold(key, 0, 1, pack_hashes(hashes)) == HoldingsReply(1, 100_000, 1800)
    assert tracker.meter.sent[-1] < 100_000 * 32 + 1000
    assert tracker.hold(key, 1, 1, b"") == HoldingsReply(1, 100_000, 1800)
    assert tracker.meter.sent[-1] < 600
    assert tracker.hold(key, 1, 2, _hash(1), hashes[0]) == HoldingsReply(2, 100_000, 1800)
    assert tracker.meter.sent[-1] < 700
    assert (tracker.metric("holders"), tracker.metric("held_items")) == (1, 100_000)
    for nar_hash, holders in ((hashes[0], 0), (hashes[1], 1), (_hash(1), 1)):
        status, headers, body = tracker.get(f"/v1/nar/{_text(nar_hash)}")
        assert status == (202 if holders else 404)
        assert headers.get("Retry-After") == ("2" if holders else None)
        if holders:
            assert json.loads(body) == {
                "nar_hash": base32.format_hash(nar_hash),
                "nar_size": None,
                "torrents": [],
                "holders": 1,
            }
    assert tracker.metric("wanted") == 0


def test_another_list_than_thought(tracker: Tracker) -> None:
    """Who changes a list that the tracker hasn't is told which it has; all of it comes seldom."""
    key = PublisherKey.generate()
    with pytest.raises(StaleHoldingsError) as caught:
        tracker.hold(key, 3, 4, _hash(1))
    assert caught.value.generation == 0
    with pytest.raises(StaleHoldingsError) as caught:
        tracker.index.wanted(key, 0, 0, time.time())
    assert caught.value.generation == 0
    tracker.hold(key, 0, 4, _hash(1))
    with pytest.raises(StaleHoldingsError) as caught:
        tracker.hold(key, 3, 5, _hash(2))
    assert caught.value.generation == 4
    with pytest.raises(LaterError) as later:
        tracker.hold(key, 0, 5, pack_hashes([_hash(1), _hash(2)]))
    assert 0 < later.value.retry_after <= 60


def test_from_wanted_to_seeded(tracker: Tracker, signer: KeyPair) -> None:
    """A torrent that doesn't exist yet is asked for, made, published, and then no more wanted."""
    payload = b"payload"
    nar_hash = hashlib.sha256(payload).digest()
    unsigned = narinfo.compose(f"/gnu/store/{'1' * 32}-x", nar_hash, len(payload), [])
    raw = narinfo.sign(unsigned, signer, "example.org")
    hasher = PieceHasher()
    hasher.update(payload)
    meta = Metainfo.of(file_name(nar_hash), hasher.finish())
    index, key = tracker.index, PublisherKey.generate()
    assert index.torrent(nar_hash) is None
    tracker.hold(key, 0, 1, pack_hashes([nar_hash, _hash(1)]))
    with pytest.raises(PreparingError) as caught:
        index.torrent(nar_hash)
    assert caught.value.retry_after == 2
    cursor, wanted = index.wanted(key, 0, 50, time.time())
    assert wanted == (WantedNar(nar_hash, 1),)
    assert index.wanted(key, cursor, 0, time.time()) == (cursor, ())
    assert index.publish(key, nar_hash, meta.encode(), raw, time.time())
    torrent = index.torrent(nar_hash)
    assert torrent is not None
    assert metainfo.decode(torrent, "torrent").infohash_v2 == meta.infohash_v2
    assert index.wanted(key, 0, 0, time.time()).wanted == (WantedNar(nar_hash, 2),)
    entry = index.lookup(nar_hash)
    assert entry is not None
    assert (entry.holders, len(entry.torrents)) == (1, 1)
    announce = f"/announce?info_hash={quote(meta.infohash_v1)}&peer_id={'p' * 20}&port=1&left=0"
    assert tracker.get(announce)[0] == 200
    assert index.wanted(key, 0, 0, time.time()).wanted == ()
    assert index.torrent(nar_hash) == torrent
    assert tracker.metric("wanted") == 0
    assert tracker.metric("preparing_answers_total") == 1


def test_many_who_wait(tracker: Tracker) -> None:
    """Far more seeders wait than there are threads; pages are answered, and all are told."""
    keys = [PublisherKey.generate() for _ in range(POLLS)]
    for number, key in enumerate(keys):
        tracker.hold(key, 0, 1, pack_hashes([_hash(1), _hash(number + 2)]))
    with ExitStack() as stack:
        socks = [stack.enter_context(tracker.poll(key)) for key in keys]
        tracker.until_parked(POLLS)
        assert [tracker.get("/healthz")[0] for _ in range(THREADS * 2)] == [200] * THREADS * 2
        with pytest.raises(PreparingError):
            tracker.index.torrent(_hash(7))
        answer = _answer(socks[5])
        found = {"nar_hash": base32.format_hash(_hash(7)), "requests": 1}
        assert answer["wanted"] == [found]
        tracker.until_parked(POLLS - 1)
        socks[5] = stack.enter_context(tracker.poll(keys[5], since=answer["cursor"]))
        tracker.until_parked(POLLS)
        with pytest.raises(PreparingError):
            tracker.index.torrent(_hash(1))
        for number, sock in enumerate(socks):
            wanted = [item["nar_hash"] for item in _answer(sock)["wanted"]]
            assert wanted == [base32.format_hash(_hash(1))], number
        tracker.until_parked(0)


def test_one_poll_a_key(tracker: Tracker) -> None:
    """A newer poll ends the older one, with an empty answer."""
    key = PublisherKey.generate()
    tracker.hold(key, 0, 1, _hash(1))
    with tracker.poll(key) as first:
        tracker.until_parked(1)
        with tracker.poll(key) as second:
            answer = _answer(first)
            assert answer["wanted"] == []
            tracker.until_parked(1)
            with pytest.raises(PreparingError):
                tracker.index.torrent(_hash(1))
            assert len(_answer(second)["wanted"]) == 1


def test_polls_that_end(tracker: Tracker) -> None:
    """After its wait a poll is answered; one whose client left is forgotten at once."""
    key, other = PublisherKey.generate(), PublisherKey.generate()
    for each in (key, other):
        tracker.hold(each, 0, 1, _hash(1))
    with tracker.poll(other):
        tracker.until_parked(1)
    tracker.until_parked(0)
    with tracker.poll(key, wait=1) as sock:
        answer = _answer(sock)
    assert answer["wanted"] == []
    tracker.until_parked(0)


def test_a_stop_answers_who_waits(tracker: Tracker) -> None:
    """SIGTERM ends polls with a proper answer, and the tracker in time."""
    key = PublisherKey.generate()
    tracker.hold(key, 0, 1, _hash(1))
    with tracker.poll(key) as sock:
        tracker.until_parked(1)
        tracker.process.send_signal(signal.SIGTERM)
        assert _answer(sock)["wanted"] == []
    assert tracker.process.wait(DEADLINE) == 0


def test_the_client_waits(tracker: Tracker) -> None:
    """The client's own call returns as soon as something is wanted."""
    key = PublisherKey.generate()
    tracker.hold(key, 0, 1, _hash(1))
    replies: list[Any] = []

    def ask() -> None:
        replies.append(tracker.index.wanted(key, 0, 50, time.time()))

    thread = threading.Thread(target=ask)
    thread.start()
    tracker.until_parked(1)
    assert tracker.get(f"/v1/nar/{_text(_hash(1))}.torrent")[0] == 202
    thread.join(DEADLINE)
    assert replies[0].wanted == (WantedNar(_hash(1), 1),)


def test_two_trackers(pair: tuple[Tracker, Tracker]) -> None:
    """A seeder tells one tracker, waits at another, and hears of what is wanted at the first."""
    one, other = pair
    key = PublisherKey.generate()
    one.hold(key, 0, 1, _hash(1))
    with other.poll(key) as sock:
        other.until_parked(1)
        with pytest.raises(PreparingError):
            one.index.torrent(_hash(1))
        assert _answer(sock)["wanted"] == [
            {"nar_hash": base32.format_hash(_hash(1)), "requests": 1}
        ]
    assert other.hold(key, 1, 2, _hash(2)) == HoldingsReply(2, 2, 1800)
    assert one.hold(key, 2, 2, b"") == HoldingsReply(2, 2, 1800)
    assert one.get(f"/v1/nar/{_text(_hash(2))}")[0] == 202
