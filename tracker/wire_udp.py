# SPDX-License-Identifier: GPL-3.0-or-later
"""The UDP tracker protocol as bytes and values: packets in, packets out.

Whoever sends one packet can write any address as its sender. So a client first proves that it gets
what is sent to its address: it asks for a connection id and repeats it in what follows. Ids are not
remembered but recognised by a keyed hash, since a table of them could be filled by the very packets
that they are there to keep out. Nothing here does input or output, or knows a clock.

Sources: BEP 15 (packets), 41 (options), 7 and the current text of BEP 15 (IPv6), 21 (paused).
"""

from __future__ import annotations

import hmac
from hashlib import blake2s
from struct import Struct
from typing import Final

from tracker.wire_http import (
    HASH_BYTES,
    MAX_SCRAPE,
    AnnounceReply,
    AnnounceRequest,
    Counts,
    Event,
    WireError,
)

KEY_BYTES: Final = 32
"""Size of the key of connection ids."""

CONNECT: Final = bytes(4)
ANNOUNCE: Final = b"\0\0\0\1"
SCRAPE: Final = b"\0\0\0\2"
_ERROR: Final = b"\0\0\0\3"

HEADER_BYTES: Final = 16
"""A connection id, an action and a transaction id; a request to connect has nothing else."""

ANNOUNCE_BYTES: Final = 98
"""An announce without options."""

MAX_PEERS4: Final = 242
"""Peers that fit beside 20 bytes into the 1472 of an unfragmented packet of IPv4."""

MAX_PEERS6: Final = 79
"""The same for the 1452 bytes of IPv6."""

_CONNECT: Final = 0x41727101980.to_bytes(8) + CONNECT
_EVENTS: Final = (Event.NONE, Event.COMPLETED, Event.STARTED, Event.STOPPED, Event.PAUSED)
_SLOT_SECONDS: Final = 60
_AGES: Final = frozenset({0, 1, 2, 255})
_MAC_BYTES: Final = 7
_IPV6: Final = 16
_NETWORK6: Final = 8
_INT64: Final = 1 << 63
_END, _NOP, _URL_DATA = range(3)

_announce = Struct(">16x20s20s8xQ8xI8xiH")
_interval = Struct(">III")
_counts = Struct(">III")


class ConnectionIds:
    """Connection ids: a byte of time and 7 bytes of a keyed hash over time and address.

    An id holds for 120 to 180 seconds; BEP 15 asks for two minutes. One from the next minute is
    taken as well, for a clock that was set back and for hosts that share a key.

    Of an IPv6 address the first 64 bits count. A host has several addresses in its network, and
    clients (libtorrent) use one id with all of them.

    Args:
        key: `KEY_BYTES` random bytes. libtorrent uses an id with all trackers of one address, so
            all of them should have the same key.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(self, address: bytes, now: int) -> bytes:
        """Make the 8 bytes for a client.

        Args:
            address: where its request came from, 4 or 16 bytes.
            now: seconds since the epoch.
        """
        return self._make(address, now // _SLOT_SECONDS)

    def holds(self, connection_id: bytes, address: bytes, now: int) -> bool:
        """Whether 8 bytes are an id that was issued to this address and isn't too old."""
        slot = now // _SLOT_SECONDS
        age = (slot - connection_id[0]) & 0xFF
        if age not in _AGES:
            return False
        issued = slot - age if age != 0xFF else slot + 1
        return hmac.compare_digest(connection_id, self._make(address, issued))

    def _make(self, address: bytes, slot: int) -> bytes:
        network = address[:_NETWORK6] if len(address) == _IPV6 else address
        # Signed, as a clock that was never set may be at the epoch.
        text = slot.to_bytes(8, signed=True) + network
        mac = blake2s(text, key=self._key, digest_size=_MAC_BYTES).digest()
        return (slot & 0xFF).to_bytes() + mac


def is_connect(packet: bytes) -> bool:
    """Whether a packet of at least `HEADER_BYTES` asks for a connection id."""
    return packet.startswith(_CONNECT)


def parse_announce(packet: bytes) -> AnnounceRequest:
    """Read an announce of at least `ANNOUNCE_BYTES`.

    The field for an IP address is ignored, as in HTTP. An unknown event is an ordinary announce; 4
    is libtorrent's for a partial seed. A `left` beyond 63 bits means that the client doesn't know.

    Raises:
        WireError: the port can't be connected to.
    """
    info_hash, peer_id, left, number, numwant, port = _announce.unpack_from(packet)
    event = _EVENTS[number] if number < len(_EVENTS) else Event.NONE
    # Clients that stop may send port 0; nobody will be told to connect to it.
    if not port and event is not Event.STOPPED:
        raise WireError("port: is not between 1 and 65535")
    return AnnounceRequest(
        info_hash=info_hash,
        peer_id=peer_id,
        port=port,
        left=left if left < _INT64 else -1,
        event=event,
        numwant=numwant if numwant >= 0 else None,
        one_family=True,
    )


def url_data(packet: bytes) -> bytes:
    """Path and query of the URL that a client announces to, or nothing if it doesn't say.

    Options are behind the announce (BEP 41): unknown ones are skipped, parts of the URL are put
    together, and with an option that is cut off the rest is ignored.
    """
    parts = []
    at, end = ANNOUNCE_BYTES, len(packet)
    while at < end and packet[at] != _END:
        kind = packet[at]
        at += 1
        if kind == _NOP:
            continue
        value = at + 1
        if at == end or value + packet[at] > end:
            break
        at = value + packet[at]
        if kind == _URL_DATA:
            parts.append(packet[value:at])
    return b"".join(parts)


def parse_scrape(packet: bytes) -> list[bytes]:
    """Read the infohashes of a scrape: the first 74 in order, repeated ones too.

    The answer has no infohashes, so it must have a place for each.
    """
    end = min(len(packet), HEADER_BYTES + MAX_SCRAPE * HASH_BYTES) - HASH_BYTES + 1
    return [packet[at : at + HASH_BYTES] for at in range(HEADER_BYTES, end, HASH_BYTES)]


def connect_reply(transaction: bytes, connection_id: bytes) -> bytes:
    """Encode a connection id; the reply is no longer than the request."""
    return CONNECT + transaction + connection_id


def announce_reply(transaction: bytes, reply: AnnounceReply) -> bytes:
    """Encode an answer with peers of the asker's own family, as many as fit into a packet.

    What a client takes the peers for depends on the family of the packet (BEP 15).
    """
    if len(reply.external_ip) == _IPV6:
        peers = reply.peers6[: MAX_PEERS6 * 18]
    else:
        peers = reply.peers4[: MAX_PEERS4 * 6]
    counts = reply.counts
    numbers = _interval.pack(reply.interval, counts.incomplete, counts.complete)
    return ANNOUNCE + transaction + numbers + peers


def scrape_reply(transaction: bytes, swarms: list[Counts]) -> bytes:
    """Encode the counts of swarms, in the order in which they were asked for."""
    numbers = [_counts.pack(swarm.complete, swarm.downloaded, swarm.incomplete) for swarm in swarms]
    return SCRAPE + transaction + b"".join(numbers)


def error_reply(transaction: bytes, reason: str) -> bytes:
    """Encode a refusal. The text ends with the packet."""
    return _ERROR + transaction + reason.encode()
