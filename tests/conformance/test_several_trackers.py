# SPDX-License-Identifier: GPL-3.0-or-later
"""Two trackers with one Redis and one PostgreSQL, and what happens when one of them all goes away.

docs/tracker.md, "Several trackers".
"""

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
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from narswarm import base32, bencoding, gcrypt, metainfo, narinfo, sexp
from narswarm.acl import render
from narswarm.gcrypt import KeyPair
from narswarm.httpclient import HttpClient
from narswarm.httpsig import PublisherKey
from narswarm.merkle import PieceHasher
from narswarm.payload import file_name
from narswarm.trackerclient import TrackerIndex
from tests import engines
from tests.engines import Engine
from tests.processes import ROOT, end, start_tracker

pytestmark = pytest.mark.conformance

DEADLINE = 120.0
COMMAND = [sys.executable, "-c", "from tracker.cli import main; main()"]


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    give_up = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.02)


class Tracker:
    """A tracker with a directory of its own."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        directory.mkdir()
        self._directory = directory
        self._environment = environment
        self.process: subprocess.Popen[str] | None = None
        self.port = 0

    def start(self) -> None:
        """Serve."""
        self.process, (self.port,) = start_tracker(
            self._directory, ["127.0.0.1:0"], **self._environment
        )

    def kill(self) -> None:
        """End it without a word."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE)

    def stop(self) -> None:
        """End it if it runs."""
        if self.process is not None:
            end(self.process)

    def get(self, target: str) -> tuple[int, bytes]:
        """One request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def announce(self, info_hash: bytes, port: int, more: str = "left=1") -> dict[bytes, Any]:
        """One announce over HTTP."""
        query = f"info_hash={quote(info_hash)}&peer_id={'p' * 20}&port={port}&{more}"
        reply = bencoding.decode(self.get(f"/announce?{query}")[1], "reply")
        assert isinstance(reply, dict)
        return reply

    def announce_udp(self, info_hash: bytes, port: int) -> bytes:
        """What follows action and transaction in the reply to an announce over UDP."""
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(DEADLINE)
            client.connect(("127.0.0.1", self.port))
            client.send(bytes.fromhex("0000041727101980 00000000 00000001"))
            connection = client.recv(99)[8:]
            packet = connection + bytes.fromhex("00000001 00000002") + info_hash + b"p" * 20
            packet += bytes(8) + b"\0" * 7 + b"\1" + bytes(8) + bytes(12) + b"\xff" * 4
            client.send(packet + port.to_bytes(2))
            reply = client.recv(2048)
        assert reply[:8] == bytes.fromhex("00000001 00000002"), reply
        return reply[8:]

    def run(self, *arguments: str) -> str:
        """A command of its operator."""
        data = ["--data", str(self._directory / "data")]
        return subprocess.run(
            [*COMMAND, *arguments, *data],
            env={**os.environ, "PYTHONPATH": str(ROOT), **self._environment},
            check=True,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        ).stdout

    def wait_for(self, info_hash: bytes, *, listed: bool = True) -> None:
        """Wait until it tracks an infohash, or until it doesn't."""
        until(lambda: (b"failure reason" in self.announce(info_hash, 1, "event=stopped")) != listed)

    def wait_until_well(self) -> None:
        """Wait until it says that all of it works."""
        until(lambda: self.get("/healthz")[0] == 200)


@pytest.fixture(name="redis", scope="module")
def redis_fixture() -> Iterator[Engine]:
    """A Redis that tests may restart."""
    with engines.redis_server() as engine:
        yield engine


@pytest.fixture(name="postgres", scope="module")
def postgres_fixture() -> Iterator[Engine]:
    """A PostgreSQL that tests may restart."""
    with engines.postgres_server() as engine:
        yield engine


@pytest.fixture(name="signer", scope="module")
def signer_fixture() -> KeyPair:
    """The key of a substitute server."""
    return gcrypt.generate_key()


@pytest.fixture(name="trackers", scope="module")
def trackers_fixture(
    tmp_path_factory: pytest.TempPathFactory, redis: Engine, postgres: Engine, signer: KeyPair
) -> Iterator[list[Tracker]]:
    """Two trackers."""
    directory = tmp_path_factory.mktemp("trackers")
    acl, empty = directory / "acl", directory / "empty.toml"
    acl.write_bytes(render([sexp.parse(signer.public)]))
    empty.write_text("")
    environment = {
        "NARSWARM_CONFIG": str(empty),
        "NARSWARM_TRACKER_ACL": str(acl),
        "NARSWARM_TRACKER_INDEX": postgres.url,
        "NARSWARM_TRACKER_SWARMS": redis.url,
    }
    made = [Tracker(directory / name, environment) for name in ("one", "other")]
    try:
        for tracker in made:
            tracker.start()
        yield made
    finally:
        for tracker in made:
            tracker.stop()


