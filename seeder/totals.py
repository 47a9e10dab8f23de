# SPDX-License-Identifier: GPL-3.0-or-later
"""What was sent and received, kept over restarts: in all and by day."""

from __future__ import annotations

from typing import NamedTuple

from seeder.database import Database

SCHEMA = """
CREATE TABLE days (
    start INTEGER PRIMARY KEY, uploaded INTEGER NOT NULL, downloaded INTEGER NOT NULL
);
"""

DAY = 86_400


class Day(NamedTuple):
    """Payload bytes of a day.

    Attributes:
        start: seconds since the epoch at which it began (UTC).
        uploaded: bytes sent.
        downloaded: bytes received.
    """

    start: int
    uploaded: int
    downloaded: int


class Totals:
    """Adds up what a session's counters say; they begin at 0 with each run.

    Args:
        db: with `SCHEMA`.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._seen = (0, 0)

    def count(self, uploaded: int, downloaded: int, now: float) -> None:
        """Take the session's counters.

        Args:
            uploaded: payload bytes sent in this run.
            downloaded: payload bytes received in this run.
            now: seconds since the epoch.
        """
        sent, received = uploaded - self._seen[0], downloaded - self._seen[1]
        if sent <= 0 and received <= 0:
            return
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO days VALUES (?, ?, ?) ON CONFLICT (start) DO UPDATE SET"
                " uploaded = uploaded + excluded.uploaded,"
                " downloaded = downloaded + excluded.downloaded",
                (int(now) // DAY * DAY, max(sent, 0), max(received, 0)),
            )
        self._seen = (uploaded, downloaded)

    def days(self, limit: int = 366) -> list[Day]:
        """The last days on which something moved, the oldest first."""
        rows = self._db.rows("SELECT * FROM days ORDER BY start DESC LIMIT ?", (limit,))
        return [Day(*row) for row in reversed(rows)]

    def total(self) -> tuple[int, int]:
        """Payload bytes sent and received since the state was made."""
        row = self._db.row(
            "SELECT coalesce(sum(uploaded), 0), coalesce(sum(downloaded), 0) FROM days"
        )
        return (0, 0) if row is None else (int(row[0]), int(row[1]))
