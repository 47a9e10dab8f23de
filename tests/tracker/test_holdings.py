# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of what seeders hold."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import bencoding
from narswarm.bencoding import Value
from narswarm.errors import InvalidInputError
from narswarm.trackerclient import pack_hashes
from tracker import holdings
from tracker.holdings import (
    FULL_PAUSE,
    LEASE,
    Held,
    Holdings,
    HoldingsFullError,
    StaleHoldingsError,
    TooManyItemsError,
    TooSoonError,
    Update,
    merge,
    parse_update,
)

NOW = 1_700_000_000.0
KEY, OTHER = b"k" * 32, b"o" * 32


def _hash(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


A, B, C = sorted(_hash(number) for number in range(3))
BODY: dict[bytes, Value] = {
    b"added": A + B,
    b"base": 1,
    b"generation": 2,
    b"port": 1,
    b"removed": C,
}


def _update(base: int, generation: int, *added: bytes, removed: tuple[bytes, ...] = ()) -> Update:
    content: dict[bytes, Value] = {
        b"added": pack_hashes(added),
        b"base": base,
        b"generation": generation,
        b"port": 6881,
        b"removed": pack_hashes(removed),
    }
    return parse_update(bencoding.encode(content))


@pytest.fixture(name="store")
def store_fixture() -> Holdings:
    """Lists with room for two keys of three items, and five in all."""
    return Holdings(2, 3, 5)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {b"port": 65535},
        {b"base": 0, b"generation": 1, b"removed": b""},
        {b"base": 2, b"added": b"", b"removed": b""},
        {b"generation": 2**53 - 1},
    ],
)
def test_bodies(change: dict[bytes, Value]) -> None:
    """A change, a complete list and a refresh are read."""
    content = BODY | change
    update = parse_update(bencoding.encode(content))
    assert (update.base, update.generation) == (content[b"base"], content[b"generation"])
    expected = [int.from_bytes(each[:8]) for each in (A, B)] if content[b"added"] else []
    assert list(update.added) == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {b"more": 1},
            "holdings: is not a dictionary of added, base, generation, port and removed",
        ),
        ({b"base": b"1"}, "base: is not a generation"),
        ({b"base": -1}, "base: is not a generation"),
        ({b"base": 2**53}, "base: is not a generation"),
        ({b"generation": 0}, "generation: is not a generation above 0 and from base on"),
        ({b"base": 3}, "generation: is not a generation above 0 and from base on"),
        ({b"generation": 2**53}, "generation: is not a generation above 0 and from base on"),
        ({b"generation": b""}, "generation: is not a generation above 0 and from base on"),
        (
            {b"base": 0, b"generation": 0, b"added": b"", b"removed": b""},
            "generation: is not a generation above 0 and from base on",
        ),
        ({b"port": 0}, "port: is not between 1 and 65535"),
        ({b"port": 65536}, "port: is not between 1 and 65535"),
        ({b"port": b"1"}, "port: is not between 1 and 65535"),
        ({b"added": 1}, "added: is not a string of hashes of 32 bytes"),
        ({b"added": A[:31]}, "added: is not a string of hashes of 32 bytes"),
        ({b"removed": A + b"x"}, "removed: is not a string of hashes of 32 bytes"),
        ({b"added": B + A}, "added: is not in order, or has an item twice"),
        ({b"removed": A + A}, "removed: is not in order, or has an item twice"),
        ({b"base": 0}, "removed: is not empty, in a complete list"),
        ({b"base": 2}, "generation: is that of base, but something changed"),
        (
            {b"base": 2, b"added": b""},
            "generation: is that of base, but something changed",
        ),
    ],
)
def test_bad_bodies(change: dict[bytes, Value], reason: str) -> None:
    """What doesn't follow the format is refused as a whole."""
    with pytest.raises(InvalidInputError) as caught:
        parse_update(bencoding.encode(BODY | change))
    assert str(caught.value) == reason


