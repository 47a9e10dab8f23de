# SPDX-License-Identifier: GPL-3.0-or-later
"""Decompression of what servers and peers send, in bounded memory.

Substitute servers compress NARs with gzip, lzip or zstd (Guix: guix/scripts/publish.scm); payloads
of profile 1 are many zstd frames in a row.  All of it comes from strangers before any hash could
be checked, so no input makes more than 1 MiB of output at a time (4 MiB, where frames are known to
be no larger), more than the limit in all, or asks for a larger window than `MAX_WINDOW`.
"""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

import zstandard

from narswarm.errors import InvalidInputError
from narswarm.worker import Worker

KINDS: Final = ("none", "gzip", "zstd", "lzip")
"""The compressions, by the names that narinfos have for them."""

MAX_OUTPUT: Final = 1024 * 1024
"""Bytes of output at a time, at most."""

MAX_WINDOW: Final = 1 << 27
"""Bytes of window or dictionary, at most: what `zstd -d` takes without asking for more."""

MAX_FRAME: Final = 4 * 1024 * 1024
"""Bytes of output of a frame that a thread decompresses as a whole."""

_MAX_INPUT: Final = 64 * 1024
_MAX_BLOCK: Final = 128 * 1024  # RFC 8878, 3.1.1.2.4: Block_Maximum_Size
_MAX_FRAME_HEADER: Final = 18  # RFC 8878, 3.1.1: magic and Frame_Header
_ZSTD_MAGIC: Final = bytes.fromhex("28b52ffd")
_SKIPPABLE: Final = bytes.fromhex("2a4d18")  # after a first byte of 0x50 to 0x5f
_MAGIC: Final = {"zstd": _ZSTD_MAGIC, "lzip": b"LZIP", "gzip": b"\x1f\x8b"}
"""First bytes; those of a NAR are none of them."""

_RESERVED_BLOCK: Final = 3
_RLE_BLOCK: Final = 1


def decompress(
    chunks: Iterable[bytes],
    kind: str,
    limit: int,
    *,
    subject: str | None = None,
    threads: int = 0,
) -> Iterator[bytes]:
    """Decompress a stream of one or more members or frames.

    Args:
        chunks: the compressed bytes in pieces of any size.
        kind: one of `KINDS`, or "any": whichever of them the first bytes are of.
        limit: bytes of output in all, at most.
        subject: what errors are about; "zstd data" and the like by default.
        threads: how many decompress frames of zstd beside each other, of those that say that they
            are no larger than `MAX_FRAME`, as payloads of profile 1 are made of. 0 for none.

    Yields:
        Pieces of 1 byte to 1 MiB; whole frames, where threads made them.

    Raises:
        InvalidInputError: an unknown kind; bytes that aren't of this kind, are cut off, have
            something after their end, need too large a window or decompress to more than `limit`.
    """
    if kind not in (*KINDS, "any"):
        raise InvalidInputError(
            subject or "compressed data", f"has an unknown compression {kind!r}"
        )
    source = _Source(chunks, subject or ("compressed data" if kind == "any" else f"{kind} data"))
    return _bounded(_pieces(source, kind, threads), limit, source)


def _pieces(source: _Source, kind: str, threads: int) -> Iterator[bytes]:
    """Decode; nothing is read before the first piece is wanted."""
    if kind == "any":
        start = source.peek(4)
        kind = next((name for name, magic in _MAGIC.items() if start.startswith(magic)), "none")
    yield from _zstd(source, threads) if kind == "zstd" else _DECODERS[kind](source)


