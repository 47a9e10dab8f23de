# SPDX-License-Identifier: GPL-3.0-or-later
"""Marks of what is wanted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.wanted import LIFETIME, Wanted, WantedItem

NOW = 1_700_000_000.0
A, B, C = (bytes([number]) * 32 for number in range(3))


def _any(_nar_hash: bytes) -> bool:
    return True


@pytest.fixture(name="wanted")
def wanted_fixture() -> Wanted:
    """Room for three marks."""
    return Wanted(NOW, limit=3)


def test_marks(wanted: Wanted) -> None:
    """What is wanted is told in order, once for each cursor, to who holds it."""
    start = wanted.page(0, 9, _any, NOW).cursor
    assert wanted.mark(A, [], NOW)
    assert wanted.mark(B, [], NOW)
    page = wanted.page(start, 9, _any, NOW)
    assert page.items == [WantedItem(A, 1), WantedItem(B, 1)]
    assert wanted.page(page.cursor, 9, _any, NOW) == (page.cursor, [])
    assert wanted.page(0, 9, lambda nar_hash: nar_hash == B, NOW).items == [WantedItem(B, 1)]
    assert wanted.mark(C, [], NOW)
    assert wanted.page(page.cursor, 9, _any, NOW).items == [WantedItem(C, 1)]
    assert wanted.total(NOW) == 3


def test_requests_are_counted(wanted: Wanted) -> None:
    """Asking again is no news, but counts."""
    wanted.mark(A, [], NOW)
    cursor = wanted.page(0, 9, _any, NOW).cursor
    assert not wanted.mark(A, [], NOW + 1)
    assert wanted.page(cursor, 9, _any, NOW).items == []
    assert wanted.page(0, 9, _any, NOW).items == [WantedItem(A, 2)]


def test_most(wanted: Wanted) -> None:
    """What was asked for most often comes first, and what isn't wanted any more doesn't."""
    for number, nar_hash in enumerate((A, B, C)):
        for _ in range(number + 1):
            wanted.mark(nar_hash, [], NOW + number)
    assert wanted.most(2, NOW) == [WantedItem(C, 3), WantedItem(B, 2)]
    assert wanted.most(9, NOW + LIFETIME) == [WantedItem(C, 3), WantedItem(B, 2)]
    assert wanted.most(0, NOW) == []


def test_marks_end(wanted: Wanted) -> None:
    """A mark ends ten minutes after it was made; who asks then makes a new one, which is news."""
    wanted.mark(A, [], NOW)
    wanted.mark(B, [], NOW + 1)
    cursor = wanted.page(0, 9, _any, NOW).cursor
    assert wanted.total(NOW + LIFETIME - 1) == 2
    assert wanted.total(NOW + LIFETIME) == 1
    assert wanted.mark(A, [], NOW + LIFETIME)
    assert wanted.page(cursor, 9, _any, NOW + LIFETIME).items == [WantedItem(A, 1)]


def test_clear(wanted: Wanted) -> None:
    """What somebody seeds isn't wanted any more; what never was doesn't matter."""
    wanted.mark(A, [], NOW)
    wanted.clear([A, B])
    assert wanted.page(0, 9, _any, NOW).items == []
    assert wanted.mark(A, [], NOW)


def test_info_hashes(wanted: Wanted) -> None:
    """Under which infohashes a seed would announce is known as soon as there is a torrent."""
    wanted.mark(A, [b"1"], NOW)
    wanted.mark(B, [], NOW)
    wanted.prepared(B, [b"2", b"3"])
    wanted.prepared(C, [b"4"])
    found = [wanted.info_hashes(each) for each in (A, B, C)]
    assert found == [(b"1",), (b"2", b"3"), ()]


def test_pages(wanted: Wanted) -> None:
    """What doesn't fit comes with the next cursor."""
    for each in (A, B, C):
        wanted.mark(each, [], NOW)
    cursor, seen = 0, []
    for _ in range(3):
        page = wanted.page(cursor, 1, _any, NOW)
        cursor, (item,) = page
        seen.append(item.nar_hash)
    assert seen == [A, B, C]
    assert wanted.page(cursor, 1, _any, NOW).items == []


def test_limit(wanted: Wanted) -> None:
    """When there are too many the oldest is forgotten."""
    names = [bytes([number]) * 32 for number in range(5)]
    for each in names:
        wanted.mark(each, [], NOW)
    assert [item.nar_hash for item in wanted.page(0, 9, _any, NOW).items] == names[2:]


def test_cursors_of_another_run(wanted: Wanted) -> None:
    """A cursor of an earlier run is older than all marks; one that can't be is taken for none."""
    earlier = Wanted(NOW - 1)
    for _ in range(1000):
        earlier.clear([A])
        earlier.mark(A, [], NOW)
    wanted.mark(A, [], NOW)
    for cursor in (earlier.page(0, 9, _any, NOW).cursor, 2**60):
        assert wanted.page(cursor, 9, _any, NOW).items == [WantedItem(A, 1)]
    assert wanted.page(0, 9, _any, NOW).cursor < 2**53


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 4))
def test_nothing_is_missed(marks: list[int], limit: int) -> None:
    """Who follows the cursor is told of each mark exactly once."""
    wanted, cursor, told, made = Wanted(NOW), 0, 0, 0
    for number in marks:
        name = bytes([number]) * 32
        if number == 5:
            page = wanted.page(cursor, limit, _any, NOW)
            cursor, told = page.cursor, told + len(page.items)
        else:
            made += wanted.mark(name, [], NOW)
    while items := (page := wanted.page(cursor, limit, _any, NOW)).items:
        cursor, told = page.cursor, told + len(items)
    assert told == made
