# SPDX-License-Identifier: GPL-3.0-or-later
"""Items as people look at them: what is offered, what isn't and why, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from seeder.database import Database
from seeder.items import OFFERED

PAGE: Final = 500
"""Items that are read at a time, so that nobody waits for a look at all of them."""

_QUERY: Final = (
    "SELECT items.store_path, nar_hash, items.nar_size, status, coalesce(present, 0),"
    " coalesce(infohash, ''), coalesce(length, 0), coalesce(uploaded, 0),"
    " coalesce(requests, 0), coalesce(others, -1) FROM items LEFT JOIN nars USING (nar_hash)"
)


class Listed(NamedTuple):
    """An item, for people.

    Attributes:
        store_path: absolute.
        nar_hash: SHA-256, 32 bytes.
        nar_size: bytes.
        status: "offered", or why it isn't.
        present: whether there is a payload now.
        infohash: hex, empty if no payload was ever made.
        length: bytes of the payload, 0 if none was ever made.
        uploaded: bytes sent of it.
        requests: how often it was wanted.
        others: seeds besides this one, -1 if that isn't known.
    """

    store_path: str
    nar_hash: bytes
    nar_size: int
    status: str
    present: bool
    infohash: str
    length: int
    uploaded: int
    requests: int
    others: int


class Listing:
    """The items of a seeder with what is known of their payloads.

    Args:
        db: of a `seeder.state.State`.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    def items(self, *, offered: bool, page: int = PAGE) -> Iterator[Listed]:
        """Items that are offered, or those that aren't, in the order of paths."""
        after = ""
        while found := self._find(
            "items.store_path > ? AND (status = ?) = ? ORDER BY items.store_path LIMIT ?",
            (after, OFFERED, offered, page),
        ):
            yield from found
            after = found[-1].store_path

    def most_sent(self, limit: int) -> list[Listed]:
        """Items that are offered, those first of which most was sent."""
        return self._find(
            "status = ? ORDER BY coalesce(uploaded, 0) DESC, items.store_path LIMIT ?",
            (OFFERED, limit),
        )

    def _find(self, condition: str, values: tuple[Any, ...]) -> list[Listed]:
        rows = self._db.rows(f"{_QUERY} WHERE {condition}", values)
        return [Listed(*row)._replace(present=bool(row[4])) for row in rows]
