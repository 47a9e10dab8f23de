# SPDX-License-Identifier: GPL-3.0-or-later
"""An item that is fetched before it is asked for, on its way into a file.

While it comes it can be asked for: then it takes part in the race for it as one more source, which
knows better than what can be read in order how far it is.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from narswarm.errors import NetworkError
from narswarm.narinfo import Narinfo
from narswarm.pace import Pace
from substituter.lane import NarSource, Runner
from substituter.race import ASSUMED_RATE, Standing, Way
from substituter.report import Transfer
from substituter.spool import SpoolFile

_LOOK: Final = 0.05
"""Seconds between two looks whether a source was found."""

GRACE: Final = 20.0
"""Seconds that an item may be silent while others of its way come."""


class Ahead:
    """An item that is fetched ahead: the `lane.Runner` of its source.

    Args:
        narinfo: of the item.
        way: by which it is fetched.
        file: where it goes.
        moves: whether bytes of anything come by this way.
    """

    def __init__(
        self, narinfo: Narinfo, way: Way, file: SpoolFile, moves: Callable[[], bool] = bool
    ) -> None:
        self.narinfo = narinfo
        self.way = way
        self.file = file
        self._moves = moves
        self.begun = time.monotonic()
        """When it was begun."""
        self._before = (0, -math.inf)
        self.used: NarSource | None = None
        """The source whose bytes are in the file."""
        self.found: Transfer | None = None
        """Who was found, as soon as somebody was."""
        self._lock = threading.Lock()
        self._dropped = False
        self._callback: Callable[[], None] | None = None

    def position(self) -> int:
        """Bytes of the NAR that have come, in any order."""
        found, size = self.found, self.narinfo.nar_size
        written = self.file.written
        if found is None or not found.total or written == size:
            return written
        return max(written, min(size, size * found.done() // found.total))

    def since(self, now: float) -> float:
        """When the last byte came, as far as it was looked at."""
        position, last = self.position(), self._before[1]
        if position != self._before[0] or last == -math.inf:
            self._before = position, now
        return self._before[1]

    @property
    def dropped(self) -> bool:
        """Whether nobody wants it any more."""
        return self._dropped

    @property
    def alone(self) -> bool:
        """Whether patience makes sense: others of this way come, so the line is what is slow."""
        return self._moves()

    def source(self, transfer: Transfer) -> None:
        """Take note that somebody has it."""
        self.found = transfer

    def on_drop(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when nobody wants it any more."""
        with self._lock:
            self._callback = callback
            dropped = self._dropped
        if dropped:
            callback()

    def drop(self) -> None:
        """Nobody wants it any more."""
        with self._lock:
            self._dropped = True
            callback = self._callback
        if callback is not None:
            callback()

    def _check(self) -> None:
        if self._dropped:
            raise NetworkError(self.narinfo.store_path, "is not wanted any more")

    def fetch(self, sources: Iterable[NarSource]) -> None:
        """Write the NAR to the file, from the first source that has it.

        Another is tried only as long as nothing came.

        Raises:
            NarswarmError: none of them has it.
        """
        error: Exception = NetworkError(self.narinfo.store_path, "nobody has it")
        for source in sources:
            if self._dropped:
                break
            self.used = source
            try:
                with source.nar(self) as nar:
                    for chunk in nar:
                        self.file.write(chunk)
                        self._check()
                if not self.file.complete:
                    raise NetworkError(source.key, f"ended after {self.file.written} bytes")
            except Exception as reason:  # noqa: BLE001 -- what came was wrong, whatever it was
                error = reason
                if self.file.written:
                    break
            else:
                return
        self.file.fail(error)
        raise error


class AheadSource:
    """What is on its way already, as a source in the race for the item.

    Args:
        ahead: the item.
        pace: of all that comes by the same way.
    """

    def __init__(self, ahead: Ahead, pace: Pace) -> None:
        self.key = f"{ahead.narinfo.store_path}, fetched ahead"
        self._ahead = ahead
        self._pace = pace

    def standing(self, one: Standing, now: float) -> Standing:
        """How far it is, which isn't seen by what can be read in order.

        Pieces come in any order, and others come beside it: it is as fast as all of them together,
        since they share the line, and those that are asked for later come the sooner for it.
        """
        last, rate = self._pace.look(now)
        own = self._ahead.since(now)
        position = max(one.position, self._ahead.position())
        return one._replace(
            # Who wasn't found by now isn't given more time because the item is asked for.
            since=one.since if self._ahead.found else min(one.since, self._ahead.begun),
            position=position,
            last=max(one.last, own, min(last, own + GRACE)),
            rate=rate,
            lonely=bool(position)
            and (rate or 0.0) < 2 * ASSUMED_RATE  # of a fast one nobody has to know
            and getattr(self._ahead.used, "peers", 0) == 1,
            members=getattr(self._ahead.used, "members", 0),
        )

    @property
    def infohash(self) -> str:
        """Of the torrent, if it is one."""
        return str(getattr(self._ahead.used, "infohash", ""))

    @property
    def host(self) -> str:
        """Of the server, if it is one."""
        return str(getattr(self._ahead.used, "host", ""))

    def nar(self, runner: Runner) -> _Following:
        """Read it while it comes."""
        return _Following(self._ahead, runner)


class _Following:
    def __init__(self, ahead: Ahead, runner: Runner) -> None:
        self._ahead = ahead
        self._runner = runner

    def __enter__(self) -> Iterator[bytes]:
        if not self._ahead.file.share():
            raise NetworkError(self._ahead.narinfo.store_path, "is not fetched any more")
        self._runner.on_drop(self._ahead.drop)
        return self._chunks()

    def __exit__(self, *_: object) -> None:
        self._ahead.drop()
        self._ahead.file.close()

    def _chunks(self) -> Iterator[bytes]:
        told = False
        for chunk in self._ahead.file.follow(_LOOK):
            if not told and self._ahead.found is not None:
                told = True
                self._runner.source(self._ahead.found)
            if chunk:
                yield chunk
            elif self._runner.dropped:
                raise NetworkError(self._ahead.narinfo.store_path, "is not wanted any more")
