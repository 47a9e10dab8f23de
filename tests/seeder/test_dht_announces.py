# SPDX-License-Identifier: GPL-3.0-or-later
"""Announcing torrents in the DHT."""

from __future__ import annotations

from narswarm.errors import NotFoundError
from seeder.dht_announces import AGAIN, BATCH, INTERVAL, LOOK, PERIOD, DhtAnnouncer


class Bench:
    """An announcer in the test's hands; it is the session, too."""

    def __init__(self, count: int) -> None:
        self.torrents = [f"{number}" for number in range(count)]
        self.gone: set[str] = set()
        self.nodes = 6
        self.now = 1000.0
        self.announced: list[str] = []
        self.job = DhtAnnouncer(self, lambda: self.torrents, lambda: self.now)

    def announce_in_dht(self, infohash: str) -> None:
        """Note it; some torrents were removed meanwhile."""
        if infohash in self.gone:
            raise NotFoundError(infohash, "is not in this session")
        self.announced.append(infohash)

    def counters(self) -> dict[str, int]:
        """What the test says."""
        return {"dht_nodes": self.nodes}

    def after(self, seconds: float = INTERVAL) -> list[str]:
        """What is announced so much later."""
        self.now += seconds
        self.announced.clear()
        self.job.run()
        return list(self.announced)

    def over(self, seconds: float) -> list[str]:
        """All that is announced in that time, with a call each `INTERVAL`."""
        announced: list[str] = []
        for _ in range(int(seconds / INTERVAL)):
            announced += self.after()
        return announced


def test_all_torrents_take_turns() -> None:
    """Each call announces some; all are announced again soon, and then once in a period."""
    bench = Bench(2 * BATCH + 1)
    for pause in (AGAIN, PERIOD):
        assert bench.after() == bench.torrents[:BATCH]
        assert bench.after() == bench.torrents[BATCH : 2 * BATCH]
        assert bench.after() == bench.torrents[2 * BATCH :]
        assert bench.over(pause - 3 * INTERVAL) == []
    assert bench.after() == bench.torrents[:BATCH]
    assert bench.over(PERIOD) == bench.torrents[BATCH:] + bench.torrents[:BATCH]


def test_nobody_to_tell_at_first() -> None:
    """As long as no node is known nothing counts as announced."""
    bench = Bench(1)
    bench.nodes = 0
    assert bench.after() == []
    bench.nodes = 1
    assert bench.after() == ["0"]
    bench.nodes = 0
    assert bench.after(AGAIN) == ["0"]


def test_what_comes_goes_first() -> None:
    """A torrent that came is noticed at the next look, and announced before those that wait."""
    bench = Bench(BATCH)
    assert bench.after() == bench.torrents
    bench.torrents.append("new")
    assert bench.over(LOOK - INTERVAL) == []
    assert bench.after() == ["new"]
    assert bench.over(AGAIN) == [*bench.torrents[:BATCH], "new"]
    bench.torrents.append("newer")
    assert bench.after(PERIOD) == ["newer", *bench.torrents[: BATCH - 1]]


def test_what_went_is_left_out() -> None:
    """What isn't there any more isn't announced, and counts as new when it comes back."""
    bench = Bench(3)
    assert bench.after() == ["0", "1", "2"]
    del bench.torrents[1]
    assert bench.over(LOOK) == []
    bench.torrents.append("1")
    assert bench.over(LOOK) == ["1"]
    assert bench.over(AGAIN) == ["0", "2", "1"]
    assert bench.over(PERIOD) == ["0", "2", "1"]


def test_what_went_before_its_turn() -> None:
    """A torrent that goes before it was announced is left out, though others come meanwhile."""
    bench = Bench(10 * BATCH)
    bench.after()
    left = bench.torrents[-1]
    del bench.torrents[-1]
    assert left not in bench.over(LOOK)
    bench.torrents.append(left)
    assert bench.over(LOOK).count(left) == 1


def test_a_torrent_removed_meanwhile() -> None:
    """One that the session doesn't have is left alone until it is looked for again."""
    bench = Bench(3)
    bench.gone = {"1"}
    assert bench.after() == ["0", "2"]
    bench.gone = set()
    assert bench.over(LOOK) == ["1"]


def test_many_torrents_delay_the_round() -> None:
    """A seeder of more torrents than fit a period announces at the same pace, each as often."""
    count = int(PERIOD / INTERVAL) * BATCH + BATCH
    bench = Bench(count)
    for _ in range(3):
        assert bench.over(PERIOD + INTERVAL) == bench.torrents