@pytest.mark.parametrize("body", [b"", b"de", b"le", b"i1e", b"d5:addedlee"])
def test_bodies_of_another_shape(body: bytes) -> None:
    """Whatever else is bencoded, or isn't, is none."""
    with pytest.raises(InvalidInputError):
        parse_update(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_judged(body: bytes) -> None:
    """Whatever comes is read or refused with an error that says so."""
    with pytest.raises(InvalidInputError):
        parse_update(body)


_NUMBERS = st.frozensets(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=60)


@given(_NUMBERS, _NUMBERS, _NUMBERS, st.sampled_from([1, 2, 7, 512]))
def test_merge(
    old: frozenset[int], added: frozenset[int], removed: frozenset[int], step: int
) -> None:
    """A change is set algebra, however few items are looked at together."""
    packed = [array("Q", sorted(numbers)) for numbers in (old, added, removed)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holdings, "_STEP", step)
        assert list(merge(*packed)) == sorted((old - removed) | added)


@given(st.lists(st.tuples(_NUMBERS, _NUMBERS), max_size=5))
def test_changes_make_the_complete_list(changes: list[tuple[frozenset[int], ...]]) -> None:
    """All changes one after the other make what the complete list makes at once."""
    store, expected = Holdings(2, 1000, 2000), frozenset[int]()
    store.apply(KEY, Update(0, 1, array("Q"), array("Q")), NOW)
    for number, (added, removed) in enumerate(changes, 1):
        packed = [array("Q", sorted(numbers)) for numbers in (added, removed)]
        store.apply(KEY, Update(number, number + 1, *packed), NOW)
        expected = (expected - removed) | added
    complete = Update(0, 1, array("Q", sorted(expected)), array("Q"))
    assert store.apply(OTHER, complete, NOW).items == len(expected)
    for number in range(41):
        name = number.to_bytes(8) + bytes(24)
        assert store.holds(KEY, name, NOW) == store.holds(OTHER, name, NOW) == (number in expected)
    assert store.totals(NOW) == (2, 2 * len(expected))


def test_hashes_that_begin_alike(store: Holdings) -> None:
    """Two hashes with the same first 8 bytes are one item: lists are advice."""
    alike = [bytes(8) + _hash(number)[:24] for number in range(2)]
    assert store.apply(KEY, _update(0, 1, *alike), NOW) == Held(1, 1)
    assert store.holds(KEY, alike[0], NOW)


def test_lists(store: Holdings) -> None:
    """Each key has its own list, and is found by what is in it."""
    assert store.apply(KEY, _update(0, 1, A, B), NOW) == Held(1, 2)
    assert store.apply(OTHER, _update(0, 7, B), NOW) == Held(7, 1)
    assert [store.holders(each, NOW) for each in (A, B, C)] == [[KEY], [KEY, OTHER], []]
    assert store.apply(KEY, _update(1, 2, C, removed=(B,)), NOW) == Held(2, 2)
    assert [store.holders(each, NOW) for each in (A, B, C)] == [[KEY], [OTHER], [KEY]]
    assert (store.holds(KEY, A, NOW), store.holds(OTHER, A, NOW)) == (True, False)
    assert (store.has(KEY, NOW), store.has(b"", NOW), store.totals(NOW)) == (True, False, (2, 3))


def test_other_generations(store: Holdings) -> None:
    """A change for another list than the present one changes nothing, and names the present one."""
    for base, present in ((1, 0), (5, 0)):
        with pytest.raises(StaleHoldingsError) as caught:
            store.apply(KEY, _update(base, 6), NOW)
        assert caught.value.generation == present
    store.apply(KEY, _update(0, 4, A), NOW)
    for base in (3, 5):
        with pytest.raises(StaleHoldingsError) as caught:
            store.apply(KEY, _update(base, 6, B), NOW)
        assert caught.value.generation == 4
    text = "base: is not the generation that this tracker has, 4"
    assert str(caught.value) == text
    assert store.holders(B, NOW) == []


def test_leases(store: Holdings) -> None:
    """A list is forgotten when its lease is over; every request begins it anew."""
    store.apply(KEY, _update(0, 1, A), NOW)
    store.apply(OTHER, _update(0, 1, A), NOW + 1)
    assert store.apply(KEY, _update(1, 1), NOW + 900) == Held(1, 1)
    assert store.holders(A, NOW + LEASE) == [KEY, OTHER]
    assert store.holders(A, NOW + LEASE + 1) == [KEY]
    assert store.totals(NOW + 900 + LEASE - 1) == (1, 1)
    assert store.totals(NOW + 900 + LEASE) == (0, 0)
    with pytest.raises(StaleHoldingsError):
        store.apply(KEY, _update(1, 1), NOW + 900 + LEASE)


def test_a_complete_list_that_is_here_already(store: Holdings) -> None:
    """What another tracker with the same lists was told may be told again at once."""
    store.apply(KEY, _update(0, 1, A), NOW)
    assert store.apply(KEY, _update(0, 1, A), NOW + 1) == Held(1, 1)
    with pytest.raises(TooSoonError):
        store.apply(KEY, _update(0, 1, B), NOW + 2)
    with pytest.raises(TooSoonError):
        store.apply(KEY, _update(0, 2, A), NOW + 2)


def test_complete_lists_come_seldom(store: Holdings) -> None:
    """A second complete list waits a minute, unless the first was lost; changes don't wait."""
    store.apply(KEY, _update(0, 1, A), NOW)
    store.apply(KEY, _update(1, 2, B), NOW)
    with pytest.raises(TooSoonError) as caught:
        store.apply(KEY, _update(0, 3, C), NOW + 0.5)
    assert str(caught.value) == "base: is 0 again too soon; wait 60 s or send a change"
    with pytest.raises(TooSoonError) as caught:
        store.apply(KEY, _update(0, 3, C), NOW + FULL_PAUSE - 1)
    assert caught.value.retry_after == 2
    assert store.apply(KEY, _update(0, 3, C), NOW + FULL_PAUSE) == Held(3, 1)
    store.apply(OTHER, _update(0, 1), NOW)
    later = NOW + FULL_PAUSE + LEASE
    assert store.apply(KEY, _update(0, 4), later) == Held(4, 0)


def test_a_goodbye_keeps_nobody_waiting(store: Holdings) -> None:
    """An empty list comes whenever it likes, and the next one after it as well."""
    store.apply(KEY, _update(0, 1, A), NOW)
    assert store.apply(KEY, _update(0, 2), NOW + 1) == Held(2, 0)
    assert store.apply(KEY, _update(0, 3), NOW + 1) == Held(3, 0)
    assert store.apply(KEY, _update(0, 4, A), NOW + 2) == Held(4, 1)
    with pytest.raises(TooSoonError) as caught:
        store.apply(KEY, _update(0, 5, B), NOW + 3)
    assert caught.value.retry_after == FULL_PAUSE


def test_limits(store: Holdings) -> None:
    """Lists are bounded each, together and in number; what goes beyond changes nothing."""
    store.apply(KEY, _update(0, 1, A, B, C), NOW)
    with pytest.raises(TooManyItemsError) as long:
        store.apply(KEY, _update(1, 2, _hash(9)), NOW)
    assert str(long.value) == "holdings: are more than 3 items"
    with pytest.raises(HoldingsFullError) as full:
        store.apply(OTHER, _update(0, 1, A, B, C), NOW)
    assert str(full.value) == "holdings: are full: too many items are in them"
    store.apply(OTHER, _update(0, 1, A, B), NOW)
    with pytest.raises(HoldingsFullError) as full:
        store.apply(b"x", _update(0, 1), NOW)
    assert str(full.value) == "holdings: are full: too many keys have some"
    assert store.totals(NOW) == (2, 5)


def test_other_limits(store: Holdings) -> None:
    """Lists beyond limits that were lowered stay, may shrink, and don't grow."""
    store.apply(KEY, _update(0, 1, A, B), NOW)
    store.limit(1, 3, 1)
    with pytest.raises(HoldingsFullError):
        store.apply(KEY, _update(1, 2, C), NOW)
    assert store.apply(KEY, _update(1, 1), NOW) == Held(1, 2)
    assert store.apply(KEY, _update(1, 2, removed=(A,)), NOW) == Held(2, 1)


def test_two_requests_at_once(store: Holdings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two changes of one list the slower one is stale: neither is lost unnoticed."""
    store.apply(KEY, _update(0, 1), NOW)
    merged: Callable[..., array[int]] = merge

    def slow(*lists: array[int]) -> array[int]:
        monkeypatch.setattr(holdings, "merge", merged)
        store.apply(KEY, _update(1, 5, A), NOW)
        return merged(*lists)

    monkeypatch.setattr(holdings, "merge", slow)
    with pytest.raises(StaleHoldingsError) as caught:
        store.apply(KEY, _update(1, 2, B), NOW)
    assert caught.value.generation == 5
    assert (store.holders(A, NOW), store.holders(B, NOW)) == ([KEY], [])


def test_memory() -> None:
    """An item costs 8 bytes, and hardly more."""
    numbers = array("Q", range(100_000))
    made = merge(array("Q"), numbers, array("Q"))
    assert made == numbers
    assert made.itemsize == 8
    assert made.__sizeof__() < 1_000_000
