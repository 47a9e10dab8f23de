# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.swarm_crowd, with times and names as arguments."""

from __future__ import annotations

import pytest

from narswarm.swarm_crowd import (
    AT_LEAST,
    AT_MOST,
    EACH,
    MAX_CALLED,
    MAX_MET,
    MEMORY,
    MIN_RATE,
    SILENCE,
    Crowd,
    Listening,
    session_name,
    turn,
)


@pytest.mark.parametrize(("later", "members"), [(MEMORY - 0.1, 1), (MEMORY, 0), (MEMORY + 1, 0)])
def test_members_are_those_met_lately(later: float, members: int) -> None:
    """Whoever lacked something less than MEMORY seconds ago is a member."""
    crowd = Crowd()
    assert crowd.members(100.0) == 0
    crowd.meet("10.0.0.1", 5000, 100.0, seed=False, called=False)
    assert crowd.members(100.0 + later) == members


def test_a_member_counts_once() -> None:
    """A member is one address, in however many torrents and at however many ports it is met."""
    crowd = Crowd()
    for port in (5000, 5001):
        crowd.meet("10.0.0.1", port, 100.0, seed=False, called=True)
    crowd.meet("10.0.0.1", 5000, 109.0, seed=False, called=True)
    assert crowd.members(115.0) == 1


def test_seeds_are_those_that_never_lacked_anything() -> None:
    """A member that has become a seed in one torrent is still one to be asked."""
    crowd = Crowd()
    crowd.meet("10.0.0.1", 5000, 100.0, seed=True, called=True)
    crowd.meet("10.0.0.2", 5000, 100.0, seed=True, called=True)
    assert crowd.seeds == [("10.0.0.1", 5000), ("10.0.0.2", 5000)]
    crowd.meet("10.0.0.2", 5000, 101.0, seed=False, called=True)
    assert crowd.seeds == [("10.0.0.1", 5000)]
    crowd.meet("10.0.0.2", 5000, 200.0, seed=True, called=True)
    assert crowd.seeds == [("10.0.0.1", 5000)]


def test_who_has_connected_to_us_says_no_port() -> None:
    """The port of an incoming connection is not one that could be connected to."""
    crowd = Crowd()
    crowd.meet("10.0.0.1", 41234, 100.0, seed=True, called=False)
    assert crowd.seeds == [("10.0.0.1", 0)]
    crowd.meet("10.0.0.1", 5000, 101.0, seed=True, called=True)
    crowd.meet("10.0.0.1", 41234, 102.0, seed=True, called=False)
    assert crowd.seeds == [("10.0.0.1", 5000)]


def test_members_can_be_called_where_they_listen() -> None:
    """Those met lately, at the port where they were called once, the last first, and not all."""
    crowd = Crowd()
    crowd.meet("10.0.0.1", 5000, 100.0, seed=False, called=True)
    crowd.meet("10.0.0.2", 41234, 101.0, seed=False, called=False)
    crowd.meet("10.0.0.3", 5003, 102.0, seed=False, called=True)
    assert crowd.addresses(103.0) == [("10.0.0.3", 5003), ("10.0.0.1", 5000)]
    crowd.meet("10.0.0.1", 41235, 104.0, seed=False, called=False)
    assert crowd.addresses(105.0) == [("10.0.0.1", 5000), ("10.0.0.3", 5003)]
    assert crowd.addresses(102.0 + MEMORY) == [("10.0.0.1", 5000)]
    for number in range(MAX_CALLED + 1):
        crowd.meet(f"10.0.1.{number}", 5000, 106.0, seed=False, called=True)
    called = crowd.addresses(107.0)
    assert (len(called), called[0]) == (MAX_CALLED, (f"10.0.1.{MAX_CALLED}", 5000))


def test_a_member_that_became_a_seed_counts_as_one_no_more_than_it_has_to() -> None:
    """An address that is known as a seed gets its port even when no more fit."""
    crowd = Crowd()
    for number in range(MAX_MET):
        crowd.meet(f"2001:db9::{number:x}", 5000, 100.0, seed=True, called=False)
    crowd.meet("2001:db9::0", 5001, 100.0, seed=True, called=True)
    assert crowd.seeds[0] == ("2001:db9::0", 5001)


