# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client of guix-daemon is going to have substituted, passed from one helper to the other.

guix-daemon asks one helper about everything that is missing, and then another one for an item at a
time. Only the first knows what will come, and only the second knows that it is really wanted. So
the first writes it down where the second, a child of the same process, finds it; that one has the
seeder fetch ahead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

MAX_ITEMS: Final = 10_000
"""Items of one session that are noted."""

_MAX_BYTES: Final = 4 << 20
_KEEP: Final = 86400.0


class PlanWriter:
    """Notes what a session asks about.

    Args:
        directory: where the notes of all sessions are.
        session: tells this one from others; the same for all helpers of one session.
    """

    def __init__(self, directory: Path, session: int | None = None) -> None:
        self._file = directory / str(os.getppid() if session is None else session)
        self._noted: set[str] = set()

    def add(self, paths: Iterable[str]) -> None:
        """Note store paths, in the order in which they were asked about."""
        new = [path for path in dict.fromkeys(paths) if path not in self._noted]
        new = new[: MAX_ITEMS - len(self._noted)]
        if not new:
            return
        mode = "a" if self._noted else "w"  # what another process of this number has left goes
        self._noted.update(new)
        with contextlib.suppress(OSError, UnicodeEncodeError):
            try:
                file = self._file.open(mode, encoding="ascii")
            except FileNotFoundError:
                self._file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                file = self._file.open(mode, encoding="ascii")
            with file:
                file.write("".join(f"{path}\n" for path in new))


def read(directory: Path, session: int | None = None) -> list[str]:
    """What a session has asked about, the first last: items come after what they refer to."""
    file = directory / str(os.getppid() if session is None else session)
    try:
        with file.open(encoding="ascii", errors="replace") as lines:
            text = lines.read(_MAX_BYTES)
    except OSError:
        return []
    return [line for line in reversed(text.split("\n")) if line]


def claim(directory: Path, session: int | None = None) -> bool:
    """Whether this process is the one that fetches the plan ahead, from now on to its end.

    There are as many helpers of a session as guix-daemon has jobs.
    """
    file = directory / str(os.getppid() if session is None else session)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    _CLAIMED.append(descriptor)
    return True


def release() -> None:
    """Let others fetch the plans that this process has claimed."""
    while _CLAIMED:
        os.close(_CLAIMED.pop())


_CLAIMED: Final[list[int]] = []
"""Descriptors whose locks last as long as the process."""


def prune(directory: Path, now: float | None = None) -> None:
    """Remove notes of sessions that ended."""
    limit = (time.time() if now is None else now) - _KEEP
    with contextlib.suppress(OSError):
        for file in directory.iterdir():
            with contextlib.suppress(OSError):
                ended = file.name.isdecimal() and not os.path.exists(f"/proc/{file.name}")  # noqa: PTH110 -- never raises
                if ended or file.stat().st_mtime < limit:
                    file.unlink()
