# SPDX-License-Identifier: GPL-3.0-or-later
"""The command as guix-daemon runs it: `substitute --query` or `substitute --substitute`.

Started anew for each session, so nothing is imported here that isn't needed at once.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, NoReturn

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
        NarswarmError: this isn't run by guix-daemon.
    """
    mode = arguments[0] if arguments else ""
    if mode not in ("--query", "--substitute"):
        _hand_over(arguments, environ)
    try:
        # Else the first file that is opened here would be taken for the daemon.
        os.fstat(REPLY_FD)
    except OSError as error:
        raise NarswarmError(
            mode, f"descriptor {REPLY_FD} is not open; guix-daemon runs this"
        ) from error
    serve = _prepare(mode, arguments, environ)
    # `cli` has turned it off while modules are loaded, which are never looked at from now on.
    gc.freeze()
    gc.enable()
    serve(sys.stdin.buffer)
    # guix-daemon kills helpers without a word: nothing is left that would need a farewell.
    os._exit(0)


def _prepare(
    mode: str, arguments: Sequence[str], environ: Mapping[str, str]
) -> Callable[[BinaryIO], None]:
    """What serves the daemon; hands over to guix when there is no such thing."""
    try:
        settings = narswarm_settings.load(
            SubstituterSettings, section="substituter", file=None, environ=environ, flags={}
        )
        from substituter.context import Context  # noqa: PLC0415 -- only what is needed

        context = Context(settings, environ)
        if mode == "--query":
            from substituter.query import Query  # noqa: PLC0415

            return Query(context, _reply).run
        from substituter.session import Session  # noqa: PLC0415
        from substituter.substitute import Substitute  # noqa: PLC0415

        return Substitute(context, Session(settings, report.warn), _reply).run
    except Exception as error:  # noqa: BLE001 -- also a module that is missing mustn't stop builds
        what = str(error) if isinstance(error, NarswarmError) else repr(error)
        report.warn(f"{what}; guix's own substituter is used")
        _hand_over(arguments, environ)


def _reply(data: bytes) -> None:
    """Send an answer; one write suffices for each status, which is shorter than PIPE_BUF."""
    try:
        while data:
            data = data[os.write(REPLY_FD, data) :]
    except OSError:
        os._exit(0)  # nobody is there to answer to


def _hand_over(arguments: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    guix = realguix.find(realguix.configured(environ), environ)
    realguix.hand_over(guix, ["substitute", *arguments], environ)
