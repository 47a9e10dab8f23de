# SPDX-License-Identifier: GPL-3.0-or-later
"""The golden vectors against libtorrent and against the plain reference of the rules.

libtorrent hashes the payloads itself, from files, and makes hybrid torrents of its own; the info
dictionaries must be the same bytes.  What we make must load there, with the infohashes that we say.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import libtorrent
import pytest

from narswarm import bencoding, metainfo
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from tests.fixtures.golden import reference

pytestmark = pytest.mark.conformance

GOLDEN: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "fixtures/golden/profile-1.json").read_text()
)
BOTH = [*GOLDEN["nars"], *GOLDEN["payloads"]]


@pytest.fixture(scope="module")
def noise() -> bytes:
    """Give the bytes that the payloads of the second list begin with."""
    longest = max(vector["payload_length"] for vector in GOLDEN["payloads"])
    return reference.noise(longest, reference.PAYLOAD_NAME_OF)


def payload_of(vector: dict[str, Any], noise: bytes) -> bytes:
    """Return the payload of a vector, as the reference makes it."""
    if "contents" not in vector:
        return noise[: vector["payload_length"]]
    return nar_payload(vector["contents"], vector["contents_size"])


@functools.cache
def nar_payload(contents: str, size: int) -> bytes:
    """Return the payload of the NAR of a file."""
    return reference.payload(reference.nar(reference.CONTENTS[contents](size)))


def name_of(vector: dict[str, Any]) -> str:
    """Return an identifier for a test."""
    return f"{vector.get('contents', 'payload')}-{vector['payload_length']}"


def our_torrent(name: str, data: bytes) -> Metainfo:
    """Return our torrent of a payload."""
    hasher = PieceHasher()
    hasher.update(data)
    return Metainfo.of(name, hasher.finish())


def their_torrent(path: Path, length: int, piece: int) -> dict[bytes, Any]:
    """Return libtorrent's hybrid torrent of a file."""
    if hasattr(libtorrent, "create_file_entry"):
        files: Any = [libtorrent.create_file_entry(path.name, length)]
    else:  # before 2.1
        files = libtorrent.file_storage()
        files.add_file(path.name, length)
    maker = libtorrent.create_torrent(files, piece)
    libtorrent.set_piece_hashes(maker, str(path.parent))
    made: dict[bytes, Any] = maker.generate()
    return made


def hashes_of(parameters: libtorrent.add_torrent_params) -> tuple[str, str]:
    """Return the infohashes that libtorrent sees."""
    return (
        parameters.info_hashes.v1.to_bytes().hex(),
        parameters.info_hashes.v2.to_bytes().hex(),
    )


@pytest.mark.parametrize("vector", BOTH, ids=name_of)
def test_libtorrent_makes_the_same(vector: dict[str, Any], noise: bytes, tmp_path: Path) -> None:
    """Libtorrent's own hybrid torrent of the payload has our info dictionary and piece layers."""
    data = payload_of(vector, noise)
    name, piece = vector["name"], vector["piece_length"]
    (tmp_path / name).write_bytes(data)
    made = their_torrent(tmp_path / name, len(data), piece)
    ours = our_torrent(name, data)
    assert libtorrent.bencode(made[b"info"]) == ours.info_bytes
    torrent = bencoding.decode(ours.encode(), name)
    assert isinstance(torrent, dict)
    assert torrent[b"piece layers"] == made[b"piece layers"]
    assert hashlib.sha1(ours.info_bytes, usedforsecurity=False).hexdigest() == vector["infohash_v1"]
    assert hashlib.sha256(ours.info_bytes).hexdigest() == vector["infohash_v2"]
    # What libtorrent makes is a torrent of profile 1 as it is, its date outside the identity.
    assert metainfo.decode(libtorrent.bencode(made), name) == ours


@pytest.mark.parametrize("vector", BOTH, ids=name_of)
def test_libtorrent_loads_ours(vector: dict[str, Any], noise: bytes) -> None:
    """Libtorrent takes our torrent and sees one file, our pieces and our infohashes."""
    ours = our_torrent(vector["name"], payload_of(vector, noise))
    parameters = libtorrent.load_torrent_buffer(
        ours.encode(["http://127.0.0.1/announce", "udp://127.0.0.1:1"], ["http://127.0.0.1/"], "x")
    )
    assert hashes_of(parameters) == (vector["infohash_v1"], vector["infohash_v2"])
    found = parameters.ti
    assert found is not None
    assert found.num_files() == 1
    assert found.total_size() == vector["payload_length"]
    assert found.piece_length() == vector["piece_length"]
    assert list(parameters.trackers) == ["http://127.0.0.1/announce", "udp://127.0.0.1:1"]
    assert list(parameters.url_seeds) == ["http://127.0.0.1/"]


@pytest.mark.parametrize("vector", BOTH, ids=name_of)
def test_reference(vector: dict[str, Any], noise: bytes) -> None:
    """The plain reference comes to the same torrent by another way."""
    data = payload_of(vector, noise)
    ours = our_torrent(vector["name"], data)
    plain = reference.torrent(vector["name"], data)
    assert plain.info == ours.info_bytes
    assert plain.piece_layer == ours.piece_layer
    assert plain.infohashes == (vector["infohash_v1"], vector["infohash_v2"])


def test_magnet() -> None:
    """Libtorrent reads both infohashes, name and trackers from our magnet link."""
    ours = our_torrent(GOLDEN["payloads"][0]["name"], b"x")
    link = ours.magnet(["http://127.0.0.1/announce?a=b&c=d"])
    parameters = libtorrent.parse_magnet_uri(link)
    assert hashes_of(parameters) == (ours.infohash_v1.hex(), ours.infohash_v2.hex())
    assert parameters.name == ours.name
    assert list(parameters.trackers) == ["http://127.0.0.1/announce?a=b&c=d"]


def test_info_alone_loads() -> None:
    """The info dictionary alone is enough for a leecher, and its infohashes are the same."""
    ours = our_torrent(GOLDEN["payloads"][0]["name"], bytes(200_000))
    parameters = libtorrent.load_torrent_buffer(b"d4:info%se" % ours.info_bytes)
    assert hashes_of(parameters) == (ours.infohash_v1.hex(), ours.infohash_v2.hex())


def test_documented_vectors() -> None:
    """The tables of `docs/profile-1.md` have all vectors."""
    page = Path(__file__).parents[2].joinpath("docs/profile-1.md").read_text()
    rows = [
        line.replace("`", "") for line in page.splitlines() if re.match(r"\|.*[0-9a-f]{40}", line)
    ]
    keys = ("contents", "contents_size", "nar_size", "payload_length", "infohash_v1")
    expected = [[vector[key] for key in keys] for vector in GOLDEN["nars"]]
    short = ("payload_length", "piece_length", "infohash_v1")
    expected += [[vector[key] for key in short] for vector in GOLDEN["payloads"]]
    assert rows == [f"| {' | '.join(map(str, row))} |" for row in expected]
