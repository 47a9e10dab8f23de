# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.restore`."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narswarm import base32
from narswarm.errors import AlreadyExistsError, ExitCode
from narswarm.nar import NarError, dump
from narswarm.restore import Deduplicator, NarDigest, RestoreError, delete, restore, scan

FIXTURES = Path(__file__).parents[1] / "fixtures/guix"
NARS = sorted((FIXTURES / "nar").iterdir())
TREE_NAR = FIXTURES / "nar/6jixpj97c11mfslm2yxaif71z2mxnipg-lab-tree.nar"

Tree = tuple[bytes, bool] | bytes | dict[bytes, "Tree"]


def strings(*values: bytes) -> bytes:
    """Write strings of the format."""
    return b"".join(
        len(value).to_bytes(8, "little") + value + b"\0" * (-len(value) % 8) for value in values
    )


def encode(tree: Tree) -> bytes:
    """Write the node of a tree."""
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


def nar(tree: Tree) -> bytes:
    """Write the archive of a tree."""
    return strings(b"nix-archive-1") + encode(tree)


def everything(path: Path) -> Iterator[Path]:
    """Give an item and all that is in it."""
    yield path
    if not path.is_symlink() and path.is_dir():
        for inner in path.iterdir():
            yield from everything(inner)


@contextmanager
def descriptors_kept() -> Iterator[None]:
    """Check that no descriptor is left open."""
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


@contextmanager
def unprivileged(directory: Path) -> Iterator[None]:
    """Be nobody, who owns `directory` and is in it, if we are root."""
    before = Path.cwd()
    os.chdir(directory)
    root = os.geteuid() == 0
    if root:
        os.chown(directory, 65534, 65534)
        os.setegid(65534)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
            os.setegid(0)
        os.chdir(before)


@pytest.fixture(autouse=True)
def removed(tmp_path: Path) -> Iterator[None]:
    """Remove what was restored, which pytest can't do without privileges."""
    yield
    for path in tmp_path.iterdir():
        delete(path)


names = st.binary(min_size=1, max_size=6).filter(
    lambda name: name not in {b".", b".."} and not set(name) & {0, 0x2F}
)
targets = st.binary(min_size=1, max_size=20).filter(lambda target: 0 not in target)
leaves = st.tuples(st.binary(max_size=40), st.booleans()) | targets
trees = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=12)


@pytest.mark.parametrize("archive", NARS, ids=lambda archive: archive.name)
def test_guix_archives(tmp_path: Path, archive: Path) -> None:
    """What Guix wrote is restored in canonical form, and dumps to the same bytes again."""
    item = tmp_path / "item"
    data = archive.read_bytes()
    digest = restore([data], item)
    narinfo = (FIXTURES / "narinfo-none" / f"{archive.name[:32]}.narinfo").read_text()
    assert f"\nNarHash: {base32.format_hash(digest.sha256)}\n" in narinfo
    assert f"\nNarSize: {digest.size}\n" in narinfo
    assert b"".join(dump(item)) == data
    for path in everything(item):
        found = path.lstat()
        assert found.st_mtime_ns == 10**9
        if not stat.S_ISLNK(found.st_mode):
            executable = stat.S_ISDIR(found.st_mode) or found.st_mode & 0o100
            assert stat.S_IMODE(found.st_mode) == (0o555 if executable else 0o444)


def test_flipped_archive(tmp_path: Path) -> None:
    """An archive with one bit flipped is restored, and has another hash than was promised."""
    flipped = FIXTURES / "bad/2g00k9rk4f49769ps7bblcbvy1byaz19-lab-text.flipped.nar"
    digest = restore([flipped.read_bytes()], tmp_path / "item")
    text = base32.format_hash(digest.sha256)
    assert text == "sha256:1z3d5kv99mx1nfsys9gdg6l989l4zgl32w6ri55baida02wl41c7"


@settings(max_examples=60, deadline=None)
@given(tree=trees, size=st.integers(1, 300))
def test_any_tree(tree: Tree, size: int) -> None:
    """Any tree, cut anywhere, is restored to what dumps to the same bytes."""
    data = nar(tree)
    with tempfile.TemporaryDirectory() as directory:
        item = Path(directory) / "item"
        digest = restore([data[i : i + size] for i in range(0, len(data), size)], item)
        assert digest == NarDigest(hashlib.sha256(data).digest(), len(data))
        assert b"".join(dump(item)) == data
        delete(item)
        assert not os.path.lexists(item)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), good=st.integers(0, 500))
