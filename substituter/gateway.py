# SPDX-License-Identifier: GPL-3.0-or-later
"""A substitute server in front of the swarm, for guix-daemons as they are.

Python's own threading server does it, with limits of ours: the one process has the BitTorrent
session and the files that grow, a connection is a thread that waits for bytes most of the time,
and there are four paths. gunicorn would add processes that can't share any of that.

Whoever asks can have what an authorised narinfo vouches for, and nothing else: no URL, host or
server can be named in a request.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Protocol
from urllib.parse import unquote

import zstandard

from narswarm import base32, compression, storepath
from narswarm.cli import printable
from narswarm.errors import BusyError, InvalidInputError, NarswarmError
from narswarm.narinfo import Narinfo
from substituter.gatewayitems import Items
from substituter.gatewaypool import ChangedError, Payload, Pool

log = logging.getLogger(__name__)

CACHE_INFO: Final = b"StoreDir: /gnu/store\nWantMassQuery: 0\nPriority: 40\n"

MAX_CONNECTIONS: Final = 256
MAX_FROM_ONE: Final = 64
"""Connections from one address."""

HEAD_SECONDS: Final = 15.0
"""Seconds that a request may take to arrive, from the end of the one before."""

IDLE_SECONDS: Final = 60.0

BLOCK: Final = 256 * 1024
SEND_SECONDS: Final = 60.0
"""Seconds that a client may take for a block."""

PATIENCE: Final = 120.0
"""Seconds that a client is kept waiting for bytes."""

_NARINFO: Final = re.compile(r"/([^/]{32})\.narinfo")
_PIPELINED: Final = re.compile(rb"^GET /([0-9a-z]{32})\.narinfo HTTP/1\.1\r?$", re.MULTILINE)
_NAR: Final = re.compile(r"/nar/(zstd/)?([^/]{1,800})")
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_LEVEL: Final = 3


class Server(ThreadingHTTPServer):
    """The gateway.

    Args:
        address: where to listen: host and port.
        items: what can be asked for.
        pool: what fetches it.

    Raises:
        OSError: it can't listen there.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], items: Items, pool: Pool) -> None:
        self.items = items
        self.pool = pool
        self.on_turn: Callable[[], None] = lambda: None
        """Called twice a second for as long as it serves."""
        self._connections: dict[socket.socket, str] = {}
        self._deadlines: dict[socket.socket, float] = {}
        self._mutex = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Bind, without asking the resolver what this machine is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuse more connections than there may be."""
        with self._mutex:
            counted = Counter(self._connections.values())
            if len(self._connections) >= MAX_CONNECTIONS:
                return False
            if counted[client_address[0]] >= MAX_FROM_ONE:
                return False
            self._connections[request] = client_address[0]
            self._deadlines[request] = time.monotonic() + HEAD_SECONDS
        return True

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection."""
        with self._mutex:
            self._connections.pop(request, None)
            self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def expect(self, connection: socket.socket, seconds: float | None) -> None:
        """Cut a connection off by which no whole request comes in time; None for no limit."""
        with self._mutex:
            if seconds is None:
                self._deadlines.pop(connection, None)
            else:
                self._deadlines[connection] = time.monotonic() + seconds

    def service_actions(self) -> None:
        """Look after connections and payloads, twice a second."""
        now = time.monotonic()
        with self._mutex:
            late = [each for each, when in self._deadlines.items() if when < now]
            for each in late:
                del self._deadlines[each]
                with contextlib.suppress(OSError):  # it has gone by itself
                    each.shutdown(socket.SHUT_RDWR)
        self.pool.prune()
        self.on_turn()

    def handle_error(self, _request: Any, client_address: Any) -> None:
        """Clients go away all the time; everything else is told."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("%s: %r", client_address[0], error)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "narswarm-gateway"
    sys_version = ""
    timeout = SEND_SECONDS
    rbufsize = 64 * 1024  # some hundred requests
    server: Server

    def parse_request(self) -> bool:
        """Read the rest of a request; from here on the answer may take its time."""
        good = super().parse_request()
        self.server.expect(self.connection, None)
        return good

    def handle_one_request(self) -> None:
        """Answer one request, and give the next one its time."""
        super().handle_one_request()
        if not self.close_connection:
            self.server.expect(self.connection, IDLE_SECONDS)

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
        """What the base class would write to standard error."""
        log.debug("%s %s", self.address_string(), printable(format % args))

    def _answer(self) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # nobody reads that body
        try:
            if self.path == "/nix-cache-info":
                self._send(CACHE_INFO, "text/plain")
            elif match := _NARINFO.fullmatch(self.path):
                self._narinfo(match[1])
            elif match := _NAR.fullmatch(self.path):
                self._nar(unquote(match[2]), as_zstd=bool(match[1]))
            else:
                self._refuse(HTTPStatus.NOT_FOUND, "no such path")
        except BusyError as error:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error), ("Retry-After", "5"))
        except InvalidInputError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
        except NarswarmError as error:
            log.warning("%s: %s", printable(self.path), printable(str(error)))
            self._refuse(HTTPStatus.BAD_GATEWAY, str(error))

    def _narinfo(self, hash_part: str) -> None:
        found = None
        self._prepare()
        if storepath.is_hash_part(hash_part):
            found = self.server.items.by_hash_part(hash_part)
        if found is None:
            self._refuse(HTTPStatus.NOT_FOUND, "no authorised narinfo of an item that can be had")
            return
        self.server.items.learn(found)
        self._send(self.server.items.render(found), "application/x-nix-narinfo")

    def _prepare(self) -> None:
        """Look at what the client asks next: Guix sends a thousand requests before it reads.

        One after the other they would each take a round trip to the servers.
        """
        self.connection.settimeout(0.0)  # only what has arrived already
        try:
            waiting = self.rfile.peek()  # type: ignore[attr-defined]  # a BufferedReader
        except OSError:
            waiting = b""
        finally:
            self.connection.settimeout(self.timeout)
        asked = [match[1].decode() for match in _PIPELINED.finditer(waiting)]
        if asked:
            self.server.items.prepare(part for part in asked if storepath.is_hash_part(part))

    def _nar(self, base_name: str, *, as_zstd: bool) -> None:
        path = storepath.parse(base_name).path
        found = self.server.items.by_path(path)
        if found is None:
            self._refuse(HTTPStatus.NOT_FOUND, "no authorised narinfo")
            return
        tag = base32.encode(found.nar_hash)
        if self.command == "HEAD" and not as_zstd:
            self._begin(found.nar_size, tag)  # what is signed need not be fetched to be known
            return
        log.info("%s %s %s", self.address_string(), self.command, self.path)
        with self.server.pool.payload(found) as payload:
            state = payload.wait_ready(PATIENCE)
            if not as_zstd:
                self._body(_Decompressed(payload, found), found.nar_size, tag)
            elif state.compression == "zstd":
                digest = hashlib.sha256(state.tag.encode()).hexdigest()  # it may be a URL
                self._body(_Stored(payload, state.serial), state.length, f"{tag}-{digest[:16]}")
            else:
                self._body(_Compressed(payload, found), None, "")

    def _body(self, source: _Source, length: int | None, tag: str) -> None:
        """Send a body, or the part of it that is asked for (RFC 9110, section 14)."""
        start, end, partial = 0, length, False
        asked = self.headers.get("Range", "")
        if length is not None and asked and self.headers.get("If-Range", f'"{tag}"') == f'"{tag}"':
            found = _range(asked, length)
            if found is None:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{length}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, end, partial = found
        sent = None if end is None else end - start
        self._begin(sent, tag, f"bytes {start}-{(end or 0) - 1}/{length}" if partial else "")
        if self.command == "HEAD":
            return
        # From here on a failure can only be told by an end that comes too early.
        done = 0
        try:
            for block in source.blocks(start):
                part = block if sent is None else block[: sent - done]
                self.wfile.write(part)
                done += len(part)
                if done == sent:
                    return
        except (NarswarmError, OSError) as error:
            what, why = printable(self.path), printable(str(error))
            log.warning("%s: cut off after %d bytes: %s", what, done, why)
        self.close_connection = True

    def _begin(self, length: int | None, tag: str, part: str = "") -> None:
        self.send_response(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK)
        self.send_header("Content-Type", "application/octet-stream")
        if part:
            self.send_header("Content-Range", part)
        if length is None:
            # As `guix publish` does where it doesn't know: the end is that of the connection.
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{tag}"')
        self.end_headers()

    def _send(self, body: bytes, content_type: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: HTTPStatus, reason: str, *headers: tuple[str, str]) -> None:
        body = f"{reason}\n".encode(errors="backslashreplace")
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Source(Protocol):
    """A body that can be read from any place."""

    def blocks(self, start: int) -> Iterator[bytes]:
        """The bytes from `start` on."""
        ...


class _Stored:
    """The payload as it is."""

    def __init__(self, payload: Payload, serial: int) -> None:
        self._payload = payload
        self._serial = serial

    def blocks(self, start: int) -> Iterator[bytes]:
        """See `_Source`."""
        position = start
        while block := self._payload.read(self._serial, position, BLOCK, PATIENCE):
            position += len(block)
            yield block


class _Decompressed:
    """The NAR in a payload; it is the same in whichever payload, so a change doesn't matter."""

    def __init__(self, payload: Payload, narinfo: Narinfo) -> None:
        self._payload = payload
        self._narinfo = narinfo

    def blocks(self, start: int) -> Iterator[bytes]:
        """See `_Source`."""
        position = start
        while True:
            state = self._payload.wait_ready(PATIENCE)
            stored = _Stored(self._payload, state.serial)
            try:
                if state.compression == "none":
                    for block in stored.blocks(position):
                        position += len(block)
                        yield block
                    return
                skip = position
                for block in compression.decompress(
                    stored.blocks(0), "zstd", limit=self._narinfo.nar_size
                ):
                    if len(block) > skip:
                        part = block[skip:]
                        position += len(part)
                        yield part
                    skip = max(0, skip - len(block))
            except ChangedError:
                continue
            return


class _Compressed:
    """A NAR that came in another way, as zstd."""

    def __init__(self, payload: Payload, narinfo: Narinfo) -> None:
        self._nar = _Decompressed(payload, narinfo)

    def blocks(self, start: int) -> Iterator[bytes]:
        """See `_Source`; only from the beginning, since nobody knows the length."""
        del start
        chunker = zstandard.ZstdCompressor(level=_LEVEL).chunker(chunk_size=BLOCK)
        for block in self._nar.blocks(0):
            yield from chunker.compress(block)
        yield from chunker.finish()  # type: ignore[no-untyped-call]


def _range(asked: str, length: int) -> tuple[int, int, bool] | None:
    """Begin, end, and whether that is a part; None if there is no such part.

    More than one range, or what isn't understood, is answered by the whole.
    """
    match = _RANGE.fullmatch(asked)
    if match is None or not (match[1] or match[2]):
        return 0, length, False
    if not match[1]:
        count = int(match[2])
        return (max(0, length - count), length, True) if count and length else None
    start = int(match[1])
    end = min(int(match[2]) + 1, length) if match[2] else length
    if match[2] and int(match[2]) < start:
        return 0, length, False
    return (start, end, True) if start < length else None
