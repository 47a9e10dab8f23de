# SPDX-License-Identifier: GPL-3.0-or-later
"""A running tracker in its operator's hands: commands, signals, ends; docs/tracker.md."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
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
from narswarm.httpclient import HttpClient
from narswarm.httpsig import PublisherKey
from narswarm.merkle import PieceHasher
from narswarm.payload import file_name
from narswarm.trackerclient import RefusedError, TrackerIndex

pytestmark = pytest.mark.conformance

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 120
PROGRAM = [sys.executable, "-c", "from tracker.cli import main; main()"]
NAR_HASH = hashlib.sha256(b"nar").digest()


class Tracker:
    """A tracker's directory, the process that serves it, and its commands."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.config = directory / "tracker.toml"
        self.config.write_text("")
        self.acl = directory / "acl"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NARSWARM_CONFIG": str(self.config),
        }
        self.process: subprocess.Popen[str] | None = None
        self.port = 0

    def start(self) -> None:
        """Serve, on another port each time."""
        flags = ["--listen", "127.0.0.1:0", "--data", str(self.data), "--acl", str(self.acl)]
        process = self.process = subprocess.Popen(
            [*PROGRAM, "serve", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            start_new_session=True,
            text=True,
        )
        assert process.stdout is not None
        match = re.match(r"tracker: listening on http://\S+:(\d+)\n", process.stdout.readline())
        assert match
        self.port = int(match[1])

    def end(self, number: signal.Signals) -> None:
        """Send a signal, to all its processes if it kills, and wait."""
        process, self.process = self.process, None
        assert process is not None
        if number is signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        process.communicate(timeout=DEADLINE)

    def says(self, text: str) -> None:
        """Wait until it says a line on standard error."""
        assert self.process is not None
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line == text:
                return
        pytest.fail(f"the tracker ended without saying {text!r}")

    def run(self, *arguments: str) -> str:
        """Run a command on its directory; return what it wrote."""
        return subprocess.run(
            [*PROGRAM, *arguments, "--data", str(self.data)],
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        ).stdout

    def get(self, target: str) -> tuple[int, bytes]:
        """One request from 127.0.0.1."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def announce(self, info_hash: bytes, more: str = "") -> dict[bytes, Any]:
        """One announce."""
        query = f"info_hash={quote(info_hash)}&peer_id={'p' * 20}&port=1&{more}"
        reply = bencoding.decode(self.get(f"/announce?{query}")[1], "reply")
        assert isinstance(reply, dict)
        return reply


@pytest.fixture(name="tracker")
def tracker_fixture(tmp_path: Path) -> Iterator[Tracker]:
    """A tracker that isn't started, and ends with the test."""
    tracker = Tracker(tmp_path)
    yield tracker
    if tracker.process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(tracker.process.pid, signal.SIGKILL)
        tracker.process.communicate(timeout=DEADLINE)


Publish = Callable[[], metainfo.Metainfo]


@pytest.fixture(name="publish")
def publish_fixture(tracker: Tracker) -> Publish:
    """Publishes one NAR, each time with the same words."""
    signer, publisher = gcrypt.generate_key(), PublisherKey.generate()
    tracker.acl.write_bytes(render([sexp.parse(signer.public)]))
    hasher = PieceHasher()
    hasher.update(b"payload")
    meta = metainfo.Metainfo.of(file_name(NAR_HASH), hasher.finish())
    unsigned = narinfo.compose(f"/gnu/store/{1:032}-item", NAR_HASH, 1000, [])
    signed = narinfo.sign(unsigned, signer, "example.org")

    def publish() -> metainfo.Metainfo:
        client = HttpClient(timeout=DEADLINE)
        index = TrackerIndex(client, f"http://127.0.0.1:{tracker.port}")
        try:
            index.publish(publisher, NAR_HASH, meta.encode(), signed, time.time())
        finally:
            client.close()
        return meta

    return publish


def test_withdrawn_at_once(tracker: Tracker, publish: Publish) -> None:
    """One command and no restart: the NAR is gone, refused, and comes back when it may."""
    tracker.start()
    meta = publish()
    page = f"/v1/nar/{base32.encode(NAR_HASH)}"
    assert tracker.announce(meta.infohash_v1)[b"incomplete"] == 1
    assert tracker.get(page)[0] == 200
    tracker.run("withdraw", f"{1:032}-item", "--reason", "a mistake")
    for info_hash in (meta.infohash_v1, meta.infohash_v2[:20]):
        assert tracker.announce(info_hash)[b"retry in"] == b"never"
    assert tracker.get(page)[0] == 404
    assert tracker.get(f"/{1:032}.narinfo")[0] == 404
    with pytest.raises(RefusedError):
        publish()
    tracker.end(signal.SIGKILL)
    tracker.start()
    assert tracker.announce(meta.infohash_v1)[b"retry in"] == b"never"
    tracker.run("unblock", "--nar", base32.encode(NAR_HASH))
    assert tracker.announce(meta.infohash_v1)[b"retry in"] == 5
    publish()
    assert tracker.announce(meta.infohash_v1)[b"incomplete"] == 1


def test_blocked_address(tracker: Tracker, publish: Publish) -> None:
    """Whoever is blocked gets nothing from the next request on."""
    tracker.start()
    meta = publish()
    tracker.run("block", "--address", "127.0.0.0/8")
    assert tracker.announce(meta.infohash_v1) == {
        b"failure reason": b"address: is blocked by this tracker's operator",
        b"interval": 86400,
        b"retry in": b"never",
    }
    assert tracker.get("/healthz")[0] == 403
    tracker.run("unblock", "--address", "127.0.0.0/8")
    assert tracker.get("/healthz") == (200, b"ok\n")


def test_numbers(tracker: Tracker, publish: Publish) -> None:
    """Metrics, statistics and export agree with what clients did."""
    tracker.start()
    meta = publish()
    tracker.announce(meta.infohash_v1, "event=completed")
    text = tracker.get("/metrics")[1].decode()
    for line in (
        (
            'narswarm_tracker_requests_total{action="announce",family="ipv4",outcome="ok",'
            'protocol="http"} 1.0'
        ),
        'narswarm_tracker_peers{family="ipv4",role="seeder"} 1.0',
        "narswarm_tracker_index_torrents 1.0",
    ):
        assert f"{line}\n" in text
    stats = json.loads(tracker.run("stats", "--json"))
    assert (stats["seeders_ipv4"], stats["index"]["nars"]) == (1, 1)
    (torrent,) = json.loads(tracker.run("export"))["torrents"]
    assert (torrent["seeders"], torrent["downloaded"]) == (1, 1)


def test_downloads_outlast_the_process(tracker: Tracker, publish: Publish) -> None:
    """A tracker that is stopped writes down what it counted, and goes on from there."""
    tracker.start()
    meta = publish()
    tracker.announce(meta.infohash_v1, "event=completed")
    tracker.end(signal.SIGTERM)
    tracker.start()
    assert tracker.announce(meta.infohash_v1)[b"downloaded"] == 1
    tracker.end(signal.SIGKILL)
    tracker.start()
    assert tracker.announce(meta.infohash_v1, "event=completed")[b"downloaded"] == 2


def test_reload(tracker: Tracker, publish: Publish) -> None:
    """SIGHUP reads settings again without losing a peer; what it can't change is said."""
    tracker.start()
    meta = publish()
    assert tracker.announce(meta.infohash_v1)[b"min interval"] == 45
    tracker.config.write_text("[tracker]\nleecher_interval = 20\nthreads = 3\n")
    assert tracker.process is not None
    tracker.process.send_signal(signal.SIGHUP)
    tracker.says("tracker: reloaded; settings that changed: leecher_interval\n")
    tracker.says("tracker: these take a restart: threads\n")
    reply = tracker.announce(meta.infohash_v1)
    assert (reply[b"min interval"], reply[b"incomplete"]) == (10, 1)
    tracker.config.write_text("[tracker]\nthreads = 0\n")
    tracker.process.send_signal(signal.SIGHUP)
    assert tracker.process.stderr is not None
    line = tracker.process.stderr.readline()
    assert line.startswith("tracker: settings stay as they are: ")
    assert tracker.announce(meta.infohash_v1)[b"min interval"] == 10


def test_check_config(tracker: Tracker) -> None:
    """It shows what would be used and starts nothing."""
    tracker.config.write_text("[tracker]\ninterval = '10 min'\n")
    shown = tracker.run("check-config")
    assert "interval = 600\n" in shown
    assert not tracker.data.exists()
