# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.nar`."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narswarm import nar
from narswarm.errors import ExitCode, NotFoundError
from narswarm.nar import NarError, dump, dump_size
from narswarm.restore import delete

Tree = tuple[bytes, bool] | bytes | dict[bytes, "Tree"]
"""A file with its contents and whether it's executable, a link's target, or a directory."""

EMPTY_DIRECTORY = (
    b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0"
    b"\x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0"
    b"\x04\0\0\0\0\0\0\0type\0\0\0\0"
    b"\x09\0\0\0\0\0\0\0directory\0\0\0\0\0\0\0"
    b"\x01\0\0\0\0\0\0\0)\0\0\0\0\0\0\0"
)


def strings(*values: bytes) -> bytes:
    """Write strings of the format, as its description says."""
    return b"".join(
        len(value).to_bytes(8, "little") + value + b"\0" * (-len(value) % 8) for value in values
    )


def encode(tree: Tree) -> bytes:
    """Write the node of a tree; the plainest way, to compare with."""
    if isinstance(tree, tuple):
        contents, executable = tree
        flag = (b"executable", b"") if executable else ()
        return strings(b"(", b"type", b"regular", *flag, b"contents", contents, b")")
    if isinstance(tree, bytes):
        return strings(b"(", b"type", b"symlink", b"target", tree, b")")
    entries = (
        strings(b"entry", b"(", b"name", name, b"node") + encode(tree[name]) + strings(b")")
        for name in sorted(tree)
    )
    return strings(b"(", b"type", b"directory") + b"".join(entries) + strings(b")")


def build(tree: Tree, path: bytes) -> None:
    """Make a tree on disk."""
    if isinstance(tree, tuple):
        with open(path, "wb") as file:
            file.write(tree[0])
            os.fchmod(file.fileno(), 0o744 if tree[1] else 0o655)
    elif isinstance(tree, bytes):
        Path(os.fsdecode(path)).symlink_to(os.fsdecode(tree))
    else:
        Path(os.fsdecode(path)).mkdir()
        for name in tree:
            build(tree[name], path + b"/" + name)


names = st.binary(min_size=1, max_size=6).filter(
    lambda name: name not in {b".", b".."} and not set(name) & {0, 0x2F}
)
targets = st.binary(min_size=1, max_size=20).filter(lambda target: 0 not in target)
leaves = st.tuples(st.binary(max_size=40), st.booleans()) | targets
trees = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=12)


@pytest.mark.parametrize(
    ("tree", "size"),
    [({}, 96), ((b"Hello, BitTorrent!\n", False), 136), ((b"", True), 144), (b"target", 120)],
)
def test_small_archives(tmp_path: Path, tree: Tree, size: int) -> None:
    """Each kind of item has the bytes that the format's description gives it."""
    path = tmp_path / "item"
    build(tree, os.fsencode(path))
    archive = b"".join(dump(path))
    assert archive == strings(b"nix-archive-1") + encode(tree)
    assert dump_size(path) == len(archive) == size


def test_empty_directory_bytes(tmp_path: Path) -> None:
    """The archive of an empty directory is these 96 bytes, written out."""
    assert b"".join(dump(tmp_path)) == EMPTY_DIRECTORY


@settings(max_examples=60, deadline=None)
@given(tree=trees, chunk_size=st.sampled_from([1, 7, 64, nar.CHUNK]))
def test_any_tree(tree: Tree, chunk_size: int) -> None:
    """Any tree, names of any bytes, gives the same archive whatever the chunk size."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.fsencode(directory) + b"/item"
        build(tree, path)
        expected = strings(b"nix-archive-1") + encode(tree)
        assert b"".join(dump(path, chunk_size)) == expected
        assert dump_size(path) == len(expected)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 129])
def test_sizes_around_chunks(tmp_path: Path, size: int) -> None:
    """Files around multiples of the padding and of the chunk size are whole."""
    contents = bytes(range(1, size + 1))
    build({b"a": (contents, False), b"b": (b"after", True)}, os.fsencode(tmp_path / "item"))
    expected = strings(b"nix-archive-1") + encode({b"a": (contents, False), b"b": (b"after", True)})
    assert b"".join(dump(tmp_path / "item", 64)) == expected
    assert dump_size(tmp_path / "item") == len(expected)


def test_many_small_files_share_chunks(tmp_path: Path) -> None:
    """Small files are gathered: chunks are at least as large as was asked for, but the last."""
    for number in range(300):
        (tmp_path / f"{number}").write_bytes(b"x" * 100)
    chunks = list(dump(tmp_path, 4096))
    assert all(4096 <= len(chunk) < 4096 + 512 for chunk in chunks[:-1])
    assert len(chunks) > 10


def test_large_files_are_read_in_pieces(tmp_path: Path) -> None:
    """No chunk is much larger than was asked for, however large the file."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10 * nar.CHUNK + 5)
    assert max(map(len, dump(tmp_path))) < nar.CHUNK + 512


