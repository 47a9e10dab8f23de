# SPDX-License-Identifier: GPL-3.0-or-later
"""The front and gunicorn together, as the real program has them; docs/tracker-wire.md."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import needs
from tests.processes import end, start_tracker

pytestmark = pytest.mark.conformance

DEADLINE = 120.0
ANNOUNCE = f"/announce?info_hash={'h' * 20}&peer_id={'p' * 20}&left=0&port="
TWO_THREADS = {"NARSWARM_TRACKER_THREADS": "2"}
SLOW = 200


class Server(NamedTuple):
    """A running tracker."""

    process: subprocess.Popen[str]
    port: int

    def connect(self, first: bytes = b"") -> socket.socket:
        """A connection on which something was sent."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)
        sock.sendall(first)
        return sock

    def ask(self, connection: http.client.HTTPConnection, target: str) -> tuple[int, bytes]:
        """Ask on a connection that may be kept: status and body."""
        connection.request("GET", target)
        response = connection.getresponse()
        return response.status, response.read()

    def connection(self) -> http.client.HTTPConnection:
        """A connection for several requests."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)

    def answers(self) -> bool:
        """Whether a page and an announce are answered, each on a new connection."""
        found = []
        for target in ("/healthz", f"{ANNOUNCE}1"):
            with contextlib.closing(self.connection()) as connection:
                found.append(self.ask(connection, target)[0])
        return found == [200, 200]

    def worker(self) -> int:
        """The process that serves."""
        pid = self.process.pid
        (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(worker)


Start = Callable[..., Server]


@pytest.fixture(name="start")
def start_fixture(tmp_path: Path) -> Iterator[Start]:
    """A starter of open trackers with the native engine, which end with the test."""
    needs.native()
    with contextlib.ExitStack() as stack:

        def start(**more: str) -> Server:
            process, ports = start_tracker(tmp_path, ["127.0.0.1:0"], "--open", **more)
            stack.callback(end, process)
            return Server(process, ports[0])

        yield start


@pytest.mark.parametrize(
    ("before", "first"),
    [
        (None, b"GET /healthz HTTP/1.1\r\nHost: x\r\n"),
        (None, b"PUT /v1/nar/x HTTP/1.1\r\nContent-Length: 5\r\n"),
        ("/healthz", b"GET /healthz HTTP/1.1\r\n"),
        (f"{ANNOUNCE}2", b"GET /announce"),
    ],
    ids=["page", "publication", "second page", "second announce"],
)
def test_slow_clients(start: Start, before: str | None, first: bytes) -> None:
    """Many more half requests than there are threads keep nobody from being answered."""
    server = start(**TWO_THREADS)
    with contextlib.ExitStack() as stack:
        for _ in range(SLOW):
            connection = stack.enter_context(contextlib.closing(server.connection()))
            if before is None:
                connection.connect()
            else:
                assert server.ask(connection, before)[0] == 200
            connection.sock.sendall(first)
        assert server.answers()


def test_one_connection_for_everything(start: Start) -> None:
    """A client may ask the front and gunicorn in turns on one connection."""
    server = start(**TWO_THREADS)
    with contextlib.closing(server.connection()) as connection:
        for port in range(1, 20):
            status, body = server.ask(connection, f"{ANNOUNCE}{port}")
            assert (status, body.startswith(b"d8:completei%de" % port)) == (200, True)
            sock = connection.sock
            assert server.ask(connection, "/healthz") == (200, b"ok\n")
            assert server.ask(connection, "/nowhere")[0] == 404
            assert connection.sock is sock


def test_body_in_parts(start: Start) -> None:
    """A body comes as slowly as it likes, and is read to its end."""
    server = start()
    head = f"PUT /v1/nar/{'0' * 52} HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n"
    with server.connect(head.encode()) as sock:
        for _ in range(40):
            sock.sendall(b"x")
        assert sock.recv(12) == b"HTTP/1.1 401"


def test_body_that_nobody_reads(start: Start) -> None:
    """What is left of a body is never taken for a request."""
    server = start()
    hidden = f"GET {ANNOUNCE}7 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(hidden)
    with server.connect(head + hidden) as sock:
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    assert answer.endswith(b"ok\n")
    assert answer.count(b"HTTP/1.1") == 1


def test_no_descriptors(start: Start) -> None:
    """Without descriptors the oldest that wait make room, and who has a request is answered."""
    server = start()
    worker = server.worker()
    most = len(os.listdir(f"/proc/{worker}/fd")) + 20
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (most, most))
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(server.connect(b"GET /"))
        for _ in range(5):
            with contextlib.closing(server.connection()) as connection:
                assert server.ask(connection, f"{ANNOUNCE}1")[0] == 200
    assert server.answers()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_with_clients(start: Start, number: signal.Signals) -> None:
    """Clients that wait for something don't keep the tracker from ending, with success."""
    server = start()
    with contextlib.ExitStack() as stack:
        for first in (b"", b"GET /", f"GET {ANNOUNCE}1 HTTP/1.1\r\n\r\n".encode()):
            stack.enter_context(server.connect(first))
        assert server.answers()
        server.process.send_signal(number)
        assert server.process.wait(DEADLINE) == 0


def test_proxies_that_change(start: Start, tmp_path: Path) -> None:
    """Reloading changes whose X-Forwarded-For is believed, in the front as well."""
    server = start()
    (tmp_path / "empty.toml").write_text('[tracker]\ntrusted_proxies = ["127.0.0.1"]\n')
    headers = {"X-Forwarded-For": "198.51.100.7"}
    with contextlib.closing(server.connection()) as connection:
        connection.request("GET", f"{ANNOUNCE}1", headers=headers)
        assert b"11:external ip4:\x7f\0\0\1" in connection.getresponse().read()
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            connection.request("GET", f"{ANNOUNCE}1", headers=headers)
            if b"11:external ip4:\xc6\x33\x64\x07" in connection.getresponse().read():
                break
        else:
            pytest.fail("the proxy was never believed")
