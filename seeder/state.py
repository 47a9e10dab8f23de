# SPDX-License-Identifier: GPL-3.0-or-later
"""What a seeder knows across restarts: a directory that one process holds at a time.

The database has everything that is needed to offer a payload again, so that starting costs no
hashing and no request. It is the truth about the payloads: a file without a row is left over from
a seeder that was killed while it made it, and is removed. A row is written after its file, in one
transaction, so that `kill -9` at any moment leaves either both or neither. Of a payload that had
to make room the row stays, with its torrent, which takes a few kilobytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from narswarm import base32
from narswarm.errors import NotFoundError
from seeder import items, publications, totals
from seeder.database import Database, hold, holder
from seeder.eviction import Payload
from seeder.items import OFFERED, ItemTable
from seeder.listing import Listing
from seeder.publications import PublicationTable
from seeder.totals import Totals

__all__ = ["DATABASE", "Nar", "Offer", "State", "holder"]

VERSION = 3
DATABASE = "state.sqlite"

_SCHEMA = f"""
CREATE TABLE nars (
    nar_hash BLOB PRIMARY KEY, store_path TEXT NOT NULL, nar_size INTEGER NOT NULL,
    payload TEXT NOT NULL, length INTEGER NOT NULL, infohash TEXT NOT NULL,
    torrent BLOB NOT NULL, narinfo BLOB NOT NULL,
    present INTEGER NOT NULL, adopted INTEGER NOT NULL, requests INTEGER NOT NULL,
    uploaded INTEGER NOT NULL, used REAL NOT NULL, others INTEGER NOT NULL
);
{publications.schema("nars")}
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

_UPGRADES = {
    1: "ALTER TABLE nars RENAME TO old; ALTER TABLE publications RENAME TO old_publications;"  # noqa: S608
    "ALTER TABLE notes RENAME TO old_notes; DROP TABLE misses;"
    f"{_SCHEMA}{items.SCHEMA}{totals.SCHEMA}"
    "INSERT INTO nars SELECT *, 1, 1, 0, 0, 0, -1 FROM old;"
    "INSERT INTO publications SELECT * FROM old_publications;"
    "INSERT INTO notes SELECT * FROM old_notes;"
    "DROP TABLE old_publications; DROP TABLE old; DROP TABLE old_notes;",
    2: "DROP INDEX items_hash; CREATE INDEX items_hash ON items (nar_hash, status);",
}


