# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of each item that this machine has: one row, and nothing in memory.

A store has a hundred thousand items. What may be offered of them is told to trackers as a list of
NAR hashes, by what changed since the tracker was told last. `held` keeps for each hash when it
last came or went, so that the change since any generation is one query.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from seeder.database import Database
from seeder.inventory import Item

SCHEMA = """
CREATE TABLE items (
    store_path TEXT PRIMARY KEY, ord INTEGER NOT NULL, nar_hash BLOB NOT NULL,
    nar_size INTEGER NOT NULL, status TEXT NOT NULL, tries INTEGER NOT NULL, due REAL NOT NULL,
    narinfo BLOB
);
CREATE INDEX items_hash ON items (nar_hash, status);
CREATE INDEX items_order ON items (ord);
CREATE INDEX items_status ON items (status, due);
CREATE INDEX items_new ON items (ord) WHERE status = 'not looked up yet';
CREATE TABLE held (
    nar_hash BLOB PRIMARY KEY, generation INTEGER NOT NULL, there INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX held_generation ON held (generation);
"""

NEW = "not looked up yet"
OFFERED = "offered"
NOT_VOUCHED = "not vouched for"
WITHDRAWN = "withdrawn"
EXCLUDED = "excluded"
UNREADABLE = "unreadable"

DAY = 86_400.0
LONGEST_WAIT = DAY
"""Seconds between two look-ups of an item at most; what is due later was noted by a wrong clock."""

PAGE = 500
_KNOWN = "ord, store_path, nar_hash, nar_size, status, narinfo"
_KEPT = 100_000
"""Hashes that went away and are remembered, so that trackers can be told by what changed."""


class Scope(StrEnum):
    """Which offered items are held."""

    ALL = "all"
    MADE = "made"
    """Those that have a payload, on a machine that can make none."""
    NONE = "none"


class Known(NamedTuple):
    """What is known of an item.

    Attributes:
        item: as the inventory has it.
        status: `OFFERED`, or why it isn't offered.
        narinfo: the signed narinfo that vouches for it, with absolute URLs; empty without one.
    """

    item: Item
    status: str
    narinfo: bytes


class Change(NamedTuple):
    """How holdings differ from those of a generation.

    Attributes:
        base: the generation that it applies to, 0 for a complete list.
        generation: what it makes.
        added: NAR hashes of 32 bytes, sorted, concatenated.
        removed: the same.
    """

    base: int
    generation: int
    added: bytes
    removed: bytes


