# SPDX-License-Identifier: GPL-3.0-or-later
"""Announcing again when a tracker is back."""

from __future__ import annotations

import pytest

from narswarm.errors import NotFoundError
from narswarm.swarm_events import TrackerStatus
from seeder import reannounce
from seeder.reannounce import Reannouncer

URL = "http://t/announce"


class Swarm:
    """A session that counts announces."""

    def __init__(self) -> None:
        self.state = TrackerStatus(URL)
        self.announced: list[str] = []

    def trackers(self) -> list[TrackerStatus]:
        """What the test says."""
        return [self.state]

    def reannounce(self, infohash: str) -> None:
        """Note it; one torrent was removed meanwhile."""
        if infohash == "gone":
            raise NotFoundError(infohash, "is not in this session")
        self.announced.append(infohash)


class Bench:
    """A reannouncer in the test's hands."""

    def __init__(self) -> None:
        self.swarm = Swarm()
        self.pauses: list[float] = []
        self.stop = False
        self.torrents = ["a", "gone", "b", "c"]
        self.job = Reannouncer(self.swarm, lambda: self.torrents, self._pause)

    def _pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        return self.stop

    def after(self, replies: int, errors: int) -> list[str]:
        """What is announced after these many replies and errors in all."""
        self.swarm.announced.clear()
        self.swarm.state = TrackerStatus(URL, replies, errors, "refused" if errors else "")
        self.job.run()
        return list(self.swarm.announced)


def test_one_torrent_tries_and_all_follow(caplog: pytest.LogCaptureFixture) -> None:
    """While a tracker fails one torrent is announced to it; when that works, all are."""
    caplog.set_level("INFO")
    bench = Bench()
    assert bench.after(3, 0) == []
    assert bench.after(3, 2) == ["c"]
    assert bench.after(3, 2) == ["c"]
    assert bench.after(3, 3) == ["c"]
    assert bench.after(4, 3) == ["a", "b", "c"]
    assert bench.after(9, 3) == []
    assert caplog.messages == [
        f"{URL}: announce failed: refused",
        f"{URL}: takes announces again",
    ]


def test_single_refusals_are_no_failure() -> None:
    """A tracker that refuses some torrents and takes others isn't down."""
    bench = Bench()
    assert bench.after(1, 1) == []
    assert bench.after(2, 5) == []


def test_what_a_tracker_knows_by_now() -> None:
    """It is announced at once, and once more: an announce that fails meanwhile hides the first."""
    bench = Bench()
    for infohash in ("b", "gone", "a"):
        bench.job.announce(infohash)
    assert bench.swarm.announced == ["b", "a"]
    assert bench.after(1, 1) == ["b", "a"]
    assert bench.after(2, 2) == []
    bench.job.announce("a")
    assert bench.after(2, 3) == ["a", "c"]
    bench.job.announce("a")
    assert bench.after(3, 3) == ["a", "b", "c"]
    assert bench.after(4, 3) == []


def test_many_torrents_come_back_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker that just came back isn't run over; the seeder's end ends it."""
    monkeypatch.setattr(reannounce, "BATCH", 2)
    bench = Bench()
    bench.torrents = ["a", "b", "c", "d", "e"]
    bench.after(0, 1)
    assert bench.after(1, 1) == ["a", "b", "c", "d", "e"]
    assert bench.pauses == [1.0, 1.0]
    bench.after(1, 2)
    bench.stop = True
    assert bench.after(2, 2) == ["a", "b"]


def test_nothing_to_announce_is_fine() -> None:
    """A tracker can fail when the last item was just dropped."""
    bench = Bench()
    bench.torrents = []
    assert bench.after(0, 1) == []
