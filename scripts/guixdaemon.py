# SPDX-License-Identifier: GPL-3.0-or-later
"""guix-daemon's side of a substituter: commands on descriptor 0, replies on 4, the rest for users.

The demonstration has no guix-daemon, and asks for items as one does.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

DEADLINE: Final = 60.0
"""Seconds that an answer may take."""


class Substituter:
    """The substituter, as long as it is used in a `with`.

    Args:
        command: runs it, a path first.
        environment: all of it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = command
        self._environment = environment

    def __enter__(self) -> Self:
        """Start the long-running one, which substitutes."""
        self._helper = _Helper(self._command, "--substitute", self._environment)
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._helper.end()

    def available(self, path: str) -> bool:
        """Whether `--query` offers the item."""
        query = _Helper(self._command, "--query", self._environment)
        try:
            query.tell(f"info {path} ")
            return b"".join(query.read(query.replies)) != b"\n"
        finally:
            query.end()

    def substitute(self, path: str, destination: Path) -> tuple[str, int]:
        """The status line, and the payload bytes that came from peers."""
        self._helper.tell(f"substitute {path} {destination}")
        status, shown = self._helper.read(self._helper.replies, self._helper.log)
        from_peers = 0
        for line in shown.decode(errors="replace").splitlines():
            words = line.split()
            if words[:2] == ["@", "download-succeeded"] and words[3].startswith("bittorrent:"):
                from_peers = int(words[4])
        return status.decode().strip(), from_peers


class _Helper:
    """A helper process and its pipes.

    Args:
        command: runs it.
        mode: `--query` or `--substitute`.
        environment: all of it.

    Attributes:
        commands: goes to its descriptor 0.
        replies: comes from its descriptor 4.
        log: comes from its descriptors 1 and 2.
    """

    def __init__(self, command: Sequence[str], mode: str, environment: Mapping[str, str]) -> None:
        command_read, self.commands = os.pipe()
        self.replies, reply_write = os.pipe()
        self.log, log_write = os.pipe()
        self._pid = os.posix_spawn(
            command[0],
            [*command, "substitute", mode],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, command_read, 0),
                (os.POSIX_SPAWN_DUP2, log_write, 1),
                (os.POSIX_SPAWN_DUP2, log_write, 2),
                (os.POSIX_SPAWN_DUP2, reply_write, 4),
            ],
        )
        for descriptor in (command_read, reply_write, log_write):
            os.close(descriptor)

    def tell(self, command: str) -> None:
        """Write a line; one that has ended is heard of in `read`."""
        with suppress(BrokenPipeError):
            os.write(self.commands, f"{command}\n".encode())

    def read(self, until: int, *others: int) -> list[bytes]:
        """What comes until something comes on one descriptor, from that and from others."""
        read = dict.fromkeys((until, *others), b"")
        with selectors.DefaultSelector() as selector:
            for descriptor in read:
                selector.register(descriptor, selectors.EVENT_READ)
            while not read[until]:
                if not (events := selector.select(DEADLINE)):
                    sys.exit("the substituter does not answer")
                for key, _ in events:
                    data = os.read(key.fd, 65536)
                    if not data:
                        sys.exit(f"the substituter has ended: {b''.join(read.values())!r}")
                    read[key.fd] += data
            # What it told the user was written before the status.
            while others and (events := selector.select(0.05)):
                for key, _ in events:
                    read[key.fd] += os.read(key.fd, 65536)
        return list(read.values())

    def end(self) -> None:
        """End it as guix-daemon does: by closing its input, and SIGKILL."""
        os.close(self.commands)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self.replies)
        os.close(self.log)
