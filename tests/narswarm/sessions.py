# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of real sessions on loopback have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from narswarm.swarm_settings import SwarmSettings

PATIENCE = 120.0


def alone(**settings: Any) -> SwarmSettings:
    """Settings of a session on loopback that talks to nobody else."""
    fields: dict[str, Any] = {
        "listen": ("127.0.0.1:0",),
        "dht": False,
        "lsd": False,
        "upnp": False,
    }
    return SwarmSettings(private_network=True, **(fields | settings))


def wait_until(ready: Callable[[], bool]) -> None:
    """Ask a session until it says so; its answers are what paces this."""
    clock = threading.Event()
    for _ in range(int(PATIENCE / 0.05)):
        if ready():
            return
        clock.wait(0.05)
    pytest.fail("it did not happen")
