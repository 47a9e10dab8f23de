# SPDX-License-Identifier: GPL-3.0-or-later
"""The seeder's Unix socket: one JSON document a line asks, one answers.

Everybody on the machine may ask how the seeder is doing; there is nothing yet that a request could
change. An answer is `{"ok": true, ...}` or `{"ok": false, "error": "subject: reason"}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from narswarm.errors import BusyError, NarswarmError, NotFoundError
from seeder.state import holder

NAME = "control.sock"
MAX_REQUEST = 64 * 1024
MAX_ANSWER = 4 * 1024 * 1024
TIMEOUT = 10.0

Operation = Callable[[], Mapping[str, Any]]


class ControlServer:
    """Answers on a socket in the state directory, in threads of its own.

    Args:
        directory: of the state, which this process holds: an old socket there is nobody's.
        operations: what can be asked, by name.
    """

    def __init__(self, directory: Path, operations: Mapping[str, Operation]) -> None:
        self._path = directory / NAME
        self._path.unlink(missing_ok=True)
        with _short(directory) as short:
            self._server = _Server(str(short / NAME), operations)
        self._path.chmod(0o666)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="control", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Answer no more; requests that are being answered are cut off."""
        self._path.unlink(missing_ok=True)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, path: str, operations: Mapping[str, Operation]) -> None:
        self.operations = operations
        super().__init__(path, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no event."""


class _Handler(socketserver.StreamRequestHandler):
    timeout = TIMEOUT

    def handle(self) -> None:
        """Answer the lines of one connection."""
        assert isinstance(self.server, _Server)  # noqa: S101  for the type checker
        while line := self.rfile.readline(MAX_REQUEST):
            answer = answer_to(line, self.server.operations)
            self.wfile.write(json.dumps(answer).encode() + b"\n")
            if not line.endswith(b"\n"):
                return


def answer_to(line: bytes, operations: Mapping[str, Operation]) -> dict[str, Any]:
    """Answer one request.

    Args:
        line: `{"op": NAME}`, whatever else is in it.
        operations: what can be asked.
    """
    try:
        request = json.loads(line)
        name = request["op"]
        operation = operations[name]
    except (ValueError, RecursionError, TypeError):
        return {"ok": False, "error": 'request: expected a line such as {"op": "status"}'}
    except KeyError:
        known = ", ".join(sorted(operations))
        return {"ok": False, "error": f"request: no such operation; there are: {known}"}
    try:
        return {"ok": True, **operation()}
    except NarswarmError as error:
        return {"ok": False, "error": str(error)}


def ask(directory: Path, name: str, *, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Ask the seeder of a state directory.

    Raises:
        NotFoundError: no seeder runs there.
        BusyError: one runs, but doesn't answer.
        NarswarmError: what it answers is an error.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection, _short(directory) as short:
            connection.settimeout(timeout)
            connection.connect(str(short / NAME))
            connection.sendall(json.dumps({"op": name}).encode() + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline(MAX_ANSWER)
        answer = json.loads(line)
    except PermissionError as error:
        raise NotFoundError(directory / NAME, error.strerror or str(error)) from None
    except (OSError, ValueError):
        pid = holder(directory)
        if pid is None:
            raise NotFoundError(directory, "no seeder runs with this state directory") from None
        raise BusyError(
            directory, f"the seeder with process id {pid} does not answer (yet)"
        ) from None
    if not answer.pop("ok", False):
        subject, _, reason = str(answer.get("error", "")).partition(": ")
        raise NarswarmError(subject, reason)
    return dict(answer)


@contextmanager
def _short(directory: Path) -> Iterator[Path]:
    """Another name of a directory: the address of a Unix socket has 107 bytes at most."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
