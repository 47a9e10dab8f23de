# SPDX-License-Identifier: GPL-3.0-or-later
"""What publishers claim of a NAR, and which torrents it has then."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from narswarm.acl import Acl
from narswarm.errors import MismatchError
from tracker import blocks, database
from tracker.blocks import Block, Kind
from tracker.claims import MAX_CLAIMS, MAX_TORRENTS, PROTECTED
from tracker.database import Place
from tracker.index import Index
from tracker.publication import check

if TYPE_CHECKING:
    from typing import Any

    MakeItem = Callable[..., Any]
    Publish = Callable[..., bool]

NOW = 1_700_000_000
SERVERS = ("https://bordeaux.guix.gnu.org",)
PUBLISHER = bytes([9]) * 32
OTHER = bytes([8]) * 32


def _hashes(item: Any) -> list[bytes]:
    return [item.meta.infohash_v2[:20], item.meta.infohash_v1]


def _block(place: Place, publisher: bytes) -> None:
    """Do what a command does, beside the index."""
    with database.opened(place) as connection, connection.transaction():
        blocks.add(connection, Block(Kind.PUBLISHER, publisher, "", NOW))


def test_claims(index: Index, publish: Publish, make_item: MakeItem) -> None:
    """A publisher counts once for a torrent, and saying it again is nothing new."""
    item = make_item()
    outcomes = [publish(item, publisher) for publisher in (1, 1, 2, 2, 1)]
    assert outcomes == [True, False, True, False, False]
    found = index.nar(item.nar_hash)
    assert found is not None
    assert [torrent.publishers for torrent in found.torrents] == [2]


def test_claims_of_one_torrent_are_bounded(
    index: Index, publish: Publish, make_item: MakeItem
) -> None:
    """Beyond a number, further publishers change nothing."""
    item = make_item()
    outcomes = [publish(item, publisher) for publisher in range(MAX_CLAIMS + 2)]
    assert outcomes == [True] * MAX_CLAIMS + [False] * 2
    found = index.nar(item.nar_hash)
    assert found is not None
    assert found.torrents[0].publishers == MAX_CLAIMS


def _payloads(index: Index, item: Any) -> list[int]:
    """The torrents of a NAR, best first, by the lengths of their payloads."""
    found = index.nar(item.nar_hash)
    return [torrent.length for torrent in found.torrents] if found else []


def test_rank(index: Index, publish: Publish, make_item: MakeItem) -> None:
    """More publishers come first, and among equals who came earlier."""
    for length, publishers in ((1, 1), (2, 2), (3, 3), (4, 2), (5, 1)):
        for publisher in range(publishers):
            publish(make_item(payload=bytes(length)), publisher)
    assert _payloads(index, make_item()) == [3, 2, 4, 1, 5]


def test_flood_of_false_claims(index: Index, publish: Publish, make_item: MakeItem) -> None:
    """It displaces neither what is well supported nor what is old, and a newcomer has its time."""
    for publisher in range(3):
        publish(make_item(payload=bytes(100)), publisher)
    for length in range(1, MAX_TORRENTS):
        publish(make_item(payload=bytes(length)), length)
    assert _payloads(index, make_item()) == [100, *range(1, MAX_TORRENTS)]
    newcomer = make_item(payload=bytes(200))
    assert publish(newcomer, 50)
    for length in range(300, 300 + MAX_TORRENTS - PROTECTED - 1):
        publish(make_item(payload=bytes(length)), length)
    lengths = _payloads(index, newcomer)
    assert len(lengths) == MAX_TORRENTS
    assert lengths[:PROTECTED] == [100, *range(1, PROTECTED)]
    assert 200 in lengths
    evicted = make_item(payload=bytes(PROTECTED))
    assert PROTECTED not in lengths
    assert not any(map(index.is_listed, _hashes(evicted)))
    publish(newcomer, 51)
    for length in range(400, 400 + MAX_TORRENTS):
        publish(make_item(payload=bytes(length)), length)
    assert _payloads(index, newcomer)[:2] == [100, 200]
    assert all(map(index.is_listed, _hashes(newcomer)))


def test_other_nars_are_not_touched(index: Index, publish: Publish, make_item: MakeItem) -> None:
    """The bound is one for each NAR."""
    publish(make_item(2))
    for length in range(1, MAX_TORRENTS + 2):
        publish(make_item(payload=bytes(length)))
    assert _payloads(index, make_item(2)) == [7]


def test_narinfo_with_sources_replaces_one_without(
    index: Index, publish: Publish, make_item: MakeItem
) -> None:
    """The first narinfo stays, unless a later one says where to fetch."""
    bare = make_item(urls=())
    assert publish(bare)
    assert index.narinfo(bare.hash_part, with_sources=False) == bare.narinfo
    assert index.narinfo(bare.hash_part, with_sources=True) is None
    full, other = make_item(), make_item(urls=("https://bordeaux.guix.gnu.org/other",))
    assert [publish(full), publish(other), publish(bare)] == [True, False, False]
    assert index.narinfo(bare.hash_part, with_sources=True) == full.narinfo


def test_two_sizes_of_a_nar(publish: Publish, make_item: MakeItem) -> None:
    """One NAR has one size, whoever signs another."""
    publish(make_item())
    other = make_item(nar_size=1001)
    with pytest.raises(MismatchError) as caught:
        publish(other)
    assert str(caught.value) == (
        f"/gnu/store/{other.hash_part}-item: has a NarSize other than 1000"
    )


def test_claims_of_blocked_publishers_do_not_count(
    place: Place, make_item: MakeItem, acl: Acl
) -> None:
    """A torrent that others claim as well stays, with their support only."""
    index = Index(place)
    item = make_item()
    publication = check(item.nar_hash, item.body, acl, SERVERS)
    for publisher in (PUBLISHER, OTHER):
        index.publish(publication, publisher, NOW)
    _block(place, PUBLISHER)
    assert index.refresh()
    found = index.nar(item.nar_hash)
    assert found is not None
    assert [torrent.publishers for torrent in found.torrents] == [1]
    assert all(map(index.is_listed, _hashes(item)))
    index.close()


def test_hidden_torrents_make_room_first(place: Place, make_item: MakeItem, acl: Acl) -> None:
    """What a blocked publisher filled a NAR's places with doesn't keep others out."""
    index = Index(place)
    false = [make_item(1, b"%d" % number) for number in range(MAX_TORRENTS)]
    for item in false:
        index.publish(check(item.nar_hash, item.body, acl, SERVERS), PUBLISHER, NOW)
    _block(place, PUBLISHER)
    true = [make_item(1, b"true %d" % number) for number in range(PROTECTED)]
    for item in true:
        index.publish(check(item.nar_hash, item.body, acl, SERVERS), OTHER, NOW)
    found = index.nar(true[0].nar_hash)
    assert found is not None
    assert {torrent.infohash_v1 for torrent in found.torrents} == {
        item.meta.infohash_v1 for item in true
    }
    index.close()
