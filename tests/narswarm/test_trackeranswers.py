# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers of trackers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import base32, metainfo, narinfo
from narswarm.errors import NetworkError
from narswarm.payload import Kind
from narswarm.trackeranswers import (
    MAX_GENERATION,
    MAX_PEERS,
    MAX_TORRENTS,
    MAX_WANTED,
    HoldingsReply,
    IndexEntry,
    Peer,
    WantedNar,
    WantedReply,
    parse_entry,
    parse_holdings,
    parse_wanted,
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
        (_with("nar_size", None), "answers with an invalid nar_size"),
        (_with("holders", -1), "answers with an invalid holders"),
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


@pytest.mark.parametrize(
    ("name", "good"),
    [
        (f"{'0' * 32}-hello-1.0", True),
        (f"/gnu/store/{'0' * 32}-hello-1.0", False),
        (f"{TEXT}.nar.zst", False),
        ("../x", False),
        (None, False),
    ],
)
def test_names_of_server_files(name: object, good: bool) -> None:
    """A server's file has the name of a store item, and nothing of the NAR in it."""
    body = _with("torrents", [TORRENT | {"kind": "server", "name": name}])
    if good:
        (torrent,) = parse_entry(body, NAR, URL).torrents
        assert (torrent.kind, torrent.name) == (Kind.SERVER, name)
        return
    with pytest.raises(NetworkError) as caught:
        parse_entry(body, NAR, URL)
    assert str(caught.value) == f"{URL}: answers with an invalid name"


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


def test_holders() -> None:
    """Where there is no torrent yet, who could make one is counted, and the size isn't known."""
    answer: dict[str, Any] = {
        "nar_hash": f"sha256:{TEXT}",
        "nar_size": None,
        "torrents": [],
        "holders": 3,
    }
    entry = parse_entry(json.dumps(answer).encode(), NAR, URL)
    assert entry == IndexEntry(NAR, None, (), 3)
    assert parse_entry(json.dumps(ANSWER).encode(), NAR, URL).holders == 0


def test_holdings() -> None:
    """An answer about holdings becomes values."""
    body = b'{"generation": 5, "held": 2, "lease": 1800}'
    assert parse_holdings(body, URL) == HoldingsReply(5, 2, 1800)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"x", "answers something that is not JSON"),
        (b"[]", "answers with another structure than an index"),
        (b'{"held": 2, "lease": 1}', "answers without generation"),
        (b'{"generation": 5, "lease": 1}', "answers without held"),
        (b'{"generation": 5, "held": 2}', "answers without lease"),
        (b'{"generation": -1, "held": 2, "lease": 1}', "answers with an invalid generation"),
        (b'{"generation": 1, "held": true, "lease": 1}', "answers with an invalid held"),
        (b'{"generation": 1, "held": 2, "lease": 0}', "answers with an invalid lease"),
    ],
)
def test_bad_holdings(body: bytes, reason: str) -> None:
    """What isn't an answer about holdings is none; a lease of no time would be asked for ever."""
    with pytest.raises(NetworkError) as caught:
        parse_holdings(body, URL)
    assert str(caught.value) == f"{URL}: {reason}"


def _wanted(number: int) -> bytes:
    items = [{"nar_hash": f"sha256:{TEXT}", "requests": 2}] * number
    return json.dumps({"cursor": 7, "wanted": items}).encode()


@pytest.mark.parametrize("number", [0, 1, MAX_WANTED])
def test_wanted(number: int) -> None:
    """An answer about what is wanted becomes values."""
    assert parse_wanted(_wanted(number), URL) == WantedReply(7, (WantedNar(NAR, 2),) * number)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (_wanted(MAX_WANTED + 1), "answers with an invalid wanted"),
        (b'{"cursor": 1}', "answers without wanted"),
        (b'{"wanted": []}', "answers without cursor"),
        (b'{"cursor": 1, "wanted": {}}', "answers with an invalid wanted"),
        (b'{"cursor": 1, "wanted": [5]}', "answers with another structure than an index"),
        (b'{"cursor": 1, "wanted": [{}]}', "answers without nar_hash"),
        (b'{"cursor": 1, "wanted": [{"nar_hash": 5}]}', "answers with an invalid nar_hash"),
        (b'{"cursor": 1, "wanted": [{"nar_hash": "x"}]}', "answers with an invalid nar_hash"),
        (
            json.dumps({"cursor": MAX_GENERATION + 1, "wanted": []}).encode(),
            "answers with an invalid cursor",
        ),
    ],
)
def test_bad_wanted(body: bytes, reason: str) -> None:
    """What isn't an answer about what is wanted is none."""
    with pytest.raises(NetworkError) as caught:
        parse_wanted(body, URL)
    assert str(caught.value) == f"{URL}: {reason}"


@given(JSON, st.sampled_from(["cursor", "wanted", "generation", "held", "lease", ""]))
def test_any_answer_is_judged(value: object, name: str) -> None:
    """Whatever stands in an answer about holdings, it is read or refused."""
    answer = {"cursor": 1, "wanted": [], "generation": 1, "held": 1, "lease": 1, name: value}
    for body in (json.dumps(answer).encode(), json.dumps(value).encode()):
        for parse in (parse_holdings, parse_wanted):
            try:
                parse(body, URL)
            except NetworkError as error:
                assert str(error).startswith(f"{URL}: answers")  # noqa: PT017 - or it is read
