# SPDX-License-Identifier: GPL-3.0-or-later
"""Where swarms are kept, as the settings say."""

from __future__ import annotations

from random import Random

from narswarm.errors import SettingsError
from tracker.native import AVAILABLE, NativeSwarms
from tracker.redis_swarms import RedisSwarms
from tracker.settings import IN_MEMORY, Settings
from tracker.swarmstore import MemorySwarms, SwarmStore


def open_swarms(settings: Settings, rng: Random) -> SwarmStore:
    """Swarms in this process's memory, or those in Redis, whether or not it answers now.

    Raises:
        SettingsError: Redis' Python package isn't installed, or doesn't take the URL; or the native
            engine is asked for where it can't be.
    """
    keep_downloads = not settings.open
    if settings.engine == "native" and not AVAILABLE:
        raise SettingsError("engine", "native was not built with this installation")
    if settings.swarms == IN_MEMORY:
        if AVAILABLE and settings.engine != "python":
            return NativeSwarms(
                settings.limits(), is_open=settings.open, keep_downloads=keep_downloads
            )
        return MemorySwarms(settings.limits(), keep_downloads=keep_downloads, rng=rng)
    return RedisSwarms(settings.swarms, settings.limits(), keep_downloads=keep_downloads, rng=rng)
