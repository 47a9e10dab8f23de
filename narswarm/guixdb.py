# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what is valid in the store from the database of guix-daemon, without disturbing it.

The database (Guix: nix/libstore/schema.sql) is in SQLite's WAL mode.  While the daemon serves
somebody, a reader shares its `-wal` and `-shm` files; when it is idle these don't exist, and a
reader without write permission for the directory can't make them.  Then, and only then, the file is
complete by itself and is read as immutable, which is checked once more after reading, since SQLite
takes no locks on a file that it was told is immutable.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

from narswarm.errors import BusyError, InvalidInputError, NarswarmError, NotFoundError

DEFAULT_DATABASE: Final = Path("/var/guix/db/db.sqlite")

_PAGE: Final = 2000
"""Rows read at a time: a reader that lingers would keep the daemon from shrinking its `-wal`."""

_ATTEMPTS: Final = 3
_HASH: Final = re.compile("sha256:([0-9a-f]{64})")
_COLUMNS: Final = "id, path, hash, narSize, deriver, registrationTime"
_UNSHARED: Final = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
_LOCKED: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

_Row = tuple[Any, ...]


class DbItem(NamedTuple):
    """A valid store item.

    Attributes:
        id: its row; later items have larger ones.
        path: the whole store path.
        nar_hash: SHA-256 of its NAR, 32 bytes.
        nar_size: bytes of its NAR.
        deriver: the whole path of the derivation that made it, if known.
        registered: when it became valid, seconds since the epoch.
    """

    id: int
    path: str
    nar_hash: bytes
    nar_size: int
    deriver: str | None
    registered: int


class GuixDb:
    """The database of a guix-daemon.

    Each call opens it anew: the file may be replaced, and how it can be opened depends on whether
    the daemon is at work.  One instance may serve several threads.
    """

    def __init__(self, path: str | Path = DEFAULT_DATABASE, *, timeout: float = 5.0) -> None:
        """Read the database `path`, waiting `timeout` seconds for locks."""
        self.path = Path(path)
        self._timeout = timeout

    def items(self, after_id: int = 0) -> Iterator[DbItem]:
        """Give the items whose id is larger than `after_id`, in the order of their ids.

        Rows without a SHA-256 or a size are passed over.

        Raises:
            NotFoundError: there is no such file, or it can't be read.
            BusyError: the database is locked for too long.
            InvalidInputError: it isn't a database of guix-daemon.
        """
        last = after_id
        query = f"SELECT {_COLUMNS} FROM ValidPaths WHERE id > ? ORDER BY id LIMIT {_PAGE}"  # noqa: S608
        while rows := self._query(query, (last,)):
            for row in rows:
                item = _item(row)
                if item is not None:
                    yield item
            last = rows[-1][0]

    def item(self, path: str) -> DbItem | None:
        """Return the item `path`, None if it isn't valid or has no SHA-256 or size.

        Raises:
            NarswarmError: as `items` does.
        """
        query = f"SELECT {_COLUMNS} FROM ValidPaths WHERE path = ?"  # noqa: S608
        rows = self._query(query, (path,))
        return _item(rows[0]) if rows else None

    def count(self, besides: str = "") -> int:
        """Count the items that `items` gives, without those whose path ends in `besides`.

        Raises:
            NarswarmError: as `items` does.
        """
        rows = self._query(
            "SELECT count(*) FROM ValidPaths WHERE narSize > 0 AND length(hash) = 71"
            " AND (? = '' OR substr(path, -length(?)) != ?)",
            (besides, besides, besides),
        )
        return int(rows[0][0])

    def stamp(self) -> tuple[int, ...]:
        """Return what changes when somebody writes; costs two looks at the file system.

        Raises:
            NotFoundError: there is no such file.
        """
        return self._state()

    def references(self, path: str) -> list[str]:
        """Return the paths that the item refers to, itself included if it does, sorted.

        Raises:
            NotFoundError: `path` isn't valid; and as `items` does.
            BusyError: as `items` does.
            InvalidInputError: as `items` does.
        """
        rows = self._query(
            "SELECT target.path FROM ValidPaths AS item"
            " LEFT JOIN Refs ON Refs.referrer = item.id"
            " LEFT JOIN ValidPaths AS target ON target.id = Refs.reference"
            " WHERE item.path = ?",
            (path,),
        )
        if not rows:
            raise NotFoundError(path, "is not a valid store item")
        return sorted(str(target) for (target,) in rows if target is not None)

    def _query(self, query: str, values: tuple[object, ...]) -> list[_Row]:
        """Return all rows, by whichever way of opening the database works now."""
        changing = BusyError(self.path, "changes faster than it can be read")
        failure: NarswarmError = changing
        for _ in range(_ATTEMPTS):
            before = self._state()
            try:
                return self._fetch("mode=ro", query, values)
            except sqlite3.Error as error:
                failure = self._failure(error)
                if _code(error) not in _UNSHARED:
                    raise failure from None
            if before.wal:
                # Its newest rows are in the -wal; the daemon may be about to open or to remove it.
                failure = NotFoundError(self.path, "has a -wal that this user can't read")
                continue
            try:
                rows = self._fetch("mode=ro&immutable=1", query, values)
            except sqlite3.Error as error:
                failure = self._failure(error)
            else:
                if self._state() == before:
                    return rows
                failure = changing
        raise failure

    def _fetch(self, how: str, query: str, values: tuple[object, ...]) -> list[_Row]:
        uri = f"{self.path.absolute().as_uri()}?{how}"
        with closing(sqlite3.connect(uri, uri=True, timeout=self._timeout)) as connection:
            connection.text_factory = _decode
            return connection.execute(query, values).fetchall()

    def _state(self) -> _State:
        """Return what changes when somebody writes."""
        try:
            found = self.path.stat()
        except OSError as error:
            raise NotFoundError(self.path, error.strerror or str(error)) from None
        try:
            wal = Path(f"{self.path}-wal").stat()
        except OSError:
            return _State(found.st_ino, found.st_size, found.st_mtime_ns, 0, 0)
        # A -wal that was written out is written again from its start, and has the same size.
        return _State(found.st_ino, found.st_size, found.st_mtime_ns, wal.st_size, wal.st_mtime_ns)

    def _failure(self, error: sqlite3.Error) -> NarswarmError:
        code = _code(error)
        if code in _LOCKED:
            return BusyError(self.path, "is locked by another process")
        if code in _UNSHARED:
            return NotFoundError(self.path, f"can't be read: {error}")
        return InvalidInputError(self.path, f"is not a database of guix-daemon: {error}")


class _State(NamedTuple):
    inode: int
    size: int
    changed: int
    wal: int
    wal_changed: int


def _item(row: _Row) -> DbItem | None:
    """Check a row; the daemon of an odd or old version mustn't stop us from seeing the others."""
    id_, path, text, size, deriver, registered = row
    if not (isinstance(id_, int) and isinstance(path, str) and isinstance(text, str)):
        return None
    if not isinstance(size, int) or size <= 0 or not isinstance(registered, int):
        return None
    match = _HASH.fullmatch(text)
    if not match:
        return None
    nar_hash = bytes.fromhex(match[1])
    return DbItem(id_, path, nar_hash, size, str(deriver) if deriver else None, registered)


def _code(error: sqlite3.Error) -> int:
    """Return the primary result code of SQLite; errors of the module itself have none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _decode(text: bytes) -> str:
    return text.decode(errors="surrogateescape")
