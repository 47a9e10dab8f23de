# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.fetching with real sessions on loopback, asked through the socket."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from narswarm.candidates import Candidate
from narswarm.control import ControlServer
from narswarm.download import Download, Progress
from narswarm.errors import BusyError, NarswarmError, NetworkError
from narswarm.fetchclient import SeederClient, Wanted
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.pace import Pace
from narswarm.payload import Kind, file_name
from narswarm.swarm import Swarm
from narswarm.swarm_settings import SwarmSettings
from seeder import fetching
from seeder.fetching import Fetched, Fetcher, Local
from seeder.fetching_control import FetchControl, Permissions
from seeder.fetching_job import View
from seeder.fetching_plan import MIN_RATE
from seeder.fetching_store import FetchStore

SETTINGS = SwarmSettings(
    listen=("127.0.0.1:0",), dht=False, lsd=False, upnp=False, private_network=True, role="seed"
)


class Finder:
    """Knows torrents; waits for the test where it is told to."""

    def __init__(self) -> None:
        self.torrents: dict[bytes, list[Candidate]] = {}
        self.refused: list[tuple[bytes, str]] = []
        self.asked: SimpleQueue[bytes] = SimpleQueue()
        self.gates: dict[bytes, threading.Event] = {}

    def known(self, nar_hash: bytes, _nar_size: int) -> list[Candidate]:
        """What the test made."""
        self.asked.put(nar_hash)
        if nar_hash in self.gates:
            assert self.gates[nar_hash].wait(120)
        refused = {infohash for which, infohash in self.refused if which == nar_hash}
        return [each for each in self.torrents.get(nar_hash, []) if each.infohash not in refused]

    def ask(self, *_: Any, **_more: Any) -> Iterator[Candidate]:
        """Nobody knows more."""
        return iter(())

    def refuse(self, nar_hash: bytes, infohash: str) -> None:
        """Remember it."""
        self.refused.append((nar_hash, infohash))


