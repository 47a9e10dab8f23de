# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis and PostgreSQL as servers of a test: in a temporary directory, on loopback."""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import needs
from tests.ports import free_port

DEADLINE = 120.0
"""Seconds that a server has to start or to end."""

_USER = "nobody"
"""Who runs PostgreSQL when the tests are root's: it refuses root."""


class Engine(abc.ABC):
    """A server that a test may stop, kill and start again, on the same port with the same data.

    Args:
        command: what runs it in the foreground.
        port: where it listens on 127.0.0.1.
        url: how it is named to a tracker.
    """

    END = signal.SIGKILL

    def __init__(self, command: list[str], port: int, url: str) -> None:
        self._command = command
        self.port = port
        self.url = url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        give_up = time.monotonic() + DEADLINE
        while not self._answers():
            assert self._process.poll() is None, f"{self._command[0]} ended"
            assert time.monotonic() < give_up, f"{self._command[0]} does not start"
            time.sleep(0.01)

    @abc.abstractmethod
    def _answers(self) -> bool:
        """Whether it says that it is ready; subclasses ask in its own words."""

    def stop(self) -> None:
        """End it at once with all its processes; one that doesn't run is all right."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, self.END)
            process.wait(DEADLINE)

    def _exchange(self, data: bytes, size: int) -> bytes:
        """Send bytes and read some, or nothing when nobody listens."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), DEADLINE) as connection:
                connection.sendall(data)
                return connection.recv(size)
        except OSError:
            return b""


class _Redis(Engine):
    def _answers(self) -> bool:
        return self._exchange(b"PING\r\n", 5) == b"+PONG"


class _Postgres(Engine):
    END = signal.SIGQUIT  # as sudden as a kill, but it takes its shared memory along

    def _answers(self) -> bool:
        # A request to start a session of a user that there isn't: the answer is authentication
        # or an error; while it starts, the error is of class 57.
        parameters = b"user\0tracker\0database\0postgres\0\0"
        packet = (8 + len(parameters)).to_bytes(4) + (3 << 16).to_bytes(4) + parameters
        answer = self._exchange(packet, 400)
        return bool(answer) and b"C57P03" not in answer


@contextlib.contextmanager
def redis_server() -> Iterator[Engine]:
    """A Redis that keeps nothing when it ends."""
    program = needs.program("redis-server")
    with _directory() as directory:
        port = free_port()
        # It ends with the test even when that is killed.
        command = ["setpriv", "--pdeathsig", "KILL", program]
        command += ["--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(directory), "--appendonly", "no"]
        engine = _Redis(command, port, f"redis://127.0.0.1:{port}/0")
        with _running(engine):
            yield engine


@contextlib.contextmanager
def postgres_server() -> Iterator[Engine]:
    """A PostgreSQL with one empty database."""
    folders = ["/usr/lib/postgresql/*/bin"]
    initdb = needs.program("initdb", "postgresql", folders=folders)
    server = needs.program("postgres", "postgresql", folders=folders)
    with _directory() as directory:
        prefix: list[str] = []
        if os.geteuid() == 0:
            prefix = ["setpriv", "--reuid", _USER, "--regid", "nogroup", "--clear-groups"]
            shutil.chown(directory, _USER)
        data = directory / "data"
        subprocess.run(
            [*prefix, initdb, "-D", str(data), "-U", "tracker", "--auth", "trust", "--no-sync"],
            check=True,
            capture_output=True,
            cwd=directory,
        )
        port = free_port()
        options = {
            "fsync": "off",
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "shared_buffers": "16MB",
            "unix_socket_directories": str(directory),
        }
        command = [*(prefix or ["setpriv"]), "--pdeathsig", "QUIT", server, "-D", str(data)]
        command += [f"-c{name}={value}" for name, value in options.items()]
        engine = _Postgres(command, port, f"postgresql://tracker@127.0.0.1:{port}/postgres")
        with _running(engine):
            yield engine


@contextlib.contextmanager
def _running(engine: Engine) -> Iterator[None]:
    try:
        engine.start()
        yield
    finally:
        engine.stop()


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """A directory that another user can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="narswarm-engine-") as name:
        yield Path(name)
