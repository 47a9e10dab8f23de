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
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from random import Random
from typing import Final, Protocol

from narswarm.narinfo import Narinfo
from narswarm.pace import MOVES, Pace
from narswarm.plans import FAST
from substituter.ahead import Ahead, AheadSource
from substituter.lane import NarSource
from substituter.race import LEAST_RATE, Policy, Way, worth
from substituter.schedule import (
    HTTP_AT_ONCE,
    SWARM_AT_ONCE,
    Entry,
    Waiting,
    choose,
    order,
    preferred,
)
from substituter.spool import Spool

_MEASURED: Final = 256 << 10
"""Bytes of a NAR from which on it says how fast a server is; smaller ones are round trips."""

_AGAIN: Final = 1.0
"""Seconds between two looks whether swarms need help."""

_FASTER_ALONE: Final = 2.0
"""How many times as fast as swarms servers have to be to take items from them where nobody else
fetches the same; else see `substituter.race.worth`."""

_SETTLED: Final = 8.0
"""Seconds after which the rate of swarms counts: their members have nothing for each other at
first."""

_THREADS: Final = {Way.HTTP: HTTP_AT_ONCE, Way.SWARM: SWARM_AT_ONCE}


class Finds(Protocol):
    """What gives the sources of an item, by one way."""

    def __call__(
        self, narinfo: Narinfo, way: Way, busy: Callable[[], bool], /
    ) -> Iterator[NarSource]:
        """Those that are worth a try while nobody waits; `busy` says whether others come."""


class Prefetcher:
    """Fetches the items of a plan.

    Args:
        spool: where they go.
        policy: what the user wants of the two ways.
        find: gives the sources of an item.
        ways: says by which ways an item may come.
        exists: whether an item is in the store.
        rates: bytes of NAR a second that each way has brought; gets what is learned here.
    """

    def __init__(
        self,
        spool: Spool,
        policy: Policy,
        find: Finds,
        ways: Callable[[Narinfo], frozenset[Way]],
        exists: Callable[[str], bool] = os.path.lexists,
        rates: MutableMapping[Way, float] | None = None,
    ) -> None:
        self._spool = spool
        self._policy = policy
        self._find = find
        self._ways = ways
        self._exists = exists
        self._rates = {} if rates is None else rates
        self._random = Random()  # noqa: S311 -- nobody gains by guessing it
        self._changed = threading.Condition()
        self._closed = False
        self._begun = math.inf
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
            if way is Way.HTTP:
                able += len(self._waiting.of(Way.SWARM))  # it may have to help
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
        self._paces[Way.SWARM].look(time.monotonic())
        with self._changed:
            entry = self._waiting.pop(path) or Entry(path, size, ways)
            begun = any(entry.path == path for each in self._running.values() for entry in each)
            if begun or path in self._here or Way.SWARM not in entry.ways or self._closed:
                return
            helps = Way.HTTP in entry.ways and self._helps()
            ahead = self._open(entry, narinfo, Way.HTTP if helps else Way.SWARM)
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
                if way is Way.SWARM:
                    self._begun = min(self._begun, ahead.begun)
                self._running[way][entry] = ahead
                return ahead
        return None

    def _next(self, way: Way) -> Ahead | None:
        """Wait for the next item of a way and take it; None at the end."""
        while True:
            self._paces[Way.SWARM].look(time.monotonic())
            with self._changed:
                if self._closed:
                    return None
                entry = self._choose(way)
                if entry is None:
                    self._changed.wait(_AGAIN if self._may_help(way) else None)
                    continue
                self._waiting.pop(entry.path)
                if self._exists(entry.path):
                    continue
                ahead = self._open(entry, self._known[entry.path], way)
                if ahead is not None:
                    return ahead

    def _choose(self, way: Way) -> Entry | None:
        """What a way should fetch now."""
        rate = self._paces[way].rate
        if way is Way.HTTP and not (self._running[way.other] or self._waiting.of(way.other)):
            # Nobody else needs the line, and one connection may be slow on a fast line.
            rate = math.inf
        running: AbstractSet[Entry] = self._running[way].keys()
        room, waiting = self._spool.room, self._waiting.of(way)
        if way is Way.SWARM and self._helps():
            waiting = [each for each in waiting if Way.HTTP not in each.ways]
        entry = choose(waiting, way, running, room, rate, self._random)
        if entry is None and self._may_help(way) and self._helps():
            others = [each for each in self._waiting.of(Way.SWARM) if Way.HTTP in each.ways]
            entry = choose(others, way, running, room, rate)
        return entry

    def _may_help(self, way: Way) -> bool:
        """Whether a way may come to fetch what is the other's."""
        waiting = self._waiting.of(Way.SWARM)
        return way is Way.HTTP and self._policy is Policy.RACE and bool(waiting)

    def _helps(self) -> bool:
        """Whether servers should fetch what is the swarms': those bring nothing, or too little."""
        running, pace = self._running[Way.SWARM].values(), self._paces[Way.SWARM]
        if self._policy is not Policy.RACE or not running:
            return False
        now = time.monotonic()
        begun = min(ahead.begun for ahead in running)
        if now - max(begun, pace.last) > MOVES and not any(ahead.found for ahead in running):
            return True
        if pace.rate is None or pace.rate >= FAST or now - self._begun < MOVES:
            return False
        known = self._rates.get(Way.HTTP)
        peers = max(getattr(ahead.used, "peers", 0) for ahead in running)
        if peers > 1:
            members = max(getattr(ahead.used, "members", 0) for ahead in running)
            settled = now - self._begun >= _SETTLED
            return settled and pace.rate < worth(known or 0.0, members)
        if not peers:
            return False
        # One peer is no crowd, which could be hurt: one item shows what servers bring.
        return pace.rate * _FASTER_ALONE < known if known else not self._running[Way.HTTP]

    # In a thread

    def _work(self, way: Way) -> None:
        while (ahead := self._next(way)) is not None:
            self._fetch(ahead)

    def _fetch(self, ahead: Ahead) -> None:
        try:
            ahead.fetch(self._find(ahead.narinfo, ahead.way, self._paces[ahead.way].moves))
        except Exception as error:  # noqa: BLE001 -- the race for the item tells what is wrong
            ahead.file.fail(error)
        self._settle(ahead)

    def _learn(self, ahead: Ahead) -> None:
        """Note how fast servers are: at least so fast as one item, or all of them, came."""
        now = time.monotonic()
        _, rate = self._paces[ahead.way].look(now)
        if ahead.way is not Way.HTTP or not ahead.file.complete:
            return
        size, before = ahead.narinfo.nar_size, self._rates.get(Way.HTTP)
        known = [rate or 0.0]
        if size >= _MEASURED:
            known.append(size / max(now - ahead.begun, 0.01))
        elif before is not None or max(known) > LEAST_RATE:
            # Round trips say that they are no slower than that, not that they are no faster.
            known.append(before or 0.0)
        else:
            return
        self._rates[Way.HTTP] = max(known)

    def _settle(self, ahead: Ahead) -> None:
        """Keep what was fetched, or try the other way."""
        path = ahead.narinfo.store_path
        self._learn(ahead)
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
