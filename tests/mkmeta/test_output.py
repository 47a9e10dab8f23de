# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `mkmeta.output`."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mkmeta.output import Output
from narswarm.errors import AlreadyExistsError, NarswarmError, NotFoundError


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
def test_nothing_half_written(tmp_path: Path, error: type[BaseException]) -> None:
    """What goes wrong before the end leaves nothing behind."""

    def interrupted() -> None:
        with Output(tmp_path, force=False) as output:
            output.new().write(b"half")
            output.new()
            assert len(list(tmp_path.iterdir())) == 2
            raise error

    with pytest.raises(error):
        interrupted()
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("taken", ["a", "b"])
@pytest.mark.parametrize("links", [True, False])
def test_no_overwriting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str, links: bool
) -> None:
    """A file that exists, or a dangling link, stays as it is, and none of ours appears."""
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    (tmp_path / taken).symlink_to("nowhere")
    with pytest.raises(AlreadyExistsError) as caught:
        write(tmp_path, ["a", "b"], b"new")
    assert str(caught.value) == f"{tmp_path / taken}: exists already"
    assert [path.name for path in tmp_path.iterdir()] == [taken]


def no_links(_self: Path, _target: Path) -> None:
    """Refuse as a file system without hard links does."""
    raise OSError(errno.EPERM, "Operation not permitted")


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links is enough."""
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    write(tmp_path, ["a", "b"], b"new")
    assert contents(tmp_path) == {"a": b"new", "b": b"new"}


def test_force(tmp_path: Path) -> None:
    """With force, files are replaced."""
    write(tmp_path, ["a", "b"], b"old")
    write(tmp_path, ["a", "b"], b"new", force=True)
    assert contents(tmp_path) == {"a": b"new", "b": b"new"}


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
