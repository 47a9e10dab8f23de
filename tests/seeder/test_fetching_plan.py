# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.fetching_plan."""

from __future__ import annotations

from random import Random

import pytest

from narswarm.fetchclient import Wanted
from narswarm.plans import AT_ONCE, FAST, FAST_AT_ONCE, LARGE
from seeder import fetching_plan
from seeder.fetching_plan import MAX_BESIDE, MAX_SMALL, MIN_RATE, Plans, share

GIB = 1 << 30


def wanted(number: int, size: int = 1) -> Wanted:
    """A NAR of a plan."""
    return Wanted(number.to_bytes(32), size, f"/gnu/store/{'0' * 32}-{number}")


def new_plans() -> Plans:
    """None yet, by dice that always fall the same way."""
    return Plans(Random(1))  # noqa: S311 -- nobody gains by guessing it


def begin(
    plans: Plans, room: int = GIB, *, waiting: bool = False, rate: float | None = None
) -> list[int]:
    """Begin with all that may be begun with; their numbers."""
    running: dict[bytes, int] = {}
    while (item := plans.next(running, room, waiting=waiting, rate=rate)) is not None:
        running[item.nar_hash] = item.nar_size
    return [int.from_bytes(nar_hash) for nar_hash in running]


@pytest.mark.parametrize(("rate", "large"), [(None, AT_ONCE), (float(FAST), FAST_AT_ONCE)])
def test_many_small_and_few_large_ones(rate: float | None, large: int) -> None:
    """Large items don't wait for small ones, nor the other way round; every second out of turn."""
    plans = new_plans()
    sizes = [LARGE, LARGE - 1] * 20
    assert plans.add("a", [wanted(n, size) for n, size in enumerate(sizes)]) == 40
    begun = begin(plans, rate=rate)
    found = [n for n in begun if not n % 2]
    assert found[0] == 0
    assert found[1] > 2
    assert len(found) == large
    assert [n for n in begun if n % 2] == list(range(1, 2 * MAX_SMALL, 2))


def test_what_is_taken_out_of_turn_leaves_room() -> None:
    """What comes next must not have to wait for what comes last."""
    plans = new_plans()
    plans.add("a", [wanted(1, LARGE), *(wanted(n, 2 * LARGE) for n in range(2, 9))])
    item = plans.next({wanted(0).nar_hash: LARGE}, 3 * LARGE)
    assert item == wanted(1, LARGE)


def test_few_small_ones_beside_what_somebody_waits_for() -> None:
    """Large ones are limited in another way."""
    plans = new_plans()
    plans.add("a", [wanted(n, LARGE - 1) for n in range(20)])
    plans.add("b", [wanted(n, LARGE) for n in range(20, 40)])
    assert len(begin(plans, waiting=True)) == MAX_BESIDE + AT_ONCE


def test_plans_take_turns() -> None:
    """A long plan doesn't keep a short one waiting."""
    plans = new_plans()
    plans.add("a", [wanted(n) for n in range(10)])
    plans.add("b", [wanted(n) for n in range(10, 12)])
    assert begin(plans)[:4] == [0, 10, 1, 11]


def test_what_has_no_room_waits() -> None:
    """Smaller ones go before it."""
    plans = new_plans()
    plans.add("a", [wanted(1, 101), wanted(2, 100)])
    assert begin(plans, 100) == [2]


def test_items_leave_all_plans() -> None:
    """When they are begun, or when their owner is gone."""
    plans = new_plans()
    assert plans.add("a", [wanted(1), wanted(2), wanted(1)]) == 2
    assert plans.add("b", [wanted(1)]) == 1
    assert plans.owners(wanted(1).nar_hash) == {"a", "b"}
    plans.done(wanted(1).nar_hash)
    assert plans.owners(wanted(1).nar_hash) == set()
    assert len(plans) == 1
    plans.drop("a")
    assert len(plans) == 0
    assert begin(plans) == []
    plans.drop("a")


def test_plans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them together."""
    monkeypatch.setattr(fetching_plan, "MAX_ITEMS", 3)
    plans = new_plans()
    assert plans.add("a", [wanted(1), wanted(2)]) == 2
    assert plans.add("b", [wanted(3), wanted(4)]) == 1
    assert plans.add("b", [wanted(5)]) == 0


@pytest.mark.parametrize(
    ("limit", "ahead", "each"),
    [
        (0, 1, 0),
        (1_000_000, 0, 0),
        (1_000_000, 1, 500_000),
        (1_000_000, 2, 250_000),
        (1, 1, MIN_RATE),
        (1, 2, MIN_RATE // 2),
        (1, 2 * MIN_RATE, 1),
    ],
)
def test_half_of_what_is_allowed(limit: int, ahead: int, each: int) -> None:
    """Is what large ones get that nobody waits for; without a limit they have none."""
    assert share(limit, ahead) == each
