# SPDX-License-Identifier: GPL-3.0-or-later
"""A tracker's index, asked and told."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from narswarm import base32, bencoding, httpsig, metainfo, narinfo
from narswarm.errors import NetworkError
from narswarm.httpclient import Response
from narswarm.httpsig import PublisherKey
from narswarm.payload import Kind
from narswarm.trackerclient import (
    MAX_ANSWER,
    MAX_PEERS,
    MAX_TORRENTS,
    IndexedTorrent,
    IndexEntry,
    Peer,
    RefusedError,
    TrackerIndex,
    parse_entry,
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

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
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
        assert timeout == 5
        self.asked.append((method, url, headers or {}, body or b"", max_bytes))
        return Response(self.status, {}, self.body, url)


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
    suffixes = ("", f"?infohash={'ab' * 32}")
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


def _with(path: str, value: object) -> bytes:
    answer = copy.deepcopy(ANSWER)
    place: Any = answer
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value
    return json.dumps(answer).encode()


def _without(name: str) -> bytes:
    torrent = {key: value for key, value in TORRENT.items() if key != name}
    answer = {key: value for key, value in ANSWER.items() if key != name}
    return json.dumps(answer if name in ANSWER else answer | {"torrents": [torrent]}).encode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "answers something that is not JSON"),
        (b"{", "answers something that is not JSON"),
        (b"\xff", "answers something that is not JSON"),
        (b"[" * 100_000, "answers something that is not JSON"),
        (b'{"nar_size": ' + b"9" * 5000 + b"}", "answers something that is not JSON"),
        (b"[]", "answers with another structure than an index"),
        (b"null", "answers with another structure than an index"),
        (b'"x"', "answers with another structure than an index"),
        (_with("torrents", [5]), "answers with another structure than an index"),
        (_with("torrents.0.kind", []), "answers with another structure than an index"),
        (_with("torrents", {}), "answers with an invalid torrents"),
        (_with("nar_hash", TEXT), "answers with an invalid nar_hash"),
        (_with("nar_hash", base32.format_hash(bytes(32))), "answers with an invalid nar_hash"),
        (_with("nar_size", -1), "answers with an invalid nar_size"),
        (_with("nar_size", True), "answers with an invalid nar_size"),
        (_with("nar_size", 1.0), "answers with an invalid nar_size"),
        (_with("nar_size", narinfo.MAX_NAR_SIZE + 1), "answers with an invalid nar_size"),
        (_with("torrents.0.name", "../../etc/passwd"), "answers with an invalid name"),
        (_with("torrents.0.name", f"{TEXT}.nar"), "answers with an invalid name"),
        (_with("torrents.0.length", metainfo.MAX_LENGTH + 1), "answers with an invalid length"),
        (_with("torrents.0.infohash_v1", "01" * 19), "answers with an invalid infohash_v1"),
        (_with("torrents.0.infohash_v1", "AB" * 20), "answers with an invalid infohash_v1"),
        (_with("torrents.0.infohash_v2", "0 " * 32), "answers with an invalid infohash_v2"),
        (_with("torrents.0.infohash_v2", None), "answers with an invalid infohash_v2"),
        (_with("torrents.0.seeders", "2"), "answers with an invalid seeders"),
        (_with("torrents.0.leechers", None), "answers with an invalid leechers"),
        (_with("torrents.0.publishers", 2**31 + 1), "answers with an invalid publishers"),
        (_with("torrents.0.peers", "x"), "answers with an invalid peers"),
        *((_without(name), f"answers without {name}") for name in (*ANSWER, *TORRENT)),
    ],
)
def test_bad_answers(body: bytes, reason: str) -> None:
    """What isn't exactly an answer to the question is none at all."""
    with pytest.raises(NetworkError) as caught:
        parse_entry(body, NAR, URL)
    assert str(caught.value) == f"{URL}: {reason}"


@pytest.mark.parametrize(
    "peer",
    [
        "tracker.example:6881",
        "localhost:1",
        "192.0.2.1",
        "192.0.2.1:",
        "192.0.2.1:0",
        "192.0.2.1:01",
        "192.0.2.1:65536",
        "192.0.2.1:6881 ",
        "192.0.2.1:6881/x",
        "192.0.2.01:1",
        "192.0.2.256:1",
        "2001:db8::1:1",
        "[192.0.2.1]:1",
        "[fe80::1%eth0]:1",
        "[:::]:1",
        "0.0.0.0:1",
        "[::]:1",
        "224.0.0.1:1",
        "[ff02::1]:1",
        5,
        None,
        ["192.0.2.1:1"],
    ],
)
def test_peers_that_are_no_addresses(peer: object) -> None:
    """Names, and addresses that nobody can listen on, are passed over."""
    entry = parse_entry(_with("torrents.0.peers", [peer, "192.0.2.7:65535"]), NAR, URL)
    assert entry.torrents[0].peers == (Peer("192.0.2.7", 65535),)


def test_bounds() -> None:
    """Of more torrents or peers than are useful, the first are read."""
    peers = [f"192.0.2.1:{port}" for port in range(1, MAX_PEERS + 2)]
    entry = parse_entry(_with("torrents", [TORRENT | {"peers": peers}] * 20), NAR, URL)
    assert len(entry.torrents) == MAX_TORRENTS
    assert [peer.port for peer in entry.torrents[0].peers] == list(range(1, MAX_PEERS + 1))


def test_kinds() -> None:
    """A kind of payload that came later doesn't hide those that are known."""
    plain = TORRENT | {"kind": "nar", "name": f"{TEXT}.nar"}
    entry = parse_entry(_with("torrents", [{"kind": "nar.br"}, plain]), NAR, URL)
    assert [torrent.kind for torrent in entry.torrents] == [Kind.NAR]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
)


@given(JSON, st.sampled_from([*ANSWER, *(f"torrents.0.{name}" for name in TORRENT)]))
def test_any_json_is_judged(value: object, path: str) -> None:
    """Whatever stands in an answer, it is read or refused."""
    attempts: list[Callable[[], bytes]] = [
        lambda: _with(path, value),
        lambda: json.dumps(value).encode(),
    ]
    for attempt in attempts:
        try:
            entry = parse_entry(attempt(), NAR, URL)
        except NetworkError as error:
            assert str(error).startswith(f"{URL}: answers")  # noqa: PT017 - or it is read
        else:
            assert entry.nar_hash == NAR
