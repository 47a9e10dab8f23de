# SPDX-License-Identifier: GPL-3.0-or-later
"""A tracker's index, asked and told: which torrents carry a NAR, and who has or could make them.

Every answer is advice from a stranger. It is taken apart strictly, so that what comes out are
numbers within bounds, infohashes of their length, and peers that are literal addresses with ports:
nothing that could be resolved, followed or written somewhere. What it claims is checked by whoever
downloads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from narswarm import base32, bencoding, metainfo, narinfo
from narswarm.errors import InvalidInputError, NetworkError, NotFoundError
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

LONGEST_WAIT: Final = 50
"""Seconds for which a tracker may be asked to wait until something is wanted."""

_ANSWER_SECONDS: Final = 10
"""What a long poll may take beyond its wait."""

_MAX_RETRY: Final = 3600
_MAX_WANTED: Final = 1000
_MAX_CURSOR: Final = 2**53
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


class RefusedError(NetworkError):
    """A tracker did not take what it was sent, and won't take it if it is sent again.

    Attributes:
        status: its HTTP status.
    """

    def __init__(self, url: str, reason: str, status: int) -> None:
        super().__init__(url, reason)
        self.status = status


class StaleHoldingsError(RefusedError):
    """A tracker has another list of holdings than a change was made for.

    Attributes:
        generation: of the list that it has, 0 for none.
    """

    def __init__(self, url: str, reason: str, generation: int) -> None:
        super().__init__(url, reason, HTTPStatus.CONFLICT)
        self.generation = generation


class LaterError(NetworkError):
    """A tracker wants to be asked again later.

    Attributes:
        retry_after: seconds.
    """

    def __init__(self, url: str, reason: str, retry_after: int) -> None:
        super().__init__(url, reason)
        self.retry_after = retry_after


class PreparingError(NotFoundError):
    """There is no torrent yet; who could make it has been told.

    Attributes:
        retry_after: seconds.
    """

    def __init__(self, url: str, retry_after: int) -> None:
        super().__init__(url, "is being prepared")
        self.retry_after = retry_after


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
        """Ask which torrents carry a NAR of which the SHA-256 is given.

        Nothing is known if there is no torrent and nobody who could make one. To ask doesn't
        have one made.

        Raises:
            NetworkError: the tracker can't be reached, or its answer isn't one.
        """
        url = self._url(nar_hash)
        response = self._get(url, MAX_ANSWER, HTTPStatus.OK, HTTPStatus.ACCEPTED)
        return None if response is None else parse_entry(response.body, nar_hash, url)

    def torrent(self, nar_hash: bytes, infohash_v2: bytes | None = None) -> bytes | None:
        """Ask for a torrent of a NAR, the best or a certain one; nothing if it isn't known.

        The bytes are as the tracker sent them: `narswarm.metainfo.decode` checks them. Where
        nobody seeds the torrent, or there is none, this tells who could.

        Raises:
            PreparingError: there is none yet, but somebody can make it; ask again.
            NetworkError: the tracker can't be reached, or its answer isn't one.
        """
        choice = f"?infohash={infohash_v2.hex()}" if infohash_v2 else ""
        url = f"{self._url(nar_hash)}.torrent{choice}"
        response = self._get(url, metainfo.MAX_BYTES, HTTPStatus.OK, HTTPStatus.ACCEPTED)
        if response is None:
            return None
        if response.status == HTTPStatus.ACCEPTED:
            raise PreparingError(url, _retry_after(response))
        return response.body

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
        url = self._url(nar_hash)
        body = bencoding.encode({b"narinfo": raw_narinfo, b"torrent": torrent})
        response = self._signed(key, "PUT", url, body, now, self._timeout)
        if response.status in {HTTPStatus.OK, HTTPStatus.CREATED}:
            return response.status == HTTPStatus.CREATED
        raise _refusal(url, response)

    def holdings(
        self,
        key: PublisherKey,
        *,
        base: int,
        generation: int,
        added: bytes,
        removed: bytes,
        port: int,
        now: float,
    ) -> HoldingsReply:
        """Say which NARs could be served, all of them or what changed.

        The tracker forgets them after the lease: send a change, or none (`base` equal to
        `generation`, nothing added or removed), when half of it is over.

        Args:
            key: whose holdings they are; one list for each key.
            base: the generation that the change applies to; 0 for a complete list.
            generation: what it makes, above 0 and not less than `base`.
            added: hashes as `pack_hashes` makes them.
            removed: the same.
            port: where this seeder listens for peers.
            now: seconds since the epoch.

        Raises:
            StaleHoldingsError: the tracker has another list than `base`; send all.
            LaterError: it doesn't want a list so soon after another, or is busy.
            RefusedError: it doesn't want them.
            NetworkError: it can't be reached, or is in trouble.
        """
        url = f"{self._base}/v1/holdings"
        body = bencoding.encode(
            {
                b"added": added,
                b"base": base,
                b"generation": generation,
                b"port": port,
                b"removed": removed,
            }
        )
        response = self._signed(key, "POST", url, body, now, self._timeout)
        if response.status != HTTPStatus.OK:
            raise _refusal(url, response)
        return parse_holdings(response.body, url)

    def wanted(self, key: PublisherKey, since: int, wait: int, now: float) -> WantedReply:
        """Ask what somebody wants of what a key holds, and wait for it.

        The answer comes as soon as there is something new. A tracker keeps one such request for
        a key: a second one ends the first with an empty answer. The client must be one that waits
        for bytes for longer than `wait`.

        Args:
            key: whose holdings they are.
            since: the cursor of the last reply, or 0.
            wait: seconds for which to wait, at most `LONGEST_WAIT`.
            now: seconds since the epoch.

        Raises:
            StaleHoldingsError: the tracker has no list of this key: send one.
            LaterError: it is busy.
            RefusedError: it doesn't want to say.
            NetworkError: it can't be reached, is in trouble, or its answer isn't one.
        """
        url = f"{self._base}/v1/wanted"
        asked = f"{url}?since={since}&wait={wait}"
        response = self._signed(key, "GET", asked, None, now, wait + _ANSWER_SECONDS)
        if response.status != HTTPStatus.OK:
            raise _refusal(url, response)
        return parse_wanted(response.body, url)

    def _signed(
        self,
        key: PublisherKey,
        method: str,
        url: str,
        body: bytes | None,
        now: float,
        timeout: float | None,
    ) -> Response:
        """Make a request that says who makes it."""
        from narswarm import httpsig  # noqa: PLC0415 - most users only ask; it is 10 ms

        headers = httpsig.sign_request(key, method, urlsplit(url).path, body or b"", now)
        if body is not None:
            headers["Content-Type"] = "application/x-bencode"
        return self._client.request(
            method, url, headers=headers, body=body, max_bytes=MAX_ANSWER, timeout=timeout
        )

    def _url(self, nar_hash: bytes) -> str:
        return f"{self._base}/v1/nar/{base32.encode(nar_hash)}"

    def _get(self, url: str, max_bytes: int, *statuses: HTTPStatus) -> Response | None:
        response = self._client.request("GET", url, max_bytes=max_bytes, timeout=self._timeout)
        if response.status == HTTPStatus.NOT_FOUND:
            return None
        if response.status not in statuses:
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
            _integer(answer, "generation", _MAX_CURSOR), _integer(answer, "held", _MAX_COUNT), lease
        )


def parse_wanted(body: bytes, source: str) -> WantedReply:
    """Read an answer about what is wanted; no more than what an answer may hold.

    Raises:
        NetworkError: it isn't one.
    """
    with _reading(source):
        answer = json.loads(body)
        wanted = answer["wanted"]
        _require(isinstance(wanted, list) and len(wanted) <= _MAX_WANTED, "wanted")
        return WantedReply(
            _integer(answer, "cursor", _MAX_CURSOR), tuple(_wanted(entry) for entry in wanted)
        )


def pack_hashes(hashes: Iterable[bytes]) -> bytes:
    """Write NAR hashes of 32 bytes as holdings are sent: in order, each once, without gaps."""
    return b"".join(sorted(set(hashes)))


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
    return WantedNar(base32.parse_hash(text), _integer(entry, "requests", _MAX_COUNT))


def _refusal(url: str, response: Response) -> NetworkError:
    """What a status other than success means."""
    reason = f"answers {response.status}: {_reason(response.body)}"
    match response.status:
        case HTTPStatus.CONFLICT if (generation := _generation(response.body)) is not None:
            return StaleHoldingsError(url, reason, generation)
        case HTTPStatus.TOO_MANY_REQUESTS | HTTPStatus.SERVICE_UNAVAILABLE:
            return LaterError(url, reason, _retry_after(response))
        case status if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return RefusedError(url, reason, status)
    return NetworkError(url, reason)


def _generation(body: bytes) -> int | None:
    """The generation in an error, if there is one."""
    try:
        return _integer(json.loads(body), "generation", _MAX_CURSOR)
    except (ValueError, RecursionError, TypeError, KeyError, InvalidInputError):
        return None


def _retry_after(response: Response) -> int:
    """Seconds to wait as a server says (RFC 9110, section 10.2.3), within reason."""
    text = response.headers.get("retry-after", "")
    return min(max(int(text), 1), _MAX_RETRY) if re.fullmatch(r"[0-9]{1,9}", text) else 2


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