def test_all_members_agree_on_turns() -> None:
    """Each of them has another turn, and the same one of them is first for all."""
    names = [session_name() for _ in range(8)]
    for torrent in ("aa", "bb"):
        turns = [turn(name, [one for one in names if one != name], torrent) for name in names]
        assert sorted(turns) == list(range(8))


def test_turns_are_others_in_other_torrents() -> None:
    """Nobody is the first everywhere."""
    names = [f"narswarm {number:08x}" for number in range(4)]
    first = {
        next(name for name in names if not turn(name, names, torrent))
        for torrent in map(str, range(64))
    }
    assert first == set(names)


def test_clients_of_other_kinds_take_no_turns() -> None:
    """They would ask seeds at any time, so nobody waits for them."""
    others = [f"qBittorrent/5.{number}" for number in range(64)]
    assert turn("narswarm 12345678", [*others, "narswarm", ""], "aa") == 0


@pytest.mark.parametrize("digits", [0, 7, 9, 30_000])
def test_names_of_other_lengths_take_no_turns(digits: int) -> None:
    """Strangers may call themselves anything, and what is long would have to be hashed."""
    others = [f"narswarm {number % 10}" + "0" * (digits - 1) for number in range(64)]
    assert turn("narswarm 12345678", others if digits else ["narswarm "], "aa") == 0


def test_no_more_are_kept_than_fit() -> None:
    """Of members those met last are kept, of seeds those met first."""
    crowd = Crowd()
    for number in range(MAX_MET + 1):
        crowd.meet(f"2001:db8::{number:x}", 5000, float(number), seed=False, called=False)
        crowd.meet(f"2001:db9::{number:x}", 5000, float(number), seed=True, called=True)
    assert crowd.members(MAX_MET) == MEMORY
    assert len(crowd.seeds) == MAX_MET
    crowd.meet("2001:db8::0", 5000, 0.0, seed=True, called=True)
    assert len(crowd.seeds) == MAX_MET


@pytest.mark.parametrize(
    ("place", "seconds"),
    [
        (0, AT_LEAST),
        (1, AT_LEAST + EACH),
        (2, AT_LEAST + 2 * EACH),
        (3, AT_LEAST + AT_MOST),
        (1000, AT_LEAST + AT_MOST),
    ],
)
def test_turns_say_who_is_first(place: int, seconds: float) -> None:
    """With nothing from members seeds are asked when it is one's turn, however many come before."""
    listening = Listening(100.0)
    assert not listening.is_over(100.0 + seconds - 0.01, 0, seconds - 0.01, place)
    assert listening.is_over(100.0 + seconds + 0.01, 0, seconds + 0.01, place)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("after", "over"), [(-0.1, False), (0.0, True)])
def test_members_may_pause(place: int, after: float, over: bool) -> None:
    """Once bytes have come, seeds are asked after SILENCE seconds without one, by turns."""
    listening = Listening(100.0)
    idle = SILENCE + place * EACH + after
    assert listening.is_over(110.0, 1 << 30, idle, place) is over


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("missing", "over"), [(-1, False), (0, False), (1, True)])
def test_members_may_not_be_slow(missing: int, over: bool, place: int) -> None:
    """Members that bring less than MIN_RATE get help, by turns."""
    listening = Listening(100.0)
    received = 2 * MIN_RATE - missing
    assert listening.is_over(100.0 + AT_LEAST + place * EACH + 2.0, received, 0.0, place) is over


def test_what_came_before_does_not_count() -> None:
    """What began by asking seeds, and listens now, has nothing from members yet."""
    listening = Listening(100.0, received=1 << 20)
    assert not listening.is_over(100.0 + AT_LEAST - 0.01, 1 << 20, 9.0, 0)
    assert listening.is_over(100.0 + AT_LEAST, 1 << 20, 9.0, 0)