def test_arbitrary_bytes(data: bytes, good: int) -> None:
    """Arbitrary bytes, also after a good beginning, are refused, and nothing is left of them."""
    with tempfile.TemporaryDirectory() as directory:
        item = Path(directory) / "item"
        try:
            restore([TREE_NAR.read_bytes()[:good] + data], item)
        except NarError:
            assert os.listdir(directory) == []
        else:
            delete(item)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_umask(tmp_path: Path, umask: int) -> None:
    """Modes are canonical whatever the umask of the process."""
    tree: Tree = {b"d": {b"x": (b"", True)}, b"f": (b"", False)}
    before = os.umask(umask)
    try:
        if umask != 0o777 or os.geteuid() == 0:
            restore([nar(tree)], tmp_path / "item")
        else:
            restore([nar((b"", True))], tmp_path / "item")
    finally:
        os.umask(before)
    for path in everything(tmp_path / "item"):
        assert stat.S_IMODE(path.lstat().st_mode) == (0o444 if path.name == "f" else 0o555)


def test_unprivileged(tmp_path: Path) -> None:
    """A user without privileges restores and deletes an item, and a part of one."""
    data = TREE_NAR.read_bytes()
    with unprivileged(tmp_path):
        restore([data], "item")
        assert b"".join(dump("item")) == data
        delete("item")
        for end in range(0, len(data), 97):
            with pytest.raises(NarError):
                restore([data[:end]], "item")
        assert os.listdir() == []


def test_large_file_in_many_chunks(tmp_path: Path) -> None:
    """A file larger than a chunk is whole, and progress is told on the way."""
    contents = bytes(range(256)) * 1000
    data = nar((contents, False))
    told: list[int] = []
    chunks = (data[i : i + 1000] for i in range(0, len(data), 1000))
    restore(chunks, tmp_path / "item", progress=told.append, limit=len(data))
    assert (tmp_path / "item").read_bytes() == contents
    assert told == [*range(1000, len(data), 1000), len(data)]


def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is whole if the system writes fewer bytes at a time than it was given."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:1000]))
    contents = os.urandom(5500)
    restore([nar((contents, False))], tmp_path / "item")
    assert (tmp_path / "item").read_bytes() == contents


@pytest.mark.parametrize("tree", [{}, (b"new", False), b"new"], ids=["directory", "file", "link"])
@pytest.mark.parametrize("existing", ["directory", "file", "link"])
def test_destination_exists(tmp_path: Path, tree: Tree, existing: str) -> None:
    """A destination that exists is left alone, even a link to nowhere."""
    item = tmp_path / "item"
    if existing == "directory":
        item.mkdir()
        (item / "inner").touch()
    elif existing == "file":
        item.write_bytes(b"old")
    else:
        item.symlink_to(tmp_path / "nowhere")
    before = b"".join(dump(tmp_path))
    with pytest.raises(AlreadyExistsError) as error:
        restore([nar(tree)], item)
    assert str(error.value) == f"{item}: exists already"
    assert b"".join(dump(tmp_path)) == before


@pytest.mark.parametrize("tree", [{}, (b"", False), b"to"], ids=["directory", "file", "link"])
def test_no_parent(tmp_path: Path, tree: Tree) -> None:
    """A destination in a directory that doesn't exist is the system's error, said by path."""
    item = tmp_path / "absent/item"
    with pytest.raises(RestoreError) as error:
        restore([nar(tree)], item)
    assert str(error.value) == f"{item}: No such file or directory"
    assert error.value.exit_code is ExitCode.FAILED


def test_nothing_escapes(tmp_path: Path) -> None:
    """No archive writes through a link that it made, or above its destination."""
    outside = tmp_path / "outside"
    outside.mkdir()
    link = strings(b"(", b"type", b"symlink", b"target", os.fsencode(outside), b")")
    for first, second in ((b"a", b"a"), (b"a", b"a/x"), (b"a", b"../outside/x")):
        entries = b"".join(
            strings(b"entry", b"(", b"name", name, b"node") + node + strings(b")")
            for name, node in ((first, link), (second, encode({b"x": (b"evil", False)})))
        )
        data = strings(b"nix-archive-1", b"(", b"type", b"directory") + entries + strings(b")")
        with pytest.raises(NarError):
            restore([data], tmp_path / "item")
        assert os.listdir(tmp_path) == ["outside"]
        assert os.listdir(outside) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("gone"), GeneratorExit()])
