# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.fetching_store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from narswarm.errors import NarswarmError
from seeder.fetching_store import KEEP, FetchStore, NoRoomError

NOW = 1e9


def fill(store: FetchStore, infohash: str, length: int) -> Path:
    """Take a place, and put a file there."""
    path = store.take(infohash, length)
    (path / "file").write_bytes(b"x")
    return path


def names(store: FetchStore) -> list[str]:
    """What is on disk."""
    return sorted(path.name for path in store._directory.iterdir())


def left(directory: Path, name: str, size: int, age: float = 0.0) -> Path:
    """What a process left that was killed, a number of seconds before NOW."""
    path = directory / "fetching" / name
    path.mkdir(parents=True)
    (path / "file").write_bytes(b"x" * size)
    os.utime(path, (NOW - age, NOW - age))
    return path


def again(directory: Path, quota: int) -> FetchStore:
    """The store of the next process."""
    return FetchStore(directory / "fetching", quota, lambda: NOW)


def test_what_an_earlier_process_left_stays(tmp_path: Path) -> None:
    """It takes the room that its file takes, until somebody goes on with it."""
    file = left(tmp_path, "aa", 5000) / "file"
    taken = file.stat().st_blocks * 512
    store = again(tmp_path, 100_000)
    assert (store.used, store.room) == (taken, 100_000)
    assert store.has("aa")
    assert store.take("aa", 70_000) == file.parent
    assert (store.used, store.room) == (70_000, 30_000)
    assert file.read_bytes() == b"x" * 5000
    left(tmp_path, "bb", 5000)
    other = again(tmp_path, 100_000)
    other.take("bb", 100)
    assert other.used == taken + 100


def test_what_no_process_left_is_removed(tmp_path: Path) -> None:
    """Other names, files, links, and what is empty."""
    for name in ("zz", "a" * 65, "AA"):
        left(tmp_path, name, 10)
    left(tmp_path, "ab", 0)
    (tmp_path / "fetching" / "cc").write_text("")
    (tmp_path / "fetching" / "dd").symlink_to(left(tmp_path / "other", "ee", 10))
    store = again(tmp_path, 100_000)
    assert (names(store), store.used) == ([], 0)
    assert (tmp_path / "other" / "fetching" / "ee" / "file").exists()


def test_what_was_left_is_within_the_quota(tmp_path: Path) -> None:
    """What was used longest ago goes, when the quota is smaller now, and when room is needed."""
    for name, age in (("bb", 20.0), ("cc", 10.0), ("aa", 30.0)):
        left(tmp_path, name, 8192, age)
    assert names(again(tmp_path, 16384)) == ["bb", "cc"]
    store = again(tmp_path, 16384)
    with pytest.raises(NoRoomError):
        store.take("bb", 16385)
    assert (names(store), store.used) == (["bb", "cc"], 16384)
    store.take("cc", 8193)
    assert (names(store), store.used) == (["cc"], 8193)


@pytest.mark.parametrize(
    ("age", "stays"), [(KEEP - 1, True), (KEEP, False), (-KEEP, True), (-KEEP - 1, False)]
)
def test_what_was_left_long_ago_is_removed(tmp_path: Path, age: float, stays: bool) -> None:
    """After a week; what is from the future is from a clock that was wrong."""
    left(tmp_path, "aa", 10, age)
    assert names(again(tmp_path, 10_000)) == (["aa"] if stays else [])


def test_what_nobody_uses_goes_after_a_week(tmp_path: Path) -> None:
    """Since it was used last, which a later process knows, too; what is used stays."""
    now = NOW
    store = FetchStore(tmp_path / "fetching", 100_000, lambda: now)
    fill(store, "aa", 3)
    fill(store, "bb", 3)
    now += 10
    store.give_back("bb", keep=True)
    now += KEEP - 1
    store.expire()
    assert names(store) == ["aa", "bb"]
    assert names(FetchStore(tmp_path / "fetching", 100_000, lambda: now)) == ["bb"]
    fill(store, "aa", 3)
    now += 1
    store.expire()
    assert names(store) == ["aa"]


def test_a_place_for_each_torrent(tmp_path: Path) -> None:
    """Its length counts from the beginning, once however many use it."""
    store = FetchStore(tmp_path / "fetching", 10)
    assert fill(store, "aa", 6) == tmp_path / "fetching" / "aa"
    assert store.take("aa", 6) == tmp_path / "fetching" / "aa"
    assert (store.used, store.room) == (6, 4)
    with pytest.raises(NoRoomError) as caught:
        store.take("bb", 5)
    assert str(caught.value) == f"{tmp_path}/fetching: has no room for 5 more bytes of 10"
    fill(store, "bb", 4)
    assert names(store) == ["aa", "bb"]


def test_what_nobody_uses_stays_as_long_as_there_is_room(tmp_path: Path) -> None:
    """The oldest goes first, and only as much as is needed."""
    store = FetchStore(tmp_path / "fetching", 10)
    for name in ("aa", "bb", "cc"):
        fill(store, name, 3)
        store.give_back(name, keep=True)
    store.take("aa", 3)
    store.give_back("aa", keep=True)
    assert (store.used, store.room) == (9, 10)
    fill(store, "dd", 4)
    assert names(store) == ["aa", "cc", "dd"]
    assert store.has("aa")
    assert not store.has("bb")


def test_what_is_used_is_not_removed(tmp_path: Path) -> None:
    """Nor what somebody else uses still; what isn't wanted goes with its last user."""
    store = FetchStore(tmp_path / "fetching", 10)
    fill(store, "aa", 3)
    store.take("aa", 3)
    store.give_back("aa", keep=False)
    assert names(store) == ["aa"]
    store.give_back("aa", keep=False)
    assert names(store) == []
    store.give_back("aa", keep=False)
    assert store.used == 0


def test_only_what_is_here_is_taken_again(tmp_path: Path) -> None:
    """It is in use then."""
    store = FetchStore(tmp_path / "fetching", 10)
    assert not store.take_again("aa")
    fill(store, "aa", 6)
    store.give_back("aa", keep=True)
    assert store.take_again("aa")
    assert store.room == 4


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """Is said, and takes no room."""
    (tmp_path / "file").touch()
    with pytest.raises(NarswarmError) as caught:
        FetchStore(tmp_path / "file" / "fetching", 10)
    assert str(caught.value) == f"{tmp_path}/file/fetching: Not a directory"
    store = FetchStore(tmp_path / "fetching", 10)
    (tmp_path / "fetching" / "aa").touch()
    with pytest.raises(NarswarmError) as caught:
        store.take("aa", 3)
    assert str(caught.value) == f"{tmp_path}/fetching/aa: File exists"
    assert store.used == 0
