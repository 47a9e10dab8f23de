# SPDX-License-Identifier: GPL-3.0-or-later
"""The SQLite file of a state: made, upgraded, and changed as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from narswarm.errors import InvalidInputError
from seeder.database import Database

SCHEMA = "CREATE TABLE t (x INTEGER);"


def test_upgrades_follow_each_other(tmp_path: Path) -> None:
    """From any version that is known; a schema of the future is refused."""
    path = tmp_path / "db"
    Database(path, SCHEMA, 1, {}).close()
    upgrades = {1: "INSERT INTO t VALUES (1);", 2: "INSERT INTO t SELECT x + 1 FROM t;"}
    db = Database(path, "", 3, upgrades)
    assert db.rows("SELECT x FROM t ORDER BY x") == [(1,), (2,)]
    db.close()
    with pytest.raises(InvalidInputError) as caught:
        Database(path, SCHEMA, 2, {1: ""})
    assert str(caught.value) == f"{path}: is of version 3, not 2"


def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path) -> None:
    """The seeder of before can still be started."""
    path = tmp_path / "db"
    Database(path, SCHEMA, 1, {}).close()
    with pytest.raises(InvalidInputError, match="is not a database of a seeder: no such table: u"):
        Database(path, "", 2, {1: "INSERT INTO t VALUES (1); INSERT INTO u VALUES (1);"})
    db = Database(path, SCHEMA, 1, {})
    assert db.row("SELECT count(*) FROM t") == (0,)
    db.close()


def test_transactions(tmp_path: Path) -> None:
    """All or nothing."""
    db = Database(tmp_path / "db", SCHEMA, 1, {})

    def fail() -> None:
        with db.transaction() as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert db.row("SELECT x FROM t") is None
    with db.transaction() as connection:
        connection.execute("INSERT INTO t VALUES (1)")
    assert db.rows("SELECT x FROM t WHERE x = ?", (1,)) == [(1,)]
    db.close()
