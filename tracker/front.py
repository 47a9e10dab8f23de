# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP front in C, and gunicorn behind it.

Threads of Python are few, and whoever sends a request slowly would hold one. So connections are
accepted by the front of the native engine (tracker/native/http.h), which answers announces and
scrapes itself and passes on every other connection as soon as the head of its request is there.
To gunicorn's worker, of all versions, the front is a listener. When gunicorn would keep a
connection for a further request, the front gets it back.

Without the native engine nothing of this is there, and the worker accepts by itself.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from gunicorn.workers.gthread import ThreadWorker

from tracker.parking import room_for_descriptors
from tracker.policy import Network

MAX_CONNECTIONS = 16384
"""Connections that wait for something: for the rest of a request, or for the next one."""

PER_ADDRESS = 64
"""And of those of one IPv4 address, or one /64 of IPv6; the oldest makes room."""

MAX_PASSED_ON = 1024
"""Connections that gunicorn hasn't taken yet; the clients of further ones get status 503."""

HEAD_SECONDS = 30
"""How long the head of a request may take from its first byte."""

IDLE_SECONDS = 5
"""How long a connection is kept that says nothing."""

WRITE_SECONDS = 10
"""How long a client may take for an answer."""

_log = logging.getLogger(__name__)
_STOP_SECONDS = 5
_DESCRIPTOR_BYTES = 4


class NativeFront(Protocol):
    """What `tracker._native.HttpFront` offers."""

    def run(self) -> None:
        """Serve until it is stopped; once."""

    def stop(self) -> None:
        """Have `run` end soon."""

    def give_back(self, descriptor: int, listener: int, /) -> bool:
        """Take over a connection, which came from a listener, for its next request."""

    def set_proxies(self, networks: list[tuple[bytes, int]], /) -> None:
        """Believe the X-Forwarded-For of these: addresses of 4 or 16 bytes, and prefixes."""

    def numbers(self) -> dict[str, int]:
        """What it did so far."""


class MakeFront(Protocol):
    """How one is made."""

    def __call__(  # noqa: D102 - the class says it
        self,
        swarms: object,
        listeners: list[tuple[int, int]],
        *,
        connections: int,
        per_address: int,
        head_ms: int,
        idle_ms: int,
        write_ms: int,
    ) -> NativeFront: ...


class PassedOn:
    """A listener for gunicorn: what it accepts was accepted by the front before.

    Args:
        listener: where the front accepts.

    Attributes:
        pipe: where the front writes the descriptors of connections.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._name = listener.getsockname()
        self._read, self.pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(self.pipe, fcntl.F_SETPIPE_SZ, MAX_PASSED_ON * _DESCRIPTOR_BYTES)

    def fileno(self) -> int:
        """What is readable when there is a connection."""
        return self._read

    def setblocking(self, _flag: bool, /) -> None:
        """It never blocks."""

    def getsockname(self) -> Any:
        """The name of the listener."""
        return self._name

    def accept(self) -> tuple[socket.socket, Any]:
        """Take a connection; see `socket.accept`.

        Raises:
            BlockingIOError: there is none.
            ConnectionAbortedError: the client has left again.
        """
        data = os.read(self._read, _DESCRIPTOR_BYTES)
        sock = socket.socket(fileno=int.from_bytes(data, sys.byteorder))
        try:
            sock.setblocking(True)
            return sock, sock.getpeername()
        except OSError as error:
            sock.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "the client left") from error

    def close(self) -> None:
        """Leave the rest to `discard`; the front may still be writing."""

    def discard(self) -> None:
        """Close what nobody took, when the front has ended."""
        os.close(self.pipe)
        while data := os.read(self._read, _DESCRIPTOR_BYTES):
            os.close(int.from_bytes(data, sys.byteorder))
        os.close(self._read)


class Front:
    """The front of one worker process.

    Args:
        make: makes the native one.
        swarms: what it answers from, `tracker._native.Swarms`.
        sockets: where it accepts; they stay the caller's.
        proxies: whose X-Forwarded-For is believed.

    Attributes:
        listeners: what gunicorn accepts from, in the order of the sockets.
    """

    def __init__(
        self,
        make: MakeFront,
        swarms: object,
        sockets: Sequence[socket.socket],
        proxies: Iterable[Network],
    ) -> None:
        self.listeners = [PassedOn(each) for each in sockets]
        for each in sockets:
            each.setblocking(False)
        self._places = {each.getsockname(): place for place, each in enumerate(self.listeners)}
        self._native = make(
            swarms,
            [
                (sock.fileno(), passed_on.pipe)
                for sock, passed_on in zip(sockets, self.listeners, strict=True)
            ],
            connections=min(MAX_CONNECTIONS, room_for_descriptors() // 2),
            per_address=PER_ADDRESS,
            head_ms=HEAD_SECONDS * 1000,
            idle_ms=IDLE_SECONDS * 1000,
            write_ms=WRITE_SECONDS * 1000,
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self.reconfigure(proxies)

    def reconfigure(self, proxies: Iterable[Network]) -> None:
        """Go on with other trusted proxies."""
        self._native.set_proxies(
            [(each.network_address.packed, each.prefixlen) for each in proxies]
        )

    def numbers(self) -> dict[str, int]:
        """What it did so far: how many connections wait, were passed on or evicted, and others."""
        return self._native.numbers()

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._native.run()
        except OSError:
            # Nobody could connect any more; gunicorn's master starts another worker.
            _log.exception("HTTP can't be served")
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(self) -> None:
        """Have it end: what is complete is answered, and the rest closed. May be called again."""
        self._native.stop()

    def join(self) -> None:
        """Wait until it has ended, after `stop`."""
        self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            for each in self.listeners:
                each.discard()

    def take_back(self, conn: Any) -> None:
        """Take over a connection of which gunicorn would await a further request.

        Args:
            conn: gunicorn's. Its socket isn't that of the connection any more when it was taken.
                It isn't when gunicorn has read beyond the request, or the application not to its
                end: the rest would be taken for a request. Then it is to be closed.
        """
        parser = conn.parser
        if parser.unreader.buf.getvalue() or parser.mesg.body.read(1):
            return
        descriptor = conn.sock.detach()
        conn.sock = _unconnected()
        os.set_blocking(descriptor, False)
        if not self._native.give_back(descriptor, self._places.get(conn.server, 0)):
            os.close(descriptor)


class FrontWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """A worker that has its connections from the front, if its application has an attribute so."""

    _front: Front | None = None

    def run(self) -> None:
        """Serve until it is told to stop."""
        front: Front | None = getattr(self.app, "front", None)
        if front is None:
            super().run()
            return
        self._front = front
        self.sockets = list(front.listeners)
        front.start()
        try:
            super().run()
        finally:
            front.stop()
            front.join()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """End, when what is being answered is answered."""
        if self._front is not None:
            self._front.stop()
        super().handle_exit(sig, frame)

    def handle(self, conn: Any) -> Any:
        """Serve one request in a thread of the pool, and give the connection back."""
        result = super().handle(conn)
        if conn.sock.fileno() < 0:
            # The application took it; gunicorn miscounts when there is nothing to close.
            conn.sock = _unconnected()
        # Up to version 23 a pair; later ones have a third value, for a client that said nothing.
        kept = result[0] if isinstance(result, tuple) else result is True
        if not kept or self._front is None:
            return result
        self._front.take_back(conn)
        return (False, conn) if isinstance(result, tuple) else False


def _unconnected() -> socket.socket:
    """A socket for gunicorn to shut down and close, instead of one that it does not have."""
    return socket.socket(socket.AF_UNIX)
