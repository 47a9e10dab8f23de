# SPDX-License-Identifier: GPL-3.0-or-later
"""Piece lengths and piece hashes of a payload, v1 and v2, made in one pass over its bytes.

BEP 52 hashes a file as a binary tree over blocks of 16 KiB, which doesn't depend on the piece
length; BEP 3 hashes each piece with SHA-1, which does.  Profile 1 derives the piece length from the
length of the payload, and that is known only when the last frame has been compressed.  So
`PieceHasher` hashes for every piece length that is still possible, which are few: growing data
rule out the short ones, an upper bound rules out the long ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

from narswarm.errors import InvalidInputError

BLOCK: Final = 16 * 1024
"""Bytes that a leaf of the tree covers (BEP 52)."""

MIN_PIECE: Final = 64 * 1024
MAX_PIECE: Final = 8 * 1024 * 1024

_PIECES: Final = 1024
"""Pieces that a torrent has at most, until `MAX_PIECE` ends the growth of the pieces."""

_BLOCKS_IN_UNIT: Final = MIN_PIECE // BLOCK
_NO_BLOCK: Final = bytes(32)
"""Stands for a leaf behind the end of the file: zeros, not the hash of zeros (BEP 52)."""


def piece_length(payload_length: int) -> int:
    """Return the piece length of profile 1.

    It is the smallest power of two that is at least a 1024th of the payload, from 64 KiB to 8 MiB.
    """
    length = MIN_PIECE
    while length < MAX_PIECE and length * _PIECES < payload_length:
        length *= 2
    return length


def piece_count(payload_length: int, piece: int) -> int:
    """Return how many pieces of `piece` bytes a payload has, the last possibly short."""
    return -(-payload_length // piece)


def block_hashes(data: memoryview) -> list[bytes]:
    """Return the SHA-256 of each block of 16 KiB, the last possibly short."""
    return [
        hashlib.sha256(data[start : start + BLOCK]).digest() for start in range(0, len(data), BLOCK)
    ]


def piece_hash(data: bytes, piece: int, *, alone: bool = False) -> bytes:
    """Return the v2 hash of one piece: the root over its blocks.

    Args:
        data: the bytes of the piece, at least one.
        piece: the piece length; a last piece that is shorter is padded to it with zero leaves.
        alone: whether the whole file is this piece.  Its tree has no more leaves than it needs.
    """
    leaves = block_hashes(memoryview(data))
    width = _power_of_two(len(leaves)) if alone else piece // BLOCK
    return _root(leaves, width, _NO_BLOCK)


def layer_root(layer: bytes, piece: int) -> bytes:
    """Return the pieces root over a piece layer (BEP 52).

    Args:
        layer: 32 bytes for each piece, at least one.
        piece: the piece length, which says what stands for pieces behind the end.
    """
    hashes = [layer[start : start + 32] for start in range(0, len(layer), 32)]
    return _root(hashes, _power_of_two(len(hashes)), _padding(piece))


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


@cache
def _padding(covered: int) -> bytes:
    """Return the root of the tree over `covered` bytes behind the end of the file."""
    if covered == BLOCK:
        return _NO_BLOCK
    half = _padding(covered // 2)
    return hashlib.sha256(half + half).digest()


def _fold(hashes: Sequence[bytes], padding: bytes) -> list[bytes]:
    """Return the parents of `hashes`; the last has `padding` for a missing sibling."""
    even = len(hashes) & ~1
    parents = [
        hashlib.sha256(hashes[index] + hashes[index + 1]).digest() for index in range(0, even, 2)
    ]
    if even != len(hashes):
        parents.append(hashlib.sha256(hashes[even] + padding).digest())
    return parents


def _root(hashes: Sequence[bytes], width: int, padding: bytes) -> bytes:
    """Return the root over `width` hashes, those after the given ones being `padding`."""
    while width > 1:
        hashes = _fold(hashes, padding)
        padding = hashlib.sha256(padding + padding).digest()
        width //= 2
    return hashes[0]


class PieceHashes(NamedTuple):
    """What a torrent says about the bytes of its payload.

    Attributes:
        length: bytes of the payload.
        piece_length: bytes of a piece.
        pieces_root: 32 bytes, the root of the tree over the payload.
        piece_layer: 32 bytes for each piece; empty when there is only one (BEP 52).
        pieces: 20 bytes for each piece (BEP 3).
    """

    length: int
    piece_length: int
    pieces_root: bytes
    piece_layer: bytes
    pieces: bytes


class _Sha1Pieces:
    """The v1 piece hashes for one piece length, fed in units of 64 KiB."""

    __slots__ = ("_current", "_done", "_left", "_piece")

    def __init__(self, piece: int) -> None:
        self._piece = piece
        self._left = piece
        self._current = hashlib.sha1(usedforsecurity=False)
        self._done = bytearray()

    def update(self, unit: memoryview) -> None:
        """Hash a unit, which never crosses the end of a piece."""
        self._current.update(unit)
        self._left -= len(unit)
        if not self._left:
            self._next()

    def finish(self) -> bytes:
        """Return the hashes; the last piece is as short as it is."""
        if self._left < self._piece:
            self._next()
        return bytes(self._done)

    def _next(self) -> None:
        self._done += self._current.digest()
        self._current = hashlib.sha1(usedforsecurity=False)
        self._left = self._piece


class PieceHasher:
    """Hashes a payload of unknown length for its torrent.

    Memory is a few hashes for each piece of the final torrent.  An upper bound that is near the
    true length saves time: each further possible piece length costs one more SHA-1 of the data.

    Args:
        max_length: bytes that the payload can have at most, if that is known.
    """

    def __init__(self, max_length: int | None = None) -> None:
        self.length = 0
        self._rest = bytearray()  # less than a unit
        self._units: list[bytes] = []  # roots of units behind the last node
        self._nodes: list[bytes] = []  # roots of `_covered` bytes each
        self._covered = MIN_PIECE
        self._max_length = max_length
        self._sha1: dict[int, _Sha1Pieces] = {}
        piece = MIN_PIECE
        while piece <= MAX_PIECE:
            self._sha1[piece] = _Sha1Pieces(piece)
            piece *= 2
        self._drop()

    def update_bound(self, max_length: int) -> None:
        """Lower the upper bound of the length, when more is known about what is to come."""
        if self._max_length is None or max_length < self._max_length:
            self._max_length = max_length
            self._drop()

    def update(self, data: bytes) -> None:
        """Hash the next bytes of the payload.

        Raises:
            ValueError: there are more bytes than the upper bound allows.
        """
        if self._max_length is not None and self.length + len(data) > self._max_length:
            raise ValueError(f"payload longer than its bound of {self._max_length} bytes")
        view = memoryview(data)
        if self._rest:
            missing = MIN_PIECE - len(self._rest)
            self._rest += view[:missing]
            self.length += min(missing, len(view))
            view = view[missing:]
            if len(self._rest) < MIN_PIECE:
                return
            self._unit(memoryview(bytes(self._rest)))
            self._rest.clear()
        while len(view) >= MIN_PIECE:
            self.length += MIN_PIECE
            self._unit(view[:MIN_PIECE])
            view = view[MIN_PIECE:]
        self.length += len(view)
        self._rest += view

    def finish(self) -> PieceHashes:
        """Return the hashes; the hasher is used up.

        Raises:
            InvalidInputError: there were no bytes, of which no torrent can be made.
        """
        if not self.length:
            raise InvalidInputError("payload", "is empty, and a torrent needs at least one byte")
        piece = piece_length(self.length)
        if self.length <= piece:
            return self._finish_single(piece)
        if self._rest:
            rest = memoryview(bytes(self._rest))
            self._v1(rest)
            self._units.append(_root(block_hashes(rest), _BLOCKS_IN_UNIT, _NO_BLOCK))
        if self._units:
            self._nodes.append(_root(self._units, self._covered // MIN_PIECE, _padding(MIN_PIECE)))
        while self._covered < piece:
            self._widen()
        layer = b"".join(self._nodes)
        pieces = self._sha1[piece].finish()
        return PieceHashes(self.length, piece, layer_root(layer, piece), layer, pieces)

    def _finish_single(self, piece: int) -> PieceHashes:
        """Return the hashes of a payload that is one piece, for which there is no layer."""
        if self._rest:
            rest = memoryview(bytes(self._rest))
            self._v1(rest)
            leaves = block_hashes(rest)
            root = _root(leaves, _power_of_two(len(leaves)), _NO_BLOCK)
        else:
            root = self._nodes[0]
        return PieceHashes(self.length, piece, root, b"", self._sha1[piece].finish())

    def _unit(self, unit: memoryview) -> None:
        """Hash 64 KiB."""
        self._v1(unit)
        self._units.append(_root(block_hashes(unit), _BLOCKS_IN_UNIT, _NO_BLOCK))
        if len(self._units) * MIN_PIECE == self._covered:
            self._nodes.append(_root(self._units, len(self._units), _NO_BLOCK))
            self._units.clear()
            # Pieces of the final torrent are at least this long, so pairs can become one hash.
            if not len(self._nodes) & 1 and piece_length(self.length) > self._covered:
                self._widen()

    def _v1(self, unit: memoryview) -> None:
        self._drop()
        for sha1 in self._sha1.values():
            sha1.update(unit)

    def _widen(self) -> None:
        """Make the nodes cover twice as much."""
        self._nodes = _fold(self._nodes, _padding(self._covered))
        self._covered *= 2

    def _drop(self) -> None:
        """Forget the piece lengths that have become impossible."""
        shortest = piece_length(self.length)
        longest = MAX_PIECE if self._max_length is None else piece_length(self._max_length)
        for piece in [piece for piece in self._sha1 if not shortest <= piece <= longest]:
            del self._sha1[piece]
