# SPDX-License-Identifier: GPL-3.0-or-later
"""What a wire case asks of a tracker, step by step, and how its answer is written down.

An observation is one line of plain text that says what a client learns, and leaves out what may be
otherwise each time (intervals, transactions, which of many peers) or in each tracker (texts).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

UNKNOWN_LEFT = 2**64 - 1
"""What clients say over UDP as they don't know how much is missing."""

EVENTS = {"": 0, "completed": 1, "started": 2, "stopped": 3, "paused": 4, "unknown": 9}


class Announce(NamedTuple):
    """An announce, as both protocols know it.

    Attributes:
        port: of the peer, which also makes its id unless `peer` is given.
        left: bytes that are missing; None for not known.
        event: of `EVENTS`.
        numwant: peers that are wanted; None leaves it out, which is -1 over UDP.
        peer: number that makes the peer's id.
        ip: another address than that of the packet, as text.
        host: the tracker's address, which decides about the client's.
        infohash: which of the case's infohashes.
        show: `peers`, with ports of all but the asker's; `all`, with its own; `count`; or the
            `interval`, roughly.
    """

    port: int
    left: int | None = 10
    event: str = ""
    numwant: int | None = None
    peer: int | None = None
    ip: str = ""
    host: str = "127.0.0.1"
    infohash: int = 0
    show: str = "peers"

    @property
    def peer_id(self) -> bytes:
        """The 20 bytes of its id."""
        return b"-NS0001-%012d" % (self.port if self.peer is None else self.peer)


class Scrape(NamedTuple):
    """A scrape of some of the case's infohashes.

    Attributes:
        infohashes: which ones.
        host: the tracker's address.
        show: `each`, or `number` of entries.
    """

    infohashes: Sequence[int] = (0,)
    host: str = "127.0.0.1"
    show: str = "each"


class Crowd(NamedTuple):
    """Announces of many leechers from as many addresses, which are not looked at."""

    size: int


class Request(NamedTuple):
    """A request over HTTP as it is sent.

    Attributes:
        target: with `{H}`, the infohash with all bytes escaped, and `{P}`, a peer id.
        method: of HTTP.
        headers: lines of the head but those that every request has.
        version: of HTTP.
        show: as for announces; `keys` of the reply, `form` of the peers, `type` of the content,
            `length` of the body, whether `gzip` was used, the external `address`, or whether it
            is a `refusal`.
    """

    target: str
    method: str = "GET"
    headers: tuple[str, ...] = ()
    version: str = "1.1"
    show: str = "peers"


class Packet(NamedTuple):
    """A datagram.

    Attributes:
        action: number of what is asked.
        body: what follows the transaction, in which `H` stands for the infohash.
        connection: `own` id, `magic`, `zero`, `altered` by a bit, or `foreign`, of another address;
            `moved` is the own one from another port.
        cut: bytes that the datagram has at most.
        show: as for announces, `bytes`: action and length of the answer, or
            `text`: action and how the text ends.
    """

    action: int
    body: bytes = b""
    connection: str = "own"
    cut: int = 65536
    show: str = "peers"


Step = Announce | Scrape | Crowd | Request | Packet

H = b"{H}"


class Case(NamedTuple):
    """One case; what its last step gets is observed.

    Attributes:
        name: what is asked, in a few words; stands in the table of differences.
        steps: what is sent, one after the other.
        expected: what our tracker says.
        over: the protocols that it is about.
        udp: what our tracker says over UDP, where that is something else.
        raw: the infohash, where the bytes matter.
        closed: the tracker doesn't track the infohash.
    """

    name: str
    steps: tuple[Step, ...]
    expected: str
    over: tuple[str, ...] = ("http", "udp")
    udp: str | None = None
    raw: bytes | None = None
    closed: bool = False

    def ours(self, protocol: str) -> str:
        """What our tracker says over a protocol."""
        return self.udp if protocol == "udp" and self.udp is not None else self.expected

    def infohash(self, protocol: str, number: int) -> bytes:
        """An infohash that only this case has, over this protocol."""
        if self.raw is not None:
            return self.raw
        digest = hashlib.sha256(f"{self.name} {protocol} {number}".encode()).digest()
        return b"closed" + digest[:14] if self.closed else b"o" + digest[:19]


class Peers(NamedTuple):
    """Peers of a reply: their ports, or addresses with ports unless those are loopback's."""

    shown: Sequence[str]

    @classmethod
    def of(cls, packed: bytes, stride: int) -> Peers:
        """Read packed peers, of 6 or 18 bytes each."""
        if len(packed) % stride:
            return cls(["broken"])
        return cls(
            [
                peer(packed[at : at + stride - 2], int.from_bytes(packed[at + stride - 2 :][:2]))
                for at in range(0, len(packed), stride)
            ]
        )


def peer(address: bytes, port: int) -> str:
    """How a peer is written down."""
    if address == b"\x7f\0\0\1":
        return str(port)
    if address == bytes(15) + b"\1":
        return f"[::1]:{port}"
    text = ".".join(map(str, address)) if len(address) == 4 else address.hex()
    return f"{text}:{port}"


def reply(seeds: int, leechers: int, peers: Sequence[str], asker: str, show: str) -> str:
    """How the reply to an announce is written down."""
    if show == "count":
        return f"{len(peers)} peers"
    others = sorted((each for each in peers if show == "all" or each != asker), key=_order)
    listed = f"peers {' '.join(others)}" if others else "no peers"
    return f"{_many(seeds, 'seed')}, {_many(leechers, 'leecher')}, {listed}"


def _order(shown: str) -> tuple[str, int]:
    address, _, port = shown.rpartition(":")
    return address, int(port) if port.isdecimal() else 0


def entry(seeds: int, downloads: int, leechers: int) -> str:
    """How an entry of a scrape is written down."""
    return f"{_many(seeds, 'seed')} {_many(leechers, 'leecher')} {_many(downloads, 'download')}"


def _many(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def about(seconds: int) -> str:
    """How an interval is written down; a tenth more or less is nothing."""
    nearest = min((60, 90, 600, 900, 1800, 3600), key=lambda each: abs(each - seconds))
    return f"about {nearest} s"
