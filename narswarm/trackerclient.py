# SPDX-License-Identifier: GPL-3.0-or-later
"""A tracker's index, asked and told: which torrents carry a NAR, and who has them.

Every answer is advice from a stranger. It is taken apart strictly, so that what comes out are
numbers within bounds, infohashes of their length, and peers that are literal addresses with ports:
nothing that could be resolved, followed or written somewhere. What it claims is checked by whoever
downloads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from narswarm import base32, bencoding, metainfo, narinfo
from narswarm.errors import InvalidInputError, NetworkError
from narswarm.httpclient import Response
from narswarm.payload import Kind, file_name

if TYPE_CHECKING:
    from narswarm.httpsig import PublisherKey

MAX_TORRENTS: Final = 16
"""Torrents that are read of one answer; the best come first."""

MAX_PEERS: Final = 50
"""Peers that are read of one torrent."""

MAX_ANSWER: Final = 256 * 1024
"""Bytes of an answer in JSON."""

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
        name: the payload's file name, which follows from NAR and kind.
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
    """What a tracker knows of a NAR, the best torrent first."""

    nar_hash: bytes
    nar_size: int
    torrents: tuple[IndexedTorrent, ...]


class RefusedError(NetworkError):
    """A tracker did not take a publication, and won't take it if it is sent again.

    Attributes:
        status: its HTTP status.
    """

    def __init__(self, url: str, reason: str, status: int) -> None:
        super().__init__(url, reason)
        self.status = status


class Client(Protocol):
    """What makes requests: a `narswarm.httpclient.HttpClient`."""

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int = ...,
        timeout: float | None = None,
    ) -> Response:
        """Make one request."""


class TrackerIndex:
    """The index of one tracker.

    Args:
        client: what makes requests.
        base_url: the tracker's URL, without `/announce`.
        timeout: seconds for one request, or the client's own limit.
    """

    def __init__(self, client: Client, base_url: str, *, timeout: float | None = None) -> None:
        self._client = client
        self._base = base_url.rstrip("/")
        self._timeout = timeout

    @property
    def announce_url(self) -> str:
        """Where clients announce."""
        return f"{self._base}/announce"

    @property
    def narinfo_url(self) -> str:
        """Base URL of the narinfos that the tracker mirrors, as if of a substitute server."""
        return f"{self._base}/v1/narinfo"

    def lookup(self, nar_hash: bytes) -> IndexEntry | None:
        """Ask which torrents carry a NAR of which the SHA-256 is given; nothing if none is known.

        Raises:
            NetworkError: the tracker can't be reached, or its answer isn't one.
        """
        url = self._url(nar_hash)
        response = self._get(url, MAX_ANSWER)
        return None if response is None else parse_entry(response.body, nar_hash, url)

    def torrent(self, nar_hash: bytes, infohash_v2: bytes | None = None) -> bytes | None:
        """Ask for a torrent of a NAR, the best or a certain one; nothing if it isn't known.

        The bytes are as the tracker sent them: `narswarm.metainfo.decode` checks them.

        Raises:
            NetworkError: the tracker can't be reached, or its answer isn't one.
        """
        choice = f"?infohash={infohash_v2.hex()}" if infohash_v2 else ""
        response = self._get(f"{self._url(nar_hash)}.torrent{choice}", metainfo.MAX_BYTES)
        return None if response is None else response.body

    def publish(
        self, key: PublisherKey, nar_hash: bytes, torrent: bytes, raw_narinfo: bytes, now: float
    ) -> bool:
        """Claim that a torrent carries a NAR.

        Args:
            key: whose claim it is.
            nar_hash: SHA-256 of the NAR.
            torrent: of profile 1; only its identity is kept.
            raw_narinfo: signed by a key that the tracker has in its ACL. URLs in it should be
                absolute: relative ones mean nothing there.
            now: seconds since the epoch.

        Returns:
            Whether the tracker didn't know it yet.

        Raises:
            RefusedError: the tracker doesn't want it.
            NetworkError: the tracker can't be reached, or is in trouble.
        """
        from narswarm import httpsig  # noqa: PLC0415 - most users only ask; it is 10 ms

        url = self._url(nar_hash)
        body = bencoding.encode({b"narinfo": raw_narinfo, b"torrent": torrent})
        headers = httpsig.sign_request(key, "PUT", urlsplit(url).path, body, now)
        headers["Content-Type"] = "application/x-bencode"
        response = self._client.request(
            "PUT", url, headers=headers, body=body, max_bytes=MAX_ANSWER, timeout=self._timeout
        )
        if response.status in {HTTPStatus.OK, HTTPStatus.CREATED}:
            return response.status == HTTPStatus.CREATED
        reason = f"answers {response.status}: {_reason(response.body)}"
        if HTTPStatus.BAD_REQUEST <= response.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise RefusedError(url, reason, response.status)
        raise NetworkError(url, reason)

    def _url(self, nar_hash: bytes) -> str:
        return f"{self._base}/v1/nar/{base32.encode(nar_hash)}"

    def _get(self, url: str, max_bytes: int) -> Response | None:
        response = self._client.request("GET", url, max_bytes=max_bytes, timeout=self._timeout)
        if response.status == HTTPStatus.NOT_FOUND:
            return None
        if response.status != HTTPStatus.OK:
            raise NetworkError(url, f"answers {response.status}: {_reason(response.body)}")
        return response


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
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise NetworkError(source, "answers something that is not JSON") from None
    try:
        _require(answer["nar_hash"] == base32.format_hash(nar_hash), "nar_hash")
        nar_size = _integer(answer, "nar_size", narinfo.MAX_NAR_SIZE)
        torrents = answer["torrents"]
        _require(isinstance(torrents, list), "torrents")
        known = [torrent for torrent in torrents[:MAX_TORRENTS] if torrent["kind"] in _KINDS]
        return IndexEntry(
            nar_hash, nar_size, tuple(_torrent(torrent, nar_hash) for torrent in known)
        )
    except KeyError as error:
        raise NetworkError(source, f"answers without {error.args[0]}") from None
    except (TypeError, AttributeError):
        raise NetworkError(source, "answers with another structure than an index") from None
    except InvalidInputError as error:
        raise NetworkError(source, f"answers with an invalid {error.subject}") from None


def _torrent(entry: dict[str, Any], nar_hash: bytes) -> IndexedTorrent:
    kind = Kind(entry["kind"])
    name = file_name(nar_hash, kind)
    _require(entry["name"] == name, "name")
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


def _reason(body: bytes) -> str:
    """What a tracker says is wrong, as far as it may be shown on a terminal."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, RecursionError, TypeError, KeyError):
        error = "no reason given"
    text = error if isinstance(error, str) else "no reason given"
    return "".join(character for character in text[:300] if character.isprintable())
