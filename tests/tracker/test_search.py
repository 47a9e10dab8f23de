# SPDX-License-Identifier: GPL-3.0-or-later
"""What people find in the index, in SQLite and in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from narswarm import storepath
from narswarm.acl import Acl
from narswarm.gcrypt import KeyPair
from tracker import blocks, database, search
from tracker.blocks import Block, Kind
from tracker.database import Place
from tracker.index import Index
from tracker.publication import check
from tracker.search import Cursor, Listed, NamePage, parse_cursor

NOW = 1_700_000_000
MakeItem = Callable[..., Any]

NAMES = ("Gcc-10", "gcc-toolchain-13", "my_gcc", "avr-gcc", "hello-2.12", "hello-gcc", "myxgcc")


class Shelf:
    """An index with some items in it."""

    def __init__(self, place: Place, acl: Acl, make_item: MakeItem) -> None:
        self.place = place
        self.index = Index(place)
        self._acl = acl
        self._make_item = make_item

    def add(self, number: int, name: str = "item", publisher: int = 0, **more: Any) -> Any:
        """Publish an item; later ones come later."""
        item = self._make_item(number, b"payload %d" % number, name=name, **more)
        publication = check(item.nar_hash, item.body, self._acl, ())
        self.index.publish(publication, bytes([publisher]) * 32, NOW + number)
        return item

    def block(self, kind: Kind, value: bytes) -> None:
        """Block something as the operator does."""
        with database.opened(self.place) as connection, connection.transaction():
            blocks.add(connection, Block(kind, value, "", NOW))

    def names(self, *words: str, limit: int = 100, after: Cursor | None = None) -> NamePage:
        """Look for names, without haste."""
        with self.index.reading() as connection:
            return search.find_names(connection, words, after, limit, lambda: False)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Another question."""
        with self.index.reading() as connection:
            return function(connection, *arguments)


@pytest.fixture(name="shelf")
def shelf_fixture(place: Place, acl: Acl, make_item: MakeItem) -> Iterator[Shelf]:
    """An empty index."""
    shelf = Shelf(place, acl, make_item)
    yield shelf
    shelf.index.close()


def _names(items: list[Listed]) -> list[str]:
    return [storepath.parse(item.store_path).name for item in items]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gcc"], ["Gcc-10", "gcc-toolchain-13", "avr-gcc", "hello-gcc", "my_gcc", "myxgcc"]),
        (["gcc", "toolchain"], ["gcc-toolchain-13"]),
        (["toolchain", "gcc"], ["gcc-toolchain-13"]),
        (["y_g"], ["my_gcc"]),
        (["2.12"], ["hello-2.12"]),
        (["%"], []),
        (["nothing"], []),
        (["~"], []),
    ],
)
def test_names(shelf: Shelf, words: list[str], expected: list[str]) -> None:
    """All words are in the name, in any case; those that begin with the first one come first."""
    for number, name in enumerate(NAMES, 1):
        shelf.add(number, name)
    page = shelf.names(*words)
    assert (_names(page.items), page.following, page.in_time) == (expected, None, True)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("size", [1, 2, 20_000])
