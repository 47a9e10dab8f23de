# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP front in C over sockets: what it answers, what it passes on, and what bounds it."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from narswarm import bencoding
from tests import needs
from tracker.front import PassedOn
from tracker.native import AVAILABLE, NativeSwarms
from tracker.policy import Policy
from tracker.swarms import Limits

_native: Any = importlib.import_module("tracker._native") if AVAILABLE else None

DEADLINE = 120.0
HASH, PEER = "h" * 20, "p" * 20
TARGET = f"/announce?info_hash={HASH}&peer_id={PEER}&port=1&left=0"
CLOSING = f"GET {TARGET} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
KEEPING = f"GET {TARGET} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
OTHERS = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
MAX_HEAD = 16384


class Running:
    """A front in a thread, on a port of loopback."""

    def __init__(self, **limits: int) -> None:
        self.swarms = NativeSwarms(Limits(), is_open=True, keep_downloads=False)
        self.swarms.decide(Policy())
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.passed_on = PassedOn(self._listener)
        bounds = {
            "connections": 1000,
            "per_address": 1000,
            "head_ms": 120_000,
            "idle_ms": 120_000,
            "write_ms": 120_000,
        }
        self.front = _native.HttpFront(
            self.swarms.core, [(self._listener.fileno(), self.passed_on.pipe)], **bounds | limits
        )
        self._thread = threading.Thread(target=self.front.run)
        self._thread.start()

    def connect(self, first: bytes = b"") -> socket.socket:
        """A connection on which something was sent."""
        sock = socket.create_connection(self._listener.getsockname(), DEADLINE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(first)
        return sock

    def ask(self, request: bytes) -> bytes:
        """All that is answered until the connection ends."""
        with self.connect(request) as sock:
            return read_all(sock)

    def accept(self) -> socket.socket:
        """What was passed on."""
        assert select.select([self.passed_on], [], [], DEADLINE)[0]
        sock, name = self.passed_on.accept()
        assert name == sock.getpeername()
        sock.settimeout(DEADLINE)
        return sock

    def wait_until(self, **numbers: int) -> None:
        """Look at its numbers until they are these."""
        end = time.monotonic() + DEADLINE
        while not numbers.items() <= self.front.numbers().items():
            assert time.monotonic() < end, self.front.numbers()
            time.sleep(0.001)

    def stop(self) -> None:
        """End it; may be called again."""
        self.front.stop()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def close(self) -> None:
        """End it and close everything."""
        self.stop()
        self._listener.close()
        self.passed_on.discard()


Run = Callable[..., Running]


@pytest.fixture(name="run")
def run_fixture() -> Iterator[Run]:
    """Fronts with limits, which end with the test."""
    needs.native()
    with contextlib.ExitStack() as stack:

        def run(**limits: int) -> Running:
            running = Running(**limits)
            stack.callback(running.close)
            return running

        yield run


def read_all(sock: socket.socket) -> bytes:
    """Everything until the other end closes."""
    answer = b""
    while piece := sock.recv(65536):
        answer += piece
    return answer


def read_answers(sock: socket.socket, count: int) -> list[tuple[int, dict[str, str], bytes]]:
    """So many answers: status, fields and body of each."""
    file = sock.makefile("rb")
    answers = []
    for _ in range(count):
        status = int(file.readline().split()[1])
        fields = dict(http.client.parse_headers(file).items())
        answers.append((status, fields, file.read(int(fields["Content-Length"]))))
    return answers


def is_closed(sock: socket.socket) -> bool:
    """Whether the other end closes, or has, without a word."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_answer_and_end(run: Run) -> None:
    """A client that wants one answer gets it, with the fields that HTTP asks for, and no more."""
    running = run()
    head, _, body = running.ask(CLOSING).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert time.strptime(lines[1], "Date: %a, %d %b %Y %H:%M:%S GMT")
    assert lines[2:] == [
        "Content-Type: text/plain",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    assert body.startswith(b"d8:completei1e10:downloadedi0e11:external ip4:\x7f\0\0\1")


@pytest.mark.parametrize(
    ("version", "connection", "kept", "said"),
    [
        ("1.1", "", True, None),
        ("1.1", "Connection: keep-alive\r\n", True, None),
        ("1.1", "Connection: close\r\n", False, "close"),
        ("1.0", "", False, "close"),
        ("1.0", "Connection: keep-alive\r\n", True, "keep-alive"),
        ("1.0", "Connection: close\r\n", False, "close"),
    ],
)
def test_kept_connections(
    run: Run, version: str, connection: str, kept: bool, said: str | None
) -> None:
    """A connection is kept as its client's version of HTTP, and what it says, have it."""
    request = f"GET {TARGET} HTTP/{version}\r\n{connection}\r\n".encode()
    with run().connect(request) as sock:
        (answer,) = read_answers(sock, 1)
        assert answer[1].get("Connection") == said
        if kept:
            sock.sendall(CLOSING)
            assert read_answers(sock, 1)[0][0] == 200
        assert is_closed(sock)


def test_head_request(run: Run) -> None:
    """HEAD has the fields of GET and no body."""
    answer = run().ask(CLOSING.replace(b"GET", b"HEAD", 1))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: 0" not in head
    assert body == b""


def test_pipelined(run: Run) -> None:
    """Requests that come at once are answered in their order."""
    hashes = [f"{number:020}" for number in range(300)]
    requests = [f"GET /scrape?info_hash={each} HTTP/1.1\r\nHost: x\r\n\r\n" for each in hashes]
    with run().connect("".join(requests).encode()) as sock:
        for info_hash, (status, _, body) in zip(hashes, read_answers(sock, 300), strict=True):
            assert status == 200
            reply = bencoding.decode(body, "reply")
            assert isinstance(reply, dict)
            files = reply[b"files"]
            assert isinstance(files, dict)
            assert list(files) == [info_hash.encode()]


@pytest.mark.parametrize("request_bytes", [CLOSING, OTHERS], ids=["announce", "others"])
def test_split_at_every_byte(run: Run, request_bytes: bytes) -> None:
    """A head may come in any two parts; only when it is whole something happens."""
    running = run()
    for place in range(1, len(request_bytes)):
        with running.connect(request_bytes[:place]) as sock:
            running.wait_until(waiting=1)
            sock.sendall(request_bytes[place:])
            if request_bytes == CLOSING:
                assert read_answers(sock, 1)[0][0] == 200
                assert is_closed(sock)
            else:
                with running.accept() as passed:
                    assert passed.recv(1000) == request_bytes
        running.wait_until(waiting=0)


def test_byte_by_byte(run: Run) -> None:
    """A head may come in single bytes, and be that of the second request."""
    with run().connect(KEEPING) as sock:
        read_answers(sock, 1)
        for place in range(len(CLOSING)):
            sock.sendall(CLOSING[place : place + 1])
        assert read_answers(sock, 1)[0][0] == 200
        assert is_closed(sock)


def test_too_large(run: Run) -> None:
    """A head that doesn't end within 16 KiB is refused; up to there it is passed on."""
    running = run()
    start = b"GET /announce HTTP/1.1\r\nA: "
    largest = start + b"x" * (MAX_HEAD - len(start) - 4) + b"\r\n\r\n"
    with running.connect(largest), running.accept() as passed:
        assert passed.recv(MAX_HEAD + 1, socket.MSG_WAITALL | socket.MSG_PEEK)[:3] == b"GET"
    answer = running.ask(start + b"x" * (MAX_HEAD - len(start)))
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert answer.endswith(b"\r\n\r\n431 Request Header Fields Too Large\n")
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\0",
        b"\r\n",
        b"GET /announce HTTP/1.1\nHost: x\n\n",
        b"GET /announce?info_hash=\0 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        bytes(range(255, 0, -3)).replace(b"\r", b"") + b"\0",
    ],
)
def test_garbage(run: Run, request_bytes: bytes) -> None:
    """What can't become a request is refused at once."""
    running = run()
    answer = running.ask(request_bytes)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    running.wait_until(malformed=1)


