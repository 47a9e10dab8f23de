# SPDX-License-Identifier: GPL-3.0-or-later
"""One way of a race as it runs: a thread that makes NAR bytes of what its sources send.

The thread goes through the sources one after another. A source that joins late begins at the start
of the NAR, and what the reader has had already is passed over; so any of them can take over at any
byte. What the reader hasn't had yet waits here, and the thread with it when that is enough.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Protocol, runtime_checkable

from narswarm.errors import NetworkError
from narswarm.pace import Meter
from substituter.race import Standing, State, Way
from substituter.report import Transfer

AHEAD: Final = 16 << 20
"""Bytes of NAR that each way may have in memory for the reader."""


class Shown(Protocol):
    """Who is told where an item comes from: a `substituter.report.Report`, in the end."""

    def source(self, transfer: Transfer) -> None:
        """Take note that somebody has the item."""


class Runner(Shown, Protocol):
    """What a source sees of the race; it says where the item comes from as soon as it knows."""

    @property
    def dropped(self) -> bool:
        """Whether nobody wants its bytes any more."""

    @property
    def alone(self) -> bool:
        """Whether there is no other way left, so that patience makes sense."""

    def on_drop(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, from any thread, when nobody wants the bytes any more."""


class NarSource(Protocol):
    """Something that can deliver the NAR of an item.

    Attributes:
        key: tells it from others, and names it in messages.
    """

    key: str

    def nar(self, runner: Runner) -> contextlib.AbstractContextManager[Iterator[bytes]]:
        """The NAR in chunks; raises a NarswarmError when it can't go on."""


@runtime_checkable
class Ahead(Protocol):
    """A source that knows better than its lane how far it is."""

    def standing(self, one: Standing, now: float) -> Standing:
        """How far it is, from what the lane knows."""


Sources = Callable[["Lane"], Iterator[NarSource]]
"""Gives the sources of a way one after another; called in the thread of the lane that it is given,
where it may wait."""


class Course(Protocol):
    """What a lane sees of the race that it takes part in.

    Attributes:
        nar_size: bytes of the NAR.
        consumed: bytes that the reader has had.
        changed: guards all lanes of the race, and wakes those who wait for a change.
    """

    nar_size: int
    consumed: int
    changed: threading.Condition

    def clock(self) -> float:
        """Seconds from any start."""

    def is_alone(self, way: Way) -> bool:
        """Whether no other way is left."""

    def report_failure(self, source: NarSource, error: Exception) -> None:
        """Pass on why a source failed."""