def test_interrupted(tmp_path: Path, error: BaseException) -> None:
    """When the source fails, its error is passed on, and what was written is removed."""

    def source() -> Iterator[bytes]:
        data = TREE_NAR.read_bytes()
        yield data[:2000]
        assert os.listdir(tmp_path) == ["item"]
        raise error

    with descriptors_kept(), pytest.raises(type(error)) as caught:
        restore(source(), tmp_path / "item")
    assert caught.value is error
    assert os.listdir(tmp_path) == []


def test_interrupted_within_a_file(tmp_path: Path) -> None:
    """A file that is half written is removed, and its descriptor given back."""
    data = nar({b"file": (bytes(10000), False)})
    with descriptors_kept(), pytest.raises(NarError) as error:
        restore([data[:5000]], tmp_path / "item")
    assert str(error.value) == f"{tmp_path}/item: is cut off after 5000 bytes"
    assert os.listdir(tmp_path) == []


def test_limit(tmp_path: Path) -> None:
    """An archive longer than it may be is refused, and nothing is left of it."""
    data = TREE_NAR.read_bytes()
    with pytest.raises(NarError) as error:
        restore([data], tmp_path / "item", limit=len(data) - 1)
    assert str(error.value) == f"{tmp_path}/item: is longer than {len(data) - 1} bytes"
    assert os.listdir(tmp_path) == []


def test_file_too_large_for_the_system(tmp_path: Path) -> None:
    """A write that the system refuses gives the file's path and the reason."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with descriptors_kept(), pytest.raises(RestoreError) as error:
            restore([nar({b"d": {b"big": (bytes((1 << 20) + 1), False)}})], tmp_path / "item")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value) == f"{tmp_path}/item/d/big: File too large"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("function", "tree", "path"),
    [
        ("write", {b"f": (b"contents", False)}, "item/f"),
        ("write", (b"contents", False), "item"),
        ("fchmod", {b"f": (b"", False)}, "item/f"),
        ("utime", {b"f": (b"", False)}, "item/f"),
        ("utime", {b"l": b"to"}, "item/l"),
        ("symlink", {b"l": b"to"}, "item/l"),
        ("mkdir", {b"d": {}}, "item"),
        ("chmod", {b"d": {}}, "item/d"),
    ],
)
def test_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, tree: Tree, path: str
) -> None:
    """A full disk is said with the path at which it showed, whichever call meets it."""

    def full(*_arguments: object, **_keywords: object) -> None:
        monkeypatch.undo()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, full)
    with descriptors_kept(), pytest.raises(RestoreError) as error:
        restore([nar(tree)], tmp_path / "item")
    assert str(error.value) == f"{tmp_path / path}: No space left on device"
    assert not os.path.lexists(tmp_path / "item")


@pytest.mark.parametrize(("levels", "name"), [(1100, b"d"), (100, b"n" * 255)])
def test_deep(tmp_path: Path, levels: int, name: bytes) -> None:
    """Depth meets neither the recursion limit nor PATH_MAX, in restoring as in deleting."""
    start = strings(b"(", b"type", b"directory")
    entry = strings(b"entry", b"(", b"name", name, b"node")
    inner = encode({b"f": (b"deep", True), b"l": b"to"})
    end = strings(b")", b")") * levels
    data = strings(b"nix-archive-1") + (start + entry) * levels + inner + end
    item = tmp_path / "item"
    with descriptors_kept():
        restore([data], item)
        try:
            assert b"".join(dump(item)) == data
        finally:
            delete(item)
        assert os.listdir(tmp_path) == []
        with pytest.raises(NarError) as error:
            restore([data[:-1]], item)
        assert str(error.value) == f"{item}: is cut off after {len(data) - 1} bytes"
        assert os.listdir(tmp_path) == []


def test_error_in_the_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error below several descriptors is said with the whole path."""
    monkeypatch.setattr("narswarm.restore.MAX_PATH", 10)
    tree: Tree = (b"contents", False)
    for _ in range(30):
        tree = {b"d": tree}

    def full(*_arguments: object) -> None:
        monkeypatch.undo()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with descriptors_kept(), pytest.raises(RestoreError) as error:
        restore([nar(tree)], tmp_path / "item")
    assert str(error.value) == f"{tmp_path}/item{'/d' * 30}: No space left on device"


def test_scan() -> None:
    """A scan gives the same digest and the same refusals, and writes nothing."""
    data = TREE_NAR.read_bytes()
    assert scan([data], len(data)) == NarDigest(hashlib.sha256(data).digest(), len(data))
    with pytest.raises(NarError) as error:
        scan([data[:-1]])
    assert str(error.value) == f"NAR: is cut off after {len(data) - 1} bytes"
    with pytest.raises(NarError) as error:
        scan([data], 1000, subject="http://server/nar")
    assert str(error.value) == "http://server/nar: is longer than 1000 bytes"


