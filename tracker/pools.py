# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers as records of bytes in one sorted array: what a swarm is made of.

A peer is a record of 31 bytes (IPv4) or 43 (IPv6), and nothing else: no object, no dictionary
entry. Sorting makes a peer found in logarithmic time and puts the ports of one address side by
side, which is how the number of ports that an address may hold is bounded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

PARTIAL: Final = 1
"""A flag: the peer is a partial seed (BEP 21)."""

COUNTED: Final = 2
"""A flag: its download was counted."""

_TAIL: Final = 25
"""After address and port: 4 bytes of time, 1 of flags, 20 of peer id."""


def tail(now: int, flags: int, peer_id: bytes) -> bytes:
    """What a record has after address and port.

    Args:
        now: when the peer was heard of, in seconds since the epoch.
        flags: PARTIAL, COUNTED, or both.
        peer_id: 20 bytes.
    """
    return b"%b%c%b" % (now.to_bytes(4), flags, peer_id)


class Pool(bytearray):
    """Records of one address family and one role, sorted by (address, port).

    Attributes:
        KEY: bytes of an address with its port.
        STRIDE: bytes of a record.
    """

    __slots__ = ()
    KEY = 0
    STRIDE = 0

    @property
    def size(self) -> int:
        """How many peers are in it."""
        return len(self) // self.STRIDE

    def _find(self, prefix: bytes) -> int:
        """Where the first record stands that isn't below the prefix."""
        stride, size = self.STRIDE, len(prefix)
        return bisect_left(
            range(self.size),
            bytearray(prefix),
            key=lambda index: self[index * stride : index * stride + size],
        )

    def index_of(self, key: bytes) -> int:
        """Where the record of a peer stands, or -1."""
        index = self._find(key)
        start = index * self.STRIDE
        return index if self[start : start + self.KEY] == key else -1

    def flags(self, index: int) -> int:
        """What is remembered of a peer."""
        return self[index * self.STRIDE + self.KEY + 4]

    def refresh(self, index: int, tail: bytes) -> None:
        """Write time, flags and peer id anew."""
        start = index * self.STRIDE
        self[start + self.KEY : start + self.STRIDE] = tail

    def record(self, index: int) -> bytes:
        """All that is kept of a peer."""
        return bytes(self[index * self.STRIDE : (index + 1) * self.STRIDE])

    def _seen(self, index: int) -> int:
        start = index * self.STRIDE + self.KEY
        return int.from_bytes(self[start : start + 4])

    def keys(self) -> set[bytes]:
        """The addresses with ports."""
        return {bytes(self[at : at + self.KEY]) for at in range(0, len(self), self.STRIDE)}

    def take(self, key: bytes) -> int | None:
        """Remove a peer and return its flags, or nothing when it isn't here."""
        index = self.index_of(key)
        if index < 0:
            return None
        flags = self.flags(index)
        del self[index * self.STRIDE : (index + 1) * self.STRIDE]
        return flags

    def add(self, record: bytes) -> None:
        """Insert a peer that isn't here."""
        start = self._find(record[: self.KEY]) * self.STRIDE
        self[start:start] = record

    def make_room(self, network: bytes, allowed: int) -> list[int]:
        """Drop the longest unheard peers of a network until it has fewer than allowed.

        Returns:
            The flags of those that were dropped.
        """
        first = last = self._find(network)
        while self[last * self.STRIDE : last * self.STRIDE + len(network)] == network:
            last += 1
        dropped = []
        for _ in range(last - first - allowed + 1):
            oldest = min(range(first, last), key=self._seen)
            dropped.append(self.flags(oldest))
            del self[oldest * self.STRIDE : (oldest + 1) * self.STRIDE]
            last -= 1
        return dropped

    def expire(self, before: int, unwanted: Callable[[bytes], bool] | None) -> int:
        """Drop peers last heard of before a time, and unwanted addresses; return how many."""
        count = self.size
        kept = [index for index in range(count) if self._seen(index) >= before]
        if unwanted is not None:
            kept = [index for index in kept if not unwanted(self.record(index)[: self.KEY - 2])]
        if len(kept) != count:
            self[:] = b"".join([self.record(index) for index in kept])
        return count - len(kept)

    def partial(self) -> int:
        """How many of the peers are partial seeds."""
        return sum(flags & PARTIAL for flags in self[self.KEY + 4 :: self.STRIDE])

    def choose(self, limit: int, rng: Random, without: int = -1) -> Sequence[int]:
        """Where at most `limit` different records begin; each has the same chance.

        They are taken at equal distances from a random one on. That is as fair as to draw each
        by itself, takes a fifth of the time, and a list has few peers of one host, whose
        records stand side by side.

        Args:
            limit: how many at most.
            rng: what chooses.
            without: a record that isn't chosen.
        """
        stride = self.STRIDE
        size = len(self) // stride - (without >= 0)
        if size <= limit:
            chosen: Sequence[int] = range(0, size * stride, stride)
        else:
            first = int(rng.random() * size)
            chosen = [(first + n * size // limit) % size * stride for n in range(limit)]
        if without < 0:
            return chosen
        skipped = without * stride
        return [offset if offset < skipped else offset + stride for offset in chosen]

    def addresses(self, offsets: Sequence[int]) -> bytes:
        """The addresses with ports of the records that begin there, one after the other."""
        return self._cut(offsets, 0, self.KEY)

    def ids(self, offsets: Sequence[int]) -> bytes:
        """The peer ids of the same, one after the other."""
        return self._cut(offsets, self.KEY + 5, self.STRIDE)

    def _cut(self, offsets: Sequence[int], start: int, end: int) -> bytes:
        return b"".join([self[offset + start : offset + end] for offset in offsets])


class Pool4(Pool):
    """Records of IPv4 peers: 31 bytes each."""

    __slots__ = ()
    KEY = 6
    STRIDE = KEY + _TAIL


class Pool6(Pool):
    """Records of IPv6 peers: 43 bytes each."""

    __slots__ = ()
    KEY = 18
    STRIDE = KEY + _TAIL
