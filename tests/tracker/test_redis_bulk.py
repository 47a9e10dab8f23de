# SPDX-License-Identifier: GPL-3.0-or-later
"""Holdings and marks that trackers share through Redis."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Callable, Iterator, Sequence

import pytest

from tracker import redis_bulk
from tracker.holdings import LEASE, Held, Holdings, Update
from tracker.redis_bulk import RedisBulk
from tracker.redis_link import Link, parse_url

NOW = 1_700_000_000.0
KEY, OTHER = b"k" * 32, b"o" * 32
A, B = (hashlib.sha256(bytes([number])).digest() for number in range(2))


class Tracker:
    """A tracker's lists, and what it hears of others."""

    def __init__(self, url: str, items: int = 100) -> None:
        self.now = NOW
        self.holdings = Holdings(10, 100, items)
        self.heard: list[tuple[bytes, list[bytes], bool]] = []
        self.shared = RedisBulk(url, self.holdings, self._hear, lambda: self.now)

    def _hear(self, nar_hash: bytes, info_hashes: Sequence[bytes], is_new: bool) -> None:
        self.heard.append((nar_hash, list(info_hashes), is_new))

    def post(self, base: int, generation: int, *added: bytes, key: bytes = KEY) -> Held:
        """Take a list, as a request does."""
        numbers = array("Q", sorted(int.from_bytes(each[:8]) for each in added))
        self.shared.refresh(key)
        held = self.holdings.apply(key, Update(base, generation, numbers, array("Q")), self.now)
        self.shared.held(key)
        return held

    def holders(self, nar_hash: bytes) -> list[bytes]:
        """Who holds a NAR, as far as this tracker knows."""
        return self.holdings.holders(nar_hash, self.now)


Make = Callable[..., Tracker]


@pytest.fixture(name="make")
def make_fixture(redis_url: str) -> Iterator[Make]:
    """Makes trackers that share."""
    made: list[Tracker] = []

    def make(items: int = 100) -> Tracker:
        made.append(Tracker(redis_url, items))
        return made[-1]

    yield make
    for tracker in made:
        tracker.shared.close()


def test_lists_reach_others(make: Make) -> None:
    """What one tracker is told the others know after their next pass, and it changes anywhere."""
    one, other = make(), make()
    one.post(0, 1, A)
    assert other.holders(A) == []
    other.shared.sync()
    assert other.holders(A) == [KEY]
    assert other.post(1, 2, B) == Held(2, 2)
    assert one.post(2, 2) == Held(2, 2)
    assert one.holders(B) == [KEY]


def test_a_tracker_that_was_never_told(make: Make) -> None:
    """A change is taken by a tracker that has the list from Redis only."""
    make().post(0, 1, A)
    assert make().post(1, 2, B) == Held(2, 2)


def test_leases_reach_others(make: Make) -> None:
    """A refresh at one tracker holds at the others; what nobody refreshes ends everywhere."""
    one, other = make(), make()
    one.post(0, 1, A)
    other.shared.sync()
    one.now = other.now = NOW + 900
    one.post(1, 1)
    other.shared.sync()
    one.now = other.now = NOW + 900 + LEASE - 1
    assert other.holders(A) == [KEY]
    one.now = other.now = NOW + 900 + LEASE
    other.shared.sync()
    assert (one.holders(A), other.holders(A), make().holders(A)) == ([], [], [])


def test_generations_that_begin_anew(make: Make) -> None:
    """A seeder that counts from 1 again has another list than the one of before."""
    one, other = make(), make()
    one.post(0, 1, A)
    other.shared.sync()
    one.now = other.now = NOW + 60
    one.post(0, 1, B)
    other.shared.sync()
    assert (other.holders(A), other.holders(B)) == ([], [KEY])


def test_redis_that_lost_its_data(make: Make, raw: Link) -> None:
    """Trackers tell it again what they have."""
    one, other = make(), make()
    one.post(0, 1, A)
    raw.ask("FLUSHDB")
    one.shared.sync()
    other.shared.sync()
    assert other.holders(A) == [KEY]


def test_room(make: Make) -> None:
    """What another tracker took doesn't go beyond this one's limits."""
    make().post(0, 1, A, B)
    small = make(items=1)
    small.shared.sync()
    assert small.holders(A) == []


def test_marks_reach_others(make: Make) -> None:
    """What is wanted is told to the others once, and not to oneself; as is what was made."""
    one, other = make(), make()
    one.shared.wanted(A, [], is_new=True)
    one.shared.wanted(A, [b"1" * 20, b"2" * 20], is_new=False)
    for tracker in (one, other, other):
        tracker.shared.listen()
    assert one.heard == []
    assert other.heard == [(A, [], True), (A, [b"1" * 20, b"2" * 20], False)]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        (KEY, b"x"),
        (b"short", redis_bulk._HEAD.pack(1, NOW + 5, NOW)),
        (KEY, redis_bulk._HEAD.pack(1, float("nan"), NOW)),
        (KEY, redis_bulk._HEAD.pack(1, NOW + 1e9, NOW)),
        (KEY, redis_bulk._HEAD.pack(2, NOW + 5, NOW)),
        (OTHER, redis_bulk._HEAD.pack(1, NOW + 5, NOW)),
    ],
)
@pytest.mark.parametrize("data", [b"", b"x", b"12345678" * 3, b"\2" * 8 + b"\1" * 8])
def test_rubbish(
    make: Make, raw: Link, redis_url: str, name: bytes, head: bytes, data: bytes
) -> None:
    """Lists that aren't are passed over."""
    prefix = parse_url(redis_url)[1]
    which = redis_bulk._WHICH.pack(1, NOW)
    raw.run([("HSET", f"{prefix}:holders", name, head)])
    raw.run([("SET", f"{prefix}:held:".encode() + name, which + data if data else data)])
    raw.run([("XADD", f"{prefix}:wanted", "*", "m", data)])
    raw.run([("XADD", f"{prefix}:wanted", "*", "m", "x", "more", "y")])
    tracker = make()
    tracker.shared.sync()
    tracker.shared.listen()
    assert tracker.heard == []
    assert tracker.holdings.totals(NOW)[0] <= (name == OTHER and data == b"")


def test_redis_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """Each tracker goes on with what it has, and says once that it doesn't share."""
    alone = Tracker("redis://127.0.0.1:1/0")
    with caplog.at_level(logging.WARNING):
        assert alone.post(0, 1, A) == Held(1, 1)
        alone.shared.wanted(A, [], is_new=True)
        alone.shared.start()
        while not caplog.messages:
            assert alone.holders(A) == [KEY]
        alone.shared.close()
    assert caplog.messages[0].startswith("holdings aren't shared: Redis: does not answer")


def test_the_thread(make: Make) -> None:
    """The thread takes in lists and messages by itself."""
    one, other = make(), make()
    one.post(0, 1, A)
    other.shared.start()
    one.shared.wanted(A, [], is_new=True)
    while not (other.heard and other.holders(A)):
        assert other.holdings.totals(NOW)[0] <= 1
    other.shared.close()
    assert other.heard == [(A, [], True)]
