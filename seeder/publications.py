# SPDX-License-Identifier: GPL-3.0-or-later
"""What trackers have been told of NARs, and what they have to be told, across restarts.

Whoever keeps NARs in a table keeps beside it a row for each NAR and tracker, which goes with the
NAR. `seeder.publish` asks for what is due, and says what became of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from seeder.database import Database


def schema(table: str) -> str:
    """The SQL that makes the table of publications.

    Args:
        table: of the NARs, with their `nar_hash` as its key.
    """
    return f"""CREATE TABLE publications (
    nar_hash BLOB NOT NULL REFERENCES {table} ON DELETE CASCADE, tracker TEXT NOT NULL,
    due REAL NOT NULL, published REAL, message TEXT NOT NULL, PRIMARY KEY (nar_hash, tracker)
) WITHOUT ROWID;"""


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
        pending: NARs with a payload that it hasn't.
        message: why not, the most recent reason.
    """

    tracker: str
    published: int
    pending: int
    message: str


class PublicationTable:
    """The publications of those who inherit from it.

    Args:
        db: with what `schema` makes.
        table: of the NARs, which has their `torrent` and `narinfo`.
        ready: SQL that says which of them can be published now.
    """

    def __init__(self, db: Database, table: str, ready: str = "1") -> None:
        self._db = db
        self._table = table
        self._ready = ready
        self._joined = f"FROM publications JOIN {table} USING (nar_hash)"

    def track(self, trackers: Iterable[str]) -> None:
        """Have all NARs published to TRACKERS and to no others."""
        with self._db.transaction() as db:
            wanted = list(trackers)
            marks = ", ".join("?" * len(wanted))
            db.execute(f"DELETE FROM publications WHERE tracker NOT IN ({marks})", wanted)  # noqa: S608
            for tracker in wanted:
                db.execute(
                    "INSERT OR IGNORE INTO publications"  # noqa: S608
                    f" SELECT nar_hash, ?, 0, NULL, '' FROM {self._table}",
                    (tracker,),
                )

    def due(self, tracker: str, now: float, latest: float, limit: int) -> list[Due]:
        """What is to be published to a tracker now, longest due first.

        Args:
            tracker: its announce URL.
            now: seconds since the epoch.
            latest: what is due after it was noted by a clock that was wrong.
            limit: how many at most.
        """
        rows = self._db.rows(
            f"SELECT nar_hash, torrent, narinfo {self._joined} WHERE tracker = ?"
            f" AND (due <= ? OR due > ?) AND {self._ready} ORDER BY due LIMIT ?",
            (tracker, now, latest, limit),
        )
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
        with self._db.transaction() as db:
            db.execute(
                "UPDATE publications SET due = ?, published = ?, message = ?"
                " WHERE nar_hash = ? AND tracker = ?",
                (due, published, message, nar_hash, tracker),
            )

    def any_taken(self, tracker: str, before: float) -> bytes | None:
        """The hash of any NAR that a tracker took before a time, None if there is none."""
        row = self._db.row(
            f"SELECT nar_hash {self._joined} WHERE tracker = ? AND published < ?"
            f" AND {self._ready} ORDER BY random() LIMIT 1",
            (tracker, before),
        )
        return None if row is None else bytes(row[0])

    def republish(self, tracker: str) -> None:
        """Have a tracker told again at once of what it took."""
        self._hurry(tracker, "published IS NOT NULL")

    def retry(self, tracker: str) -> None:
        """Have a tracker told at once of what it didn't take."""
        self._hurry(tracker, "published IS NULL")

    def _hurry(self, tracker: str, which: str) -> None:
        with self._db.transaction() as db:
            db.execute(
                f"UPDATE publications SET due = 0 WHERE tracker = ? AND {which}",  # noqa: S608
                (tracker,),
            )

    def publications(self) -> list[Published]:
        """How publishing stands, for each tracker."""
        rows = self._db.rows(
            "SELECT tracker, count(published),"
            f" coalesce(sum({self._ready} AND published IS NULL), 0),"
            " coalesce(max(CASE WHEN published IS NULL THEN message END), '')"
            f" {self._joined} GROUP BY tracker ORDER BY tracker"
        )
        return [Published(*row) for row in rows]
