# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.fetching_job, with a swarm whose every step the test decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from narswarm.candidates import Candidate
from narswarm.download import Download, Progress
from narswarm.errors import InvalidInputError, NarswarmError
from narswarm.fetchclient import Wanted
from narswarm.payload import Kind, file_name
from seeder import fetching_job
from seeder.fetching_job import Job, View
from seeder.fetching_store import FetchStore

WANTED = Wanted(b"\1" * 32, 1000, f"/gnu/store/{'0' * 32}-item")
NAME = file_name(WANTED.nar_hash)


def candidate(name: str, length: int = 100) -> Candidate:
    """A torrent."""
    return Candidate(name.encode(), name, length, Kind.ZSTD, (("127.0.0.1", 1),))


class FakeDownload:
    """What `Swarm.fetch` gives."""

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self.name = path.name
        self.length = length
        self.verified = self.stored = 0
        self.failure: str | None = None
        self.idle = 0.0
        self.received = 0
        self.flushes = 0
        self.cancelled: bool | None = None
        self._follower: Callable[[], None] = lambda: None

    def follow(self, follower: Callable[[], None]) -> None:
        """Remember it."""
        self._follower = follower

    def arrive(self, verified: int) -> None:
        """Bytes are verified, from the beginning."""
        self.verified = verified
        self._follower()

    def flush(self) -> bool:
        """Write at once."""
        self.flushes += 1
        self.stored = self.verified
        self._follower()
        return True

    def fail(self, reason: str) -> None:
        """No more will come."""
        self.failure = reason
        self._follower()

    def look(self) -> Progress:
        """What the test says."""
        return Progress(self.verified, self.length, 3, 5, self.idle, self.received)

    def cancel(self, *, keep: bool) -> None:
        """Remember it."""
        self.cancelled = keep


WEB_SEED = "https://cdn.example.org/payloads/"


class FakeSwarm:
    """Begins fetches, and tells the test."""

    def __init__(self) -> None:
        self.downloads: dict[str, FakeDownload] = {}
        self.begun = threading.Semaphore(0)
        self.refused: set[bytes] = set()
        self.in_order: list[bool] = []
        self.setups: dict[str, Callable[[FakeDownload], None]] = {}

    def members(self) -> int:
        """Nobody else."""
        return 0

    def fetch(
        self,
        torrent: bytes,
        directory: Path,
        *,
        trackers: Sequence[str] = (),
        peers: Sequence[tuple[str, int]] = (),
        web_seeds: Sequence[str] = (),
        in_order: bool = True,
    ) -> Download:
        """Begin one."""
        assert (tuple(trackers), tuple(peers)) == (("http://t/announce",), (("127.0.0.1", 1),))
        assert tuple(web_seeds) == (WEB_SEED,)
        assert (directory / NAME).exists()
        self.in_order.append(in_order)
        if torrent in self.refused:
            raise InvalidInputError("torrent", "libtorrent refuses it")
        made = self.downloads[torrent.decode()] = FakeDownload(directory / NAME, 100)
        setup = self.setups.get(torrent.decode())
        if setup is not None:
            setup(made)
        self.begun.release()
        return cast(Download, made)


class FakeTorrents:
    """Knows what the test says."""

    def __init__(self) -> None:
        self.here: list[Candidate] = []
        self.there: list[Candidate] = []
        self.prepares = False

    def known(self, _nar_hash: bytes, _nar_size: int) -> list[Candidate]:
        """Those learned before."""
        return self.here

    def ask(self, *_: Any, **more: Any) -> Iterator[Candidate]:
        """Those that trackers name."""
        if self.prepares:
            more["preparing"]()
        yield from self.there

    def refuse(self, nar_hash: bytes, infohash: str) -> None:
        """Not for a job to decide."""


