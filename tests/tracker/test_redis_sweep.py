# SPDX-License-Identifier: GPL-3.0-or-later
"""Sweeps over swarms in Redis, by several trackers."""

from __future__ import annotations

from collections import Counter

from tests.tracker.announces import NOW, asked
from tests.tracker.conftest import OpenSwarms
from tracker.redis_link import Link, parse_url
from tracker.swarmstore import SwarmTotals


def test_sweeps_take_turns(redis_url: str, open_swarms: OpenSwarms, raw: Link) -> None:
    """One tracker sweeps at a time, others soon after it need not; totals are exact again."""
    one, other = open_swarms(), open_swarms(pause=45)
    one.announce(*asked())
    one.totals()
    lease = f"{parse_url(redis_url)[1]}:sweeper"
    raw.ask("SET", lease, "another")
    assert one.expire(NOW + 2000) == 0
    raw.ask("DEL", lease)
    raw.ask("HSET", f"{parse_url(redis_url)[1]}:totals", 0, 77, 3, "rubbish")
    assert one.expire(NOW) == 0
    assert one.totals() == other.totals() == SwarmTotals(1, 0, 0, 1, 0)
    assert other.expire(NOW + 44) == 0
    one.announce(*asked(2))
    assert other.expire(NOW + 2000) == 2
    assert raw.ask("EXISTS", lease) == 0


def test_unwanted_addresses(open_swarms: OpenSwarms) -> None:
    """They go as soon as they are unwanted, whoever swept lately; then the usual time goes by."""
    swarms, asked_about = open_swarms(pause=45), Counter[bytes]()
    swarms.announce_many([asked(port, host=host) for port in (1, 2) for host in range(200)])

    def unwanted(address: bytes) -> bool:
        asked_about[address] += 1
        return address[3] < 50

    assert swarms.expire(NOW) == 0
    assert swarms.expire(NOW + 1, unwanted) == 100
    assert asked_about.keys() == {bytes([10, 0, 0, host]) for host in range(200)}
    asked_about.clear()
    assert swarms.expire(NOW + 2, unwanted) == 0
    assert not asked_about
    assert swarms.totals() == SwarmTotals(1, 0, 0, 300, 0)
