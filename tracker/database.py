# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker's database: its tables, how older ones become newer ones, and transactions.

The running tracker has it open, and the operator's commands open it beside it: SQLite with a
write-ahead log lets one write and others read at the same time.

What is blocked is written down beside what it blocks and taken out by views, so that unblocking
brings back what was there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from narswarm.errors import InvalidInputError, NarswarmError, NotFoundError, SettingsError

FILE_NAME = "index.sqlite"

VERSION = 2

_WAIT_SECONDS = 10
"""How long another writer is waited for."""

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

_UPGRADES = (_TABLES, _BLOCKS_AND_DOWNLOADS)
"""What makes a database of each version, from 0 on, one of the next; data stays."""


def connect(
    directory: Path, *, create: bool = False, max_bytes: int | None = None
) -> sqlite3.Connection:
    """Open the database of a directory, and bring it up to date.

    Args:
        directory: where it is or will be.
        create: whether to make the directory and the database.
        max_bytes: how large it may grow, or None.

    Returns:
        A connection for any thread, one at a time, which begins no transaction by itself.

    Raises:
        NotFoundError: there is none, and it isn't to be made.
        SettingsError: the directory can't be used.
        InvalidInputError: what is there is no database of this version or an older one.
    """
    path = directory / FILE_NAME
    try:
        if create:
            directory.mkdir(parents=True, exist_ok=True)
        elif not path.exists():
            raise NotFoundError(directory, "has no tracker's index")
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=_WAIT_SECONDS
        )
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


def _prepare(connection: sqlite3.Connection, path: Path, max_bytes: int | None) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    if _version(connection) != VERSION:
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Asked again: another process may have been faster.
            version = _version(connection)
            if version > VERSION:
                raise InvalidInputError(path, f"has version {version} instead of {VERSION}")
            for script in _UPGRADES[version:]:
                for statement in _statements(script):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise
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
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Write all of a block or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


@contextmanager
def opened(directory: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a database that is there, for a command.

    Raises:
        NotFoundError: there is none.
        SettingsError: the directory can't be used.
        InvalidInputError: what is there is no index.
        NarswarmError: something went wrong while it was used.
    """
    connection = connect(directory)
    try:
        yield connection
    except sqlite3.Error as error:
        raise NarswarmError(directory / FILE_NAME, str(error)) from error
    finally:
        connection.close()


def _roll_back(connection: sqlite3.Connection) -> None:
    # SQLite ends a transaction by itself when the disk is full.
    if connection.in_transaction:
        connection.execute("ROLLBACK")