class Bench:
    """A job with everything around it in the test's hands."""

    def __init__(self, directory: Path) -> None:
        self.swarm = FakeSwarm()
        self.torrents = FakeTorrents()
        self.store = FetchStore(directory / "fetching", 250)
        self.job = Job(
            WANTED, self.swarm, self.torrents, self.store, ["http://t/announce"], [WEB_SEED]
        )
        self.views: list[View] = []
        self.job.listen(lambda: self.views.append(self.job.view))

    def run(self) -> View:
        """Run it to its end."""
        self.job.run()
        return self.job.view

    def error(self) -> str:
        """Run it, and say why it ended."""
        return str(self.run().error)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A job that looks often."""
    monkeypatch.setattr(fetching_job, "LOOK", 0.001)
    return Bench(tmp_path)


def complete(download: FakeDownload) -> None:
    """Have all of it at once."""
    download.arrive(100)


def idle(seconds: float) -> Callable[[FakeDownload], None]:
    """Have nothing come for so long."""

    def setup(download: FakeDownload) -> None:
        download.idle = seconds

    return setup


def test_what_is_in_the_file_is_shown(bench: Bench) -> None:
    """In order: the torrent, what can be read, the end. Then it is in the swarm still."""
    bench.torrents.here = [candidate("a")]
    thread = threading.Thread(target=bench.job.run)
    thread.start()
    assert bench.swarm.begun.acquire(timeout=120)
    download = bench.swarm.downloads["a"]
    download.arrive(40)
    download.arrive(100)
    thread.join(120)
    first, *rest = bench.views
    assert first == View(1, "a", Kind.ZSTD, 100, download.path, 0, Progress(0, 100, 0, 0, 0.0, 0))
    shown = [view.contiguous for view in rest]
    assert shown == sorted(shown)
    assert rest[-1] == replace(
        first, contiguous=100, progress=Progress(100, 100, 0, 0, 0.0, 0), complete=True
    )
    assert bench.job.torrent == b"a"
    assert bench.job.download is cast(Download, download)
    assert (download.cancelled, bench.store.room) == (None, 150)
    bench.job.leave()
    bench.job.leave()
    assert download.cancelled is True


@pytest.mark.parametrize(
    ("plans", "more", "in_order"),
    [(set(), False, True), ({"client"}, False, False), (set(), True, False)],
)
def test_what_is_planned_comes_in_any_order(
    bench: Bench, plans: set[Hashable], *, more: bool, in_order: bool
) -> None:
    """Pieces come in order only if it is part of no plan, which others may have as well."""
    bench.torrents.here = [candidate("a")]
    bench.swarm.setups = {"a": complete}
    bench.job.plans |= plans
    bench.job.more = more
    assert bench.run().complete
    assert bench.swarm.in_order == [in_order]


def test_no_torrent(bench: Bench) -> None:
    """Is known as soon as the trackers have answered."""
    assert bench.error() == f"{WANTED.store_path}: no torrent is known"


def test_another_torrent_when_one_stalls(bench: Bench) -> None:
    """Trackers are asked when what was known doesn't move; what came of the first is kept."""
    bench.torrents.here, bench.torrents.there = [candidate("a")], [candidate("a"), candidate("b")]
    bench.swarm.setups = {"a": idle(3.1), "b": complete}
    view = bench.run()
    assert (view.complete, view.infohash, view.serial) == (True, "b", 2)
    assert bench.swarm.downloads["a"].cancelled is True
    assert (bench.store.used, bench.store.room) == (200, 150)


@pytest.mark.parametrize(("received", "seconds"), [(0, 3.0), (1, 5.0)])
def test_a_pause_is_no_stall(bench: Bench, received: int, seconds: float) -> None:
    """Before the first byte and after it, a swarm may be silent for a while."""
    bench.torrents.here = [candidate("a"), candidate("b")]

    def setup(download: FakeDownload) -> None:
        download.idle, download.received = seconds, received

    bench.swarm.setups = {"a": setup}
    looks = threading.Event()
    bench.job.listen(lambda: looks.set() if bench.job.view.progress.peers else None)
    thread = threading.Thread(target=bench.job.run)
    thread.start()
    assert looks.wait(120)
    bench.swarm.downloads["a"].arrive(100)
    thread.join(120)
    assert (bench.job.view.complete, bench.job.view.infohash) == (True, "a")


def test_the_only_torrent_gets_more_time(bench: Bench) -> None:
    """But not for ever."""
    bench.torrents.here = [candidate("a")]
    bench.swarm.setups = {"a": idle(30.1)}
    assert bench.error() == f"{NAME}: stalled at 0 of 100 bytes with 3 peers"
    assert bench.swarm.downloads["a"].cancelled is True
    assert bench.store.room == 250


def test_what_is_prepared_is_shown(bench: Bench) -> None:
    """Before there is a torrent, and until the first byte of one."""
    bench.torrents.prepares, bench.torrents.there = True, [candidate("a")]
    bench.swarm.setups = {"a": complete}
    assert bench.run().complete
    assert bench.views[0] == View(preparing=True)
    shown = {(view.serial, view.contiguous, view.preparing) for view in bench.views[1:]}
    assert shown == {(1, 0, True), (1, 100, False)}


