# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.fetchclient, against a seeder that says what the test wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from narswarm import fetchclient
from narswarm.control import ControlServer
from narswarm.download import Progress, SwarmStalledError
from narswarm.errors import BusyError, NarswarmError, NetworkError, NotFoundError
from narswarm.fetchclient import SeederClient, Source, SourceChangedError, find
from narswarm.payload import Kind
from tests.narswarm.fakeseeder import (
    DESCRIBED,
    DONE,
    WANTED,
    FakeSeeder,
    open_files,
    progress,
    source,
    wait_for_files,
)


@pytest.fixture
def seeder(tmp_path: Path) -> Iterator[FakeSeeder]:
    """A seeder."""
    made = FakeSeeder(tmp_path)
    yield made
    made.more.set()
    made.server.close()


@pytest.fixture
def client(seeder: FakeSeeder) -> Iterator[SeederClient]:
    """A client of it."""
    with SeederClient(seeder.path, timeout=120) as made:
        yield made


def test_what_is_prepared_is_known_before_a_torrent(
    seeder: FakeSeeder, client: SeederClient
) -> None:
    """It is no torrent yet; then it may be said of the torrent, until bytes come."""
    path = seeder.file(b"content")
    more = threading.Event()
    seeder.say(
        progress(0) | {"preparing": True},
        seeder.more,
        (source(), path),
        progress(0) | {"preparing": True},
        more,
        progress(3) | {"preparing": False},
        progress(7),
        DONE,
    )
    with client.fetch(WANTED) as fetching:
        told = [fetching.preparing]
        while not told[-1]:
            with pytest.raises(SwarmStalledError):
                fetching.source(0.01)
            told.append(fetching.preparing)
        assert not told[0]
        assert (fetching.source_now, fetching.progress().total) == (None, 0)
        seeder.more.set()
        fetching.source(120)
        seen: list[bool] = []

        def stall(_: Progress) -> bool:
            seen.append(fetching.preparing)
            if seen[-1]:
                more.set()
            return False

        assert b"".join(fetching.chunks(stall=stall, tick=0.001)) == b"content"
        assert True in seen
        assert not fetching.preparing


def test_a_payload_is_read_while_it_arrives(seeder: FakeSeeder, client: SeederClient) -> None:
    """No byte beyond what the seeder said is there."""
    path = seeder.file(b"content")
    seeder.say((source(), path), progress(0), progress(3), seeder.more, progress(7), DONE)
    before = open_files()
    with client.fetch(WANTED) as fetching:
        assert fetching.source(120) == Source("aa", Kind.ZSTD, 7)
        assert fetching.source_now == Source("aa", Kind.ZSTD, 7)
        chunks = fetching.chunks()
        assert next(chunks) == b"con"
        now = fetching.progress()
        assert now == Progress(3, 7, 2, 100, now.idle, 3)
        assert now.idle > 0
        seeder.more.set()
        assert b"".join(chunks) == b"tent"
        assert list(fetching.chunks()) == [b"content"]
    assert seeder.requests.get(timeout=120) == {"op": "fetch", "more": False, **DESCRIBED}
    assert seeder.gone.wait(120)
    wait_for_files(before)


def test_the_pace_of_all_is_known(seeder: FakeSeeder, client: SeederClient) -> None:
    """As long as something comes, if the seeder says so; silence goes on while it says nothing."""
    seeder.say(
        (source(), seeder.file(b"content")),
        progress(3),
        seeder.more,
        progress(5) | {"pace": 1000, "quiet": 0.5, "members": 7},
        DONE,
    )
    with client.fetch(WANTED) as fetching:
        chunks = fetching.chunks()
        assert next(chunks) == b"con"
        assert (fetching.pace(), fetching.members) == (None, 0)
        seeder.more.set()
        assert b"".join(chunks) == b"tent"
        rate, quiet = fetching.pace() or (0.0, 0.0)
        assert rate == 1000
        assert quiet >= 0.5
        assert fetching.members == 7


def test_what_is_there_already_is_given_at_once(seeder: FakeSeeder, client: SeederClient) -> None:
    """Without any progress, and in pieces of bounded size."""
    content = bytes(range(256)) * 5000
    seeder.say((source(length=len(content)), seeder.file(content)), DONE)
    with client.fetch(WANTED) as fetching:
        chunks = list(fetching.chunks())
    assert b"".join(chunks) == content
    assert [len(chunk) for chunk in chunks] == [1 << 20, len(content) - (1 << 20)]


