# SPDX-License-Identifier: GPL-3.0-or-later
"""Claims: what a publication writes into the index, and how a NAR's torrents are ranked.

Anybody can claim that a torrent carries a NAR, and be wrong. So a NAR has several torrents, ranked
by how many publishers claim them, and their number is bounded in a way that a flood of false
claims can neither displace the well supported ones nor keep a true newcomer out for ever.
"""

from __future__ import annotations

from typing import NamedTuple

from narswarm import storepath
from narswarm.errors import MismatchError
from narswarm.payload import Kind
from tracker import blocks
from tracker.database import Connection
from tracker.publication import Publication, RefusedError
from tracker.wire_http import HASH_BYTES

MAX_TORRENTS = 16
"""Torrents of one NAR."""

PROTECTED = MAX_TORRENTS // 2
"""Of these, how many best ones never make room for another."""

MAX_CLAIMS = 256
"""Publishers that are counted for one torrent."""


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


class Entered(NamedTuple):
    """What a publication changed.

    Attributes:
        new: whether it said anything new.
        added: infohashes of 20 bytes that may be tracked by it.
        removed: those that made room.
    """

    new: bool
    added: set[bytes]
    removed: set[bytes]


def enter(connection: Connection, publication: Publication, publisher: bytes, now: int) -> Entered:
    """Write down a publication, within a transaction.

    Args:
        connection: the index.
        publication: what was checked.
        publisher: the public key of who claims it, 32 bytes.
        now: seconds since the epoch.

    Raises:
        RefusedError: the operator blocked the NAR, the torrent or the publisher.
        MismatchError: the NAR has another size than was said before.
    """
    _check_blocks(connection, publication, publisher)
    nar = _nar_row(connection, publication)
    before = _wire_hashes(connection, nar)
    new = _claim(connection, nar, publication, publisher, now)
    after = _wire_hashes(connection, nar)
    return Entered(new, after - before, before - after)


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
