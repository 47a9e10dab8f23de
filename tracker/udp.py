# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker over UDP: sockets beside those of HTTP, and a thread beside gunicorn's.

One thread serves all sockets, a batch of each in turn, and answers from the same swarms as HTTP. It
lets go of the interpreter at least twice for each batch, so that HTTP has its turns however many
datagrams come.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from struct import Struct
from typing import Final

from narswarm.errors import BusyError, SettingsError
from narswarm.files import write_atomically
from tracker import wire_udp
from tracker.announcer import UNLISTED, Announcer, BlockedError, UnavailableError
from tracker.datagrams import Datagrams
from tracker.metrics import Action, Family, Outcome, family_of
from tracker.wire_http import AnnounceReply, AnnounceRequest, WireError
from tracker.wire_udp import ANNOUNCE_BYTES, HEADER_BYTES, ConnectionIds

KEY_FILE = "udp.key"
RECEIVE_BUFFER = 4 << 20
"""Bytes of the kernel's queue that are asked for. The system may allow less (net.core.rmem_max)."""

_PAUSE_SECONDS = 1
_SO_MEMINFO = 55  # of Linux; Python doesn't have it
_MEMINFO = Struct("@9I")  # the last is SK_MEMINFO_DROPS
_ACTIONS: Final[dict[bytes, Action]] = {
    wire_udp.CONNECT: "connect",
    wire_udp.ANNOUNCE: "announce",
    wire_udp.SCRAPE: "scrape",
}

_log = logging.getLogger(__name__)


def load_key(directory: Path) -> bytes:
    """Read the key of connection ids, and make it when there is none.

    It outlives the process, so that the ids of clients do, too.

    Raises:
        SettingsError: it can't be read or written.
    """
    path = directory / KEY_FILE
    try:
        with contextlib.suppress(FileNotFoundError):
            key = path.read_bytes()
            # A damaged one is replaced: nothing depends on it for more than three minutes.
            if len(key) == wire_udp.KEY_BYTES:
                return key
        key = os.urandom(wire_udp.KEY_BYTES)
        write_atomically(path, key, mode=0o600)
    except OSError as error:
        raise SettingsError(path, error.strerror or str(error)) from error
    return key


def dropped_datagrams(sockets: Iterable[socket.socket]) -> dict[str, int]:
    """How many datagrams the kernel dropped at each socket, mostly as its buffer was full.

    Returns:
        The numbers by address and port.
    """
    found = {}
    for sock in sockets:
        info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        found[_name(sock)] = _MEMINFO.unpack(info)[-1]
    return found


