# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the program as guix-daemon runs its helpers: descriptors, directory and environment."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from substituter.settings import SubstituterSettings

ROOT = Path(__file__).parents[2]

PROGRAM = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from substituter.cli import main; main()"
"""What the installed command does, isolated from the caller's directory and environment."""

TIMEOUT = 120.0
"""Seconds after which a test has failed; nothing waits that long when all is well."""


def config(settings: SubstituterSettings, file: Path, *lines: str) -> Path:
    """Write a settings file with what matters on loopback."""
    text = [
        "[substituter]",
        f'state = "{settings.state}"',
        f'acl = "{settings.acl}"',
        f'guix = "{settings.guix}"',
        'seeder = ""',
        "dht = false",
        "lsd = false",
        'listen = ["127.0.0.1:0"]',
        *lines,
    ]
    file.write_text("\n".join(text) + "\n")
    return file


def script(path: Path, text: str) -> Path:
    """An executable in guix's place."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class Helper:
    """A helper process; what it writes to descriptor 4 comes as packets, one for each write.

    Args:
        arguments: of the program.
        environ: all of its environment.
        python: options of the interpreter.
        program: what the interpreter runs.
        reply: whether descriptor 4 is open.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        *,
        python: Sequence[str] = (),
        program: str = PROGRAM,
        reply: bool = True,
    ) -> None:
        command_read, self._commands = os.pipe()
        self.replies, reply_write = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        self._shown_read, shown_write = os.pipe()
        actions: list[tuple[int, int] | tuple[int, int, int]] = [
            (os.POSIX_SPAWN_DUP2, command_read, 0),
            (os.POSIX_SPAWN_DUP2, shown_write, 1),
            (os.POSIX_SPAWN_DUP2, shown_write, 2),
        ]
        if reply:
            actions.append((os.POSIX_SPAWN_DUP2, reply_write, 4))
        interpreter = [sys.executable, "-I", *python, "-c", program, *arguments]
        self.pid = os.posix_spawn(
            "/usr/bin/env",
            ["env", "-C", "/", *interpreter],
            dict(environ),
            file_actions=actions,
            setpgroup=0,
        )
        for descriptor in (command_read, reply_write, shown_write):
            os.close(descriptor)
        self._status: int | None = None
        self.shown = ""

    def send(self, *lines: str) -> None:
        """Write lines as the daemon does."""
        os.write(self._commands, "".join(f"{line}\n" for line in lines).encode())

    def receive(self) -> str:
        """One write of the helper to descriptor 4; empty when it has closed that."""
        readable, _, _ = select.select([self.replies], [], [], TIMEOUT)
        assert readable, f"the helper does not answer; it has shown:\n{self._read_shown()}"
        return os.read(self.replies, 1 << 16).decode()

    def end(self) -> int:
        """Close its input, and give its exit code when it has ended."""
        self._close("_commands")
        return self.wait()

    def wait(self) -> int:
        """Wait for its end by itself; afterwards `shown` is what the user saw."""
        # Its end closes the pipe. A process that hangs is ended by the time-out of `close`.
        self._read_shown()
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def kill(self) -> None:
        """What the daemon does when the client is gone."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def hang_up(self) -> None:
        """Close the reading end of descriptor 4."""
        self._close("replies")

    def _read_shown(self) -> str:
        while select.select([self._shown_read], [], [], TIMEOUT)[0]:
            data = os.read(self._shown_read, 1 << 16)
            if not data:
                break
            self.shown += data.decode()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        return self.shown

    def _close(self, name: str) -> None:
        descriptor = getattr(self, name)
        if descriptor >= 0:
            setattr(self, name, -1)
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for name in ("_commands", "replies", "_shown_read"):
            self._close(name)
