# SPDX-License-Identifier: GPL-3.0-or-later
"""The seeder's Unix sockets: one in its state directory, one where everybody finds it.

Everybody on the machine may ask how the seeder is doing; what changes anything is for those in the
settings.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from narswarm.control import Control, ControlServer, Operation, Permission, Stream, near
from narswarm.errors import BusyError, NotFoundError
from seeder.state import holder

log = logging.getLogger(__name__)

MODE = 0o666
"""Permissions of the socket."""

TIMEOUT = 10.0


def ask(directory: Path, name: str, *, timeout: float = TIMEOUT, **more: Any) -> dict[str, Any]:
    """Ask the seeder of a state directory.

    Args:
        directory: of its state.
        name: of the operation.
        timeout: seconds for an answer.
        more: what the operation needs.

    Raises:
        NotFoundError: no seeder runs there.
        BusyError: one runs, but doesn't answer: it may be starting.
        NarswarmError: what it answers is an error.
    """
    with _connected(directory, timeout) as control:
        return control.ask(name, **more)


def items(directory: Path, *, timeout: float = TIMEOUT) -> Iterator[dict[str, Any]]:
    """All items of the seeder of a state directory, as it lists them.

    Raises:
        NotFoundError: no seeder runs there.
        BusyError: one runs, but doesn't answer.
    """
    with _connected(directory, timeout) as control:
        answer = control.ask("list")
        yield from answer["items"]
        while answer["more"]:
            answer = control.next()
            yield from answer["items"]


@contextmanager
def _connected(directory: Path, timeout: float) -> Iterator[Control]:
    try:
        with Control(directory, "seeder", timeout=timeout) as control:
            yield control
    except (BusyError, NotFoundError):
        pid = holder(directory)
        if pid is None:
            raise
        raise BusyError(
            directory, f"the seeder with process id {pid} does not answer (yet)"
        ) from None


@contextmanager
def listening(
    paths: Sequence[Path],
    operations: Mapping[str, Operation],
    streams: Mapping[str, Stream],
    permitted: Permission,
) -> Iterator[None]:
    """Answer on sockets as long as this context lasts.

    Args:
        paths: the first has to work; others are passed over where they can't be made, or where
            another seeder answers.
        operations: what can be asked.
        streams: the same for operations that answer by themselves.
        permitted: who may ask for what.

    Raises:
        OSError: the first can't be made.
    """
    with ExitStack() as stack:
        for number, path in enumerate(paths):
            if number and not _free(path):
                continue
            server = ControlServer(
                path.parent,
                operations,
                mode=MODE,
                streams=streams,
                permitted=permitted,
                name=path.name,
            )
            stack.callback(server.close)
        yield


def _free(path: Path) -> bool:
    """Whether a socket can be made here, and isn't another seeder's."""
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return False
    with socket.socket(socket.AF_UNIX) as probe, near(path.parent) as directory:
        try:
            probe.connect(str(directory / path.name))
        except OSError:
            return True
    log.info("%s: another seeder listens there", path)
    return False
