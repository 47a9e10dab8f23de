# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.metainfo`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import bencoding, metainfo
from narswarm.errors import InvalidInputError, MismatchError
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import Kind, file_name
from tests.fixtures.golden import reference

GOLDEN: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "fixtures/golden/profile-1.json").read_text()
)
NAR_HASH = hashlib.sha256(b"").digest()
NAME = file_name(NAR_HASH)


def torrent_of(data: bytes, name: str = NAME) -> Metainfo:
    """Return the torrent of a payload."""
    hasher = PieceHasher(len(data))
    hasher.update(data)
    return Metainfo.of(name, hasher.finish())


SMALL = torrent_of(b"x" * 1000)
LARGE = torrent_of(reference.noise(200_000))


@pytest.mark.parametrize(
    "vector", GOLDEN["nars"], ids=lambda vector: f"{vector['contents']}-{vector['nar_size']}"
)
def test_golden_nars(vector: dict[str, Any]) -> None:
    """The infohashes of NARs around every boundary never change."""
    nar = reference.nar(reference.CONTENTS[vector["contents"]](vector["contents_size"]))
    meta = torrent_of(reference.payload(nar), vector["name"])
    assert meta.infohash_v1.hex() == vector["infohash_v1"]
    assert meta.infohash_v2.hex() == vector["infohash_v2"]
    assert meta.nar_hash.hex() == vector["nar_sha256"]


@pytest.mark.parametrize(
    "vector",
    [vector for vector in GOLDEN["payloads"] if vector["payload_length"] < 2**24],
    ids=lambda vector: str(vector["payload_length"]),
)
def test_golden_payloads(vector: dict[str, Any]) -> None:
    """The infohashes of payloads around every boundary never change."""
    data = reference.noise(vector["payload_length"], reference.PAYLOAD_NAME_OF)
    meta = torrent_of(data, vector["name"])
    assert meta.infohash_v1.hex() == vector["infohash_v1"]
    assert meta.infohash_v2.hex() == vector["infohash_v2"]


@pytest.mark.parametrize("meta", [SMALL, LARGE], ids=["one piece", "several pieces"])
def test_round_trip(meta: Metainfo) -> None:
    """A torrent reads back, and nothing outside its info dictionary is part of its identity."""
    plain = metainfo.decode(meta.encode(), "x")
    told = metainfo.decode(meta.encode(["http://t/announce"], ["http://w/"], "for people"), "x")
    assert plain == told == meta
    assert plain.infohash_v2 == hashlib.sha256(meta.info_bytes).digest()


def test_encoded_form() -> None:
    """A torrent has nothing but what is known of it: no dates, no names of programs."""
    name = NAME.encode()
    length = b"d0:d6:lengthi1000e11:pieces root32:%seee" % SMALL.pieces_root
    info = (
        b"d9:file treed60:%s%se6:lengthi1000e12:meta versioni2e4:name60:%s12:piece lengthi65536e"
        b"6:pieces20:%se" % (name, length[:-1], name, SMALL.pieces)
    )
    assert SMALL.encode() == b"d4:info%s12:piece layersdee" % info
    assert SMALL.encode(["u"]) == b"d8:announce1:u4:info%s12:piece layersdee" % info
    assert SMALL.encode(["u", "v"], ["w"], "c") == (
        b"d8:announce1:u13:announce-listll1:uel1:vee7:comment1:c4:info%s12:piece layersde"
        b"8:url-listl1:wee" % info
    )


def test_magnet() -> None:
    """A magnet link has both infohashes, name, length and escaped trackers (BEP 9)."""
    assert SMALL.magnet(["http://t/announce?a=b&c", "udp://t:1"]) == (
        f"magnet:?xt=urn:btih:{SMALL.infohash_v1.hex()}"
        f"&xt=urn:btmh:1220{SMALL.infohash_v2.hex()}&dn={NAME}&xl=1000"
        "&tr=http%3A%2F%2Ft%2Fannounce%3Fa%3Db%26c&tr=udp%3A%2F%2Ft%3A1"
    )


