# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.fetching_store."""

from __future__ import annotations

from pathlib import Path

import pytest

from narswarm.errors import NarswarmError
from seeder.fetching_store import FetchStore, NoRoomError


def fill(store: FetchStore, infohash: str, length: int) -> Path:
    """Take a place, and put a file there."""
    path = store.take(infohash, length)
    (path / "file").write_bytes(b"x")
    return path


def names(store: FetchStore) -> list[str]:
    """What is on disk."""
    return sorted(path.name for path in store._directory.iterdir())


def test_what_an_earlier_process_left_is_removed(tmp_path: Path) -> None:
    """Nobody knows how far it was."""
    (tmp_path / "fetching" / "aa").mkdir(parents=True)
    (tmp_path / "fetching" / "aa" / "file").touch()
    store = FetchStore(tmp_path / "fetching", 10)
    assert names(store) == []
    assert (store.used, store.room) == (0, 10)


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
