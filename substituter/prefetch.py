# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetches the rest of a plan while its first items are restored.

The process that substitutes lives as long as guix-daemon's session and is asked for one item after
another. Here threads fetch what it will be asked for next, as `substituter.schedule` decides, into
a `substituter.spool`. What is there is restored at once, what is on its way is read while it comes,
and what isn't begun when it is asked for is left to the race for it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from random import Random
from typing import Final, Protocol

from narswarm.errors import NetworkError
from narswarm.narinfo import Narinfo
from substituter.contest import NarSource, Runner
from substituter.race import Meter, Policy, Standing, Way
from substituter.schedule import (
    HTTP_AT_ONCE,
    SWARM_AT_ONCE,
    Entry,
    Waiting,
    choose,
    order,
    preferred,
)
from substituter.spool import Spool, SpoolFile

_LOOK: Final = 0.05
"""Seconds between two looks whether a source was found."""

_GRACE: Final = 4.0
"""Seconds that an item may be silent while others of its way come."""

_MOVES: Final = 2.0
"""Seconds in which a byte shows that a way moves."""

_PACE: Final = 0.2
"""Seconds between two looks at how far everything is."""

_THREADS: Final = {Way.HTTP: HTTP_AT_ONCE, Way.SWARM: SWARM_AT_ONCE}


class Finds(Protocol):
    """What gives the sources of an item, by one way."""

    def __call__(self, narinfo: Narinfo, way: Way) -> Iterator[NarSource]:
        """Those that are worth a try while nobody waits."""


