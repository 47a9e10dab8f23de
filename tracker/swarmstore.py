# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tracker asks of the place where swarms are kept, and the one that is a process's memory.

The announcer knows policy and index, and a store knows who is where; which store it is doesn't show
in any answer. Stores may be asked from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from random import Random
from time import perf_counter, sleep
from typing import NamedTuple, Protocol

from narswarm.errors import NarswarmError
from tracker.swarms import Answer, Limits, Swarms
from tracker.wire_http import AnnounceRequest, Counts, Event

SWEEP = 100
"""How many swarms are looked at for silent peers before somebody else has a turn."""

PAUSE_RATIO = 4
"""How many times as long as such a look the pause is that follows."""

LONGEST_PAUSE = 0.02
"""Seconds, however long it took."""


def give_way(took: float) -> None:
    """Pause between two parts of a sweep: who waits for a lock needs a moment to wake.

    Otherwise the sweep would nearly always have it again before, until all of it is done.

    Args:
        took: seconds that the part before took.
    """
    sleep(min(PAUSE_RATIO * took, LONGEST_PAUSE))


class StoreDownError(NarswarmError):
    """The store doesn't answer now; it may soon."""


class SwarmTotals(NamedTuple):
    """All swarms in numbers: how many there are, and how many peers by role and family."""

    swarms: int
    seeders_ipv4: int
    seeders_ipv6: int
    leechers_ipv4: int
    leechers_ipv6: int


class Asked(NamedTuple):
    """One announce as a store takes it.

    Attributes:
        request: what the client said.
        address: where it said it from, 4 or 16 bytes.
        numwant: how many peers it gets at most.
        now: seconds since the epoch.
    """

    request: AnnounceRequest
    address: bytes
    numwant: int
    now: int


class SwarmStore(Protocol):
    """Keeps swarms.

    What asks for peers or counts, and `expire`, raise `StoreDownError` where a store is another
    process that doesn't answer; everything else does what it can.
    """

    def announce(self, request: AnnounceRequest, address: bytes, numwant: int, now: int) -> Answer:
        """Take in one announce and choose peers for the asker; see `Swarms.announce`."""

    def announce_many(self, asked: Sequence[Asked]) -> list[Answer]:
        """Take in several announces, in their order, in one go."""

    def counts(self, info_hashes: Sequence[bytes]) -> list[Counts]:
        """The numbers of swarms, all zero where nobody ever was."""

    def sample(self, info_hashes: Sequence[bytes], limit: int) -> tuple[Counts, list[bytes]]:
        """Look at several swarms as if they were one; see `Swarms.sample`."""

    def expire(self, now: int, unwanted: Callable[[bytes], bool] | None = None) -> int:
        """Forget all peers that fell silent, without being in the way of announces meanwhile.

        Args:
            now: seconds since the epoch.
            unwanted: whether to forget the peers at an address, 4 or 16 bytes, in any case.

        Returns:
            How many were forgotten.
        """

    def restore(self, downloads: Mapping[bytes, int]) -> None:
        """Begin with numbers of downloads, by infohash, that were kept elsewhere."""

    def take_downloads(self) -> dict[bytes, int]:
        """The numbers of downloads that changed here since this was asked the last time."""

    def give_back_downloads(self, downloads: Mapping[bytes, int]) -> None:
        """Have numbers that could not be kept be handed out again."""

    def limit(self, limits: Limits) -> None:
        """Set other limits. Who is there beyond them stays until it falls silent."""

    def totals(self) -> SwarmTotals:
        """How many swarms and peers there are."""

    def check(self) -> None:
        """See whether the store answers.

        Raises:
            StoreDownError: it doesn't.
        """

    def close(self) -> None:
        """Let go of what it holds."""


class MemorySwarms:
    """Swarms in this process's memory, behind one lock.

    Args:
        limits: what bounds them.
        keep_downloads: remember how often a swarm was downloaded after its last peer left.
        rng: what chooses peers.
    """

    def __init__(self, limits: Limits, *, keep_downloads: bool, rng: Random | None = None) -> None:
        self.limits = limits
        """What bounds them now."""
        self._swarms = Swarms(limits, keep_downloads=keep_downloads)
        self._rng = rng or Random()  # noqa: S311 - it chooses peers, and keeps no secret
        self._lock = threading.Lock()
        self._sweeping = threading.Lock()
        self._completed: set[bytes] = set()

    def announce(self, request: AnnounceRequest, address: bytes, numwant: int, now: int) -> Answer:
        """Take in one announce."""
        with self._lock:
            if request.event is Event.COMPLETED:
                self._completed.add(request.info_hash)
            return self._swarms.announce(request, address, numwant, now, self._rng)

    def announce_many(self, asked: Sequence[Asked]) -> list[Answer]:
        """Take in several announces."""
        return [self.announce(*each) for each in asked]

    def counts(self, info_hashes: Sequence[bytes]) -> list[Counts]:
        """The numbers of swarms."""
        with self._lock:
            return [self._swarms.counts(info_hash) for info_hash in info_hashes]

    def sample(self, info_hashes: Sequence[bytes], limit: int) -> tuple[Counts, list[bytes]]:
        """Look at several swarms as if they were one."""
        with self._lock:
            return self._swarms.sample(list(info_hashes), limit, self._rng)

    def expire(self, now: int, unwanted: Callable[[bytes], bool] | None = None) -> int:
        """Forget peers that fell silent; announces have their turns in between."""
        expired, finished = 0, False
        with self._sweeping:
            while not finished:
                began = perf_counter()
                with self._lock:
                    swept = self._swarms.expire(now, SWEEP, unwanted)
                expired += swept.expired
                finished = swept.finished
                if not finished:
                    give_way(perf_counter() - began)
        return expired

    def restore(self, downloads: Mapping[bytes, int]) -> None:
        """Begin with numbers of downloads."""
        with self._lock:
            self._swarms.restore(downloads)

    def take_downloads(self) -> dict[bytes, int]:
        """The numbers of downloads that changed."""
        with self._lock:
            completed, self._completed = self._completed, set()
            return {info_hash: self._swarms.counts(info_hash).downloaded for info_hash in completed}

    def give_back_downloads(self, downloads: Mapping[bytes, int]) -> None:
        """Have numbers be handed out again."""
        with self._lock:
            self._completed.update(downloads)

    def limit(self, limits: Limits) -> None:
        """Set other limits."""
        with self._lock:
            self.limits = limits
            self._swarms.limit(limits)

    def totals(self) -> SwarmTotals:
        """How many swarms and peers there are."""
        with self._lock:
            return SwarmTotals(len(self._swarms), *self._swarms.totals)

    def check(self) -> None:
        """Memory always answers."""

    def close(self) -> None:
        """Nothing is held outside of the process."""