def test_owner_execute_bit_counts(tmp_path: Path) -> None:
    """A file is executable if its owner may execute it; group and others don't matter."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    for mode, executable in ((0o611, False), (0o700, True), (0o555, True), (0o444, False)):
        path.chmod(mode)
        assert b"".join(dump(path)) == strings(b"nix-archive-1") + encode((b"", executable))


def test_path_types(tmp_path: Path) -> None:
    """A path may be text, bytes or a Path, and may be relative."""
    expected = b"".join(dump(tmp_path))
    assert b"".join(dump(str(tmp_path))) == expected
    assert b"".join(dump(os.fsencode(tmp_path))) == expected
    assert b"".join(dump(os.path.relpath(tmp_path))) == expected


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A symbolic link to a directory or to nowhere is archived as a link, also as the item."""
    (tmp_path / "link").symlink_to("/")
    assert b"".join(dump(tmp_path / "link")) == strings(b"nix-archive-1") + encode(b"/")
    assert b"".join(dump(tmp_path)) == strings(b"nix-archive-1") + encode({b"link": b"/"})


@pytest.mark.parametrize("inside", [False, True])
def test_special_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, inside: bool) -> None:
    """FIFOs, sockets and devices are refused by name without being opened."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    for made, kind in (("fifo", "FIFO"), ("socket", "socket")):
        if kind == "socket":
            Path("fifo").unlink()
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind("socket")
        for function in (lambda path: list(dump(path)), dump_size):
            with pytest.raises(NarError) as error:
                function("." if inside else made)
            shown = f"./{made}" if inside else made
            assert str(error.value) == f"{shown}: is a {kind}, which no NAR can hold"
            assert error.value.exit_code is ExitCode.INVALID
    with pytest.raises(
        NarError, match=r"^/dev/null: is a character device, which no NAR can hold$"
    ):
        list(dump("/dev/null"))


def test_missing(tmp_path: Path) -> None:
    """What doesn't exist is said by its path."""
    path = tmp_path / "absent"
    for function in (lambda path: list(dump(path)), dump_size):
        with pytest.raises(NotFoundError) as error:
            function(path)
        assert str(error.value) == f"{path}: No such file or directory"


def begun(path: Path, size: int) -> Iterator[bytes]:
    """Return the dump of a directory with the file `big`, which it has begun to read."""
    path.joinpath("big").write_bytes(bytes(size))
    path.joinpath("later").write_bytes(b"")
    chunks = dump(path, 64)
    for chunk in chunks:
        if chunk == bytes(64):
            break
    return chunks


@pytest.mark.parametrize("size", [1000, 1024])
@pytest.mark.parametrize(("change", "word"), [(-1, "shorter"), (1, "longer")])
def test_size_changes(tmp_path: Path, size: int, change: int, word: str) -> None:
    """A file that grows or shrinks while it is read gives an error, not a wrong archive."""
    chunks = begun(tmp_path, size)
    os.truncate(tmp_path / "big", size + change)
    with pytest.raises(NarError) as error:
        list(chunks)
    assert str(error.value) == f"{tmp_path}/big: became {word} while it was read"


def test_size_unknown() -> None:
    """A file of a pseudo file system, which says it is empty and isn't, gives an error."""
    with pytest.raises(NarError) as error:
        list(dump("/proc/self/status"))
    assert str(error.value) == "/proc/self/status: became longer while it was read"


def test_file_replaced_by_fifo(tmp_path: Path) -> None:
    """A file that is replaced by a FIFO after it was listed doesn't block the reader."""
    chunks = begun(tmp_path, 1000)
    tmp_path.joinpath("later").unlink()
    os.mkfifo(tmp_path / "later")
    with pytest.raises(NarError) as error:
        list(chunks)
    assert str(error.value) == f"{tmp_path}/later: became another kind of file while it was read"