@pytest.fixture(name="publish")
def publish_fixture(signer: KeyPair) -> Callable[[Tracker, int], tuple[bytes, list[bytes]]]:
    """Publishes a NAR at a tracker; gives its hash and the infohashes on the wire."""
    publisher = PublisherKey.generate()

    def publish(tracker: Tracker, number: int) -> tuple[bytes, list[bytes]]:
        nar_hash = hashlib.sha256(b"%d" % number).digest()
        hasher = PieceHasher()
        hasher.update(b"payload %d" % number)
        meta = metainfo.Metainfo.of(file_name(nar_hash), hasher.finish())
        unsigned = narinfo.compose(f"/gnu/store/{number:032}-item", nar_hash, 1000, [])
        signed = narinfo.sign(unsigned, signer, "example.org")
        client = HttpClient(timeout=DEADLINE)
        try:
            index = TrackerIndex(client, f"http://127.0.0.1:{tracker.port}")
            index.publish(publisher, nar_hash, meta.encode(), signed, time.time())
        finally:
            client.close()
        return nar_hash, [meta.infohash_v2[:20], meta.infohash_v1]

    return publish


Publish = Callable[[Tracker, int], tuple[bytes, list[bytes]]]


def test_shared(trackers: list[Tracker], publish: Publish) -> None:
    """What is published at one is tracked at the other, and its peers are the same."""
    one, other = trackers
    nar_hash, (info_hash, _) = publish(one, 1)
    other.wait_for(info_hash)
    one.announce(info_hash, 7, "left=0")
    assert other.announce(info_hash, 8)[b"peers"] == b"\x7f\0\0\1\0\x07"
    reply = one.announce_udp(info_hash, 9)
    assert reply[4:12] == bytes.fromhex("00000002 00000001")
    assert {reply[at : at + 6] for at in (12, 18)} == {b"\x7f\0\0\1\0\x07", b"\x7f\0\0\1\0\x08"}
    status, body = other.get(f"/v1/nar/{base32.encode(nar_hash)}")
    assert (status, json.loads(body)["torrents"][0]["seeders"]) == (200, 1)
    assert json.loads(other.run("stats", "--json"))["swarms"] >= 1


def test_commands(trackers: list[Tracker], publish: Publish) -> None:
    """What an operator says to one holds at both, at once and without a restart."""
    one, other = trackers
    _, (gone, _) = publish(one, 2)
    _, (stays, _) = publish(one, 3)
    for info_hash in (gone, stays):
        other.wait_for(info_hash)
    nar = f"{2:032}-item"
    assert other.run("withdraw", nar).startswith("withdrawn: sha256:")
    for tracker in trackers:
        tracker.wait_for(gone, listed=False)
    assert other.announce(gone, 1)[b"retry in"] == b"never"
    one.run("block", "--infohash", stays.hex())
    other.wait_for(stays, listed=False)
    assert len(json.loads(other.run("blocks", "--json"))) == 4
    other.run("unblock", "--infohash", stays.hex())
    one.wait_for(stays)
    assert f"{3:032}-item" in one.run("export")
    assert "postgresql://tracker@127.0.0.1" in one.run("check-config")


def test_one_is_killed(trackers: list[Tracker], publish: Publish) -> None:
    """Clients go on with the other one, and meet those of the one that died."""
    one, other = trackers
    _, (info_hash, _) = publish(one, 4)
    one.announce(info_hash, 7, "left=0")
    one.kill()
    try:
        other.wait_for(info_hash)
        assert other.announce(info_hash, 8)[b"peers"] == b"\x7f\0\0\1\0\x07"
        _, (later, _) = publish(other, 5)
    finally:
        one.stop()
        one.start()
    one.wait_for(later)
    assert one.announce(info_hash, 8)[b"complete"] == 1


def test_redis_restarts(trackers: list[Tracker], publish: Publish, redis: Engine) -> None:
    """Announces are refused at once meanwhile, and go on by themselves."""
    one, other = trackers
    nar_hash, (info_hash, _) = publish(one, 6)
    other.wait_for(info_hash)
    one.announce(info_hash, 7, "left=0")
    redis.stop()
    try:
        for tracker in trackers:
            assert tracker.announce(info_hash, 8) == {
                b"failure reason": b"tracker: does not reach its swarms now",
                b"interval": 60,
                b"retry in": 1,
            }
            status, body = tracker.get("/healthz")
            assert (status, body.startswith(b"Redis: does not answer")) == (503, True)
            assert tracker.get(f"/v1/nar/{base32.encode(nar_hash)}")[0] == 200
    finally:
        redis.start()
    for tracker in trackers:
        tracker.wait_until_well()
    one.announce(info_hash, 7, "left=0")
    assert other.announce(info_hash, 8)[b"peers"] == b"\x7f\0\0\1\0\x07"


def test_postgres_restarts(trackers: list[Tracker], publish: Publish, postgres: Engine) -> None:
    """Announces of what was listed go on meanwhile; the index comes back by itself."""
    one, other = trackers
    nar_hash, (info_hash, _) = publish(one, 7)
    other.wait_for(info_hash)
    postgres.stop()
    try:
        for tracker in trackers:
            assert b"failure reason" not in tracker.announce(info_hash, 7)
            assert tracker.get(f"/v1/nar/{base32.encode(nar_hash)}")[0] == 503
            assert tracker.get("/healthz")[0] == 503
    finally:
        postgres.start()
    for tracker in trackers:
        tracker.wait_until_well()
    _, (later, _) = publish(one, 8)
    other.wait_for(later)
