# SPDX-License-Identifier: GPL-3.0-or-later
"""Payloads of profile 1: a NAR as zstd frames that every holder makes alike.

Two machines that hold the same NAR must make the same bytes, or they land in two swarms.  So a
frame is a pure function of its chunk of the NAR: 4 MiB, level 9, content size in the header, no
checksum, no dictionary, no threads inside a frame.  The encoder is given the chunk as a whole,
because zstd chooses its parameters by the size that it knows beforehand.  What comes out is stable
only within one version of libzstd, which therefore is part of the profile; `check_codec` finds out
whether it is the one here.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from functools import cache
from types import TracebackType
from typing import Final, Self

import zstandard

from narswarm import base32, storepath
from narswarm.errors import CodecError, InvalidInputError

PROFILE: Final = 1
CHUNK: Final = 4 * 1024 * 1024
"""Bytes of the NAR in each frame but the last, which may have fewer."""

LEVEL: Final = 9
LIBZSTD: Final = (1, 5, 7)
"""The version of libzstd that profile 1 is."""

_NAME: Final = re.compile(r"([0-9a-df-np-sv-z]{52})\.(nar(?:\.zst)?)")


class Kind(StrEnum):
    """What a payload is, in the index, and as the suffix of its name if we choose that."""

    ZSTD = "nar.zst"
    NAR = "nar"
    SERVER = "server"
    """The bytes of a substitute server, under the server's own name for them: that of the store
    item, whatever the compression (Guix: guix/scripts/publish.scm)."""

    @property
    def compression(self) -> str:
        """What `narswarm.compression.decompress` is told."""
        return _COMPRESSIONS[self]


_COMPRESSIONS: Final = {Kind.ZSTD: "zstd", Kind.NAR: "none", Kind.SERVER: "any"}


def file_name(nar_hash: bytes, kind: Kind = Kind.ZSTD) -> str:
    """Return the name of the payload of a NAR: the hash in nix-base32 and the kind.

    For a server's file it is only what a file can be called here: its torrent has another name.
    """
    return f"{base32.encode(nar_hash)}.{kind}"


def parse_file_name(name: str) -> tuple[bytes, Kind]:
    """Return NarHash (32 bytes) and kind of the payload that has this name.

    Raises:
        InvalidInputError: the name isn't one that `file_name` gives.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InvalidInputError(name[:80], "is not the name of a payload")
    return base32.decode(match[1]), Kind(match[2])


def kind_of(name: str) -> Kind:
    """Return what the payload is that a torrent has under this name.

    Raises:
        InvalidInputError: it is neither one that `file_name` gives nor the name of a store item.
    """
    if is_server_name(name):
        return Kind.SERVER
    return parse_file_name(name)[1]


def is_server_name(name: str) -> bool:
    """Return whether a substitute server could have a file of this name: that of a store item."""
    try:
        return storepath.parse(name).base_name == name
    except InvalidInputError:
        return False


def max_length(nar_size: int) -> int:
    """Return how many bytes a payload for a NAR of `nar_size` bytes can have at most."""
    return nar_size + nar_size // 64 + 64 * 1024


def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(
        level=LEVEL, write_content_size=True, write_checksum=False, write_dict_id=False, threads=0
    )


