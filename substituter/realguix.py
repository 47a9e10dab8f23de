# SPDX-License-Identifier: GPL-3.0-or-later
"""The guix that this program stands in for: found, and run when it is its turn."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from narswarm.errors import NarswarmError, NotFoundError
from substituter.protocol import REPLY_FD
from substituter.settings import SubstituterSettings

_USUAL = (
    "/run/current-system/profile/bin/guix",
    "/var/guix/profiles/per-user/root/current-guix/bin/guix",
    "/usr/local/bin/guix",
    "/usr/bin/guix",
)
_MAX_STATUS = 4096


def find(configured: Path | None, environ: Mapping[str, str]) -> str:
    """The path of the real guix.

    Args:
        configured: what the settings name.
        environ: for `PATH`.

    Raises:
        NotFoundError: there is none but this program.
    """
    import shutil  # noqa: PLC0415 -- not needed as long as guix isn't

    candidates = [str(configured)] if configured else []
    candidates += filter(None, [shutil.which("guix", path=environ.get("PATH"))])
    candidates += _USUAL
    ourselves = _resolve(sys.argv[0])
    for candidate in candidates:
        # X_OK alone is also true of directories.
        usable = os.path.isfile(candidate) and os.access(candidate, os.X_OK)  # noqa: PTH113
        if usable and _resolve(candidate) != ourselves:
            return candidate
    raise NotFoundError("guix", "the real one is neither configured nor in a usual place")


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment in which guix runs its own `substitute`, not this one again."""
    return {
        name: value
        for name, value in given(environ).items()
        if name not in ("GUIX_EXTENSIONS_PATH", "GUIX")
    }


def given(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what Python has added: a LC_CTYPE in the locale C (PEP 538)."""
    kept = dict(environ)
    with contextlib.suppress(OSError):
        # What the kernel shows is what the process began with.
        if b"\0LC_CTYPE=" not in b"\0" + Path("/proc/self/environ").read_bytes():
            kept.pop("LC_CTYPE", None)
    return kept


def configured(environ: Mapping[str, str]) -> Path | None:
    """What the settings name as the real guix, as far as they can be read.

    Build users run some of the commands that are handed over; the settings may not be for them.
    """
    from narswarm import settings  # noqa: PLC0415 -- not needed by those who have the settings

    try:
        return settings.load(SubstituterSettings, "substituter", environ=environ).guix
    except NarswarmError:
        named = environ.get("NARSWARM_SUBSTITUTER_GUIX")
        return Path(named) if named else None


def hand_over(guix: str, arguments: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Become guix, for every command that isn't ours.

    Raises:
        NotFoundError: it can't be run after all.
    """
    # Only `substitute` could lead back here; the others keep the extensions that a user has.
    ours = arguments[:1] == ["substitute"]
    try:
        os.execve(  # noqa: S606 -- no shell wanted
            guix, [guix, *arguments], environment(environ) if ours else given(environ)
        )
    except OSError as error:
        raise NotFoundError(guix, error.strerror or str(error)) from error


def substitute(guix: str, item: str, destination: str, environ: Mapping[str, str]) -> bytes:
    """Let guix's own helper substitute one item.

    Its progress goes to the user directly. It is in this process group, so that guix-daemon's
    SIGKILL ends it too.

    Returns:
        its status line with the newline, or b"" if it gave none.
    """
    command_read, command_write = os.pipe()
    reply_read, reply_write = os.pipe()
    # The reply descriptor is 4 by contract; dup2 in the child, after these were moved away.
    actions: list[tuple[int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_DUP2, command_read, 0),
        (os.POSIX_SPAWN_DUP2, reply_write, REPLY_FD),
    ]
    try:
        child = os.posix_spawn(
            guix,
            [guix, "substitute", "--substitute"],
            environment(environ),
            file_actions=actions,
        )
    except OSError:
        for descriptor in (command_read, command_write, reply_read, reply_write):
            os.close(descriptor)
        return b""
    os.close(command_read)
    os.close(reply_write)
    with open(reply_read, "rb") as replies, open(command_write, "wb", buffering=0) as commands:
        with contextlib.suppress(BrokenPipeError):
            commands.write(f"substitute {item} {destination}\n".encode())
        status = replies.readline(_MAX_STATUS)
    os.waitpid(child, 0)
    return status if status.endswith(b"\n") else b""


def _resolve(path: str) -> str:
    import shutil  # noqa: PLC0415

    return os.path.realpath(shutil.which(path) or path)
