# SPDX-License-Identifier: GPL-3.0-or-later
"""A tracker's index, asked and told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from narswarm import base32, bencoding, httpsig, metainfo
from narswarm.errors import NetworkError
from narswarm.httpclient import Response
from narswarm.httpsig import PublisherKey
from narswarm.payload import Kind
from narswarm.trackerclient import (
    MAX_ANSWER,
    HoldingsReply,
    IndexedTorrent,
    IndexEntry,
    LaterError,
    Peer,
    PreparingError,
    RefusedError,
    StaleHoldingsError,
    TrackerIndex,
    WantedNar,
    WantedReply,
    pack_hashes,
)

NAR = bytes(range(32))
TEXT = base32.encode(NAR)
BASE = "http://tracker.example:6969"
URL = f"{BASE}/v1/nar/{TEXT}"
TORRENT: dict[str, Any] = {
    "kind": "nar.zst",
    "name": f"{TEXT}.nar.zst",
    "length": 5000,
    "piece_length": 65536,
    "infohash_v1": "01" * 20,
    "infohash_v2": "ab" * 32,
    "seeders": 2,
    "leechers": 1,
    "publishers": 3,
    "peers": ["192.0.2.1:6881", "[2001:db8::1]:1"],
}
ANSWER: dict[str, Any] = {
    "nar_hash": f"sha256:{TEXT}",
    "nar_size": 10_000,
    "torrents": [TORRENT],
}
ENTRY = IndexedTorrent(
    Kind.ZSTD,
    f"{TEXT}.nar.zst",
    5000,
    65536,
    b"\x01" * 20,
    b"\xab" * 32,
    2,
    1,
    3,
    (Peer("192.0.2.1", 6881), Peer("2001:db8::1", 1)),
)


class Fake:
    """A client whose server always answers the same, and that remembers what was asked."""

    def __init__(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, timeout: int = 5
    ) -> None:
        self.status = status
        self.headers = headers or {}
        self.timeout = timeout
        self.body = body
        self.asked: list[tuple[str, str, Mapping[str, str], bytes, int]] = []

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int = 0,
        timeout: float | None = None,
    ) -> Response:
        """Answer as was determined."""
        assert timeout == self.timeout
        self.asked.append((method, url, headers or {}, body or b"", max_bytes))
        return Response(self.status, self.headers, self.body, url)


def _index(status: int, body: bytes) -> tuple[TrackerIndex, Fake]:
    fake = Fake(status, body)
    return TrackerIndex(fake, f"{BASE}/", timeout=5), fake


def test_urls() -> None:
    """One URL leads to all that a tracker offers."""
    index, _ = _index(200, b"")
    assert index.announce_url == f"{BASE}/announce"
    assert index.narinfo_url == f"{BASE}/v1/narinfo"


def test_lookup() -> None:
    """An answer becomes values."""
    index, fake = _index(200, json.dumps(ANSWER).encode())
    assert index.lookup(NAR) == IndexEntry(NAR, 10_000, (ENTRY,))
    assert fake.asked == [("GET", URL, {}, b"", MAX_ANSWER)]


def test_torrent() -> None:
    """A torrent is handed on as it is, within its bound."""
    index, fake = _index(200, b"d4:infodee")
    assert index.torrent(NAR) == b"d4:infodee"
    assert index.torrent(NAR, b"\xab" * 32) == b"d4:infodee"
    fake.timeout = 15
    assert index.torrent(NAR, wait=5) == b"d4:infodee"
    assert index.torrent(NAR, b"\xab" * 32, wait=5) == b"d4:infodee"
    chosen = f"?infohash={'ab' * 32}"
    suffixes = ("", chosen, "?wait=5", f"{chosen}&wait=5")
    assert fake.asked == [
        ("GET", f"{URL}.torrent{suffix}", {}, b"", metainfo.MAX_BYTES) for suffix in suffixes
    ]


def test_unknown() -> None:
    """Not knowing a NAR is an answer."""
    index, _ = _index(404, b"whatever")
    assert index.lookup(NAR) is None
    assert index.torrent(NAR) is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error": "index: is full"}', "index: is full"),
        (b'{"error": "a\\u001b[31m\\nb"}', "a[31mb"),
        (json.dumps({"error": "x" * 400}).encode(), "x" * 300),
        (b'{"error": 5}', "no reason given"),
        (b"{}", "no reason given"),
        (b"[]", "no reason given"),
        (b"<html>", "no reason given"),
        (b"\xff", "no reason given"),
        (b"[" * 100_000, "no reason given"),
    ],
)
def test_troubles(body: bytes, reason: str) -> None:
    """A tracker's own words are shown, as far as they can be."""
    index, _ = _index(500, body)
    for ask in (index.lookup, index.torrent):
        with pytest.raises(NetworkError) as caught:
            ask(NAR)
        assert str(caught.value).endswith(f": answers 500: {reason}")


def _publish(index: TrackerIndex, key: PublisherKey) -> bool:
    return index.publish(key, NAR, b"torrent", b"narinfo", 1_700_000_000)


@pytest.mark.parametrize(("status", "new"), [(201, True), (200, False)])
def test_publish(status: int, new: bool) -> None:
    """A publication is a signed PUT of both parts."""
    key = PublisherKey(Ed25519PrivateKey.generate())
    index, fake = _index(status, b"{}")
    assert _publish(index, key) is new
    ((method, url, headers, body, _),) = fake.asked
    assert (method, url) == ("PUT", URL)
    assert headers["Content-Type"] == "application/x-bencode"
    assert bencoding.decode(body, "body") == {b"narinfo": b"narinfo", b"torrent": b"torrent"}
    path = f"/v1/nar/{TEXT}"
    assert httpsig.verify_request("PUT", path, headers, body, 1_700_000_000) == key.public