class Finish:
    """Has nothing, and takes what the test wants it to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.here: dict[bytes, Local] = {}
        self.finished: SimpleQueue[Fetched] = SimpleQueue()
        self.take = False
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.withdrawn: list[tuple[bytes, str]] = []

    def local(self, nar_hash: bytes) -> Local | None:
        """What was taken."""
        return self.here.get(nar_hash)

    def finish(self, fetched: Fetched, leave: Callable[[], None]) -> Path | None:
        """Move the file."""
        try:
            self.gate.wait(120)
            if self.error is not None:
                raise self.error
            if not self.take:
                return None
            leave()
            path = fetched.payload.path.rename(self.directory / fetched.payload.path.name)
            self.here[fetched.wanted.nar_hash] = fetched.payload._replace(path=path)
            return path
        finally:
            self.finished.put(fetched)

    def withdraw(self, nar_hash: bytes, infohash: str) -> None:
        """Remember it."""
        self.withdrawn.append((nar_hash, infohash))
        self.here.pop(nar_hash, None)


class World:
    """A seeder that has everything, and a fetcher with its socket."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.source = stack.enter_context(Swarm(SETTINGS))
        self.swarm = stack.enter_context(Swarm(SETTINGS))
        self.finder = Finder()
        (directory / "taken").mkdir()
        self.finish = Finish(directory / "taken")
        self.store = FetchStore(directory / "fetching", 10 << 20)
        self.fetcher = Fetcher(
            swarm=self.swarm, torrents=self.finder, store=self.store, finisher=self.finish
        )
        stack.callback(self.fetcher.close)
        control = FetchControl(self.fetcher)
        server = ControlServer(
            directory,
            control.operations,
            streams=control.streams,
            permitted=Permissions(()),
        )
        stack.callback(server.close)
        self._stack = stack
        self._count = 0

    def client(self) -> SeederClient:
        """A program of this machine."""
        return self._stack.enter_context(SeederClient(self.directory / "control.sock", timeout=120))

    def make(self, size: int = 200_000, *, seeded: bool = True) -> Wanted:
        """A NAR that can be fetched."""
        self._count += 1
        data = os.urandom(size)
        wanted = Wanted(hashlib.sha256(data).digest(), size, f"/gnu/store/{'0' * 32}-{self._count}")
        directory = self.directory / f"source-{self._count}"
        directory.mkdir()
        payload = directory / file_name(wanted.nar_hash, Kind.NAR)
        payload.write_bytes(data)
        hasher = PieceHasher()
        hasher.update(data)
        meta = Metainfo.of(payload.name, hasher.finish())
        if seeded:
            self.source.seed(meta.encode(), payload, [])
        peers = (("127.0.0.1", self.source.listen_port),)
        self.finder.torrents[wanted.nar_hash] = [
            Candidate(meta.encode(), meta.infohash_v2.hex(), meta.length, Kind.NAR, peers)
        ]
        return wanted

    def infohash(self, wanted: Wanted) -> str:
        """Of the torrent of a NAR."""
        return self.finder.torrents[wanted.nar_hash][0].infohash

    def get(self, wanted: Wanted) -> bytes:
        """Fetch a NAR and check it."""
        with self.client().fetch(wanted) as fetch:
            data = b"".join(fetch.chunks(stall=lambda progress: progress.idle > 120))
        assert hashlib.sha256(data).digest() == wanted.nar_hash
        return data

    def views(self) -> dict[bytes, View]:
        """What is fetched, and was."""
        return {wanted.nar_hash: view for wanted, view, _ in self.fetcher.views()}

    def until(self, ready: Callable[[], object]) -> None:
        """Wait until something is so."""
        pause = threading.Event()
        for _ in range(12_000):
            if ready():
                return
            pause.wait(0.01)
        raise AssertionError("it never was")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Two sessions and a socket."""
    with ExitStack() as stack:
        yield World(tmp_path, stack)


def test_small_and_large_payloads(world: World) -> None:
    """Each is what it should be, and out of the swarm when nobody may offer it."""
    for size in (1, 65_536, 200_000, 5_000_000):
        world.get(world.make(size))
        world.finish.finished.get(timeout=120)
    world.until(lambda: world.swarm.status() == [])


def test_what_was_fetched_is_there_at_once(world: World) -> None:
    """The second time nobody is asked."""
    wanted = world.make()
    world.get(wanted)
    world.finish.finished.get(timeout=120)
    assert world.finder.asked.get(timeout=120) == wanted.nar_hash
    world.get(wanted)
    assert world.finder.asked.empty()


def test_one_fetch_for_many(world: World) -> None:
    """Whoever wants the same shares it; it ends with the last of them."""
    wanted = world.make()
    gate = world.finder.gates[wanted.nar_hash] = threading.Event()
    first, second = world.client().fetch(wanted), world.client().fetch(wanted)
    world.until(lambda: [job.users for job in world.fetcher._jobs.values()] == [2])
    first.close()
    world.until(lambda: [job.users for job in world.fetcher._jobs.values()] == [1])
    gate.set()
    with second:
        assert hashlib.sha256(b"".join(second.chunks())).digest() == wanted.nar_hash
    assert world.finder.asked.qsize() == 1


def test_a_closed_connection_cancels(world: World) -> None:
    """The torrent leaves the session; asking again begins again, when that has ended."""
    wanted = world.make(seeded=False)
    with world.client().fetch(wanted) as fetch:
        assert fetch.source(120).kind is Kind.NAR
        assert len(world.swarm.status()) == 1
    with world.client().fetch(wanted) as fetch:
        assert fetch.source(120).infohash == world.infohash(wanted)
        assert len(world.swarm.status()) == 1
    world.until(lambda: world.swarm.status() == [])
    assert world.views() == {}


def test_no_torrent_is_an_error(world: World) -> None:
    """As soon as that is known."""
    wanted = Wanted(b"\1" * 32, 5, f"/gnu/store/{'0' * 32}-none")
    with world.client().fetch(wanted) as fetch, pytest.raises(NetworkError) as caught:
        list(fetch.chunks())
    assert str(caught.value) == f"{'0' * 32}-none: no torrent is known"
    world.until(lambda: world.views() == {})


def test_what_is_taken_over_is_read_where_it_is(world: World) -> None:
    """Also by those who began to read it before."""
    world.finish.take = True
    wanted = world.make()
    data = world.get(wanted)
    fetched = world.finish.finished.get(timeout=120)
    assert fetched.torrent == world.finder.torrents[wanted.nar_hash][0].torrent
    assert world.finish.here[wanted.nar_hash].path.read_bytes() == data
    world.until(lambda: (world.views(), world.store.used) == ({}, 0))
    world.get(wanted)
    assert world.finder.asked.qsize() == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [(NarswarmError("x", "is bad"), "x: is bad"), (ZeroDivisionError(), f"{'0' * 32}-1")],
)
def test_what_cannot_be_taken_over(
    world: World, caplog: pytest.LogCaptureFixture, error: Exception, message: str
) -> None:
    """Is kept for those who want it, and the reason is logged."""
    world.finish.error = error
    wanted = world.make()
    world.get(wanted)
    world.finish.finished.get(timeout=120)
    world.until(lambda: world.store.room == 10 << 20)
    world.get(wanted)
    assert [text.removeprefix("/gnu/store/") for text in caplog.messages] == [message]


def test_a_refused_payload_is_gone(world: World) -> None:
    """From the disk, from what is offered, and from what is known."""
    wanted = world.make()
    world.get(wanted)
    world.finish.finished.get(timeout=120)
    infohash = world.infohash(wanted)
    world.until(lambda: world.store.room == 10 << 20)
    world.client().refuse(wanted.nar_hash, infohash)
    assert world.finder.refused == world.finish.withdrawn == [(wanted.nar_hash, infohash)]
    assert (world.store.used, world.views()) == (0, {})
    with world.client().fetch(wanted) as fetch, pytest.raises(NetworkError):
        list(fetch.chunks())


def test_room_is_made(world: World) -> None:
    """By payloads that nobody reads; they are fetched again when they are wanted."""
    items = [world.make(4 << 20) for _ in range(3)]
    for wanted in items:
        world.get(wanted)
        world.finish.finished.get(timeout=120)
    world.until(lambda: items[0].nar_hash not in world.views())
    world.get(items[0])


def test_a_plan_is_fetched_ahead(world: World) -> None:
    """Then it is there; items that can't be fetched hold nothing up."""
    items = [world.make(50_000) for _ in range(5)]
    missing = Wanted(b"\1" * 32, 5, f"/gnu/store/{'0' * 32}-none")
    client = world.client()
    assert client.prefetch([items[0], missing, *items[1:]]) == 6
    hashes = {item.nar_hash for item in items}
    world.until(lambda: {key for key, view in world.views().items() if view.complete} == hashes)
    while not world.finder.asked.empty():
        world.finder.asked.get()
    for item in items:
        world.get(item)
    assert world.finder.asked.empty()
    assert world.fetcher.planned == 0
    assert client.prefetch(items) == 5
    world.until(lambda: world.fetcher.planned == 0)


