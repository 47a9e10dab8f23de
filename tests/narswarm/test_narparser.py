# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.narparser`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import base32
from narswarm.nar import MAX_DEPTH, NarError
from narswarm.narparser import NarDigest, Sink, parse

FIXTURES = Path(__file__).parents[1] / "fixtures/guix"
NARS = sorted((FIXTURES / "nar").iterdir())


class Recorder(Sink):
    """Writes down what it is given."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def directory(self, name: bytes) -> None:
        """Record a directory."""
        self.events.append(("directory", name))

    def leave(self) -> None:
        """Record a directory's end."""
        self.events.append("leave")

    def symlink(self, name: bytes, target: bytes) -> None:
        """Record a link."""
        self.events.append(("symlink", name, target))

    def regular(self, name: bytes, size: int, *, executable: bool) -> None:
        """Record a file."""
        self.events.append(("regular", name, size, executable))

    def write(self, data: memoryview) -> None:
        """Record contents, those of one file together."""
        last = self.events[-1]
        if isinstance(last, bytes):
            self.events[-1] = last + data
        else:
            self.events.append(bytes(data))

    def close(self) -> None:
        """Record a file's end."""
        self.events.append("close")


def strings(*values: bytes) -> bytes:
    """Write strings of the format."""
    return b"".join(
        len(value).to_bytes(8, "little") + value + b"\0" * (-len(value) % 8) for value in values
    )


MAGIC = strings(b"nix-archive-1")
FILE = strings(b"(", b"type", b"regular", b"contents", b"abc", b")")
LINK = strings(b"(", b"type", b"symlink", b"target", b"to", b")")


def entry(name: bytes, node: bytes = FILE) -> bytes:
    """Write an entry of a directory."""
    return strings(b"entry", b"(", b"name", name, b"node") + node + strings(b")")


def directory(*entries: bytes) -> bytes:
    """Write the node of a directory."""
    return strings(b"(", b"type", b"directory") + b"".join(entries) + strings(b")")


def scan(data: bytes, size: int = 1 << 20, limit: int | None = None) -> NarDigest:
    """Parse `data` in chunks of `size`."""
    return parse(pieces(data, size), Sink(), limit=limit)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Cut `data` into pieces."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


SAMPLE = MAGIC + directory(
    entry(
        b"a", strings(b"(", b"type", b"regular", b"executable", b"", b"contents", b"12345", b")")
    ),
    entry(b"b", directory(entry(b"inner"))),
    entry(b"c", LINK),
    entry(b"d", strings(b"(", b"type", b"regular", b"contents", b"", b")")),
)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 64, 1 << 20])
def test_events(size: int) -> None:
    """The sink is given everything in the order of the archive, however it is cut."""
    recorder = Recorder()
    digest = parse(pieces(SAMPLE, size), recorder)
    assert digest == NarDigest(hashlib.sha256(SAMPLE).digest(), len(SAMPLE))
    assert recorder.events == [
        ("directory", b""),
        ("regular", b"a", 5, True),
        b"12345",
        "close",
        ("directory", b"b"),
        ("regular", b"inner", 3, False),
        b"abc",
        "close",
        "leave",
        ("symlink", b"c", b"to"),
        ("regular", b"d", 0, False),
        "close",
        "leave",
    ]


@pytest.mark.parametrize("nar", NARS, ids=lambda nar: nar.name)
def test_guix(nar: Path) -> None:
    """Archives that Guix wrote have the hash and size that its narinfos say."""
    digest = scan(nar.read_bytes(), 1000)
    narinfo = (FIXTURES / "narinfo-none" / f"{nar.name[:32]}.narinfo").read_text()
    assert f"\nNarHash: {base32.format_hash(digest.sha256)}\n" in narinfo
    assert f"\nNarSize: {digest.size}\n" in narinfo


def test_progress_and_empty_chunks() -> None:
    """Progress is told after each chunk that isn't empty; empty ones end nothing."""
    told: list[int] = []
    parse([b"", SAMPLE[:100], b"", SAMPLE[100:], b""], Sink(), progress=told.append)
    assert told == [100, len(SAMPLE)]


