# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.listing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from seeder.inventory import Item
from seeder.items import NOT_VOUCHED, OFFERED, WITHDRAWN
from seeder.listing import Listed
from seeder.state import Nar, State

ITEMS = [Item(n, f"/gnu/store/{n}", bytes([n]) * 32, n) for n in range(5)]
INFOHASH = "ab" * 32


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """One with items, the first of which isn't offered."""
    with State(tmp_path / "state") as opened:
        opened.items.add((item, OFFERED if item.order else WITHDRAWN) for item in ITEMS)
        yield opened


def make(state: State, item: Item) -> None:
    """Have a payload."""
    name = f"{item.order}.nar.zst"
    state.add(
        Nar(item.nar_hash, item.store_path, item.nar_size, name, 7, INFOHASH, b"t", b"n"), [], 5
    )


@pytest.mark.parametrize("page", [1, 2, 3, 4, 5])
def test_items_for_people(state: State, page: int) -> None:
    """With or without a payload: those that are offered, and the others."""
    make(state, ITEMS[1])
    assert list(state.listing.items(offered=False, page=page)) == [
        Listed("/gnu/store/0", bytes(32), 0, WITHDRAWN, False, "", 0, 0, 0, -1)
    ]
    offered = list(state.listing.items(offered=True, page=page))
    assert offered[0] == Listed("/gnu/store/1", b"\1" * 32, 1, OFFERED, True, INFOHASH, 7, 0, 0, -1)
    assert [listed.nar_size for listed in offered] == [1, 2, 3, 4]


def test_what_came_of_a_payload_stays_when_it_made_room(state: State) -> None:
    """Who looks sees that it was of use, and that it isn't there."""
    make(state, ITEMS[1])
    state.requested(ITEMS[1].nar_hash, 10)
    state.sent([(ITEMS[1].nar_hash, 100, 3)], 20)
    state.evict(ITEMS[1].nar_hash)
    assert next(state.listing.items(offered=True)) == Listed(
        "/gnu/store/1", b"\1" * 32, 1, OFFERED, False, INFOHASH, 7, 100, 1, 3
    )


def test_what_most_was_sent_of_comes_first(state: State) -> None:
    """Then by path; what isn't offered any more is left out."""
    for item in ITEMS[1:4]:
        make(state, item)
    amounts = [(1, 10), (2, 30), (3, 20)]
    state.sent([(ITEMS[n].nar_hash, sent, 0) for n, sent in amounts], 20)
    state.items.mark([ITEMS[3].store_path], NOT_VOUCHED)
    assert [listed.nar_size for listed in state.listing.most_sent(9)] == [2, 1, 4]
    assert [listed.uploaded for listed in state.listing.most_sent(2)] == [30, 10]
    assert state.listing.most_sent(0) == []
