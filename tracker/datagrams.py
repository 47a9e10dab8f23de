# SPDX-License-Identifier: GPL-3.0-or-later
"""Many datagrams with one call of the system: recvmmsg and sendmmsg of Linux.

Python's own `recvmsg` and `sendmsg` take a call and a dozen objects for each datagram. Here all
buffers are made once, the kernel is given the same array of headers again and again, and an answer
borrows the header of what it answers: its address, and the address that the question was sent to,
from which the answer must leave.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

BATCH = 64
"""How many datagrams are taken at a time. Their answers take about a millisecond of Python."""

MAX_REQUEST = 2048
"""Bytes that are read of a datagram; a scrape of 74 infohashes has 1496."""

MAX_REPLY = 1472
"""Bytes that a datagram of IPv4 carries unfragmented over Ethernet."""

_IP_PKTINFO = 8  # of Linux; Python has it since 3.13 only
_NAME = 28  # struct sockaddr_in6
_CONTROL = 64  # struct cmsghdr and struct in6_pktinfo take 40
_MMSGHDR = struct.Struct("@PIPNPNi0PI0P")
_IOVEC = struct.Struct("@PN")
_CMSGHDR = struct.calcsize("@Nii0P")
_MAPPED = bytes(10) + b"\xff\xff"
_NOTHING_THERE = {errno.EAGAIN, errno.EINTR}
_FULL = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM}

_libc = ctypes.CDLL(None, use_errno=True)
_RECEIVE_ARGUMENTS = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_libc.recvmmsg.argtypes = _RECEIVE_ARGUMENTS
_libc.sendmmsg.argtypes = _RECEIVE_ARGUMENTS[:-1]


class Datagram(NamedTuple):
    """What somebody sent.

    Attributes:
        slot: what `Datagrams.send` takes to answer it, until the next `receive`.
        address: where it came from, 4 or 16 bytes.
        data: its first `MAX_REQUEST` bytes.
    """

    slot: int
    address: bytes
    data: bytes


class _Buffer:
    """Memory that doesn't move."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)
        self._pin = (ctypes.c_char * size).from_buffer(self.bytes)
        self.address = ctypes.addressof(self._pin)


class Datagrams:
    """A UDP socket with buffers for a batch in either direction.

    Args:
        sock: bound; its descriptor must stay open. A socket for any address answers from the
            address that was asked.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._descriptor = sock.fileno()
        self._six = sock.family == socket.AF_INET6
        control = 0
        if sock.getsockname()[0] in {"::", "0.0.0.0"}:  # noqa: S104
            control = _CONTROL
            if self._six:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._names = _Buffer(BATCH * _NAME)
        self._control = _Buffer(BATCH * _CONTROL)
        self._requests = _Buffer(BATCH * MAX_REQUEST)
        self._replies = _Buffer(BATCH * MAX_REPLY)
        request_vectors = _Buffer(BATCH * _IOVEC.size)
        self._reply_vectors = _Buffer(BATCH * _IOVEC.size)
        self._incoming = _Buffer(BATCH * _MMSGHDR.size)
        self._outgoing = _Buffer(BATCH * _MMSGHDR.size)
        for slot in range(BATCH):
            _IOVEC.pack_into(
                request_vectors.bytes,
                slot * _IOVEC.size,
                self._requests.address + slot * MAX_REQUEST,
                MAX_REQUEST,
            )
            _MMSGHDR.pack_into(
                self._incoming.bytes,
                slot * _MMSGHDR.size,
                self._names.address + slot * _NAME,
                _NAME,
                request_vectors.address + slot * _IOVEC.size,
                1,
                self._control.address + slot * _CONTROL if control else 0,
                control,
                0,
                0,
            )
        self._fresh = bytes(self._incoming.bytes)
        self._kept = request_vectors
        self._lengths: list[tuple[int, int]] = []

    def receive(self) -> list[Datagram]:
        """Take what is there, at most `BATCH`, without waiting.

        Raises:
            OSError: the socket is broken.
        """
        # The kernel wrote the sizes that it used over those that it may use.
        self._incoming.bytes[:] = self._fresh
        count = _libc.recvmmsg(
            self._descriptor, self._incoming.address, BATCH, socket.MSG_DONTWAIT, None
        )
        if count < 0:
            error = ctypes.get_errno()
            if error in _NOTHING_THERE:
                return []
            raise OSError(error, os.strerror(error))
        self._forget_interfaces()
        received = []
        self._lengths = lengths = []
        names, requests = self._names.bytes, self._requests.bytes
        headers = memoryview(self._incoming.bytes)[: count * _MMSGHDR.size]
        for slot, header in enumerate(_MMSGHDR.iter_unpack(headers)):
            lengths.append((header[1], header[5]))
            name, start = slot * _NAME, slot * MAX_REQUEST
            # Nobody can be answered at port 0.
            if names[name + 2] or names[name + 3]:
                address = bytes(
                    names[name + 8 : name + 24] if self._six else names[name + 4 : name + 8]
                )
                if address.startswith(_MAPPED):
                    address = address[12:]
                data = bytes(requests[start : start + header[7]])
                received.append(Datagram(slot, address, data))
        return received

    def _forget_interfaces(self) -> None:
        """Leave the way of answers to routing: they need not leave where the question came in."""
        start = _CMSGHDR + (16 if self._six else 0)
        for at in range(start, start + 4):
            self._control.bytes[at::_CONTROL] = bytes(BATCH)

    def send(self, replies: Iterable[tuple[int, bytes]]) -> int:
        """Answer datagrams of the last batch, at most one reply each, without waiting.

        What doesn't go out is lost, as datagrams are: clients ask again.

        Args:
            replies: slots, and at most `MAX_REPLY` bytes for each.

        Returns:
            How many went out.
        """
        count = 0
        vectors, headers = self._reply_vectors, self._outgoing
        for slot, reply in replies:
            start, vector = count * MAX_REPLY, count * _IOVEC.size
            self._replies.bytes[start : start + len(reply)] = reply
            _IOVEC.pack_into(vectors.bytes, vector, self._replies.address + start, len(reply))
            name_length, control_length = self._lengths[slot]
            _MMSGHDR.pack_into(
                headers.bytes,
                count * _MMSGHDR.size,
                self._names.address + slot * _NAME,
                name_length,
                vectors.address + vector,
                1,
                self._control.address + slot * _CONTROL if control_length else 0,
                control_length,
                0,
                0,
            )
            count += 1
        done = lost = 0
        while done < count:
            sent = _libc.sendmmsg(
                self._descriptor,
                headers.address + done * _MMSGHDR.size,
                count - done,
                socket.MSG_DONTWAIT,
            )
            if sent < 0:
                if ctypes.get_errno() in _FULL:
                    return done - lost
                # One that can't be sent (a firewall, no route) doesn't keep others back.
                sent = 1
                lost += 1
            done += sent
        return done - lost
