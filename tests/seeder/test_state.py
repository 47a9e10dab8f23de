# SPDX-License-Identifier: GPL-3.0-or-later
"""What a seeder knows across restarts."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from narswarm.errors import BusyError, InvalidInputError, NotFoundError
from seeder.eviction import Payload
from seeder.inventory import Item
from seeder.items import OFFERED, WITHDRAWN
from seeder.publications import Due, Published
from seeder.state import Nar, Offer, State, holder

NAR = Nar(b"h" * 32, "/gnu/store/x", 100, "x.nar.zst", 7, "ab" * 32, b"torrent", b"narinfo")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """A new state."""
    with State(tmp_path / "state") as opened:
        yield opened


def test_what_is_kept_survives(tmp_path: Path) -> None:
    """Everything that is needed to seed and to publish is there again after a restart."""
    with State(tmp_path) as state:
        state.add(NAR, ["t1", "t2"], 5)
        state.set_note("acl", "1")
    with State(tmp_path) as state:
        assert state.offers() == [Offer(NAR.nar_hash, NAR.store_path, "x.nar.zst", 7, NAR.infohash)]
        assert state.get(NAR.nar_hash) == NAR
        assert state.due("t2", 0, 1e9, 9) == [Due(NAR.nar_hash, b"torrent", b"narinfo")]
        assert state.used() == 7
        assert state.note("acl") == "1"
        assert state.note("other") is None


def test_what_a_tracker_took_can_be_asked_about(state: State) -> None:
    """It is something that is seeded."""
    state.add(NAR, ["t"], 5)
    assert state.sample("t", 1e9) is None
    state.published(NAR.nar_hash, "t", 10, 100)
    assert state.sample("t", 11) == Offer(
        NAR.nar_hash, NAR.store_path, "x.nar.zst", 7, NAR.infohash
    )


def test_dropping_removes_the_payload(state: State) -> None:
    """Row, payload and publications go together; a second time is no error."""
    (state.payloads / "x.nar.zst").write_bytes(b"payload")
    state.add(NAR, ["t1"], 5)
    state.drop(NAR.nar_hash)
    state.drop(NAR.nar_hash)
    assert (state.offers(), state.due("t1", 9, 1e9, 9), state.used()) == ([], [], 0)
    assert list(state.payloads.iterdir()) == []
    with pytest.raises(NotFoundError) as caught:
        state.get(NAR.nar_hash)
    assert str(caught.value).endswith(": is not offered")


def test_files_without_a_row_are_swept(state: State) -> None:
    """What a killed seeder left half-written goes; what is offered stays."""
    state.add(NAR, [], 5)
    for name in ("x.nar.zst", ".y.nar.zst.abc", "z.nar.zst"):
        (state.payloads / name).write_bytes(b"")
    assert state.sweep() == 2
    assert [path.name for path in state.payloads.iterdir()] == ["x.nar.zst"]


def test_one_seeder_at_a_time(state: State) -> None:
    """The second one is told who is first, and may start when that has ended."""
    with pytest.raises(BusyError) as caught:
        State(state.directory)
    assert str(caught.value) == (
        f"{state.directory}: is in use by the seeder with process id {os.getpid()}"
    )
    assert holder(state.directory) == os.getpid()
    state.close()
    state.close()
    assert holder(state.directory) is None
    State(state.directory).close()
    assert holder(state.directory / "nowhere") is None


def test_a_look_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who looks just then whether a seeder runs doesn't keep one from starting."""
    State(tmp_path).close()
    looking = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
    with State(tmp_path):
        assert holder(tmp_path) == os.getpid()
    os.close(looking)


def test_a_look_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody may read the file, so that anybody could lock it: the error comes soon."""
    State(tmp_path).close()
    clock = iter([0.0, 1.0, 1.1])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr("time.sleep", lambda _: None)
    looking = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    with pytest.raises(BusyError):
        State(tmp_path)
    assert next(clock, None) is None
    os.close(looking)


def test_a_directory_that_can_t_be_made(tmp_path: Path) -> None:
    """The error names the path."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotFoundError) as caught:
        State(tmp_path / "file" / "state")
    assert str(caught.value).endswith(": Not a directory")