def test_an_abandoned_plan_is_cancelled(world: World) -> None:
    """But not what somebody waits for, nor what is complete."""
    done, waited, abandoned = world.make(), world.make(seeded=False), world.make(seeded=False)
    client = world.client()
    assert client.prefetch([done, waited, abandoned]) == 3
    world.until(lambda: len(world.swarm.status()) == 2 and world.views()[done.nar_hash].complete)
    with world.client().fetch(waited) as fetch:
        fetch.source(120)
        client.close()
        world.until(lambda: len(world.swarm.status()) == 1)
        assert {world.infohash(waited)} == {each.infohash for each in world.swarm.status()}
        assert world.views().keys() == {done.nar_hash, waited.nar_hash}


def test_a_fetch_that_is_also_planned_goes_on(world: World) -> None:
    """When whoever waited for it doesn't any more."""
    wanted = world.make(seeded=False)
    client = world.client()
    with world.client().fetch(wanted) as fetch:
        fetch.source(120)
        assert client.prefetch([wanted]) == 1
        world.until(lambda: world.fetcher.planned == 0)
    assert len(world.swarm.status()) == 1
    client.close()
    world.until(lambda: world.swarm.status() == [])


def test_whoever_waits_goes_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the rate is limited, what is fetched ahead has a share until somebody waits for it."""
    monkeypatch.setattr(world.fetcher, "_rate", 1)
    limits: list[tuple[str, int]] = []
    monkeypatch.setattr(
        Download, "limit", lambda download, rate: limits.append((download.infohash, rate))
    )
    ahead, waited = world.make(2 << 20, seeded=False), world.make(seeded=False)
    infohash = world.infohash(ahead)
    world.client().prefetch([ahead])
    world.until(lambda: [view.serial for view in world.views().values()] == [1])
    with world.client().fetch(waited):
        world.until(lambda: (infohash, MIN_RATE) in limits)
        with world.client().fetch(ahead) as fetch:
            fetch.source(120)
            world.until(lambda: limits[-1] == (infohash, 0))


def test_only_so_much_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is refused; what is planned waits."""
    monkeypatch.setattr(fetching, "MAX_JOBS", 1)
    first, second = world.make(seeded=False), world.make()
    with world.client().fetch(first) as fetch:
        fetch.source(120)
        with world.client().fetch(second) as other, pytest.raises(NetworkError) as caught:
            list(other.chunks())
        assert str(caught.value) == f"{'0' * 32}-2: fetches as much as it can"
    world.fetcher.close()
    with pytest.raises(BusyError) as busy, world.fetcher.use(second, lambda: None):
        pass
    assert str(busy.value) == "seeder: fetches as much as it can"


