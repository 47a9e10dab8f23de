# SPDX-License-Identifier: GPL-3.0-or-later
"""What people look for in the index: by name, path or hash, what is new, and all about one NAR.

Everything is read on a connection that `Index.reading` gives, so nothing here holds up announces
or publications, and each question has a bound: so many rows, or so much time. What nobody vouches
for, or what is blocked, isn't found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from narswarm import narinfo
from tracker.claims import IndexedTorrent, ranked
from tracker.database import Connection
from tracker.wire_http import HASH_BYTES

SLICE: Final = 20_000
"""Names that are looked at before the time is."""

MAX_PATHS: Final = 20
"""Narinfos of one NAR that are shown."""

MAX_CLAIMS: Final = 8
"""Publishers of one torrent that are named."""

_AFTER_ALL: Final = "~"
"""Sorts after every character that a name may have."""

_NAME = re.compile(r"[a-z0-9+._?=-]+")
_CURSOR = re.compile(r"([01])([0-9]{1,18})\.([a-z0-9]{0,32})-([a-z0-9+._?=-]{0,211})")


class Listed(NamedTuple):
    """A store item as lists show it.

    Attributes:
        nar_hash: 32 bytes.
        nar_size: bytes.
        store_path: of the item.
        added: when its narinfo came, in seconds since the epoch.
        torrents: those of its NAR that somebody claims, the best first.
    """

    nar_hash: bytes
    nar_size: int
    store_path: str
    added: int
    torrents: tuple[IndexedTorrent, ...]


class Vouched(NamedTuple):
    """A narinfo that vouches for a NAR.

    Attributes:
        store_path: of the item.
        references: base names of the items that it refers to.
        signer: the canonical public key that signed it.
        added: when it came, in seconds since the epoch.
        raw: its text.
    """

    store_path: str
    references: tuple[str, ...]
    signer: bytes
    added: int
    raw: bytes


class Claim(NamedTuple):
    """Who says that a torrent carries a NAR: a key of 32 bytes, and since when."""

    publisher: bytes
    added: int


class Claimed(NamedTuple):
    """A torrent of a NAR, when it came, and the first who claimed it."""

    torrent: IndexedTorrent
    added: int
    claims: tuple[Claim, ...]


class Details(NamedTuple):
    """All that is known about a NAR."""

    nar_size: int
    narinfos: tuple[Vouched, ...]
    torrents: tuple[Claimed, ...]


class Cursor(NamedTuple):
    """Where a search by name goes on: after this name, hash part and row of a NAR.

    Attributes:
        late: whether those that begin with the first word are through.
    """

    late: bool
    name: str
    hash_part: str
    nar: int

    def __str__(self) -> str:
        return f"{int(self.late)}{self.nar}.{self.hash_part}-{self.name}"


class NamePage(NamedTuple):
    """Some of the items that were looked for.

    Attributes:
        items: in the order of their names, those that begin with the first word before others.
        following: where the next page begins, or nothing.
        in_time: whether the page ended before the time did.
    """

    items: list[Listed]
    following: Cursor | None
    in_time: bool


class Swarm(NamedTuple):
    """A torrent's NAR, as a row, and the infohashes by which it is announced, 20 bytes each."""

    nar: int
    info_hashes: tuple[bytes, bytes]


def parse_cursor(text: str) -> Cursor | None:
    """Read where a search goes on; what isn't one is the beginning."""
    match = _CURSOR.fullmatch(text)
    return Cursor(match[1] == "1", match[4], match[3], int(match[2])) if match else None


