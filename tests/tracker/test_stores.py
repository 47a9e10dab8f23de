# SPDX-License-Identifier: GPL-3.0-or-later
"""Where swarms are kept."""

from __future__ import annotations

from random import Random

from tracker.redis_swarms import RedisSwarms
from tracker.settings import Settings
from tracker.stores import open_swarms
from tracker.swarmstore import MemorySwarms

RNG = Random(1)  # noqa: S311 - nothing is chosen


def test_memory() -> None:
    """Without a setting, nobody else is needed."""
    assert isinstance(open_swarms(Settings(), RNG), MemorySwarms)


def test_redis_need_not_answer() -> None:
    """A tracker starts before its Redis, too."""
    swarms = open_swarms(Settings(swarms="redis://127.0.0.1:1/0"), RNG)
    assert isinstance(swarms, RedisSwarms)
    swarms.close()