def test_what_waits_to_be_taken_over_holds_no_room(world: World) -> None:
    """A long queue must not keep others from being fetched; what had to go isn't offered."""
    items = [world.make(4 << 20) for _ in range(4)]
    gate = threading.Event()
    world.fetcher._finishing.submit(gate.wait, 600)
    for wanted in items:
        world.get(wanted)
    gate.set()
    late = {world.finish.finished.get(timeout=120).wanted for _ in range(2)}
    assert late == {items[0], items[3]}
    world.until(lambda: world.swarm.status() == [])
    world.get(items[1])
    assert world.finish.finished.get(timeout=120).wanted == items[1]


def test_others_have_it_from_here_until_it_is_taken_over(world: World) -> None:
    """A payload that is checked stays in the swarm, and leaves it when it is refused meanwhile."""
    world.finish.gate.clear()
    first, second = world.make(), world.make()
    world.get(first)
    world.get(second)
    statuses = world.swarm.status()
    assert {each.infohash for each in statuses} == {world.infohash(first), world.infohash(second)}
    world.client().refuse(second.nar_hash, world.infohash(second))
    world.until(lambda: len(world.swarm.status()) == 1)
    world.finish.gate.set()
    assert world.finish.finished.get(timeout=120).wanted == first
    world.until(lambda: world.swarm.status() == [])
    world.until(lambda: world.store.room == 10 << 20)
    assert not world.store.has(world.infohash(second))
    assert world.finish.finished.empty()


def test_the_pace_is_that_of_all(world: World) -> None:
    """In bytes of NARs; whoever has got nothing yet, or everything, doesn't count."""
    assert world.fetcher.pace() == (0.0, math.inf)
    jobs = [world.fetcher._job(world.make(1000, seeded=False)) for _ in range(4)]
    world.until(lambda: all(job.view.serial for job in jobs))
    for job in jobs:
        job.cancel()
    world.until(lambda: all(job.view.error for job in jobs))
    for job, rate, idle, received in zip(
        jobs, (100, 50, 70, 30), (3.0, 2.0, 0.0, 0.5), (1, 1, 0, 1), strict=True
    ):
        progress = Progress(0, 500, 1, rate, idle, received)
        job.view = View(1, length=500, progress=progress, complete=job is jobs[3])
    world.fetcher._jobs = {bytes([number]): job for number, job in enumerate(jobs)}
    assert world.fetcher.pace() == (300.0, 2.0)


def test_the_pace_is_no_moment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come lately counts, also of what is complete or was let go."""
    now = 1000.0
    clock = SimpleNamespace(monotonic=lambda: now)
    job = world.fetcher._job(world.make(100_000, seeded=False))
    world.until(lambda: bool(job.view.serial))
    job.cancel()
    world.until(lambda: job not in world.fetcher._threads)
    world.fetcher.close()
    monkeypatch.setattr(fetching, "time", clock)
    world.fetcher._pace = Pace(world.fetcher._position)
    world.fetcher._threads[job] = threading.current_thread()
    for second in range(11):
        now = 1000.0 + second
        job.view = View(1, length=500, progress=Progress(second * 50, 500, 1, 0, 0.0, 1))
        assert world.fetcher.pace()[0] == (10_000 if second else 0.0)
    world.fetcher._threads.clear()
    now += 1.0
    assert world.fetcher.pace()[0] == 9_000