def find_names(
    connection: Connection,
    words: Sequence[str],
    after: Cursor | None,
    limit: int,
    out_of_time: Callable[[], bool],
) -> NamePage:
    """Find store items whose name has all of some words in it, in any case.

    Args:
        connection: the database.
        words: at least one, in small letters.
        after: where to go on, or nothing.
        limit: items of a page.
        out_of_time: whether to leave the rest to the next page.
    """
    if not all(_NAME.fullmatch(word) for word in words):
        return NamePage([], None, in_time=True)  # no name has such characters
    first = words[0]
    start = after or Cursor(False, first, "", 0)
    items: list[Listed] = []
    while True:
        stop = _AFTER_ALL if start.late else first + _AFTER_ALL
        end = connection.execute(
            "SELECT name, hash_part, nar FROM narinfos"
            " WHERE (name, hash_part, nar) > (?, ?, ?) AND name < ?"
            " ORDER BY name, hash_part, nar LIMIT 1 OFFSET ?",
            (*start[1:], stop, SLICE - 1),
        ).fetchone()
        # One more than is needed, so that the last page is known to be it.
        wanted = limit + 1 - len(items)
        rows = _matches(connection, words, start, end or (stop, "", 0), wanted)
        for name, hash_part, nar in rows:
            if len(items) == limit:
                return NamePage(items, start, in_time=True)
            items.extend(_listed(connection, nar, hash_part))
            start = Cursor(start.late, name, hash_part, nar)
            if out_of_time():
                return NamePage(items, start, in_time=False)
        if len(rows) < wanted:
            if end is not None:
                start = Cursor(start.late, *end)
            elif start.late:
                return NamePage(items, None, in_time=True)
            else:
                start = Cursor(True, "", "", 0)
        if out_of_time():
            return NamePage(items, start, in_time=False)


def _matches(
    connection: Connection,
    words: Sequence[str],
    start: Cursor,
    end: Sequence[object],
    limit: int,
) -> list[tuple[str, str, int]]:
    """Name, hash part and NAR of items with all words, from behind one place up to another."""
    patterns = [f"%{_literal(word)}%" for word in words]
    conditions = " AND name LIKE ? ESCAPE '!'" * len(patterns)
    if start.late:
        conditions += " AND name NOT LIKE ? ESCAPE '!'"
        patterns.append(f"{_literal(words[0])}%")
    rows = connection.execute(
        "SELECT DISTINCT name, hash_part, nar FROM narinfos"  # noqa: S608 - only placeholders
        " WHERE (name, hash_part, nar) > (?, ?, ?) AND (name, hash_part, nar) <= (?, ?, ?)"
        f"{conditions} ORDER BY name, hash_part, nar LIMIT ?",
        (*start[1:], *end, *patterns, limit),
    )
    return rows.fetchall()


def _literal(word: str) -> str:
    """A word as LIKE takes it as it is; names have no percent sign."""
    return word.replace("_", "!_")


def find_nar(connection: Connection, nar_hash: bytes) -> list[Listed]:
    """The NAR with a hash of 32 bytes, if it is there."""
    rows = connection.execute("SELECT id FROM nars WHERE nar_hash = ?", (nar_hash,))
    return _all(connection, rows)


def find_hash_part(connection: Connection, hash_part: str) -> list[Listed]:
    """The NARs of a store item, by the 32 digits before its name; usually one."""
    rows = connection.execute(
        "SELECT DISTINCT nar FROM narinfos WHERE hash_part = ? LIMIT ?", (hash_part, MAX_PATHS)
    )
    return _all(connection, rows, hash_part)


def find_infohash(connection: Connection, infohash: bytes) -> list[Listed]:
    """The NAR of a torrent, by its infohash v1 (20 bytes), v2 (32), or the first 20 of that."""
    rows = connection.execute(
        "SELECT nar FROM torrents WHERE infohash_v1 = ?"
        " UNION SELECT nar FROM torrents WHERE infohash_v2 >= ? AND infohash_v2 <= ? LIMIT ?",
        (infohash, infohash, infohash.ljust(32, b"\xff"), MAX_PATHS),
    )
    return _all(connection, rows)


def recent(connection: Connection, limit: int) -> list[Listed]:
    """The NARs that were added last, the newest first; of twice as many, those that are visible."""
    rows = connection.execute(
        "SELECT id FROM nars ORDER BY id DESC LIMIT ?", (2 * limit,)
    ).fetchall()
    return _all(connection, rows)[:limit]


