# SPDX-License-Identifier: GPL-3.0-or-later
"""Trackers as processes of their own, for tests that speak to the real program."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
DEADLINE = 120.0
"""Seconds that a program has to end."""

_PROGRAM = "import sys; sys.argv[0] = 'tracker'; from tracker.cli import main; main()"
_READY = re.compile(r"tracker: listening on http://\S+:(\d+)\n")


def tracker_command(
    directory: Path, listen: Sequence[str], *flags: str
) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of `tracker serve`, which has `data` in a directory."""
    config = directory / "empty.toml"
    config.write_text("")
    command = [
        *(sys.executable, "-c", _PROGRAM, "serve", "--data", str(directory / "data")),
        *(part for address in listen for part in ("--listen", address)),
        *flags,
    ]
    return command, {**os.environ, "PYTHONPATH": str(ROOT), "NARSWARM_CONFIG": str(config)}


def start_tracker(
    directory: Path, listen: Sequence[str], *flags: str, **more: str
) -> tuple[subprocess.Popen[str], tuple[int, ...]]:
    """Start `tracker serve` and wait until it is ready; the process and its ports.

    Args:
        directory: `data` in it is the tracker's.
        listen: addresses; for port 0 another one is chosen, which is free for UDP as well.
        flags: further ones.
        more: further variables of the environment.
    """
    chosen = [_with_port(address) for address in listen]
    command, environment = tracker_command(directory, chosen, *flags)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        env=environment | more,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    ports = []
    for _ in listen:
        line = process.stdout.readline()
        match = _READY.fullmatch(line)
        if match is None:
            end(process)
        assert match, line
        ports.append(int(match[1]))
    return process, tuple(ports)


def _with_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{host}:{free_port(host.strip('[]'))}" if port == "0" else address


def end(process: subprocess.Popen[str]) -> None:
    """End a program with all its processes; one that has ended is all right."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(DEADLINE)
    assert process.stdout is not None
    process.stdout.close()