def link_name(path: Path) -> str:
    """Return the name that a file has in `.links`."""
    return base32.encode(hashlib.sha256(b"".join(dump(path))).digest())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store with its `.links`."""
    (tmp_path / ".links").mkdir()
    return tmp_path


BIG = bytes(range(256)) * 32  # 8192 bytes


def test_deduplication(store: Path) -> None:
    """Equal files of 8192 bytes or more are one file, known in `.links` by their own NAR."""
    tree: Tree = {
        b"copy": (BIG, False),
        b"inner": {b"copy": (BIG, False)},
        b"program": (BIG, True),
        b"small": (BIG[:-1], False),
    }
    data = nar(tree)
    chunks = [data[i : i + 999] for i in range(0, len(data), 999)]
    for name in ("one", "two"):
        restore(chunks, store / name, dedup=Deduplicator(store))
        assert b"".join(dump(store / name)) == data
    for name in ("copy", "program"):
        link = store / ".links" / link_name(store / "one" / name)
        assert link.samefile(store / "one" / name)
        assert link.samefile(store / "two" / name)
    assert (store / "one/copy").samefile(store / "one/inner/copy")
    assert (store / "one/copy").stat().st_nlink == 5
    assert (store / "one/program").stat().st_nlink == 3
    assert (store / "one/small").stat().st_nlink == 1
    assert len(os.listdir(store / ".links")) == 2
    for path in everything(store / "two"):
        assert path.lstat().st_mtime_ns == 10**9
    delete(store / "two")
    assert b"".join(dump(store / "one")) == data


def test_deduplication_of_a_single_file(store: Path) -> None:
    """An item that is a file is shared under its own NAR hash."""
    digest = restore([nar((BIG, False))], store / "one", dedup=Deduplicator(store))
    assert os.listdir(store / ".links") == [base32.encode(digest.sha256)]
    restore([nar((BIG, False))], store / "two", dedup=Deduplicator(store))
    assert (store / "one").samefile(store / "two")


def test_links_directory_is_made(tmp_path: Path) -> None:
    """A store that has no `.links` yet gets it with the first file that is shared."""
    restore([nar((BIG, False))], tmp_path / "one", dedup=Deduplicator(os.fsencode(tmp_path)))
    assert os.listdir(tmp_path / ".links") == [link_name(tmp_path / "one")]


def cut(link: Path) -> None:
    """Cut a link short, as a crash does to what wasn't on disk yet."""
    link.chmod(0o644)
    os.truncate(link, 0)
    link.chmod(0o444)


def loosen(link: Path) -> None:
    """Give a link a mode that isn't canonical."""
    link.chmod(0o644)


@pytest.mark.parametrize("spoil", [cut, loosen])
def test_spoilt_link_is_not_used(store: Path, spoil: Callable[[Path], None]) -> None:
    """A file in `.links` that isn't what its name says doesn't replace a verified one."""
    restore([nar((BIG, False))], store / "one", dedup=Deduplicator(store))
    spoil(store / ".links" / link_name(store / "one"))
    restore([nar((BIG, False))], store / "two", dedup=Deduplicator(store))
    assert b"".join(dump(store / "two")) == nar((BIG, False))
    assert (store / "two").stat().st_nlink == 1