def test_name_tells() -> None:
    """NarHash and kind are in the name."""
    assert (SMALL.nar_hash, SMALL.kind) == (NAR_HASH, Kind.ZSTD)
    raw = dataclasses.replace(SMALL, name=file_name(NAR_HASH, Kind.NAR))
    assert (raw.nar_hash, raw.kind) == (NAR_HASH, Kind.NAR)


Tree = dict[bytes, Any]


def changed(meta: Metainfo, change: Callable[[Tree], object]) -> bytes:
    """Return the torrent after something was done to its outermost dictionary."""
    torrent: Any = bencoding.decode(meta.encode(), "x")
    change(torrent)
    return bencoding.encode(torrent)


def in_info(key: bytes, value: object) -> Callable[[Tree], object]:
    """Return the change of one entry of the info dictionary."""
    return lambda torrent: torrent[b"info"].__setitem__(key, value)


def without(key: bytes) -> Callable[[Tree], object]:
    """Return the removal of one entry of the info dictionary."""
    return lambda torrent: torrent[b"info"].pop(key)


def file_entry(value: object, name: bytes = NAME.encode()) -> Callable[[Tree], object]:
    """Return the change of the only file of the file tree."""
    return in_info(b"file tree", {name: value})


def layers(value: object) -> Callable[[Tree], object]:
    """Return the change of the piece layers."""
    return lambda torrent: torrent.__setitem__(b"piece layers", value)


ROOT = LARGE.pieces_root
FLIPPED = bytes([LARGE.piece_layer[0] ^ 1]) + LARGE.piece_layer[1:]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda torrent: torrent.pop(b"info"), "torrent has no info dictionary"),
        (lambda torrent: torrent.__setitem__(b"info", []), "torrent has no info dictionary"),
        *(
            (without(key.encode()), f"info dictionary has no {key!r}")
            for key in ("file tree", "length", "meta version", "name", "piece length", "pieces")
        ),
        (
            in_info(b"private", 1),
            "info dictionary has b'private', which is not part of profile 1",
        ),
        (in_info(b"files", []), "info dictionary has b'files', which is not part of profile 1"),
        (in_info(b"meta version", 1), "meta version is not 2"),
        (in_info(b"meta version", b"2"), "meta version is not 2"),
        (in_info(b"name", 1), "name is not that of a payload"),
        (in_info(b"name", b"\xff"), "name is not that of a payload"),
        (in_info(b"name", b"../x.nar.zst"), "name is not that of a payload"),
        (in_info(b"name", b"z" + NAME[1:].encode()), "name is not that of a payload"),
        (in_info(b"length", 0), "length is not from 1 to 1099511627776"),
        (in_info(b"length", -1), "length is not from 1 to 1099511627776"),
        (in_info(b"length", 2**40 + 1), "length is not from 1 to 1099511627776"),
        (in_info(b"length", b"1"), "length is not from 1 to 1099511627776"),
        (
            in_info(b"piece length", 131072),
            "piece length is not 65536, as it is for 200000 bytes",
        ),
        (in_info(b"piece length", []), "piece length is not 65536, as it is for 200000 bytes"),
        (in_info(b"length", 2**26 + 1), "piece length is not 131072, as it is for 67108865 bytes"),
        (in_info(b"pieces", LARGE.pieces[:-1]), "pieces are not 4 SHA-1 hashes"),
        (in_info(b"pieces", LARGE.pieces + bytes(20)), "pieces are not 4 SHA-1 hashes"),
        (in_info(b"pieces", 1), "pieces are not 4 SHA-1 hashes"),
        (in_info(b"file tree", []), "file tree is not the one file of the name"),
        (in_info(b"file tree", {}), "file tree is not the one file of the name"),
        (file_entry({}, b"x"), "file tree is not the one file of the name"),
        (file_entry({}), "file tree has no length and pieces root, or more than these"),
        (file_entry(1), "file tree has no length and pieces root, or more than these"),
        (
            file_entry({b"": {b"length": 200_000}}),
            "file tree has no length and pieces root, or more than these",
        ),
        (
            file_entry({b"": {b"length": 200_000, b"pieces root": ROOT[1:]}}),
            "file tree has no length and pieces root, or more than these",
        ),
        (
            file_entry({b"": {b"length": 200_000, b"pieces root": ROOT, b"attr": b"x"}}),
            "file tree has no length and pieces root, or more than these",
        ),
        (
            file_entry({b"": {b"length": 200_000, b"pieces root": ROOT}, b"x": {}}),
            "file tree has no length and pieces root, or more than these",
        ),
        (
            file_entry({b"": {b"length": 199_999, b"pieces root": ROOT}}),
            "file tree has another length than the info dictionary",
        ),
        (lambda torrent: torrent.pop(b"piece layers"), "piece layers are not that of the one file"),
        (layers(1), "piece layers are not that of the one file"),
        (layers({bytes(32): LARGE.piece_layer}), "piece layers are not that of the one file"),
        (
            layers({ROOT: LARGE.piece_layer, b"\xff" * 32: b""}),
            "piece layers are not that of the one file",
        ),
        (layers({ROOT: LARGE.piece_layer[1:]}), "piece layer is not 4 SHA-256 hashes"),
        (layers({ROOT: []}), "piece layer is not 4 SHA-256 hashes"),
        (layers({ROOT: FLIPPED}), "piece layer does not lead to the pieces root"),
    ],
)
def test_refused(change: Callable[[Tree], object], reason: str) -> None:
    """A torrent of any other form is refused, and the reason is said."""
    with pytest.raises(InvalidInputError) as caught:
        metainfo.decode(changed(LARGE, change), "peer")
    assert str(caught.value) == f"peer: {reason}"


