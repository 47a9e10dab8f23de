# SPDX-License-Identifier: GPL-3.0-or-later
"""What seeders say they could serve: a list of NARs for each publisher's key, in memory.

A list is advice. It is kept as the first 8 bytes of each hash, sorted and packed, so that a seed
box with 100,000 items costs 800 kB here and is asked about in a microsecond; two NARs that share
them would at worst have somebody told of what it doesn't hold. Lists change by what was added and
removed, are forgotten when their lease is over, and are lost with the process, after which the
next change is refused and all of the list is sent again.
"""

from __future__ import annotations

import struct
import sys
import threading
from array import array
from bisect import bisect_left, bisect_right
from operator import lt
from typing import Final, NamedTuple

from narswarm import bencoding
from narswarm.errors import InvalidInputError, NarswarmError
from narswarm.trackeranswers import MAX_GENERATION

HASH_BYTES: Final = 32
"""Bytes of a NAR's hash in a request."""

LEASE: Final = 1800
"""Seconds for which a list holds; seeders refresh it when half of them are over."""

FULL_PAUSE: Final = 60
"""Seconds between two complete lists of one key."""

MAX_BODY: Final = 32 << 20
"""Bytes of a request: a million hashes, and what is around them."""

_KEYS = [b"added", b"base", b"generation", b"port", b"removed"]
_PREFIX_BYTES = 8
_STEP = 512


class StaleHoldingsError(NarswarmError):
    """A change was made for another list than the one that is here.

    Attributes:
        generation: of the list that is here, 0 for none.
    """

    def __init__(self, generation: int) -> None:
        super().__init__("base", f"is not the generation that this tracker has, {generation}")
        self.generation = generation


class TooSoonError(NarswarmError):
    """A complete list came too soon after another.

    Attributes:
        retry_after: seconds.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__("base", f"is 0 again too soon; wait {retry_after} s or send a change")
        self.retry_after = retry_after


class TooManyItemsError(NarswarmError):
    """A list is longer than one key's may be."""


class HoldingsFullError(NarswarmError):
    """There is no room for what a key holds."""


class Update(NamedTuple):
    """What a seeder sends.

    Attributes:
        base: the generation that it changes, 0 for a complete list.
        generation: the one that it makes.
        added: the first 8 bytes of hashes as numbers, in order.
        removed: the same.
    """

    base: int
    generation: int
    added: array[int]
    removed: array[int]


class Held(NamedTuple):
    """What a key holds now: the generation of its list, and how many items that is."""

    generation: int
    items: int


def parse_update(body: bytes) -> Update:
    """Read the body of a request.

    Args:
        body: a bencoded dictionary; the caller has bounded it.

    Raises:
        InvalidInputError: it isn't what a seeder sends.
    """
    content = bencoding.decode(body, "holdings", max_depth=1)
    if not isinstance(content, dict) or list(content) != _KEYS:
        raise InvalidInputError(
            "holdings", "is not a dictionary of added, base, generation, port and removed"
        )
    added, base, generation, port, removed = (content[name] for name in _KEYS)
    if not isinstance(base, int) or not 0 <= base < MAX_GENERATION:
        raise InvalidInputError("base", "is not a generation")
    if not isinstance(generation, int) or not max(base, 1) <= generation < MAX_GENERATION:
        raise InvalidInputError("generation", "is not a generation above 0 and from base on")
    if not isinstance(port, int) or not 0 < port < 1 << 16:
        raise InvalidInputError("port", "is not between 1 and 65535")
    update = Update(base, generation, _prefixes("added", added), _prefixes("removed", removed))
    if base == 0 and update.removed:
        raise InvalidInputError("removed", "is not empty, in a complete list")
    if base == generation and (update.added or update.removed):
        raise InvalidInputError("generation", "is that of base, but something changed")
    return update


