# SPDX-License-Identifier: GPL-3.0-or-later
"""Noticing that a tracker has forgotten what it was told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from narswarm.errors import NetworkError
from narswarm.payload import Kind
from narswarm.trackerclient import IndexedTorrent, IndexEntry, TrackerIndex
from seeder.presence import PAUSE, SETTLED, Presence
from seeder.state import Nar, State

URL = "http://t/announce"
HASH = bytes(32)
INFOHASH = bytes([1]) * 32


class Tracker:
    """A tracker whose index says what the test does."""

    def __init__(self) -> None:
        self.answer: IndexEntry | NetworkError | None = None
        self.asked = 0

    def lookup(self, nar_hash: bytes) -> IndexEntry | None:
        """As `TrackerIndex.lookup` does."""
        assert nar_hash == HASH
        self.asked += 1
        if isinstance(self.answer, NetworkError):
            raise self.answer
        return self.answer


class Bench:
    """The job with its surroundings in the test's hands, and one item."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.tracker = Tracker()
        self.announced = 0
        self.now = 0.0
        self.job = Presence(
            state,
            [(URL, cast("TrackerIndex", self.tracker))],
            announce=self._announce,
            clock=lambda: self.now,
        )
        nar = Nar(HASH, "/gnu/store/x", 1, "x", 1, INFOHASH.hex(), b"t", b"n")
        state.add(nar, [URL], 0)

    def _announce(self) -> None:
        self.announced += 1

    def after(self, now: float, answer: IndexEntry | NetworkError | None) -> tuple[int, int, int]:
        """How often the tracker was asked, all was announced, and what is due, after a run."""
        self.now, self.tracker.answer = now, answer
        self.job.run()
        return self.tracker.asked, self.announced, len(self.state.due(URL, now, 1e12, 10))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """An item that the tracker took at 1000, and shall be told again at 9000."""
    with State(tmp_path) as state:
        made = Bench(state)
        state.published(HASH, URL, 1000.0, 9000.0)
        yield made


def entry(seeders: int, infohash: bytes = INFOHASH) -> IndexEntry:
    """An answer with one torrent."""
    torrent = IndexedTorrent(
        Kind.ZSTD, "x", 1, 65536, bytes(20), infohash, seeders, leechers=3, publishers=1, peers=()
    )
    return IndexEntry(HASH, 1, (torrent,))


def test_a_tracker_that_remembers_is_left_alone(bench: Bench) -> None:
    """Seeds are there, or nobody can say: then nothing has to be done."""
    assert bench.after(2000, entry(1)) == (1, 0, 0)
    assert bench.after(2060, NetworkError(URL, "connection refused")) == (2, 0, 0)
    assert bench.after(2120, entry(1)) == (3, 0, 0)


def test_forgotten_peers_are_announced(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """An item that we seed without any seed shows that the tracker was restarted."""
    caplog.set_level("INFO")
    assert bench.after(2000, entry(0)) == (1, 1, 0)
    assert caplog.messages == [f"{URL}: has forgotten its peers"]


@pytest.mark.parametrize("answer", [None, entry(5, infohash=bytes(32))])
def test_a_forgotten_index_is_published(
    bench: Bench, answer: IndexEntry | None, caplog: pytest.LogCaptureFixture
) -> None:
    """An item that the tracker took and doesn't have, or without our torrent, is due at once."""
    caplog.set_level("INFO")
    assert bench.after(2000, answer) == (1, 0, 1)
    assert caplog.messages == [f"{URL}: has forgotten what it indexed"]


def test_a_tracker_that_never_remembers_is_not_told_all_the_time(bench: Bench) -> None:
    """After something was forgotten there is a pause."""
    bench.after(2000, entry(0))
    assert bench.after(2000 + PAUSE - 1, entry(0)) == (1, 1, 0)
    assert bench.after(2000 + PAUSE, entry(0)) == (2, 2, 0)


def test_what_was_just_taken_proves_nothing(bench: Bench) -> None:
    """Between a publication and the announce there are no seeds yet."""
    assert bench.after(1000 + SETTLED, entry(0)) == (0, 0, 0)
    assert bench.after(1000 + SETTLED + 1, entry(0)) == (1, 1, 0)


def test_what_was_refused_is_not_asked_for(bench: Bench) -> None:
    """Only what a tracker took can it forget."""
    bench.state.refused(HASH, URL, 9000.0, "no")
    assert bench.after(2000, None) == (0, 0, 0)
