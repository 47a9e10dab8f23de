# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of items, and what trackers have to be told of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seeder import items
from seeder.inventory import Item
from seeder.items import NEW, NOT_VOUCHED, OFFERED, UNREADABLE, WITHDRAWN, Change, ItemTable, Scope
from seeder.state import Nar, State

START = 1_000_000


class Bench:
    """A table with its clock in the test's hands."""

    def __init__(self, directory: Path) -> None:
        self.now = float(START)
        self.state = State(directory, lambda: self.now)
        self.table = self.state.items


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A new one."""
    made = Bench(tmp_path)
    yield made
    made.state.close()


def item(number: int, content: int | None = None) -> Item:
    """An item; those of the same content have the same NAR."""
    nar_hash = bytes([number if content is None else content]) * 32
    return Item(number, f"/gnu/store/{number:032}-x", nar_hash, 100)


def offer(table: ItemTable, *wanted: Item) -> None:
    """Have items offered."""
    table.add((each, NEW) for each in wanted)
    table.vouched((each, b"narinfo of %d" % each.order) for each in wanted)


def test_items_and_their_narinfos(bench: Bench) -> None:
    """New items wait for a look-up; those that are vouched for have their narinfo."""
    bench.table.add([(item(1), NEW), (item(2), "excluded")])
    assert (len(bench.table), bench.table.last()) == (2, 2)
    assert bench.table.pending(9) == [item(1)]
    bench.table.vouched([(item(1), b"narinfo")])
    known = bench.table.find(item(1).store_path)
    assert known == (item(1), OFFERED, b"narinfo")
    assert bench.table.of(item(1).nar_hash) == known
    assert bench.table.statuses() == {OFFERED: 1, "excluded": 1}
    assert bench.table.find("/gnu/store/x") is None
    assert bench.table.of(bytes(32)) is None


def test_the_newest_are_looked_up_first(bench: Bench) -> None:
    """Who wants an item has mostly just pulled the channels that brought it."""
    bench.table.add((item(number), NEW) for number in range(1, 6))
    assert bench.table.pending(2) == [item(5), item(4)]


def test_misses_are_looked_up_at_longer_intervals(bench: Bench) -> None:
    """The time doubles up to a day; success ends it."""
    bench.table.add([(item(1), NEW)])
    for wait in (60, 120, 240):
        bench.table.missed([item(1)], NOT_VOUCHED, 60)
        bench.now += wait - 1
        assert bench.table.pending(9) == []
        bench.now += 1
        assert bench.table.pending(9) == [item(1)]
    for _ in range(40):
        bench.table.missed([item(1)], UNREADABLE, 60)
    bench.now += items.LONGEST_WAIT - 1
    assert bench.table.pending(9) == []
    bench.now += 1
    assert bench.table.pending(9) == [item(1)]


def test_a_clock_that_was_wrong(bench: Bench) -> None:
    """What is due later than it can be was noted by a clock that was ahead."""
    bench.table.add([(item(1), NEW)])
    bench.now += 1000 * items.DAY
    bench.table.missed([item(1)], NOT_VOUCHED, 60)
    bench.now = START
    assert bench.table.pending(9) == [item(1)]


def test_an_item_that_was_made_anew_is_looked_up(bench: Bench) -> None:
    """Under the same path with another NAR; with the same NAR nothing changes."""
    offer(bench.table, item(1))
    bench.table.add([(item(1)._replace(order=7), NEW)])
    found = bench.table.find(item(1).store_path)
    assert found is not None
    assert (found.item.order, found.status) == (7, OFFERED)
    bench.table.add([(item(1, 9), NEW)])
    assert bench.table.pending(9) == [item(1, 9)]
    bench.table.vouched([(item(1), b"of the old one")])
    assert bench.table.pending(9) == [item(1, 9)]


def test_what_was_withdrawn_stays_so(bench: Bench) -> None:
    """Neither a voucher nor a rebuild brings it back."""
    bench.table.add([(item(1), WITHDRAWN)])
    bench.table.vouched([(item(1), b"narinfo")])
    bench.table.add([(item(1, 9), NEW)])
    assert bench.table.statuses() == {WITHDRAWN: 1}


def test_only_what_is_there_is_kept(bench: Bench) -> None:
    """All others are forgotten, and counted."""
    offer(bench.table, item(1), item(2), item(3))
    assert bench.table.keep([item(2).store_path, "/gnu/store/other"]) == 2
    assert [known.item for page in bench.table.pages() for known in page] == [item(2)]
    assert bench.table.keep([item(2).store_path]) == 0
    bench.table.remove(item(2).store_path)
    assert len(bench.table) == 0


def test_pages_bear_changes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items are gone through while they change."""
    monkeypatch.setattr(items, "PAGE", 2)
    offer(bench.table, *map(item, range(1, 6)))
    seen = []
    for page in bench.table.pages(OFFERED):
        seen += [known.item.order for known in page]
        bench.table.mark([known.item.store_path for known in page], WITHDRAWN)
    assert seen == [1, 2, 3, 4, 5]


