# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.ahead; how it takes part in a race is tested with substituter.prefetch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from narswarm import narinfo
from narswarm.narinfo import Narinfo
from narswarm.pace import Pace
from substituter.ahead import Ahead, AheadSource
from substituter.lane import Runner
from substituter.race import Standing, State, Way
from substituter.report import Transfer
from substituter.spool import Spool
from tests.substituter.conftest import Item

Make = Callable[..., Item]


def parsed(item: Item) -> Narinfo:
    """The narinfo of an item."""
    return narinfo.parse(item.narinfo)


def test_an_item_is_as_fast_as_all_beside_it(tmp_path: Path, make_item: Make) -> None:
    """What others of its way bring counts, but not for ever."""
    item = make_item("a")
    file = Spool(tmp_path, 1 << 20).open("a", len(item.nar))
    assert file is not None
    ahead, brought = Ahead(parsed(item), Way.SWARM, file), [0]
    pace = Pace(lambda: brought[0])
    source = AheadSource(ahead, pace)
    lane = Standing(State.RUNNING, 0.0, found=True)
    assert source.standing(lane, 0.0) == lane._replace(last=0.0)
    for second in range(1, 31):
        brought[0] = second * 1000
        seen = source.standing(lane, float(second))
        assert (seen.last, seen.position) == (min(second, 20.0), 0)
    assert seen.rate == 1000.0
    file.write(item.nar[:10])
    seen = source.standing(lane, 30.1)
    assert (seen.last, seen.position) == (30.1, 10)
    file.close()


def test_a_position_is_what_came_in_any_order(tmp_path: Path, make_item: Make) -> None:
    """Bytes of the transfer say how much of the NAR there is, when it can't be read yet."""
    item = make_item("a")
    size = len(item.nar)
    file = Spool(tmp_path, 1 << 20).open("a", size)
    assert file is not None
    ahead = Ahead(parsed(item), Way.SWARM, file)
    assert ahead.position() == 0
    ahead.source(Transfer("bittorrent://a", 100, lambda: 50))
    assert ahead.position() == size // 2
    file.write(item.nar)
    assert ahead.position() == size
    file.close()


def test_who_was_not_found_in_time_gets_no_more(tmp_path: Path, make_item: Make) -> None:
    """The time from its beginning counts, until somebody is found: then that of the lane."""
    item = make_item("a")
    file = Spool(tmp_path, 1 << 20).open("a", len(item.nar))
    assert file is not None
    ahead = Ahead(parsed(item), Way.SWARM, file)
    source = AheadSource(ahead, Pace(lambda: 0))
    lane = Standing(State.RUNNING, ahead.begun + 10.0)
    assert source.standing(lane, ahead.begun + 10.0).since == ahead.begun
    ahead.source(Transfer("bittorrent://a", 100, lambda: 0))
    assert source.standing(lane, ahead.begun + 10.0).since == lane.since
    file.close()


@pytest.mark.parametrize(
    ("peers", "written", "lonely"),
    [(1, True, True), (1, False, False), (0, True, False), (2, True, False), (None, True, False)],
)
def test_one_peer_is_lonely(
    tmp_path: Path, make_item: Make, peers: int | None, *, written: bool, lonely: bool
) -> None:
    """Once bytes have come from it; a server has no peers at all."""
    item = make_item("a")
    file = Spool(tmp_path, 1 << 20).open("a", len(item.nar))
    assert file is not None
    ahead = Ahead(parsed(item), Way.SWARM, file)
    ahead.used = One(peers)
    if written:
        file.write(item.nar[:10])
    source = AheadSource(ahead, Pace(lambda: 0))
    standing = source.standing(Standing(State.RUNNING), 1.0)
    assert (standing.lonely, standing.members) == (lonely, 3)
    file.close()


class One:
    """A source with peers."""

    key = "one"

    def __init__(self, peers: int | None) -> None:
        if peers is not None:
            self.peers = peers
        self.members = 3

    def nar(self, runner: Runner) -> AbstractContextManager[Iterator[bytes]]:
        """Nothing."""
        del runner
        return nullcontext(iter(()))
