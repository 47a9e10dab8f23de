# SPDX-License-Identifier: GPL-3.0-or-later
"""A long-running program's Unix socket, for commands on the same machine.

One JSON document a line asks, one answers: `{"op": NAME, ...}` is answered by `{"ok": true, ...}`
or `{"ok": false, "error": "subject: reason"}`. The socket is in the directory that the program
keeps its state in; permissions say who may ask.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from narswarm.errors import BusyError, NarswarmError, NotFoundError

log = logging.getLogger(__name__)

NAME = "control.sock"
MAX_REQUEST = 1 << 20
MAX_ANSWER = 4 << 20
TIMEOUT = 30.0

Operation = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Answers a request; raises a NarswarmError when it can't."""


class ControlServer:
    """Answers on a socket in a directory, in threads of its own.

    Args:
        directory: of the program's state, which this process holds: an old socket there is
            nobody's.
        operations: what can be asked, by name.
        mode: permissions of the socket; by default its owner alone may ask.

    Raises:
        OSError: the socket can't be made.
    """

    def __init__(
        self, directory: Path, operations: Mapping[str, Operation], *, mode: int = 0o600
    ) -> None:
        self._path = directory / NAME
        self._path.unlink(missing_ok=True)
        with _short(directory) as short:
            self._server = _Server(str(short / NAME), operations, mode)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="control", daemon=True
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

    def __init__(self, path: str, operations: Mapping[str, Operation], mode: int) -> None:
        self.operations = operations
        self._mode = mode
        super().__init__(path, _Handler)

    def server_bind(self) -> None:
        """Bind, and let in who may before anybody could connect."""
        super().server_bind()
        Path(str(self.server_address)).chmod(self._mode)

    def handle_error(self, request: object, client_address: object) -> None:
        """A command that was interrupted is no event."""


class _Handler(socketserver.StreamRequestHandler):
    timeout = TIMEOUT

    def handle(self) -> None:
        """Answer the lines of one connection."""
        assert isinstance(self.server, _Server)  # noqa: S101 - for the type checker
        while line := self.rfile.readline(MAX_REQUEST):
            answer = answer_to(line, self.server.operations)
            self.wfile.write(json.dumps(answer).encode() + b"\n")
            if not line.endswith(b"\n"):
                return


def answer_to(line: bytes, operations: Mapping[str, Operation]) -> dict[str, Any]:
    """Answer one request.

    Args:
        line: `{"op": NAME}` with whatever the operation needs.
        operations: what can be asked.
    """
    try:
        request = json.loads(line)
        operation = operations[request["op"]]
    except (ValueError, RecursionError, TypeError):
        return {"ok": False, "error": 'request: is not a line such as {"op": "status"}'}
    except KeyError:
        known = ", ".join(sorted(operations))
        return {"ok": False, "error": f"request: no such operation; there are: {known}"}
    try:
        return {"ok": True, **operation(request)}
    except NarswarmError as error:
        return {"ok": False, "error": str(error)}
    except (KeyError, TypeError, ValueError):
        return {"ok": False, "error": "request: lacks what the operation needs"}
    except Exception as error:
        # Whoever asked is told, instead of taking a broken connection for a program that hangs.
        log.exception("%s", request["op"])
        return {"ok": False, "error": f"{request['op']}: {error}"}


class Control:
    """A connection to the program that runs with a directory, for one command.

    Args:
        directory: of its state.
        program: what it is called in errors.
        timeout: seconds to wait for an answer.

    Raises:
        NotFoundError: no such program runs there, or this user may not ask it.
        BusyError: one runs, but doesn't answer.
    """

    def __init__(self, directory: Path, program: str, *, timeout: float = TIMEOUT) -> None:
        self._directory = directory
        self._program = program
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            with _short(directory) as short:
                self._socket.connect(str(short / NAME))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            self._socket.close()
            raise NotFoundError(directory, f"no {program} runs with this directory") from None
        except PermissionError as error:
            self._socket.close()
            raise NotFoundError(directory / NAME, error.strerror or str(error)) from None
        except OSError:
            self._socket.close()
            raise self._silent() from None
        self._answers = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._socket.close()

    def ask(self, op: str, **more: Any) -> dict[str, Any]:
        """Ask for an operation.

        Raises:
            BusyError: there is no answer.
            NarswarmError: the answer is an error.
        """
        try:
            self._socket.sendall(json.dumps({"op": op, **more}).encode() + b"\n")
            answer = json.loads(self._answers.readline(MAX_ANSWER))
        except (OSError, ValueError):
            raise self._silent() from None
        if not answer.pop("ok", False):
            subject, _, reason = str(answer.get("error", "")).partition(": ")
            raise NarswarmError(subject, reason)
        return dict(answer)

    def _silent(self) -> BusyError:
        return BusyError(self._directory, f"its {self._program} does not answer")


@contextmanager
def _short(directory: Path) -> Iterator[Path]:
    """Another name of a directory: the address of a Unix socket has 107 bytes at most."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
