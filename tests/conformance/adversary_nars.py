# SPDX-License-Identifier: GPL-3.0-or-later
"""NARs and compressed streams that nobody honest would make."""

from __future__ import annotations

import lzma
import zlib
from typing import Final, NamedTuple

from narswarm.nar import (
    CLOSE,
    CONTENTS,
    DIRECTORY,
    ENTRY,
    FILE_END,
    MAGIC,
    MAX_DEPTH,
    NODE,
    REGULAR,
    SYMLINK,
    file_start,
    text,
)

GIB: Final = 1 << 30
_MIB: Final = 1 << 20


class Hostile(NamedTuple):
    """An archive, and what is said of it.

    Attributes:
        name: of the case.
        nar: the archive.
        reason: what the user reads, a regular expression.
    """

    name: str
    nar: bytes
    reason: str


def regular(data: bytes) -> bytes:
    """A node with these contents."""
    return file_start(len(data), executable=False) + data + FILE_END[len(data) % 8]


def symlink(target: bytes) -> bytes:
    """A node that leads elsewhere."""
    return SYMLINK + text(target) + CLOSE


def directory(*entries: tuple[bytes, bytes]) -> bytes:
    """A node with entries in the order given, whatever their names."""
    inner = b"".join(ENTRY + text(name) + NODE + node + CLOSE for name, node in entries)
    return DIRECTORY + inner + CLOSE


def archive(node: bytes) -> bytes:
    """A whole NAR."""
    return MAGIC + node


def deep(levels: int) -> bytes:
    """Directories inside each other."""
    start = ENTRY + text(b"d") + NODE
    inner = (DIRECTORY + start) * (levels - 1) + DIRECTORY + CLOSE
    return archive(inner + (CLOSE + CLOSE) * (levels - 1))


_EVIL = regular(b"evil\n")
_PLAIN = archive(directory((b"file", regular(b"plain\n" * 9))))
_NON_ZERO = file_start(1, executable=False) + b"x" + b"\1" * 7 + CLOSE
ENDLESS: Final = archive(REGULAR + CONTENTS + (2**62).to_bytes(8, "little"))

HOSTILE: Final = (
    Hostile(
        "an entry ..",
        archive(directory((b"..", directory((b"beside", _EVIL))))),
        r"has an impossible name b'\.\.'",
    ),
    Hostile(
        "an entry with a slash",
        archive(directory((b"../beside/file", _EVIL))),
        r"has an impossible name b'\.\./beside/file'",
    ),
    Hostile(
        "an entry with an absolute name",
        archive(directory((b"/etc/passwd", _EVIL))),
        r"has an impossible name b'/etc/passwd'",
    ),
    Hostile(
        "an entry with a NUL", archive(directory((b"a\0b", _EVIL))), r"impossible name b'a\\x00b'"
    ),
    Hostile("an entry without a name", archive(directory((b"", _EVIL))), "impossible name b''"),
    Hostile(
        "an entry with a name of 300 bytes",
        archive(directory((b"n" * 300, _EVIL))),
        "has a name of 300 bytes, more than 255",
    ),
    Hostile(
        "the same entry twice",
        archive(directory((b"a", _EVIL), (b"a", _EVIL))),
        "has the name b'a' after b'a'",
    ),
    Hostile(
        "entries out of order",
        archive(directory((b"b", _EVIL), (b"a", _EVIL))),
        "has the name b'a' after b'b'",
    ),
    Hostile(
        "a file below a symbolic link",
        archive(directory((b"a", symlink(b"../beside")), (b"a", directory((b"file", _EVIL))))),
        "has the name b'a' after b'a'",
    ),
    Hostile("a link without a target", archive(symlink(b"")), "has an impossible target b''"),
    Hostile("directories too deep", deep(MAX_DEPTH + 1), f"is deeper than {MAX_DEPTH} levels"),
    Hostile("a file that says it has 4 EiB", ENDLESS, f"has a file of {2**62} bytes, more"),
    Hostile("padding that isn't zero", archive(_NON_ZERO), "does not have zero padding"),
    Hostile("an end before the end", _PLAIN[:-24], "is cut off after [0-9]+ bytes"),
    Hostile("something behind the end", _PLAIN + bytes(8), "has data after its end"),
    Hostile("no NAR at all", b"\x7fELF" + bytes(200), "does not have the magic of a NAR"),
)


def zstd_bomb(window_log: int = 20, *, content_size: int | None = None) -> bytes:
    """A frame (RFC 8878) of blocks that say "128 KiB of this byte", 1 GiB in all."""
    # Frame_Header_Descriptor: 8 bytes of content size where it is given; then the window.
    head = bytes([0xC0 if content_size is not None else 0, (window_log - 10) << 3])
    if content_size is not None:
        head += content_size.to_bytes(8, "little")
    blocks = GIB // (128 << 10)
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = ((128 << 10) << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return bytes.fromhex("28b52ffd") + head + block * (blocks - 1) + last


def gzip_bomb() -> bytes:
    """A member of 1 GiB of zeros: the same flushed piece again and again."""
    packer = zlib.compressobj(9, wbits=-15)
    piece = packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + piece * 1024 + packer.flush()


def lzip(data: bytes, exponent: int = 20) -> bytes:
    """A member of the lzip format."""
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20, "lc": 3, "lp": 0, "pb": 2}]
    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
    coded = packer.compress(data) + packer.flush()
    trailer = zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(8, "little")
    size = 6 + len(coded) + 20
    return b"LZIP\1" + bytes([exponent]) + coded + trailer + size.to_bytes(8, "little")


def lzip_bomb() -> bytes:
    """Members of 8 MiB of zeros each, 1 GiB in all."""
    return lzip(bytes(8 * _MIB)) * 128