def test_a_known_torrent_that_is_prepared(bench: Bench) -> None:
    """It stays the one that is used, and is prepared until its first byte."""
    bench.torrents.prepares, bench.torrents.here = True, [candidate("a")]
    bench.swarm.setups = {"a": idle(3.1)}
    shown, looked = threading.Event(), threading.Event()

    def listen() -> None:
        if bench.job.view.preparing:
            shown.set()
        elif shown.is_set():
            looked.set()

    bench.job.listen(listen)
    thread = threading.Thread(target=bench.job.run)
    thread.start()
    assert shown.wait(120)
    bench.swarm.downloads["a"].received = 1
    assert looked.wait(120)
    assert not bench.job.view.preparing
    bench.swarm.downloads["a"].arrive(100)
    thread.join(120)
    assert (bench.job.view.complete, bench.job.view.preparing) == (True, False)


@pytest.mark.parametrize(
    ("seconds", "error"), [(31.0, ""), (33.1, f"{NAME}: stalled at 0 of 100 bytes with 3 peers")]
)
def test_what_is_prepared_gets_more_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, seconds: float, error: str
) -> None:
    """By the time that it takes to make so large a payload."""
    monkeypatch.setattr(fetching_job, "MAKING_RATE", WANTED.nar_size / 3)
    bench.torrents.prepares, bench.torrents.here = True, [candidate("a")]
    bench.swarm.setups = {"a": idle(seconds)}
    looks = threading.Semaphore(0)
    bench.job.listen(lambda: looks.release() if bench.job.view.progress.peers else None)
    thread = threading.Thread(target=bench.job.run)
    thread.start()
    assert looks.acquire(timeout=120)
    if not error:
        for _ in range(3):
            assert looks.acquire(timeout=120)
        bench.swarm.downloads["a"].arrive(100)
    thread.join(120)
    assert str(bench.job.view.error or "") == error


def test_a_torrent_that_cannot_be_fetched(bench: Bench) -> None:
    """Is passed over; the last one's reason is given."""
    bench.torrents.here = [candidate("a"), candidate("b"), candidate("c")]
    bench.swarm.refused = {b"a", b"c"}
    bench.swarm.setups = {"b": lambda download: download.fail("disk is full")}
    assert bench.error() == "torrent: libtorrent refuses it"
    assert bench.swarm.downloads["b"].cancelled is True
    bench.torrents.here.pop()
    assert bench.error() == f"{NAME}: disk is full"


def test_only_so_many_torrents(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names thousands gains nothing."""
    monkeypatch.setattr(fetching_job, "MAX_TORRENTS", 2)
    bench.torrents.here = [candidate(name) for name in "abc"]
    bench.swarm.setups = dict.fromkeys("abc", idle(3.1))
    assert bench.error() == f"{WANTED.store_path}: none of 2 torrents was complete"
    assert sorted(bench.swarm.downloads) == ["a", "b"]


def test_no_room(bench: Bench) -> None:
    """Is no reason to try another torrent, which would be as large."""
    bench.torrents.here = [candidate("a", 251), candidate("b")]
    assert "has no room for 251 more bytes of 250" in bench.error()
    assert bench.swarm.downloads == {}


def test_cancelling(bench: Bench) -> None:
    """Ends it wherever it is, and keeps what came."""
    bench.torrents.here = [candidate("a")]
    thread = threading.Thread(target=bench.job.run)
    thread.start()
    assert bench.swarm.begun.acquire(timeout=120)
    bench.job.cancel()
    thread.join(120)
    assert str(bench.job.view.error) == "fetch: was cancelled"
    assert bench.swarm.downloads["a"].cancelled is True
    assert (bench.store.used, bench.store.room) == (100, 250)
    bench.torrents.here = []
    assert bench.error() == "fetch: was cancelled"


def test_what_breaks_is_an_error(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits is told."""

    def known(*_: Any) -> list[Candidate]:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(bench.torrents, "known", known)
    assert bench.error() == f"{WANTED.store_path}: ZeroDivisionError('by zero')"
    assert isinstance(bench.job.view.error, NarswarmError)
    assert caplog.messages == [WANTED.store_path]


def test_listeners_leave(bench: Bench) -> None:
    """And may do so twice."""
    seen: list[int] = []
    listener = lambda: seen.append(1)  # noqa: E731
    bench.job.listen(listener)
    bench.job.ignore(listener)
    bench.job.ignore(listener)
    bench.job.moved(Path("/x"))
    assert (seen, bench.job.view.path) == ([], Path("/x"))
