# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands of the script, and what all trackers have in total."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests import engines
from tests.engines import Engine
from tests.tracker.announces import HASH, asked
from tracker.redis_link import Link, parse_url
from tracker.redis_script import Script
from tracker.redis_swarms import RedisSwarms
from tracker.swarms import Limits
from tracker.swarmstore import StoreDownError


@pytest.fixture(name="prefix")
def prefix_fixture(redis_url: str) -> str:
    """A prefix that nobody else has."""
    return parse_url(redis_url)[1]


@pytest.fixture(name="script")
def script_fixture(redis: Engine, prefix: str) -> Iterator[Script]:
    """One that calls nothing of the script, and sees totals only."""
    with closing(Link(redis.url)) as link:
        yield Script(link, prefix)


def test_names(script: Script, prefix: str) -> None:
    """All keys of a swarm have the same hash tag, whatever bytes the infohash has."""
    assert script.name(HASH) == f"{prefix}:{{fXt9e317fXt9e317fXt9e317fXs}}"
    assert script.call(HASH, "sample", 5) == (
        *("EVALSHA", script.link.digest, 1, script.name(HASH)),
        *("sample", 5),
    )


def test_what_one_changes_others_know(script: Script, redis_url: str) -> None:
    """It is said with the next commands, even if there are none."""
    assert script.run([]) == []
    assert script.totals() == [0] * 5
    swarms = RedisSwarms(redis_url, Limits(), keep_downloads=True)
    swarms.announce_many([asked(host=host) for host in (1, 2)])
    script.run([])
    assert script.totals() == [0] * 5  # nobody has said it yet
    swarms.close()
    script.run([])
    assert script.totals() == [1, 0, 0, 2, 0]


def test_totals_that_were_counted(redis: Engine, script: Script, prefix: str) -> None:
    """They take the place of what was added up."""
    script.set_totals([1, 2, 3, 4, 5])
    assert script.totals() == [1, 2, 3, 4, 5]
    with closing(Link(redis.url)) as link:
        other = Script(link, prefix)
        assert other.run([("PING",)]) == [b"PONG"]
        assert other.totals() == [1, 2, 3, 4, 5]


def test_without_redis() -> None:
    """What was known stays known."""
    with engines.redis_server() as own, closing(Link(own.url)) as link:
        script = Script(link, "own")
        script.set_totals([1, 0, 0, 1, 0])
        own.stop()
        with pytest.raises(StoreDownError):
            script.run([])
        assert script.totals() == [1, 0, 0, 1, 0]