def test_garbage_after_requests(run: Run) -> None:
    """Requests before it are answered, and nothing after it."""
    with run().connect(KEEPING + KEEPING + b"\0" + KEEPING) as sock:
        assert [answer[0] for answer in read_answers(sock, 3)] == [200, 200, 400]
        assert is_closed(sock)


@pytest.mark.parametrize(
    "request_bytes",
    [
        OTHERS,
        b"GET /v1/nar/x HTTP/1.1\r\n\r\n",
        b"POST /announce HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
        OTHERS + CLOSING,
    ],
)
def test_passed_on(run: Run, request_bytes: bytes) -> None:
    """Others' requests reach them with every byte unread."""
    running = run()
    with running.connect(request_bytes) as sock, running.accept() as passed:
        assert passed.recv(1000) == request_bytes
        passed.sendall(b"answer")
        passed.close()
        assert read_all(sock) == b"answer"
    # It is counted after it was passed on.
    running.wait_until(waiting=0, passed_on=1)
    assert running.front.numbers() == {
        "waiting": 0,
        "passed_on": 1,
        "evicted": 0,
        "late": 0,
        "malformed": 0,
        "refused": 0,
    }


def test_body_that_comes_slowly(run: Run) -> None:
    """A request with a body is passed on at the end of its head."""
    running = run()
    head = b"PUT /v1/nar/x HTTP/1.1\r\nContent-Length: 5\r\n\r\n"
    with running.connect(head) as sock, running.accept() as passed:
        assert passed.recv(1000) == head
        for byte in b"GET /":
            sock.sendall(bytes([byte]))
            assert passed.recv(1000) == bytes([byte])