def codec_input(size: int) -> bytes:
    """Return what `check_codec` compresses: runs of 48 KiB, of text and of noise in turn.

    The noise is SHAKE-128 of `narswarm profile 1`; the text is the noise with each byte b replaced
    by the letter b // 32 of `etaoinsh`.  Versions of libzstd differ in where they split blocks
    whose statistics change, which is why the two take turns.
    """
    noise = hashlib.shake_128(b"narswarm profile 1").digest(size)
    text = noise.translate(_LETTERS)
    return b"".join(
        (noise if start // _RUN % 2 else text)[start : start + _RUN]
        for start in range(0, size, _RUN)
    )


_LETTERS: Final = bytes(b"etaoinsh"[byte // 32] for byte in range(256))
_RUN: Final = 48 * 1024

# On either side of the sizes at which zstd takes other parameters: 16, 128 and 256 KiB.
_VECTOR_SIZES: Final = (1_000, 20_000, 100_000, 270_000)
_VECTOR_SHA256: Final = "0c938da15f8801458e4ffb1ee0aba387a3790acf3c7fd6fa33715bdf5acb32fc"


@cache
def _makes_vectors() -> bool:
    """Return whether the vectors come out right; takes some milliseconds, so only done once."""
    data = codec_input(max(_VECTOR_SIZES))
    compressor = _compressor()
    digest = hashlib.sha256()
    for size in _VECTOR_SIZES:
        digest.update(compressor.compress(data[:size]))
    return digest.hexdigest() == _VECTOR_SHA256


def check_codec() -> None:
    """Make sure that this machine's zstd makes the bytes of profile 1.

    Reading payloads needs no such check: any zstd decompresses them.

    Raises:
        CodecError: this is another version of libzstd, or it makes other bytes.
    """
    version = ".".join(map(str, zstandard.ZSTD_VERSION))
    wanted = ".".join(map(str, LIBZSTD))
    if zstandard.ZSTD_VERSION != LIBZSTD:
        reason = f"payloads of profile {PROFILE} are made by libzstd {wanted} only"
    elif not _makes_vectors():
        reason = f"makes other frames than the libzstd {wanted} of profile {PROFILE}"
    else:
        return
    raise CodecError(f"libzstd {version}", reason)


def compress_chunk(chunk: bytes) -> bytes:
    """Return the frame of one chunk of a NAR.

    Args:
        chunk: 4 MiB, or what is left of the NAR if that is less.

    Raises:
        CodecError: as `check_codec` says.
    """
    check_codec()
    return _compressor().compress(chunk)


def _cut(chunks: Iterable[bytes]) -> Generator[bytearray]:
    """Gather and cut what comes into chunks of 4 MiB, in one copy."""
    buffer = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        while len(buffer) + len(view) >= CHUNK:
            missing = CHUNK - len(buffer)
            buffer += view[:missing]
            yield buffer
            buffer = bytearray()
            view = view[missing:]
        buffer += view
    if buffer:
        yield buffer


class FrameCompressor:
    """Compresses a NAR: an iterator over the frames of its payload, in order, made on all cores.

    At most two chunks more than there are workers are in memory, besides about 35 MB that zstd
    needs in each worker.  Exceptions of the source pass through; after one, after the last frame
    and after `close` all threads have ended.

    Args:
        chunks: the NAR in pieces of any size.
        workers: threads that compress; one for each core that this process may use if None.

    Raises:
        CodecError: as `check_codec` says.
    """

    def __init__(self, chunks: Iterable[bytes], workers: int | None = None) -> None:
        check_codec()
        workers = workers or len(os.sched_getaffinity(0))
        self._cuts = _cut(chunks)
        self._pool = ThreadPoolExecutor(workers, "narswarm-zstd")
        # A thread of its own: on many cores SHA-256 would hold up those who compress.
        self._hash_pool = ThreadPoolExecutor(1, "narswarm-sha256")
        self._compressors = threading.local()
        self._pending: deque[tuple[Future[bytes], Future[None]]] = deque()
        self._in_flight = workers + 2
        self._sha256 = hashlib.sha256()
        self._nar_size = 0
        self._closed = self._done = False

    @property
    def nar_sha256(self) -> bytes:
        """SHA-256 of the NAR, 32 bytes, once the last frame has come.

        Raises:
            RuntimeError: it hasn't.
        """
        self._require_done()
        return self._sha256.digest()

    @property
    def nar_size(self) -> int:
        """Bytes of the NAR, once the last frame has come.

        Raises:
            RuntimeError: it hasn't.
        """
        self._require_done()
        return self._nar_size

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if self._closed:
            raise StopIteration
        try:
            while len(self._pending) < self._in_flight:
                chunk = next(self._cuts, None)
                if chunk is None:
                    break
                self._nar_size += len(chunk)
                self._pending.append(
                    (
                        self._pool.submit(self._compress, chunk),
                        self._hash_pool.submit(self._sha256.update, chunk),
                    )
                )
            if self._pending:
                frame, hashed = self._pending.popleft()
                hashed.result()
                return frame.result()
        except BaseException:
            self.close()
            raise
        self._done = True
        self.close()
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and wait for the threads to end: at most for the frames that they are at."""
        self._closed = True
        self._pending.clear()
        self._cuts.close()
        self._pool.shutdown(cancel_futures=True)
        self._hash_pool.shutdown(cancel_futures=True)

    def _compress(self, chunk: bytearray) -> bytes:
        """Compress in a worker, each of which has a compressor that it uses again."""
        compressor: zstandard.ZstdCompressor | None = getattr(self._compressors, "own", None)
        if compressor is None:
            compressor = self._compressors.own = _compressor()
        return compressor.compress(chunk)

    def _require_done(self) -> None:
        if not self._done:
            raise RuntimeError("the last frame hasn't come yet")
