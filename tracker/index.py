# SPDX-License-Identifier: GPL-3.0-or-later
"""The index: which torrents are known for a NAR, who claims them, and the narinfos that vouch.

It is a SQLite database with a write-ahead log: what was answered with success survives a kill, and
a kill in the middle of a publication leaves nothing of it. The infohashes that may be tracked are
in memory as well, as every announce asks for one.

Anybody can claim that a torrent carries a NAR, and be wrong. So a NAR has several torrents, ranked
by how many publishers claim them, and their number is bounded in a way that a flood of false
claims can neither displace the well supported ones nor keep a true newcomer out for ever.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from narswarm.errors import InvalidInputError, MismatchError, NarswarmError
from narswarm.payload import Kind
from tracker import blocks, database
from tracker.blocks import BlockList
from tracker.database import FILE_NAME, transaction
from tracker.publication import Publication, RefusedError
from tracker.wire_http import HASH_BYTES

MAX_TORRENTS = 16
"""Torrents of one NAR."""

PROTECTED = MAX_TORRENTS // 2
"""Of these, how many best ones never make room for another."""

MAX_CLAIMS = 256
"""Publishers that are counted for one torrent."""


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
    """The index in a directory. Its methods may be called from any thread.

    Args:
        directory: where the database is or will be.
        max_bytes: how large it may grow, or None.

    Raises:
        SettingsError: the directory can't be used.
        InvalidInputError: the file there isn't an index of this version.
    """

    def __init__(self, directory: Path, *, max_bytes: int | None = None) -> None:
        self._path = directory / FILE_NAME
        self._lock = threading.Lock()
        self._connection = database.connect(directory, create=True, max_bytes=max_bytes)
        self._listed: set[bytes] = set()
        self._watcher: ListWatcher | None = None
        self._seen_version = 0
        self.blocks = BlockList()
        """What announces have to be asked about beside whether they are listed."""
        try:
            self._relist()
        except sqlite3.Error as error:
            self._connection.close()
            raise InvalidInputError(self._path, f"is not a usable index: {error}") from error

    def close(self) -> None:
        """Let go of the database."""
        with self._lock:
            self._connection.close()

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
            NarswarmError: the database can't be written; nothing changed.
        """
        try:
            with self._lock, transaction(self._connection) as connection:
                for row, key in connection.execute("SELECT id, key FROM signers").fetchall():
                    connection.execute(
                        "UPDATE signers SET authorized = ? WHERE id = ?", (authorizes(key), row)
                    )
        except sqlite3.Error as error:
            raise NarswarmError(self._path, str(error)) from error
        self._relist()

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
        try:
            with self._lock:
                with transaction(self._connection) as connection:
                    _check_blocks(connection, publication, publisher)
                    nar = _nar_row(connection, publication)
                    before = _wire_hashes(connection, nar)
                    new = _claim(connection, nar, publication, publisher, now)
                    after = _wire_hashes(connection, nar)
                # Still locked: who reads the list anew meanwhile may know better.
                self._listed.update(after)
                self._listed.difference_update(before - after)
                if self._watcher is not None:
                    self._watcher.change_listed(after - before, before - after)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise IndexFullError("index", "is full") from error
            raise
        return new

    def nar(self, nar_hash: bytes) -> IndexedNar | None:
        """What is known for a NAR, or nothing."""
        with self._lock:
            found = self._connection.execute(
                "SELECT id, nar_size FROM nars WHERE nar_hash = ?"
                " AND EXISTS (SELECT 1 FROM vouched WHERE vouched.nar = nars.id)",
                (nar_hash,),
            ).fetchone()
            found_torrents = ranked(self._connection, found[0]) if found else []
        torrents = [torrent for torrent in found_torrents if torrent.publishers]
        return IndexedNar(found[1], tuple(torrents)) if torrents else None

    def metainfo(self, row: int) -> bytes | None:
        """The torrent in a row of the index, as it was kept."""
        with self._lock:
            found = self._connection.execute(
                "SELECT metainfo FROM torrents WHERE id = ?", (row,)
            ).fetchone()
        return bytes(found[0]) if found else None

    def narinfo(self, hash_part: str, *, with_sources: bool) -> bytes | None:
        """The oldest authorised narinfo of a store item.

        Args:
            hash_part: the 32 characters before the name.
            with_sources: only one that says where to fetch the NAR.
        """
        with self._lock:
            found = self._connection.execute(
                "SELECT raw FROM narinfos JOIN vouched ON narinfo = narinfos.rowid"
                " WHERE hash_part = ? AND sources >= ?"
                " ORDER BY narinfos.added, narinfos.rowid LIMIT 1",
                (hash_part, int(with_sources)),
            ).fetchone()
        return bytes(found[0]) if found else None

    def refresh(self) -> bool:
        """Take in what a command wrote; return whether any did since the last time.

        Raises:
            NarswarmError: the database can't be read.
        """
        try:
            with self._lock:
                changed = self._data_version() != self._seen_version
            if changed:
                self._relist()
        except sqlite3.Error as error:
            raise NarswarmError(self._path, str(error)) from error
        return changed

    def totals(self) -> Totals:
        """How much there is, whoever vouches for it or blocks it.

        Raises:
            NarswarmError: the database can't be read.
        """
        try:
            with self._lock:
                nars, torrents, narinfos, blocked, size = self._connection.execute(
                    "SELECT (SELECT count(*) FROM nars), (SELECT count(*) FROM torrents),"
                    " (SELECT count(*) FROM narinfos), (SELECT count(*) FROM blocks),"
                    " page_count * page_size FROM pragma_page_count, pragma_page_size"
                ).fetchone()
        except sqlite3.Error as error:
            raise NarswarmError(self._path, str(error)) from error
        return Totals(nars, torrents, narinfos, blocked, len(self._listed), size)

    def check(self) -> None:
        """See whether the database can be read.

        Raises:
            NarswarmError: it can't.
        """
        try:
            with self._lock:
                self._connection.execute("SELECT id FROM nars LIMIT 1").fetchone()
        except sqlite3.Error as error:
            raise NarswarmError(self._path, str(error)) from error

    def downloads(self) -> dict[bytes, int]:
        """How often what is listed was downloaded, by infohash of 20 bytes, as it was kept."""
        with self._lock:
            rows = self._connection.execute("SELECT info_hash, count FROM downloads").fetchall()
        return {bytes(info_hash): count for info_hash, count in rows}

    def keep_downloads(self, counts: Mapping[bytes, int]) -> None:
        """Keep how often infohashes were downloaded, of those that are listed.

        Raises:
            NarswarmError: the database can't be written; nothing changed.
        """
        rows = [item for item in counts.items() if item[0] in self._listed]
        try:
            with self._lock, transaction(self._connection) as connection:
                connection.executemany("INSERT OR REPLACE INTO downloads VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise NarswarmError(self._path, str(error)) from error

    def _relist(self) -> None:
        """Read anew which infohashes may be tracked, and what is blocked."""
        with self._lock:
            # First: what is written while this reads is then seen the next time.
            self._seen_version = self._data_version()
            rows = self._connection.execute(
                "SELECT infohash_v1, infohash_v2 FROM torrents"
                " WHERE EXISTS (SELECT 1 FROM vouched WHERE vouched.nar = torrents.nar)"
                " AND EXISTS (SELECT 1 FROM support WHERE support.torrent = torrents.id)"
            )
            self._listed = {info_hash[:HASH_BYTES] for row in rows for info_hash in row}
            if self._watcher is not None:
                self._watcher.replace_listed(self._listed)
            self.blocks = blocks.load(self._connection)

    def _data_version(self) -> int:
        """A number that changes when another connection writes."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)


def _check_blocks(
    connection: sqlite3.Connection, publication: Publication, publisher: bytes
) -> None:
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


def _nar_row(connection: sqlite3.Connection, publication: Publication) -> int:
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
    connection: sqlite3.Connection, nar: int, publication: Publication, publisher: bytes, now: int
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
        "INSERT OR IGNORE INTO claims SELECT ?, ?, ?"
        " WHERE (SELECT count(*) FROM claims WHERE torrent = ?) < ?",
        (torrent, publisher, now, torrent, MAX_CLAIMS),
    )
    return new or claims.rowcount > 0


def _keep_narinfo(
    connection: sqlite3.Connection, nar: int, publication: Publication, now: int
) -> bool:
    """Keep a narinfo unless there is one by the same signer that says as much."""
    connection.execute(
        "INSERT OR IGNORE INTO signers (key, authorized) VALUES (?, 1)", (publication.signer,)
    )
    changed = connection.execute(
        "INSERT INTO narinfos SELECT ?, ?, id, ?, ?, ? FROM signers WHERE key = ?"
        " ON CONFLICT DO UPDATE SET sources = excluded.sources, raw = excluded.raw"
        " WHERE sources = 0 AND excluded.sources > 0",
        (
            publication.info.hash_part,
            nar,
            publication.sources,
            now,
            publication.narinfo,
            publication.signer,
        ),
    )
    return changed.rowcount > 0


def _keep_torrent(
    connection: sqlite3.Connection, nar: int, publication: Publication, now: int
) -> int:
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


def _make_room(connection: sqlite3.Connection, nar: int) -> None:
    """Drop a torrent when there are as many as may be.

    The best half stays whatever comes. In the other half, the least supported and among these the
    oldest goes, so that a newcomer has its time to be claimed by others too.
    """
    present = ranked(connection, nar)
    if len(present) >= MAX_TORRENTS:
        worst = min(present[PROTECTED:], key=lambda torrent: (torrent.publishers, torrent.row))
        connection.execute("DELETE FROM torrents WHERE id = ?", (worst.row,))


def ranked(connection: sqlite3.Connection, nar: int) -> list[IndexedTorrent]:
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


def _wire_hashes(connection: sqlite3.Connection, nar: int) -> set[bytes]:
    """The infohashes of a NAR's torrents as they may be tracked."""
    return {
        info_hash
        for torrent in ranked(connection, nar)
        if torrent.publishers
        for info_hash in torrent.wire_hashes
    }


def _inserted(connection: sqlite3.Connection, sql: str, values: tuple[object, ...]) -> int:
    row = connection.execute(sql, values).lastrowid
    assert row is not None  # noqa: S101 - of an INSERT that succeeded
    return row