def _name(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class UdpSockets:
    """UDP sockets with the addresses and ports of listening TCP sockets.

    Args:
        listeners: the TCP sockets.

    Raises:
        BusyError: a port is in use, when the context is entered.
        SettingsError: a socket can't be made for another reason.
    """

    def __init__(self, listeners: Iterable[socket.socket]) -> None:
        self._listeners = listeners
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> list[socket.socket]:
        try:
            for listener in self._listeners:
                self._sockets.append(_beside(listener))
        except BaseException:
            self.__exit__()
            raise
        return self._sockets

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()


def _beside(listener: socket.socket) -> socket.socket:
    """Make a UDP socket with the address and port of a TCP socket."""
    sock = socket.socket(listener.family, socket.SOCK_DGRAM)
    address = listener.getsockname()
    try:
        if listener.family == socket.AF_INET6:
            only = listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.bind(address)
    except OSError as error:
        sock.close()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        name = f"udp://{host}:{address[1]}"
        if error.errno == errno.EADDRINUSE:
            raise BusyError(name, "is in use") from error
        raise SettingsError(name, error.strerror or str(error)) from error
    return sock


class UdpResponder:
    """Decides what is answered to a datagram. It never raises, whatever the datagram is.

    One thread may use it.

    Args:
        announcer: the swarms.
        ids: connection ids.
    """

    def __init__(self, announcer: Announcer, ids: ConnectionIds) -> None:
        self._announcer = announcer
        self._ids = ids
        self._tally: Counter[tuple[Family, Action, Outcome]] = Counter()

    def respond(self, packet: bytes, address: bytes, now: int) -> bytes | None:
        """Answer a datagram, or nothing; see `respond_many`."""
        return self.respond_many([(packet, address)], now)[0]

    def respond_many(self, received: Sequence[tuple[bytes, bytes]], now: int) -> list[bytes | None]:
        """Answer datagrams, each with another or with nothing; their announces in one go.

        Whoever didn't prove that the address is its own gets nothing, or a connection id in as
        many bytes as it sent.

        Args:
            received: datagrams, and the addresses where they came from, 4 or 16 bytes.
            now: seconds since the epoch.
        """
        replies: list[bytes | None] = [None] * len(received)
        announces: list[tuple[int, AnnounceRequest, bytes]] = []
        for number, (packet, address) in enumerate(received):
            action = _ACTIONS.get(packet[8:12])
            if action is None or len(packet) < HEADER_BYTES:
                continue
            answered = self._answer(action, packet, address, now)
            if isinstance(answered, AnnounceRequest):
                announces.append((number, answered, address))
                continue
            outcome, replies[number] = answered
            self._tally[family_of(address), action, outcome] += 1
        if announces:
            asked = [(request, address) for _, request, address in announces]
            found = self._announcer.announce_many(asked, now)
            for (number, _, address), reply in zip(announces, found, strict=True):
                outcome, replies[number] = _announced(received[number][0], reply)
                self._tally[family_of(address), "announce", outcome] += 1
        return replies

    def _answer(
        self, action: Action, packet: bytes, address: bytes, now: int
    ) -> tuple[Outcome, bytes | None] | AnnounceRequest:
        """The answer to all that is no announce of swarms, or what is to be announced."""
        if self._announcer.refuses(address):
            return "refused", None
        transaction = packet[12:HEADER_BYTES]
        if action == "connect":
            if not wire_udp.is_connect(packet):
                return "malformed", None
            return "ok", wire_udp.connect_reply(transaction, self._ids.issue(address, now))
        if not self._ids.holds(packet[:8], address, now):
            return "dropped", None
        if action == "scrape":
            try:
                counts = self._announcer.counts(wire_udp.parse_scrape(packet))
            except UnavailableError as error:
                return "failed", wire_udp.error_reply(transaction, str(error))
            return "ok", wire_udp.scrape_reply(transaction, counts)
        if len(packet) < ANNOUNCE_BYTES:
            return "malformed", None
        try:
            return wire_udp.parse_announce(packet)
        except WireError as error:
            return "malformed", wire_udp.error_reply(transaction, str(error))

    def count(self, seconds: float) -> None:
        """Hand over how many datagrams there were since the last time.

        Args:
            seconds: how long it took until they were answered.
        """
        metrics = self._announcer.metrics
        for (family, action, outcome), amount in self._tally.items():
            metrics.requests.inc("udp", family, action, outcome, amount)
            if outcome == "ok":
                metrics.latency.observe("udp", action, seconds, amount)
        self._tally.clear()


def _announced(packet: bytes, reply: AnnounceReply | WireError | None) -> tuple[Outcome, bytes]:
    """What came of an announce, and the answer to it."""
    transaction = packet[12:HEADER_BYTES]
    if reply is None:
        return "unlisted", wire_udp.error_reply(transaction, UNLISTED)
    if isinstance(reply, WireError):
        outcome: Outcome = "blocked" if isinstance(reply, BlockedError) else "failed"
        return outcome, wire_udp.error_reply(transaction, str(reply))
    return "ok", wire_udp.announce_reply(transaction, reply)


class UdpServer:
    """Serves UDP sockets from one thread.

    Args:
        sockets: bound; they stay the caller's.
        responder: what answers.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        responder: UdpResponder,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._responder = responder
        self._clock = clock
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.epoll()
        self._poll.register(self._wake, select.EPOLLIN)
        self._datagrams = {sock.fileno(): Datagrams(sock) for sock in sockets}
        for descriptor in self._datagrams:
            self._poll.register(descriptor, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="udp", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the batch at hand."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._poll.close()
        os.close(self._wake)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wake:
                    return
                try:
                    self._serve(self._datagrams[descriptor])
                except Exception:  # noqa: BLE001 - it is said, and the next batch is another
                    # One batch is lost; the thread, and with it UDP for all, must not be.
                    _log.exception("a batch of datagrams could not be served")
                    time.sleep(_PAUSE_SECONDS)

    def _serve(self, datagrams: Datagrams) -> None:
        """Answer one batch."""
        start = time.perf_counter()
        now = int(self._clock())
        received = list(datagrams.receive())
        answers = self._responder.respond_many(
            [(data, address) for _, address, data in received], now
        )
        replies = [
            (slot, answer)
            for (slot, _, _), answer in zip(received, answers, strict=True)
            if answer is not None
        ]
        if replies:
            datagrams.send(replies)
        self._responder.count(time.perf_counter() - start)
