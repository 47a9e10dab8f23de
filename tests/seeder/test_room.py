# SPDX-License-Identifier: GPL-3.0-or-later
"""The quota, shared out while payloads are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from seeder.room import FullError, Room

DIRECTORY = Path("/payloads")


class Disk:
    """Payloads of one byte count, in the test's hands."""

    def __init__(self, used: int = 0, evictable: int = 0) -> None:
        self.used = used
        self.evictable = evictable
        self.asked: list[int] = []
        self.room = Room(DIRECTORY, 100, lambda: self.used, self._evict)

    def _evict(self, needed: int) -> None:
        self.asked.append(needed)
        if needed <= self.evictable:
            self.used -= needed
            self.evictable -= needed


def test_claims_add_up() -> None:
    """Two payloads that are made at the same time don't take the same room."""
    disk = Disk(used=10)
    with disk.room.claim(evict=False) as first, disk.room.claim(evict=False) as second:
        first.take(50)
        second.take(40)
        with pytest.raises(FullError) as caught:
            second.take(1)
    assert str(caught.value) == "/payloads: may hold 100 bytes and is full"
    with disk.room.claim(evict=False) as third:
        third.take(90)


def test_what_was_reserved_needn_t_be_taken_again() -> None:
    """A payload of known length makes room once, and before it is begun."""
    disk = Disk()
    with disk.room.claim(evict=False) as claim:
        claim.reserve(90)
        with pytest.raises(FullError), disk.room.claim(evict=False) as other:
            other.take(11)
        claim.take(50)
        claim.take(45)
        with pytest.raises(FullError):
            claim.take(6)


def test_room_is_made() -> None:
    """As much as is missing; if that can't be, nothing is claimed."""
    disk = Disk(used=95, evictable=50)
    with disk.room.claim(evict=True) as claim:
        claim.take(20)
        assert (disk.asked, disk.used) == ([15], 80)
        with pytest.raises(FullError):
            claim.take(40)
    assert disk.asked == [15, 40]


def test_room_is_not_made_for_what_can_t_fit() -> None:
    """Something larger than the quota doesn't cost the others their place."""
    disk = Disk(used=95, evictable=95)
    with pytest.raises(FullError), disk.room.claim(evict=True) as claim:
        claim.reserve(101)
    with pytest.raises(FullError), disk.room.claim(evict=False) as claim:
        claim.take(6)
    assert disk.asked == []
