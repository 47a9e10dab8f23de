# SPDX-License-Identifier: GPL-3.0-or-later
"""What guix-daemon may run as its `guix`: the substituter at once, and guix itself for the rest.

By Guix's extension each helper begins with the start of guix, which takes as long as all of a small
item. `GUIX` of the daemon's environment spares that, but then everything that the daemon runs
depends on it. So it names a few lines of shell that need nothing but guix itself, and only
where the daemon is one of a distribution's package: one from `guix pull` sets `GUIX` itself, and
profiles of AppArmor let those of the store run nothing outside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

LAUNCHER: Final = Path("usr/local/lib/narswarm/bin/guix")
MODE: Final = 0o755
"""Build users run it, too."""

PLAIN: Final = re.compile(r"/[A-Za-z0-9/._+@~-]+")
"""Paths that mean the same in a unit and in a shell."""

_START: Final = re.compile(r"^ExecStart=[ \t]*(.*)$", re.MULTILINE)
_SETS: Final = re.compile(r"^Environment=.*\bGUIX=", re.MULTILINE)
_SPECIAL: Final = "@-:+!|"
"""What may stand before a program in a unit (systemd.service(5))."""

_ELF: Final = b"\x7fELF"
_PROFILES: Final = Path("etc/apparmor.d")

_TEXT: Final = """\
#!/bin/sh
# Written by `substituter install`; `substituter uninstall` takes it away.
# What guix-daemon runs as guix. When the substituter is gone or can't be started, guix does it all.
program={program}
if [ "$1" = substitute ] && [ -x $program ]; then
    # A shell ends when it can't run what it becomes, as when an upgrade has taken Python away.
    read -r line <$program
    case $line in
    "#!"*) line=${{line#"#!"}}; line=${{line# }}; interpreter=${{line%% *}} ;;
    *) interpreter=$program ;;
    esac
    [ -x "$interpreter" ] && exec $program "$@"
fi
exec {guix} "$@"
"""


def text(program: Path, guix: Path) -> bytes:
    """The launcher.

    Args:
        program: the substituter.
        guix: the real one; both are `PLAIN`.
    """
    return _TEXT.format(program=program, guix=guix).encode()


def real_guix(root: Path, units: Iterable[str]) -> Path | None:
    """The guix that goes with a daemon which takes `GUIX`; None where that isn't certain.

    Args:
        root: of the system.
        units: texts of the daemon's unit and of what is dropped in, those that count more last.
    """
    texts = list(units)
    starts = [line for each in texts for line in _START.findall(each) if line.strip()]
    if not starts or any(_SETS.search(each) for each in texts):
        return None
    daemon = starts[-1].split()[0].lstrip(_SPECIAL)
    if not PLAIN.fullmatch(daemon):
        return None
    try:
        base = root.resolve()
        real = (root / daemon.lstrip("/")).resolve(strict=True).relative_to(base)
        with (base / real).open("rb") as file:
            is_program = file.read(len(_ELF)) == _ELF  # and no script that sets GUIX
    except (OSError, ValueError, RuntimeError):
        return None
    if not is_program or real.parts[:2] == ("gnu", "store") or _is_confined(root, daemon):
        return None
    guix = Path(daemon).with_name("guix")
    file_ = root / str(guix).lstrip("/")
    return guix if file_.is_file() and os.access(file_, os.X_OK) else None


def is_one(guix: str) -> bool:
    """Whether what `GUIX` says leads to the substituter: this one, or the program itself."""
    return guix == f"/{LAUNCHER}" or Path(guix).name == "substituter"


def _is_confined(root: Path, daemon: str) -> bool:
    """Whether a profile of AppArmor names the daemon, and may forbid it to run the launcher."""
    return any(daemon in each for each in _profiles(root / _PROFILES))


def _profiles(directory: Path) -> Iterator[str]:
    try:
        files = [each for each in directory.iterdir() if each.is_file()]
    except OSError:
        return
    for each in files:
        try:
            yield each.read_text(errors="replace")
        except OSError:
            continue
