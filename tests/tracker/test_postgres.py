# SPDX-License-Identifier: GPL-3.0-or-later
"""An index that several trackers share, and a PostgreSQL that goes away and comes back."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from queue import Queue
from typing import Any

import psycopg
import pytest

from narswarm.acl import Acl
from narswarm.errors import InvalidInputError, NotFoundError, SettingsError
from tests import engines
from tests.engines import Engine
from tests.ports import free_port
from tests.tracker.conftest import new_schema
from tracker import blocks, database, postgres
from tracker.blocks import Block, Kind
from tracker.database import Change, DatabaseError
from tracker.index import Index, IndexFullError
from tracker.postgres import PostgresConnection, shown
from tracker.publication import check

NOW = 1_700_000_000
DEADLINE = 120
MakeItem = Callable[..., Any]


@pytest.fixture(name="url")
def url_fixture(postgres: Engine) -> str:
    """A schema without tables."""
    return new_schema(postgres.url)


@pytest.fixture(name="own")
def own_fixture() -> Iterator[Engine]:
    """A PostgreSQL that the test may end."""
    with engines.postgres_server() as engine:
        yield engine


def _publish(index: Index, item: Any, acl: Acl, publisher: bytes = bytes(32)) -> None:
    index.publish(check(item.nar_hash, item.body, acl, ()), publisher, NOW)


def _hashes(item: Any) -> list[bytes]:
    return [item.meta.infohash_v2[:20], item.meta.infohash_v1]


class Watcher:
    """Somebody with a list of their own."""

    def __init__(self) -> None:
        self.listed: set[bytes] = set()
        self.replaced = 0

    def replace_listed(self, info_hashes: Any) -> None:
        """All of it is new."""
        self.listed, self.replaced = set(info_hashes), self.replaced + 1

    def change_listed(self, added: Any, removed: Any) -> None:
        """Some of it is."""
        self.listed = (self.listed | set(added)) - set(removed)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:secret@h:5/db?password=secret", "postgresql://h:5/db"),
        ("postgres:///db?host=/run", "postgres:///db"),
        ("postgresql://u:secret@h:port/db", "postgresql:"),
    ],
)
def test_shown(url: str, expected: str) -> None:
    """What is told of a URL has no password, wherever that is."""
    assert shown(url) == expected


@pytest.mark.parametrize("url", ["postgresql://u:secret@h/db?unknown=1", "postgresql://[secret"])
def test_what_is_no_url(url: str) -> None:
    """Whatever is wrong with it, the message has nothing of it."""
    with pytest.raises(SettingsError) as caught:
        PostgresConnection(url)
    assert str(caught.value) == "index: is not a URL that PostgreSQL takes"


def test_nobody_there() -> None:
    """A tracker doesn't start without its index, and says which one it is."""
    url = f"postgresql://u:secret@127.0.0.1:{free_port()}/db"
    with pytest.raises(DatabaseError) as caught:
        Index(url)
    assert str(caught.value).startswith(f"{shown(url)}: ")
    assert "refused" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says how to get it."""
    original = builtins.__import__

    def refuse(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "psycopg":
            raise ImportError(name)
        return original(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SettingsError) as caught:
        PostgresConnection("postgresql://127.0.0.1:1/db")
    assert str(caught.value) == (
        "index: needs PostgreSQL's Python package: apt install python3-psycopg,"
        " or pip install narswarm[scale]"
    )


def test_none_there(url: str) -> None:
    """Commands make no tables where there are none."""
    with pytest.raises(NotFoundError) as caught, database.opened(url):
        pass
    assert str(caught.value) == f"{shown(url)}: has no tracker's index"


def test_names_of_an_older_index(url: str) -> None:
    """An upgrade takes names from the narinfos that are there, in small letters."""
    raw = b"StorePath: /gnu/store/%b-Xyz-1.0\nX: \xff\n" % (b"1" * 32)
    with psycopg.connect(url, autocommit=True) as session:
        session.execute(postgres._TABLES.encode())
        session.execute("CREATE TABLE narswarm (version INTEGER NOT NULL)")
        session.execute("INSERT INTO narswarm VALUES (1)")
        session.execute("INSERT INTO signers (key, authorized) VALUES ('x', 1)")
        session.execute("INSERT INTO nars (nar_hash, nar_size) VALUES ('x', 1)")
        session.execute(
            "INSERT INTO narinfos (hash_part, nar, signer, sources, added, raw)"
            " VALUES (%s, 1, 1, 0, 5, %s)",
            ("1" * 32, raw),
        )
    with closing(database.connect(url)) as connection:
        assert connection.execute("SELECT name FROM narinfos").fetchall() == [("xyz-1.0",)]


def test_later_version(url: str) -> None:
    """An index of a later version isn't touched."""
    Index(url).close()
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("UPDATE narswarm SET version = 99")
    with pytest.raises(InvalidInputError) as caught:
        Index(url)
    assert str(caught.value) == f"{shown(url)}: has version 99 instead of {postgres.VERSION}"


