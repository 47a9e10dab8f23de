# SPDX-License-Identifier: GPL-3.0-or-later
"""The index as lines of JSON, for who wants to copy, compare or archive it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from narswarm import base32, narinfo
from tracker.claims import IndexedTorrent, ranked
from tracker.database import Connection

BATCH = 500
"""NARs whose peers are asked for at once; they have 16 torrents each at most."""

Counts = tuple[int, int, int]
"""Seeders, leechers and downloads of one torrent."""

Ask = Callable[[list[list[bytes]]], Sequence[Counts]]
"""Asks for the counts of torrents, each given by its infohashes of 20 bytes."""


def entries(connection: Connection, ask: Ask | None) -> Iterator[dict[str, Any]]:
    """What the index answers for, a NAR at a time, as it was when this began.

    Args:
        connection: the database, in no transaction; it must not be used until this ends.
        ask: counts peers, or nothing when no tracker runs that could.

    Yields:
        Documents with `nar_hash`, `nar_size`, `store_paths` and `torrents`.
    """
    with connection.snapshot():
        last = b""
        while batch := connection.execute(
            "SELECT id, nar_hash, nar_size FROM nars WHERE nar_hash > ?"
            " AND EXISTS (SELECT 1 FROM vouched WHERE vouched.nar = nars.id)"
            " ORDER BY nar_hash LIMIT ?",
            (last, BATCH),
        ).fetchall():
            last = batch[-1][1]
            found = []
            for row, nar_hash, nar_size in batch:
                torrents = [torrent for torrent in ranked(connection, row) if torrent.publishers]
                if torrents:
                    found.append((row, bytes(nar_hash), nar_size, torrents))
            counts = _counts(ask, [torrent for *_, torrents in found for torrent in torrents])
            for row, nar_hash, nar_size, torrents in found:
                yield {
                    "nar_hash": base32.format_hash(nar_hash),
                    "nar_size": nar_size,
                    "store_paths": _store_paths(connection, row),
                    "torrents": [
                        _torrent(torrent, _publishers(connection, torrent), next(counts))
                        for torrent in torrents
                    ],
                }


def _counts(ask: Ask | None, torrents: list[IndexedTorrent]) -> Iterator[Counts | None]:
    """The counts of torrents, or nothing for each."""
    if ask is None:
        return iter([None] * len(torrents))
    return iter(ask([torrent.wire_hashes for torrent in torrents]))


def _torrent(
    torrent: IndexedTorrent, publishers: list[str], counts: Counts | None
) -> dict[str, Any]:
    seeders, leechers, downloaded = counts or (None, None, None)
    return {
        "kind": torrent.kind,
        "name": torrent.name,
        "length": torrent.length,
        "piece_length": torrent.piece_length,
        "infohash_v1": torrent.infohash_v1.hex(),
        "infohash_v2": torrent.infohash_v2.hex(),
        "publishers": publishers,
        "seeders": seeders,
        "leechers": leechers,
        "downloaded": downloaded,
    }


def _publishers(connection: Connection, torrent: IndexedTorrent) -> list[str]:
    rows = connection.execute(
        "SELECT publisher FROM support WHERE torrent = ? ORDER BY publisher", (torrent.row,)
    )
    return [base64.b64encode(publisher).decode() for (publisher,) in rows]


def _store_paths(connection: Connection, nar: int) -> list[str]:
    rows = connection.execute(
        "SELECT raw FROM narinfos JOIN vouched ON narinfo = narinfos.rowid WHERE narinfos.nar = ?",
        (nar,),
    )
    return sorted({narinfo.parse(bytes(raw)).store_path for (raw,) in rows})