def test_chunks_are_drained() -> None:
    """The source is read to its end, so that what checks itself at its end gets to do it."""
    ended = []

    def source() -> Iterator[bytes]:
        yield SAMPLE
        ended.append(True)

    parse(source(), Sink())
    assert ended == [True]


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_truncated(size: int) -> None:
    """An archive that is cut off anywhere is refused."""
    for end in range(len(SAMPLE)):
        with pytest.raises(NarError) as error:
            scan(SAMPLE[:end], size)
        assert str(error.value) == f"NAR: is cut off after {end} bytes"


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_trailing_data(size: int) -> None:
    """Bytes after the end are refused, even zeros."""
    with pytest.raises(NarError) as error:
        scan(SAMPLE + b"\0", size)
    assert str(error.value) == "NAR: has data after its end"


def padding(node: bytes, text: bytes) -> bytes:
    """Change the first byte of padding after `text`."""
    end = node.index(text) + len(text)
    return node[:end] + b"\1" + node[end + 1 :]


huge = (1 << 63).to_bytes(8, "little")
REFUSED = [
    (b"something else, 24 bytes", "does not have the magic of a NAR at byte 0"),
    (strings(b"nix-archive-2"), "does not have the magic of a NAR at byte 0"),
    (padding(MAGIC, b"nix-archive-1"), "does not have the magic of a NAR at byte 0"),
    (
        MAGIC + strings(b"(", b"type", b"fifo", b")") * 2,
        "does not have a regular file, symbolic link or directory at byte 24",
    ),
    (MAGIC + directory(entry(b"")), "has an impossible name b''"),
    (MAGIC + directory(entry(b".")), "has an impossible name b'.'"),
    (MAGIC + directory(entry(b"..")), "has an impossible name b'..'"),
    (MAGIC + directory(entry(b"a/b")), "has an impossible name b'a/b'"),
    (MAGIC + directory(entry(b"/etc")), "has an impossible name b'/etc'"),
    (MAGIC + directory(entry(b"../x")), "has an impossible name b'../x'"),
    (MAGIC + directory(entry(b"a\0")), r"has an impossible name b'a\x00'"),
    (MAGIC + directory(entry(b"b"), entry(b"a")), "has the name b'a' after b'b'"),
    (MAGIC + directory(entry(b"a", LINK), entry(b"a")), "has the name b'a' after b'a'"),
    (MAGIC + directory(entry(b"\x80"), entry(b"\x7f")), r"has the name b'\x7f' after b'\x80'"),
    (MAGIC + directory(entry(b"n" * 256)), "has a name of 256 bytes, more than 255"),
    (
        MAGIC + strings(b"(", b"type", b"symlink", b"target", b"t" * 4096, b")"),
        "has a target of 4096 bytes, more than 4095",
    ),
    (
        MAGIC + strings(b"(", b"type", b"symlink", b"target", b"", b")"),
        "has an impossible target b''",
    ),
    (
        MAGIC + strings(b"(", b"type", b"symlink", b"target", b"a\0b", b")"),
        r"has an impossible target b'a\x00b'",
    ),
    (padding(MAGIC + LINK, b"to"), "has padding that isn't zero"),
    (padding(MAGIC + directory(entry(b"name1")), b"name1"), "has padding that isn't zero"),
    (
        padding(MAGIC + FILE, b"abc"),
        "does not have zero padding and the end of the file at byte 99",
    ),
    (
        MAGIC + strings(b"(", b"type", b"regular", b"contents") + huge,
        "has a file of 9223372036854775808 bytes, more than it may have",
    ),
    (
        MAGIC + strings(b"(", b"type", b"regular", b"executable", b"x", b"contents", b"", b")"),
        "does not have the contents of the file at byte 72",
    ),
    (
        MAGIC + directory(strings(b"entry", b"(", b"node")),
        "does not have an entry or the end of the directory at byte 80",
    ),
    (
        MAGIC + directory(strings(b"entry", b"(", b"name", b"a", b"nodes")),
        "does not have a node at byte 144",
    ),
    (
        MAGIC + directory(entry(b"a").removesuffix(strings(b")")) + strings(b"x")),
        "does not have the end of the entry at byte 256",
    ),
    (
        MAGIC + directory(entry(b"a", directory()).removesuffix(strings(b")")) + strings(b"x")),
        "does not have the end of the entry at byte 232",
    ),
    (
        MAGIC + strings(b"(", b"type", b"symlink", b"target", b"to", b"x"),
        "does not have the end of the symbolic link at byte 104",
    ),
]


