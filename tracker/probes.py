# SPDX-License-Identifier: GPL-3.0-or-later
"""Tries whether a port can be connected to from here, by TCP and by uTP, and sends nothing else.

Any number of attempts are one thread's. A connection of TCP is closed as soon as it is there; uTP
(BEP 29) is asked for by one datagram of 20 bytes, which is sent again as it may be lost, and what
was granted is given back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

SECONDS: Final = 4.0
"""How long an attempt takes at most."""

MAX_ATTEMPTS: Final = 64
"""Attempts at a time."""

RESENDS: Final = (1.0, 2.0)
"""Seconds after which a datagram is sent again that may have been lost."""

_MAX_DATAGRAM = 2048
_HEADER = struct.Struct(">BBHIIIHH")
_VERSION = 1
_RESET, _SYN = 3, 4
_GRANTS = frozenset(kind << 4 | _VERSION for kind in (0, 1, 2))
"""Data, a fin, which libtorrent sends while it has no torrents, and an acknowledgement."""

_WINDOW = 1 << 16
_REFUSALS = frozenset({errno.ECONNREFUSED, errno.ECONNRESET})
_PENDING = frozenset({0, errno.EINPROGRESS})


class Seen(StrEnum):
    """How an attempt ended."""

    OPEN = "open"
    REFUSED = "refused"
    """Nobody listens there, as the machine or a firewall says."""
    SILENT = "no answer"
    FAILED = "not tried"
    """The tracker's own network doesn't allow it."""


class Found(NamedTuple):
    """What was seen of a port."""

    tcp: Seen
    utp: Seen


# uTP (BEP 29)


def syn(connection_id: int, sequence: int, microseconds: int) -> bytes:
    """The datagram that asks for a connection; the answer has the same connection id."""
    stamp = microseconds & 0xFFFFFFFF
    return _HEADER.pack(_SYN << 4 | _VERSION, 0, connection_id, stamp, 0, _WINDOW, sequence, 0)


def answer_to(datagram: bytes, connection_id: int, sequence: int) -> Seen | None:
    """What a datagram says to such a request; nothing if it isn't an answer to it."""
    if len(datagram) < _HEADER.size:
        return None
    kind, _, identity, _, _, _, _, acknowledged = _HEADER.unpack_from(datagram)
    if identity != connection_id:
        return None
    if kind in _GRANTS and acknowledged == sequence:
        return Seen.OPEN
    return Seen.REFUSED if kind == _RESET << 4 | _VERSION else None


def farewell(datagram: bytes, connection_id: int, sequence: int, microseconds: int) -> bytes:
    """The datagram that ends the connection which was granted by DATAGRAM."""
    received = _HEADER.unpack_from(datagram)[6]
    stamp, own = microseconds & 0xFFFFFFFF, (connection_id + 1) & 0xFFFF
    following = (sequence + 1) & 0xFFFF
    return _HEADER.pack(_RESET << 4 | _VERSION, 0, own, stamp, 0, 0, following, received)


# Sockets


@dataclass(slots=True, eq=False)
class _Attempt:
    """One port of one address, in the thread's hands."""

    address: IPv4Address | IPv6Address
    port: int
    done: Callable[[Found], None]
    connection_id: int
    sequence: int
    begun: float = 0.0
    resends: int = 0
    seen: dict[str, Seen] = field(default_factory=dict)
    sockets: dict[str, socket.socket] = field(default_factory=dict)


