# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a download in order, against a torrent whose every answer the test decides."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from narswarm import download
from narswarm.download import Download, Progress, SwarmStalledError
from narswarm.errors import NetworkError
from narswarm.lt_compat import TorrentFacts

MIB = 2**20


class Handle:
    """A torrent handle that answers `read_piece` at once, and counts."""

    def __init__(self, piece_length: int) -> None:
        self.piece_length = piece_length
        self.download: Download | None = None
        self.asked: list[int] = []
        self.now = SimpleNamespace(
            total_payload_download=0,
            total_done=0,
            num_peers=0,
            download_payload_rate=0,
            state="downloading",
        )
        self.broken = False
        self.flushes = 0
        self.limits: list[int] = []

    def flush_cache(self) -> None:
        """The test says when it is done."""
        if self.broken:
            raise RuntimeError("invalid torrent handle used")
        self.flushes += 1

    def set_download_limit(self, rate: int) -> None:
        """Remembered."""
        if self.broken:
            raise RuntimeError("invalid torrent handle used")
        self.limits.append(rate)

    def read_piece(self, piece: int) -> None:
        """As libtorrent does, but at once."""
        if self.broken:
            raise RuntimeError("invalid torrent handle used")
        self.asked.append(piece)
        assert self.download is not None
        self.download.deliver(piece, bytes([piece % 256]) * self.piece_length)

    def status(self, _flags: int) -> Any:
        """What the test says."""
        if self.broken:
            raise RuntimeError("invalid torrent handle used")
        return self.now


class Clock:
    """A clock that moves when it is read."""

    def __init__(self) -> None:
        self.now = 0.0
        self.step = 0.0

    def __call__(self) -> float:
        """The time, which reading may move."""
        self.now += self.step
        return self.now


