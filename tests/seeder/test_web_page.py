# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.web_page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from narswarm.errors import NarswarmError
from narswarm.fetchclient import Wanted
from seeder.fetching_job import NOTHING, View
from seeder.state import State
from seeder.web_page import Pages

WANTED = Wanted(b"\1" * 32, 5, "/gnu/store/x")


class Bench:
    """Pages with everything around them in the test's hands."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.uploaded = 0
        self.now = 90_000.0
        self.asked = 0
        self.fetched: list[tuple[Wanted, View, bool]] = []
        self.pages = self.start()

    def start(self) -> Pages:
        """Start anew with the same state."""
        return Pages(
            self.state,
            self,
            self._status,
            lambda offered, others: [{"store_path": f"{offered}/{others}"}],
            lambda: self.fetched,
            clock=lambda: self.now,
            monotonic=lambda: self.now - 80_000,
        )

    def _status(self) -> dict[str, Any]:
        self.asked += 1
        return {"uploaded": self.uploaded, "downloaded": 2 * self.uploaded}

    def counters(self) -> dict[str, int]:
        """Numbers of the session."""
        return {"uploaded": self.uploaded}

    def peers(self, most: int = 1000) -> list[str]:
        """Addresses of peers."""
        return ["::1", "8.8.8.8"][:most]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Pages."""
    with State(tmp_path) as state:
        yield Bench(state)


def test_what_was_sent_is_kept(bench: Bench) -> None:
    """By whoever notes it: the page, the job, and an earlier process."""
    bench.pages.note()
    bench.uploaded = 100
    bench.pages.note()
    again = bench.start()
    bench.uploaded = 30
    bench.now += 300
    page = again.page()
    assert (page.day, page.highest, len(page.bars)) == (130, 100, 2)
    assert page.peers == {"IPv4": 1, "IPv6": 0, "local network": 0, "this machine": 1}


def test_a_page_is_made_once_a_second(bench: Bench) -> None:
    """However many look; rates are of the time between."""
    first = bench.pages.page()
    bench.uploaded = 1000
    assert bench.pages.page() is first
    bench.now += 2
    page = bench.pages.page()
    assert (page.upload_rate, page.download_rate) == (500.0, 1000.0)
    assert bench.asked == 2


def test_some_items_are_shown(bench: Bench) -> None:
    """A hundred that are offered, and fifty others."""
    assert bench.pages.page().items == [{"store_path": "100/50"}]


def test_what_is_fetched(bench: Bench) -> None:
    """As far as it isn't over."""
    going = View(serial=1, length=200, progress=replace(NOTHING, done=50, peers=3, rate=7))
    bench.fetched = [
        (WANTED, View(), False),
        (WANTED, going, True),
        (WANTED, replace(going, complete=True), True),
        (WANTED, replace(going, error=NarswarmError("x", "y")), True),
    ]
    assert bench.pages.page().fetches == [
        ("/gnu/store/x", 0, 0, 0, False),
        ("/gnu/store/x", 25, 3, 7, True),
    ]
