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
from seeder.state import Due, Nar, Offer, Published, State, holder

NAR = Nar(b"h" * 32, "/gnu/store/x", 100, "x.nar.zst", 7, "ab" * 32, b"torrent", b"narinfo")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """A new state."""
    with State(tmp_path / "state") as opened:
        yield opened


def test_what_is_kept_survives(tmp_path: Path) -> None:
    """Everything that is needed to seed and to publish is there again after a restart."""
    with State(tmp_path) as state:
        state.add(NAR, ["t1", "t2"])
        state.set_note("acl", "1")
    with State(tmp_path) as state:
        assert state.offers() == [Offer(NAR.nar_hash, NAR.store_path, "x.nar.zst", 7, NAR.infohash)]
        assert state.get(NAR.nar_hash) == NAR
        assert state.due("t2", 0, 9) == [Due(NAR.nar_hash, b"torrent", b"narinfo")]
        assert state.used() == 7
        assert state.note("acl") == "1"
        assert state.note("other") is None


def test_dropping_removes_the_payload(state: State) -> None:
    """Row, payload and publications go together; a second time is no error."""
    (state.payloads / "x.nar.zst").write_bytes(b"payload")
    state.add(NAR, ["t1"])
    state.drop(NAR.nar_hash)
    state.drop(NAR.nar_hash)
    assert (state.offers(), state.due("t1", 9, 9), state.used()) == ([], [], 0)
    assert list(state.payloads.iterdir()) == []
    with pytest.raises(NotFoundError) as caught:
        state.get(NAR.nar_hash)
    assert str(caught.value).endswith(": is not offered")


def test_files_without_a_row_are_swept(state: State) -> None:
    """What a killed seeder left half-written goes; what is offered stays."""
    state.add(NAR, [])
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
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(InvalidInputError) as caught:
        State(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'state.sqlite'}: is of version 2, not 1"
    (tmp_path / "state.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(InvalidInputError) as caught:
        State(tmp_path)
    assert "is not a database of a seeder" in str(caught.value)
    assert holder(tmp_path) is None


def test_publications_come_due(state: State) -> None:
    """Published and refused NARs are due again when it was said."""
    state.add(NAR, ["t"])
    assert len(state.due("t", 0, 9)) == 1
    state.published(NAR.nar_hash, "t", 10, 100)
    assert state.due("t", 99, 9) == []
    assert len(state.due("t", 100, 9)) == 1
    assert state.publications() == [Published("t", 1, 0, "")]
    state.refused(NAR.nar_hash, "t", 200, "no")
    assert state.due("t", 199, 9) == []
    assert state.publications() == [Published("t", 0, 1, "no")]


def test_what_is_due_longest_comes_first(state: State) -> None:
    """An item that fails again and again doesn't hold up the others."""
    other = NAR._replace(nar_hash=b"i" * 32, store_path="/gnu/store/y")
    state.add(NAR, ["t"])
    state.add(other, ["t"])
    state.refused(NAR.nar_hash, "t", 5, "no")
    assert [due.nar_hash for due in state.due("t", 5, 9)] == [other.nar_hash, NAR.nar_hash]
    assert [due.nar_hash for due in state.due("t", 5, 1)] == [other.nar_hash]


def test_trackers_may_change(state: State) -> None:
    """A new tracker gets everything; what was published to the others is remembered."""
    state.add(NAR, ["old", "kept"])
    state.published(NAR.nar_hash, "kept", 1, 100)
    state.track(["kept", "new"])
    assert state.publications() == [Published("kept", 1, 0, ""), Published("new", 0, 1, "")]
    state.track([])
    assert state.publications() == []


def test_misses_are_tried_at_longer_intervals(state: State) -> None:
    """The time doubles up to a limit; success ends it."""
    dues = []
    for _ in range(5):
        state.miss(NAR.store_path, "not vouched for", 0, 60, 300)
        dues.append(next(t for t in range(400) if state.retries(t)))
    assert dues == [60, 120, 240, 300, 300]
    assert state.missed() == {NAR.store_path}
    assert state.misses() == {"not vouched for": 1}
    state.add(NAR, [])
    assert state.misses() == {}
    state.miss("/gnu/store/y", "no room", 0, 60, 300)
    state.forget(["/gnu/store/y", "/gnu/store/z"])
    assert state.missed() == set()


def test_a_failed_transaction_leaves_nothing(state: State) -> None:
    """A NAR appears with all its publications or not at all."""

    def trackers() -> Iterator[str]:
        yield "t"
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        state.add(NAR, trackers())
    assert state.offers() == []
    state.add(NAR, ["t"])
    assert len(state.offers()) == 1