def test_layers_of_one_piece() -> None:
    """One piece has no layer; the dictionary for it may be missing but may not hold anything."""
    assert metainfo.decode(changed(SMALL, lambda torrent: torrent.pop(b"piece layers")), "x")
    with pytest.raises(InvalidInputError) as caught:
        metainfo.decode(changed(SMALL, layers({SMALL.pieces_root: bytes(32)})), "x")
    assert caught.value.reason == "piece layers are not empty, though there is one piece"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "bencoding has cut off at byte 0"),
        (b"le", "torrent is not a dictionary"),
        (SMALL.encode() + b"\n", f"bencoding has data after the end at byte {len(SMALL.encode())}"),
        (bytes(8 * 2**20 + 1), "torrent has 8388609 bytes, more than 8388608"),
    ],
)
def test_no_torrent(data: bytes, reason: str) -> None:
    """What isn't one canonical dictionary of bounded size is refused."""
    for read in (metainfo.decode, metainfo.decode_outside):
        with pytest.raises(InvalidInputError) as caught:
            read(data, "x")
        assert caught.value.reason == reason


def test_longest_torrent_fits() -> None:
    """The bound on the bytes of torrents leaves room for the longest payload."""
    pieces = metainfo.MAX_LENGTH // 2**23
    assert pieces * (20 + 32) + 2**20 < metainfo.MAX_BYTES


@given(st.data())
def test_any_damage(data: st.DataObject) -> None:
    """Damaged bytes are refused, or the damage is outside the info dictionary."""
    original = LARGE.encode(["http://t/announce"])
    start = data.draw(st.integers(0, len(original)))
    end = data.draw(st.integers(start, min(len(original), start + 40)))
    damaged = original[:start] + data.draw(st.binary(max_size=40)) + original[end:]
    try:
        meta = metainfo.decode(damaged, "x")
    except InvalidInputError:
        return
    assert meta.info_bytes in damaged