def test_another_version_is_refused(tmp_path: Path) -> None:
    """A state of the future isn't touched; neither is a file that is no database."""
    State(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "state.sqlite")) as db:
        db.execute("PRAGMA user_version = 4")
    with pytest.raises(InvalidInputError) as caught:
        State(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'state.sqlite'}: is of version 4, not 3"
    (tmp_path / "state.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(InvalidInputError) as caught:
        State(tmp_path)
    assert "is not a database of a seeder" in str(caught.value)
    assert holder(tmp_path) is None


def test_a_failed_transaction_leaves_nothing(state: State) -> None:
    """A NAR appears with all its publications or not at all."""

    def trackers() -> Iterator[str]:
        yield "t"
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        state.add(NAR, trackers(), 5)
    assert state.offers() == []
    state.add(NAR, ["t"], 5)
    assert len(state.offers()) == 1


def test_a_state_of_version_1_is_taken_over(tmp_path: Path) -> None:
    """Payloads and what trackers know of them stay; items are looked up anew."""
    (tmp_path / "payloads").mkdir()
    with closing(sqlite3.connect(tmp_path / "state.sqlite")) as db, db:
        db.executescript(
            "CREATE TABLE nars (nar_hash BLOB PRIMARY KEY, store_path TEXT NOT NULL,"
            " nar_size INTEGER NOT NULL, payload TEXT NOT NULL, length INTEGER NOT NULL,"
            " infohash TEXT NOT NULL, torrent BLOB NOT NULL, narinfo BLOB NOT NULL) WITHOUT ROWID;"
            "CREATE TABLE publications (nar_hash BLOB NOT NULL REFERENCES nars ON DELETE CASCADE,"
            " tracker TEXT NOT NULL, due REAL NOT NULL, published REAL, message TEXT NOT NULL,"
            " PRIMARY KEY (nar_hash, tracker)) WITHOUT ROWID;"
            "CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
            "CREATE TABLE misses (store_path TEXT PRIMARY KEY); PRAGMA user_version = 1;"
        )
        db.execute("INSERT INTO nars VALUES (?, ?, ?, ?, ?, ?, ?, ?)", NAR)
        db.execute("INSERT INTO publications VALUES (?, 't', 7, 3, '')", (NAR.nar_hash,))
        db.execute("INSERT INTO notes VALUES ('acl', 'x')")
    with State(tmp_path) as state:
        assert state.get(NAR.nar_hash) == NAR
        assert [offer.payload for offer in state.offers()] == ["x.nar.zst"]
        assert state.publications() == [Published("t", 1, 0, "")]
        assert state.note("acl") == "x"
        assert state.orphans() == []
        assert (len(state.items), state.items.held()) == (0, 0)
        state.drop(NAR.nar_hash)
        assert state.publications() == []
    State(tmp_path).close()


def test_a_state_of_version_2_gets_the_index_of_a_new_one(tmp_path: Path) -> None:
    """Without it holdings could not be brought up to date."""
    State(tmp_path / "new").close()
    (wanted,) = indexes(tmp_path / "new")
    with State(tmp_path / "old") as state:
        state.items.add([(Item(1, NAR.store_path, NAR.nar_hash, NAR.nar_size), OFFERED)])
    with closing(sqlite3.connect(tmp_path / "old" / "state.sqlite")) as db:
        db.executescript(
            "DROP INDEX items_hash; CREATE INDEX items_hash ON items (nar_hash);"
            "PRAGMA user_version = 2;"
        )
    assert indexes(tmp_path / "old") != [wanted]
    with State(tmp_path / "old") as state:
        assert state.items.sync()
        assert state.items.change(0).added == NAR.nar_hash
    assert indexes(tmp_path / "old") == [wanted]


def indexes(directory: Path) -> list[str]:
    """How the index of the hashes of items was made."""
    with closing(sqlite3.connect(directory / "state.sqlite")) as db:
        query = "SELECT sql FROM sqlite_schema WHERE name = 'items_hash'"
        return [sql for (sql,) in db.execute(query)]


def test_eviction_keeps_the_torrent(state: State) -> None:
    """The file goes, and nothing of it is published or seeded; the torrent is there again."""
    (state.payloads / "x.nar.zst").write_bytes(b"payload")
    state.add(NAR, ["t"], 5)
    state.evict(NAR.nar_hash)
    assert list(state.payloads.iterdir()) == []
    assert (state.offers(), state.used(), state.due("t", 9, 1e9, 9)) == ([], 0, [])
    assert state.sample("t", 1e9) is None
    assert state.publications() == [Published("t", 0, 0, "")]
    assert state.get(NAR.nar_hash) == NAR
    state.add(NAR, ["t"], 6)
    assert len(state.offers()) == 1
    assert len(state.due("t", 9, 1e9, 9)) == 1


def test_what_says_how_much_a_payload_is_worth(state: State) -> None:
    """Requests and bytes sent add up, also over an eviction; sending nothing is no use."""
    state.add(NAR, [], 5)
    state.requested(NAR.nar_hash, 10)
    state.sent([(NAR.nar_hash, 100, 3)], 20)
    state.sent([(NAR.nar_hash, 0, 4)], 30)
    assert state.payload_list() == [Payload(NAR.nar_hash, 7, 1, 100, 20.0, 4)]
    state.evict(NAR.nar_hash)
    assert state.payload_list() == []
    state.add(NAR, [], 40)
    assert state.payload_list() == [Payload(NAR.nar_hash, 7, 1, 100, 40.0, 4)]


def test_orphans(state: State) -> None:
    """A payload stays as long as an item has its NAR, and until one has if it was adopted."""
    item = Item(1, NAR.store_path, NAR.nar_hash, NAR.nar_size)
    state.add(NAR, [], 5)
    assert [offer.nar_hash for offer in state.orphans()] == [NAR.nar_hash]
    state.items.add([(item, OFFERED)])
    assert state.orphans() == []
    state.items.mark([item.store_path], WITHDRAWN)
    assert len(state.orphans()) == 1
    state.add(NAR, [], 5, adopted=True)
    assert state.orphans() == []
    state.items.mark([item.store_path], OFFERED)
    assert state.orphans() == []
    state.items.remove(item.store_path)
    assert len(state.orphans()) == 1


def test_the_newest_item_without_a_payload(state: State) -> None:
    """Which is made in quiet times, except for those that can't be."""
    items = [Item(n, f"/gnu/store/{n}", bytes([n]) * 32, 1) for n in range(3)]
    state.items.add((item, OFFERED) for item in items)
    assert state.unmade([]) == items[2].nar_hash
    assert state.unmade([items[2].nar_hash]) == items[1].nar_hash
    state.add(NAR._replace(nar_hash=items[2].nar_hash), [], 5)
    assert state.unmade([]) == items[1].nar_hash
    state.items.mark([item.store_path for item in items], WITHDRAWN)
    assert state.unmade([]) is None
