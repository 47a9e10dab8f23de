# SPDX-License-Identifier: GPL-3.0-or-later
"""What trackers answer, taken apart.

Every answer is advice from a stranger. It is read strictly, so that what comes out are numbers
within bounds, infohashes of their length, and peers that are literal addresses with ports: nothing
that could be resolved, followed or written somewhere. What it claims is checked by whoever
downloads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from narswarm import base32, metainfo, narinfo
from narswarm.errors import InvalidInputError, NetworkError
from narswarm.payload import Kind, file_name, is_server_name

MAX_TORRENTS: Final = 16
"""Torrents that are read of one answer; the best come first."""

MAX_PEERS: Final = 50
"""Peers that are read of one torrent."""

MAX_WANTED: Final = 1000
"""Items that one answer may call wanted."""

MAX_GENERATION: Final = 2**53
"""Generations and cursors are below this: JSON has no larger integers for everybody."""

_MAX_COUNT: Final = 2**31
_HEX: Final = re.compile(r"[0-9a-f]+")
_PEER: Final = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([0-9.]{7,15})):([1-9][0-9]{0,4})")
_KINDS: Final = frozenset(Kind)


class Peer(NamedTuple):
    """Where somebody listens: a literal address of either family, and a port."""

    address: str
    port: int


class IndexedTorrent(NamedTuple):
    """A torrent that publishers claim to carry a NAR.

    Attributes:
        kind: what its payload is.
        name: the payload's file name, which follows from NAR and kind unless it is a server's.
        length: bytes of the payload.
        piece_length: bytes.
        infohash_v1: 20 bytes.
        infohash_v2: 32 bytes.
        seeders: how many have all of it.
        leechers: how many don't.
        publishers: how many claim it.
        peers: some of them, seeds first.
    """

    kind: Kind
    name: str
    length: int
    piece_length: int
    infohash_v1: bytes
    infohash_v2: bytes
    seeders: int
    leechers: int
    publishers: int
    peers: tuple[Peer, ...]


class IndexEntry(NamedTuple):
    """What a tracker knows of a NAR.

    Attributes:
        nar_hash: SHA-256 of the NAR, 32 bytes.
        nar_size: bytes of the NAR, or None where there is no torrent yet.
        torrents: the best first; none when it would have to be made first.
        holders: how many seeders say that they could serve it.
    """

    nar_hash: bytes
    nar_size: int | None
    torrents: tuple[IndexedTorrent, ...]
    holders: int = 0


class HoldingsReply(NamedTuple):
    """What a tracker made of a list of holdings.

    Attributes:
        generation: which list it has now.
        held: how many items that is.
        lease: seconds after which it forgets them, unless they are refreshed.
    """

    generation: int
    held: int
    lease: int


class WantedNar(NamedTuple):
    """A NAR that somebody asked for: its SHA-256, 32 bytes, and how often."""

    nar_hash: bytes
    requests: int


class WantedReply(NamedTuple):
    """What is wanted, the oldest first, and the cursor to ask with the next time."""

    cursor: int
    wanted: tuple[WantedNar, ...]


def parse_entry(body: bytes, nar_hash: bytes, source: str) -> IndexEntry:
    """Read an answer of an index.

    Torrents of a kind that isn't known here are passed over; so are peers whose addresses can't
    be connected to. Everything else that isn't as it should be makes the answer invalid.

    Args:
        body: JSON.
        nar_hash: which NAR was asked for.
        source: the URL, the subject of errors.

    Raises:
        NetworkError: it isn't an answer to that.
    """
    with _reading(source):
        answer = json.loads(body)
        _require(answer["nar_hash"] == base32.format_hash(nar_hash), "nar_hash")
        torrents = answer["torrents"]
        _require(isinstance(torrents, list), "torrents")
        known = [torrent for torrent in torrents[:MAX_TORRENTS] if torrent["kind"] in _KINDS]
        if answer["nar_size"] is None:
            _require(not torrents, "nar_size")
            nar_size = None
        else:
            nar_size = _integer(answer, "nar_size", narinfo.MAX_NAR_SIZE)
        return IndexEntry(
            nar_hash,
            nar_size,
            tuple(_torrent(torrent, nar_hash) for torrent in known),
            _integer({"holders": 0, **answer}, "holders", _MAX_COUNT),
        )


def parse_holdings(body: bytes, source: str) -> HoldingsReply:
    """Read an answer about holdings.

    Raises:
        NetworkError: it isn't one.
    """
    with _reading(source):
        answer = json.loads(body)
        lease = _integer(answer, "lease", _MAX_COUNT)
        _require(lease > 0, "lease")
        return HoldingsReply(
            _integer(answer, "generation", MAX_GENERATION),
            _integer(answer, "held", _MAX_COUNT),
            lease,
        )


def parse_wanted(body: bytes, source: str) -> WantedReply:
    """Read an answer about what is wanted; no more than what an answer may hold.

    Raises:
        NetworkError: it isn't one.
    """
    with _reading(source):
        answer = json.loads(body)
        wanted = answer["wanted"]
        _require(isinstance(wanted, list) and len(wanted) <= MAX_WANTED, "wanted")
        return WantedReply(
            _integer(answer, "cursor", MAX_GENERATION), tuple(_wanted(entry) for entry in wanted)
        )


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Say of whatever isn't an answer what is wrong with it."""
    try:
        yield
    except KeyError as error:
        raise NetworkError(source, f"answers without {error.args[0]}") from None
    except InvalidInputError as error:
        raise NetworkError(source, f"answers with an invalid {error.subject}") from None
    except (ValueError, RecursionError):
        raise NetworkError(source, "answers something that is not JSON") from None
    except (TypeError, AttributeError):
        raise NetworkError(source, "answers with another structure than an index") from None


