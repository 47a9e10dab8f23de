# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetches the rest of a plan while its first items are restored.

The process that substitutes lives as long as guix-daemon's session and is asked for one item after
another. Here threads fetch what it will be asked for next, as `substituter.schedule` decides, into
a `substituter.spool`. What is there is restored at once, what is on its way is read while it comes,
and what isn't begun when it is asked for is left to the race for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Final, Protocol

from narswarm.errors import NetworkError
from narswarm.narinfo import Narinfo
from substituter.contest import NarSource, Runner
from substituter.race import Policy, Way
from substituter.schedule import HTTP_AT_ONCE, SWARM_AT_ONCE, Entry, choose, order
from substituter.spool import Spool, SpoolFile

_LOOK: Final = 0.05
"""Seconds between two looks whether a source was found."""

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
    """

    def __init__(self, narinfo: Narinfo, way: Way, file: SpoolFile) -> None:
        self.narinfo = narinfo
        self.way = way
        self.file = file
        self.used: NarSource | None = None
        """The source whose bytes are in the file."""
        self.found: tuple[str, int | None, Callable[[], int], Callable[[], str] | None] | None
        self.found = None
        self._lock = threading.Lock()
        self._dropped = False
        self._callback: Callable[[], None] | None = None

    @property
    def dropped(self) -> bool:
        """Whether nobody wants it any more."""
        return self._dropped

    @property
    def alone(self) -> bool:
        """There may be another way, which the race finds out."""
        return False

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
    """

    def __init__(self, ahead: Ahead) -> None:
        self.key = f"{ahead.narinfo.store_path}, fetched ahead"
        self._ahead = ahead

    @property
    def infohash(self) -> str:
        """Of the torrent, if it is one."""
        return str(getattr(self._ahead.used, "infohash", ""))

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
        self._changed = threading.Condition()
        self._closed = False
        self._known: dict[str, Narinfo] = {}
        self._taken: set[str] = set()
        self._waiting: dict[str, Entry] = {}
        self._running: dict[Way, dict[Entry, Ahead]] = {way: {} for way in Way}
        self._here: dict[str, Ahead] = {}
        self._threads: dict[Way, int] = dict.fromkeys(Way, 0)

    def close(self) -> None:
        """End it; a helper that is killed needs no such thing."""
        with self._changed:
            self._closed = True
            running = [ahead for each in self._running.values() for ahead in each.values()]
            here, self._here = list(self._here.values()), {}
            self._waiting.clear()
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
                    self._waiting[path] = Entry(path, narinfo.nar_size, ways)
            self._sort()
            self._begin()

    def take(self, narinfo: Narinfo) -> Ahead | None:
        """Give what there is of an item that is asked for now; it is the caller's to close.

        Nothing more is done ahead for it.
        """
        path = narinfo.store_path
        with self._changed:
            self._taken.add(path)
            self._waiting.pop(path, None)
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

    # Under the lock

    def _sort(self) -> None:
        """Have those that wait in the order of the whole plan."""
        references = {
            path: [_store_path(path, name) for name in found.references]
            for path, found in self._known.items()
        }
        waiting = self._waiting
        self._waiting = {path: waiting[path] for path in order(references) if path in waiting}

    def _begin(self) -> None:
        """Have as many threads as there is work for."""
        for way in Way:
            able = sum(way in entry.ways for entry in self._waiting.values())
            while self._threads[way] < min(_THREADS[way], able) and not self._closed:
                self._threads[way] += 1
                threading.Thread(
                    target=self._work, args=(way,), name=f"ahead {way}", daemon=True
                ).start()
        self._changed.notify_all()

    def _next(self, way: Way) -> Ahead | None:
        """Wait for the next item of a way and take it; None at the end."""
        with self._changed:
            while not self._closed:
                running: AbstractSet[Entry] = self._running[way].keys()
                room, waiting = self._spool.room, self._waiting.values()
                entry = choose(waiting, way, running, room, self._policy)
                if entry is None:
                    self._changed.wait()
                    continue
                del self._waiting[entry.path]
                if self._exists(entry.path):
                    continue
                with suppress(OSError):
                    file = self._spool.open(entry.path, entry.size)
                    if file is not None:
                        ahead = Ahead(self._known[entry.path], way, file)
                        self._running[way][entry] = ahead
                        return ahead
        return None

    # In a thread

    def _work(self, way: Way) -> None:
        while (ahead := self._next(way)) is not None:
            try:
                ahead.fetch(self._find(ahead.narinfo, way))
            except Exception as error:  # noqa: BLE001 -- the race for the item tells what is wrong
                ahead.file.fail(error)
            self._settle(ahead)

    def _settle(self, ahead: Ahead) -> None:
        """Keep what was fetched, or try the other way."""
        path = ahead.narinfo.store_path
        with self._changed:
            running = self._running[ahead.way]
            entry = next(each for each in running if running[each] is ahead)
            del running[entry]
            if path in self._taken or self._closed:
                ahead.file.close()
            elif ahead.file.complete:
                self._here[path] = ahead
            else:
                ahead.file.close()
                ways = entry.ways - {ahead.way}
                if ways:
                    self._waiting[path] = entry._replace(ways=ways)
                    self._sort()
                    self._begin()
            self._changed.notify_all()


def _store_path(beside: str, name: str) -> str:
    return f"{beside.rpartition('/')[0]}/{name}"
