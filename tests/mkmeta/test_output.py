# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `mkmeta.output`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mkmeta import output
from mkmeta.output import Output
from narswarm.errors import AlreadyExistsError, NarswarmError, NotFoundError


@pytest.fixture(params=["unnamed", "named"], autouse=True)
def named(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system has files without names; all holds for both."""
    if request.param == "named":
        no_unnamed(monkeypatch)
        return True
    return False


def no_unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse files without names, as NFS does."""
    real = os.open

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, mode)

    monkeypatch.setattr("mkmeta.output.os.open", refuse)


def write(directory: Path, names: list[str], text: bytes, *, force: bool = False) -> list[Path]:
    """Write files with the same contents."""
    with Output(directory, force=force) as output:
        for _ in names:
            output.new().write(text)
        return output.place(names)


def contents(directory: Path) -> dict[str, bytes]:
    """Return all files of a directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_files_appear(tmp_path: Path) -> None:
    """Files get their names at the end, readable by everybody, and nothing else is left."""
    paths = write(tmp_path, ["a", "b"], b"new")
    assert paths == [tmp_path / "a", tmp_path / "b"]
    assert contents(tmp_path) == {"a": b"new", "b": b"new"}
    assert paths[0].stat().st_mode & 0o777 == 0o644
    assert paths[0].stat().st_nlink == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_half_written(tmp_path: Path, error: type[BaseException], *, named: bool) -> None:
    """What goes wrong before the end leaves nothing; files without names survive nothing."""

    def interrupted() -> None:
        with Output(tmp_path, force=False) as output:
            output.new().write(b"half")
            output.new()
            assert len(contents(tmp_path)) == (2 if named else 0)
            raise error

    with pytest.raises(error):
        interrupted()
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("taken", ["a", "b"])
def test_no_overwriting(tmp_path: Path, taken: str) -> None:
    """A file that exists, or a dangling link, stays as it is, and none of ours appears."""
    (tmp_path / taken).symlink_to("nowhere")
    with pytest.raises(AlreadyExistsError) as caught:
        write(tmp_path, ["a", "b"], b"new")
    assert str(caught.value) == f"{tmp_path / taken}: exists already"
    assert [path.name for path in tmp_path.iterdir()] == [taken]


def no_links(*_: object, **__: object) -> None:
    """Refuse as a file system without hard links does."""
    raise OSError(errno.EPERM, "Operation not permitted")


def test_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, named: bool
) -> None:
    """A file system without hard links, which has no files without names either, is enough."""
    monkeypatch.setattr("os.link", no_links)
    if not named:
        with pytest.raises(NarswarmError) as refused:
            write(tmp_path, ["a"], b"new")
        assert str(refused.value) == f"{tmp_path / 'a'}: Operation not permitted"
        assert contents(tmp_path) == {}
        return
    write(tmp_path, ["a", "b"], b"new")
    assert contents(tmp_path) == {"a": b"new", "b": b"new"}
    with pytest.raises(AlreadyExistsError) as caught:
        write(tmp_path, ["c", "b"], b"other")
    assert str(caught.value) == f"{tmp_path / 'b'}: exists already"
    assert contents(tmp_path) == {"a": b"new", "b": b"new"}


def test_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file without a name could never get one, it has a temporary one from the start."""
    monkeypatch.setattr(output, "_proc", lambda descriptor: f"{tmp_path}/{descriptor}")
    write(tmp_path, ["a", "b"], b"new")
    assert contents(tmp_path) == {"a": b"new", "b": b"new"}


def test_force(tmp_path: Path) -> None:
    """With force, files are replaced, and made where there are none."""
    write(tmp_path, ["a"], b"old")
    write(tmp_path, ["a", "b"], b"new", force=True)
    assert contents(tmp_path) == {"a": b"new", "b": b"new"}


def test_force_that_fails(tmp_path: Path) -> None:
    """What can't be replaced leaves no temporary name behind."""
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        write(tmp_path, ["a"], b"new", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_full_disk(tmp_path: Path) -> None:
    """An error that writing ends with says where that was, and leaves nothing."""

    def write_much() -> None:
        with Output(tmp_path, force=False) as output:
            output.new()
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NarswarmError) as caught:
        write_much()
    assert str(caught.value) == f"{tmp_path}: No space left on device"
    assert contents(tmp_path) == {}


def test_no_directory(tmp_path: Path) -> None:
    """A directory that isn't there is not found, and not made."""
    with pytest.raises(NotFoundError) as caught:
        write(tmp_path / "x", ["a"], b"new")
    assert str(caught.value) == f"{tmp_path / 'x'}: No such file or directory"
