# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.mirror_table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from narswarm import base32
from narswarm.errors import NotFoundError
from seeder.eviction import Payload
from seeder.mirror_table import FIRST_RETRY, LONGEST_RETRY, Mirrored, MirrorTable
from seeder.publications import Due

TRACKER = "http://t/announce"
OTHER = "http://u/announce"


def file(number: int, path: str = "", length: int = 10) -> Mirrored:
    """A row."""
    name = path or f"{number}.file"
    item = f"/gnu/store/{number:032}-item"
    return Mirrored(
        bytes([number]) * 32, item, name, "stamp", length, f"{number:064}", b"torrent", b"narinfo"
    )


class Clock:
    """The test's time."""

    now = 1000.0

    def __call__(self) -> float:
        """Read it."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


@pytest.fixture
def table(tmp_path: Path, clock: Clock) -> Iterator[MirrorTable]:
    """An empty table."""
    made = MirrorTable(tmp_path, clock)
    yield made
    made.close()


def test_files(table: MirrorTable, tmp_path: Path, clock: Clock) -> None:
    """They are there after a restart; those of somebody else take nothing of the quota."""
    one, two = file(1), file(2, "/srv/cache/zstd/x.nar", 100)
    table.add(one, [])
    table.add(two, [])
    assert (one.in_place, two.in_place) == (False, True)
    assert table.used() == 10
    assert table.payloads() == [Payload(one.nar_hash, 10, 0, 0, 1000.0, -1)]
    table.close()
    again = MirrorTable(tmp_path, clock)
    assert (sorted(again.all()), again.count()) == ([one, two], 2)
    assert again.find(one.nar_hash) == one
    assert again.narinfo(one.store_path) == b"narinfo"
    again.drop(one.nar_hash)
    assert (again.find(one.nar_hash), again.narinfo(one.store_path)) == (None, None)
    again.add(two._replace(path="2.file"), [])
    assert (again.count(), again.used()) == (1, 100)
    again.close()


def test_what_was_sent(table: MirrorTable, clock: Clock) -> None:
    """It adds up, and says when a file was of use last."""
    one = file(1)
    table.add(one, [])
    clock.now = 2000.0
    table.sent([(one.nar_hash, 0, 3)])
    assert table.payloads() == [Payload(one.nar_hash, 10, 0, 0, 1000.0, 3)]
    table.sent([(one.nar_hash, 7, 3)])
    table.sent([(one.nar_hash, 7, 2)])
    assert table.payloads() == [Payload(one.nar_hash, 10, 0, 14, 2000.0, 2)]


def test_publications(table: MirrorTable) -> None:
    """Each tracker is told of each file, and of none that is gone."""
    one, two = file(1), file(2)
    table.add(one, [TRACKER])
    due = Due(one.nar_hash, b"torrent", b"narinfo")
    assert table.due(TRACKER, 0, 100, 10) == [due]
    assert table.get(one.nar_hash) == due
    assert table.sample(TRACKER, 1000) is None
    table.published(one.nar_hash, TRACKER, 10, 500)
    assert table.sample(TRACKER, 11) == one
    table.add(two, [TRACKER])
    table.drop(one.nar_hash)
    table.track([OTHER])
    assert table.sample(TRACKER, 11) is None
    assert [each.nar_hash for each in table.due(OTHER, 0, 100, 10)] == [two.nar_hash]
    with pytest.raises(NotFoundError) as caught:
        table.get(one.nar_hash)
    assert str(caught.value) == f"{base32.encode(one.nar_hash)}: is not mirrored"


def test_rules(table: MirrorTable) -> None:
    """They are kept once, and it is said whether that is new."""
    assert table.set_rule("b", there=True)
    assert table.set_rule("a", there=True)
    assert not table.set_rule("a", there=True)
    assert table.rules() == ["a", "b"]
    assert table.set_rule("a", there=False)
    assert not table.set_rule("a", there=False)
    assert table.rules() == ["b"]


def test_failures(table: MirrorTable, clock: Clock) -> None:
    """What fails is left alone for twice as long each time, up to a day."""
    assert table.is_open("url")
    begin = clock.now
    for expected in (FIRST_RETRY, 2 * FIRST_RETRY, 4 * FIRST_RETRY):
        table.failed("url", "broken")
        clock.now = begin + expected - 1
        assert not table.is_open("url")
        clock.now = begin = begin + expected
        assert table.is_open("url")
    for _ in range(40):
        table.failed("url", "still broken")
    clock.now = begin + LONGEST_RETRY - 1
    assert not table.is_open("url")
    clock.now = begin + LONGEST_RETRY
    assert table.is_open("url")
    assert table.failures() == ["url: still broken"]
    table.succeeded("url")
    assert table.failures() == []


def test_a_server_that_says_how_long(table: MirrorTable, clock: Clock) -> None:
    """It isn't asked before that; a clock that was far ahead doesn't close it for ever."""
    begin = clock.now
    for _ in range(2):
        table.failed("url", "busy", 5000)
    clock.now = begin + 4999
    assert not table.is_open("url")
    clock.now = begin + 5000
    assert table.is_open("url")
    clock.now = begin - 3 * LONGEST_RETRY
    assert table.is_open("url")
