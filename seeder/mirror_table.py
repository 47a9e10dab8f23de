# SPDX-License-Identifier: GPL-3.0-or-later
"""What is mirrored of substitute servers, across restarts.

It is a database of its own beside `seeder.state`: what a server has needn't be an item of this
machine, one NAR may be here as a payload of profile 1 and as a server's file, and each has its own
quota. A row is written after its file is complete, in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from narswarm import base32
from narswarm.errors import NotFoundError
from seeder import publications
from seeder.database import Database
from seeder.eviction import Payload
from seeder.publications import Due, PublicationTable

VERSION: Final = 1
DATABASE: Final = "mirror.sqlite"

FIRST_RETRY: Final = 60.0
LONGEST_RETRY: Final = 86_400.0

_SCHEMA = f"""
CREATE TABLE files (
    nar_hash BLOB PRIMARY KEY, store_path TEXT NOT NULL, path TEXT NOT NULL, stamp TEXT NOT NULL,
    length INTEGER NOT NULL, infohash TEXT NOT NULL, torrent BLOB NOT NULL, narinfo BLOB NOT NULL,
    requests INTEGER NOT NULL, uploaded INTEGER NOT NULL, used REAL NOT NULL,
    others INTEGER NOT NULL
);
CREATE INDEX files_path ON files (store_path);
{publications.schema("files")}
CREATE TABLE rules (rule TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE failures (
    name TEXT PRIMARY KEY, tries INTEGER NOT NULL, due REAL NOT NULL, message TEXT NOT NULL
) WITHOUT ROWID;
"""


class Mirrored(NamedTuple):
    """A file of a server.

    Attributes:
        nar_hash: SHA-256 of its NAR, 32 bytes.
        store_path: of the item.
        path: absolute if the file is somebody else's and used in place, else a name in the
            mirror's directory.
        stamp: what tells another file in the same place.
        length: bytes.
        infohash: hex, of version 2.
        torrent: the .torrent without trackers.
        narinfo: the signed narinfo that vouches for it, with absolute URLs.
    """

    nar_hash: bytes
    store_path: str
    path: str
    stamp: str
    length: int
    infohash: str
    torrent: bytes
    narinfo: bytes

    @property
    def in_place(self) -> bool:
        """Whether the file is somebody else's."""
        return self.path.startswith("/")


_COLUMNS = "nar_hash, store_path, path, stamp, length, infohash, torrent, narinfo"
_OURS = "path NOT LIKE '/%'"


class MirrorTable(PublicationTable):
    """The files that are mirrored.

    Args:
        directory: of the database.
        clock: seconds since the epoch.

    Raises:
        InvalidInputError: the database is of another version, or none.
    """

    def __init__(self, directory: Path, clock: Callable[[], float]) -> None:
        super().__init__(Database(directory / DATABASE, _SCHEMA, VERSION, {}), "files")
        self._clock = clock

    def close(self) -> None:
        """Nothing can be asked any more."""
        self._db.close()

    # Files

    def add(self, file: Mirrored, trackers: Iterable[str]) -> None:
        """Keep a file that is complete, and what has to be published of it."""
        with self._db.transaction() as db:
            db.execute("DELETE FROM files WHERE nar_hash = ?", (file.nar_hash,))
            db.execute(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?, -1)",
                (*file, self._clock()),
            )
            db.executemany(
                "INSERT INTO publications VALUES (?, ?, 0, NULL, '')",
                [(file.nar_hash, tracker) for tracker in trackers],
            )

    def drop(self, nar_hash: bytes) -> None:
        """Forget a file."""
        with self._db.transaction() as db:
            db.execute("DELETE FROM files WHERE nar_hash = ?", (nar_hash,))

    def all(self) -> list[Mirrored]:
        """All files."""
        return [Mirrored(*row) for row in self._db.rows(f"SELECT {_COLUMNS} FROM files")]  # noqa: S608

    def find(self, nar_hash: bytes) -> Mirrored | None:
        """The file of a NAR, if there is one."""
        query = f"SELECT {_COLUMNS} FROM files WHERE nar_hash = ?"  # noqa: S608
        row = self._db.row(query, (nar_hash,))
        return None if row is None else Mirrored(*row)

    def narinfo(self, store_path: str) -> bytes | None:
        """The narinfo of an item of which there is a file."""
        row = self._db.row("SELECT narinfo FROM files WHERE store_path = ?", (store_path,))
        return None if row is None else bytes(row[0])

    def count(self) -> int:
        """How many files there are."""
        row = self._db.row("SELECT count(*) FROM files")
        return 0 if row is None else int(row[0])

    def used(self) -> int:
        """Bytes of the files that are ours."""
        row = self._db.row(f"SELECT coalesce(sum(length), 0) FROM files WHERE {_OURS}")  # noqa: S608
        return 0 if row is None else int(row[0])

    # What they are worth

    def sent(self, amounts: Iterable[tuple[bytes, int, int]]) -> None:
        """Note what was sent of files, and how many others have all of it; see `State.sent`."""
        now = self._clock()
        with self._db.transaction() as db:
            db.executemany(
                "UPDATE files SET uploaded = uploaded + ?, others = ?,"
                " used = CASE WHEN ? > 0 THEN ? ELSE used END WHERE nar_hash = ?",
                [(sent, others, sent, now, nar_hash) for nar_hash, sent, others in amounts],
            )

    def payloads(self) -> list[Payload]:
        """The files that are ours, with what says how much they are worth."""
        rows = self._db.rows(
            "SELECT nar_hash, length, requests, uploaded, used, others FROM files"  # noqa: S608
            f" WHERE {_OURS}"
        )
        return [Payload(*row) for row in rows]

    # Publications

    def get(self, nar_hash: bytes) -> Due:
        """What is published of a file.

        Raises:
            NotFoundError: there is none of this NAR.
        """
        found = self.find(nar_hash)
        if found is None:
            raise NotFoundError(base32.encode(nar_hash), "is not mirrored")
        return Due(found.nar_hash, found.torrent, found.narinfo)

    def sample(self, tracker: str, before: float) -> Mirrored | None:
        """Any file that a tracker took before a time, None if there is none."""
        nar_hash = self.any_taken(tracker, before)
        return None if nar_hash is None else self.find(nar_hash)

    # Rules that came by command

    def rules(self) -> list[str]:
        """All of them."""
        return [row[0] for row in self._db.rows("SELECT rule FROM rules ORDER BY rule")]

    def set_rule(self, rule: str, *, there: bool) -> bool:
        """Add or remove one; whether that changed anything."""
        query = (
            "INSERT OR IGNORE INTO rules VALUES (?)"
            if there
            else "DELETE FROM rules WHERE rule = ?"
        )
        with self._db.transaction() as db:
            return db.execute(query, (rule,)).rowcount > 0

    # What failed

    def failed(self, name: str, message: str, at_least: float = 0.0) -> None:
        """Leave a file or a server alone for twice as long as after the last time.

        Args:
            name: its URL.
            message: what happened.
            at_least: seconds that the server asked for.
        """
        now = self._clock()
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO failures VALUES (?, 1, ?, ?) ON CONFLICT (name) DO UPDATE SET"
                " tries = tries + 1, message = excluded.message,"
                " due = ? + max(?, min(?, ? * (1 << min(tries, 30))))",
                (
                    *(name, now + max(at_least, FIRST_RETRY), message),
                    *(now, at_least, LONGEST_RETRY, FIRST_RETRY),
                ),
            )

    def succeeded(self, name: str) -> None:
        """It went well, after failures maybe."""
        with self._db.transaction() as db:
            db.execute("DELETE FROM failures WHERE name = ?", (name,))

    def is_open(self, name: str) -> bool:
        """Whether a file or a server isn't left alone now."""
        now = self._clock()
        row = self._db.row("SELECT due FROM failures WHERE name = ?", (name,))
        # What is later than it can be was noted by a wrong clock.
        return row is None or not 0 < row[0] - now <= 2 * LONGEST_RETRY

    def failures(self) -> list[str]:
        """What failed, and why; the latest ones first."""
        rows = self._db.rows("SELECT name, message FROM failures ORDER BY due DESC LIMIT 20")
        return [f"{name}: {message}" for name, message in rows]
