# SPDX-License-Identifier: GPL-3.0-or-later
"""The index as lines of JSON."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from narswarm import base32
from narswarm.acl import Acl
from tracker import blocks, database, export
from tracker.blocks import Block, Kind
from tracker.database import Place
from tracker.export import Counts, entries
from tracker.index import Index
from tracker.publication import check

NOW = 1_700_000_000
PUBLISHERS = [bytes([number]) * 32 for number in (1, 2)]

MakeItem = Callable[..., Any]


def _fill(place: Place, acl: Acl, *items: Any) -> None:
    index = Index(place)
    for item in items:
        for publisher in PUBLISHERS:
            index.publish(check(item.nar_hash, item.body, acl, ()), publisher, NOW)
    index.close()


def test_entry(place: Place, make_item: MakeItem, acl: Acl) -> None:
    """A NAR with its store items, its torrents, who claims them and who has them."""
    item = make_item(1, path=7)
    _fill(place, acl, item, make_item(1, path=8))
    asked = []

    def ask(torrents: list[list[bytes]]) -> list[Counts]:
        asked.append(torrents)
        return [(3, 2, 1)]

    meta = item.meta
    with database.opened(place) as connection:
        assert list(entries(connection, ask)) == [
            {
                "nar_hash": base32.format_hash(item.nar_hash),
                "nar_size": 1000,
                "store_paths": [f"/gnu/store/{path:032}-item" for path in (7, 8)],
                "torrents": [
                    {
                        "kind": "nar.zst",
                        "name": meta.name,
                        "length": meta.length,
                        "piece_length": meta.piece_length,
                        "infohash_v1": meta.infohash_v1.hex(),
                        "infohash_v2": meta.infohash_v2.hex(),
                        "publishers": [base64.b64encode(key).decode() for key in PUBLISHERS],
                        "seeders": 3,
                        "leechers": 2,
                        "downloaded": 1,
                    }
                ],
            }
        ]
    assert asked == [[[meta.infohash_v2[:20], meta.infohash_v1]]]


def test_without_a_tracker(place: Place, make_item: MakeItem, acl: Acl) -> None:
    """Numbers that nobody knows are null."""
    _fill(place, acl, make_item())
    with database.opened(place) as connection:
        (entry,) = entries(connection, None)
    (torrent,) = entry["torrents"]
    assert (torrent["seeders"], torrent["leechers"], torrent["downloaded"]) == (None, None, None)


def test_batches(
    place: Place, make_item: MakeItem, acl: Acl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every NAR is there once, in order, and has its own numbers, however many there are."""
    monkeypatch.setattr(export, "BATCH", 2)
    items = [make_item(number) for number in range(1, 6)]
    _fill(place, acl, *items)
    order = sorted(items, key=lambda item: item.nar_hash)
    numbers = {item.meta.infohash_v1: place for place, item in enumerate(order)}

    def ask(torrents: list[list[bytes]]) -> list[Counts]:
        return [(numbers[torrent[1]], 0, 0) for torrent in torrents]

    with database.opened(place) as connection:
        found = list(entries(connection, ask))
    assert [(entry["nar_hash"], entry["torrents"][0]["seeders"]) for entry in found] == [
        (base32.format_hash(item.nar_hash), place) for place, item in enumerate(order)
    ]


def test_what_is_hidden_is_not_exported(place: Place, make_item: MakeItem, acl: Acl) -> None:
    """Blocked NARs, torrents and claims are left out, as the index leaves them out."""
    items = [make_item(number) for number in (1, 2, 3)]
    _fill(place, acl, *items)
    with database.opened(place) as connection:
        blocks.add(connection, Block(Kind.NAR, items[0].nar_hash, "", NOW))
        blocks.add(connection, Block(Kind.INFOHASH, items[1].meta.infohash_v1, "", NOW))
        blocks.add(connection, Block(Kind.PUBLISHER, PUBLISHERS[0], "", NOW))
        (entry,) = entries(connection, None)
    assert entry["nar_hash"] == base32.format_hash(items[2].nar_hash)
    assert len(entry["torrents"][0]["publishers"]) == 1