class Bench:
    """A download with everything around it in the test's hands."""

    def __init__(self, length: int, piece_length: int) -> None:
        pieces = -(-length // piece_length)
        self.clock = Clock()
        self.handle = Handle(piece_length)
        self.starved: list[str] = []
        self.removed: list[bool] = []
        self.looked: list[Progress] = []
        self.download = Download(
            TorrentFacts(None, "ab" * 32, "x.bin", length, piece_length, pieces),
            Path("/nowhere"),
            starving=lambda which: self.starved.append(which.infohash),
            remove=lambda _, keep: self.removed.append(keep),
            looked=lambda _, progress: self.looked.append(progress),
            clock=self.clock,
        )
        self.handle.download = self.download
        self.download.attach(self.handle)


def test_pieces_come_in_order_and_padding_is_cut() -> None:
    """Whatever order pieces arrive in, the payload's bytes come in theirs, and no others."""
    bench = Bench(2 * 1000 + 5, 1000)
    bench.download.have({2, 0, 1})
    assert list(bench.download.chunks()) == [b"\0" * 1000, b"\1" * 1000, b"\2" * 5]


@pytest.mark.parametrize(
    ("piece_length", "ahead"), [(64 * 1024, 64), (2 * MIB, 2), (4 * MIB, 1), (8 * MIB, 1)]
)
def test_only_a_window_is_in_memory(piece_length: int, ahead: int) -> None:
    """However much has arrived, no more than 4 MiB (or one piece) waits for the reader."""
    bench = Bench(300 * piece_length, piece_length)
    bench.handle.piece_length = 1
    bench.download.have(set(range(300)))
    chunks = bench.download.chunks()
    next(chunks)
    assert bench.handle.asked == list(range(ahead))
    next(chunks)
    assert bench.handle.asked == list(range(ahead + 1))


def test_each_piece_is_read_once() -> None:
    """Waiting for a piece doesn't ask for its successors again and again."""
    bench = Bench(4000, 1000)
    bench.download.have({0, 1, 2, 3})
    assert len(list(bench.download.chunks())) == 4
    assert bench.handle.asked == [0, 1, 2, 3]
    assert len(list(bench.download.chunks())) == 4


def test_the_rule_for_stalls_sees_the_progress() -> None:
    """The rule is asked once a tick while bytes are missing, and True ends the download."""
    bench = Bench(4000, 1000)
    bench.clock.step = 0.1
    seen: list[Progress] = []

    def stall(progress: Progress) -> bool:
        seen.append(progress)
        bench.handle.now.num_peers = 3
        return len(seen) == 3

    with pytest.raises(SwarmStalledError) as caught:
        list(bench.download.chunks(stall=stall, tick=0.001))
    assert str(caught.value) == "x.bin: the swarm stalled at 0 of 4000 bytes with 3 peers"
    assert [progress.peers for progress in seen] == [0, 3, 3]
    assert bench.removed == []


def test_a_slow_reader_is_no_stall() -> None:
    """When all bytes are here, the rule isn't asked however long they are read."""
    bench = Bench(4000, 1000)
    bench.clock.step = 1000.0
    bench.download.have({0, 1, 2, 3})
    bench.handle.now.total_done = 4000
    assert len(list(bench.download.chunks(stall=lambda _: True))) == 4
    assert bench.starved == []


def test_idle_is_the_time_since_the_last_byte() -> None:
    """Bytes from peers reset the count; bytes found on disk don't."""
    bench = Bench(4000, 1000)
    bench.clock.now = 5.0
    bench.handle.now.total_done = 1000
    assert bench.download.progress() == Progress(1000, 4000, 0, 0, 5.0, 0)
    bench.handle.now.total_payload_download = 10
    bench.handle.now.total_done = 5000
    assert bench.download.progress() == Progress(4000, 4000, 0, 0, 0.0, 10)
    bench.clock.now = 7.5
    assert bench.download.progress().idle == 2.5
    bench.handle.now.state = "checking_files"
    assert bench.download.progress().idle == 0
    bench.handle.now.state = "downloading"
    bench.clock.now = 9.5
    assert bench.download.progress().idle == 2


def test_starving_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download without bytes for two seconds asks for other ways to its peers."""
    monkeypatch.setattr(download, "STARVING", 2.0)
    bench = Bench(4000, 1000)
    times = iter([1.9, 2.0])

    def stall(_: Progress) -> bool:
        bench.clock.now = next(times, 0.0)
        return bench.clock.now == 0.0

    with pytest.raises(SwarmStalledError):
        list(bench.download.chunks(stall=stall, tick=0.0))
    assert bench.starved == ["ab" * 32]


def test_the_first_failure_is_the_reason() -> None:
    """What libtorrent said first about a torrent is what its reader is told."""
    bench = Bench(4000, 1000)
    bench.download.fail("No space left on device")
    bench.download.fail("was removed")
    for call in (bench.download.progress, lambda: list(bench.download.chunks())):
        with pytest.raises(NetworkError) as caught:
            call()
        assert str(caught.value) == "x.bin: No space left on device"


@pytest.mark.parametrize("keep", [True, False])
def test_cancel_removes(*, keep: bool) -> None:
    """`cancel` hands on whether the file stays."""
    bench = Bench(4000, 1000)
    bench.download.cancel(keep=keep)
    assert bench.removed == [keep]


def test_a_torrent_that_vanished_is_an_error() -> None:
    """A handle that libtorrent no longer knows doesn't raise its RuntimeError at the caller."""
    bench = Bench(4000, 1000)
    bench.handle.broken = True
    bench.download.have({0})
    for call in (bench.download.progress, lambda: list(bench.download.chunks())):
        with pytest.raises(NetworkError) as caught:
            call()
        assert str(caught.value) == "x.bin: is no longer in a swarm"


def test_pieces_that_nobody_asked_for_are_dropped() -> None:
    """Bytes for another reader of the same torrent don't fill the memory."""
    bench = Bench(4000, 1000)
    bench.download.deliver(3, b"x")
    assert bench.download._read == {}


def test_what_is_stored_is_what_was_flushed() -> None:
    """The file holds, from its beginning, what was verified when the flush was asked for."""
    bench = Bench(2 * 1000 + 5, 1000)
    told: list[tuple[int, int]] = []
    download = bench.download
    download.follow(lambda: told.append((download.verified, download.stored)))
    assert not download.flush()
    download.have({1})
    assert not download.flush()
    download.have({0})
    assert download.flush()
    download.have({2})
    assert download.flush()
    assert bench.handle.flushes == 1
    download.flushed()
    assert download.flush()
    download.flushed()
    assert not download.flush()
    assert bench.handle.flushes == 2
    assert told == [(0, 0), (2000, 0), (2005, 0), (2005, 2000), (2005, 2005)]


def test_a_flush_that_nobody_asked_for() -> None:
    """It says nothing about the file."""
    bench = Bench(2000, 1000)
    bench.download.have({0})
    bench.download.flushed()
    assert bench.download.stored == 0


def test_followers_hear_of_the_end() -> None:
    """A failure is told once for each reason, and the first stays; nothing is flushed then."""
    bench = Bench(2000, 1000)
    told: list[str | None] = []
    bench.download.follow(lambda: told.append(bench.download.failure))
    bench.download.have({0})
    bench.handle.broken = True
    bench.download.limit(5)
    assert bench.download.flush()
    assert not bench.download.flush()
    bench.download.fail("later")
    assert told == [None, "is no longer in a swarm", "is no longer in a swarm"]


def test_a_limit_is_passed_on() -> None:
    """In bytes a second."""
    bench = Bench(2000, 1000)
    bench.download.limit(1000)
    assert bench.handle.limits == [1000]


def test_looks_are_told() -> None:
    """Whoever wants to know how it goes sees the progress of each look."""
    bench = Bench(1000, 1000)
    progress = bench.download.look()
    assert bench.looked == [progress]


def test_looking_lets_a_starving_download_use_utp() -> None:
    """But not one that is complete."""
    bench = Bench(2000, 1000)
    bench.clock.now += 2.0
    bench.download.look()
    assert bench.starved == ["ab" * 32]
    bench.handle.now.total_done = 2000
    bench.download.look()
    assert bench.starved == ["ab" * 32]
