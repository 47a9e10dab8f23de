# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk that payloads may take, shared out while they are made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from narswarm.errors import NarswarmError


class FullError(NarswarmError):
    """No room for a payload: the quota is used up, or the disk is full."""


class Claim:
    """What one payload takes while it is made."""

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take
        self.size = 0
        self._ahead = 0

    def reserve(self, size: int) -> None:
        """Take bytes before they are known in detail.

        Raises:
            FullError: there is no room for them.
        """
        self._take(size)
        self.size += size
        self._ahead += size

    def take(self, size: int) -> None:
        """Take bytes that are about to be written.

        Raises:
            FullError: there is no room for them.
        """
        reserved = min(size, self._ahead)
        self._ahead -= reserved
        if size > reserved:
            self._take(size - reserved)
            self.size += size - reserved


class Room:
    """The quota.

    Args:
        directory: of payloads, the subject of errors.
        quota: bytes that all of them may take.
        used: asked how many bytes complete ones take.
        evict: removes payloads until a number of bytes are free, as far as it can.
    """

    def __init__(
        self,
        directory: Path,
        quota: int,
        used: Callable[[], int],
        evict: Callable[[int], None],
    ) -> None:
        self._directory = directory
        self._quota = quota
        self._used = used
        self._evict = evict
        self._lock = threading.Lock()
        self._claimed = 0

    @contextmanager
    def claim(self, *, evict: bool) -> Iterator[Claim]:
        """Room for one payload; when the block ends, the payload is complete or gone.

        Args:
            evict: make room by removing others.
        """
        claim = Claim(lambda size: self._take(size, evict=evict))
        try:
            yield claim
        finally:
            with self._lock:
                self._claimed -= claim.size

    def _take(self, size: int, *, evict: bool) -> None:
        with self._lock:
            free = self._quota - self._used() - self._claimed
            if free < size and evict and size <= self._quota:
                self._evict(size - free)
                free = self._quota - self._used() - self._claimed
            if free < size:
                raise FullError(self._directory, f"may hold {self._quota} bytes and is full")
            self._claimed += size
