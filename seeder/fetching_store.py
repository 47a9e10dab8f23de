# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk that payloads may take while they are fetched, and until somebody has read them.

Each torrent has a directory of its own, so that two torrents for one NAR, whose files have the same
name, don't meet. What nobody uses stays for a week as long as its room isn't needed: whoever
interrupted a build and starts it again finds what was there, and so does a seeder that was started
again, or killed. Nothing is written down of how far a payload is, so nothing of that can be wrong:
whoever goes on with a file has its pieces hashed first.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from narswarm.errors import NarswarmError

KEEP: Final = 7 * 86_400.0
"""Seconds that a payload stays which nobody uses."""

_NAME: Final = re.compile(r"[0-9a-f]{1,64}")
_BLOCK: Final = 512
"""Bytes in which the system counts what a file takes."""


class NoRoomError(NarswarmError):
    """A payload doesn't fit beside those that are being fetched."""


@dataclass(slots=True)
class _Place:
    length: int
    users: int
    used: float


class FetchStore:
    """Directories for payloads, within a quota.

    Args:
        directory: with what an earlier process left; what that can't have left is removed.
        quota: bytes for all of them.
        clock: seconds since the epoch.

    Raises:
        NarswarmError: the directory can't be made.
    """

    def __init__(self, directory: Path, quota: int, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._directory = directory
        self._quota = quota
        self._mutex = threading.Lock()
        self._places: OrderedDict[str, _Place] = OrderedDict()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._find()
        except OSError as error:
            raise NarswarmError(error.filename or directory, error.strerror or str(error)) from None
        self.expire()
        self._make_room(0)

    def _find(self) -> None:
        """Take over what an earlier process left."""
        found = []
        for entry in os.scandir(self._directory):
            if entry.is_dir(follow_symlinks=False) and _NAME.fullmatch(entry.name):
                length = sum(
                    each.stat(follow_symlinks=False).st_blocks * _BLOCK
                    for each in os.scandir(entry.path)
                )
                if length:
                    used = entry.stat(follow_symlinks=False).st_mtime
                    found.append((used, entry.name, length))
                    continue
            _delete(Path(entry.path))
        for used, name, length in sorted(found):
            self._places[name] = _Place(length, 0, used)

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

    @property
    def is_roomy(self) -> bool:
        """Whether at most half of it is in use by anybody."""
        return 2 * self.room >= self._quota

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
            if place is None or place.length < length:
                # What is here of it already takes a part of its own room.
                here = self._places.pop(infohash, None)
                try:
                    self._make_room(length)
                except NoRoomError:
                    if here is not None:
                        self._places[infohash] = here
                    raise
                users = 0 if here is None else here.users
                place = self._places[infohash] = _Place(length, users, 0.0)
            if not place.users:
                place.length = length  # of what was found it wasn't known
            place.users += 1
            self._use(infohash, place)
        path = self._directory / infohash
        try:
            path.mkdir(exist_ok=True)
            self._stamp(infohash)
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
            self._use(infohash, place)
            if place.users <= 0 and not keep:
                self._remove(infohash)
            else:
                self._stamp(infohash)

    def expire(self) -> None:
        """Remove what nobody has used for long."""
        with self._mutex:
            now = self._clock()
            for infohash, place in list(self._places.items()):
                if place.users <= 0 and not -KEEP <= now - place.used < KEEP:
                    self._remove(infohash)

    def has(self, infohash: str) -> bool:
        """Whether anything of a torrent is still here."""
        with self._mutex:
            return infohash in self._places

    def _use(self, infohash: str, place: _Place) -> None:
        place.used = self._clock()
        self._places.move_to_end(infohash)

    def _stamp(self, infohash: str) -> None:
        """Note when a place was used last, for a later process."""
        now = self._clock()
        with suppress(OSError):
            os.utime(self._directory / infohash, (now, now))

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
        _delete(self._directory / infohash)


def _delete(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
