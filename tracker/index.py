# SPDX-License-Identifier: GPL-3.0-or-later
"""The index: which torrents are known for a NAR, who claims them, and the narinfos that vouch.

It is a database, of SQLite or PostgreSQL: what was answered with success survives a kill, and a
kill in the middle of a publication leaves nothing of it. The infohashes that may be tracked are in
memory as well, as every announce asks for one; of what others write, only the changes are read.
What a publication writes is in `tracker.claims`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from narswarm.errors import BusyError, InvalidInputError, NarswarmError
from tracker import blocks, claims, database
from tracker.blocks import BlockList
from tracker.claims import IndexedTorrent
from tracker.database import Change, Connection, DatabaseError, Place, failing_as_ours
from tracker.publication import Publication
from tracker.wire_http import HASH_BYTES

_READER_SECONDS = 2.0
"""How long one that only reads waits for another."""


class IndexFullError(NarswarmError):
    """There is no room for another publication."""


class IndexedNar(NamedTuple):
    """A NAR of which torrents are known, the best torrent first."""

    nar_size: int
    torrents: tuple[IndexedTorrent, ...]

    @property
    def wire_hashes(self) -> list[bytes]:
        """The infohashes under which clients announce any of them, 20 bytes each."""
        return [info_hash for torrent in self.torrents for info_hash in torrent.wire_hashes]


class Totals(NamedTuple):
    """The index in numbers.

    Attributes:
        nars: NARs.
        torrents: torrents.
        narinfos: narinfos.
        blocks: blocks.
        info_hashes: infohashes that may be tracked.
        size: bytes of the database.
    """

    nars: int
    torrents: int
    narinfos: int
    blocks: int
    info_hashes: int
    size: int


class ListWatcher(Protocol):
    """Who has a list of its own of what may be tracked; it is told at once."""

    def replace_listed(self, info_hashes: Collection[bytes]) -> None:
        """The infohashes, 20 bytes each, are these now."""

    def change_listed(self, added: Collection[bytes], removed: Collection[bytes]) -> None:
        """These came, and those went."""


class Index:
    """The index in a database. Its methods may be called from any thread.

    Each may raise `DatabaseError`; then nothing of what it should have written was.

    Args:
        place: where the database is or will be.
        max_bytes: how large it may grow, or None.

    Raises:
        SettingsError: the place can't be used.
        InvalidInputError: what is there isn't an index of this version.
    """

    def __init__(self, place: Place, *, max_bytes: int | None = None) -> None:
        self._lock = threading.Lock()
        self._place = place
        self._reading = threading.Lock()
        self._reader: Connection | None = None
        self._connection = database.connect(place, create=True, max_bytes=max_bytes)
        self._unfollow: Callable[[], None] = lambda: None
        self._listed: set[bytes] = set()
        self._watcher: ListWatcher | None = None
        self._seen_version = 0
        self.blocks = BlockList()
        """What announces have to be asked about beside whether they are listed."""
        try:
            with self._use() as connection:
                self._relist(connection)
        except DatabaseError as error:
            self._connection.close()
            reason = f"is not a usable index: {error.reason}"
            raise InvalidInputError(self._connection.name, reason) from error

    def close(self) -> None:
        """Let go of the database."""
        self._unfollow()
        with self._lock:
            self._connection.close()
        with self._reading:
            if self._reader is not None:
                self._reader.close()

    def follow(self, callback: Callable[[], None]) -> None:
        """Call back, from another thread, when somebody else wrote something to be refreshed."""
        self._unfollow = self._connection.follow(callback)

    @contextmanager
    def _use(self) -> Iterator[Connection]:
        """The database, for one thread, with its failures as errors of ours."""
        with self._lock, failing_as_ours(self._connection):
            yield self._connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for reads that people wait for, which hold up no publication; one at a time.

        Raises:
            BusyError: others read already.
        """
        if not self._reading.acquire(timeout=_READER_SECONDS):
            raise BusyError("index", "is being searched by others; try again")
        try:
            if self._reader is None:
                self._reader = database.connect(self._place)
            with failing_as_ours(self._reader):
                yield self._reader
        finally:
            self._reading.release()

    def is_listed(self, info_hash: bytes) -> bool:
        """Whether an infohash of 20 bytes belongs to a torrent that is vouched for."""
        return info_hash in self._listed

    def watch(self, watcher: ListWatcher) -> None:
        """Have somebody else know at any time which infohashes are listed."""
        with self._lock:
            self._watcher = watcher
            watcher.replace_listed(self._listed)

    def authorize(self, authorizes: Callable[[bytes], bool]) -> None:
        """Apply an access control list to all that is in the index.

        What only keys vouch for that are no longer authorised is hidden, not forgotten.

        Args:
            authorizes: whether a canonical public key is authorised.

        Raises:
            DatabaseError: the database can't be written; nothing changed.
        """
        with self._use() as connection:
            with connection.transaction():
                rows = connection.execute("SELECT id, key, authorized FROM signers").fetchall()
                changed = [
                    (int(not authorized), row)
                    for row, key, authorized in rows
                    if authorizes(bytes(key)) != bool(authorized)
                ]
                if changed:
                    update = "UPDATE signers SET authorized = ? WHERE id = ?"
                    connection.executemany(update, changed)
                    connection.note(None)
            if changed:
                self._relist(connection)

    def publish(self, publication: Publication, publisher: bytes, now: int) -> bool:
        """Take in a publication.

        Args:
            publication: what was checked.
            publisher: the public key of who claims it, 32 bytes.
            now: seconds since the epoch.

        Returns:
            Whether it said anything new.

        Raises:
            RefusedError: the operator blocked the NAR, the torrent or the publisher.
            IndexFullError: there is no room.
        """
        with self._use() as connection:
            if connection.is_full():
                raise IndexFullError("index", "is full")
            try:
                with connection.transaction():
                    new, added, removed = claims.enter(connection, publication, publisher, now)
                    if added or removed:
                        connection.note(Change(b"".join(added), b"".join(removed)))
            except connection.failures as error:
                if connection.is_full(error):
                    raise IndexFullError("index", "is full") from error
                raise
            # Still locked: who reads the list anew meanwhile may know better.
            self._change(added, removed)
        return new

    def _change(self, added: Collection[bytes], removed: Collection[bytes]) -> None:
        """Some infohashes came to be listed, others went."""
        self._listed.update(added)
        self._listed.difference_update(removed)
        if self._watcher is not None and (added or removed):
            self._watcher.change_listed(added, removed)

    def nar(self, nar_hash: bytes) -> IndexedNar | None:
        """What is known for a NAR, or nothing."""
        with self._use() as connection:
            found = connection.execute(
                "SELECT id, nar_size FROM nars WHERE nar_hash = ?"
                " AND EXISTS (SELECT 1 FROM vouched WHERE vouched.nar = nars.id)",
                (nar_hash,),
            ).fetchone()
            found_torrents = claims.ranked(connection, found[0]) if found else []
        torrents = [torrent for torrent in found_torrents if torrent.publishers]
        return IndexedNar(found[1], tuple(torrents)) if torrents else None

    def metainfo(self, row: int) -> bytes | None:
        """The torrent in a row of the index, as it was kept."""
        with self._use() as connection:
            found = connection.execute(
                "SELECT metainfo FROM torrents WHERE id = ?", (row,)
            ).fetchone()
        return bytes(found[0]) if found else None

    def narinfo(self, hash_part: str, *, with_sources: bool) -> bytes | None:
        """The oldest authorised narinfo of a store item.

        Args:
            hash_part: the 32 characters before the name.
            with_sources: only one that says where to fetch the NAR.
        """
        with self._use() as connection:
            found = connection.execute(
                "SELECT raw FROM narinfos JOIN vouched ON narinfo = narinfos.rowid"
                " WHERE hash_part = ? AND sources >= ?"
                " ORDER BY narinfos.added, narinfos.rowid LIMIT 1",
                (hash_part, int(with_sources)),
            ).fetchone()
        return bytes(found[0]) if found else None

    def refresh(self) -> bool:
        """Take in what commands and other trackers wrote; return whether there was any."""
        with self._use() as connection:
            position, changes = connection.changes(self._seen_version)
            if changes is None:
                self._relist(connection)
                return True
            for added, removed in changes:
                self._change(_cut(added), _cut(removed))
            self._seen_version = position
        return bool(changes)

    def totals(self) -> Totals:
        """How much there is, whoever vouches for it or blocks it."""
        with self._use() as connection:
            nars, torrents, narinfos, blocked = connection.execute(
                "SELECT (SELECT count(*) FROM nars), (SELECT count(*) FROM torrents),"
                " (SELECT count(*) FROM narinfos), (SELECT count(*) FROM blocks)"
            ).fetchone()
            size = connection.size()
        return Totals(nars, torrents, narinfos, blocked, len(self._listed), size)

    def check(self) -> None:
        """See whether the database can be read.

        Raises:
            DatabaseError: it can't.
        """
        with self._use() as connection:
            connection.execute("SELECT id FROM nars LIMIT 1").fetchone()

    def downloads(self) -> dict[bytes, int]:
        """How often what is listed was downloaded, by infohash of 20 bytes, as it was kept."""
        with self._use() as connection:
            rows = connection.execute("SELECT info_hash, count FROM downloads").fetchall()
        return {bytes(info_hash): count for info_hash, count in rows}

    def keep_downloads(self, counts: Mapping[bytes, int]) -> None:
        """Keep how often infohashes were downloaded, of those that are listed.

        The higher number stays: another tracker, or this one before swarms were lost, knew more.
        """
        rows = [item for item in counts.items() if item[0] in self._listed]
        with self._use() as connection, connection.transaction():
            connection.executemany(
                "INSERT INTO downloads VALUES (?, ?) ON CONFLICT (info_hash)"
                " DO UPDATE SET count = excluded.count WHERE excluded.count > downloads.count",
                rows,
            )

    def _relist(self, connection: Connection) -> None:
        """Read anew which infohashes may be tracked, and what is blocked."""
        with connection.snapshot():
            # First: what is written while this reads is then seen the next time.
            position, _ = connection.changes(-1)
            rows = connection.execute(
                "SELECT infohash_v1, infohash_v2 FROM torrents"
                " WHERE EXISTS (SELECT 1 FROM vouched WHERE vouched.nar = torrents.nar)"
                " AND EXISTS (SELECT 1 FROM support WHERE support.torrent = torrents.id)"
            )
            listed = {bytes(info_hash[:HASH_BYTES]) for row in rows for info_hash in row}
            self.blocks = blocks.load(connection)
        self._listed = listed
        self._seen_version = position
        if self._watcher is not None:
            self._watcher.replace_listed(listed)


def _cut(info_hashes: bytes) -> set[bytes]:
    """Infohashes that stand in one string."""
    starts = range(0, len(info_hashes), HASH_BYTES)
    return {info_hashes[start : start + HASH_BYTES] for start in starts}
