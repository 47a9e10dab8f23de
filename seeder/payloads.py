# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes payloads and torrents.

The NAR is read once: it is hashed, compressed and hashed into pieces on the way. Its hash has to be
the one that was vouched for; a store whose files were changed under guix-daemon's hands makes
nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from narswarm.errors import MismatchError, NarswarmError
from narswarm.files import atomic_file
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import CHUNK, FrameCompressor, file_name, max_length
from seeder.inventory import Item
from seeder.room import Claim, FullError

_FULL = {errno.ENOSPC, errno.EDQUOT}


class StoppedError(NarswarmError):
    """The seeder is about to end."""


class PayloadMaker:
    """Makes the payloads of items in one directory.

    Args:
        directory: where they appear, complete, as `<NarHash>.nar.zst`.
        stopping: asked between two chunks whether to stop.
        workers: threads that compress, 0 for one on each core.
    """

    def __init__(self, directory: Path, stopping: Callable[[], bool], workers: int = 0) -> None:
        self._directory = directory
        self._stopping = stopping
        self._workers = workers or None

    def make(self, item: Item, chunks: Iterator[bytes], claim: Claim) -> Metainfo:
        """Write the payload of an item, and return its torrent.

        Args:
            item: says what its NAR has to be.
            chunks: the NAR.
            claim: asked for room.

        Raises:
            FullError: there is no room for it.
            MismatchError: the NAR is another one.
            StoppedError: the seeder ends.
            CodecError: this machine's zstd makes other payloads.
            NarswarmError: what reading the NAR raises.
        """
        path = self._directory / file_name(item.nar_hash)
        try:
            with atomic_file(path) as file:
                return self._write(item, self._checked(item, chunks), file.write, claim)
        except OSError as error:
            if error.errno in _FULL:
                raise FullError(self._directory, error.strerror or "is full") from None
            raise NarswarmError(path, error.strerror or str(error)) from None

    def _write(
        self,
        item: Item,
        chunks: Iterator[bytes],
        write: Callable[[bytes], object],
        claim: Claim,
    ) -> Metainfo:
        hasher = PieceHasher(max_length(item.nar_size))
        done = 0
        with FrameCompressor(chunks, self._workers) as frames:
            for frame in frames:
                done = min(done + CHUNK, item.nar_size)
                claim.take(len(frame))
                write(frame)
                hasher.update(frame)
                hasher.update_bound(hasher.length + max_length(item.nar_size - done))
            if (frames.nar_sha256, frames.nar_size) != (item.nar_hash, item.nar_size):
                raise MismatchError(item.store_path, "has another NAR than the database says")
        return Metainfo.of(file_name(item.nar_hash), hasher.finish())

    def _checked(self, item: Item, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The NAR, as long as it isn't longer than it may be."""
        size = 0
        for chunk in chunks:
            if self._stopping():
                raise StoppedError("seeder", "is about to end")
            size += len(chunk)
            if size > item.nar_size:
                raise MismatchError(item.store_path, "has a longer NAR than the database says")
            yield chunk
