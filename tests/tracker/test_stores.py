# SPDX-License-Identifier: GPL-3.0-or-later
"""Where swarms are kept."""

from __future__ import annotations

from random import Random

import pytest

from narswarm.errors import SettingsError
from tests import needs
from tracker.native import NativeSwarms
from tracker.redis_swarms import RedisSwarms
from tracker.settings import Settings
from tracker.stores import open_swarms
from tracker.swarmstore import MemorySwarms

RNG = Random(1)  # noqa: S311 - nothing is chosen


@pytest.mark.parametrize("engine", ["auto", "native"])
def test_native(engine: str) -> None:
    """Without a setting, swarms are in memory, and C manages them where it was built."""
    needs.native()
    assert isinstance(open_swarms(Settings(engine=engine), RNG), NativeSwarms)


def test_memory() -> None:
    """Python manages them where that is asked for."""
    assert isinstance(open_swarms(Settings(engine="python"), RNG), MemorySwarms)


def test_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler Python does, unless the native engine is insisted on."""
    monkeypatch.setattr("tracker.stores.AVAILABLE", False)
    assert isinstance(open_swarms(Settings(), RNG), MemorySwarms)
    with pytest.raises(SettingsError) as error:
        open_swarms(Settings(engine="native"), RNG)
    assert str(error.value) == "engine: native was not built with this installation"


def test_redis_need_not_answer() -> None:
    """A tracker starts before its Redis, too."""
    swarms = open_swarms(Settings(swarms="redis://127.0.0.1:1/0"), RNG)
    assert isinstance(swarms, RedisSwarms)
    swarms.close()
