# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP tracker protocol as bytes and values: queries in, bencoded replies out.

A query string is read here and nowhere else, because the usual parsers destroy it: they decode
percent escapes as UTF-8, which corrupts infohashes, and turn "+" into a space, which is a byte that
an infohash may hold. Nothing here does input or output, or knows a clock.

Sources: BEP 3 (announce), 7 (peers6), 21 (paused), 23 (compact), 24 (external ip), 31 (retry in),
48 (scrape).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Literal, NamedTuple
from urllib.parse import unquote_to_bytes

MAX_SCRAPE = 74
"""How many infohashes one scrape is answered for: as many as UDP's packet holds (BEP 15)."""

HASH_BYTES = 20
"""An infohash on the wire: a SHA-1, or a SHA-256 cut to this length (BEP 52)."""

_INT64_DIGITS = 20
_UINT64 = 1 << 64
_DAY = 86400


class WireError(ValueError):
    """A request that can't be served; its text is the `failure reason` that the client reads."""


class Event(Enum):
    """The `event` of an announce; an empty or unknown one is an ordinary update (BEP 3, BEP 21)."""

    NONE = b""
    STARTED = b"started"
    COMPLETED = b"completed"
    STOPPED = b"stopped"
    PAUSED = b"paused"


_EVENTS = {event.value: event for event in Event}


class AnnounceRequest(NamedTuple):
    """What a client says in one announce.

    Attributes:
        info_hash: 20 bytes.
        peer_id: 20 bytes.
        port: where it listens; 0 only with `Event.STOPPED`.
        left: bytes that it lacks, or -1 when it doesn't say (a magnet link without metadata).
        event: what happened.
        numwant: how many peers it asks for, or None when it leaves that to the tracker.
        compact: whether peers are wanted packed (BEP 23).
        no_peer_id: whether peers that aren't packed may lack their `peer id`.
        one_family: whether peers are of use only if their addresses are of the asker's family.
    """

    info_hash: bytes
    peer_id: bytes
    port: int
    left: int = -1
    event: Event = Event.NONE
    numwant: int | None = None
    compact: bool = True
    no_peer_id: bool = False
    one_family: bool = False

    @property
    def is_seed(self) -> bool:
        """Whether the peer has everything. `completed` has no other meaning, whatever left says."""
        return self.left == 0 or self.event is Event.COMPLETED


class Counts(NamedTuple):
    """A swarm in numbers, as scrapes and announces tell them (BEP 48, BEP 21).

    Attributes:
        complete: peers that have everything.
        incomplete: peers that don't.
        downloaded: how many finished while they were tracked.
        downloaders: the incomplete ones that still want something.
    """

    complete: int
    incomplete: int
    downloaded: int
    downloaders: int


class AnnounceReply(NamedTuple):
    """What the tracker answers to one announce.

    Attributes:
        interval: seconds until the next announce.
        min_interval: seconds before which it shouldn't come.
        counts: the swarm with the asker in it.
        peers4: packed IPv4 peers, 6 bytes each.
        peers6: packed IPv6 peers, 18 bytes each.
        ids4: their peer ids, 20 bytes each, or nothing when they weren't asked for.
        ids6: the same for IPv6.
        external_ip: the asker's address as it was seen, 4 or 16 bytes (BEP 24).
    """

    interval: int
    min_interval: int
    counts: Counts
    peers4: bytes
    peers6: bytes
    ids4: bytes
    ids6: bytes
    external_ip: bytes


def _pairs(query: bytes) -> list[tuple[bytes, bytes]]:
    """Split a query into names and still escaped values."""
    pairs = []
    for field in query.split(b"&"):
        name, _, value = field.partition(b"=")
        pairs.append((unquote_to_bytes(name) if b"%" in name else name, value))
    return pairs


def _info_hash(escaped: bytes) -> bytes:
    info_hash = unquote_to_bytes(escaped)
    if len(info_hash) != HASH_BYTES:
        raise WireError(f"info_hash: has {len(info_hash)} bytes instead of 20")
    return info_hash


def _number(name: str, text: bytes) -> int:
    """Read a decimal integer that fits in 64 bits, signed or not."""
    digits = text[1:] if text.startswith(b"-") else text
    if not digits.isdigit() or len(digits) > _INT64_DIGITS or int(digits) >= _UINT64:
        raise WireError(f"{name}: is not a number of 64 bits")
    return int(text)


