# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP servers on loopback for tests, well-behaved and hostile ones."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Script = Callable[[socket.socket, int], None]
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Handler(BaseHTTPRequestHandler):
    """A server with one behaviour for each path."""

    protocol_version = "HTTP/1.1"
    connections: list[object]

    def do_GET(self) -> None:
        """Answer by the path."""
        if self.connection not in self.connections:
            self.connections.append(self.connection)
        body, status, headers = b"hello", 200, {}
        if "/echo" in self.path and not self.path.startswith("/redirect/"):
            body = f"{self.requestline}\n{self.headers}".encode()
        elif self.path.startswith("/redirect/"):
            status, headers = 302, {"Location": self.path[10:]}
        elif self.path.startswith("/loop"):
            status, headers = 301, {"Location": "loop"}
        elif self.path == "/missing":
            status, body = 404, b"no"
        elif self.path == "/empty":
            body = b""
        elif self.path.startswith("/size/"):
            body = b"x" * int(self.path[6:])
        if self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\nhel\r\n2;ext=1\r\nlo\r\n0\r\nTrailer: x\r\n\r\n")
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        """Send back the body."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Type", self.headers["Content-Type"])
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self) -> None:
        """Be a proxy that gives a tunnel."""
        self.connections.append(self.requestline)
        self.connections.append(self.headers.get("Proxy-Authorization"))
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), 120) as upstream:
            self.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=pump, args=(upstream, self.connection))
            back.start()
            pump(self.connection, upstream)
            back.join()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def pump(source: socket.socket, destination: socket.socket) -> None:
    """Copy bytes until one side ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            destination.sendall(data)
    with contextlib.suppress(OSError):
        destination.shutdown(socket.SHUT_WR)


class Server(ThreadingHTTPServer):
    """A server that remembers its connections, which handlers see."""

    daemon_threads = True

    def __init__(self, family: int = socket.AF_INET) -> None:
        self.address_family = socket.AddressFamily(family)
        self.handler = type("Bound", (Handler,), {"connections": []})
        super().__init__(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), self.handler)

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no news."""

    @property
    def url(self) -> str:
        """Where the server is."""
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Serve in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def scripted(script: Script) -> Iterator[str]:
    """Run a script with each connection, after its request was read; give the server's URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve() -> None:
            for number in itertools.count():
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        if done.is_set():
                            return
                        request = b""
                        while b"\r\n\r\n" not in request and (data := connection.recv(4096)):
                            request += data
                        script(connection, number)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            with contextlib.suppress(OSError):
                socket.create_connection(listener.getsockname(), 1).close()
            thread.join()


def answer(*pieces: bytes) -> Script:
    """A script that sends the pieces and closes."""

    def script(connection: socket.socket, _number: int) -> None:
        for piece in pieces:
            connection.sendall(piece)

    return script


class Clock:
    """A clock that goes one step at each look, so that slow servers need no waiting."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        """Give the time."""
        self.now += self.step
        return self.now
