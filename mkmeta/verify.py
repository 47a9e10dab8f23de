# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares a payload, or the one that a NAR gives, with a torrent, piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mkmeta.inputs import STDIN, is_nar_file, open_file, open_nar, store_item
from narswarm.compression import decompress
from narswarm.errors import InvalidInputError
from narswarm.merkle import piece_count, piece_hash
from narswarm.metainfo import Metainfo
from narswarm.payload import FrameCompressor, Kind

_READ: Final = 1024 * 1024
_UNLIMITED: Final = 2**63


@dataclass(frozen=True, slots=True)
class Report:
    """What a comparison found.

    Attributes:
        length: bytes that the payload has.
        bad_pieces: indices of pieces that differ or are missing, ascending.
        nar_hash: SHA-256 of the NAR, 32 bytes; None if no NAR came out of the payload.
        meta: the torrent that was compared with.
    """

    meta: Metainfo
    length: int
    bad_pieces: tuple[int, ...]
    nar_hash: bytes | None

    @property
    def fault(self) -> str | None:
        """What is wrong; None if this is the torrent's payload, and of the NAR of its name."""
        if self.bad_pieces:
            count = piece_count(self.meta.length, self.meta.piece_length)
            return f"{len(self.bad_pieces)} of {count} pieces differ from the torrent"
        if self.length != self.meta.length:
            return f"has {self.length} bytes, and the torrent {self.meta.length}"
        if self.nar_hash != self.meta.nar_hash:
            return "is the torrent's payload, but its name is not the hash of the NAR in it"
        return None


def verify(path: str, meta: Metainfo, progress: Callable[[int], object] | None = None) -> Report:
    """Compare with a torrent.

    Args:
        path: the payload, or anything else that `open_nar` knows: then the payload is made of it.
        meta: the torrent.
        progress: called with the bytes of the payload that were compared.

    Raises:
        NotFoundError: the file isn't there.
        CodecError: a payload would have to be made, which this machine's zstd can't.
    """
    pieces = _Pieces(meta, progress)
    if is_payload(path):
        with open_file(path) as file:
            nar_hash = _hash_payload(pieces, iter(lambda: file.read(_READ), b""), meta.kind)
    else:
        with open_nar(path) as source:
            if meta.kind is Kind.NAR:
                nar_hash = _hash_payload(pieces, source.chunks, meta.kind)
            else:
                with FrameCompressor(source.chunks) as frames:
                    for frame in frames:
                        pieces.update(frame)
                    nar_hash = frames.nar_sha256
    return Report(meta, pieces.length, pieces.finish(), nar_hash)


def is_payload(path: str) -> bool:
    """Return whether this is a payload: a regular file, no store item and not named `*.nar`."""
    if path == STDIN or is_nar_file(path) or store_item(path) is not None:
        return False
    return Path(path).is_file()


def _hash_payload(pieces: _Pieces, chunks: Iterable[bytes], kind: Kind) -> bytes | None:
    """Check a payload that is there; return the hash of the NAR in it, if there is one."""
    passed = pieces.through(chunks)
    digest = hashlib.sha256()
    try:
        for part in decompress(passed, "zstd" if kind is Kind.ZSTD else "none", _UNLIMITED):
            digest.update(part)
    except InvalidInputError:
        # Bad pieces are what is asked for: go on to the end of the file.
        for _ in passed:
            pass
        return None
    return digest.digest()


class _Pieces:
    """Compares the bytes of a payload, as they come, with the pieces of a torrent."""

    def __init__(self, meta: Metainfo, progress: Callable[[int], object] | None) -> None:
        self.length = 0
        self._meta = meta
        self._progress = progress
        self._count = piece_count(meta.length, meta.piece_length)
        self._next = 0
        self._buffer = bytearray()
        self._bad: list[int] = []

    def through(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass chunks on after they were checked."""
        for chunk in chunks:
            self.update(chunk)
            yield chunk

    def update(self, data: bytes) -> None:
        """Check the next bytes; those behind the last piece only count."""
        self.length += len(data)
        if self._next < self._count:
            self._buffer += data
        size = self._meta.piece_length
        start = 0
        while len(self._buffer) - start >= size and self._next < self._count - 1:
            self._check(bytes(self._buffer[start : start + size]))
            start += size
        if start:
            del self._buffer[:start]
        if self._progress is not None:
            self._progress(self.length)

    def finish(self) -> tuple[int, ...]:
        """Return the pieces that differ or are missing."""
        if self._next < self._count and self._buffer:
            last = self._meta.length - self._next * self._meta.piece_length
            self._check(bytes(self._buffer[:last]))
        return (*self._bad, *range(self._next, self._count))

    def _check(self, piece: bytes) -> None:
        """Compare a piece in both of its hashes: a torrent can be wrong in one alone."""
        meta, index = self._meta, self._next
        self._next += 1
        if meta.piece_layer:
            wanted = meta.piece_layer[32 * index : 32 * index + 32]
        else:
            wanted = meta.pieces_root
        v1 = hashlib.sha1(piece, usedforsecurity=False).digest()
        if (
            piece_hash(piece, meta.piece_length, alone=self._count == 1) != wanted
            or v1 != meta.pieces[20 * index : 20 * index + 20]
        ):
            self._bad.append(index)
