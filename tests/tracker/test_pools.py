# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of tracker.pools: sorted records of peers."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.pools import COUNTED, PARTIAL, Pool, Pool4, Pool6, tail

NOW = 1_700_000_000
POOLS = [Pool4, Pool6]


def key(kind: type[Pool], address: int, port: int) -> bytes:
    """An address whose last byte differs, with a port."""
    return address.to_bytes(kind.KEY - 2) + port.to_bytes(2)


def peer_id(number: int) -> bytes:
    """A peer id."""
    return b"%020d" % number


def filled(kind: type[Pool], numbers: list[int]) -> Pool:
    """A pool with one peer an address, heard of at different times."""
    pool = kind()
    for number in numbers:
        pool.add(key(kind, number, 1) + tail(NOW + number, 0, peer_id(number)))
    return pool


def test_a_record_is_small() -> None:
    """A million peers are to take little more than 31 or 43 megabytes."""
    assert (Pool4.STRIDE, Pool6.STRIDE) == (31, 43)
    assert tail(1, PARTIAL | COUNTED, b"p" * 20) == b"\0\0\0\1\3" + b"p" * 20


@pytest.mark.parametrize("kind", POOLS)
@given(peers=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))), gone=st.integers(0, 9))
def test_peers_come_and_go(kind: type[Pool], peers: list[tuple[int, int]], gone: int) -> None:
    """In whatever order they come, they stay sorted, and each is found until it leaves."""
    pool = kind()
    for number, each in enumerate(peers):
        if pool.index_of(key(kind, *each)) < 0:
            pool.add(key(kind, *each) + tail(NOW, number % 4, peer_id(number)))
    known = sorted(set(peers))
    assert pool.size == len(known)
    assert pool.keys() == {key(kind, *each) for each in known}
    assert [pool.index_of(key(kind, *each)) for each in known] == list(range(len(known)))
    leaves = (gone, gone)
    flags = peers.index(leaves) % 4 if leaves in known else None
    assert pool.take(key(kind, *leaves)) == flags
    assert pool.take(key(kind, *leaves)) is None
    assert pool.size == len(known) - (leaves in known)


@pytest.mark.parametrize("kind", POOLS)
def test_a_peer_is_written_anew_where_it_is(kind: type[Pool]) -> None:
    """Its neighbours stay as they are."""
    pool = filled(kind, [3, 1, 2])
    before = [pool.record(0), pool.record(2)]
    pool.refresh(1, tail(NOW, PARTIAL, peer_id(9)))
    assert pool.record(1) == key(kind, 2, 1) + tail(NOW, PARTIAL, peer_id(9))
    assert pool.flags(1) == PARTIAL
    assert pool.partial() == 1
    assert [pool.record(0), pool.record(2)] == before


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize(("allowed", "stay"), [(1, []), (2, [9]), (3, [7, 9]), (4, [5, 7, 9])])
def test_the_longest_unheard_of_a_network_make_room(
    kind: type[Pool], allowed: int, stay: list[int]
) -> None:
    """One more fits afterwards; other networks aren't touched."""
    pool = filled(kind, [0, 2])
    for seen in (7, 5, 9):
        pool.add(key(kind, 1, seen) + tail(NOW + seen, seen % 4, peer_id(seen)))
    network = key(kind, 1, 0)[:-2]
    assert pool.make_room(network, allowed) == [seen % 4 for seen in (5, 7, 9) if seen not in stay]
    others = {key(kind, 0, 1), key(kind, 2, 1)}
    assert pool.keys() == {key(kind, 1, seen) for seen in stay} | others


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize(("before", "gone"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)])
def test_who_fell_silent_goes(kind: type[Pool], before: int, gone: int) -> None:
    """Whoever was heard of at that time stays."""
    pool = filled(kind, [1, 2, 3])
    assert pool.expire(NOW + before, None) == gone
    assert pool.keys() == {key(kind, number, 1) for number in range(1 + gone, 4)}


@pytest.mark.parametrize("kind", POOLS)
def test_who_is_unwanted_goes(kind: type[Pool]) -> None:
    """By the address, without its port."""
    pool = filled(kind, [1, 2, 3])
    assert pool.expire(0, lambda address: address == key(kind, 2, 0)[:-2]) == 1
    assert pool.keys() == {key(kind, 1, 1), key(kind, 3, 1)}


@pytest.mark.parametrize("kind", POOLS)
@given(
    size=st.integers(0, 12),
    limit=st.integers(1, 13),
    without=st.integers(-1, 11),
    seed=st.integers(0, 99),
)
def test_chosen_are_different_and_never_the_asker(
    kind: type[Pool], size: int, limit: int, without: int, seed: int
) -> None:
    """As many as are wanted or there, each with its own address and peer id."""
    pool = filled(kind, list(range(size)))
    without = min(without, size - 1)
    chosen = pool.choose(limit, Random(seed), without)  # noqa: S311 -- the same at each run
    found = sorted(offset // kind.STRIDE for offset in chosen)
    assert len(found) == min(limit, size - (without >= 0))
    assert len(set(found)) == len(found)
    assert set(found) <= set(range(size)) - {without}
    order = [offset // kind.STRIDE for offset in chosen]
    assert pool.addresses(chosen) == b"".join(key(kind, number, 1) for number in order)
    assert pool.ids(chosen) == b"".join(peer_id(number) for number in order)
