# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.spool."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from narswarm.errors import NarswarmError, NetworkError
from substituter.spool import Spool, SpoolFile


def opened(room: Spool, size: int) -> SpoolFile:
    """A file for which there is room."""
    file = room.open("item", size)
    assert file is not None
    return file


@pytest.mark.parametrize("flag", [True, False])
def test_what_is_written_is_read_and_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, flag: bool
) -> None:
    """A process that is killed leaves nothing, whether or not the file system helps with that."""
    if not flag:
        monkeypatch.delattr(os, "O_TMPFILE")
    file = opened(Spool(tmp_path / "new", 10), 6)
    seen = []
    for part in (b"abc", b"def"):
        file.write(part)
        seen.append(file.complete)
    assert seen == [False, True]
    assert b"".join(file.chunks()) == b"abcdef"
    assert list((tmp_path / "new").iterdir()) == []
    file.close()


@pytest.mark.parametrize(("size", "fits"), [(9, True), (10, True), (11, False)])
def test_room_is_bounded(tmp_path: Path, size: int, *, fits: bool) -> None:
    """A NAR that would take more than there is gets no file."""
    room = Spool(tmp_path, 10)
    file = room.open("item", size)
    assert (file is not None) is fits
    assert room.room == (10 - size if fits else 10)
    if file is not None:
        file.close()
    assert room.room == 10


def test_room_is_not_taken_by_a_file_that_could_not_be_made(tmp_path: Path) -> None:
    """A directory that can't be made is no reason to count wrongly."""
    (tmp_path / "file").touch()
    room = Spool(tmp_path / "file" / "below", 10)
    with pytest.raises(NotADirectoryError):
        room.open("item", 5)
    assert room.room == 10


def test_the_last_one_to_close_frees_the_room(tmp_path: Path) -> None:
    """Who writes and who reads end in any order."""
    room = Spool(tmp_path, 10)
    file = opened(room, 4)
    assert file.share()
    file.close()
    assert room.room == 6
    file.close()
    assert room.room == 10
    assert not file.share()


def test_a_reader_follows_and_sees_silence(tmp_path: Path) -> None:
    """What has come is given, then nothing, then the rest."""
    file = opened(Spool(tmp_path, 10), 4)
    file.write(b"ab")
    read = file.follow(0.0)
    assert next(read) == b"ab"
    assert next(read) == b""
    file.write(b"cd")
    assert next(read) == b"cd"
    assert list(read) == []
    file.close()


def test_a_reader_gets_what_came_and_then_the_error(tmp_path: Path) -> None:
    """Bytes that are here aren't lost because others will not come."""
    file = opened(Spool(tmp_path, 10), 4)
    file.write(b"ab")
    file.fail(NetworkError("URL", "ended"))
    read = file.follow(0.0)
    assert next(read) == b"ab"
    with pytest.raises(NetworkError, match=r"^item: URL: ended$"):
        next(read)
    assert not file.complete
    file.close()


def test_a_nar_that_is_too_long_is_refused(tmp_path: Path) -> None:
    """The size is an authorised narinfo's, so more is wrong."""
    file = opened(Spool(tmp_path, 10), 4)
    with pytest.raises(NarswarmError, match=r"^item: is longer than 4 bytes$"):
        file.write(b"abcde")
    file.close()


def test_a_full_disk_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the fetch, not the thread."""
    file = opened(Spool(tmp_path, 10), 4)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(NarswarmError, match=r"^item: No space left on device$"):
            file.write(b"ab")
    file.close()
