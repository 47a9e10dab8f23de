# SPDX-License-Identifier: GPL-3.0-or-later
"""Sweeps over swarms in Redis, by several trackers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from tests.engines import Engine
from tracker.redis_link import Link, parse_url
from tracker.redis_swarms import RedisSwarms
from tracker.swarms import Limits
from tracker.swarmstore import Asked, SwarmTotals
from tracker.wire_http import AnnounceRequest

NOW = 1_700_000_000
NAMES = itertools.count()

Open = Callable[..., RedisSwarms]


@pytest.fixture(name="url")
def url_fixture(redis: Engine) -> str:
    """A Redis, and a prefix that nobody else has."""
    return f"{redis.url}?prefix=sweep-{next(NAMES)}"


@pytest.fixture(name="open_swarms")
def open_swarms_fixture(url: str) -> Iterator[Open]:
    """Makes trackers' views of the same swarms, with so many seconds between two sweeps."""
    with ExitStack() as stack:

        def make(pause: int = 0) -> RedisSwarms:
            swarms = RedisSwarms(url, Limits(), keep_downloads=True, sweep_seconds=pause)
            return stack.enter_context(closing(swarms))

        yield make


@pytest.fixture(name="raw")
def raw_fixture(url: str) -> Iterator[Link]:
    """Redis itself."""
    with closing(Link(parse_url(url)[0])) as link:
        yield link


def asked(port: int = 1, *, host: int = 1) -> Asked:
    """An announce from 10.0.0.<host>."""
    request = AnnounceRequest(b"h" * 20, b"p" * 20, port, 1)
    return Asked(request, bytes([10, 0, 0, host]), 50, NOW)


def test_sweeps_take_turns(url: str, open_swarms: Open, raw: Link) -> None:
    """One tracker sweeps at a time, others soon after it need not; totals are exact again."""
    one, other = open_swarms(), open_swarms(45)
    one.announce(*asked())
    one.totals()
    lease = f"{parse_url(url)[1]}:sweeper"
    raw.ask("SET", lease, "another")
    assert one.expire(NOW + 2000) == 0
    raw.ask("DEL", lease)
    raw.ask("HSET", f"{parse_url(url)[1]}:totals", 0, 77, 3, "rubbish")
    assert one.expire(NOW) == 0
    assert one.totals() == other.totals() == SwarmTotals(1, 0, 0, 1, 0)
    assert other.expire(NOW + 44) == 0
    one.announce(*asked(2))
    assert other.expire(NOW + 2000) == 2
    assert raw.ask("EXISTS", lease) == 0


def test_unwanted_addresses(open_swarms: Open) -> None:
    """They go as soon as they are unwanted, whoever swept lately; then the usual time goes by."""
    swarms, asked_about = open_swarms(45), Counter[bytes]()
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