def describe(connection: Connection, nars: Iterable[int]) -> list[Listed]:
    """The NARs of some rows, in their order; those that aren't visible are left out."""
    return _all(connection, ((nar,) for nar in nars))


def _all(
    connection: Connection, rows: Iterable[tuple[int]], hash_part: str | None = None
) -> list[Listed]:
    return [item for (nar,) in list(rows) for item in _listed(connection, nar, hash_part)]


def _listed(connection: Connection, nar: int, hash_part: str | None = None) -> list[Listed]:
    """One NAR with its oldest narinfo, or that of a store item; nothing if it isn't visible."""
    found = connection.execute(
        "SELECT nar_hash, nar_size, raw, narinfos.added FROM nars"
        " JOIN narinfos ON narinfos.nar = nars.id JOIN vouched ON narinfo = narinfos.rowid"
        " WHERE nars.id = ? AND (hash_part = ? OR ?)"
        " ORDER BY narinfos.added, narinfos.rowid LIMIT 1",
        (nar, hash_part or "", hash_part is None),
    ).fetchone()
    torrents = tuple(torrent for torrent in ranked(connection, nar) if torrent.publishers)
    if found is None or not torrents:
        return []
    nar_hash, nar_size, raw, added = found
    store_path = narinfo.parse(bytes(raw)).store_path
    return [Listed(bytes(nar_hash), nar_size, store_path, added, torrents)]


def details(connection: Connection, nar_hash: bytes) -> Details | None:
    """All about the NAR with a hash of 32 bytes, or nothing."""
    found = connection.execute(
        "SELECT id, nar_size FROM nars WHERE nar_hash = ?", (nar_hash,)
    ).fetchone()
    if found is None:
        return None
    nar, nar_size = found
    rows = connection.execute(
        "SELECT raw, key, narinfos.added FROM narinfos"
        " JOIN vouched ON narinfo = narinfos.rowid JOIN signers ON signers.id = signer"
        " WHERE narinfos.nar = ? ORDER BY narinfos.added, narinfos.rowid LIMIT ?",
        (nar, MAX_PATHS),
    ).fetchall()
    torrents = [torrent for torrent in ranked(connection, nar) if torrent.publishers]
    if not rows or not torrents:
        return None
    return Details(
        nar_size,
        tuple(_vouched(bytes(raw), bytes(key), added) for raw, key, added in rows),
        tuple(_claimed(connection, torrent) for torrent in torrents),
    )


def _vouched(raw: bytes, signer: bytes, added: int) -> Vouched:
    info = narinfo.parse(raw)
    return Vouched(info.store_path, info.references, signer, added, raw)


def _claimed(connection: Connection, torrent: IndexedTorrent) -> Claimed:
    (added,) = connection.execute(
        "SELECT added FROM torrents WHERE id = ?", (torrent.row,)
    ).fetchone()
    rows = connection.execute(
        "SELECT claims.publisher, claims.added FROM claims JOIN support"
        " ON support.torrent = claims.torrent AND support.publisher = claims.publisher"
        " WHERE claims.torrent = ? ORDER BY claims.added, claims.publisher LIMIT ?",
        (torrent.row, MAX_CLAIMS),
    )
    claims = tuple(Claim(bytes(publisher), since) for publisher, since in rows)
    return Claimed(torrent, added, claims)


def newest_swarms(connection: Connection, limit: int) -> list[Swarm]:
    """The swarms of so many newest torrents, without those that aren't visible."""
    rows = connection.execute(
        "SELECT nar, infohash_v1, infohash_v2 FROM ("
        "SELECT id, nar, infohash_v1, infohash_v2 FROM torrents ORDER BY id DESC LIMIT ?"
        ") AS newest"
        " WHERE EXISTS (SELECT 1 FROM vouched WHERE vouched.nar = newest.nar)"
        " AND EXISTS (SELECT 1 FROM support WHERE support.torrent = newest.id)"
        " ORDER BY id DESC",
        (limit,),
    )
    return [Swarm(nar, (bytes(v2[:HASH_BYTES]), bytes(v1))) for nar, v1, v2 in rows]
