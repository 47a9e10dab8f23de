# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.guixdb`."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from narswarm import guixdb
from narswarm.errors import BusyError, InvalidInputError, NotFoundError
from narswarm.guixdb import DbItem, GuixDb

SCHEMA = """
CREATE TABLE ValidPaths (id integer primary key autoincrement not null, path text unique not null,
    hash text not null, registrationTime integer not null, deriver text, narSize integer);
CREATE TABLE Refs (referrer integer not null, reference integer not null,
    primary key (referrer, reference),
    foreign key (referrer) references ValidPaths(id) on delete cascade,
    foreign key (reference) references ValidPaths(id) on delete restrict);
CREATE INDEX IndexReferrer on Refs(referrer);
CREATE INDEX IndexReference on Refs(reference);
CREATE TRIGGER DeleteSelfRefs before delete on ValidPaths
    begin delete from Refs where referrer = old.id and reference = old.id; end;
CREATE TABLE DerivationOutputs (drv integer not null, id text not null, path text not null,
    primary key (drv, id), foreign key (drv) references ValidPaths(id) on delete cascade);
CREATE INDEX IndexDerivationOutputs on DerivationOutputs(path);
CREATE TABLE FailedPaths (path text primary key not null, time integer not null);
"""
INSERT = "INSERT INTO ValidPaths (path, hash, registrationTime, deriver, narSize) VALUES "


def store_path(number: int) -> str:
    """Return the path of an item."""
    return f"/gnu/store/{number:032}-item"


def add(connection: sqlite3.Connection, first: int, count: int = 1) -> None:
    """Register items."""
    connection.executemany(
        INSERT + "(?, ?, ?, ?, ?)",
        (
            (store_path(number), f"sha256:{number:064x}", 1000 + number, None, 96)
            for number in range(first, first + count)
        ),
    )
    connection.commit()


def item(number: int) -> DbItem:
    """Return what `add` registered."""
    return DbItem(number, store_path(number), number.to_bytes(32, "big"), 96, None, 1000 + number)


def daemon(path: Path) -> sqlite3.Connection:
    """Open the database as guix-daemon does, for writing and in WAL mode."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return a directory that everybody can read, as /var/guix/db is."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


@pytest.fixture
def database(directory: Path) -> Path:
    """Return the database of an idle daemon: without -wal and -shm."""
    path = directory / "db.sqlite"
    with closing(daemon(path)) as connection:
        connection.executescript(SCHEMA)
    assert os.listdir(directory) == ["db.sqlite"]
    return path


@contextmanager
def unprivileged(directory: Path, mode: int = 0o444) -> Iterator[None]:
    """Be somebody who can read the directory and not write it."""
    directory.chmod(0o555)
    (directory / "db.sqlite").chmod(mode)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(0o755)
        (directory / "db.sqlite").chmod(0o644)


def test_items(database: Path) -> None:
    """All that the table says of an item is given; an empty deriver is none."""
    drv = "/gnu/store/00000000000000000000000000000009-item.drv"
    with closing(daemon(database)) as connection:
        connection.execute(
            INSERT + "(?, ?, 1, ?, 96), (?, ?, 2, '', 136)",
            (store_path(1), f"sha256:{1:064x}", drv, store_path(2), f"sha256:{2:064x}"),
        )
        connection.commit()
    expected = [
        DbItem(1, store_path(1), (1).to_bytes(32, "big"), 96, drv, 1),
        DbItem(2, store_path(2), (2).to_bytes(32, "big"), 136, None, 2),
    ]
    db = GuixDb(database)
    assert list(db.items()) == expected
    assert list(db.items(1)) == expected[1:]
    assert list(db.items(2)) == []
    assert db.item(store_path(2)) == expected[1]
    assert db.item(store_path(3)) is None


def test_pages(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of rows follow each other without gaps, also where a whole page is passed over."""
    monkeypatch.setattr(guixdb, "_PAGE", 3)
    with closing(daemon(database)) as connection:
        add(connection, 1, 12)
        connection.execute("DELETE FROM ValidPaths WHERE id = 2")
        connection.execute("UPDATE ValidPaths SET hash = 'none' WHERE id IN (5, 6, 7)")
        connection.commit()
    expected = [item(number) for number in (1, 3, 4, 8, 9, 10, 11, 12)]
    assert list(GuixDb(database).items()) == expected