class Attempts:
    """Tries ports, in a thread that is made when the first one comes.

    Args:
        clock: seconds from any start, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._arrived: deque[_Attempt] = deque()
        self._running: list[_Attempt] = []
        self._closing = False
        self._thread: threading.Thread | None = None
        self._bell: socket.socket | None = None

    def begin(self, address: bytes, port: int, done: Callable[[Found], None]) -> bool:
        """Try a port; from any thread.

        Args:
            address: 4 or 16 bytes.
            port: of TCP and UDP.
            done: told what was seen, by the thread of this; it must not wait.

        Returns:
            Whether it is tried; not if too many are.
        """
        chosen = os.urandom(4)
        attempt = _Attempt(
            ip_address(address), port, done, int.from_bytes(chosen[:2]), int.from_bytes(chosen[2:])
        )
        with self._lock:
            if self._closing or len(self._arrived) + len(self._running) >= MAX_ATTEMPTS:
                return False
            self._arrived.append(attempt)
            if self._bell is None:
                alarm, self._bell = socket.socketpair()
                for end in (alarm, self._bell):
                    end.setblocking(False)
                self._thread = threading.Thread(
                    target=self._run, args=(alarm,), name="reachable", daemon=True
                )
                self._thread.start()
            self._ring()
        return True

    def close(self) -> None:
        """End; what is being tried is told to nobody."""
        with self._lock:
            self._closing = True
            self._ring()
            thread = self._thread
        if thread is not None:
            thread.join()
        if self._bell is not None:
            self._bell.close()

    def _ring(self) -> None:
        if self._bell is not None:
            with contextlib.suppress(BlockingIOError):  # it rings already
                self._bell.send(b"\0")

    def _run(self, alarm: socket.socket) -> None:
        with alarm, selectors.DefaultSelector() as selector:
            selector.register(alarm, selectors.EVENT_READ)
            while not self._closing:
                for key, _ in selector.select(self._until_next()):
                    if key.data is None:
                        with contextlib.suppress(BlockingIOError):
                            while alarm.recv(4096):
                                pass
                    else:
                        self._look(selector, *key.data)
                self._take_arrived(selector)
                self._pass_time(selector)
            for attempt in self._running:
                for kind in list(attempt.sockets):
                    self._settle(selector, attempt, kind, Seen.SILENT)

    def _take_arrived(self, selector: selectors.BaseSelector) -> None:
        with self._lock:
            arrived = list(self._arrived)
            self._arrived.clear()
            self._running += arrived
        for attempt in arrived:
            attempt.begun = self._clock()
            self._open(selector, attempt, "tcp", socket.SOCK_STREAM, selectors.EVENT_WRITE)
            self._open(selector, attempt, "utp", socket.SOCK_DGRAM, selectors.EVENT_READ)
            self._send_syn(selector, attempt)

    def _open(
        self,
        selector: selectors.BaseSelector,
        attempt: _Attempt,
        kind: str,
        protocol: socket.SocketKind,
        events: int,
    ) -> None:
        """Begin to connect; that of UDP takes datagrams from there alone."""
        family = socket.AF_INET if attempt.address.version == 4 else socket.AF_INET6
        try:
            sock = socket.socket(family, protocol)
        except OSError:
            attempt.seen[kind] = Seen.FAILED
            return
        sock.setblocking(False)
        attempt.sockets[kind] = sock
        selector.register(sock, events, (attempt, kind))
        code = sock.connect_ex((str(attempt.address), attempt.port))
        if code not in _PENDING:
            self._settle(selector, attempt, kind, _meaning(code, Seen.FAILED))

    def _send_syn(self, selector: selectors.BaseSelector, attempt: _Attempt) -> None:
        sock = attempt.sockets.get("utp")
        if sock is None:
            return
        stamp = int(self._clock() * 1e6)
        try:
            sock.send(syn(attempt.connection_id, attempt.sequence, stamp))
        except BlockingIOError:
            pass  # as if it was lost
        except OSError as error:
            self._settle(selector, attempt, "utp", _meaning(error.errno, Seen.FAILED))

    def _look(self, selector: selectors.BaseSelector, attempt: _Attempt, kind: str) -> None:
        """Something happened to a socket."""
        sock = attempt.sockets.get(kind)
        if sock is None:
            return
        if kind == "tcp":
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._settle(
                selector, attempt, kind, _meaning(code, Seen.SILENT) if code else Seen.OPEN
            )
            return
        try:
            datagram = sock.recv(_MAX_DATAGRAM)
        except BlockingIOError:
            return
        except OSError as error:
            self._settle(selector, attempt, kind, _meaning(error.errno, Seen.SILENT))
            return
        said = answer_to(datagram, attempt.connection_id, attempt.sequence)
        if said is Seen.OPEN:
            stamp = int(self._clock() * 1e6)
            with contextlib.suppress(OSError):
                sock.send(farewell(datagram, attempt.connection_id, attempt.sequence, stamp))
        if said is not None:
            self._settle(selector, attempt, kind, said)

    def _settle(
        self, selector: selectors.BaseSelector, attempt: _Attempt, kind: str, seen: Seen
    ) -> None:
        """Note how it ended, and close the socket."""
        sock = attempt.sockets.pop(kind)
        selector.unregister(sock)
        sock.close()
        attempt.seen[kind] = seen

    def _until_next(self) -> float | None:
        """Seconds until something has to be done in any case."""
        if not self._running:
            return None
        return max(0.0, min(map(_next_time, self._running)) - self._clock())

    def _pass_time(self, selector: selectors.BaseSelector) -> None:
        now = self._clock()
        for attempt in list(self._running):
            if now >= attempt.begun + SECONDS:
                for kind in list(attempt.sockets):
                    self._settle(selector, attempt, kind, Seen.SILENT)
            elif attempt.sockets and now >= _next_time(attempt):
                attempt.resends += 1
                self._send_syn(selector, attempt)
            if not attempt.sockets:
                with self._lock:
                    self._running.remove(attempt)
                attempt.done(Found(attempt.seen["tcp"], attempt.seen["utp"]))


def _next_time(attempt: _Attempt) -> float:
    """When a datagram is to be sent again, or it is enough."""
    later = RESENDS[attempt.resends] if attempt.resends < len(RESENDS) else SECONDS
    return attempt.begun + later


def _meaning(code: int | None, otherwise: Seen) -> Seen:
    return Seen.REFUSED if code in _REFUSALS else otherwise