class Lane:
    """One way as it runs: a thread, and the bytes that wait for the reader."""

    def __init__(self, course: Course, way: Way) -> None:
        self.way = way
        self.over = False
        self.resting = False
        self.was_full = False
        self.current: NarSource | None = None
        self.thread = threading.Thread(target=self._run, name=str(way), daemon=True)
        self._course = course
        self._sources: _Shared | None = None
        self._besides = ""
        self._dropped = False
        self._callbacks: list[Callable[[], None]] = []
        self._meter = Meter()
        self._since = self._last = course.clock()
        self._found: Transfer | None = None
        self._position = 0
        self._full = False
        self._waiting = 0
        self._queue: deque[tuple[int, NarSource, bytes]] = deque()

    # What sources see

    @property
    def dropped(self) -> bool:
        """Whether nobody wants its bytes any more."""
        return self._dropped

    @property
    def alone(self) -> bool:
        """Whether there is no other way left."""
        with self._course.changed:
            return self._course.is_alone(self.way)

    def source(self, transfer: Transfer) -> None:
        """Take note that somebody was found who has the item."""
        with self._course.changed:
            self._found = transfer

    def on_drop(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the lane is dropped; the last one given counts."""
        with self._course.changed:
            self._callbacks = [callback]
            dropped = self._dropped
        if dropped:
            callback()

    def rest(self) -> bool:
        """Wait until no other way is left; False when this one isn't wanted any more either."""
        course = self._course
        with course.changed:
            self.over = self.resting = True
            course.changed.notify_all()
            course.changed.wait_for(lambda: self._dropped or course.is_alone(self.way))
            self.over = self.resting = False
            return not self._dropped

    # What the race sees

    def begin(self, sources: Sources) -> None:
        """Start the thread."""
        self._sources = _Shared(sources, self)
        self.thread.start()

    def begin_beside(self, other: Lane) -> None:
        """Start the thread, with the sources that another lane hasn't tried, of other hosts."""
        self._besides = _host(other.current)
        self._sources = other._sources
        self.thread.start()

    def drop(self) -> None:
        """Tell the thread to end; doesn't wait for it."""
        with self._course.changed:
            self._dropped = True
            callbacks, self._callbacks = self._callbacks, []
            self._queue.clear()
            self._course.changed.notify_all()
        for callback in callbacks:
            callback()

    def standing(self) -> Standing:
        """How far it is."""
        now = self._course.clock()
        found = Standing(
            State.OVER if self.over else State.RUNNING,
            self._since,
            self._found is not None,
            self._position,
            self._last,
            self._meter.rate(now),
            self._full,
        )
        return self.current.standing(found, now) if isinstance(self.current, Ahead) else found

    def is_quiet(self) -> bool:
        """Whether nothing came lately."""
        return self._course.clock() - self._last > 1.0

    def show(self, report: Shown) -> None:
        """Let the user see where the bytes come from."""
        if self._found is not None:
            report.source(self._found)

    def is_complete(self) -> bool:
        """Whether all of the NAR has come."""
        return self.over and self._position >= self._course.nar_size

    def has_delivered(self) -> bool:
        """Whether all of the NAR has come, though it may not be over."""
        return self._position >= self._course.nar_size

    def skip(self, consumed: int) -> None:
        """Drop what the reader has had."""
        while self._queue and self._queue[0][0] + len(self._queue[0][2]) <= consumed:
            self._pop()

    def take(self, consumed: int) -> tuple[NarSource, bytes] | None:
        """The bytes at a position, if they are here."""
        if not self._queue:
            return None
        start, source, chunk = self._pop()
        return source, chunk[consumed - start :] if start < consumed else chunk

    def _pop(self) -> tuple[int, NarSource, bytes]:
        entry = self._queue.popleft()
        self._waiting -= len(entry[2])
        if self._full:
            self._full = False
            self._course.changed.notify_all()
        return entry

    # The thread

    def _run(self) -> None:
        course = self._course
        try:
            assert self._sources is not None  # noqa: S101 -- begin() has set it
            while (source := self._sources.next(self._besides)) is not None:
                if self._dropped or self._serve(source):
                    return
        except Exception as error:  # noqa: BLE001 -- the other way goes on
            if not self._dropped and self.current is not None:
                course.report_failure(self.current, error)
        finally:
            with course.changed:
                self.over = True
                course.changed.notify_all()

    def _serve(self, source: NarSource) -> bool:
        """Take the NAR from a source; whether nothing more is to be done."""
        course = self._course
        with course.changed:
            self.current, self._found, self._position = source, None, 0
            self._meter = Meter()
            self._since = self._last = course.clock()
        try:
            with source.nar(self) as nar:
                for chunk in nar:
                    if not self._put(source, chunk):
                        return True
            if self._position < course.nar_size:
                raise NetworkError(
                    source.key, f"ended after {self._position} of {course.nar_size} bytes"
                )
        except Exception as error:  # noqa: BLE001 -- one source never ends the search
            if self._dropped:
                return True
            course.report_failure(source, error)
            return False
        return True

    def _put(self, source: NarSource, chunk: bytes) -> bool:
        """Hand bytes to the reader, waiting while it has enough; False when it wants no more."""
        course = self._course
        with course.changed:
            start, self._position = self._position, self._position + len(chunk)
            now = self._last = course.clock()
            self._meter.add(now, self._position)
            if self._position > course.consumed:
                self._queue.append((start, source, chunk))
                self._waiting += len(chunk)
                course.changed.notify_all()
                if self._waiting >= AHEAD:
                    self._full = self.was_full = True
                    course.changed.wait_for(lambda: self._dropped or not self._full)
                    self._last = course.clock()
            return not self._dropped and self._position < course.nar_size


class _Shared:
    """The sources of a way, each of which is given once, to whichever lane asks.

    Args:
        sources: gives them.
        lane: the first that asks.
    """

    def __init__(self, sources: Sources, lane: Lane) -> None:
        self._sources = sources
        self._lane = lane
        self._lock = threading.Lock()
        self._iterator: Iterator[NarSource] | None = None
        self._passed: deque[NarSource] = deque()

    def next(self, besides: str = "") -> NarSource | None:
        """The next one; may wait.

        Args:
            besides: a host whose sources are left for others.
        """
        with self._lock:
            if self._passed and not besides:
                return self._passed.popleft()
            if self._iterator is None:
                self._iterator = self._sources(self._lane)
            for source in self._iterator:
                if not besides or _host(source) != besides:
                    return source
                self._passed.append(source)
            return None


def _host(source: NarSource | None) -> str:
    """The server that a source is of, "" where there is none."""
    return str(getattr(source, "host", ""))
