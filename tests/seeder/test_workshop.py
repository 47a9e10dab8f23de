# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wanted comes first, and small things don't wait for large ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator

import pytest

from seeder import workshop
from seeder.workshop import EXPIRY, QUICK, Workshop

PATIENCE = 120.0
SMALL, LARGE = QUICK, QUICK + 1


class Bench:
    """A workshop whose makers wait for the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.changed = threading.Condition()
        self.begun: list[tuple[bytes, set[str]]] = []
        self.open: set[bytes] = set()
        self.spare = 0
        self.spared = 0
        self.workshop = Workshop(self._make, self._spare, lambda: self.now)

    def _make(self, nar_hash: bytes, trackers: Collection[str]) -> None:
        with self.changed:
            self.begun.append((nar_hash, set(trackers)))
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: nar_hash in self.open, PATIENCE)

    def _spare(self) -> bool:
        with self.changed:
            if not self.spare:
                return False
            self.spare -= 1
            self.spared += 1
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: b"spare" in self.open, PATIENCE)
        return True

    def finish(self, *names: bytes) -> None:
        """Let makers end."""
        with self.changed:
            self.open.update(names)
            self.changed.notify_all()

    def wait(self, ready: Callable[[], object]) -> None:
        """Wait until something has happened."""
        with self.changed:
            assert self.changed.wait_for(ready, PATIENCE)

    def names(self) -> list[bytes]:
        """What was begun, in order."""
        return [name for name, _ in self.begun]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A new one, ended at the end."""
    made = Bench()
    yield made
    made.finish(b"a", b"b", b"c", b"d", b"spare")
    made.workshop.stop(PATIENCE)


def test_a_small_one_overtakes_large_ones(bench: Bench) -> None:
    """Two that take minutes don't keep somebody waiting who wants something small."""
    bench.workshop.want(b"a", LARGE)
    bench.workshop.want(b"b", LARGE)
    bench.workshop.want(b"c", SMALL)
    bench.workshop.start()
    bench.wait(lambda: len(bench.begun) == 2)
    assert sorted(bench.names()) == [b"a", b"c"]
    bench.workshop.want(b"d", SMALL)
    bench.finish(b"c")
    bench.wait(lambda: b"d" in bench.names())
    assert b"b" not in bench.names()
    bench.finish(b"a")
    bench.wait(lambda: b"b" in bench.names())


def test_quiet_times_end_when_something_is_wanted(bench: Bench) -> None:
    """Even something large doesn't wait for what nobody asked for."""
    bench.spare = 1
    bench.workshop.start()
    bench.wait(lambda: bench.spared == 1)
    bench.workshop.want(b"a", LARGE)
    bench.wait(lambda: bench.names() == [b"a"])


def test_quiet_times_come_again(bench: Bench) -> None:
    """When somebody says that there is something to do, and after each piece of work."""
    bench.finish(b"spare")
    bench.spare = 3
    bench.workshop.start()
    bench.wait(lambda: bench.spared == 3)
    with bench.changed:
        bench.spare = 1
    bench.workshop.poke()
    bench.wait(lambda: bench.spared == 4)


def test_wanted_twice(bench: Bench) -> None:
    """While it waits: once, for all who want it; while it is made: once more, afterwards."""
    bench.workshop.want(b"a", SMALL, ["t1"])
    bench.workshop.want(b"a", SMALL, ["t2"])
    bench.workshop.start()
    bench.wait(lambda: bench.begun == [(b"a", {"t1", "t2"})])
    bench.workshop.want(b"a", SMALL, ["t3"])
    assert bench.workshop.waiting() == 2
    bench.finish(b"a")
    bench.wait(lambda: len(bench.begun) == 2)
    assert bench.begun[1] == (b"a", {"t3"})


def test_who_has_waited_too_long_is_gone(bench: Bench) -> None:
    """After a while nobody waits any more."""
    bench.workshop.want(b"a", SMALL)
    bench.now = EXPIRY + 1
    bench.workshop.want(b"b", SMALL)
    bench.workshop.start()
    bench.wait(lambda: bench.names() == [b"b"])


def test_the_queue_has_an_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who wants everything doesn't fill the memory."""
    monkeypatch.setattr(workshop, "MAX_WANTED", 2)
    assert bench.workshop.want(b"a", SMALL)
    assert bench.workshop.want(b"b", SMALL)
    assert not bench.workshop.want(b"c", SMALL)
    assert bench.workshop.want(b"a", SMALL)
    assert bench.workshop.waiting() == 2


def test_one_that_fails_ends_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that breaks is a line in the log; what comes next is made."""
    monkeypatch.setattr(bench.workshop, "_make", lambda *_: 1 / 0)
    monkeypatch.setattr(bench.workshop, "_spare", lambda: 1 / 0)
    bench.workshop.want(b"a", SMALL)
    bench.workshop.start()
    while bench.workshop.waiting() or len(caplog.messages) < 2:
        bench.workshop.poke()
    assert set(caplog.messages) == {"a wanted payload", "a payload in quiet times"}
    monkeypatch.undo()
    bench.workshop.want(b"b", SMALL)
    bench.wait(lambda: bench.names() == [b"b"])


def test_the_end(bench: Bench) -> None:
    """Threads that are at work are waited for, but not for ever."""
    assert bench.workshop.stop(0.0)
    other = Bench()
    other.workshop.want(b"a", SMALL)
    other.workshop.start()
    other.wait(lambda: other.begun)
    assert not other.workshop.stop(0.0)
    other.finish(b"a")
    assert other.workshop.stop(PATIENCE)
