# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells systemd how a long-running program is doing (sd_notify(3), sd_watchdog_enabled(3)).

A program that says when it is ready lets others be started after it, and upgrades be judged; one
that says again and again that it is alive is restarted when it no longer does. Without systemd
nothing is said.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_SHARE: Final = 3
"""Of the time that systemd waits for a sign of life, two may get lost."""


class Notifier:
    """Where this process may say how it is.

    Args:
        environ: where systemd left the address; it is taken out, so that neither children nor
            libraries speak in this program's name.
        pid: this process, which a watchdog may be meant for, or not.

    Attributes:
        interval: seconds between two signs of life; None when nobody waits for them.
    """

    def __init__(self, environ: MutableMapping[str, str], pid: int) -> None:
        address, period, meant = (environ.pop(name, "") for name in _VARIABLES)
        # An abstract socket is written with an @.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.interval: float | None = None
        if self._address and period.isdecimal() and int(period) and meant in {"", str(pid)}:
            self.interval = int(period) / 1e6 / _SHARE

    @classmethod
    def of_process(cls) -> Notifier:
        """What systemd told this process; the second time, nothing."""
        return cls(os.environ, os.getpid())

    def ready(self, status: str) -> None:
        """Say that the service is there, and in a few words how it is."""
        self._say(f"READY=1\nSTATUS={_line(status)}")

    def status(self, status: str) -> None:
        """Say in a few words how it is."""
        self._say(f"STATUS={_line(status)}")

    def alive(self) -> None:
        """Give a sign of life."""
        if self.interval is not None:
            self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that it is about to end."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        """Send a datagram; a service doesn't fail because nobody listens, or listens slowly."""
        if not self._address:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with suppress(OSError), socket.socket(socket.AF_UNIX, kind) as channel:
            channel.sendto(text.encode(errors="backslashreplace"), self._address)


def _line(text: str) -> str:
    """One line: each line of a message is a variable of its own."""
    return " ".join(text.split())