class _Source:
    """The compressed bytes, taken in exact amounts or as they come."""

    __slots__ = ("_buffer", "_chunks", "_position", "subject")

    def __init__(self, chunks: Iterable[bytes], subject: str) -> None:
        self.subject = subject
        self._chunks = iter(chunks)
        self._buffer = b""
        self._position = 0

    def some(self, most: int) -> bytes:
        """Return the next bytes, `most` of them or fewer; nothing at the end."""
        while self._position == len(self._buffer):
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._buffer, self._position = chunk, 0
        data = self._buffer[self._position : self._position + most]
        self._position += len(data)
        return data

    def peek(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer if the end comes first, and keep them."""
        data = self._gather(size)
        self.back(data)
        return data

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes.

        Raises:
            InvalidInputError: there are fewer.
        """
        data = self._gather(size)
        if len(data) < size:
            raise self.error("is cut off")
        return data

    def back(self, data: bytes) -> None:
        """Have `data`, which came last, come again."""
        if data:
            self._buffer = data + self._buffer[self._position :]
            self._position = 0

    def error(self, reason: str) -> InvalidInputError:
        return InvalidInputError(self.subject, reason)

    def _gather(self, size: int) -> bytes:
        data = self.some(size)
        if len(data) == size:
            return data
        parts, have = [data], len(data)
        while data and have < size:
            data = self.some(size - have)
            parts.append(data)
            have += len(data)
        return b"".join(parts)


def _bounded(pieces: Iterable[bytes], limit: int, source: _Source) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > limit:
            raise source.error(f"decompresses to more than {limit} bytes")
        if piece:
            yield piece


def _none(source: _Source) -> Iterator[bytes]:
    while data := source.some(MAX_OUTPUT):
        yield data


def _gzip(source: _Source) -> Iterator[bytes]:
    """Decode members of RFC 1952; zlib checks their headers, CRCs and lengths."""
    data = source.peek(1)
    while True:
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        while not member.eof:
            data = source.some(_MAX_INPUT)
            if not data:
                raise source.error("is cut off")
            while data and not member.eof:
                try:
                    yield member.decompress(data, MAX_OUTPUT)
                except zlib.error:
                    raise source.error("is not gzip, or is damaged") from None
                data = member.unconsumed_tail
        source.back(member.unused_data)
        if not source.peek(1):
            return


def _zstd(source: _Source, threads: int) -> Iterator[bytes]:
    """Decode frames of RFC 8878.

    The library gives all that its input decompresses to at once, up to 30,000 times as much.  So
    blocks are found here, each of which makes 128 KiB at most, and are handed over a few at a time.
    """
    context = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    pool = _Pool(threads)
    try:
        while True:
            start = source.peek(_MAX_FRAME_HEADER)
            if start[1:4] == _SKIPPABLE and start[0] >> 4 == 5:
                _skip(source, int.from_bytes(source.take(8)[4:], "little"))
            else:
                header, parameters = _header(source, start)
                if threads and 0 < parameters.content_size <= MAX_FRAME:
                    yield from pool.add(_whole(source, header, parameters), source)
                else:
                    yield from pool.finish()
                    yield from _frame(source, context, header, parameters)
            if not source.peek(1):
                yield from pool.finish()
                return
    finally:
        pool.close()


class _Pool:
    """Threads that decompress whole frames; what they made comes in the order of the frames."""

    def __init__(self, threads: int) -> None:
        self._workers = [Worker("zstd") for _ in range(threads)]
        self._pending: deque[tuple[Worker, list[bytes]]] = deque()
        self._next = 0

    def add(self, frame: tuple[bytes, int], source: _Source) -> Iterator[bytes]:
        """Hand a frame over; gives what the oldest one made when every thread has one."""
        worker, made = self._workers[self._next], list[bytes]()
        if len(self._pending) == len(self._workers):
            yield self._take()
        self._next = (self._next + 1) % len(self._workers)
        worker.put(lambda: made.append(_decoded(source, *frame)))
        self._pending.append((worker, made))

    def finish(self) -> Iterator[bytes]:
        """What all the others made."""
        while self._pending:
            yield self._take()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _take(self) -> bytes:
        worker, made = self._pending.popleft()
        worker.drain()
        return made[0]


def _decoded(source: _Source, frame: bytes, size: int) -> bytes:
    context = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    try:
        return context.decompress(frame, max_output_size=size)
    except zstandard.ZstdError:
        raise source.error("is damaged") from None


def _whole(
    source: _Source, header: bytes, parameters: zstandard.FrameParameters
) -> tuple[bytes, int]:
    """A frame to its end, and how much it makes."""
    parts, size = [header], 0
    for block in _blocks(source):
        parts.append(block)
        size += len(block)
        if size > MAX_FRAME + MAX_FRAME // 8:
            raise source.error("is damaged")
    if parameters.has_checksum:
        parts.append(source.take(4))
    return b"".join(parts), parameters.content_size


def _blocks(source: _Source) -> Iterator[bytes]:
    """The blocks of a frame with their headers."""
    last = False
    while not last:
        block = source.take(3)
        bits = int.from_bytes(block, "little")
        last, kind, size = bool(bits & 1), bits >> 1 & 3, bits >> 3
        if kind == _RESERVED_BLOCK or size > _MAX_BLOCK:
            raise source.error("is damaged")
        yield block + source.take(1 if kind == _RLE_BLOCK else size)


def _header(source: _Source, start: bytes) -> tuple[bytes, zstandard.FrameParameters]:
    try:
        header = source.take(zstandard.frame_header_size(start))
        parameters = zstandard.get_frame_parameters(header)
    except zstandard.ZstdError:
        if start[:4] == _ZSTD_MAGIC[: len(start)]:
            raise source.error("is cut off") from None
        raise source.error("is not zstd") from None
    if parameters.window_size > MAX_WINDOW:
        raise source.error(f"needs a window of more than {MAX_WINDOW} bytes")
    return header, parameters


def _frame(
    source: _Source,
    context: zstandard.ZstdDecompressor,
    header: bytes,
    parameters: zstandard.FrameParameters,
) -> Iterator[bytes]:
    frame = context.decompressobj(write_size=MAX_OUTPUT)
    blocks = _blocks(source)
    parts = [header]
    last = False
    while not last:
        some = list(itertools.islice(blocks, MAX_OUTPUT // _MAX_BLOCK))
        parts += some
        last = not some or bool(some[-1][0] & 1)
        if last and parameters.has_checksum:
            parts.append(source.take(4))
        try:
            yield frame.decompress(b"".join(parts))
        except zstandard.ZstdError:
            raise source.error("is damaged") from None
        parts.clear()


def _skip(source: _Source, size: int) -> None:
    while size:
        data = source.some(min(size, MAX_OUTPUT))
        if not data:
            raise source.error("is cut off")
        size -= len(data)


def _lzip(source: _Source) -> Iterator[bytes]:
    """Decode members of the lzip format: a header, raw LZMA with an end marker, a trailer."""
    import lzma  # noqa: PLC0415 -- takes as long to load as a small item, and hardly any is lzip

    while True:
        header = source.peek(6)
        if header[:4] != b"LZIP"[: len(header)] or header[4:5] not in {b"", b"\1"}:
            raise source.error("is not lzip")
        coded = source.take(6)[5]
        dictionary = (1 << (coded & 31)) - (1 << (coded & 31)) // 16 * (coded >> 5)
        if not 1 << 12 <= dictionary <= MAX_WINDOW:
            raise source.error(f"needs a dictionary of {dictionary} bytes")
        filters = [{"id": lzma.FILTER_LZMA1, "dict_size": dictionary, "lc": 3, "lp": 0, "pb": 2}]
        member = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        checksum = size = 0
        length = 6 + 20
        while not member.eof:
            data = b""
            if member.needs_input:
                data = source.some(_MAX_INPUT)
                if not data:
                    raise source.error("is cut off")
            length += len(data)
            try:
                piece = member.decompress(data, MAX_OUTPUT)
            except lzma.LZMAError:
                raise source.error("is damaged") from None
            checksum = zlib.crc32(piece, checksum)
            size += len(piece)
            yield piece
        length -= len(member.unused_data)
        source.back(member.unused_data)
        trailer = b"".join(
            number.to_bytes(bytes_, "little")
            for number, bytes_ in ((checksum, 4), (size, 8), (length, 8))
        )
        if source.take(20) != trailer:
            raise source.error("is damaged")
        if not source.peek(1):
            return


_DECODERS: Final = {"none": _none, "gzip": _gzip, "lzip": _lzip}
