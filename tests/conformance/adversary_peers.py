# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers that speak BEP 3 by hand, and badly.

Each listens at an address of its own on loopback: libtorrent has one connection to an address.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final

from narswarm.metainfo import Metainfo

_PROTOCOL: Final = b"\x13BitTorrent protocol"
_V2_BIT: Final = 0x10
_CHOKE_IDS: Final = {"unchoke": 1, "bitfield": 5, "piece": 7, "have": 4}
_REQUEST: Final = 6
_addresses = itertools.count(2)

Behaviour = Callable[["Peer", socket.socket], None]


class Peer:
    """A peer that has all of a torrent, as it says.

    Args:
        meta: the torrent.
        behaviour: what it does with a connection, in a thread of its own.
    """

    def __init__(self, meta: Metainfo, behaviour: Behaviour) -> None:
        self.meta = meta
        self.over = threading.Event()
        """Set when the test is over."""
        self.met = 0
        """Connections so far."""
        self._behaviour = behaviour
        self._listener = socket.socket()
        number = next(_addresses)
        self._listener.bind((f"127.0.{number // 250 + 9}.{number % 250 + 1}", 0))
        self._listener.listen(64)
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it listens, as an index names peers."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def close(self) -> None:
        """End it and its connections."""
        self.over.set()
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._thread.join()

    def _accept(self) -> None:
        while not self.over.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.met += 1
            self._sockets.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), sock:
            self._behaviour(self, sock)


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly so many bytes."""
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def send(sock: socket.socket, kind: str, payload: bytes = b"") -> None:
    """One message."""
    sock.sendall(struct.pack(">IB", 1 + len(payload), _CHOKE_IDS[kind]) + payload)


def greet(peer: Peer, sock: socket.socket, *, v2: bool = False, infohash: bytes = b"") -> None:
    """Handshake, with the infohash that the other one has, that of version 2, or another."""
    theirs = receive(sock, 68)
    chosen = infohash or (peer.meta.infohash_v2[:20] if v2 else theirs[28:48])
    reserved = bytes([0, 0, 0, 0, 0, 0, 0, _V2_BIT if v2 else 0])
    sock.sendall(_PROTOCOL + reserved + chosen + b"-XX0000-" + bytes(12))


def have_all(peer: Peer, sock: socket.socket) -> None:
    """Say that it has everything and may be asked."""
    pieces = -(-peer.meta.length // peer.meta.piece_length)
    bits = (1 << pieces) - 1 << -pieces % 8
    send(sock, "bitfield", bits.to_bytes(-(-pieces // 8), "big"))
    send(sock, "unchoke")


def requests(sock: socket.socket) -> tuple[int, int, int]:
    """The next block that it is asked for: piece, begin and length."""
    while True:
        size = struct.unpack(">I", receive(sock, 4))[0]
        message = receive(sock, size)
        if message[:1] == bytes([_REQUEST]):
            index, begin, length = struct.unpack(">III", message[1:])
            return index, begin, length


# What they do.


def wrong_blocks(peer: Peer, sock: socket.socket, *, v2: bool = False) -> None:
    """Answer each request with other bytes."""
    greet(peer, sock, v2=v2)
    have_all(peer, sock)
    while True:
        index, begin, length = requests(sock)
        send(sock, "piece", struct.pack(">II", index, begin) + b"\xee" * length)


def wrong_blocks_v2(peer: Peer, sock: socket.socket) -> None:
    """The same as a peer of version 2."""
    wrong_blocks(peer, sock, v2=True)


def drip(peer: Peer, sock: socket.socket) -> None:
    """A byte of the first block each half second."""
    greet(peer, sock)
    have_all(peer, sock)
    index, begin, length = requests(sock)
    sock.sendall(struct.pack(">IBII", 9 + length, 7, index, begin))
    while not peer.over.wait(0.5):
        sock.sendall(b"x")


def dripping_handshake(peer: Peer, sock: socket.socket) -> None:
    """A byte of the handshake each half second."""
    receive(sock, 68)
    for byte in _PROTOCOL + bytes(48):
        if peer.over.wait(0.5):
            return
        sock.sendall(bytes([byte]))


def unchoked_silence(peer: Peer, sock: socket.socket) -> None:
    """Take requests and answer none."""
    greet(peer, sock)
    have_all(peer, sock)
    while True:
        requests(sock)


def silence(peer: Peer, sock: socket.socket) -> None:
    """Say nothing at all."""
    peer.over.wait()
    sock.close()


def huge_message(peer: Peer, sock: socket.socket) -> None:
    """Begin a message of 4 GiB, and go on with it for as long as somebody listens."""
    greet(peer, sock)
    sock.sendall(b"\xff\xff\xff\xff\x07")
    while not peer.over.is_set():
        sock.sendall(bytes(1 << 16))


def nonsense(peer: Peer, sock: socket.socket) -> None:
    """Have pieces that don't exist, and send blocks that nobody asked for."""
    greet(peer, sock)
    send(sock, "have", struct.pack(">I", 2**31 - 1))
    send(sock, "piece", struct.pack(">II", 2**32 - 1, 2**32 - 1) + bytes(16384))
    send(sock, "bitfield", b"\xff" * 65536)
    peer.over.wait()


def other_torrent(peer: Peer, sock: socket.socket) -> None:
    """Answer with another infohash."""
    greet(peer, sock, infohash=b"\xaa" * 20)
    peer.over.wait()


class Dead:
    """Addresses at which connections are neither refused nor made: their queues are full."""

    def __init__(self, count: int) -> None:
        self._sockets: list[socket.socket] = []
        self.addresses: list[str] = []
        for number in range(count):
            listener = socket.socket()
            listener.bind((f"127.0.8.{number + 1}", 0))
            listener.listen(0)
            host, port = listener.getsockname()
            self.addresses.append(f"{host}:{port}")
            self._sockets.append(listener)
            for _ in range(2):
                filler = socket.socket()
                filler.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    filler.connect((host, port))
                self._sockets.append(filler)

    def close(self) -> None:
        """Let go of them."""
        for each in self._sockets:
            each.close()
