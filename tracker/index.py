# SPDX-License-Identifier: GPL-3.0-or-later
"""The index: which torrents are known for a NAR, who claims them, and the narinfos that vouch.

It is a database, of SQLite or PostgreSQL: what was answered with success survives a kill, and a
kill in the middle of a publication leaves nothing of it. The infohashes that may be tracked are in
memory as well, as every announce asks for one; of what others write, only the changes are read.

Anybody can claim that a torrent carries a NAR, and be wrong. So a NAR has several torrents, ranked
by how many publishers claim them, and their number is bounded in a way that a flood of false
claims can neither displace the well supported ones nor keep a true newcomer out for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from narswarm import storepath
from narswarm.errors import BusyError, InvalidInputError, MismatchError, NarswarmError
from narswarm.payload import Kind
from tracker import blocks, database
from tracker.blocks import BlockList
from tracker.database import Change, Connection, DatabaseError, Place, failing_as_ours
from tracker.publication import Publication, RefusedError
from tracker.wire_http import HASH_BYTES

MAX_TORRENTS = 16
"""Torrents of one NAR."""

PROTECTED = MAX_TORRENTS // 2
"""Of these, how many best ones never make room for another."""

MAX_CLAIMS = 256
"""Publishers that are counted for one torrent."""


_READER_SECONDS = 2.0
"""How long one that only reads waits for another."""


class IndexFullError(NarswarmError):
    """There is no room for another publication."""


class IndexedTorrent(NamedTuple):
    """A torrent of a NAR.

    Attributes:
        row: its number in the index.
        kind: what its payload is.
        name: the payload's file name.
        length: bytes of the payload.
        piece_length: bytes.
        infohash_v1: 20 bytes.
        infohash_v2: 32 bytes.
        publishers: how many claim it.
    """

    row: int
    kind: str
    name: str
    length: int
    piece_length: int
    infohash_v1: bytes
    infohash_v2: bytes
    publishers: int

    @property
    def wire_hashes(self) -> list[bytes]:
        """The two infohashes under which clients announce it, 20 bytes each (BEP 52)."""
        return [self.infohash_v2[:HASH_BYTES], self.infohash_v1]


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
                    _check_blocks(connection, publication, publisher)
                    nar = _nar_row(connection, publication)
                    before = _wire_hashes(connection, nar)
                    new = _claim(connection, nar, publication, publisher, now)
                    after = _wire_hashes(connection, nar)
                    if before != after:
                        added, removed = b"".join(after - before), b"".join(before - after)
                        connection.note(Change(added, removed))
            except connection.failures as error:
                if connection.is_full(error):
                    raise IndexFullError("index", "is full") from error
                raise
            # Still locked: who reads the list anew meanwhile may know better.
            self._change(after - before, before - after)
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
            found_torrents = ranked(connection, found[0]) if found else []
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


def _check_blocks(connection: Connection, publication: Publication, publisher: bytes) -> None:
    """Refuse what the operator blocked."""
    meta = publication.meta
    for kind, value in (
        (blocks.Kind.NAR, publication.info.nar_hash),
        (blocks.Kind.PUBLISHER, publisher),
        (blocks.Kind.INFOHASH, meta.infohash_v1),
        (blocks.Kind.INFOHASH, meta.infohash_v2[:HASH_BYTES]),
    ):
        if blocks.is_blocked(connection, kind, value):
            raise RefusedError(kind, "is blocked by this tracker's operator")


def _nar_row(connection: Connection, publication: Publication) -> int:
    """The row of a NAR, made when it is new."""
    info = publication.info
    found = connection.execute(
        "SELECT id, nar_size FROM nars WHERE nar_hash = ?", (info.nar_hash,)
    ).fetchone()
    if found is None:
        return _inserted(
            connection,
            "INSERT INTO nars (nar_hash, nar_size) VALUES (?, ?)",
            (info.nar_hash, info.nar_size),
        )
    row, nar_size = found
    if nar_size != info.nar_size:
        raise MismatchError(info.store_path, f"has a NarSize other than {nar_size}")
    return int(row)


def _claim(
    connection: Connection, nar: int, publication: Publication, publisher: bytes, now: int
) -> bool:
    """Write down what a publisher claims; return whether it is new."""
    new = _keep_narinfo(connection, nar, publication, now)
    found = connection.execute(
        "SELECT id FROM torrents WHERE infohash_v2 = ?", (publication.meta.infohash_v2,)
    ).fetchone()
    if found is None:
        _make_room(connection, nar)
        torrent = _keep_torrent(connection, nar, publication, now)
    else:
        torrent = found[0]
    claims = connection.execute(
        "INSERT INTO claims SELECT ?, ?, ?"
        " WHERE (SELECT count(*) FROM claims WHERE torrent = ?) < ? ON CONFLICT DO NOTHING",
        (torrent, publisher, now, torrent, MAX_CLAIMS),
    )
    return new or claims.rowcount > 0


def _keep_narinfo(connection: Connection, nar: int, publication: Publication, now: int) -> bool:
    """Keep a narinfo unless there is one by the same signer that says as much."""
    connection.execute(
        "INSERT INTO signers (key, authorized) VALUES (?, 1) ON CONFLICT DO NOTHING",
        (publication.signer,),
    )
    changed = connection.execute(
        "INSERT INTO narinfos (hash_part, nar, signer, sources, added, raw, name)"
        " SELECT ?, ?, id, ?, ?, ?, ? FROM signers WHERE key = ?"
        " ON CONFLICT (hash_part, nar, signer)"
        " DO UPDATE SET sources = excluded.sources, raw = excluded.raw"
        " WHERE narinfos.sources = 0 AND excluded.sources > 0",
        (
            publication.info.hash_part,
            nar,
            publication.sources,
            now,
            publication.narinfo,
            storepath.parse(publication.info.store_path).name.lower(),
            publication.signer,
        ),
    )
    return changed.rowcount > 0


def _keep_torrent(connection: Connection, nar: int, publication: Publication, now: int) -> int:
    meta = publication.meta
    return _inserted(
        connection,
        "INSERT INTO torrents (nar, kind, name, length, piece_length, infohash_v1, infohash_v2,"
        " added, metainfo) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            nar,
            meta.kind.value,
            meta.name,
            meta.length,
            meta.piece_length,
            meta.infohash_v1,
            meta.infohash_v2,
            now,
            publication.torrent,
        ),
    )


def _make_room(connection: Connection, nar: int) -> None:
    """Drop a torrent when there are as many as may be.

    The best half stays whatever comes. In the other half, the least supported and among these the
    oldest goes, so that a newcomer has its time to be claimed by others too.
    """
    present = ranked(connection, nar)
    if len(present) >= MAX_TORRENTS:
        worst = min(present[PROTECTED:], key=lambda torrent: (torrent.publishers, torrent.row))
        connection.execute("DELETE FROM torrents WHERE id = ?", (worst.row,))


def ranked(connection: Connection, nar: int) -> list[IndexedTorrent]:
    """The torrents of a NAR: by support, then those of profile 1, then the oldest.

    Those that only blocked publishers claim, or that are blocked themselves, have no support.
    """
    rows = connection.execute(
        "SELECT id, kind, name, length, piece_length, infohash_v1, infohash_v2,"
        " (SELECT count(*) FROM support WHERE support.torrent = torrents.id) AS publishers"
        " FROM torrents WHERE nar = ? ORDER BY publishers DESC, kind != ?, id",
        (nar, Kind.ZSTD.value),
    )
    return [IndexedTorrent(*row) for row in rows]


def _wire_hashes(connection: Connection, nar: int) -> set[bytes]:
    """The infohashes of a NAR's torrents as they may be tracked."""
    return {
        info_hash
        for torrent in ranked(connection, nar)
        if torrent.publishers
        for info_hash in torrent.wire_hashes
    }


def _inserted(connection: Connection, sql: str, values: tuple[object, ...]) -> int:
    (row,) = connection.execute(f"{sql} RETURNING id", values).fetchone()
    return int(row)
