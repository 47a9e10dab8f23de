# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker's database: what index and commands ask of it, and SQLite, which it is by default.

The running tracker has it open, and the operator's commands open it beside it: SQLite with a
write-ahead log lets one write and others read at the same time. `tracker.postgres` is the other
one. Statements are the same for both: placeholders are question marks, and views, which each has
in its own words, hide the rest.

What is blocked is written down beside what it blocks and taken out by views, so that unblocking
brings back what was there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from narswarm.errors import InvalidInputError, NarswarmError, NotFoundError, SettingsError

FILE_NAME = "index.sqlite"

VERSION = 3

Place = Path | str
"""Where a database is: a directory, or a URL of PostgreSQL."""

_WAIT_SECONDS = 10
"""How long another writer is waited for."""


class DatabaseError(NarswarmError):
    """The database doesn't do what it should: gone, locked, damaged, or not allowed."""


class Change(NamedTuple):
    """Which infohashes came to be listed and which went, 20 bytes each in one string."""

    added: bytes
    removed: bytes


class Cursor(Protocol):
    """What a statement brought."""

    @property
    def rowcount(self) -> int:
        """How many rows were written."""

    def fetchone(self) -> Any:
        """The next row, or None."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """A database that is open. One thread may use it at a time.

    Attributes:
        name: what errors are about; no password is in it.
        failures: what its methods raise when the database fails.
    """

    name: str
    failures: tuple[type[Exception], ...]

    def execute(self, sql: str, values: Sequence[object] = (), /) -> Cursor:
        """Run one statement; outside of a transaction it is one by itself."""

    def executemany(self, sql: str, rows: Sequence[Sequence[object]], /) -> object:
        """Run one statement for each of several rows."""

    def transaction(self) -> AbstractContextManager[None]:
        """Write all of a block or nothing of it, while nobody else writes."""

    def snapshot(self) -> AbstractContextManager[None]:
        """Read in a block what there is at its beginning."""

    def note(self, change: Change | None) -> None:
        """Have other trackers know what a transaction changed; None is anything."""

    def changes(self, since: int) -> tuple[int, list[Change] | None]:
        """How far changes have come, and what others changed since; None is anything."""

    def size(self) -> int:
        """Bytes of the database."""

    def is_full(self, error: Exception | None = None) -> bool:
        """Whether a failure, or its size, means that there is no room."""

    def follow(self, callback: Callable[[], None], /) -> Callable[[], None]:
        """Call back, from another thread, when others change something; return what ends that."""

    def close(self) -> None:
        """Let go of it."""


_TABLES = """
CREATE TABLE signers (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, authorized INTEGER NOT NULL
);
CREATE TABLE nars (
    id INTEGER PRIMARY KEY, nar_hash BLOB NOT NULL UNIQUE, nar_size INTEGER NOT NULL
);
CREATE TABLE narinfos (
    hash_part TEXT NOT NULL,
    nar INTEGER NOT NULL REFERENCES nars,
    signer INTEGER NOT NULL REFERENCES signers,
    sources INTEGER NOT NULL,
    added INTEGER NOT NULL,
    raw BLOB NOT NULL,
    UNIQUE (hash_part, nar, signer)
);
CREATE INDEX narinfos_by_nar ON narinfos (nar);
CREATE TABLE torrents (
    id INTEGER PRIMARY KEY,
    nar INTEGER NOT NULL REFERENCES nars,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    length INTEGER NOT NULL,
    piece_length INTEGER NOT NULL,
    infohash_v1 BLOB NOT NULL,
    infohash_v2 BLOB NOT NULL UNIQUE,
    added INTEGER NOT NULL,
    metainfo BLOB NOT NULL
);
CREATE INDEX torrents_by_nar ON torrents (nar);
CREATE TABLE claims (
    torrent INTEGER NOT NULL REFERENCES torrents ON DELETE CASCADE,
    publisher BLOB NOT NULL,
    added INTEGER NOT NULL,
    PRIMARY KEY (torrent, publisher)
) WITHOUT ROWID;
CREATE VIEW vouched AS
    SELECT nar FROM narinfos JOIN signers ON signers.id = narinfos.signer WHERE authorized;
