# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.seedersource, against a seeder that says what the test wants."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any, cast

import pytest
import zstandard

from narswarm import base32, nar
from narswarm.candidates import MAKING_RATE
from narswarm.download import Progress
from narswarm.errors import NetworkError
from narswarm.fetchclient import SeederClient, Source, Wanted
from narswarm.payload import Kind
from substituter.ahead import GRACE
from substituter.plan import PlanWriter
from substituter.race import Standing
from substituter.seedersource import SeederSource, Wait
from substituter.session import Session
from substituter.settings import SubstituterSettings
from substituter.sources import Patience
from substituter.substitute import Substitute
from tests.narswarm.fakeseeder import DONE, FakeSeeder, progress, source
from tests.substituter.conftest import Item, Site, World
from tests.substituter.test_sources import Seen

Make = Callable[..., Item]
PATIENCE = Patience(20.0, 20.0, 20.0)


@pytest.fixture
def seeder(tmp_path: Path) -> Iterator[FakeSeeder]:
    """A seeder."""
    (tmp_path / "seeder").mkdir()
    made = FakeSeeder(tmp_path / "seeder")
    yield made
    made.more.set()
    made.server.close()


def offered(seeder: FakeSeeder, item: Item, name: str = "aa") -> tuple[object, Path]:
    """What the seeder says of an item's payload."""
    payload = zstandard.compress(item.nar)
    return source(name, len(payload)), seeder.file(payload)


def fetch(
    seeder: FakeSeeder, item: Item, patience: Patience = PATIENCE, refused: set[str] | None = None
) -> tuple[SeederSource, list[str], bytes]:
    """The source, what the user saw, and the NAR."""
    shown: list[str] = []
    wanted = Wanted(item.nar_hash, len(item.nar), item.path)
    with SeederClient(seeder.path, timeout=120) as client:
        made = SeederSource(client, wanted, patience, "a", refused or set())
        with made.nar(Seen(shown)) as chunks:
            return made, shown, b"".join(chunks)


def test_what_the_seeder_has_is_decompressed(seeder: FakeSeeder, make_item: Make) -> None:
    """As soon as it is there; the user sees the torrent."""
    item = make_item("a", os.urandom(100_000))
    line, path = offered(seeder, item)
    seeder.say((line, path), progress(1000), DONE)
    made, shown, data = fetch(seeder, item)
    assert data == item.nar
    assert made.infohash == "aa"
    assert shown == [f"@ download-started /dest bittorrent://aa/a,swarm {path.stat().st_size}\n"]


def test_a_torrent_that_was_wrong_is_not_taken_again(seeder: FakeSeeder, make_item: Make) -> None:
    """Also if the seeder hasn't heard of it."""
    item = make_item("a")
    seeder.say(offered(seeder, item), DONE)
    with pytest.raises(NetworkError) as caught:
        fetch(seeder, item, refused={"aa"})
    assert str(caught.value) == "the seeder's a: was wrong before"


def test_a_seeder_that_finds_nothing_is_not_waited_for(seeder: FakeSeeder, make_item: Make) -> None:
    """Patience is the same as with a session of our own."""
    seeder.say()
    with pytest.raises(NetworkError) as caught:
        fetch(seeder, make_item("a"), Patience(0.0, 0.0, 0.0))
    assert "the seeder has found no torrent yet" in str(caught.value)


@pytest.mark.parametrize(
    ("looks", "over"),
    [
        ([(2.0, False)], False),
        ([(2.1, False)], True),
        ([(9.9, True)], False),
        ([(10.1, True)], True),
        ([(9.9, True), (11.9, False)], False),
        ([(9.9, True), (12.0, False)], True),
        ([(9.9, True), (10.1, True)], False),
    ],
)
def test_who_has_it_prepared_is_waited_for(looks: list[tuple[float, bool]], *, over: bool) -> None:
    """As long as a payload of that size may take to be made; what the swarm takes comes on top."""
    wait = Wait(Patience(2.0, 2.0, 2.0), 10 * MAKING_RATE, 0.0)
    for now, preparing in looks:
        nothing = Progress(0, 0, 0, 0, now, 0)
        said = wait.is_over(nothing, now, preparing=preparing, alone=False)
    assert said is over


def test_another_torrent_in_the_middle_can_be_asked_for(
    seeder: FakeSeeder, make_item: Make
) -> None:
    """The NAR begins anew then, so this try is over; `changed` says that one more is worth it."""
    item = make_item("a", os.urandom(3 << 20))
    payload = zstandard.compress(item.nar)
    first = (source("aa", len(payload)), seeder.file(payload))
    seeder.say(first, progress(2 << 20), seeder.more, (source("bb", len(payload)), first[1]), DONE)
    wanted = Wanted(item.nar_hash, len(item.nar), item.path)
    with SeederClient(seeder.path, timeout=120) as client:
        made = SeederSource(client, wanted, PATIENCE, "a", set())

        def read() -> None:
            with made.nar(Seen([])) as chunks:
                for _ in chunks:
                    seeder.more.set()

        with pytest.raises(NetworkError) as caught:
            read()
        assert str(caught.value).endswith(": another torrent is tried")
    assert made.changed