def test_holdings_are_told_by_what_changed(bench: Bench) -> None:
    """A complete list first; then what came and went, and nothing if nothing did."""
    table = bench.table
    assert table.change(0) == Change(0, START, b"", b"")
    offer(table, item(2), item(1))
    assert table.sync()
    assert not table.sync()
    first = table.change(0)
    assert first == Change(0, START + 1, item(1).nar_hash + item(2).nar_hash, b"")
    offer(table, item(3))
    table.remove(item(1).store_path)
    table.sync()
    assert table.held() == 2
    assert table.change(first.generation) == Change(
        START + 1, START + 2, item(3).nar_hash, item(1).nar_hash
    )
    assert table.change(START + 2) == Change(START + 2, START + 2, b"", b"")


def test_another_state_s_generation_is_none_of_ours(bench: Bench) -> None:
    """A tracker that has something of the future gets a complete list."""
    offer(bench.table, item(1))
    bench.table.sync()
    assert bench.table.change(START + 2) == Change(0, START + 1, item(1).nar_hash, b"")
    assert bench.table.change(-1).base == 0


def test_items_of_the_same_content_are_held_once(bench: Bench) -> None:
    """And as long as one of them is there."""
    offer(bench.table, item(1, 5), item(2, 5))
    bench.table.sync()
    assert bench.table.change(0).added == bytes([5]) * 32
    bench.table.remove(item(1).store_path)
    assert not bench.table.sync()
    bench.table.mark([item(2).store_path], WITHDRAWN)
    assert bench.table.sync()
    known = bench.table.of(bytes([5]) * 32)
    assert known is not None
    assert known.status == WITHDRAWN


def test_scopes(bench: Bench) -> None:
    """All, those with a payload, or none."""
    offer(bench.table, item(1), item(2))
    nar = Nar(item(1).nar_hash, "", 1, "x", 1, "", b"", b"")
    bench.state.add(nar, [], 0)
    bench.table.sync(Scope.MADE)
    assert bench.table.change(0).added == item(1).nar_hash
    bench.table.sync(Scope.NONE)
    assert bench.table.held() == 0
    bench.table.sync(Scope.ALL)
    assert bench.table.held() == 2


def test_the_list_of_what_went_is_short(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers that were told before its beginning are told all."""
    monkeypatch.setattr(items, "_KEPT", 2)
    table = bench.table
    offer(table, *map(item, range(1, 6)))
    table.sync()
    first = table.generation()
    for number in range(1, 4):
        table.remove(item(number).store_path)
        table.sync()
    assert table.change(first).base == 0
    last = table.generation()
    table.remove(item(4).store_path)
    table.sync()
    assert table.change(last).removed == item(4).nar_hash


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sets(st.integers(1, 8)), min_size=1, max_size=6), st.integers(0, 5))
def test_changes_lead_to_the_same_list(steps: list[set[int]], told_at: int) -> None:
    """Whoever was told at any time and then the change since has what a new one is told."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        told, held = 0, set[bytes]()
        for number, step in enumerate(steps):
            there = {known.item.order for page in bench.table.pages() for known in page}
            offer(bench.table, *map(item, step - there))
            for gone in there - step:
                bench.table.remove(item(gone).store_path)
            bench.table.sync()
            if number == told_at:
                change = bench.table.change(0)
                told, held = change.generation, split(change.added)
        change = bench.table.change(told)
        if change.base == 0:
            held = set()
        assert (held | split(change.added)) - split(change.removed) == split(
            bench.table.change(0).added
        )
        bench.state.close()


def split(packed: bytes) -> set[bytes]:
    """The hashes of a list."""
    return {packed[start : start + 32] for start in range(0, len(packed), 32)}