def test_all_begin_at_once(url: str) -> None:
    """Tables are made once, however many trackers start."""
    failures: list[BaseException] = []

    def begin() -> None:
        try:
            Index(url).close()
        except BaseException as error:  # noqa: BLE001 - a thread has nobody to tell
            failures.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_trackers_share(url: str, make_item: MakeItem, acl: Acl) -> None:
    """What one publishes the other lists, by reading only that; withdrawals and blocks as well."""
    one, other = Index(url), Index(url)
    watcher = Watcher()
    other.watch(watcher)
    first, second = make_item(1), make_item(2)
    _publish(one, first, acl)
    _publish(one, second, acl)
    assert other.nar(first.nar_hash) == one.nar(first.nar_hash)
    assert not any(map(other.is_listed, _hashes(first)))
    assert other.refresh()
    assert not other.refresh()
    assert watcher.listed == {*_hashes(first), *_hashes(second)}
    assert watcher.replaced == 1
    with database.opened(url) as connection, connection.transaction():
        blocks.withdraw(connection, first.nar_hash, "", NOW)
    assert other.refresh()
    assert one.refresh()
    for index in (one, other):
        assert not any(map(index.is_listed, _hashes(first)))
        assert index.blocks.info_hashes == {*_hashes(first)}
    assert watcher.listed == {*_hashes(second)}
    one.close()
    other.close()


def test_changes_that_were_missed(
    url: str, make_item: MakeItem, acl: Acl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes too late for the list of changes reads everything."""
    one, other = Index(url), Index(url)
    watcher = Watcher()
    other.watch(watcher)
    monkeypatch.setattr(postgres, "KEPT_CHANGES", 2)
    items = [make_item(number) for number in range(1, 5)]
    for item in items:
        _publish(one, item, acl)
    assert other.refresh()
    assert watcher.replaced == 2
    assert watcher.listed == {each for item in items for each in _hashes(item)}
    with database.opened(url) as connection:
        position, changes = connection.changes(0)
        assert (changes, connection.changes(position)) == (None, (position, []))
        assert connection.changes(position - 1) == (position, [Change(*_change(items[-1]))])
    one.close()
    other.close()


def _change(item: Any) -> tuple[bytes, bytes]:
    """What a publication changes, in the order in which a set of two has its items."""
    return b"".join({*_hashes(item)} - set()), b""


def test_notified(own: Engine, make_item: MakeItem, acl: Acl) -> None:
    """A tracker hears of others at once, and again after PostgreSQL was away."""
    one, other = Index(own.url), Index(own.url)
    heard: Queue[bool] = Queue()

    def callback() -> None:
        heard.put(other.refresh())

    other.follow(callback)
    first, second = make_item(1), make_item(2)
    assert heard.get(timeout=DEADLINE) is False  # it looks when it begins
    _publish(one, first, acl)
    assert heard.get(timeout=DEADLINE) is True
    own.stop()
    with pytest.raises(DatabaseError):
        one.check()
    own.start()
    one._connection._again = 0.0  # type: ignore[attr-defined]  # as after the pause
    one.check()
    _publish(one, second, acl)
    while not heard.get(timeout=DEADLINE):
        pass
    assert all(map(other.is_listed, _hashes(second)))
    one.close()
    other.close()


def test_lost_sessions(url: str, make_item: MakeItem, acl: Acl) -> None:
    """A session that PostgreSQL ended is replaced, but not in the middle of a transaction."""
    index = Index(url)
    connection = index._connection
    end = "SELECT pg_terminate_backend(?, 120000)"  # and wait until it has gone
    with database.opened(url) as other:

        def lose() -> None:
            (process,) = connection.execute("SELECT pg_backend_pid()").fetchone()
            other.execute(end, (process,))

        lose()
        assert index.nar(bytes(32)) is None
        lose()
        _publish(index, make_item(1), acl)

        def lose_within() -> None:
            with index._use() as used, used.transaction():
                blocks.add(used, Block(Kind.NAR, bytes(32), "", NOW))
                lose()
                used.execute("SELECT 1")

        with pytest.raises(DatabaseError) as caught:
            lose_within()
        assert str(caught.value).startswith(f"{shown(url)}: ")
        assert blocks.listed(connection) == []
    index.close()


def test_full(url: str, make_item: MakeItem, acl: Acl) -> None:
    """A database that is larger than it may be takes no more."""
    Index(url, max_bytes=1 << 40).close()
    index = Index(url, max_bytes=1000)
    with pytest.raises(IndexFullError) as caught:
        _publish(index, make_item(1), acl)
    assert str(caught.value) == "index: is full"
    index.close()


def test_commands_need_no_directory(url: str, tmp_path: Path) -> None:
    """The place of the index is the URL alone."""
    Index(url).close()
    with database.opened(url) as connection, connection.transaction():
        blocks.add(connection, Block(Kind.ADDRESS, b"192.0.2.0/24", "", NOW))
    with database.opened(url) as connection:
        assert [each.text for each in blocks.listed(connection)] == ["192.0.2.0/24"]
    assert list(tmp_path.iterdir()) == []