def test_left_over_temporary_link(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary link that a killed process left is removed, and the next file is shared."""
    monkeypatch.setattr("threading.get_ident", lambda: 7)
    left = store / f".links/.tmp-link-{os.getpid()}-7"
    left.touch()
    for name in ("one", "two", "three"):
        restore([nar((BIG, False))], store / name, dedup=Deduplicator(store))
    assert (store / "one").samefile(store / "three")
    assert not (store / "one").samefile(store / "two")
    assert os.listdir(store / ".links") == [link_name(store / "one")]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMLINK, errno.EPERM, errno.EXDEV])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_failed_sharing_is_no_error(
    store: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: int
) -> None:
    """What goes wrong with sharing leaves a file of its own, and no temporary link."""
    calls = 0
    link = os.link

    def failing(*arguments: str, **keywords: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(code, os.strerror(code))
        link(*arguments, **keywords)  # type: ignore[arg-type]  # whatever os.link takes

    monkeypatch.setattr(os, "link", failing)
    for name in ("one", "two"):
        restore([nar((BIG, False))], store / name, dedup=Deduplicator(store))
        assert (store / name).read_bytes() == BIG
    assert calls >= 2
    assert not [name for name in os.listdir(store / ".links") if name.startswith(".tmp")]


def test_sharing_without_permission(store: Path) -> None:
    """Files of a store whose `.links` can't be written stay alone."""
    (store / ".links").chmod(0o555)
    with unprivileged(store):
        restore([nar((BIG, False))], "one", dedup=Deduplicator("."))
        assert Path("one").stat().st_nlink == 1


def test_delete_nothing(tmp_path: Path) -> None:
    """An item that doesn't exist is no error."""
    delete(tmp_path / "absent")
    delete(os.fsencode(tmp_path) + b"/absent")


def test_delete_below_a_file(tmp_path: Path) -> None:
    """An item in what isn't a directory is an error that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(RestoreError) as error:
        delete(tmp_path / "file/item")
    assert str(error.value) == f"{tmp_path}/file/item: Not a directory"


@pytest.mark.parametrize(("function", "path"), [("open", "item"), ("rmdir", "item/inner")])
def test_delete_meets_a_bad_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, path: str
) -> None:
    """Whichever call fails, the error names the directory, and no descriptor is left open."""
    monkeypatch.setattr("narswarm.restore.MAX_PATH", 10)
    (tmp_path / "item/inner").mkdir(parents=True)
    with descriptors_kept(), monkeypatch.context() as patch:
        patch.setattr(os, function, failing)
        with pytest.raises(RestoreError) as error:
            delete(tmp_path / "item")
    assert str(error.value) == f"{tmp_path}/{path}: Input/output error"


def failing(*_arguments: object, **_keywords: object) -> None:
    """Fail as a bad disk does."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_delete_keeps_what_links_point_to(tmp_path: Path) -> None:
    """Links are removed, not what they point to; shared files keep their modes."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch(0o444)
    item = tmp_path / "item"
    item.mkdir()
    (item / "link").symlink_to(kept)
    (item / "hard").hardlink_to(kept / "file")
    (tmp_path / "link").symlink_to(kept)
    delete(item)
    delete(tmp_path / "link")
    assert os.listdir(tmp_path) == ["kept"]
    assert stat.S_IMODE((kept / "file").stat().st_mode) == 0o444


def test_delete_refused(tmp_path: Path) -> None:
    """What can't be removed is an error that names it."""
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/inner").mkdir()
    with unprivileged(tmp_path):
        Path().chmod(0o555)
        try:
            for name in ("file", "full"):
                with pytest.raises(RestoreError) as error:
                    delete(name)
                reasons = ("Permission denied", "Operation not permitted")
                assert str(error.value) in {f"{name}: {reason}" for reason in reasons}
        finally:
            Path().chmod(0o755)


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (3 << 20) + 5])
def test_large_files_are_hashed_beside_the_rest(store: Path, size: int) -> None:
    """In a thread of their own, with the same result: names, links, modes and times."""
    large = hashlib.shake_128(b"large").digest(size)
    files: Tree = {
        b"a": (large, False),
        b"b": {b"c": (BIG, False), b"d": (large, True)},
        b"e": b"x",
    }
    data = nar(files)
    for name in ("one", "two"):
        pieces = [data[start : start + 100_000] for start in range(0, len(data), 100_000)]
        digest = restore(pieces, store / name, dedup=Deduplicator(store))
        assert digest == (hashlib.sha256(data).digest(), len(data))
        assert b"".join(dump(store / name)) == data
        for path in everything(store / name):
            assert path.lstat().st_mtime_ns == 10**9
    alone = [nar((large, False)), nar((large, True)), nar((BIG, False))]
    expected = {base32.encode(hashlib.sha256(each).digest()) for each in alone}
    assert {link.name for link in (store / ".links").iterdir()} == expected
    assert (store / "one/b/d").samefile(store / "two/b/d")
    assert not (store / "one/a").samefile(store / "one/b/d")


def test_a_damaged_large_archive_leaves_nothing(store: Path) -> None:
    """What the other threads were still to do is dropped."""
    data = nar({b"a": (bytes(5 << 20), False), b"b": (bytes(3 << 20), False)})
    pieces = [data[start : start + 100_000] for start in range(0, len(data) - 100, 100_000)]
    with pytest.raises(NarError):
        restore([*pieces, b"no end"], store / "one", dedup=Deduplicator(store))
    assert not (store / "one").exists()