"""

_BLOCKS_AND_DOWNLOADS = """
CREATE TABLE blocks (
    kind TEXT NOT NULL,
    value BLOB NOT NULL,
    reason TEXT NOT NULL,
    added INTEGER NOT NULL,
    withdrawn BLOB,
    PRIMARY KEY (kind, value)
) WITHOUT ROWID;
CREATE TABLE downloads (info_hash BLOB PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER forget_downloads AFTER DELETE ON torrents BEGIN
    DELETE FROM downloads WHERE info_hash IN (OLD.infohash_v1, substr(OLD.infohash_v2, 1, 20));
END;
DROP VIEW vouched;
CREATE VIEW vouched AS
    SELECT narinfos.rowid AS narinfo, nar
    FROM narinfos JOIN signers ON signers.id = narinfos.signer
    WHERE authorized AND NOT EXISTS (
        SELECT 1 FROM nars JOIN blocks ON kind = 'nar' AND value = nar_hash
        WHERE nars.id = narinfos.nar
    );
CREATE VIEW blocked_torrents AS
    SELECT id AS torrent, infohash_v1, infohash_v2 FROM torrents
    WHERE EXISTS (SELECT 1 FROM blocks WHERE kind = 'infohash' AND value = infohash_v1)
        OR EXISTS (
            SELECT 1 FROM blocks WHERE kind = 'infohash' AND value = substr(infohash_v2, 1, 20)
        );
CREATE VIEW support AS
    SELECT torrent, publisher FROM claims
    WHERE NOT EXISTS (SELECT 1 FROM blocks WHERE kind = 'publisher' AND value = publisher)
        AND NOT EXISTS (
            SELECT 1 FROM blocked_torrents WHERE blocked_torrents.torrent = claims.torrent
        );
"""

_NAMES = """
ALTER TABLE narinfos ADD COLUMN name TEXT NOT NULL DEFAULT '';
UPDATE narinfos SET name = lower(substr(
    CAST(raw AS TEXT),
    instr(CAST(raw AS TEXT), '/gnu/store/' || hash_part || '-') + 44,
    instr(
        substr(
            CAST(raw AS TEXT),
            instr(CAST(raw AS TEXT), '/gnu/store/' || hash_part || '-') + 44
        ) || char(10),
        char(10)
    ) - 1
)) WHERE instr(CAST(raw AS TEXT), '/gnu/store/' || hash_part || '-');
CREATE INDEX narinfos_by_name ON narinfos (name, hash_part, nar);
CREATE INDEX torrents_by_infohash_v1 ON torrents (infohash_v1);
"""
"""Names of store items in small letters, for people who search."""

_UPGRADES = (_TABLES, _BLOCKS_AND_DOWNLOADS, _NAMES)
"""What makes a database of each version, from 0 on, one of the next; data stays."""


class SqliteConnection(sqlite3.Connection):
    """SQLite, for any thread, one at a time; it begins no transaction by itself."""

    name = ""
    failures: tuple[type[Exception], ...] = (sqlite3.Error,)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all of a block or nothing of it."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read what there is at the beginning."""
        self.execute("BEGIN")
        try:
            yield
        finally:
            self._roll_back()

    def _roll_back(self) -> None:
        # SQLite ends a transaction by itself when the disk is full.
        if self.in_transaction:
            self.execute("ROLLBACK")

    def note(self, change: Change | None) -> None:
        """SQLite notes by itself that something changed."""

    def changes(self, since: int) -> tuple[int, list[Change] | None]:
        """Whether another connection wrote anything."""
        (version,) = self.execute("PRAGMA data_version").fetchone()
        return version, [] if version == since else None

    def size(self) -> int:
        """Bytes of the database."""
        pages = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        return int(self.execute(pages).fetchone()[0])

    def is_full(self, error: Exception | None = None) -> bool:
        """Whether it may not grow further; its size alone is its own business."""
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL

    def follow(self, _callback: Callable[[], None], /) -> Callable[[], None]:
        """Commands tell the one tracker that there is."""
        return lambda: None


def connect(place: Place, *, create: bool = False, max_bytes: int | None = None) -> Connection:
    """Open the database of a place, and bring it up to date.

    Args:
        place: where it is or will be.
        create: whether to make directory and tables.
        max_bytes: how large it may grow, or None.

    Raises:
        NotFoundError: there is none, and it isn't to be made.
        SettingsError: the place can't be used.
        InvalidInputError: what is there is no database of this version or an older one.
        DatabaseError: PostgreSQL doesn't answer.
    """
    if isinstance(place, str):
        from tracker import postgres  # noqa: PLC0415 - only who wants it needs its package

        return postgres.connect(place, create=create, max_bytes=max_bytes)
    return _connect(place, create=create, max_bytes=max_bytes)


def _connect(directory: Path, *, create: bool, max_bytes: int | None) -> SqliteConnection:
    """Open the database of a directory."""
    path = directory / FILE_NAME
    try:
        if create:
            directory.mkdir(parents=True, exist_ok=True)
        elif not path.exists():
            raise NotFoundError(directory, "has no tracker's index")
        connection = sqlite3.connect(
            path,
            isolation_level=None,
            check_same_thread=False,
            timeout=_WAIT_SECONDS,
            factory=SqliteConnection,
        )
        connection.name = str(path)
        try:
            _prepare(connection, path, max_bytes)
        except BaseException:
            connection.close()
            raise
    except OSError as error:
        raise SettingsError(directory, error.strerror or str(error)) from error
    except sqlite3.Error as error:
        raise InvalidInputError(path, f"is not a usable index: {error}") from error
    return connection


def _prepare(connection: SqliteConnection, path: Path, max_bytes: int | None) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    if _version(connection) != VERSION:
        with connection.transaction():
            # Asked again: another process may have been faster.
            version = _version(connection)
            if version > VERSION:
                raise InvalidInputError(path, f"has version {version} instead of {VERSION}")
            for script in _UPGRADES[version:]:
                for statement in _statements(script):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
    if max_bytes is not None:
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA max_page_count = {max(max_bytes // page, 1)}")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; `executescript` would commit before it begins."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def opened(place: Place) -> Iterator[Connection]:
    """A connection to a database that is there, for a command.

    Raises:
        NotFoundError: there is none.
        SettingsError: the place can't be used.
        InvalidInputError: what is there is no index.
        DatabaseError: something went wrong while it was used.
    """
    connection = connect(place)
    try:
        with failing_as_ours(connection):
            yield connection
    finally:
        connection.close()


@contextmanager
def failing_as_ours(connection: Connection) -> Iterator[None]:
    """Have what the database says of its failures reach users as an error of ours.

    Raises:
        DatabaseError: it failed.
    """
    try:
        yield
    except connection.failures as error:
        raise DatabaseError(connection.name, str(error).partition("\n")[0]) from error