def test_passed_on_after_answers(run: Run) -> None:
    """A connection is passed on in the middle, when what came before is answered."""
    running = run()
    with running.connect(KEEPING * 3 + OTHERS + CLOSING) as sock, running.accept() as passed:
        assert [answer[0] for answer in read_answers(sock, 3)] == [200] * 3
        assert passed.recv(1000) == OTHERS + CLOSING


def test_given_back(run: Run) -> None:
    """A connection that was passed on comes back for what its client asks next."""
    running = run()
    with running.connect(OTHERS) as sock:
        for _ in range(3):
            passed = running.accept()
            assert passed.recv(1000) == OTHERS
            passed.sendall(b"answer")
            assert sock.recv(1000) == b"answer"
            assert passed.gettimeout() == DEADLINE
            passed.setblocking(False)
            assert running.front.give_back(passed.detach(), 0)
            sock.sendall(KEEPING)
            assert read_answers(sock, 1)[0][0] == 200
            sock.sendall(OTHERS)
        running.accept().close()
        assert is_closed(sock)


def test_not_given_back(run: Run) -> None:
    """A front that ends, and a listener that isn't, take nothing back."""
    running = run()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not running.front.give_back(ours.fileno(), 1)
        assert not running.front.give_back(ours.fileno(), -1)
        running.stop()
        assert not running.front.give_back(ours.fileno(), 0)


def test_too_many_for_others(run: Run) -> None:
    """When nobody takes what is passed on, clients are told so."""
    running = run()
    with contextlib.suppress(BlockingIOError):
        while True:
            waiting = os.open(os.devnull, os.O_RDONLY)
            os.write(running.passed_on.pipe, waiting.to_bytes(4, sys.byteorder))
    os.close(waiting)
    answer = running.ask(OTHERS)
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    running.wait_until(refused=1)
    assert running.ask(CLOSING).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("first", "limit", "late"), [(b"", "idle_ms", 0), (KEEPING, "idle_ms", 0), (b"G", "head_ms", 1)]
)
def test_deadlines(run: Run, first: bytes, limit: str, late: int) -> None:
    """Who says nothing, and who doesn't come to the end of a head, is left in the end."""
    running = run(**{limit: 20})
    for _ in range(1000):
        with running.connect() as sock:
            if first == KEEPING:
                # The time may be over before this is sent.
                with contextlib.suppress(ConnectionError):
                    sock.sendall(first)
                    if not sock.recv(65536):
                        continue
            else:
                sock.sendall(first)
            assert is_closed(sock)
            break
    running.wait_until(late=late)


def test_who_never_reads(run: Run) -> None:
    """What a client doesn't take isn't answered further, and after a while it is left."""
    running = run(write_ms=50)
    hashes = "&".join(f"info_hash={number:020}" for number in range(74))
    request = f"GET /scrape?{hashes} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with running.connect() as sock, pytest.raises(OSError, match=r"Broken pipe|reset by peer"):
        sock.sendall(request * 5000)
    running.wait_until(late=1)


def test_who_reads_late(run: Run) -> None:
    """Answers that have no room in the kernel are sent when there is some, in order."""
    running = run()
    hashes = "&".join(f"info_hash={number:020}" for number in range(74))
    request = f"GET /scrape?{hashes} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with running.connect() as sock:
        sender = threading.Thread(target=sock.sendall, args=(request * 2000,))
        sender.start()
        answers = read_answers(sock, 2000)
        sender.join()
    assert {answer[2] for answer in answers} == {answers[0][2]}


@pytest.mark.parametrize("limits", [{"per_address": 3}, {"connections": 3}])
def test_many_half_requests(run: Run, limits: dict[str, int]) -> None:
    """The oldest of those that don't get on make room for others, who are answered."""
    running = run(**limits)
    with contextlib.ExitStack() as stack:
        socks = []
        for number in range(5):
            socks.append(stack.enter_context(running.connect(b"GET /")))
            count = min(number + 1, 3)
            running.wait_until(waiting=count, evicted=number + 1 - count)
        assert running.ask(CLOSING).startswith(b"HTTP/1.1 200 OK\r\n")
        assert is_closed(socks[0])
        assert is_closed(socks[1])
        socks[4].sendall(b" HTTP/1.1\r\n\r\n")
        running.accept().close()


