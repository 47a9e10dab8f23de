# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes down all that a node sends: to others, and to itself.

sniff.py FILE    until killed; says `ready`

What was sent over one connection, or from one UDP port to another, is joined, so that words which
two packets share are found. FILE is written anew each second.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys
from pathlib import Path

ALL = 0x0003
IP4, IP6 = 0x0800, 0x86DD
TCP, UDP = 6, 17
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_STATISTICS = 263, 6
EXTENSIONS = (0, 43, 60)


def payload(packet: bytes, protocol: int) -> tuple[bytes, bytes]:
    """What tells a flow from others, and the bytes in a packet of it; nothing if it isn't one."""
    if protocol == IP4:
        at, kind = (packet[0] & 15) * 4, packet[9]
        total = int.from_bytes(packet[2:4], "big") or len(packet)
        ends = packet[12:20]
    elif protocol == IP6:
        at, kind = 40, packet[6]
        total = 40 + int.from_bytes(packet[4:6], "big")
        ends = packet[8:40]
        while kind in EXTENSIONS:
            kind, at = packet[at], at + 8 * (packet[at + 1] + 1)
    else:
        return b"", b""
    flow = bytes([kind]) + ends + packet[at : at + 4]
    if kind == TCP:
        return flow, packet[at + (packet[at + 12] >> 4) * 4 : total]
    return (flow, packet[at + 8 : total]) if kind == UDP else (b"", b"")


def main(file: str) -> None:
    """Listen until killed."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ALL))
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
    flows: dict[bytes, bytearray] = {}
    target, lost = Path(file), 0
    print("ready", flush=True)
    while True:
        for _ in range(10_000):
            if not select.select([sock], [], [], 0.5)[0]:
                break
            packet, (_, protocol, kind, *_) = sock.recvfrom(1 << 17)
            # What goes to itself is seen twice, as sent and as received.
            if kind != socket.PACKET_OUTGOING:
                continue
            with contextlib.suppress(IndexError):
                flow, data = payload(packet, protocol)
                if data:
                    flows.setdefault(flow, bytearray()).extend(data)
        # Packets that the kernel had no room for would be a gap in what was looked at.
        lost += struct.unpack("<II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        new = target.with_suffix(".new")
        with new.open("wb") as out:
            out.write(b"lost %d\n\n" % lost)
            for sent in flows.values():
                out.write(sent + b"\n\n")
        new.rename(target)


if __name__ == "__main__":
    main(sys.argv[1])