@pytest.mark.parametrize(("archive", "reason"), REFUSED, ids=range(len(REFUSED)))
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_refused(archive: bytes, reason: str, size: int) -> None:
    """Whatever isn't the one encoding of a tree is refused with its reason."""
    with pytest.raises(NarError) as error:
        scan(archive, size)
    assert str(error.value) == f"NAR: {reason}"


def test_longest_strings() -> None:
    """Names of 255 and targets of 4095 bytes are those of Linux, and are taken."""
    target = strings(b"(", b"type", b"symlink", b"target", b"t" * 4095, b")")
    archive = MAGIC + directory(entry(b"n" * 255, target))
    assert scan(archive).size == len(archive)


def nested(levels: int) -> bytes:
    """Write directories inside each other."""
    start = strings(b"(", b"type", b"directory")
    between = strings(b"entry", b"(", b"name", b"d", b"node")
    end = strings(b")")
    return MAGIC + (start + between) * (levels - 1) + start + end + (end + end) * (levels - 1)


def test_depth() -> None:
    """Depth is bounded, and below the bound isn't limited by the interpreter."""
    archive = nested(MAX_DEPTH)
    assert scan(archive).size == len(archive)
    with pytest.raises(NarError) as error:
        scan(nested(MAX_DEPTH + 1))
    assert str(error.value) == "NAR: is deeper than 4096 levels"


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_limit(size: int) -> None:
    """An archive may be as long as the limit, and no longer."""
    assert scan(SAMPLE, size, limit=len(SAMPLE)).size == len(SAMPLE)
    for limit in (0, 50, len(SAMPLE) - 1):
        with pytest.raises(NarError) as error:
            scan(SAMPLE, size, limit=limit)
        assert str(error.value) == f"NAR: is longer than {limit} bytes"


def test_limit_of_a_file() -> None:
    """A file that can't fit is refused when its length is read, before it is begun."""
    header = MAGIC + strings(b"(", b"type", b"regular", b"contents")
    recorder = Recorder()
    for length, limit in ((1 << 40, 1 << 30), (10, len(header) + 8 + 9)):
        with pytest.raises(NarError) as error:
            parse([header + length.to_bytes(8, "little")], recorder, limit=limit)
        expected = f"NAR: has a file of {length} bytes, more than it may have"
        assert str(error.value) == expected
    assert recorder.events == []


def test_subject() -> None:
    """Errors are about what the caller says."""
    with pytest.raises(NarError) as error:
        parse([], Sink(), subject="/gnu/store/x")
    assert str(error.value) == "/gnu/store/x: is cut off after 0 bytes"


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    """Arbitrary bytes are refused as such, before and after a good beginning."""
    for archive in (data, MAGIC + data, SAMPLE[:136] + data):
        with pytest.raises(NarError):
            scan(archive)


@given(
    position=st.integers(0, len(SAMPLE) - 1),
    data=st.binary(min_size=1, max_size=16),
    removed=st.integers(0, 16),
    size=st.integers(1, 100),
)
def test_damaged(position: int, data: bytes, removed: int, size: int) -> None:
    """Damage is refused, or gives another archive with another hash."""
    archive = SAMPLE[:position] + data + SAMPLE[position + removed :]
    try:
        digest = scan(archive, size)
    except NarError:
        return
    assert digest == NarDigest(hashlib.sha256(archive).digest(), len(archive))
