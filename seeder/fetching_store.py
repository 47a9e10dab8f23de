# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk that payloads may take while they are fetched, and until somebody has read them.

Each torrent has a directory of its own, so that two torrents for one NAR, whose files have the same
name, don't meet. What nobody uses stays as long as its room isn't needed: whoever interrupted a
build and starts it again finds what was there.
"""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from narswarm.errors import NarswarmError


class NoRoomError(NarswarmError):
    """A payload doesn't fit beside those that are being fetched."""


@dataclass(slots=True)
class _Place:
    length: int
    users: int


class FetchStore:
    """Directories for payloads, within a quota.

    Args:
        directory: whatever is in it is removed: a process that ended doesn't say how far it was.
        quota: bytes for all of them.

    Raises:
        NarswarmError: the directory can't be made.
    """

    def __init__(self, directory: Path, quota: int) -> None:
        self._directory = directory
        self._quota = quota
        self._mutex = threading.Lock()
        self._places: OrderedDict[str, _Place] = OrderedDict()
        try:
            if directory.exists():
                shutil.rmtree(directory)
            directory.mkdir(parents=True)
        except OSError as error:
            raise NarswarmError(error.filename or directory, error.strerror or str(error)) from None

    @property
    def used(self) -> int:
        """Bytes that are taken, or will be when all is fetched."""
        with self._mutex:
            return sum(place.length for place in self._places.values())

    @property
    def room(self) -> int:
        """Bytes that aren't in use by anybody."""
        with self._mutex:
            return self._quota - self._busy()

    def take(self, infohash: str, length: int) -> Path:
        """A directory for the payload of a torrent, for one more user.

        Args:
            infohash: hexadecimal.
            length: bytes of the payload.

        Raises:
            NoRoomError: it would take more than the quota, even without what nobody uses.
            NarswarmError: the directory can't be made.
        """
        with self._mutex:
            place = self._places.get(infohash)
            if place is None:
                self._make_room(length)
                place = self._places[infohash] = _Place(length, 0)
            place.users += 1
            self._places.move_to_end(infohash)
        path = self._directory / infohash
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            self.give_back(infohash, keep=False)
            raise NarswarmError(path, error.strerror or str(error)) from None
        return path

    def take_again(self, infohash: str) -> bool:
        """Be one more user of what is here; False if it isn't any more."""
        with self._mutex:
            place = self._places.get(infohash)
            if place is not None:
                place.users += 1
            return place is not None

    def give_back(self, infohash: str, *, keep: bool) -> None:
        """Be a user no more.

        Args:
            infohash: hexadecimal.
            keep: leave the files as long as there is room.
        """
        with self._mutex:
            place = self._places.get(infohash)
            if place is None:
                return
            place.users -= 1
            if place.users <= 0 and not keep:
                self._remove(infohash)

    def has(self, infohash: str) -> bool:
        """Whether anything of a torrent is still here."""
        with self._mutex:
            return infohash in self._places

    def _busy(self) -> int:
        return sum(place.length for place in self._places.values() if place.users > 0)

    def _make_room(self, length: int) -> None:
        if self._busy() + length > self._quota:
            raise NoRoomError(
                self._directory, f"has no room for {length} more bytes of {self._quota}"
            )
        idle = [name for name, place in self._places.items() if place.users <= 0]
        used = sum(place.length for place in self._places.values())
        for infohash in idle:
            if used + length <= self._quota:
                return
            used -= self._places[infohash].length
            self._remove(infohash)

    def _remove(self, infohash: str) -> None:
        del self._places[infohash]
        shutil.rmtree(self._directory / infohash, ignore_errors=True)