def test_reading_holds_no_transaction(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between pages the daemon can write and shrink its -wal, and what it adds is seen."""
    monkeypatch.setattr(guixdb, "_PAGE", 2)
    with closing(daemon(database)) as connection:
        add(connection, 1, 4)
        items = GuixDb(database).items()
        assert next(items) == item(1)
        add(connection, 5)
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0
        assert list(items) == [item(number) for number in (2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("hash_", "size"),
    [
        ("sha256:" + "0" * 63, 96),
        ("sha256:" + "0" * 65, 96),
        ("sha256:" + "A" * 64, 96),
        ("sha256:" + "g" * 64, 96),
        ("sha256:" + "0 " * 32, 96),
        ("sha1:" + "0" * 64, 96),
        ("0" * 64, 96),
        ("", 96),
        (b"\xff", 96),
        ("sha256:" + "0" * 64, None),
        ("sha256:" + "0" * 64, 0),
        ("sha256:" + "0" * 64, -1),
        ("sha256:" + "0" * 64, "many"),
    ],
)
def test_odd_rows(database: Path, hash_: object, size: object) -> None:
    """Rows without a SHA-256 or a size are passed over, not fatal."""
    with closing(daemon(database)) as connection:
        values = ("/gnu/store/odd", hash_, 1, None, size)
        connection.execute(INSERT + "(?, ?, ?, ?, ?)", values)
        add(connection, 2)
    assert list(GuixDb(database).items()) == [item(2)]
    assert GuixDb(database).item("/gnu/store/odd") is None


def test_names_that_are_no_unicode(database: Path) -> None:
    """A text that isn't UTF-8 doesn't stop the reading."""
    with closing(daemon(database)) as connection:
        add(connection, 1)
        connection.execute("UPDATE ValidPaths SET path = CAST(x'2fff' AS TEXT)")
        connection.commit()
    assert [found.path for found in GuixDb(database).items()] == ["/\udcff"]


def test_references(database: Path) -> None:
    """References are whole paths, sorted, the item itself among them if it is one."""
    with closing(daemon(database)) as connection:
        add(connection, 1, 4)
        connection.execute("INSERT INTO Refs VALUES (1, 3), (1, 1), (1, 2), (4, 1)")
        connection.commit()
    db = GuixDb(database)
    assert db.references(store_path(1)) == [store_path(1), store_path(2), store_path(3)]
    assert db.references(store_path(2)) == []
    with pytest.raises(NotFoundError) as error:
        db.references(store_path(5))
    assert str(error.value) == f"{store_path(5)}: is not a valid store item"


def test_daemon_at_work(database: Path, directory: Path) -> None:
    """What the daemon committed is seen while it has the database open; what it didn't isn't."""
    with closing(daemon(database)) as connection:
        add(connection, 1)
        connection.execute(
            INSERT + "(?, ?, ?, ?, ?)", (store_path(2), f"sha256:{2:064x}", 1, None, 1)
        )
        assert list(GuixDb(database).items()) == [item(1)]
        with unprivileged(directory):
            assert list(GuixDb(database).items()) == [item(1)]


def test_idle_daemon(database: Path, directory: Path) -> None:
    """Without -wal and -shm, somebody who can't make them reads all the same, and makes none."""
    with closing(daemon(database)) as connection:
        add(connection, 1)
    with unprivileged(directory):
        assert list(GuixDb(database).items()) == [item(1)]
        assert os.listdir(directory) == ["db.sqlite"]


def test_empty_wal(database: Path, directory: Path) -> None:
    """An empty -wal, as root's readers leave, holds nothing that a reader could miss."""
    with closing(daemon(database)) as connection:
        add(connection, 1)
    (directory / "db.sqlite-wal").touch()
    with unprivileged(directory):
        assert list(GuixDb(database).items()) == [item(1)]


def test_wal_that_nobody_may_read(database: Path, directory: Path) -> None:
    """A -wal with rows that can't be read is an error: the rest alone would be wrong."""
    with closing(daemon(database)) as connection:
        add(connection, 1)
        copies = {name: (directory / name).read_bytes() for name in os.listdir(directory)}
    for name, data in copies.items():
        (directory / name).write_bytes(data)
    (directory / "db.sqlite-shm").unlink()
    (directory / "db.sqlite-wal").chmod(0o000)
    with unprivileged(directory), pytest.raises(NotFoundError) as error:
        list(GuixDb(database).items())
    assert str(error.value) == f"{database}: has a -wal that this user can't read"


@pytest.mark.parametrize(("writes", "reads"), [(1, 2), (2, 3), (3, 3)])
def test_written_while_read_as_immutable(
    database: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, writes: int, reads: int
) -> None:
    """A reader without locks reads again when the daemon wrote in the meantime, up to 3 times."""
    with closing(daemon(database)) as connection:
        add(connection, 1)
    fetch = GuixDb._fetch
    seen: list[str] = []

    def racing(
        self: GuixDb, how: str, query: str, values: tuple[object, ...]
    ) -> list[tuple[object, ...]]:
        rows = fetch(self, how, query, values)
        seen.append(how)
        if len(seen) <= writes:
            user = os.geteuid()
            os.seteuid(os.getuid())
            os.utime(database, ns=(len(seen), len(seen)))
            os.seteuid(user)
        return rows

    monkeypatch.setattr(GuixDb, "_fetch", racing)
    with unprivileged(directory):
        if writes < 3:
            assert GuixDb(database).item(store_path(1)) == item(1)
        else:
            with pytest.raises(BusyError) as error:
                GuixDb(database).item(store_path(1))
            assert str(error.value) == f"{database}: changes faster than it can be read"
    assert seen == ["mode=ro&immutable=1"] * reads


def test_damaged_idle_database(database: Path, directory: Path) -> None:
    """A database that is damaged is said to be so, also when it is read as immutable."""
    data = database.read_bytes()
    database.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    with unprivileged(directory), pytest.raises(InvalidInputError) as error:
        GuixDb(database).item(store_path(1))
    reason = "is not a database of guix-daemon: database disk image is malformed"
    assert str(error.value) == f"{database}: {reason}"


def test_locked(database: Path) -> None:
    """A database that somebody locks for longer than we wait is busy, not broken."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA locking_mode = exclusive")
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BusyError) as error:
            GuixDb(database, timeout=0.01).item(store_path(1))
    assert str(error.value) == f"{database}: is locked by another process"


def test_missing(directory: Path) -> None:
    """A database that doesn't exist is not made."""
    with pytest.raises(NotFoundError) as error:
        list(GuixDb(directory / "db.sqlite").items())
    assert str(error.value) == f"{directory}/db.sqlite: No such file or directory"
    assert os.listdir(directory) == []


def test_unreadable(database: Path, directory: Path) -> None:
    """A database without permission to read it is said to be so."""
    with unprivileged(directory, mode=0o000), pytest.raises(NotFoundError) as error:
        list(GuixDb(database).items())
    assert str(error.value) == f"{database}: can't be read: unable to open database file"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no database at all" * 100, "file is not a database"),
        (b"", "no such table: ValidPaths"),
    ],
)
def test_other_files(directory: Path, content: bytes, reason: str) -> None:
    """A file that isn't a database of guix-daemon is said to be so."""
    path = directory / "db.sqlite"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError) as error:
        GuixDb(path).item(store_path(1))
    assert str(error.value) == f"{path}: is not a database of guix-daemon: {reason}"