def test_another_torrent_begins_again(seeder: FakeSeeder, client: SeederClient) -> None:
    """The reader is told if it has something of the first, and reads the other one then."""
    first, second = seeder.file(b"content"), seeder.file(b"other")
    seeder.say((source(), first), progress(3), seeder.more, (source("bb", 5), second), DONE)
    with client.fetch(WANTED) as fetching:
        chunks = fetching.chunks()
        assert next(chunks) == b"con"
        seeder.more.set()
        with pytest.raises(SourceChangedError) as caught:
            list(chunks)
        assert str(caught.value) == f"{'0' * 32}-item: another torrent is tried"
        assert fetching.source_now == Source("bb", Kind.ZSTD, 5)
        assert b"".join(fetching.chunks()) == b"other"


def test_another_torrent_before_the_first_byte(seeder: FakeSeeder, client: SeederClient) -> None:
    """Nobody has to know."""
    first, second = seeder.file(b""), seeder.file(b"other")
    seeder.say((source(), first), progress(0), (source("bb", 5), second), DONE)
    with client.fetch(WANTED) as fetching:
        assert b"".join(fetching.chunks()) == b"other"


def test_a_fetch_that_fails(seeder: FakeSeeder, client: SeederClient) -> None:
    """The seeder's reason is given, with the item as the subject."""
    seeder.say(NarswarmError(WANTED.store_path, "no torrent is known"))
    with client.fetch(WANTED) as fetching:
        for attempt in (lambda: fetching.source(120), lambda: list(fetching.chunks())):
            with pytest.raises(NetworkError) as caught:
                attempt()
            assert str(caught.value) == f"{'0' * 32}-item: no torrent is known"


def test_what_is_there_is_read_before_an_error(seeder: FakeSeeder, client: SeederClient) -> None:
    """A torrent that fails later may have been enough for somebody."""
    seeder.say((source(), seeder.file(b"con")), progress(3), NarswarmError("x", "stalled"))
    with client.fetch(WANTED) as fetching:
        chunks = fetching.chunks()
        assert next(chunks) == b"con"
        with pytest.raises(NetworkError) as caught:
            next(chunks)
    assert str(caught.value) == f"{'0' * 32}-item: stalled"


def test_no_torrent_in_time(seeder: FakeSeeder, client: SeederClient) -> None:
    """Waiting for one ends."""
    seeder.say(seeder.more)
    with client.fetch(WANTED) as fetching:
        assert fetching.source_now is None
        with pytest.raises(SwarmStalledError) as caught:
            fetching.source(0.01)
    assert str(caught.value) == f"{'0' * 32}-item: the seeder has found no torrent yet"


def test_the_rule_for_stalls_ends_it(seeder: FakeSeeder, client: SeederClient) -> None:
    """It sees the progress, also before there is a torrent."""
    seen: list[Progress] = []

    def stall(now: Progress) -> bool:
        seen.append(now)
        if len(seen) == 1:
            seeder.more.set()
        return now.total == 7

    seeder.say(seeder.more, (source(), seeder.file(b"")), progress(0))
    with client.fetch(WANTED) as fetching, pytest.raises(SwarmStalledError) as caught:
        list(fetching.chunks(stall=stall, tick=0.01))
    assert str(caught.value) == (
        f"{'0' * 32}-item: the swarm stalled at 0 of 7 bytes with {seen[-1].peers} peers"
    )
    assert seen[0].total == 0
    assert seeder.gone.wait(120)


@pytest.mark.parametrize(
    "line",
    [
        {"event": "progress"},
        progress(0) | {"pace": float("nan"), "quiet": 0.0},
        progress(0) | {"pace": 1.0, "quiet": -1.0},
        progress(0) | {"pace": float("inf"), "quiet": 0.0},
        progress(0) | {"pace": [], "quiet": 0.0},
        progress(0) | {"members": []},
        progress(0) | {"members": float("inf")},
        progress(0) | {"contiguous": float("inf")},
        {"event": "source", "infohash": "aa", "kind": "nar.zst", "length": 7},
        {"none": 1},
    ],
)
def test_a_seeder_that_says_something_else(
    seeder: FakeSeeder, client: SeederClient, line: dict[str, Any]
) -> None:
    """Is no source."""
    seeder.say(line)
    with client.fetch(WANTED) as fetching, pytest.raises(NetworkError) as caught:
        list(fetching.chunks())
    assert str(caught.value) == f"{'0' * 32}-item: the seeder answers something else"