class Nar(NamedTuple):
    """A NAR of which the payload is or was made.

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


_NAR = "nar_hash, store_path, nar_size, payload, length, infohash, torrent, narinfo"


class Offer(NamedTuple):
    """What is needed to seed, without what is only published."""

    nar_hash: bytes
    store_path: str
    payload: str
    length: int
    infohash: str


_OFFER = "nar_hash, store_path, payload, length, infohash"


class State(PublicationTable):
    """The state directory of a seeder.

    Attributes:
        items: what is known of each item.
        listing: the same for people.
        totals: what was sent and received.

    Args:
        directory: made if it isn't there.
        clock: seconds since the epoch.

    Raises:
        BusyError: another process holds it.
        NotFoundError: it can't be made or written.
        InvalidInputError: its database is of another version, or none.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self.payloads = directory / "payloads"
        try:
            self.payloads.mkdir(parents=True, exist_ok=True)
            self._lock = hold(directory / "lock")
        except OSError as error:
            raise NotFoundError(error.filename or directory, error.strerror or str(error)) from None
        try:
            schema = _SCHEMA + items.SCHEMA + totals.SCHEMA
            super().__init__(
                Database(directory / DATABASE, schema, VERSION, _UPGRADES), "nars", "present"
            )
            self.items = ItemTable(self._db, clock)
            self.listing = Listing(self._db)
            self.totals = Totals(self._db)
            self._used = self._sum()
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
        with self._db.mutex:
            if self._lock < 0:
                return
            self._db.close()
            os.close(self._lock)
            self._lock = -1

    # NARs

    def add(self, nar: Nar, trackers: Iterable[str], now: float, *, adopted: bool = False) -> None:
        """Keep a NAR whose payload is complete, and what has to be published of it.

        Args:
            nar: all about it.
            trackers: that it is published to.
            now: seconds since the epoch.
            adopted: the payload came from elsewhere, and stays though no item has this NAR yet.
        """
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO nars VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?, 0, 0, ?, -1)"
                " ON CONFLICT (nar_hash) DO UPDATE SET store_path = excluded.store_path,"
                " payload = excluded.payload, length = excluded.length, narinfo = excluded.narinfo,"
                " infohash = excluded.infohash, torrent = excluded.torrent, present = 1,"
                " adopted = excluded.adopted, used = excluded.used",
                (*nar, adopted, now),
            )
            db.executemany(
                "INSERT OR IGNORE INTO publications VALUES (?, ?, 0, NULL, '')",
                [(nar.nar_hash, tracker) for tracker in trackers],
            )
            self._used = self._sum()

    def evict(self, nar_hash: bytes) -> None:
        """Remove a payload and keep its torrent; in this order, since a row promises a file."""
        with self._db.transaction() as db:
            db.execute("UPDATE nars SET present = 0 WHERE nar_hash = ?", (nar_hash,))
            self._used = self._sum()
        self._unlink(nar_hash)

    def drop(self, nar_hash: bytes) -> None:
        """Forget a NAR and remove its payload; in this order, since a row promises a file."""
        row = self._db.row("SELECT payload FROM nars WHERE nar_hash = ?", (nar_hash,))
        with self._db.transaction() as db:
            db.execute("DELETE FROM nars WHERE nar_hash = ?", (nar_hash,))
            self._used = self._sum()
        if row is not None:
            (self.payloads / row[0]).unlink(missing_ok=True)

    def _unlink(self, nar_hash: bytes) -> None:
        row = self._db.row("SELECT payload FROM nars WHERE nar_hash = ?", (nar_hash,))
        if row is not None:
            (self.payloads / row[0]).unlink(missing_ok=True)

    def offers(self) -> list[Offer]:
        """All NARs with a payload, without their torrents."""
        return [Offer(*row) for row in self._db.rows(f"SELECT {_OFFER} FROM nars WHERE present")]  # noqa: S608

    def get(self, nar_hash: bytes) -> Nar:
        """All about a NAR.

        Raises:
            NotFoundError: no payload of it was ever made.
        """
        row = self._db.row(f"SELECT {_NAR} FROM nars WHERE nar_hash = ?", (nar_hash,))  # noqa: S608
        if row is None:
            raise NotFoundError(base32.encode(nar_hash), "is not offered")
        return Nar(*row)

    def orphans(self) -> list[Offer]:
        """NARs that no item is offered of any more, whether their payload is here or not."""
        # By an index for each NAR, not by a list of all items: there are far more of these.
        offered = f"(SELECT 1 FROM items WHERE nar_hash = nars.nar_hash AND status = '{OFFERED}')"  # noqa: S608
        with self._db.transaction() as db:
            db.execute(f"UPDATE nars SET adopted = 0 WHERE adopted AND EXISTS {offered}")  # noqa: S608
        query = f"SELECT {_OFFER} FROM nars WHERE NOT adopted AND NOT EXISTS {offered}"  # noqa: S608
        return [Offer(*row) for row in self._db.rows(query)]

    def unmade(self, skip: Iterable[bytes]) -> bytes | None:
        """The newest offered NAR without a payload that isn't to be skipped."""
        skipped = set(skip)
        rows = self._db.rows(
            "SELECT items.nar_hash FROM items LEFT JOIN nars USING (nar_hash)"
            " WHERE status = ? AND NOT coalesce(present, 0) ORDER BY ord DESC LIMIT ?",
            (OFFERED, len(skipped) + 1),
        )
        return next((row[0] for row in rows if row[0] not in skipped), None)

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
        return self._used

    def _sum(self) -> int:
        row = self._db.row("SELECT coalesce(sum(length), 0) FROM nars WHERE present")
        return 0 if row is None else int(row[0])

    # How they are used

    def requested(self, nar_hash: bytes, now: float) -> None:
        """Note that somebody wants a NAR."""
        with self._db.transaction() as db:
            db.execute(
                "UPDATE nars SET requests = requests + 1, used = ? WHERE nar_hash = ?",
                (now, nar_hash),
            )

    def sent(self, amounts: Iterable[tuple[bytes, int, int]], now: float) -> None:
        """Note what was sent of NARs, and how many others have all of it.

        Args:
            amounts: NAR hash, bytes since the last call, other seeds or -1.
            now: seconds since the epoch.
        """
        with self._db.transaction() as db:
            db.executemany(
                "UPDATE nars SET uploaded = uploaded + ?, others = ?,"
                " used = CASE WHEN ? > 0 THEN ? ELSE used END WHERE nar_hash = ?",
                [(sent, others, sent, now, nar_hash) for nar_hash, sent, others in amounts],
            )

    def payload_list(self) -> list[Payload]:
        """All payloads, with what says how much they are worth."""
        rows = self._db.rows(
            "SELECT nar_hash, length, requests, uploaded, used, others FROM nars WHERE present"
        )
        return [Payload(*row) for row in rows]

    def sample(self, tracker: str, before: float) -> Offer | None:
        """Any NAR with a payload that a tracker took before a time, None if there is none."""
        nar_hash = self.any_taken(tracker, before)
        query = f"SELECT {_OFFER} FROM nars WHERE nar_hash = ?"  # noqa: S608
        row = None if nar_hash is None else self._db.row(query, (nar_hash,))
        return None if row is None else Offer(*row)

    # Notes

    def note(self, name: str) -> str | None:
        """A text that was kept under a name."""
        row = self._db.row("SELECT value FROM notes WHERE name = ?", (name,))
        return row[0] if row else None

    def set_note(self, name: str, value: str) -> None:
        """Keep a text under a name."""
        with self._db.transaction() as db:
            db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))
