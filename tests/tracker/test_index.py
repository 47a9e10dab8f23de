# SPDX-License-Identifier: GPL-3.0-or-later
"""The index of torrents, claims and narinfos; how torrents are ranked is in test_claims.py."""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from narswarm import gcrypt, sexp
from narswarm.acl import Acl
from narswarm.errors import BusyError, InvalidInputError, NarswarmError
from narswarm.gcrypt import KeyPair
from tracker import blocks, database
from tracker import index as index_module
from tracker.blocks import Block, Kind
from tracker.database import FILE_NAME, DatabaseError, Place
from tracker.index import Index, IndexFullError
from tracker.publication import Publication, RefusedError, check

if TYPE_CHECKING:
    from typing import Any

    MakeItem = Callable[..., Any]
    Publish = Callable[..., bool]

NOW = 1_700_000_000
SERVERS = ("https://bordeaux.guix.gnu.org",)


def _publisher(number: int) -> bytes:
    return number.to_bytes(32)


def _hashes(item: Any) -> list[bytes]:
    return [item.meta.infohash_v2[:20], item.meta.infohash_v1]


def test_empty(index: Index) -> None:
    """What was never published isn't there."""
    assert index.nar(bytes(32)) is None
    assert index.metainfo(1) is None
    assert index.narinfo("0" * 32, with_sources=False) is None
    assert not index.is_listed(bytes(20))


def test_publish(index: Index, publish: Publish, make_item: MakeItem) -> None:
    """A publication brings NAR, torrent, both infohashes and narinfo."""
    item = make_item()
    assert publish(item)
    found = index.nar(item.nar_hash)
    assert found is not None
    (torrent,) = found.torrents
    assert found.nar_size == 1000
    assert torrent[1:] == (
        "nar.zst",
        item.meta.name,
        len(b"payload"),
        65536,
        item.meta.infohash_v1,
        item.meta.infohash_v2,
        1,
    )
    assert torrent.wire_hashes == _hashes(item)
    assert index.metainfo(torrent.row) == item.meta.encode()
    assert all(map(index.is_listed, _hashes(item)))
    assert not index.is_listed(item.meta.infohash_v2[-20:])
    assert index.narinfo(item.hash_part, with_sources=True) == item.narinfo


