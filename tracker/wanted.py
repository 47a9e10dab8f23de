# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody asked for and nobody seeds: marks that the seeders which hold it are told of.

Each mark has a number, and who asks says up to which it knows them. A NAR that is asked for again
keeps its mark and is counted; when the mark is old it gets a new one, so that holders are told
again, but not with each request.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

LIFETIME: Final = 600
"""Seconds for which a NAR stays wanted."""

MAX_MARKS: Final = 10_000
"""NARs that may be wanted at a time; beyond that the oldest is forgotten."""

_RUN_BITS = 20


class WantedItem(NamedTuple):
    """A NAR's hash, 32 bytes, and how often it was asked for."""

    nar_hash: bytes
    requests: int


class Page(NamedTuple):
    """Items that are wanted, the oldest first, and the cursor for what comes after them."""

    cursor: int
    items: list[WantedItem]


@dataclass(slots=True)
class _Mark:
    number: int
    expires: float
    requests: int
    info_hashes: tuple[bytes, ...]


class Wanted:
    """The marks of this process.

    Args:
        began: seconds since the epoch. Numbers begin with it, so that a cursor which another run
            gave out is older than all marks of this one.
        limit: how many marks there may be.
    """

    def __init__(self, began: float, limit: int = MAX_MARKS) -> None:
        self._lock = threading.Lock()
        self._marks: dict[bytes, _Mark] = {}
        """In the order of their numbers, which is that in which they end."""
        self._cursor = int(began) << _RUN_BITS
        self._limit = limit

    def mark(self, nar_hash: bytes, info_hashes: Sequence[bytes], now: float) -> bool:
        """Count a request for a NAR that nobody seeds.

        Args:
            nar_hash: 32 bytes.
            info_hashes: those of its torrents as they are announced, 20 bytes each; none as long
                as there is no torrent.
            now: seconds since the epoch.

        Returns:
            Whether it wasn't wanted before, so that there is news for who holds it.
        """
        with self._lock:
            self._expire(now)
            mark = self._marks.get(nar_hash)
            if mark is not None:
                mark.requests += 1
                return False
            if len(self._marks) >= self._limit:
                del self._marks[next(iter(self._marks))]
            self._cursor += 1
            self._marks[nar_hash] = _Mark(self._cursor, now + LIFETIME, 1, tuple(info_hashes))
            return True

    def prepared(self, nar_hash: bytes, info_hashes: Sequence[bytes]) -> None:
        """Note the torrents of a NAR, if it is wanted."""
        with self._lock:
            mark = self._marks.get(nar_hash)
            if mark is not None:
                mark.info_hashes = tuple(info_hashes)

    def clear(self, nar_hashes: Iterable[bytes]) -> None:
        """Have NARs no longer wanted."""
        with self._lock:
            for nar_hash in nar_hashes:
                self._marks.pop(nar_hash, None)

    def page(self, cursor: int, limit: int, holds: Callable[[bytes], bool], now: float) -> Page:
        """What came after a cursor.

        Args:
            cursor: of the last page, or 0. One that this didn't give out yet counts as 0.
            limit: how many items to give.
            holds: which NARs count.
            now: seconds since the epoch.
        """
        with self._lock:
            self._expire(now)
            last = self._cursor
            newer = []
            for nar_hash, mark in reversed(self._marks.items()):
                if mark.number <= cursor <= last:
                    break
                newer.append((mark.number, WantedItem(nar_hash, mark.requests)))
        seen, items = cursor, list[WantedItem]()
        for number, item in reversed(newer):
            if len(items) == limit:
                return Page(seen, items)
            if holds(item.nar_hash):
                items.append(item)
            seen = number
        return Page(last, items)

    def info_hashes(self, nar_hash: bytes) -> tuple[bytes, ...]:
        """Under which infohashes a seed of a wanted NAR would announce."""
        with self._lock:
            mark = self._marks.get(nar_hash)
            return mark.info_hashes if mark else ()

    def most(self, limit: int, now: float) -> list[WantedItem]:
        """So many NARs that are wanted, those that were asked for most often first."""
        with self._lock:
            self._expire(now)
            items = [WantedItem(nar_hash, mark.requests) for nar_hash, mark in self._marks.items()]
        return heapq.nlargest(limit, items, key=lambda item: item.requests)

    def total(self, now: float) -> int:
        """How many NARs are wanted."""
        with self._lock:
            self._expire(now)
            return len(self._marks)

    def _expire(self, now: float) -> None:
        while self._marks:
            oldest = next(iter(self._marks))
            if self._marks[oldest].expires > now:
                return
            del self._marks[oldest]
