# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast something comes that comes by fits and starts, from how far it was seen when."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

LEAST: Final = 0.5
"""Seconds after which a rate says something."""

MOVES: Final = 2.0
"""Seconds in which a byte shows that something moves."""

STEADY: Final = 10.0
"""Seconds over which many transfers are judged as a whole. A crowd on one line goes by fits and
starts, and a server that joins for a slow moment takes the line from all of its members, who then
get slower."""

_LOOK: Final = 0.2
"""Seconds between two looks at how far everything is."""


class Meter:
    """The rate of something over the last seconds.

    Args:
        window: seconds.
    """

    def __init__(self, window: float = 2.0) -> None:
        self._window = window
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, position: int) -> None:
        """Note a position."""
        self._samples.append((now, position))

    def rate(self, now: float) -> float | None:
        """Bytes a second, None before there was time to tell."""
        samples = self._samples
        while len(samples) > 1 and now - samples[1][0] >= self._window:
            samples.popleft()
        if not samples:
            return None
        begin, position = samples[0]
        if now - begin < LEAST:
            return None
        return (self._samples[-1][1] - position) / (now - begin)


class Pace:
    """How fast many transfers are together.

    Args:
        position: bytes that they have brought; less than before if one was let go.
    """

    def __init__(self, position: Callable[[], int]) -> None:
        self._position = position
        self._lock = threading.Lock()
        self._meters = Meter(), Meter(STEADY)
        self._looked = -math.inf
        self._before = 0
        self._lost = 0
        self.last = -math.inf
        """When the last byte came, as of the last look."""
        self.rate: float | None = None
        """As of the last look, in a moment or over `STEADY` seconds, whichever is more."""

    def moves(self) -> bool:
        """Whether something comes."""
        now = time.monotonic()
        return now - self.look(now)[0] < MOVES

    def look(self, now: float) -> tuple[float, float | None]:
        """When the last byte came, as far as it was looked at, and the rate."""
        with self._lock:
            if now - self._looked >= _LOOK:
                self._looked = now
                position = self._position() + self._lost
                if position < self._before:
                    # What was let go had come all the same.
                    self._lost += self._before - position
                    position = self._before
                if position != self._before:
                    self._before, self.last = position, now
                for meter in self._meters:
                    meter.add(now, position)
                rates = [rate for meter in self._meters if (rate := meter.rate(now)) is not None]
                self.rate = max(rates, default=None)
            return self.last, self.rate