def test_silent_ones_go_first(run: Run) -> None:
    """Who has said nothing makes room before who has said something."""
    running = run(connections=2)
    with running.connect(b"GET /") as half:
        running.wait_until(waiting=1)
        with running.connect() as silent:
            running.wait_until(waiting=2)
            with running.connect(b"G"):
                assert is_closed(silent)
                half.sendall(b" HTTP/1.1\r\n\r\n")
                running.accept().close()


def test_clients_that_leave(run: Run) -> None:
    """Nothing is kept of a connection whose client left, closed or reset."""
    running = run()
    for rude in (False, True):
        for first in (b"", b"GET /", KEEPING):
            with running.connect(first) as sock:
                running.wait_until(waiting=1)
                if rude:
                    linger = struct.pack("ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            running.wait_until(waiting=0)


def test_half_closed(run: Run) -> None:
    """Who says that nothing more will come is answered what came."""
    running = run()
    with running.connect() as sock:
        sock.sendall(KEEPING + KEEPING)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).count(b"HTTP/1.1 200 OK\r\n") == 2
    with running.connect(KEEPING + b"GET /") as sock:
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).count(b"HTTP/1.1 200 OK\r\n") == 1


def test_proxies(run: Run) -> None:
    """A trusted proxy names its clients, and the list of them can change."""
    running = run()
    request = CLOSING.replace(b"Host: x", b"X-Forwarded-For: 198.51.100.7")
    assert b"11:external ip4:\x7f\0\0\1" in running.ask(request)
    running.front.set_proxies([(b"\x7f\0\0\0", 8)])
    assert b"11:external ip4:\xc6\x33\x64\x07" in running.ask(request)
    assert running.ask(CLOSING).endswith(
        b"\r\n\r\nd14:failure reason50:X-Forwarded-For: the proxy did not name the cliente"
    )
    running.front.set_proxies([])
    assert b"11:external ip4:\x7f\0\0\1" in running.ask(request)


def test_proxies_may_wait(run: Run) -> None:
    """The connections of a trusted proxy are those of many clients."""
    running = run(per_address=1)
    running.front.set_proxies([(b"\x7f\0\0\1", 32)])
    with contextlib.ExitStack() as stack:
        for count in range(1, 6):
            stack.enter_context(running.connect(b"G"))
            running.wait_until(waiting=count)
    assert running.front.numbers()["evicted"] == 0


def test_stop(run: Run) -> None:
    """Who waits is left when the front ends; what is being sent is sent to its end."""
    running = run()
    hashes = "&".join(f"info_hash={number:020}" for number in range(74))
    request = f"GET /scrape?{hashes} HTTP/1.0\r\n\r\n".encode()
    with running.connect(b"GET /") as half, running.connect() as silent:
        running.wait_until(waiting=2)
        running.stop()
        assert is_closed(half)
        assert is_closed(silent)
    running = run()
    with running.connect(request) as sock:
        assert sock.recv(10)
        running.stop()
        assert read_all(sock).endswith(b"ee")
    with pytest.raises(RuntimeError, match=r"^a front runs once$"):
        running.front.run()


@pytest.mark.parametrize(
    ("listeners", "limits", "error"),
    [
        ([(0, 0)] * 65, {}, r"^too many listeners$"),
        ([], {"connections": 0}, "Invalid argument"),
        ([], {"per_address": 0}, "Invalid argument"),
    ],
)
def test_refused(listeners: list[tuple[int, int]], limits: dict[str, int], error: str) -> None:
    """Bounds of nothing are none."""
    needs.native()
    swarms = NativeSwarms(Limits(), is_open=True, keep_downloads=False)
    bounds = dict.fromkeys(["connections", "per_address", "head_ms", "idle_ms", "write_ms"], 1)
    with pytest.raises((ValueError, OSError), match=error):
        _native.HttpFront(swarms.core, listeners, **bounds | limits)


@pytest.mark.parametrize("networks", [[(b"\x7f\0\0", 8)], [(b"\x7f\0\0\1", 33)]])
def test_refused_networks(run: Run, networks: list[tuple[bytes, int]]) -> None:
    """A network is one of IPv4 or IPv6."""
    with pytest.raises(ValueError, match=r"^a network has 4 or 16 bytes, and a prefix in them$"):
        run().front.set_proxies(networks)