class Coming:
    """What is fetched, as the test says."""

    def __init__(self, done: int, peers: int, pace: tuple[float, float] | None) -> None:
        self.source_now: Source | None = Source("aa", Kind.ZSTD, 500)
        self.done = done
        self.peers = peers
        self.pace_now = pace
        self.members = 0

    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self.done, 500, self.peers, 10, 9.0, self.done)

    def pace(self) -> tuple[float, float] | None:
        """Of everything."""
        return self.pace_now


def test_how_far_it_is_counts_all_that_the_seeder_has() -> None:
    """Pieces that can't be read yet, and what comes beside it, which shares the line."""
    client: Any = None
    made = SeederSource(client, Wanted(b"", 1000, "/gnu/store/a"), PATIENCE, "a", set())
    one = Standing(last=1.0, rate=5.0, position=20)
    assert made.standing(one, 10.0) == one
    made._fetching = coming = cast("Any", Coming(100, 3, (900.0, 2.0)))
    seen = made.standing(one, 10.0)
    assert seen == one._replace(position=200, last=10.0, rate=900.0)
    assert made.standing(one, 13.0) == seen._replace(last=11.0)
    assert made.standing(one, 90.0) == seen._replace(last=10.0 + GRACE)
    coming.pace_now = None
    assert made.standing(one, 14.0) == seen._replace(rate=5.0)
    coming.peers = 1
    assert made.standing(one, 14.0).lonely
    coming.members = 7
    crowded = made.standing(one, 14.0)
    assert (crowded.lonely, crowded.members) == (False, 7)
    assert made.standing(one._replace(rate=None), 14.0).rate is None


def test_what_is_not_found_yet_waits_as_long_as_others_come() -> None:
    """From the first look on; what they bring says nothing of how fast it will be."""
    client: Any = None
    made = SeederSource(client, Wanted(b"", 1000, "/gnu/store/a"), PATIENCE, "a", set())
    made._fetching = coming = cast("Any", Coming(0, 0, (900.0, 2.0)))
    coming.source_now = None
    one = Standing(since=50.0)
    assert made.standing(one, 50.0) == one._replace(last=50.0)
    assert made.standing(one, 55.0) == one._replace(last=53.0)
    assert made.standing(one, 90.0) == one._replace(last=50.0 + GRACE)


def substitute(world: World, item: Item, destination: Path) -> bytes:
    """The status of one item, without a session of our own."""
    replies: list[bytes] = []
    session = Session(world.context.settings, world.context.warn)
    line = f"substitute {item.path} {destination}\n".encode()
    Substitute(world.context, session, replies.append).run(io.BytesIO(line))
    return b"".join(replies)


def test_the_seeder_serves_without_a_session_and_is_told_the_plan(
    enter: Callable[..., World],
    make_item: Make,
    settings: SubstituterSettings,
    seeder: FakeSeeder,
    site: Site,
    tmp_path: Path,
) -> None:
    """The item comes from it, and what the client asked about is fetched ahead."""
    item, later, unknown = make_item("a", os.urandom(50_000)), make_item("b"), make_item("c")
    for each in (item, later):
        site.offer(each, "zstd")
    changed = dataclasses.replace(settings, seeder=str(seeder.path), policy="swarm-first")
    world = enter(site.url, changed=changed)
    PlanWriter(world.context.plans).add([unknown.path, later.path, item.path])
    seeder.say(offered(seeder, item), DONE)
    assert substitute(world, item, tmp_path / "out").startswith(b"success ")
    assert b"".join(nar.dump(tmp_path / "out")) == item.nar
    requests = [seeder.requests.get(timeout=120) for _ in range(2)]
    by_name = {request["op"]: request for request in requests}
    assert (by_name["fetch"]["store_path"], by_name["fetch"]["more"]) == (item.path, True)
    assert [each["store_path"] for each in by_name["prefetch"]["items"]] == [later.path]
    assert not [request for request in site.requests if "/nar/" in request]


def test_a_lie_is_told_to_the_seeder(
    enter: Callable[..., World],
    make_item: Make,
    settings: SubstituterSettings,
    seeder: FakeSeeder,
    site: Site,
    tmp_path: Path,
) -> None:
    """It refuses the torrent from then on, and the item comes from elsewhere."""
    item, other = make_item("a"), make_item("b", b"evil")
    site.offer(item, "zstd")
    changed = dataclasses.replace(settings, seeder=str(seeder.path), policy="swarm-first")
    seeder.say(offered(seeder, other), DONE)
    world = enter(site.url, changed=changed)
    assert substitute(world, item, tmp_path / "out").startswith(b"success ")
    assert b"".join(nar.dump(tmp_path / "out")) == item.nar
    told = []
    while True:
        try:
            told.append(seeder.requests.get_nowait())
        except Empty:
            break
    refusals = [request for request in told if request["op"] == "refuse"]
    expected = {"nar_hash": base32.format_hash(item.nar_hash), "infohash": "aa"}
    assert [{**refusal, **expected} == refusal for refusal in refusals] == [True]


def test_without_a_seeder_the_rest_goes_on(
    enter: Callable[..., World],
    make_item: Make,
    settings: SubstituterSettings,
    site: Site,
    tmp_path: Path,
) -> None:
    """A socket that nobody listens at is no failure."""
    item = make_item("a")
    site.offer(item, "zstd")
    changed = dataclasses.replace(settings, seeder=str(tmp_path / "none"), policy="swarm-first")
    world = enter(site.url, changed=changed)
    assert substitute(world, item, tmp_path / "out").startswith(b"success ")
    assert world.warnings == []