def test_pages(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, limit: int, size: int) -> None:
    """Pages bring everything once, in whatever slices it is read; the last one says so."""
    monkeypatch.setattr(search, "SLICE", size)
    for number, name in enumerate(NAMES, 1):
        shelf.add(number, name)
    found: list[str] = []
    cursor, pages = None, 0
    while cursor is not None or not pages:
        page = shelf.names("gcc", limit=limit, after=cursor)
        assert len(page.items) <= limit
        found += _names(page.items)
        cursor, pages = page.following, pages + 1
        if cursor is not None:
            assert parse_cursor(str(cursor)) == cursor
    assert found == ["Gcc-10", "gcc-toolchain-13", "avr-gcc", "hello-gcc", "my_gcc", "myxgcc"]
    assert pages == -(-6 // limit)


@pytest.mark.parametrize("size", [1, 2, 20_000])
def test_names_out_of_time(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A search that has no time left goes on with the next request, where it was."""
    monkeypatch.setattr(search, "SLICE", size)
    for number, name in enumerate(NAMES, 1):
        shelf.add(number, name)
    found: list[str] = []
    page = NamePage([], None, in_time=False)
    while not page.in_time:
        with shelf.index.reading() as connection:
            page = search.find_names(connection, ["gcc"], page.following, 9, lambda: True)
        assert len(page.items) <= 1
        found += _names(page.items)
    assert found == ["Gcc-10", "gcc-toolchain-13", "avr-gcc", "hello-gcc", "my_gcc", "myxgcc"]
    assert page.following is None


@pytest.mark.parametrize(
    "text", ["", "1", "21.x-y", f"11.{'0' * 33}-x", f"01.{'0' * 32}-X", f"0{'1' * 19}.{'0' * 32}-x"]
)
def test_cursors_that_are_none(text: str) -> None:
    """What isn't a cursor is the beginning."""
    assert parse_cursor(text) is None


def test_one_item_of_two_signers_is_one(shelf: Shelf) -> None:
    """An item is listed once, with the torrents and their publishers counted."""
    first = shelf.add(1, "x")
    shelf.add(1, "x", publisher=7)
    (item,) = shelf.names("x").items
    assert item.nar_hash == first.nar_hash
    assert item.nar_size == 1000
    assert item.store_path == f"/gnu/store/{first.hash_part}-x"
    assert item.added == NOW + 1
    assert [torrent.publishers for torrent in item.torrents] == [2]


def test_hash_parts(shelf: Shelf) -> None:
    """A NAR is found by each of its store items, and under the one that was asked for."""
    shelf.add(1, "one")
    again = shelf.add(1, "two", path=2)
    assert _names(shelf.ask(search.find_hash_part, again.hash_part)) == ["two"]
    assert _names(shelf.names("o").items) == ["one", "two"]
    assert shelf.ask(search.find_hash_part, "3" * 32) == []
    assert _names(shelf.ask(search.find_nar, again.nar_hash)) == ["one"]
    assert shelf.ask(search.find_nar, bytes(32)) == []


def test_infohashes(shelf: Shelf) -> None:
    """Both infohashes lead to the NAR, and the first 20 bytes of the second."""
    shelf.add(1, "other")
    meta = shelf.add(2, "wanted").meta
    for infohash in (meta.infohash_v1, meta.infohash_v2, meta.infohash_v2[:20]):
        assert _names(shelf.ask(search.find_infohash, infohash)) == ["wanted"]
    assert shelf.ask(search.find_infohash, bytes(20)) == []


def test_recent(shelf: Shelf) -> None:
    """What came last is first."""
    for number in range(1, 6):
        shelf.add(number, f"n{number}")
    assert _names(shelf.ask(search.recent, 3)) == ["n5", "n4", "n3"]


def test_what_is_blocked_is_not_found(shelf: Shelf, signer: KeyPair) -> None:
    """Neither blocked NARs, torrents and publishers nor what only revoked keys vouch for shows."""
    nar, torrent = shelf.add(1, "x1"), shelf.add(2, "x2")
    shelf.add(3, "x3", publisher=9)
    shelf.add(4, "x4")
    shelf.block(Kind.NAR, nar.nar_hash)
    shelf.block(Kind.INFOHASH, torrent.meta.infohash_v1)
    shelf.block(Kind.PUBLISHER, bytes([9]) * 32)
    assert _names(shelf.names("x").items) == ["x4"]
    assert _names(shelf.ask(search.recent, 9)) == ["x4"]
    assert len(shelf.ask(search.newest_swarms, 9)) == 1
    assert [shelf.ask(search.details, item.nar_hash) for item in (nar, torrent)] == [None, None]
    assert shelf.ask(search.find_infohash, torrent.meta.infohash_v1) == []
    shelf.index.authorize(lambda _: False)
    assert shelf.names("x").items == []
    assert shelf.ask(search.newest_swarms, 9) == []
    assert signer.public


def test_details(shelf: Shelf) -> None:
    """One NAR has its narinfos, who signed them, its torrents, and who claims them since when."""
    reference = f"{'7' * 32}-other"
    item = shelf.add(1, "x", references=(reference,))
    shelf.add(1, "x", publisher=7)
    shelf.add(1, "y", path=5)
    found = shelf.ask(search.details, item.nar_hash)
    assert found.nar_size == 1000
    assert [each.store_path for each in found.narinfos] == [
        f"/gnu/store/{item.hash_part}-x",
        f"/gnu/store/{5:032}-y",
    ]
    assert found.narinfos[0].references == (reference,)
    assert found.narinfos[0].raw.startswith(b"StorePath: ")
    assert b"Ed25519" in found.narinfos[0].signer
    ((torrent, added, claims),) = found.torrents
    assert (torrent.infohash_v2, added) == (item.meta.infohash_v2, NOW + 1)
    assert [tuple(claim) for claim in claims] == [(bytes(32), NOW + 1), (b"\7" * 32, NOW + 1)]
    assert shelf.ask(search.details, bytes(32)) is None


def test_newest_swarms(shelf: Shelf) -> None:
    """The newest torrents come first, no more than asked for, as their clients announce them."""
    items = [shelf.add(number) for number in range(1, 4)]
    swarms = shelf.ask(search.newest_swarms, 2)
    assert [swarm.info_hashes for swarm in swarms] == [
        (item.meta.infohash_v2[:20], item.meta.infohash_v1) for item in (items[2], items[1])
    ]
    (first, second) = shelf.ask(search.describe, [swarm.nar for swarm in swarms])
    assert (first.nar_hash, second.nar_hash) == (items[2].nar_hash, items[1].nar_hash)
