# SPDX-License-Identifier: GPL-3.0-or-later
"""The command as guix-daemon runs it: `substitute --query` or `substitute --substitute`.

Started anew for each session, so nothing is imported here that isn't needed at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from narswarm import settings as narswarm_settings
from narswarm.errors import NarswarmError
from substituter import realguix, report
from substituter.protocol import REPLY_FD
from substituter.settings import SubstituterSettings


def run(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Serve guix-daemon until it closes its end; or become the real guix.

    Args:
        arguments: what follows `substitute` on the command line.
        environ: as guix-daemon gave it.

    When this machine's settings are broken, the real guix does the work: a user never loses by
    having installed this.

    Raises:
        NotFoundError: there is no real guix to hand over to.
    """
    mode = arguments[0] if arguments else ""
    if mode not in ("--query", "--substitute"):
        _hand_over(None, arguments, environ)
    settings: SubstituterSettings | None = None
    try:
        settings = narswarm_settings.load(
            SubstituterSettings, section="substituter", file=None, environ=environ, flags={}
        )
        from substituter.context import Context  # noqa: PLC0415 -- only what is needed

        context = Context(settings, environ)
    except NarswarmError as error:
        report.warn(f"{error}; guix's own substituter is used")
        _hand_over(settings, arguments, environ)
        raise  # not reached: guix has taken over
    if mode == "--query":
        from substituter.query import Query  # noqa: PLC0415

        Query(context, _reply).run(sys.stdin.buffer)
    else:
        from substituter.session import Session  # noqa: PLC0415
        from substituter.substitute import Substitute  # noqa: PLC0415

        Substitute(context, Session(settings, report.warn), _reply).run(sys.stdin.buffer)
    # guix-daemon kills helpers without a word: nothing is left that would need a farewell.
    os._exit(0)


def _reply(data: bytes) -> None:
    """Send an answer; one write suffices for each status, which is shorter than PIPE_BUF."""
    try:
        while data:
            data = data[os.write(REPLY_FD, data) :]
    except BrokenPipeError:
        os._exit(0)


def _hand_over(
    settings: SubstituterSettings | None, arguments: Sequence[str], environ: Mapping[str, str]
) -> None:
    guix = realguix.find(settings.guix if settings else None, environ)
    realguix.hand_over(guix, ["substitute", *arguments], environ)
