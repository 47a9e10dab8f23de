# SPDX-License-Identifier: GPL-3.0-or-later
"""The guix-daemon that runs on this machine, as the kernel shows it.

Its command line says which substitute servers it asks, and its environment whether it will run the
substituter. Anybody may read the one; the other is for its own user and for root.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")

DEFAULT_URLS: Final = ("https://bordeaux.guix.gnu.org", "https://ci.guix.gnu.org")
"""What guix-daemon asks when it isn't told (`guix/store.scm` of Guix 1.5)."""

_NAME: Final = "guix-daemon"
_MAX_FILE: Final = 1 << 20
_OPTION: Final = "--substitute-urls"


class Daemon(NamedTuple):
    """A guix-daemon, and not one of the processes that it makes for its clients.

    Attributes:
        pid: its process.
        uid: whose it is.
        groups: the groups that it has, its own first.
        argv: its command line.
        environ: its environment, None where this user may not see it.
    """

    pid: int
    uid: int
    groups: tuple[int, ...]
    argv: tuple[str, ...]
    environ: Mapping[str, str] | None

    @property
    def substitute_urls(self) -> tuple[str, ...]:
        """The servers that it was told to ask, or else Guix's own."""
        return _urls(self.argv)

    @property
    def substitutes(self) -> bool:
        """Whether it uses substitutes at all."""
        return "--no-substitutes" not in self.argv


def find(proc: Path = PROC) -> list[Daemon]:
    """All guix-daemons of this system, those in containers with another root left out."""
    found: dict[int, tuple[Daemon, int]] = {}
    for directory in _processes(proc):
        seen = _look(directory)
        if seen is not None:
            found[seen[0].pid] = seen
    here = _root(proc / "self")
    return [
        daemon
        for pid, (daemon, parent) in sorted(found.items())
        if parent not in found and _root(proc / str(pid)) in {None, here}
    ]


def substitute_urls(proc: Path = PROC) -> tuple[str, ...]:
    """What the daemon of this machine asks, or what one would ask."""
    daemons = find(proc)
    return daemons[0].substitute_urls if daemons else DEFAULT_URLS


def _processes(proc: Path) -> Iterator[Path]:
    try:
        yield from (each for each in proc.iterdir() if each.name.isdecimal())
    except OSError:
        return


def _look(directory: Path) -> tuple[Daemon, int] | None:
    """A process and its parent, if it is what we look for."""
    argv = _texts(directory / "cmdline")
    if not argv or argv[0].rpartition("/")[2] != _NAME:
        return None
    status = dict(
        line.split(":", 1) for line in _read(directory / "status").split("\n") if ":" in line
    )
    try:
        # Real, effective, saved and file system's; the second counts.
        uid, gid = (int(status[name].split()[1]) for name in ("Uid", "Gid"))
        parent = int(status["PPid"])
        groups = tuple(int(each) for each in status.get("Groups", "").split())
    except (KeyError, ValueError, IndexError):
        return None
    pairs = _texts(directory / "environ")
    environ = None if pairs is None else dict(p.split("=", 1) for p in pairs if "=" in p)
    daemon = Daemon(int(directory.name), uid, (gid, *groups), tuple(argv), environ)
    return daemon, parent


def _texts(file: Path) -> list[str] | None:
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_FILE)
    except OSError:
        return None
    return [each.decode(errors="surrogateescape") for each in data.split(b"\0") if each]


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _root(directory: Path) -> tuple[int, int] | None:
    """Which directory a process calls `/`, None where that can't be seen."""
    try:
        found = (directory / "root").stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _urls(argv: Sequence[str]) -> tuple[str, ...]:
    value = None
    for index, word in enumerate(argv):
        if word.startswith(f"{_OPTION}="):
            value = word.partition("=")[2]
        elif word == _OPTION and index + 1 < len(argv):
            value = argv[index + 1]
    return DEFAULT_URLS if value is None else tuple(value.split())
