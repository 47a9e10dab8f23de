# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.publications, with a small table of NARs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from seeder.database import Database
from seeder.publications import Due, PublicationTable, Published, schema

SCHEMA = f"""
CREATE TABLE things (
    nar_hash BLOB PRIMARY KEY, torrent BLOB NOT NULL, narinfo BLOB NOT NULL, ready INTEGER NOT NULL
);
{schema("things")}
"""
TRACKER, OTHER = "http://t/announce", "http://u/announce"
ONE, TWO = b"1" * 32, b"2" * 32
WEEK = 1000.0


class Things(PublicationTable):
    """NARs that may or may not be ready."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, "things", "ready")
        self._database = database

    def add(self, nar_hash: bytes, *trackers: str) -> None:
        """Have one that is ready, and is published as soon as it can be."""
        with self._database.transaction() as db:
            db.execute("INSERT INTO things VALUES (?, x'01', x'02', 1)", (nar_hash,))
        self.track(trackers)

    def change(self, query: str, nar_hash: bytes) -> None:
        """Change one."""
        with self._database.transaction() as db:
            db.execute(query, (nar_hash,))

    def due_hashes(
        self, tracker: str, now: float, latest: float = WEEK, limit: int = 9
    ) -> list[bytes]:
        """Which are due."""
        return [due.nar_hash for due in self.due(tracker, now, latest, limit)]


@pytest.fixture
def things(tmp_path: Path) -> Iterator[Things]:
    """An empty table."""
    database = Database(tmp_path / "db", SCHEMA, 1, {})
    yield Things(database)
    database.close()


def test_what_is_new_is_due(things: Things) -> None:
    """With all that a tracker needs."""
    things.add(ONE, TRACKER)
    assert things.due(TRACKER, 0, WEEK, 9) == [Due(ONE, b"\x01", b"\x02")]
    assert things.due(OTHER, 0, WEEK, 9) == []


def test_publications_come_due(things: Things) -> None:
    """Published and refused NARs are due again when it was said."""
    things.add(ONE, TRACKER)
    things.published(ONE, TRACKER, 10, 100)
    assert things.due_hashes(TRACKER, 99) == []
    assert things.due_hashes(TRACKER, 100) == [ONE]
    assert things.publications() == [Published(TRACKER, 1, 0, "")]
    things.refused(ONE, TRACKER, 200, "no")
    assert things.due_hashes(TRACKER, 199) == []
    assert things.due_hashes(TRACKER, 200) == [ONE]
    assert things.publications() == [Published(TRACKER, 0, 1, "no")]


def test_a_clock_that_was_wrong(things: Things) -> None:
    """What is due later than it can be is due now."""
    things.add(ONE, TRACKER)
    things.refused(ONE, TRACKER, 200, "no")
    assert things.due_hashes(TRACKER, 50, latest=200) == []
    assert things.due_hashes(TRACKER, 50, latest=199) == [ONE]


def test_what_is_due_longest_comes_first(things: Things) -> None:
    """An item that fails again and again doesn't hold up the others."""
    things.add(ONE, TRACKER)
    things.add(TWO, TRACKER)
    things.refused(ONE, TRACKER, 5, "no")
    assert things.due_hashes(TRACKER, 5) == [TWO, ONE]
    assert things.due_hashes(TRACKER, 5, limit=1) == [TWO]


def test_trackers_may_change(things: Things) -> None:
    """A new tracker gets everything; what was published to the others is remembered."""
    things.add(ONE, "old", "kept")
    things.published(ONE, "kept", 1, 100)
    things.track(["kept", "new"])
    assert things.publications() == [Published("kept", 1, 0, ""), Published("new", 0, 1, "")]
    things.track([])
    assert things.publications() == []


def test_what_is_not_ready_waits(things: Things) -> None:
    """It is neither sent, nor asked about, nor counted as missing; what was told isn't lost."""
    things.add(ONE, TRACKER)
    things.published(ONE, TRACKER, 10, 100)
    things.add(TWO, TRACKER)
    for nar_hash in (ONE, TWO):
        things.change("UPDATE things SET ready = 0 WHERE nar_hash = ?", nar_hash)
    assert things.due_hashes(TRACKER, 200) == []
    assert things.any_taken(TRACKER, 200) is None
    assert things.publications() == [Published(TRACKER, 1, 0, "")]
    things.change("UPDATE things SET ready = 1 WHERE nar_hash = ?", ONE)
    assert things.due_hashes(TRACKER, 200) == [ONE]


def test_what_is_gone_is_nobody_s(things: Things) -> None:
    """Its publications go with it."""
    things.add(ONE, TRACKER)
    things.published(ONE, TRACKER, 10, 100)
    things.change("DELETE FROM things WHERE nar_hash = ?", ONE)
    assert things.publications() == []


def test_what_a_tracker_has(things: Things) -> None:
    """It can be asked about something that it took, and told of it again."""
    things.add(ONE, TRACKER, OTHER)
    assert things.any_taken(TRACKER, WEEK) is None
    things.published(ONE, TRACKER, 10, 500)
    things.refused(ONE, OTHER, 500, "no")
    assert things.any_taken(TRACKER, 10) is None
    assert things.any_taken(TRACKER, 11) == ONE
    assert things.any_taken(OTHER, WEEK) is None
    for tracker in (TRACKER, OTHER):
        things.republish(tracker)
    assert things.due_hashes(TRACKER, 20) == [ONE]
    assert things.due_hashes(OTHER, 20) == []
    things.published(ONE, TRACKER, 10, 500)
    for tracker in (TRACKER, OTHER):
        things.retry(tracker)
    assert things.due_hashes(TRACKER, 20) == []
    assert things.due_hashes(OTHER, 20) == [ONE]
