# SPDX-License-Identifier: GPL-3.0-or-later
"""A tracker's index, asked and told: which torrents carry a NAR, and who has or could make them.

`narswarm.trackeranswers` reads the answers; this makes the requests, and errors of their statuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from narswarm import base32, bencoding, metainfo
from narswarm.errors import NetworkError, NotFoundError
from narswarm.httpclient import Response
from narswarm.trackeranswers import (
    MAX_GENERATION,
    MAX_PEERS,
    MAX_TORRENTS,
    HoldingsReply,
    IndexedTorrent,
    IndexEntry,
    Peer,
    WantedNar,
    WantedReply,
    parse_entry,
    parse_holdings,
    parse_wanted,
)

if TYPE_CHECKING:
    from narswarm.httpsig import PublisherKey

__all__ = [
    "LONGEST_WAIT",
    "MAX_ANSWER",
    "MAX_PEERS",
    "MAX_TORRENTS",
    "Client",
    "HoldingsReply",
    "IndexEntry",
    "IndexedTorrent",
    "LaterError",
    "Peer",
    "PreparingError",
    "RefusedError",
    "StaleHoldingsError",
    "TrackerIndex",
    "WantedNar",
    "WantedReply",
    "pack_hashes",
    "parse_entry",
    "parse_holdings",
    "parse_wanted",
]

MAX_ANSWER: Final = 256 * 1024
"""Bytes of an answer in JSON."""

LONGEST_WAIT: Final = 50
"""Seconds for which a tracker may be asked to wait until something is wanted."""

_ANSWER_SECONDS: Final = 10
"""What a long poll may take beyond its wait."""

_MAX_RETRY: Final = 3600


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
        response = self._get(
            url, MAX_ANSWER, HTTPStatus.OK, HTTPStatus.ACCEPTED, timeout=self._timeout
        )
        return None if response is None else parse_entry(response.body, nar_hash, url)

    def torrent(
        self, nar_hash: bytes, infohash_v2: bytes | None = None, *, wait: int = 0
    ) -> bytes | None:
        """Ask for a torrent of a NAR, the best or a certain one; nothing if it isn't known.

        The bytes are as the tracker sent them: `narswarm.metainfo.decode` checks them. Where
        nobody seeds the torrent, or there is none, this tells who could.

        Args:
            nar_hash: SHA-256 of the NAR.
            infohash_v2: of the one that is meant, 32 bytes.
            wait: seconds for which the tracker may wait for one that is being made, at most
                `LONGEST_WAIT`, and less than what the client waits for bytes. It answers as soon
                as somebody seeds it; those that don't know of waiting answer at once.

        Raises:
            PreparingError: there is none yet, but somebody can make it; ask again.
            NetworkError: the tracker can't be reached, or its answer isn't one.
        """
        url = f"{self._url(nar_hash)}.torrent"
        asked = f"{url}?infohash={infohash_v2.hex()}" if infohash_v2 else url
        asked += f"{'&' if infohash_v2 else '?'}wait={wait}" if wait else ""
        timeout = wait + _ANSWER_SECONDS if wait else self._timeout
        response = self._get(
            asked, metainfo.MAX_BYTES, HTTPStatus.OK, HTTPStatus.ACCEPTED, timeout=timeout
        )
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

    def _get(
        self, url: str, max_bytes: int, *statuses: HTTPStatus, timeout: float | None
    ) -> Response | None:
        response = self._client.request("GET", url, max_bytes=max_bytes, timeout=timeout)
        if response.status == HTTPStatus.NOT_FOUND:
            return None
        if response.status not in statuses:
            raise NetworkError(url, f"answers {response.status}: {_reason(response.body)}")
        return response


def pack_hashes(hashes: Iterable[bytes]) -> bytes:
    """Write NAR hashes of 32 bytes as holdings are sent: in order, each once, without gaps."""
    return b"".join(sorted(set(hashes)))


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
        generation = json.loads(body)["generation"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return generation if type(generation) is int and 0 <= generation < MAX_GENERATION else None


def _retry_after(response: Response) -> int:
    """Seconds to wait as a server says (RFC 9110, section 10.2.3), within reason."""
    text = response.headers.get("retry-after", "")
    return min(max(int(text), 1), _MAX_RETRY) if re.fullmatch(r"[0-9]{1,9}", text) else 2


def _reason(body: bytes) -> str:
    """What a tracker says is wrong, as far as it may be shown on a terminal."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, RecursionError, TypeError, KeyError):
        error = "no reason given"
    text = error if isinstance(error, str) else "no reason given"
    return "".join(character for character in text[:300] if character.isprintable())