def test_publish_below_a_path() -> None:
    """Where a tracker isn't at the root of its server, the whole path is signed."""
    fake = Fake(200, b"{}")
    key = PublisherKey.generate()
    _publish(TrackerIndex(fake, "https://example.org/tracker", timeout=5), key)
    ((_, url, headers, body, _),) = fake.asked
    assert url == f"https://example.org/tracker/v1/nar/{TEXT}"
    path = f"/tracker/v1/nar/{TEXT}"
    assert httpsig.verify_request("PUT", path, headers, body, 1_700_000_000) == key.public


@pytest.mark.parametrize("status", [301, 400, 403, 409, 499, 500, 507])
def test_refused_publications(status: int) -> None:
    """Being refused differs from a tracker in trouble: sending it again won't help."""
    index, _ = _index(status, b'{"error": "x: y"}')
    with pytest.raises(NetworkError) as caught:
        _publish(index, PublisherKey.generate())
    assert str(caught.value) == f"{URL}: answers {status}: x: y"
    assert isinstance(caught.value, RefusedError) is (400 <= status < 500)
    if isinstance(caught.value, RefusedError):
        assert caught.value.status == status


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 2),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0"}, 1),
        ({"retry-after": "999999"}, 3600),
        ({"retry-after": "-1"}, 2),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 2),
    ],
)
def test_torrent_in_preparation(headers: Mapping[str, str], seconds: int) -> None:
    """A torrent that is being made is to be asked for again, within reason."""
    fake = Fake(202, b"{}", headers)
    with pytest.raises(PreparingError) as caught:
        TrackerIndex(fake, BASE, timeout=5).torrent(NAR)
    assert str(caught.value) == f"{URL}.torrent: is being prepared"
    assert caught.value.retry_after == seconds
    assert not isinstance(caught.value, NetworkError)


def test_lookup_of_what_could_be_made() -> None:
    """What has holders but no torrents is an entry, too."""
    answer: dict[str, Any] = {
        "nar_hash": f"sha256:{TEXT}",
        "nar_size": None,
        "torrents": [],
        "holders": 2,
    }
    index, _ = _index(202, json.dumps(answer).encode())
    assert index.lookup(NAR) == IndexEntry(NAR, None, (), 2)


def _hold(index: TrackerIndex, key: PublisherKey) -> HoldingsReply:
    return index.holdings(
        key, base=1, generation=2, added=NAR, removed=b"", port=6881, now=1_700_000_000
    )


def test_holdings() -> None:
    """Holdings are a signed POST of what changed."""
    key = PublisherKey.generate()
    index, fake = _index(200, b'{"generation": 2, "held": 1, "lease": 1800}')
    assert _hold(index, key) == HoldingsReply(2, 1, 1800)
    ((method, url, headers, body, _),) = fake.asked
    assert (method, url) == ("POST", f"{BASE}/v1/holdings")
    assert headers["Content-Type"] == "application/x-bencode"
    assert bencoding.decode(body, "body") == {
        b"added": NAR,
        b"base": 1,
        b"generation": 2,
        b"port": 6881,
        b"removed": b"",
    }
    path = "/v1/holdings"
    assert httpsig.verify_request("POST", path, headers, body, 1_700_000_000) == key.public


def test_wanted() -> None:
    """What is wanted is asked for with a signature, and longer than the wait."""
    key = PublisherKey.generate()
    answer = {"cursor": 9, "wanted": [{"nar_hash": f"sha256:{TEXT}", "requests": 3}]}
    fake = Fake(200, json.dumps(answer).encode(), timeout=60)
    index = TrackerIndex(fake, BASE, timeout=5)
    reply = index.wanted(key, 8, 50, 1_700_000_000)
    assert reply == WantedReply(9, (WantedNar(NAR, 3),))
    ((method, url, headers, body, _),) = fake.asked
    assert (method, url, body) == ("GET", f"{BASE}/v1/wanted?since=8&wait=50", b"")
    assert "Content-Type" not in headers
    path = "/v1/wanted"
    assert httpsig.verify_request("GET", path, headers, b"", 1_700_000_000) == key.public


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (409, b'{"error": "x: y", "generation": 3}', StaleHoldingsError),
        (409, b'{"error": "x: y", "generation": -1}', RefusedError),
        (409, b'{"error": "x: y", "generation": true}', RefusedError),
        (409, b'{"error": "x: y"}', RefusedError),
        (429, b'{"error": "x: y"}', LaterError),
        (503, b'{"error": "x: y"}', LaterError),
        (403, b'{"error": "x: y"}', RefusedError),
        (507, b'{"error": "x: y"}', NetworkError),
    ],
)
def test_refused_holdings(status: int, body: bytes, kind: type[NetworkError]) -> None:
    """What to do next differs: send all, come later, give up, or try again."""
    key = PublisherKey.generate()
    fake = Fake(status, body, {"retry-after": "60"})
    index = TrackerIndex(fake, BASE, timeout=5)
    with pytest.raises(NetworkError) as caught:
        _hold(index, key)
    assert type(caught.value) is kind
    assert str(caught.value) == f"{BASE}/v1/holdings: answers {status}: x: y"
    if isinstance(caught.value, StaleHoldingsError):
        assert caught.value.generation == 3
    if isinstance(caught.value, LaterError):
        assert caught.value.retry_after == 60
    fake.timeout = 10
    with pytest.raises(kind):
        index.wanted(key, 0, 0, 1_700_000_000)


def test_pack_hashes() -> None:
    """Hashes are sent in order and once."""
    one, two = bytes(32), b"\xff" * 32
    assert pack_hashes(iter([two, one, two])) == one + two
    assert pack_hashes([]) == b""
