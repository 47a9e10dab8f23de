# SPDX-License-Identifier: GPL-3.0-or-later
"""What a seeder knows across restarts: a directory that one process holds at a time.

The database has everything that is needed to offer a payload again, so that starting costs no
hashing and no request. It is the truth about the payloads: a file without a row is left over from
a seeder that was killed while it made it, and is removed. A row is written after its file, in one
transaction, so that `kill -9` at any moment leaves either both or neither.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from narswarm import base32
from narswarm.errors import BusyError, InvalidInputError, NotFoundError

VERSION = 1
DATABASE = "state.sqlite"

_PATIENCE = 1.0
"""Seconds to wait for those who only look whether the directory is held."""
_PAUSE = 0.01

_SCHEMA = """
CREATE TABLE nars (
    nar_hash BLOB PRIMARY KEY, store_path TEXT NOT NULL, nar_size INTEGER NOT NULL,
    payload TEXT NOT NULL, length INTEGER NOT NULL, infohash TEXT NOT NULL,
    torrent BLOB NOT NULL, narinfo BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE publications (
    nar_hash BLOB NOT NULL REFERENCES nars ON DELETE CASCADE, tracker TEXT NOT NULL,
    due REAL NOT NULL, published REAL, message TEXT NOT NULL, PRIMARY KEY (nar_hash, tracker)
) WITHOUT ROWID;
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE misses (
    store_path TEXT PRIMARY KEY, reason TEXT NOT NULL, tries INTEGER NOT NULL, due REAL NOT NULL
) WITHOUT ROWID;
"""


class Nar(NamedTuple):
    """A NAR that is offered.

    Attributes:
        nar_hash: SHA-256, 32 bytes.
        store_path: of the item that it was made of.
        nar_size: bytes of the NAR.
        payload: file name in the directory of payloads.
        length: bytes of the payload.
        infohash: hex, of version 2.
        torrent: the .torrent without trackers.
        narinfo: the signed narinfo that vouches for it, with absolute URLs.
    """

    nar_hash: bytes
    store_path: str
    nar_size: int
    payload: str
    length: int
    infohash: str
    torrent: bytes
    narinfo: bytes


class Offer(NamedTuple):
    """What is needed to seed, without what is only published."""

    nar_hash: bytes
    store_path: str
    payload: str
    length: int
    infohash: str


class Due(NamedTuple):
    """A publication that has to be sent."""

    nar_hash: bytes
    torrent: bytes
    narinfo: bytes


class Published(NamedTuple):
    """How publishing to one tracker stands.

    Attributes:
        tracker: its announce URL.
        published: NARs that it has taken.
        pending: NARs that it hasn't.
        message: why not, the most recent reason.
    """

    tracker: str
    published: int
    pending: int
    message: str


class State:
    """The state directory of a seeder.

    Args:
        directory: made if it isn't there.

    Raises:
        BusyError: another process holds it.
        NotFoundError: it can't be made or written.
        InvalidInputError: its database is of another version, or none.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.payloads = directory / "payloads"
        self._mutex = threading.RLock()
        try:
            self.payloads.mkdir(parents=True, exist_ok=True)
            self._lock = _hold(directory / "lock")
        except OSError as error:
            raise NotFoundError(error.filename or directory, error.strerror or str(error)) from None
        try:
            self._db = self._open(directory / DATABASE)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have it."""
        with self._mutex:
            if self._lock < 0:
                return
            self._db.close()
            os.close(self._lock)
            self._lock = -1

    # NARs

    def add(self, nar: Nar, trackers: Iterable[str]) -> None:
        """Keep a NAR whose payload is complete, and what has to be published of it."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO nars VALUES (?, ?, ?, ?, ?, ?, ?, ?)", nar)
            db.execute("DELETE FROM misses WHERE store_path = ?", (nar.store_path,))
            db.executemany(
                "INSERT OR IGNORE INTO publications VALUES (?, ?, 0, NULL, '')",
                [(nar.nar_hash, tracker) for tracker in trackers],
            )

    def drop(self, nar_hash: bytes) -> None:
        """Forget a NAR and remove its payload; in this order, since a row promises a file."""
        with self._transaction() as db:
            row = db.execute("SELECT payload FROM nars WHERE nar_hash = ?", (nar_hash,)).fetchone()
            db.execute("DELETE FROM nars WHERE nar_hash = ?", (nar_hash,))
        if row is not None:
            (self.payloads / row[0]).unlink(missing_ok=True)

    def offers(self) -> list[Offer]:
        """All NARs, without their torrents."""
        with self._mutex:
            rows = self._db.execute(
                "SELECT nar_hash, store_path, payload, length, infohash FROM nars"
            ).fetchall()
        return [Offer(*row) for row in rows]

    def get(self, nar_hash: bytes) -> Nar:
        """All about a NAR.

        Raises:
            NotFoundError: it isn't offered.
        """
        with self._mutex:
            row = self._db.execute("SELECT * FROM nars WHERE nar_hash = ?", (nar_hash,)).fetchone()
        if row is None:
            raise NotFoundError(base32.encode(nar_hash), "is not offered")
        return Nar(*row)

    def sweep(self) -> int:
        """Remove files that no row speaks of; returns how many."""
        known = {offer.payload for offer in self.offers()}
        removed = 0
        for path in self.payloads.iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def used(self) -> int:
        """Bytes of all payloads."""
        with self._mutex:
            row = self._db.execute("SELECT coalesce(sum(length), 0) FROM nars").fetchone()
        return int(row[0])

    # Publications

    def track(self, trackers: Iterable[str]) -> None:
        """Have all NARs published to TRACKERS and to no others."""
        with self._transaction() as db:
            wanted = list(trackers)
            marks = ", ".join("?" * len(wanted))
            db.execute(f"DELETE FROM publications WHERE tracker NOT IN ({marks})", wanted)  # noqa: S608
            for tracker in wanted:
                db.execute(
                    "INSERT OR IGNORE INTO publications SELECT nar_hash, ?, 0, NULL, '' FROM nars",
                    (tracker,),
                )

    def due(self, tracker: str, now: float, limit: int) -> list[Due]:
        """What is to be published to a tracker now, longest due first."""
        with self._mutex:
            rows = self._db.execute(
                "SELECT nar_hash, torrent, narinfo FROM publications JOIN nars USING (nar_hash)"
                " WHERE tracker = ? AND due <= ? ORDER BY due LIMIT ?",
                (tracker, now, limit),
            ).fetchall()
        return [Due(*row) for row in rows]

    def published(self, nar_hash: bytes, tracker: str, now: float, due: float) -> None:
        """Note that a tracker took a NAR, and when it is to be told again."""
        self._settle(nar_hash, tracker, due, now, "")

    def refused(self, nar_hash: bytes, tracker: str, due: float, message: str) -> None:
        """Note that a tracker didn't take a NAR, why, and when it is to be asked again."""
        self._settle(nar_hash, tracker, due, None, message)

    def _settle(
        self, nar_hash: bytes, tracker: str, due: float, published: float | None, message: str
    ) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE publications SET due = ?, published = ?, message = ?"
                " WHERE nar_hash = ? AND tracker = ?",
                (due, published, message, nar_hash, tracker),
            )

    def sample(self, tracker: str, before: float) -> Offer | None:
        """Any NAR that a tracker took before a time, None if there is none."""
        with self._mutex:
            row = self._db.execute(
                "SELECT nar_hash, store_path, payload, length, infohash"
                " FROM publications JOIN nars USING (nar_hash)"
                " WHERE tracker = ? AND published < ? ORDER BY random() LIMIT 1",
                (tracker, before),
            ).fetchone()
        return None if row is None else Offer(*row)

    def republish(self, tracker: str) -> None:
        """Have a tracker told again at once of what it took."""
        with self._transaction() as db:
            db.execute(
                "UPDATE publications SET due = 0 WHERE tracker = ? AND published IS NOT NULL",
                (tracker,),
            )

    def publications(self) -> list[Published]:
        """How publishing stands, for each tracker."""
        with self._mutex:
            rows = self._db.execute(
                "SELECT tracker, count(published), count(*) - count(published),"
                " coalesce(max(CASE WHEN published IS NULL THEN message END), '')"
                " FROM publications GROUP BY tracker ORDER BY tracker"
            ).fetchall()
        return [Published(*row) for row in rows]

    # Items that are not offered

    def miss(self, store_path: str, reason: str, now: float, first: float, most: float) -> None:
        """Note that an item can't be offered, and double the time until it is tried again.

        Args:
            store_path: of the item.
            reason: one word, for `misses`.
            now: seconds since the epoch.
            first: seconds until the second try.
            most: seconds between two tries at most.
        """
        with self._transaction() as db:
            row = db.execute(
                "SELECT tries FROM misses WHERE store_path = ?", (store_path,)
            ).fetchone()
            tries = row[0] if row else 0
            due = now + min(most, first * 2 ** min(tries, 30))
            db.execute(
                "INSERT OR REPLACE INTO misses VALUES (?, ?, ?, ?)",
                (store_path, reason, tries + 1, due),
            )

    def retries(self, now: float) -> list[str]:
        """Paths of items that are to be tried again."""
        with self._mutex:
            rows = self._db.execute(
                "SELECT store_path FROM misses WHERE due <= ? ORDER BY due", (now,)
            ).fetchall()
        return [row[0] for row in rows]

    def missed(self) -> set[str]:
        """Paths of all items that can't be offered, for now."""
        with self._mutex:
            return {row[0] for row in self._db.execute("SELECT store_path FROM misses")}

    def misses(self) -> dict[str, int]:
        """How many items aren't offered, by reason."""
        with self._mutex:
            return dict(self._db.execute("SELECT reason, count(*) FROM misses GROUP BY reason"))

    def reasons(self) -> list[tuple[str, str]]:
        """Paths of all items that can't be offered, for now, each with the reason."""
        with self._mutex:
            return self._db.execute(
                "SELECT store_path, reason FROM misses ORDER BY store_path"
            ).fetchall()

    def forget(self, store_paths: Iterable[str]) -> None:
        """Drop notes about items that are gone, or that shall be tried at once."""
        with self._transaction() as db:
            db.executemany(
                "DELETE FROM misses WHERE store_path = ?", [(path,) for path in store_paths]
            )

    # Notes

    def note(self, name: str) -> str | None:
        """A text that was kept under a name."""
        with self._mutex:
            row = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def set_note(self, name: str, value: str) -> None:
        """Keep a text under a name."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    # The database

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5.0)
        except sqlite3.Error as error:
            raise InvalidInputError(path, f"can't be opened: {error}") from None
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA foreign_keys = ON")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            elif version != VERSION:
                raise InvalidInputError(path, f"is of version {version}, not {VERSION}")
        except sqlite3.Error as error:
            db.close()
            raise InvalidInputError(path, f"is not a database of a seeder: {error}") from None
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def holder(directory: Path) -> int | None:
    """The process that holds a state directory, None if nobody does."""
    try:
        descriptor = os.open(directory / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.read(descriptor, 20) or b"0")
        return None
    finally:
        os.close(descriptor)


def _hold(path: Path) -> int:
    """Lock a file and write this process's id into it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor)
    except BlockingIOError:
        pid = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise BusyError(path.parent, f"is in use by the seeder with process id {pid}") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _lock(descriptor: int) -> None:
    """Lock a file for this process alone.

    Raises:
        BlockingIOError: another one has locked it so.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # What can be shared is only looked at by `holder`, which is about to let go of it.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
        else:
            return