def test_an_unknown_kind_leaves_no_file_open(seeder: FakeSeeder, client: SeederClient) -> None:
    """Whatever is passed is closed."""
    seeder.say((source() | {"kind": "tar"}, seeder.file(b"")))
    before = open_files()
    with client.fetch(WANTED) as fetching, pytest.raises(NetworkError):
        list(fetching.chunks())
    assert seeder.gone.wait(120)
    wait_for_files(before)


def test_a_file_that_is_shorter(seeder: FakeSeeder, client: SeederClient) -> None:
    """Is an error rather than a wait without end."""
    seeder.say((source(), seeder.file(b"con")), DONE)
    with client.fetch(WANTED) as fetching, pytest.raises(NetworkError) as caught:
        list(fetching.chunks())
    assert str(caught.value) == f"{'0' * 32}-item: the payload is shorter than the seeder says"


def test_a_broken_connection(tmp_path: Path) -> None:
    """The fetch ends, as when the seeder is restarted."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with SeederClient(tmp_path / "s", timeout=120).fetch(WANTED) as fetching:
            listener.accept()[0].close()
            with pytest.raises(NetworkError) as caught:
                list(fetching.chunks())
    assert str(caught.value) == f"{'0' * 32}-item: the seeder has closed the connection"


def test_plans_belong_to_the_client(seeder: FakeSeeder) -> None:
    """More can be added; when the client ends, so does the plan."""
    with SeederClient(seeder.path, timeout=120) as client:
        assert client.prefetch([WANTED, WANTED]) == 2
        assert client.prefetch([WANTED]) == 1
        assert seeder.requests.get(timeout=120) == {"op": "prefetch", "items": [DESCRIBED] * 2}
        assert not seeder.gone.is_set()
    assert seeder.gone.wait(120)


def test_long_plans_are_sent_in_parts(
    seeder: FakeSeeder, client: SeederClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request has a largest size."""
    monkeypatch.setattr(fetchclient, "BATCH", 2)
    assert client.prefetch([WANTED] * 5) == 5
    sizes = [len(seeder.requests.get(timeout=120)["items"]) for _ in range(3)]
    assert sizes == [2, 2, 1]


def test_a_refusal_is_passed_on(seeder: FakeSeeder, client: SeederClient) -> None:
    """With the NAR and the torrent."""
    client.refuse(WANTED.nar_hash, "ab" * 32)
    assert seeder.requests.get(timeout=120) == {
        "op": "refuse",
        "nar_hash": DESCRIBED["nar_hash"],
        "infohash": "ab" * 32,
    }


def _errors(client: SeederClient) -> list[Callable[[], object]]:
    return [
        lambda: client.fetch(WANTED),
        lambda: client.prefetch([WANTED]),
        lambda: client.refuse(WANTED.nar_hash, "ab" * 32),
    ]


def test_no_seeder(tmp_path: Path) -> None:
    """Known at once, whatever is asked."""
    for attempt in _errors(SeederClient(tmp_path / "none")):
        with pytest.raises(NotFoundError) as caught:
            attempt()
        assert str(caught.value) == f"{tmp_path}/none: no seeder listens there"


def test_a_seeder_that_does_not_answer(tmp_path: Path) -> None:
    """Is given up after the time."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        client = SeederClient(tmp_path / "s", timeout=0.01)
        for attempt in _errors(client)[1:]:
            with pytest.raises(BusyError) as caught:
                attempt()
            assert str(caught.value) == f"{tmp_path}/s: its seeder does not answer"
        client.close()


def test_errors_of_the_seeder(tmp_path: Path) -> None:
    """Are those of the client."""
    server = ControlServer(tmp_path, {}, permitted=lambda _op, _caller: False)
    with SeederClient(tmp_path / "control.sock") as client, pytest.raises(NarswarmError) as caught:
        client.refuse(WANTED.nar_hash, "ab" * 32)
    server.close()
    assert str(caught.value) == "request: no such operation; there are: "


def test_where_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting, or the usual places; an empty setting is none."""
    places = (tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(fetchclient, "SOCKETS", places)
    assert find() is None
    places[1].touch()
    assert find() == places[1]
    places[0].touch()
    assert find() == places[0]
    assert find("") is None
    assert find("/x") == Path("/x")
