# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes payloads and torrents, within a quota.

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

_FULL = {errno.ENOSPC, errno.EDQUOT}


class FullError(NarswarmError):
    """No room for a payload: the quota is used up, or the disk is full."""


class StoppedError(NarswarmError):
    """The seeder is about to end."""


class PayloadMaker:
    """Makes the payloads of items in one directory.

    Args:
        directory: where they appear, complete, as `<NarHash>.nar.zst`.
        quota: bytes that all of them may take.
        used: asked how many bytes they take now.
        stopping: asked between two chunks whether to stop.
        workers: threads that compress, 0 for one on each core.
    """

    def __init__(
        self,
        directory: Path,
        quota: int,
        used: Callable[[], int],
        stopping: Callable[[], bool],
        workers: int = 0,
    ) -> None:
        self._directory = directory
        self._quota = quota
        self._used = used
        self._stopping = stopping
        self._workers = workers or None

    def make(self, item: Item, chunks: Iterator[bytes]) -> Metainfo:
        """Write the payload of an item, and return its torrent.

        Args:
            item: says what its NAR has to be.
            chunks: the NAR.

        Raises:
            FullError: there is no room for it.
            MismatchError: the NAR is another one.
            StoppedError: the seeder ends.
            CodecError: this machine's zstd makes other payloads.
            NarswarmError: what reading the NAR raises.
        """
        room = self._quota - self._used()
        if room <= 0:
            raise FullError(self._directory, f"holds the {self._quota} bytes that it may")
        path = self._directory / file_name(item.nar_hash)
        try:
            with atomic_file(path) as file:
                meta = self._write(item, self._checked(item, chunks), file.write, room)
        except OSError as error:
            if error.errno in _FULL:
                raise FullError(self._directory, error.strerror or "is full") from None
            raise NarswarmError(path, error.strerror or str(error)) from None
        return meta

    def _write(
        self,
        item: Item,
        chunks: Iterator[bytes],
        write: Callable[[bytes], object],
        room: int,
    ) -> Metainfo:
        hasher = PieceHasher(max_length(item.nar_size))
        done = 0
        with FrameCompressor(chunks, self._workers) as frames:
            for frame in frames:
                done = min(done + CHUNK, item.nar_size)
                if hasher.length + len(frame) > room:
                    raise FullError(self._directory, f"would hold more than {self._quota} bytes")
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
