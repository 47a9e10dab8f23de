# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers that are what they should be, and all others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.redis_replies import SUMMARY, number, numbers, read_answer, read_counts, read_pools
from tracker.swarms import Answer, Selection
from tracker.swarmstore import Asked
from tracker.wire_http import AnnounceRequest, Counts

COUNTS = SUMMARY.pack(3, 2, 7, 1, 0, 0, 0, 0, 0)
PACKED = AnnounceRequest(b"h" * 20, b"p" * 20, 1)
FULL = PACKED._replace(compact=False)


def asked(request: AnnounceRequest = PACKED, numwant: int = 2) -> Asked:
    """An announce that wants some peers."""
    return Asked(request, bytes(4), numwant, 0)


def amounts(four: int, six: int) -> bytes:
    """How many peers of each family follow."""
    return four.to_bytes(4) + six.to_bytes(4)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"0", 0),
        (b"18", 18),
        (b"9" * 18, 10**18 - 1),
        (b"9" * 19, 0),
        (b"-1", 0),
        (b"", 0),
        (b"x", 0),
        (None, 0),
        (5, 0),
    ],
)
def test_numbers(value: object, expected: int) -> None:
    """What is no number counts nothing."""
    assert number(value) == expected
    assert numbers([value] * 5) == [expected] * 5
    assert numbers([value] * 4) == [0] * 5


def test_answers() -> None:
    """Counts, and as many peers as were announced, with ids for who wants them."""
    peers = b"a" * 6 + b"b" * 18
    expected = Answer(Counts(3, 2, 7, 1), Selection(b"a" * 6, b"b" * 18))
    assert read_answer(COUNTS + amounts(1, 1) + peers, asked()) == expected
    ids = b"i" * 20 + b"j" * 20
    expected = Answer(Counts(3, 2, 7, 1), Selection(b"a" * 6, b"b" * 18, b"i" * 20, b"j" * 20))
    assert read_answer(COUNTS + amounts(1, 1) + peers + ids, asked(FULL)) == expected


@pytest.mark.parametrize(
    "result",
    [
        None,
        b"",
        COUNTS,
        COUNTS[:-1],
        COUNTS + amounts(1, 0) + bytes(5),
        COUNTS + amounts(1, 0) + bytes(7),
        COUNTS + amounts(3, 0) + bytes(18),
        COUNTS + amounts(2, 1) + bytes(30),
        ValueError("x"),
    ],
)
def test_what_is_no_answer(result: object) -> None:
    """Too short, too long, or more peers than were wanted."""
    assert read_answer(result, asked()) is None


@given(st.binary(max_size=200))
def test_rubbish(result: bytes) -> None:
    """Whatever it is, nothing is raised, and peers have the width of their family."""
    read_answer(result, asked())
    read_counts(result)
    for place, keys in enumerate(read_pools(result)):
        assert all(len(key) == (6, 18)[place % 2] for key in keys)