def parse_announce(query: bytes) -> AnnounceRequest:
    """Read the query string of an announce.

    The parameters `ip`, `ipv4` and `ipv6` are ignored: whoever could name another address could aim
    a swarm's connections at it. `uploaded`, `downloaded`, `corrupt` and `key` are not needed.
    Of a parameter that is repeated, the first counts.

    Args:
        query: the raw query string, escapes and all.

    Raises:
        WireError: naming the parameter that is missing or wrong.
    """
    values: dict[bytes, bytes] = {}
    for name, value in _pairs(query):
        if name not in values:
            values[name] = value
        elif name == b"info_hash":
            raise WireError("info_hash: only one may be announced at a time")
    if b"info_hash" not in values:
        raise WireError("info_hash: is missing")
    info_hash = _info_hash(values[b"info_hash"])
    peer_id = unquote_to_bytes(values.get(b"peer_id", b""))
    if len(peer_id) != HASH_BYTES:
        raise WireError(
            f"peer_id: has {len(peer_id)} bytes instead of 20"
            if b"peer_id" in values
            else "peer_id: is missing"
        )
    event = _EVENTS.get(unquote_to_bytes(values.get(b"event", b"")), Event.NONE)
    if b"port" not in values:
        raise WireError("port: is missing")
    port = _number("port", values[b"port"])
    # Clients that stop may send port 0; nobody will be told to connect to it.
    if not (0 if event is Event.STOPPED else 1) <= port <= 65535:
        raise WireError("port: is not between 1 and 65535")
    left = _number("left", values[b"left"]) if b"left" in values else -1
    numwant = _number("numwant", values[b"numwant"]) if b"numwant" in values else -1
    return AnnounceRequest(
        info_hash=info_hash,
        peer_id=peer_id,
        port=port,
        left=max(left, -1),
        event=event,
        numwant=numwant if numwant >= 0 else None,
        compact=values.get(b"compact") != b"0",
        no_peer_id=values.get(b"no_peer_id") == b"1",
    )


def parse_scrape(query: bytes) -> list[bytes]:
    """Read the infohashes of a scrape, each once, in order, and no more than `MAX_SCRAPE`.

    Raises:
        WireError: when there is none (a full scrape would be a gift to copiers and an attack on
            memory) or one isn't 20 bytes.
    """
    wanted: dict[bytes, None] = {}
    for name, value in _pairs(query):
        if name == b"info_hash":
            wanted[_info_hash(value)] = None
            if len(wanted) == MAX_SCRAPE:
                break
    if not wanted:
        raise WireError("info_hash: is missing, and full scrapes are not served")
    return list(wanted)


def _string(value: bytes) -> bytes:
    return b"%d:%b" % (len(value), value)


def _entries(packed: bytes, ids: bytes, family: int, address_bytes: int) -> Iterable[bytes]:
    """Peers as the dictionaries of BEP 3."""
    stride = address_bytes + 2
    for index in range(len(packed) // stride):
        peer = packed[index * stride : (index + 1) * stride]
        host = inet_ntop(family, peer[:address_bytes]).encode()
        port = int.from_bytes(peer[address_bytes:])
        peer_id = b""
        if ids:
            start = index * HASH_BYTES
            peer_id = b"7:peer id20:" + ids[start : start + HASH_BYTES]
        yield b"d2:ip%b%b4:porti%dee" % (_string(host), peer_id, port)


def announce_reply(reply: AnnounceReply, *, compact: bool) -> bytes:
    """Encode an answer; `peers` is always there, since checkers and clients look for it.

    `peers6` stands beside it when there are IPv6 peers or the asker is one (BEP 7).
    """
    counts = reply.counts
    head = b"d8:completei%de10:downloadedi%de11:external ip%b10:incompletei%de8:intervali%de" % (
        counts.complete,
        counts.downloaded,
        _string(reply.external_ip),
        counts.incomplete,
        reply.interval,
    )
    head += b"12:min intervali%de5:peers" % reply.min_interval
    if not compact:
        four = b"".join(_entries(reply.peers4, reply.ids4, AF_INET, 4))
        six = b"".join(_entries(reply.peers6, reply.ids6, AF_INET6, 16))
        return b"%bl%b%bee" % (head, four, six)
    head += _string(reply.peers4)
    if reply.peers6 or len(reply.external_ip) == 16:
        head += b"6:peers6" + _string(reply.peers6)
    return head + b"e"


def failure(reason: str, *, retry_in: int | Literal["never"] | None = None) -> bytes:
    """Encode a refusal, which is sent with HTTP status 200 (BEP 3).

    Args:
        reason: what the client shows its user.
        retry_in: minutes to wait, or never (BEP 31). libtorrent reads the same from `interval`, in
            seconds; a day stands for never.
    """
    reply = b"d14:failure reason" + _string(reason.encode())
    if retry_in == "never":
        reply += b"8:intervali%de8:retry in5:never" % _DAY
    elif retry_in is not None:
        reply += b"8:intervali%de8:retry ini%de" % (retry_in * 60, retry_in)
    return reply + b"e"


def scrape_reply(files: Mapping[bytes, Counts], *, min_interval: int) -> bytes:
    """Encode the counts of several swarms (BEP 48).

    Args:
        files: counts by infohash, in any order.
        min_interval: seconds before which the same client shouldn't scrape again.
    """
    entries = b"".join(
        b"20:%bd8:completei%de10:downloadedi%de11:downloadersi%de10:incompletei%dee"
        % (info_hash, counts.complete, counts.downloaded, counts.downloaders, counts.incomplete)
        for info_hash, counts in sorted(files.items())
    )
    return b"d5:filesd%be5:flagsd20:min_request_intervali%deee" % (entries, min_interval)