def _wanted(entry: dict[str, Any]) -> WantedNar:
    text = entry["nar_hash"]
    _require(isinstance(text, str), "nar_hash")
    try:
        nar_hash = base32.parse_hash(text)
    except InvalidInputError as error:  # its subject are the stranger's own words
        raise InvalidInputError("nar_hash", error.reason) from None
    return WantedNar(nar_hash, _integer(entry, "requests", _MAX_COUNT))


def _torrent(entry: dict[str, Any], nar_hash: bytes) -> IndexedTorrent:
    kind = Kind(entry["kind"])
    name = entry["name"]
    if kind is Kind.SERVER:
        _require(isinstance(name, str) and is_server_name(name), "name")
    else:
        _require(name == file_name(nar_hash, kind), "name")
    peers = entry["peers"]
    _require(isinstance(peers, list), "peers")
    return IndexedTorrent(
        kind=kind,
        name=name,
        length=_integer(entry, "length", metainfo.MAX_LENGTH),
        piece_length=_integer(entry, "piece_length", metainfo.MAX_LENGTH),
        infohash_v1=_hex(entry, "infohash_v1", 20),
        infohash_v2=_hex(entry, "infohash_v2", 32),
        seeders=_integer(entry, "seeders", _MAX_COUNT),
        leechers=_integer(entry, "leechers", _MAX_COUNT),
        publishers=_integer(entry, "publishers", _MAX_COUNT),
        peers=tuple(filter(None, map(_peer, peers[:MAX_PEERS]))),
    )


def _require(condition: bool, subject: str) -> None:
    if not condition:
        raise InvalidInputError(subject, "is not as it should be")


def _integer(entry: dict[str, Any], name: str, most: int) -> int:
    value = entry[name]
    _require(type(value) is int and 0 <= value <= most, name)  # a bool is an int, too
    return int(value)


def _hex(entry: dict[str, Any], name: str, size: int) -> bytes:
    value = entry[name]
    _require(
        isinstance(value, str) and len(value) == 2 * size and _HEX.fullmatch(value) is not None,
        name,
    )
    return bytes.fromhex(value)


def _peer(text: object) -> Peer | None:
    """Read `address:port` or `[address]:port`; nothing if it isn't a place to connect to."""
    match = _PEER.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    try:
        address = ip_address(match[1] or match[2])
    except ValueError:
        return None
    port = int(match[3])
    if port > 65535 or address.is_unspecified or address.is_multicast:
        return None
    if (match[1] is None) != (address.version == 4):
        return None
    return Peer(str(address), port)
