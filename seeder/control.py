# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the seeder of a state directory through its Unix socket.

Everybody on the machine may ask how the seeder is doing; there is nothing yet that a request could
change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from narswarm.control import Control
from narswarm.errors import BusyError, NotFoundError
from seeder.state import holder

MODE = 0o666
"""Permissions of the socket."""

TIMEOUT = 10.0


def ask(directory: Path, name: str, *, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Ask the seeder of a state directory.

    Raises:
        NotFoundError: no seeder runs there.
        BusyError: one runs, but doesn't answer: it may be starting.
        NarswarmError: what it answers is an error.
    """
    try:
        with Control(directory, "seeder", timeout=timeout) as control:
            return control.ask(name)
    except (BusyError, NotFoundError):
        pid = holder(directory)
        if pid is None:
            raise
        raise BusyError(
            directory, f"the seeder with process id {pid} does not answer (yet)"
        ) from None