def test_reading(
    index: Index, publish: Publish, make_item: MakeItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads for people sees what was published, holds up no publication, and is one alone."""
    monkeypatch.setattr(index_module, "_READER_SECONDS", 0.01)
    publish(make_item(1))
    count = "SELECT count(*) FROM narinfos WHERE name = 'item'"
    with index.reading() as connection, connection.snapshot():
        assert connection.execute(count).fetchone() == (1,)
        assert publish(make_item(2))
        assert connection.execute(count).fetchone() == (1,)
        with pytest.raises(BusyError) as caught, index.reading():
            pass
    assert str(caught.value) == "index: is being searched by others; try again"
    with pytest.raises(DatabaseError), index.reading() as connection:
        connection.execute("SELECT nothing FROM nowhere")
    with index.reading() as connection:
        assert connection.execute(count).fetchone() == (2,)


def test_revoked_keys(place: Place, make_item: MakeItem, signer: KeyPair, acl: Acl) -> None:
    """What only revoked keys vouch for is hidden, and comes back with them."""
    other = gcrypt.generate_key()
    keys = [sexp.parse(pair.public) for pair in (signer, other)]
    both = Acl(keys)
    first, second, again = make_item(1), make_item(2, key=other), make_item(1, key=other)
    index = Index(place)
    for item in (first, second):
        index.publish(check(item.nar_hash, item.body, both, SERVERS), _publisher(1), NOW)

    def visible() -> list[bool]:
        states = [
            {
                index.nar(item.nar_hash) is not None,
                index.narinfo(item.hash_part, with_sources=False) is not None,
                *map(index.is_listed, _hashes(item)),
            }
            for item in (first, second)
        ]
        assert all(len(state) == 1 for state in states)
        return [state.pop() for state in states]

    def authorize(allowed: Acl) -> None:
        index.authorize(lambda key: allowed.authorizes(sexp.parse(key)))

    assert visible() == [True, True]
    authorize(acl)
    assert visible() == [True, False]
    authorize(Acl())
    assert visible() == [False, False]
    index.close()
    index = Index(place)
    assert visible() == [False, False]
    authorize(both)
    assert visible() == [True, True]
    index.publish(check(again.nar_hash, again.body, both, SERVERS), _publisher(1), NOW)
    authorize(Acl(keys[1:]))
    assert visible() == [True, True]
    assert index.narinfo(first.hash_part, with_sources=True) == again.narinfo
    index.close()


def test_revoking_when_the_database_is_gone(tmp_path: Path) -> None:
    """Trouble with the database is an error that can be said in one line."""
    index = Index(tmp_path)
    index.close()
    with pytest.raises(NarswarmError) as caught:
        index.authorize(lambda _: True)
    assert str(caught.value) == f"{tmp_path / FILE_NAME}: Cannot operate on a closed database."


def test_two_nars_of_one_item(index: Index, publish: Publish, make_item: MakeItem) -> None:
    """Builds that differ have the same path; the oldest narinfo is mirrored, both are indexed."""
    first, second = make_item(1, path=7), make_item(2, path=7)
    assert [publish(second, now=NOW), publish(first, now=NOW + 1)] == [True, True]
    assert index.narinfo(first.hash_part, with_sources=True) == second.narinfo
    assert None not in [index.nar(item.nar_hash) for item in (first, second)]


def test_reopened(place: Place, make_item: MakeItem, acl: Acl) -> None:
    """An index is on disk, and so is what may be tracked."""
    item = make_item()
    index = Index(place)
    index.publish(check(item.nar_hash, item.body, acl, SERVERS), _publisher(1), NOW)
    before = index.nar(item.nar_hash)
    index.close()
    index = Index(place)
    assert index.nar(item.nar_hash) == before
    assert all(map(index.is_listed, _hashes(item)))
    index.close()


WRITER = """
import pickle, sys
from pathlib import Path
from tracker.index import Index
publications = pickle.load(sys.stdin.buffer)
index = Index(sys.argv[1] if "://" in sys.argv[1] else Path(sys.argv[1]))
for number, publication in enumerate(publications):
    index.publish(publication, bytes(32), number)
    print(number, flush=True)
sys.stdin.read()
"""


def test_killed_while_writing(place: Place, make_item: MakeItem, acl: Acl) -> None:
    """What was said to be published is there after SIGKILL, and the database is sound."""
    items = [make_item(number) for number in range(1, 201)]
    checked: list[Publication] = [check(item.nar_hash, item.body, acl, SERVERS) for item in items]
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(pickle.dumps(checked))
    process.stdin.flush()
    for line in process.stdout:
        if int(line) == 100:
            break
    os.kill(process.pid, signal.SIGKILL)
    done = 101 + sum(1 for _ in process.stdout)
    process.wait()
    process.stdout.close()
    process.stdin.close()
    index = Index(place)
    found = [index.nar(item.nar_hash) is not None for item in items]
    assert all(found[:done])
    assert sum(found) <= done + 1
    index.close()
    if isinstance(place, str):
        return
    connection = sqlite3.connect(place / FILE_NAME)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


def test_full(tmp_path: Path, make_item: MakeItem, acl: Acl) -> None:
    """An index that may not grow says so, keeps what it has, and can still be asked."""
    index = Index(tmp_path, max_bytes=120 * 1024)
    published: list[Any] = []

    def publish_more() -> None:
        for number in range(1, 500):
            item = make_item(number)
            index.publish(check(item.nar_hash, item.body, acl, SERVERS), _publisher(1), NOW)
            published.append(item)

    with pytest.raises(IndexFullError) as caught:
        publish_more()
    assert str(caught.value) == "index: is full"
    assert len(published) > 5
    assert all(index.nar(item.nar_hash) for item in published)
    refused = make_item(len(published) + 1)
    assert index.nar(refused.nar_hash) is None
    assert not any(map(index.is_listed, _hashes(refused)))
    assert not index.publish(
        check(published[0].nar_hash, published[0].body, acl, SERVERS), _publisher(1), NOW
    )
    index.close()


PUBLISHER = bytes([9]) * 32
OTHER = bytes([8]) * 32


def _write(place: Place, *added: Block) -> None:
    """Do what a command does, beside the index."""
    with database.opened(place) as connection, connection.transaction():
        for block in added:
            blocks.add(connection, block)


def _block(kind: Kind, value: bytes) -> Block:
    return Block(kind, value, "", NOW)


@pytest.mark.parametrize(
    "kind_and_value",
    [
        lambda item: (Kind.NAR, item.nar_hash),
        lambda item: (Kind.INFOHASH, item.meta.infohash_v1),
        lambda item: (Kind.INFOHASH, item.meta.infohash_v2[:20]),
        lambda _: (Kind.PUBLISHER, PUBLISHER),
    ],
)
def test_blocks(
    place: Place,
    make_item: MakeItem,
    acl: Acl,
    kind_and_value: Callable[[Any], tuple[Kind, bytes]],
) -> None:
    """What is blocked is gone and refused until it is unblocked, and nothing else is."""
    index = Index(place)
    item, bystander = make_item(1), make_item(2)
    publication = check(item.nar_hash, item.body, acl, SERVERS)
    index.publish(publication, PUBLISHER, NOW)
    index.publish(check(bystander.nar_hash, bystander.body, acl, SERVERS), OTHER, NOW)
    kind, value = kind_and_value(item)
    _write(place, _block(kind, value))
    assert index.nar(item.nar_hash) is None  # by the views, before anybody is told
    assert index.refresh()
    assert not index.refresh()
    assert not any(map(index.is_listed, _hashes(item)))
    assert index.blocks.info_hashes == (set() if kind is Kind.PUBLISHER else {*_hashes(item)})
    narinfo = index.narinfo(item.hash_part, with_sources=False)
    assert (narinfo is None) == (kind is Kind.NAR)
    with pytest.raises(RefusedError) as caught:
        index.publish(publication, PUBLISHER, NOW)
    assert str(caught.value) == f"{kind}: is blocked by this tracker's operator"
    assert index.nar(bystander.nar_hash) is not None
    assert all(map(index.is_listed, _hashes(bystander)))
    with database.opened(place) as connection, connection.transaction():
        blocks.remove(connection, kind, value)
    assert index.refresh()
    assert index.nar(item.nar_hash) is not None
    assert index.narinfo(item.hash_part, with_sources=False) == publication.narinfo
    assert all(map(index.is_listed, _hashes(item)))
    assert index.blocks.info_hashes == frozenset()
    assert not index.publish(publication, PUBLISHER, NOW)
    index.close()


def test_downloads_are_kept(place: Place, make_item: MakeItem, acl: Acl) -> None:
    """Numbers of listed infohashes outlast the process, others are never written down."""
    index = Index(place)
    item = make_item()
    index.publish(check(item.nar_hash, item.body, acl, SERVERS), PUBLISHER, NOW)
    one, two = _hashes(item)
    index.keep_downloads({one: 3, b"u" * 20: 9})
    index.keep_downloads({one: 4, two: 1})
    index.close()
    index = Index(place)
    assert index.downloads() == {one: 4, two: 1}
    with database.opened(place) as connection, connection.transaction():
        blocks.withdraw(connection, item.nar_hash, "", NOW)
    assert index.downloads() == {}
    index.close()


def test_totals(place: Place, make_item: MakeItem, acl: Acl) -> None:
    """The index in numbers."""
    index = Index(place)
    item = make_item()
    index.publish(check(item.nar_hash, item.body, acl, SERVERS), PUBLISHER, NOW)
    _write(place, _block(Kind.ADDRESS, b"192.0.2.0/24"))
    totals = index.totals()
    assert totals[:5] == (1, 1, 1, 1, 2)
    assert totals.size > 4096
    index.check()
    index.close()


@pytest.mark.parametrize(
    "use", [Index.check, Index.totals, Index.refresh, lambda index: index.keep_downloads({})]
)
def test_database_that_cannot_be_used(tmp_path: Path, use: Callable[[Index], None]) -> None:
    """It is an error of ours, whatever SQLite says."""
    index = Index(tmp_path)
    index.close()
    with pytest.raises(NarswarmError) as caught:
        use(index)
    assert str(caught.value) == f"{tmp_path / FILE_NAME}: Cannot operate on a closed database."


def test_a_damaged_index_is_an_error(tmp_path: Path) -> None:
    """A database that opens and can't be read is said in one line, before anybody is served."""
    Index(tmp_path).close()
    file = tmp_path / FILE_NAME
    with sqlite3.connect(file) as db:
        db.execute("DROP TABLE torrents")
    db.close()
    with pytest.raises(InvalidInputError) as caught:
        Index(tmp_path)
    assert str(caught.value).startswith(f"{file}: is not a usable index: ")
