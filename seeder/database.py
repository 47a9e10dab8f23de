# SPDX-License-Identifier: GPL-3.0-or-later
"""The SQLite file of a state directory, and the lock that one process holds on the directory."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from narswarm.errors import BusyError, InvalidInputError

_PATIENCE = 1.0
"""Seconds to wait for those who only look whether the directory is held."""
_PAUSE = 0.01


class Database:
    """A connection that threads share.

    Args:
        path: made if it isn't there.
        schema: what makes an empty database one of VERSION.
        version: of the schema.
        upgrades: what makes a database of a version one of the next.

    Raises:
        InvalidInputError: it is of a later version, or no such database at all.
    """

    def __init__(self, path: Path, schema: str, version: int, upgrades: Mapping[int, str]) -> None:
        self.mutex = threading.RLock()
        try:
            db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5.0)
        except sqlite3.Error as error:
            raise InvalidInputError(path, f"can't be opened: {error}") from None
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA foreign_keys = ON")
            (found,) = db.execute("PRAGMA user_version").fetchone()
            if found == 0:
                db.executescript(f"BEGIN; {schema} PRAGMA user_version = {version}; COMMIT;")
                found = version
            while found in upgrades:
                step = f"{upgrades[found]} PRAGMA user_version = {found + 1};"
                db.executescript(f"BEGIN; {step} COMMIT;")
                found += 1
            if found != version:
                raise InvalidInputError(path, f"is of version {found}, not {version}")
        except sqlite3.Error as error:
            db.close()
            raise InvalidInputError(path, f"is not a database of a seeder: {error}") from None
        except BaseException:
            db.close()
            raise
        self._db = db

    def close(self) -> None:
        """Close it; nothing can be asked any more."""
        with self.mutex:
            self._db.close()

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of an answer."""
        with self.mutex:
            return self._db.execute(query, values).fetchall()

    def row(self, query: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """The first row of an answer, if there is one."""
        with self.mutex:
            found: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
            return found

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Change all or nothing."""
        with self.mutex:
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


def hold(path: Path) -> int:
    """Lock a file and write this process's id into it; returns its descriptor.

    Raises:
        BusyError: another process has locked it.
        OSError: it can't be made.
    """
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