def test_odd_file_name(directory: Path) -> None:
    """A path with characters that mean something in a URI is taken as it is."""
    path = directory / "a b?mode=rw#%41.sqlite"
    with closing(daemon(path)) as connection:
        connection.executescript(SCHEMA)
        add(connection, 1)
    assert list(GuixDb(str(path)).items()) == [item(1)]


def test_counting(database: Path) -> None:
    """As many as are given, also without those of a kind."""
    db = GuixDb(database)
    assert db.count() == 0
    count = 3
    with closing(daemon(database)) as connection, connection:
        add(connection, 1, count)
        connection.execute(
            "INSERT INTO ValidPaths (path, hash, registrationTime, narSize)"
            " SELECT path || '.drv', hash, 1, narSize FROM ValidPaths LIMIT 1"
        )
        connection.execute(
            "INSERT INTO ValidPaths (path, hash, registrationTime, narSize)"
            " VALUES ('/gnu/store/x', 'md5:0', 1, 0)"
        )
    assert db.count() == len(list(db.items())) == count + 1
    assert db.count(".drv") == count


def test_stamps(database: Path) -> None:
    """They differ when somebody wrote, also to a -wal that keeps its size."""
    db = GuixDb(database)
    before = db.stamp()
    assert db.stamp() == before
    with closing(daemon(database)) as connection:
        add(connection, 50)
        connection.commit()
        written = db.stamp()
        assert written != before
        wal = Path(f"{database}-wal")
        if wal.exists():
            os.utime(wal, ns=(1, 1))
            assert db.stamp() != written
    assert db.stamp() != before
