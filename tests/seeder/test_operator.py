# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.operator, asked through the socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from narswarm import base32
from narswarm.control import ControlServer
from narswarm.errors import NarswarmError, NotFoundError
from narswarm.swarm_events import TorrentStatus
from seeder import control, operator
from seeder.listing import Listed
from seeder.operator import OperatorControl
from seeder.state import State


def path(number: int) -> str:
    """Of an item."""
    return f"/gnu/store/{number:032}-item"


class Shown:
    """Items that a test has said."""

    def __init__(self) -> None:
        self.listed: list[Listed] = []

    def items(self, *, offered: bool) -> Iterator[Listed]:
        """Those that are offered, or those that aren't."""
        return iter([item for item in self.listed if (item.status == "offered") is offered])

    def most_sent(self, limit: int) -> list[Listed]:
        """The first ones."""
        return list(self.items(offered=True))[:limit]


class Kept:
    """A state that has what the test says."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}
        self.listing = Shown()

    def note(self, name: str) -> str | None:
        """What was kept."""
        return self.notes.get(name)

    def set_note(self, name: str, value: str) -> None:
        """Keep it."""
        self.notes[name] = value


class Bench:
    """An operator with everything around it in the test's hands."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = Kept()
        self.paused: list[bool] = []
        self.calls: list[tuple[str, str]] = []
        self.statuses: list[TorrentStatus] = []
        self.operator = OperatorControl(cast(State, self.state), self, self)
        self.server = ControlServer(
            directory, self.operator.operations, streams=self.operator.streams
        )

    def status(self) -> list[TorrentStatus]:
        """What the session says."""
        return self.statuses

    def pause_seeding(self, *, paused: bool) -> None:
        """Remember it."""
        self.paused.append(paused)

    def add(self, store_path: str) -> None:
        """Remember it."""
        self.calls.append(("add", store_path))

    def remove(self, store_path: str) -> None:
        """Remember it, or refuse."""
        self.calls.append(("remove", store_path))
        if store_path == path(9):
            raise NotFoundError(store_path, "is not offered")

    def have(self, number: int, status: str = "offered", *, present: bool = True) -> None:
        """Have an item."""
        infohash = f"{number:02x}" * 32
        self.state.listing.listed.append(
            Listed(path(number), bytes([number]) * 32, 5, status, present, infohash, 3, 500, 1, 2)
        )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """An operator's seeder."""
    made = Bench(tmp_path)
    yield made
    made.server.close()


def test_all_items_with_reasons(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are offered first, by path; in several lines if there are many."""
    monkeypatch.setattr(operator, "BATCH", 2)
    for number in (1, 2, 3):
        bench.have(number, present=number != 2)
    bench.have(5, "not vouched for")
    bench.have(6, "withdrawn")
    bench.statuses = [TorrentStatus("01" * 32, "x", "seeding", 4, 0, 0, 0, 50)]
    listed = list(control.items(bench.directory))
    assert listed[0] == {
        "store_path": path(1),
        "offered": True,
        "reason": "vouched for",
        "nar_hash": base32.format_hash(b"\1" * 32),
        "infohash": "01" * 32,
        "length": 3,
        "peers": 4,
        "uploaded": 500,
        "upload_rate": 50,
    }
    assert listed[1]["reason"] == "vouched for, made when wanted"
    assert (listed[1]["length"], listed[1]["peers"]) == (0, 0)
    assert listed[3:] == [
        {"store_path": path(5), "offered": False, "reason": "not vouched for"},
        {"store_path": path(6), "offered": False, "reason": "withdrawn"},
    ]
    assert bench.operator.some(1, 1) == [listed[0], listed[3]]
    assert bench.operator.some(9, 9) == listed


def test_nothing_to_list(bench: Bench) -> None:
    """Is one empty line."""
    assert list(control.items(bench.directory)) == []


def test_a_pause_lasts(bench: Bench) -> None:
    """Beyond a restart, and for what is added meanwhile."""
    bench.operator.apply()
    assert bench.paused == []
    assert control.ask(bench.directory, "pause") == {"paused": True}
    bench.operator.apply()
    bench.have(1)
    assert [item["reason"] for item in bench.operator.items()] == ["vouched for, but paused"]
    again = OperatorControl(cast(State, bench.state), bench, bench)
    assert (again.paused, control.ask(bench.directory, "resume")) == (True, {"paused": False})
    assert (again.paused, bench.operator.paused) == (False, False)
    assert bench.paused == [True, True, False]


def test_items_are_added_and_removed(bench: Bench) -> None:
    """By their paths, or their base names; what comes while all is paused is paused, too."""
    control.ask(bench.directory, "pause")
    bench.paused.clear()
    assert control.ask(bench.directory, "add", store_path=path(1)) == {"store_path": path(1)}
    assert bench.paused == [True]
    control.ask(bench.directory, "remove", store_path=path(1)[11:])
    assert bench.calls == [("add", path(1)), ("remove", path(1))]
    with pytest.raises(NarswarmError) as caught:
        control.ask(bench.directory, "remove", store_path=path(9))
    assert str(caught.value) == f"{path(9)}: is not offered"
    with pytest.raises(NarswarmError) as caught:
        control.ask(bench.directory, "add", store_path="/etc/passwd")
    assert str(caught.value) == "/etc/passwd: is not the name of a store item"
