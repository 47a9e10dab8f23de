# SPDX-License-Identifier: GPL-3.0-or-later
"""When to start a source of an item, and when to let one go: decisions, no threads and no clock.

There are two ways to an item, a swarm and substitute servers, and which is faster isn't known
before both were tried. So they race for it. The one that is likely to be first begins: servers for
small items, which are over before a swarm has met; the swarm for large ones, which spares servers.
The other joins when the first has nothing to show in time, falls silent, or is so slow that the
other could begin anew and still be first. Of two that run, the one behind is let go as soon as
it can't win any more; one that is ahead stays until it is overtaken, so that no byte is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

SMALL: Final = 1 << 20
"""Bytes of a NAR up to which servers begin."""

BUDGET: Final = 0.1
"""Seconds in which whoever begins has to find somebody who has the item."""

FIRST_BYTE: Final = 0.5
"""Seconds until its first byte."""

AHEAD: Final = 0.2
"""Share of these times that a small item gets which the seeder may have fetched ahead."""

BEGUN: Final = {"swarm": 8.0, "http": 4.0}
"""The same for an item of which more than one is fetched at a time, so that each takes longer; in a
crowd those who fetch the same listen to each other first."""

QUIET: Final = 0.5
"""Seconds without a byte after which the other joins."""

STALLED: Final = 1.0
"""Seconds without a byte after which another server joins, when no other way brings anything."""

SLOW: Final = 1.0
"""Seconds after which a rate says something."""

ASSUMED_RATE: Final = 4 << 20
"""Bytes of NAR a second that are expected of a source which hasn't been tried."""

LEAST_RATE: Final = 512 << 10
"""The same for an item that is on its way already. Many may fetch it from one line, which servers
share: a swarm passes each byte on, and must not have to compete with those who don't."""

FASTER: Final = 4.0
"""How many times as fast as swarms servers have to be, at least, to take items from them: where
many fetch the same from one line a server's bytes are taken from all others."""

MOST_MEMBERS: Final = 15
"""Machines of a crowd that count: strangers who only seem to be many can't keep servers out."""

MARGIN: Final = 0.8
"""Share of the time left in which the other has to be through, or it needn't join."""


class Policy(StrEnum):
    """What the user wants of the two ways."""

    RACE = "race"
    SWARM_ONLY = "swarm-only"
    SWARM_FIRST = "swarm-first"
    HTTP_FIRST = "http-first"


class Way(StrEnum):
    """A way to an item."""

    SWARM = "swarm"
    HTTP = "http"

    @property
    def other(self) -> Way:
        """The one that this is not."""
        return Way.HTTP if self is Way.SWARM else Way.SWARM


class State(StrEnum):
    """How far a way is."""

    WAITING = "waiting"
    """Not started, or let go; it may begin."""
    RUNNING = "running"
    OVER = "over"
    """It has delivered everything, or has nobody left to try."""


class Standing(NamedTuple):
    """One way as of now.

    Attributes:
        state: whether it runs.
        since: when it was started.
        found: whether somebody was found who has the item.
        position: bytes of the NAR that it has delivered or passed over, from the start.
        last: when `position` last grew.
        rate: bytes of NAR a second, lately; None as long as that says nothing.
        full: whether it waits for the reader, so that no other could be of use.
        lonely: whether nobody but one peer is there, so that no crowd fetches the same.
        members: how many others fetch the same, as far as they were met.
    """

    state: State = State.WAITING
    since: float = 0.0
    found: bool = False
    position: int = 0
    last: float = 0.0
    rate: float | None = None
    full: bool = False
    lonely: bool = False
    members: int = 0


class Decision(NamedTuple):
    """What to do now."""

    start: Way | None = None
    stop: Way | None = None


NOTHING: Final = Decision()


def first(policy: Policy, nar_size: int, *, ahead: bool = False, begun: Way | None = None) -> Way:
    """Which way begins.

    Args:
        policy: what the user wants.
        nar_size: bytes of the NAR.
        ahead: whether the seeder was told of the item before, so that it may be here already.
        begun: the way by which this process fetches it already.
    """
    if begun is not None:
        return begun
    if policy is Policy.RACE:
        return Way.HTTP if nar_size <= SMALL and not ahead else Way.SWARM
    return Way.HTTP if policy is Policy.HTTP_FIRST else Way.SWARM