@given(
    st.recursive(
        st.integers() | st.binary(), lambda v: st.lists(v) | st.dictionaries(st.binary(), v)
    )
)
def test_any_info(value: bencoding.Value) -> None:
    """Anything in place of any part of a torrent is an InvalidInputError and nothing else."""
    for key in (*LARGE.info, b"info", b"piece layers"):
        change = in_info(key, value) if key in LARGE.info else outer(key, value)
        if LARGE.info.get(key) == value:
            continue
        with pytest.raises(InvalidInputError):
            metainfo.decode(changed(LARGE, change), "x")


def outer(key: bytes, value: object) -> Callable[[Tree], object]:
    """Return the change of an entry beside the info dictionary."""
    return lambda torrent: torrent.__setitem__(key, value)


def test_outside() -> None:
    """Trackers, web seeds and comment are told for people, each once and in order."""
    data = SMALL.encode(["http://a", "http://b", "http://a"], ["http://w"], "für Leute")
    assert metainfo.decode_outside(data, "x") == (
        ("http://a", "http://b"),
        ("http://w",),
        "für Leute",
    )
    assert metainfo.decode_outside(SMALL.encode(), "x") == ((), (), None)


def test_odd_outside() -> None:
    """What is of another form outside the info dictionary is passed over."""

    def change(torrent: Tree) -> None:
        torrent.update(
            {
                b"announce": 1,
                b"announce-list": [[b"http://a", b"\xff", {}], b"http://b"],
                b"url-list": b"http://w",
                b"comment": b"\xff",
            }
        )

    data = changed(SMALL, change)
    assert metainfo.decode(data, "x") == SMALL
    assert metainfo.decode_outside(data, "x") == (("http://a", "http://b"), ("http://w",), None)


SERVER = dataclasses.replace(LARGE, name=f"{'0' * 32}-hello-1.0")


def test_a_server_file() -> None:
    """A torrent of a server's own bytes has the server's name for them, which is no hash."""
    assert metainfo.decode(SERVER.encode(), "x") == SERVER
    assert SERVER.kind is Kind.SERVER
    assert SERVER.infohash_v2 != LARGE.infohash_v2
    with pytest.raises(InvalidInputError) as caught:
        _ = SERVER.nar_hash
    assert str(caught.value) == f"{SERVER.name}: is not the name of a payload"


@pytest.mark.parametrize(
    ("meta", "nar_hash", "nar_size", "message"),
    [
        (SMALL, NAR_HASH, 4096, None),
        (LARGE, NAR_HASH, 132396, None),
        (
            LARGE,
            NAR_HASH,
            132395,
            f"{NAME}: has 200000 bytes, too many for a NAR of 132395",
        ),
        (
            SMALL,
            bytes(32),
            4096,
            f"{NAME}: is not a payload of the NAR {'0' * 52}",
        ),
        (dataclasses.replace(SMALL, name=f"{NAME[:52]}.nar"), NAR_HASH, 1000, None),
        (
            dataclasses.replace(SMALL, name=f"{NAME[:52]}.nar"),
            NAR_HASH,
            1001,
            f"{NAME[:52]}.nar: has 1000 bytes, and the NAR 1001",
        ),
        (SERVER, bytes(32), 132396, None),
        (
            SERVER,
            bytes(32),
            132395,
            f"{SERVER.name}: has 200000 bytes, too many for a NAR of 132395",
        ),
    ],
)
def test_require_for(meta: Metainfo, nar_hash: bytes, nar_size: int, message: str | None) -> None:
    """A torrent may carry a NAR if it is named after it and no longer than a payload can be."""
    if message is None:
        metainfo.require_for(meta, nar_hash, nar_size)
        return
    with pytest.raises(MismatchError) as caught:
        metainfo.require_for(meta, nar_hash, nar_size)
    assert str(caught.value) == message