def _prefixes(name: str, data: bencoding.Value) -> array[int]:
    """Read hashes, of which the first 8 bytes are kept."""
    if not isinstance(data, bytes) or len(data) % HASH_BYTES:
        raise InvalidInputError(name, "is not a string of hashes of 32 bytes")
    ahead = struct.iter_unpack("32s", data)
    next(ahead, None)
    if not all(map(lt, struct.iter_unpack("32s", data), ahead)):
        raise InvalidInputError(name, "is not in order, or has an item twice")
    found = array("Q")
    found.frombytes(memoryview(data).cast("Q")[:: HASH_BYTES // _PREFIX_BYTES].tobytes())
    if sys.byteorder == "little":
        found.byteswap()
    return found


def merge(old: array[int], added: array[int], removed: array[int]) -> array[int]:
    """Make a list without what was removed and with what was added.

    All are in order. Only stretches around changes are taken apart, a few hundred items at a time;
    what is between them is copied as it is.
    """
    made = array("Q")
    at = add = remove = 0
    while add < len(added) or remove < len(removed):
        heads = [*added[add : add + 1], *removed[remove : remove + 1]]
        begin = bisect_left(old, min(heads), at)
        made.extend(old[at:begin])
        # As far as no list gives more than some items, so that none has to be taken apart whole.
        ends = [
            numbers[position + _STEP - 1]
            for numbers, position in ((old, begin), (added, add), (removed, remove))
            if position + _STEP <= len(numbers)
        ]
        cuts = [
            bisect_right(numbers, min(ends), position) if ends else len(numbers)
            for numbers, position in ((old, begin), (added, add), (removed, remove))
        ]
        kept = set(old[begin : cuts[0]]).difference(removed[remove : cuts[2]])
        made.extend(sorted(kept.union(added[add : cuts[1]])))
        at, add, remove = cuts
    made.extend(old[at:])
    return made


class Snapshot(NamedTuple):
    """A list as it is at a time; it never changes.

    Attributes:
        items: the first 8 bytes of hashes as numbers, in order.
        generation: which list it is.
        expires: when its lease is over.
        complete: when all of it came the last time.
    """

    items: array[int]
    generation: int
    expires: float
    complete: float


class Holdings:
    """The lists of this process.

    Args:
        holders: how many keys may have one.
        holder_items: how long one may be.
        items: how long all may be together.
    """

    def __init__(self, holders: int, holder_items: int, items: int) -> None:
        self._lock = threading.Lock()
        self._holders: dict[bytes, Snapshot] = {}
        self._total = 0
        self._earliest = 0.0
        """When to look for leases that are over."""
        self.limit(holders, holder_items, items)

    def limit(self, holders: int, holder_items: int, items: int) -> None:
        """Go on with other limits; lists that are beyond them stay as long as they are."""
        self._max_holders = holders
        self._max_holder_items = holder_items
        self._max_items = items

    def apply(self, key: bytes, update: Update, now: float) -> Held:
        """Change a key's list and begin its lease anew.

        Raises:
            StaleHoldingsError: it has another list than that which the change is for.
            TooSoonError: its last complete list isn't old enough for another.
            TooManyItemsError: its list would be too long.
            HoldingsFullError: there are too many lists, or items in them.
        """
        with self._lock:
            self._expire(now)
            before = self._holders.get(key)
        self._check(before, update, now)
        old = before.items if before is not None and update.base else array("Q")
        # Not while others wait: of a long list this takes a while.
        items = merge(old, update.added, update.removed)
        known = before is not None and items == before.items
        if before is not None and not update.base and not known:
            self._check_pause(before, update, now)
        if len(items) > self._max_holder_items:
            raise TooManyItemsError("holdings", f"are more than {self._max_holder_items} items")
        with self._lock:
            present = self._holders.get(key)
            if present is not before:  # another request of this key was faster
                raise StaleHoldingsError(present.generation if present else 0)
            if present is None and len(self._holders) >= self._max_holders:
                raise HoldingsFullError("holdings", "are full: too many keys have some")
            total = self._total + len(items) - (len(present.items) if present else 0)
            if total > self._max_items and total > self._total:
                raise HoldingsFullError("holdings", "are full: too many items are in them")
            expires = now + LEASE
            complete = now
            if update.base or not update.added or known:
                complete = before.complete if before is not None else 0.0
            self._holders[key] = Snapshot(items, update.generation, expires, complete)
            self._total = total
            self._earliest = min(self._earliest, expires)
        return Held(update.generation, len(items))

    @staticmethod
    def _check(before: Snapshot | None, update: Update, now: float) -> None:
        """See whether an update fits what is there."""
        if update.base:
            generation = before.generation if before else 0
            if update.base != generation:
                raise StaleHoldingsError(generation)
            return
        # Two trackers that share their lists are both told the same one.
        if before is not None and update.generation != before.generation:
            Holdings._check_pause(before, update, now)

    @staticmethod
    def _check_pause(before: Snapshot, update: Update, now: float) -> None:
        """See whether a complete list isn't too early."""
        # Neither an empty one, by which a seeder says goodbye, nor one after that: who is restarted
        # mustn't have to wait, and a change could do the same.
        wait = before.complete + FULL_PAUSE - now if before.items and update.added else 0
        if wait > 0:
            raise TooSoonError(min(int(wait) + 1, FULL_PAUSE))

    def snapshot(self, key: bytes) -> Snapshot | None:
        """A key's list as it is now."""
        with self._lock:
            return self._holders.get(key)

    def keys(self, now: float) -> list[bytes]:
        """The keys that have a list."""
        with self._lock:
            self._expire(now)
            return list(self._holders)

    def install(self, key: bytes, snapshot: Snapshot, now: float) -> None:
        """Have a list that another tracker was told, if there is room for it."""
        with self._lock:
            self._expire(now)
            present = self._holders.get(key)
            total = self._total + len(snapshot.items) - (len(present.items) if present else 0)
            if (
                total <= self._max_items
                and len(snapshot.items) <= self._max_holder_items
                and (present is not None or len(self._holders) < self._max_holders)
            ):
                self._holders[key] = snapshot
                self._total = total
                self._earliest = min(self._earliest, snapshot.expires)

    def has(self, key: bytes, now: float) -> bool:
        """Whether a key has a list."""
        with self._lock:
            self._expire(now)
            return key in self._holders

    def holds(self, key: bytes, nar_hash: bytes, now: float) -> bool:
        """Whether a NAR is in a key's list."""
        with self._lock:
            self._expire(now)
            holder = self._holders.get(key)
        return holder is not None and _is_in(holder.items, _number(nar_hash))

    def holders(self, nar_hash: bytes, now: float) -> list[bytes]:
        """The keys that have a NAR in their list."""
        number = _number(nar_hash)
        with self._lock:
            self._expire(now)
            return [key for key, holder in self._holders.items() if _is_in(holder.items, number)]

    def totals(self, now: float) -> tuple[int, int]:
        """How many lists there are, and how many items in all of them."""
        with self._lock:
            self._expire(now)
            return len(self._holders), self._total

    def _expire(self, now: float) -> None:
        """Forget lists whose lease is over."""
        if now < self._earliest:
            return
        for key in [key for key, holder in self._holders.items() if holder.expires <= now]:
            self._total -= len(self._holders.pop(key).items)
        self._earliest = min(
            (holder.expires for holder in self._holders.values()), default=now + LEASE
        )


def _number(nar_hash: bytes) -> int:
    return int.from_bytes(nar_hash[:_PREFIX_BYTES])


def _is_in(items: array[int], number: int) -> bool:
    position = bisect_left(items, number)
    return position < len(items) and items[position] == number