class ItemTable:
    """The items of the inventory.

    Args:
        db: with `SCHEMA`.
        clock: seconds since the epoch.
    """

    def __init__(self, db: Database, clock: Callable[[], float] = time.time) -> None:
        self._db = db
        self._clock = clock

    # What there is

    def __len__(self) -> int:
        return self._count("SELECT count(*) FROM items")

    def last(self) -> int:
        """The order of the newest item, 0 without items."""
        return self._count("SELECT coalesce(max(ord), 0) FROM items")

    def statuses(self) -> dict[str, int]:
        """How many items there are, by status."""
        return dict(self._db.rows("SELECT status, count(*) FROM items GROUP BY status"))

    def find(self, store_path: str) -> Known | None:
        """An item by its path."""
        return self._known("store_path = ?", store_path)

    def of(self, nar_hash: bytes) -> Known | None:
        """An item that has this NAR and is offered, else one that has it and isn't."""
        order = f"nar_hash = ? ORDER BY status = '{OFFERED}' DESC LIMIT 1"
        return self._known(order, nar_hash)

    def _known(self, condition: str, value: object) -> Known | None:
        row = self._db.row(
            f"SELECT {_KNOWN} FROM items WHERE {condition}",  # noqa: S608
            (value,),
        )
        return None if row is None else Known(Item(*row[:4]), row[4], _unpack(row[5]))

    def pages(self, status: str | None = None) -> Iterator[list[Known]]:
        """All items, or those of a status, some hundreds at a time, also while they change."""
        last = ""
        while True:
            rows = self._db.rows(
                f"SELECT {_KNOWN} FROM items WHERE store_path > ?"  # noqa: S608
                " AND (? IS NULL OR status = ?) ORDER BY store_path LIMIT ?",
                (last, status, status, PAGE),
            )
            if not rows:
                return
            yield [Known(Item(*row[:4]), row[4], _unpack(row[5])) for row in rows]
            last = rows[-1][1]

    # How they come and go

    def add(self, items: Iterable[tuple[Item, str]]) -> None:
        """Note new items, or other ones under old paths, with their statuses."""
        with self._db.transaction() as db:
            db.executemany(
                "INSERT INTO items VALUES (?, ?, ?, ?, ?, 0, 0, NULL)"
                " ON CONFLICT (store_path) DO UPDATE SET ord = excluded.ord,"
                " nar_hash = excluded.nar_hash, nar_size = excluded.nar_size,"
                " status = CASE WHEN nar_hash = excluded.nar_hash OR status = ? THEN status"
                " ELSE excluded.status END",
                [
                    (item.store_path, item.order, item.nar_hash, item.nar_size, status, WITHDRAWN)
                    for item, status in items
                ],
            )

    def keep(self, store_paths: Iterable[str]) -> int:
        """Forget all items but these; returns how many those were."""
        with self._db.transaction() as db:
            db.execute("CREATE TEMP TABLE there (store_path TEXT PRIMARY KEY) WITHOUT ROWID")
            try:
                db.executemany(
                    "INSERT OR IGNORE INTO there VALUES (?)", ((path,) for path in store_paths)
                )
                gone = db.execute(
                    "DELETE FROM items WHERE store_path NOT IN (SELECT store_path FROM there)"
                ).rowcount
            finally:
                db.execute("DROP TABLE there")
        return int(gone)

    def remove(self, store_path: str) -> None:
        """Forget an item that is gone."""
        with self._db.transaction() as db:
            db.execute("DELETE FROM items WHERE store_path = ?", (store_path,))

    # What may be offered

    def pending(self, limit: int) -> list[Item]:
        """Items to look up now: new ones first, the newest of them first."""
        now = self._clock()
        columns = "SELECT ord, store_path, nar_hash, nar_size FROM items"
        rows = self._db.rows(
            # Not a parameter, so that SQLite sees which index is the one to use.
            f"{columns} WHERE status = '{NEW}' ORDER BY ord DESC LIMIT ?",
            (limit,),
        )
        if len(rows) < limit:
            rows += self._db.rows(
                f"{columns} WHERE status IN (?, ?) AND (due <= ? OR due > ?) ORDER BY due LIMIT ?",
                (NOT_VOUCHED, UNREADABLE, now, now + 2 * LONGEST_WAIT, limit - len(rows)),
            )
        return [Item(*row) for row in rows]

    def vouched(self, found: Iterable[tuple[Item, bytes]]) -> None:
        """Offer items, each with the narinfo that vouches for it."""
        with self._db.transaction() as db:
            db.executemany(
                "UPDATE items SET status = ?, tries = 0, due = 0, narinfo = ?"
                " WHERE store_path = ? AND nar_hash = ? AND status != ?",
                [
                    (OFFERED, zlib.compress(raw), item.store_path, item.nar_hash, WITHDRAWN)
                    for item, raw in found
                ],
            )

    def missed(self, items: Iterable[Item], reason: str, first: float) -> None:
        """Note why items aren't offered, and double the time until they are looked up again.

        Args:
            items: which.
            reason: `NOT_VOUCHED` or `UNREADABLE`.
            first: seconds until the second look-up.
        """
        now = self._clock()
        with self._db.transaction() as db:
            db.executemany(
                "UPDATE items SET status = ?, narinfo = NULL, tries = tries + 1,"
                " due = ? + min(?, ? * (1 << min(tries, 30))) WHERE store_path = ?",
                [(reason, now, LONGEST_WAIT, first, item.store_path) for item in items],
            )

    def mark(self, store_paths: Collection[str], status: str) -> None:
        """Give items another status; what is looked up is so at once."""
        with self._db.transaction() as db:
            db.executemany(
                "UPDATE items SET status = ?, tries = 0, due = 0 WHERE store_path = ?",
                [(status, path) for path in store_paths],
            )

    def hurry(self) -> None:
        """Look up at once again whatever nobody vouched for."""
        with self._db.transaction() as db:
            db.execute("UPDATE items SET tries = 0, due = 0 WHERE status = ?", (NOT_VOUCHED,))

    # What trackers are told

    def sync(self, scope: Scope = Scope.ALL) -> bool:
        """Bring the holdings up to date; whether they changed."""
        offered = f"status = '{OFFERED}'"
        if scope is Scope.MADE:
            offered += (
                " AND EXISTS (SELECT 1 FROM nars WHERE nar_hash = items.nar_hash AND present)"
            )
        elif scope is Scope.NONE:
            offered += " AND 0"
        with self._db.transaction() as db:
            generation = self.generation() + 1
            # In the order of hashes, by an index that has all it takes: in any other order each row
            # would be on another page, and a cache of 2 MB would be written out again and again.
            changed = db.execute(
                "INSERT INTO held SELECT nar_hash, ?, 1 FROM items INDEXED BY items_hash"  # noqa: S608
                f" WHERE {offered} AND NOT EXISTS"
                " (SELECT 1 FROM held WHERE nar_hash = items.nar_hash AND there) GROUP BY nar_hash"
                " ON CONFLICT (nar_hash) DO UPDATE SET generation = excluded.generation, there = 1",
                (generation,),
            ).rowcount
            changed += db.execute(
                "UPDATE held SET there = 0, generation = ? WHERE there AND NOT EXISTS"  # noqa: S608
                f" (SELECT 1 FROM items WHERE nar_hash = held.nar_hash AND {offered})",
                (generation,),
            ).rowcount
            if not changed:
                return False
            db.execute("INSERT OR REPLACE INTO notes VALUES ('generation', ?)", (str(generation),))
            self._forget(generation)
        return True

    def _forget(self, generation: int) -> None:
        """Keep the list of what is gone short; whoever was told before then is told all."""
        if self._count("SELECT count(*) FROM held WHERE NOT there") > _KEPT:
            with self._db.mutex:
                self._db.rows("DELETE FROM held WHERE NOT there AND generation < ?", (generation,))
                self._db.rows(
                    "INSERT OR REPLACE INTO notes VALUES ('horizon', ?)", (str(generation),)
                )

    def generation(self) -> int:
        """The generation of the holdings.

        It begins with the time at which the state was made, so that a new state's isn't taken for
        that of an older one.
        """
        found = self._note("generation")
        return int(self._clock()) if found is None else found

    def change(self, base: int) -> Change:
        """What a tracker has to be told that has the holdings of a generation.

        Args:
            base: the generation, 0 if it has none.
        """
        with self._db.mutex:
            generation = self.generation()
            if not 0 < base <= generation or base < (self._note("horizon") or 0):
                base = 0
            return Change(
                base,
                generation,
                self._hashes("there AND generation > ?", base),
                self._hashes("NOT there AND generation > ?", base) if base else b"",
            )

    def held(self) -> int:
        """How many NARs are held."""
        return self._count("SELECT count(*) FROM held WHERE there")

    def _hashes(self, condition: str, value: object) -> bytes:
        packed = bytearray()
        with self._db.transaction() as db:
            query = f"SELECT nar_hash FROM held WHERE {condition} ORDER BY nar_hash"  # noqa: S608
            for (nar_hash,) in db.execute(query, (value,)):
                packed += nar_hash
        return bytes(packed)

    def _note(self, name: str) -> int | None:
        row = self._db.row("SELECT value FROM notes WHERE name = ?", (name,))
        return None if row is None else int(row[0])

    def _count(self, query: str) -> int:
        row = self._db.row(query)
        return 0 if row is None else int(row[0])


def _unpack(packed: bytes | None) -> bytes:
    return zlib.decompress(packed) if packed else b""