def test_file_replaced_by_link(tmp_path: Path) -> None:
    """A file that is replaced by a link after it was listed isn't followed."""
    chunks = begun(tmp_path, 1000)
    tmp_path.joinpath("later").unlink()
    tmp_path.joinpath("later").symlink_to("big")
    with pytest.raises(NotFoundError) as error:
        list(chunks)
    assert str(error.value) == f"{tmp_path}/later: Too many levels of symbolic links"


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_removed(tmp_path: Path, kind: str) -> None:
    """A file, link or directory that disappears after it was listed gives an error."""
    item = tmp_path / "item"
    if kind == "file":
        item.write_bytes(b"")
    elif kind == "link":
        item.symlink_to("x")
    else:
        item.mkdir()
    chunks = dump(tmp_path, 1)
    while next(chunks) != nar.DIRECTORY:
        pass
    item.rename(tmp_path / "elsewhere")
    with pytest.raises(NotFoundError) as error:
        list(chunks)
    assert str(error.value) == f"{item}: No such file or directory"


def failing(*_arguments: object, **_keywords: object) -> None:
    """Fail as a bad disk does."""
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("function", ["stat", "scandir"])
def test_bad_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """What the system can't read is said by its path, and no descriptor is left open."""
    (tmp_path / "file").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, function, failing)
        with pytest.raises(NotFoundError) as error:
            dump_size(tmp_path)
    path = tmp_path / "file" if function == "stat" else tmp_path
    assert str(error.value) == f"{path}: Input/output error"
    assert len(os.listdir("/proc/self/fd")) == before


def test_file_that_cannot_be_read() -> None:
    """A file that opens and can't be read is said by its path."""
    with pytest.raises(NotFoundError) as error:
        list(dump("/proc/self/mem"))
    assert str(error.value) == "/proc/self/mem: Input/output error"


def deep(path: Path, levels: int, name: bytes) -> None:
    """Make `levels` directories inside `path`, without long paths."""
    descriptor = os.open(path, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=descriptor)
        inner = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=descriptor))
    os.symlink("target", "link", dir_fd=descriptor)
    os.close(descriptor)


@pytest.mark.parametrize(("levels", "name"), [(1100, b"d"), (100, b"n" * 255)])
def test_deep_directories(tmp_path: Path, levels: int, name: bytes) -> None:
    """Depth meets neither the recursion limit nor PATH_MAX, and no descriptor is left open."""
    root = tmp_path / "deep"
    root.mkdir()
    try:
        deep(root, levels, name)
        before = len(os.listdir("/proc/self/fd"))
        archive = b"".join(dump(root))
        assert dump_size(root) == len(archive)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        delete(root)
    outer = strings(b"(", b"type", b"directory")
    entry = strings(b"entry", b"(", b"name", name, b"node")
    assert archive == (
        strings(b"nix-archive-1")
        + (outer + entry) * levels
        + encode({b"file": (b"", False), b"link": b"target"})
        + strings(b")", b")") * levels
    )


def test_too_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories beyond the bound are refused, and no descriptor is left open."""
    monkeypatch.setattr(nar, "MAX_DEPTH", 40)
    monkeypatch.setattr(nar, "MAX_PATH", 20)
    deep(tmp_path, 39, b"d")
    assert b"".join(dump(tmp_path))
    deep(tmp_path, 40, b"e")
    before = len(os.listdir("/proc/self/fd"))
    for function in (lambda path: list(dump(path)), dump_size):
        with pytest.raises(NarError) as error:
            function(tmp_path)
        assert str(error.value) == f"{tmp_path}{'/e' * 40}: is deeper than 40 levels"
        assert len(os.listdir("/proc/self/fd")) == before


def test_left_early(tmp_path: Path) -> None:
    """A reader that stops in the middle leaves no descriptor open."""
    before = len(os.listdir("/proc/self/fd"))
    chunks = begun(tmp_path, 1000)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del chunks
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("prefix", "path", "shown"),
    [
        (b"", b"/gnu/store/x", "/gnu/store/x"),
        (b"/gnu/store/x/", b"./y/z", "/gnu/store/x/y/z"),
        (b"/gnu/store/x/", b".", "/gnu/store/x/"),
        (b"", b"./y", "./y"),
        (b"", b".", "."),
        (b"", b"y" * 1000, "y" * 1000),
        (b"", b"y" * 1001, "y" * 500 + "[...]" + "y" * 500),
        (b"", b"\xff", "\udcff"),
    ],
)
def test_shown_path(prefix: bytes, path: bytes, shown: str) -> None:
    """Paths below descriptors are shown as one path; very long ones lose their middle."""
    assert nar.shown_path(prefix, path) == shown
