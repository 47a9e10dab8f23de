# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker's database: what opens, what is brought up to date, what is left alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from narswarm.errors import InvalidInputError, NarswarmError, NotFoundError, SettingsError
from tracker import blocks, database
from tracker.database import FILE_NAME, VERSION, Connection, Place, connect, opened


def _tables(connection: Connection | sqlite3.Connection) -> list[tuple[str, ...]]:
    return connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()


def _version_1(directory: Path) -> None:
    """Make a database as the first version did, with one torrent in it."""
    with closing(sqlite3.connect(directory / FILE_NAME)) as old:
        old.executescript(f"{database._TABLES} PRAGMA user_version = 1;")
        old.executescript(
            "INSERT INTO signers VALUES (1, x'01', 1);"
            "INSERT INTO nars VALUES (1, x'02', 3);"
            "INSERT INTO narinfos VALUES ('4', 1, 1, 0, 5, x'06');"
            "INSERT INTO torrents VALUES (1, 1, 'k', 'n', 7, 8, x'09', x'10', 11, x'12');"
            "INSERT INTO claims VALUES (1, x'13', 14);"
        )


def test_upgrade(tmp_path: Path) -> None:
    """A database of the first version becomes one like a new one, and keeps its data."""
    _version_1(tmp_path)
    (tmp_path / "new").mkdir()
    with closing(connect(tmp_path)) as old, closing(connect(tmp_path / "new", create=True)) as new:
        assert _tables(old) == _tables(new)
        assert old.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert old.execute("SELECT * FROM vouched").fetchall() == [(1, 1)]
        assert old.execute("SELECT * FROM support").fetchall() == [(1, b"\x13")]
        assert old.execute("SELECT metainfo FROM torrents").fetchall() == [(b"\x12",)]
        assert blocks.listed(old) == []


def test_names_of_an_older_index(tmp_path: Path) -> None:
    """An upgrade takes names from the narinfos that are there, in small letters."""
    _version_1(tmp_path)
    lines = {
        "1" * 32: b"StorePath: /gnu/store/%b-Xyz-1.0\nNarHash: x\n" % (b"1" * 32),
        "2" * 32: b"NarSize: 1\nStorePath: /gnu/store/%b-a" % (b"2" * 32),
        "3" * 32: b"References: %b-a" % (b"3" * 32),
    }
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as old, old:
        for part, raw in lines.items():
            old.execute("INSERT INTO narinfos VALUES (?, 1, 1, 0, 5, ?)", (part, raw))
    with closing(connect(tmp_path)) as connection:
        rows = connection.execute("SELECT name FROM narinfos ORDER BY hash_part").fetchall()
    assert rows == [("xyz-1.0",), ("a",), ("",), ("",)]


def test_upgrade_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of an upgrade is done, or nothing."""
    _version_1(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as old:
        before = _tables(old)
    broken = (database._TABLES, "CREATE TABLE more (x);\nCREATE TABLE nars (x);")
    monkeypatch.setattr(database, "_UPGRADES", broken)
    with pytest.raises(InvalidInputError) as caught:
        connect(tmp_path)
    path = tmp_path / FILE_NAME
    assert str(caught.value) == f"{path}: is not a usable index: table nars already exists"
    with closing(sqlite3.connect(path)) as old:
        assert _tables(old) == before


def test_later_version(tmp_path: Path) -> None:
    """An index of a later version isn't touched."""
    connect(tmp_path, create=True).close()
    path = tmp_path / FILE_NAME
    with closing(sqlite3.connect(path)) as later:
        later.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(InvalidInputError) as caught:
        connect(tmp_path)
    assert str(caught.value) == f"{path}: has version {VERSION + 1} instead of {VERSION}"


def test_not_a_database(tmp_path: Path) -> None:
    """A file that is something else is left alone."""
    path = tmp_path / FILE_NAME
    path.write_bytes(b"x" * 4096)
    with pytest.raises(InvalidInputError) as caught:
        connect(tmp_path, create=True)
    assert str(caught.value) == f"{path}: is not a usable index: file is not a database"
    assert path.read_bytes() == b"x" * 4096


def test_directory_that_is_a_file(tmp_path: Path) -> None:
    """A directory that can't be one is said."""
    path = tmp_path / "data"
    path.write_bytes(b"")
    with pytest.raises(SettingsError) as caught:
        connect(path, create=True)
    assert str(caught.value) == f"{path}: File exists"


@pytest.mark.parametrize("use", [connect, lambda directory: opened(directory).__enter__()])
def test_none_there(tmp_path: Path, use: Callable[[Path], object]) -> None:
    """Commands make no database where there is none."""
    with pytest.raises(NotFoundError) as caught:
        use(tmp_path)
    assert str(caught.value) == f"{tmp_path}: has no tracker's index"
    assert list(tmp_path.iterdir()) == []


def test_transaction(place: Place) -> None:
    """What is written before an error isn't there after it."""
    with closing(connect(place, create=True)) as connection:
        insert = "INSERT INTO nars (nar_hash, nar_size) VALUES (?, 1)"
        with connection.transaction():
            connection.execute(insert, (b"1",))

        def be_interrupted() -> None:
            with connection.transaction():
                connection.execute(insert, (b"2",))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            be_interrupted()
        assert connection.execute("SELECT nar_hash FROM nars").fetchall() == [(b"1",)]


def test_errors_of_commands(tmp_path: Path) -> None:
    """SQLite's errors reach users as ours, with the file that they are about."""
    connect(tmp_path, create=True).close()
    with pytest.raises(NarswarmError) as caught, opened(tmp_path) as connection:
        connection.execute("SELECT * FROM missing")
    assert str(caught.value) == f"{tmp_path / FILE_NAME}: no such table: missing"
