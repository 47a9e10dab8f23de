# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.merkle`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import merkle
from narswarm.errors import InvalidInputError
from tests.fixtures.golden import reference

KIB = 1024
MIB = 1024 * KIB
GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "fixtures/golden/profile-1.json").read_text()
)["payloads"]


@pytest.fixture(scope="module")
def noise() -> memoryview:
    """Give the bytes that the payloads of the golden vectors begin with."""
    longest = max(vector["payload_length"] for vector in GOLDEN)
    return memoryview(reference.noise(longest, reference.PAYLOAD_NAME_OF))


@pytest.mark.parametrize(
    ("length", "piece"),
    [
        (1, 64 * KIB),
        (64 * MIB - 1, 64 * KIB),
        (64 * MIB, 64 * KIB),
        (64 * MIB + 1, 128 * KIB),
        (128 * MIB, 128 * KIB),
        (128 * MIB + 1, 256 * KIB),
        (4096 * MIB, 4 * MIB),
        (4096 * MIB + 1, 8 * MIB),
        (8192 * MIB + 1, 8 * MIB),
        (2**50, 8 * MIB),
    ],
)
def test_piece_length(length: int, piece: int) -> None:
    """Pieces are the smallest power of two of which 1024 hold the payload, within bounds."""
    assert merkle.piece_length(length) == piece == reference.piece_length(length)


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda vector: str(vector["payload_length"]))
def test_golden(vector: dict[str, Any], noise: memoryview) -> None:
    """The hashes of payloads around every boundary never change."""
    data = noise[: vector["payload_length"]]
    hasher = merkle.PieceHasher(len(data))
    for start in range(0, len(data), MIB - 1):
        hasher.update(bytes(data[start : start + MIB - 1]))
    hashes = hasher.finish()
    assert hashes.length == len(data)
    assert hashes.piece_length == vector["piece_length"]
    assert hashes.pieces_root.hex() == vector["pieces_root"]
    assert hashlib.sha256(hashes.piece_layer).hexdigest() == vector["piece_layer_sha256"]
    assert hashlib.sha256(hashes.pieces).hexdigest() == vector["pieces_sha256"]


@given(
    st.integers(1, 600 * KIB),
    st.lists(st.integers(1, 200 * KIB), max_size=12),
    st.none() | st.integers(0, 200 * MIB),
)
def test_any_cut(length: int, cuts: list[int], slack: int | None) -> None:
    """However the payload is cut and whatever bound was known, the hashes are the same."""
    data = bytes(range(251)) * (length // 251 + 1)
    data = data[:length]
    hasher = merkle.PieceHasher(None if slack is None else length + slack)
    start = 0
    for cut in cuts:
        hasher.update(data[start : start + cut])
        start += cut
    hasher.update(data[start:])
    hashes = hasher.finish()
    plain = reference.torrent("x", data)
    assert hashes == (length, plain.piece_length, *plain[1:4])


@pytest.mark.parametrize("bound", [None, 300 * MIB, 129 * MIB])
def test_growing_pieces(bound: int | None) -> None:
    """A payload that outgrows two piece lengths has the hashes of the third."""
    block = reference.noise(MIB + 48 * KIB)
    hasher = merkle.PieceHasher(bound)
    data = bytearray()
    while len(data) <= 128 * MIB:
        hasher.update(block)
        data += block
        if bound is not None:
            hasher.update_bound(max(len(data), 129 * MIB))
    hashes = hasher.finish()
    pieces = [data[start : start + 256 * KIB] for start in range(0, len(data), 256 * KIB)]
    assert hashes.length == len(data)
    assert hashes.piece_length == 256 * KIB
    assert hashes.pieces == b"".join(
        hashlib.sha1(piece, usedforsecurity=False).digest() for piece in pieces
    )
    assert hashes.piece_layer == b"".join(
        merkle.piece_hash(bytes(piece), 256 * KIB) for piece in pieces
    )
    assert hashes.pieces_root == merkle.layer_root(hashes.piece_layer, 256 * KIB)


def test_no_bytes() -> None:
    """A torrent of nothing can't be made."""
    with pytest.raises(InvalidInputError) as caught:
        merkle.PieceHasher().finish()
    assert str(caught.value) == "payload: is empty, and a torrent needs at least one byte"


def test_bound_is_kept() -> None:
    """More bytes than the bound allows are the caller's mistake; a bound is only ever lowered."""
    hasher = merkle.PieceHasher(10)
    hasher.update_bound(20)
    hasher.update(bytes(10))
    with pytest.raises(ValueError, match="payload longer than its bound of 10 bytes"):
        hasher.update(b"x")


@pytest.mark.parametrize("size", [1, 16384, 16385, 40000, 65535, 65536])
def test_piece_hash(size: int) -> None:
    """A piece that is the whole file has its own tree; a last piece is padded with zero leaves."""
    data = reference.noise(size)
    alone = reference.torrent("x", data).pieces_root
    assert merkle.piece_hash(data, 64 * KIB, alone=True) == alone
    padded = reference.tree(reference.leaves_of(data, 4))
    assert merkle.piece_hash(data, 64 * KIB) == padded


@pytest.mark.parametrize(("length", "count"), [(1, 1), (65536, 1), (65537, 2), (131072, 2)])
def test_piece_count(length: int, count: int) -> None:
    """The last piece may be short."""
    assert merkle.piece_count(length, 64 * KIB) == count