def decide(
    policy: Policy,
    nar_size: int,
    ways: Mapping[Way, Standing],
    now: float,
    expected: Mapping[Way, float] | None = None,
    *,
    ahead: bool = False,
    begun: Way | None = None,
) -> Decision:
    """Say what to do next; to be asked again after each change and a few dozen times a second.

    Args:
        policy: what the user wants.
        nar_size: bytes of the whole NAR.
        ways: those that there are, one or both.
        now: in seconds, on the clock of `Standing.since`.
        expected: the rate that a way had with earlier items.
        ahead: as for `first`.
        begun: as for `first`.
    """
    running = [way for way in ways if ways[way].state is State.RUNNING]
    if not running:
        begins = first(policy, nar_size, ahead=ahead, begun=begun)
        for way in (begins, begins.other):
            if way in ways and ways[way].state is State.WAITING:
                return Decision(start=way)
        return NOTHING
    if policy is not Policy.RACE:
        return NOTHING
    if len(running) == 2:
        return _let_go(nar_size, ways, now)
    way = running[0]
    rival = ways.get(way.other)
    if rival is None or rival.state is State.OVER:
        return NOTHING
    crowded = way is begun and not ways[way].lonely
    rate = (expected or {}).get(way.other, 0.0)
    if crowded and way is Way.SWARM:
        members = ways[way].members
        rate = worth(rate, members) if rate else min(LEAST_RATE, worth(ASSUMED_RATE, members))
    rate = rate or (LEAST_RATE if crowded else ASSUMED_RATE)
    # A small item is either here by now or faster from a server.
    share = AHEAD if ahead and nar_size <= SMALL else 1.0
    share = BEGUN[way] if way is begun else share
    # What the other is worth is known, and nobody else is hurt.
    settled = SLOW if ways[way].lonely and expected and way.other in expected else SLOW * share
    joins = _is_behind(ways[way], nar_size, now, rate, share, max(settled, SLOW))
    return Decision(start=way.other) if joins else NOTHING


def worth(rate: float, members: int) -> float:
    """What the rate of servers counts beside that of a swarm, whose members pass bytes on.

    A server may have been tried when nobody else was, and its line be that of the swarm's seeds: it
    will be as many times slower as there are machines that take from it.

    Args:
        rate: that servers are known to bring.
        members: how many others fetch the same.
    """
    return rate / max(FASTER, 2.0 * (min(members, MOST_MEMBERS) + 1))


def stalls(ways: Mapping[Way, Standing], now: float, *, begun: Way | None = None) -> bool:
    """Whether servers bring nothing, and nobody else does: another server should join.

    Args:
        ways: those that there are.
        now: as for `decide`.
        begun: as for `first`.
    """
    running = [each for each in ways.values() if each.state is State.RUNNING]
    limit = STALLED * (2 if begun is Way.HTTP else 1)
    return (
        Way.HTTP in ways
        and ways[Way.HTTP].state is State.RUNNING
        and not any(one.full or now - max(one.last, one.since) < limit for one in running)
    )


def overtaken(nar_size: int, one: Standing, two: Standing, now: float) -> bool | None:
    """Of two sources of one way, whether the second has won; None as long as that isn't clear."""
    stop = _let_go(nar_size, {Way.HTTP: one, Way.SWARM: two}, now).stop
    return None if stop is None else stop is Way.HTTP


def _is_behind(
    one: Standing, nar_size: int, now: float, rate: float, share: float, settled: float
) -> bool:
    """Whether a source that would begin now with this rate were through before this one."""
    if one.full:
        return False
    if not one.position:
        # What came of other items by the same way, if any did, is a sign of life as well.
        # On a line that a crowd shares, whoever knows of torrents takes long to answer, too.
        budget = FIRST_BYTE if one.found or one.members else BUDGET
        if now - max(one.since, one.last) >= budget * share:
            return True
        if one.last <= one.since:
            return False
    elif now - one.last >= QUIET * max(share, 1.0):
        return True
    if one.rate is None or now - one.since < settled:
        return False
    # Silence was judged above: what pauses for a moment goes on.
    left = (nar_size - one.position) / max(one.rate, 1.0)
    return nar_size / max(rate, 1.0) < left * MARGIN


def _let_go(nar_size: int, ways: Mapping[Way, Standing], now: float) -> Decision:
    """Of two that run, let go of the one that is behind unless it is going to overtake."""
    behind = min(ways, key=lambda way: ways[way].position)
    one, two = ways[behind], ways[behind.other]
    if two.full:
        # The reader takes longer than either.
        return Decision(stop=behind)
    if one.rate is None or two.rate is None or not two.position:
        return NOTHING
    left = _left(two, nar_size, now)
    # Of two that are silent both are waited for.
    loses = left < math.inf and _left(one, nar_size, now) >= left
    return Decision(stop=behind) if loses else NOTHING


def _left(one: Standing, nar_size: int, now: float) -> float:
    """Seconds until its end."""
    if now - one.last >= QUIET:
        return math.inf
    return (nar_size - one.position) / max(one.rate or 0.0, 1.0)
