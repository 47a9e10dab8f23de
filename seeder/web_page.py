# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts together what the seeder's page shows, and keeps the last day's uploads.

A page is worked out at most once a second, however many look at it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from narswarm.fetchclient import Wanted
from seeder.fetching_job import View
from seeder.state import State
from seeder.web import Page
from seeder.web_data import History, Rates, bars, classes

NOTE: Final = "upload_history"
"""The note that survives a restart."""

OFFERED: Final = 100
"""Offered items that are shown: those that were wanted most."""

OTHERS: Final = 50
"""Items that aren't offered that are shown."""

KEEP: Final = 1.0
"""Seconds that a page is good for."""


class Swarms(Protocol):
    """What seeds: a `narswarm.swarm.Swarm`."""

    def counters(self) -> dict[str, int]:
        """Numbers of the session."""

    def peers(self, most: int = ...) -> list[str]:
        """Addresses of peers."""


class Pages:
    """Makes pages.

    Args:
        state: keeps the history.
        swarm: seeds.
        status: as `seeder status --json` shows it.
        items: so many that are offered, and that aren't, as `seeder list --json` shows them.
        fetches: what is fetched now.
        clock: seconds since the epoch.
        monotonic: seconds of a clock that doesn't jump.
    """

    def __init__(
        self,
        state: State,
        swarm: Swarms,
        status: Callable[[], Mapping[str, Any]],
        items: Callable[[int, int], Sequence[Mapping[str, Any]]],
        fetches: Callable[[], list[tuple[Wanted, View, bool]]],
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._swarm = swarm
        self._status = status
        self._items = items
        self._fetches = fetches
        self._clock = clock
        self._monotonic = monotonic
        self._history = History(state.note(NOTE) or "")
        self._rates = Rates()
        self._mutex = threading.Lock()
        self._page: Page | None = None
        self._made = 0.0

    def note(self) -> None:
        """Note what was sent since the last time, for this process and the next."""
        with self._mutex:
            self._history.note(self._swarm.counters()["uploaded"], self._clock())
            text = self._history.dump()
        self._state.set_note(NOTE, text)

    def page(self) -> Page:
        """What is to be shown now."""
        with self._mutex:
            now = self._monotonic()
            if self._page is None or now - self._made >= KEEP:
                self._page, self._made = self._make(now), now
            return self._page

    def _make(self, now: float) -> Page:
        status = self._status()
        self._history.note(status["uploaded"], self._clock())
        steps = self._history.steps(self._clock())
        up, down = self._rates.note(status["uploaded"], status["downloaded"], now)
        return Page(
            status=status,
            items=self._items(OFFERED, OTHERS),
            upload_rate=up,
            download_rate=down,
            day=sum(steps),
            highest=max(steps),
            bars=bars(steps),
            peers=classes(self._swarm.peers()),
            fetches=[
                _described(wanted, view, waits)
                for wanted, view, waits in self._fetches()
                if not view.over
            ],
            now=self._clock(),
        )


def _described(wanted: Wanted, view: View, waits: bool) -> tuple[str, int, int, int, bool]:
    progress = view.progress
    percent = 100 * progress.done // max(1, view.length)
    return wanted.store_path, percent, progress.peers, progress.rate, waits
