# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether another user may use a file: what guix-daemon's user will find, seen by somebody else.

Only permission bits count here. What else may bar the way (an access control list of the file
system, AppArmor) is found by doing it, which only that user can.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

READ, WRITE, EXECUTE = 4, 2, 1


class User(NamedTuple):
    """Who wants in: a user and all groups that it has."""

    uid: int
    groups: tuple[int, ...]


class Obstacle(NamedTuple):
    """Where the way ends, and why."""

    path: Path
    reason: str


def obstacle(path: Path, user: User, wanted: int) -> Obstacle | None:
    """What keeps a user from using a file in a way, None if nothing does.

    Args:
        path: of the file or directory; links are followed.
        user: who wants to.
        wanted: READ, WRITE and EXECUTE, added.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        return Obstacle(path, getattr(error, "strerror", None) or "leads nowhere")
    for each, bits in _steps(real, wanted):
        try:
            found = each.stat()
        except OSError as error:
            return Obstacle(each, error.strerror or str(error))
        if not _may(found, user, bits):
            return Obstacle(each, f"user {user.uid} may not {_verb(bits, found)} it")
    return None


def _steps(path: Path, wanted: int) -> Iterator[tuple[Path, int]]:
    for parent in reversed(path.parents):
        yield parent, EXECUTE
    yield path, wanted


def _may(found: os.stat_result, user: User, bits: int) -> bool:
    if user.uid == 0:
        # Root may do anything but run what nobody may run.
        runs = bits & EXECUTE and not stat.S_ISDIR(found.st_mode)
        return not runs or bool(found.st_mode & 0o111)
    shift = 6 if found.st_uid == user.uid else 3 if found.st_gid in user.groups else 0
    return (found.st_mode >> shift) & bits == bits


def _verb(bits: int, found: os.stat_result) -> str:
    if bits & WRITE:
        return "write"
    if bits & READ:
        return "read"
    return "enter" if stat.S_ISDIR(found.st_mode) else "run"
