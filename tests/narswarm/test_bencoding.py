# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.bencoding`."""

from __future__ import annotations

import bencodepy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from narswarm import bencoding
from narswarm.errors import InvalidInputError

VALUES: st.SearchStrategy[bencoding.Value] = st.recursive(
    st.integers(-(10**19) + 1, 10**19 - 1) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.binary(max_size=9), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, b"i0e"),
        (-42, b"i-42e"),
        (10**19 - 1, b"i9999999999999999999e"),
        (b"", b"0:"),
        (b"spam", b"4:spam"),
        ([], b"le"),
        ({}, b"de"),
        ([b"a", [1, {}]], b"l1:ali1edeee"),
        ({b"": 1, b"b": {b"\xff": []}, b"a": b""}, b"d0:i1e1:a0:1:bd1:\xffleee"),
    ],
)
def test_known_values(value: bencoding.Value, data: bytes) -> None:
    """Each value has the one encoding that BEP 3 gives it."""
    assert bencoding.encode(value) == data
    assert bencoding.decode(data, "x") == value


@given(VALUES)
def test_round_trip(value: bencoding.Value) -> None:
    """What is encoded comes back, and bencode.py reads it alike."""
    try:
        decoded = bencoding.decode(bencoding.encode(value), "x")
    except InvalidInputError as error:
        assert "deeper than" in error.reason  # noqa: PT017 -- the only reason there may be
    else:
        assert decoded == value == bencodepy.decode(bencoding.encode(value))


@given(st.binary(max_size=60) | st.text("dlei0123456789-: ab", max_size=40).map(str.encode))
@example(b"d1:a0:-5:e")
def test_hostile_bytes(data: bytes) -> None:
    """Any bytes are either the canonical encoding of what they decode to or refused."""
    try:
        value = bencoding.decode(data, "x")
    except InvalidInputError:
        return
    assert bencoding.encode(value) == data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut off at byte 0"),
        (b"x", "no canonical value at byte 0"),
        (b"e", "no canonical value at byte 0"),
        (b"i1", "no canonical value at byte 0"),
        (b"ie", "no canonical value at byte 0"),
        (b"i-0e", "no canonical value at byte 0"),
        (b"i01e", "no canonical value at byte 0"),
        (b"i+1e", "no canonical value at byte 0"),
        (b"i1_0e", "no canonical value at byte 0"),
        (b"i 1e", "no canonical value at byte 0"),
        (b"i10000000000000000000e", "no canonical value at byte 0"),
        (b"01:a", "no canonical value at byte 0"),
        (b"-1:a", "no canonical value at byte 0"),
        (b"2:a", "a string longer than the data at byte 0"),
        (b"99999999999:a", "a string longer than the data at byte 0"),
        (b"0:x", "data after the end at byte 2"),
        (b"l", "cut off at byte 1"),
        (b"li1e", "cut off at byte 4"),
        (b"d1:ae", "a key without a value at byte 4"),
        (b"di1e1:ae", "a key that isn't a string at byte 1"),
        (b"dle1:ae", "a key that isn't a string at byte 1"),
        (b"d1:b0:1:a0:e", "a key out of order at byte 6"),
        (b"d1:a0:1:a0:e", "a key out of order at byte 6"),
        (b"d1:a0:-5:e", "no canonical value at byte 6"),
        (b"l" * 17 + b"e" * 17, "deeper than 16 levels at byte 16"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    """What isn't canonical is refused with the place where it goes wrong."""
    with pytest.raises(InvalidInputError) as caught:
        bencoding.decode(data, "peer")
    assert str(caught.value) == f"peer: bencoding has {reason}"


def test_depth() -> None:
    """Containers may nest as deep as is said and no deeper, whatever Python's recursion limit."""
    deep = b"l" * 5000 + b"e" * 5000
    bencoding.decode(deep, "x", max_depth=5000)
    with pytest.raises(InvalidInputError):
        bencoding.decode(deep, "x", max_depth=4999)


def test_number_of_values() -> None:
    """Memory for many tiny values is bounded."""
    with pytest.raises(InvalidInputError) as caught:
        bencoding.decode(b"l" + b"le" * bencoding.MAX_VALUES + b"e", "x")
    assert caught.value.reason.startswith("bencoding has too many values")