class Ahead:
    """An item that is fetched ahead: the `contest.Runner` of its source.

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
        self._before = (0, -math.inf)
        self.used: NarSource | None = None
        """The source whose bytes are in the file."""
        self.found: tuple[str, int | None, Callable[[], int], Callable[[], str] | None] | None
        self.found = None
        self._lock = threading.Lock()
        self._dropped = False
        self._callback: Callable[[], None] | None = None

    def position(self) -> int:
        """Bytes of the NAR that have come, in any order."""
        found, size = self.found, self.narinfo.nar_size
        written = self.file.written
        if found is None or not found[1] or written == size:
            return written
        return max(written, min(size, size * found[2]() // found[1]))

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

    def source(
        self,
        url: str,
        total: int | None,
        done: Callable[[], int],
        label: Callable[[], str] | None = None,
    ) -> None:
        """Take note that somebody has it."""
        self.found = (url, total, done, label)

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
            position=position, last=max(one.last, own, min(last, own + _GRACE)), rate=rate
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
                self._runner.source(*self._ahead.found)
            if chunk:
                yield chunk
            elif self._runner.dropped:
                raise NetworkError(self._ahead.narinfo.store_path, "is not wanted any more")


class Pace:
    """How fast a way is in all that it fetches ahead.

    Args:
        position: bytes of NARs that it has brought.
    """

    def __init__(self, position: Callable[[], int]) -> None:
        self._position = position
        self._lock = threading.Lock()
        self._meter = Meter()
        self._looked = self._last = -math.inf
        self._before = 0
        self.rate: float | None = None
        """As of the last look."""

    def moves(self) -> bool:
        """Whether something comes."""
        now = time.monotonic()
        return now - self.look(now)[0] < _MOVES

    def look(self, now: float) -> tuple[float, float | None]:
        """When the last byte came, as far as it was looked at, and the rate."""
        with self._lock:
            if now - self._looked >= _PACE:
                self._looked = now
                position = self._position()
                if position != self._before:
                    self._before, self._last = position, now
                self._meter.add(now, position)
                self.rate = self._meter.rate(now)
            return self._last, self.rate


class Prefetcher:
    """Fetches the items of a plan.

    Args:
        spool: where they go.
        policy: what the user wants of the two ways.
        find: gives the sources of an item.
        ways: says by which ways an item may come.
        exists: whether an item is in the store.
    """

    def __init__(
        self,
        spool: Spool,
        policy: Policy,
        find: Finds,
        ways: Callable[[Narinfo], frozenset[Way]],
        exists: Callable[[str], bool] = os.path.lexists,
    ) -> None:
        self._spool = spool
        self._policy = policy
        self._find = find
        self._ways = ways
        self._exists = exists
        self._random = Random()  # noqa: S311 -- nobody gains by guessing it
        self._changed = threading.Condition()
        self._closed = False
        self._known: dict[str, Narinfo] = {}
        self._taken: set[str] = set()
        self._waiting = Waiting(policy)
        self._running: dict[Way, dict[Entry, Ahead]] = {way: {} for way in Way}
        self._here: dict[str, Ahead] = {}
        self._threads: dict[Way, int] = dict.fromkeys(Way, 0)
        self._done: dict[Way, int] = dict.fromkeys(Way, 0)
        self._paces = {way: Pace(partial(self._position, way)) for way in Way}

    def close(self) -> None:
        """End it; a helper that is killed needs no such thing."""
        with self._changed:
            self._closed = True
            running = [ahead for each in self._running.values() for ahead in each.values()]
            here, self._here = list(self._here.values()), {}
            self._waiting = Waiting(self._policy)
            self._changed.notify_all()
        for ahead in running:
            ahead.drop()
        for ahead in here:
            ahead.file.close()

    def add(self, narinfos: Mapping[str, Narinfo]) -> None:
        """Fetch more items, by store path, in the order in which they will be asked for."""
        with self._changed:
            new = {path: found for path, found in narinfos.items() if path not in self._known}
            self._known.update(new)
            for path, narinfo in new.items():
                ways = self._ways(narinfo)
                if path not in self._taken and ways and not self._exists(path):
                    self._waiting.add(Entry(path, narinfo.nar_size, ways))
            self._waiting.sort(
                order(
                    {
                        path: [_store_path(path, name) for name in found.references]
                        for path, found in self._known.items()
                    }
                )
            )
            self._begin()

    def take(self, narinfo: Narinfo, *, begin: bool = False) -> Ahead | None:
        """Give what there is of an item that is asked for now; it is the caller's to close.

        Args:
            narinfo: of the item.
            begin: more of the plan will come beside it, so that it is fetched like the others if
                it should come from the swarm. Else nothing is begun for it here any more.
        """
        path = narinfo.store_path
        if begin:
            self._begin_now(narinfo)
        with self._changed:
            self._taken.add(path)
            self._waiting.pop(path)
            ahead = self._here.pop(path, None)
            for running in self._running.values():
                for entry, each in running.items():
                    if entry.path == path:
                        each.file.share()
                        ahead = each
        if ahead is None:
            return None
        if (ahead.narinfo.nar_hash, ahead.narinfo.nar_size) != (narinfo.nar_hash, narinfo.nar_size):
            ahead.drop()
            ahead.file.close()
            return None
        return ahead

    def give_back(self, ahead: Ahead) -> None:
        """Let go of what was taken, so that its room is there for others."""
        ahead.drop()
        ahead.file.close()
        with self._changed:
            self._changed.notify_all()

    def source(self, ahead: Ahead) -> AheadSource:
        """What was taken, as a source in the race for it."""
        return AheadSource(ahead, self._paces[ahead.way])

    def _position(self, way: Way) -> int:
        """Bytes of NARs that a way has brought."""
        with self._changed:
            running, done = list(self._running[way].values()), self._done[way]
        return done + sum(ahead.position() for ahead in running)

    # Under the lock

    def _begin(self) -> None:
        """Have as many threads as there is work for."""
        for way in Way:
            able = len(self._waiting.of(way))
            while self._threads[way] < min(_THREADS[way], able) and not self._closed:
                self._threads[way] += 1
                threading.Thread(
                    target=self._work, args=(way,), name=f"ahead {way}", daemon=True
                ).start()
        self._changed.notify_all()

    def _begin_now(self, narinfo: Narinfo) -> None:
        """Begin an item out of turn, unless it is begun or a server's."""
        path, size = narinfo.store_path, narinfo.nar_size
        ways = self._ways(narinfo)
        if Way.SWARM not in ways or preferred(self._policy, size) is not Way.SWARM:
            return
        with self._changed:
            entry = self._waiting.pop(path) or Entry(path, size, ways)
            begun = any(entry.path == path for each in self._running.values() for entry in each)
            if begun or path in self._here or Way.SWARM not in entry.ways or self._closed:
                return
            ahead = self._open(entry, narinfo, Way.SWARM)
        if ahead is not None:
            threading.Thread(
                target=self._fetch, args=(ahead,), name=f"ahead {ahead.way}", daemon=True
            ).start()

    def _open(self, entry: Entry, narinfo: Narinfo, way: Way) -> Ahead | None:
        """Note that an item is begun; None if there is no room. The lock is held."""
        with suppress(OSError):
            file = self._spool.open(entry.path, entry.size)
            if file is not None:
                ahead = Ahead(narinfo, way, file, self._paces[way].moves)
                self._running[way][entry] = ahead
                return ahead
        return None

    def _next(self, way: Way) -> Ahead | None:
        """Wait for the next item of a way and take it; None at the end."""
        with self._changed:
            while not self._closed:
                rate = self._paces[way].rate
                running: AbstractSet[Entry] = self._running[way].keys()
                room, waiting = self._spool.room, self._waiting.of(way)
                entry = choose(waiting, way, running, room, rate, self._random)
                if entry is None:
                    self._changed.wait()
                    continue
                self._waiting.pop(entry.path)
                if self._exists(entry.path):
                    continue
                ahead = self._open(entry, self._known[entry.path], way)
                if ahead is not None:
                    return ahead
        return None

    # In a thread

    def _work(self, way: Way) -> None:
        while (ahead := self._next(way)) is not None:
            self._fetch(ahead)

    def _fetch(self, ahead: Ahead) -> None:
        try:
            ahead.fetch(self._find(ahead.narinfo, ahead.way))
        except Exception as error:  # noqa: BLE001 -- the race for the item tells what is wrong
            ahead.file.fail(error)
        self._settle(ahead)

    def _settle(self, ahead: Ahead) -> None:
        """Keep what was fetched, or try the other way."""
        path = ahead.narinfo.store_path
        self._paces[ahead.way].look(time.monotonic())
        with self._changed:
            running = self._running[ahead.way]
            entry = next(each for each in running if running[each] is ahead)
            del running[entry]
            self._done[ahead.way] += ahead.file.written
            if path in self._taken or self._closed:
                ahead.file.close()
            elif ahead.file.complete:
                self._here[path] = ahead
            else:
                ahead.file.close()
                ways = entry.ways - {ahead.way}
                if ways:
                    self._waiting.add(entry._replace(ways=ways))
                    self._begin()
            self._changed.notify_all()


def _store_path(beside: str, name: str) -> str:
    return f"{beside.rpartition('/')[0]}/{name}"
