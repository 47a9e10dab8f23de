# SPDX-License-Identifier: GPL-3.0-or-later
"""A long-running program's Unix socket, for commands on the same machine.

One JSON document a line asks, one answers: `{"op": NAME, ...}` is answered by `{"ok": true, ...}`
or `{"ok": false, "error": "subject: reason"}`. Streamed operations answer several lines, may pass
an open file beside one, and are told when whoever asked is gone. The socket is in the directory
that the program keeps its state in; permissions and the kernel's word on who connected say who may
ask.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from narswarm.errors import BusyError, NarswarmError, NotFoundError

log = logging.getLogger(__name__)

NAME = "control.sock"
MAX_REQUEST = 1 << 20
MAX_ANSWER = 4 << 20
TIMEOUT = 30.0

_CREDENTIALS = struct.Struct("iII")
_HUNG_UP = select.POLLRDHUP | select.POLLHUP | select.POLLERR

Operation = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Answers a request; raises a NarswarmError when it can't."""


class Caller(NamedTuple):
    """The process at the other end when it connected, as the kernel knows it."""

    pid: int
    uid: int
    gid: int


class GoneError(NarswarmError):
    """Whoever asked has closed the connection."""

    def __init__(self) -> None:
        super().__init__("connection", "was closed by whoever asked")


class Conversation:
    """The server's end of a connection, as a streamed operation sees it.

    Args:
        connection: the socket.

    Attributes:
        caller: who asks.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._endings: list[Callable[[], None]] = []
        self._event: int | None = None
        self._ended = False
        self._mutex = threading.Lock()
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.caller = Caller(*_CREDENTIALS.unpack(raw))

    def send(self, answer: Mapping[str, Any], descriptor: int | None = None) -> None:
        """Answer a line, and pass a file beside it; waits for whoever asked to read.

        Args:
            answer: without `ok`.
            descriptor: of an open file, which stays this process's own to close.

        Raises:
            GoneError: nobody reads any more.
        """
        line = json.dumps({"ok": True, **answer}).encode() + b"\n"
        try:
            if descriptor is not None:
                line = line[socket.send_fds(self._socket, [line], [descriptor]) :]
            self._socket.sendall(line)
        except OSError:
            raise GoneError from None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until `wake` is called or was since the last wait.

        Args:
            timeout: seconds.

        Returns:
            Whether it was called.

        Raises:
            GoneError: whoever asked has closed the connection.
        """
        self._socket.settimeout(None)
        event = self._waker()
        if event is None:
            raise GoneError
        poll = select.poll()
        poll.register(self._socket, _HUNG_UP)
        poll.register(event, select.POLLIN)
        ready = dict(poll.poll(None if timeout is None else max(0.0, timeout * 1000)))
        if self._socket.fileno() in ready:
            raise GoneError
        if event in ready:
            os.eventfd_read(event)
            return True
        return False

    def wake(self) -> None:
        """End a wait, from any thread."""
        event = self._waker()
        with self._mutex:
            if event is not None and self._event == event:  # and not closed meanwhile
                os.eventfd_write(event, 1)

    def at_end(self, function: Callable[[], None]) -> None:
        """Have a function called when the connection has ended, for whatever reason.

        From then on the connection may be silent for as long as whoever asked wants.
        """
        self._socket.settimeout(None)
        self._endings.append(function)

    def end(self) -> None:
        """What the server calls when the connection has ended."""
        with self._mutex:
            if self._event is not None:
                os.close(self._event)
            self._ended = True
            self._event = None
        for function in self._endings:
            function()

    def _waker(self) -> int | None:
        with self._mutex:
            if self._event is None and not self._ended:
                self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return self._event


Stream = Callable[[Mapping[str, Any], Conversation], None]
"""Sends its answers itself; a NarswarmError that it raises is one more answer."""

Permission = Callable[[str, Caller], bool]
"""Whether somebody may ask for an operation."""


def everybody(_op: str, _caller: Caller) -> bool:
    """Whoever can connect may ask for anything."""
    return True


class ControlServer:
    """Answers on a socket in a directory, in threads of its own.

    Args:
        directory: of the program's state, which this process holds: an old socket there is
            nobody's.
        operations: what can be asked, by name.
        mode: permissions of the socket; by default its owner alone may ask.
        streams: operations that answer by themselves, by name.
        permitted: who may ask for what.
        name: of the socket in the directory.

    Raises:
        OSError: the socket can't be made.
    """

    def __init__(
        self,
        directory: Path,
        operations: Mapping[str, Operation],
        *,
        mode: int = 0o600,
        streams: Mapping[str, Stream] | None = None,
        permitted: Permission = everybody,
        name: str = NAME,
    ) -> None:
        self._path = directory / name
        self._path.unlink(missing_ok=True)
        with near(directory) as place:
            self._server = _Server(str(place / name), operations, streams or {}, permitted, mode)
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
    request_queue_size = 128

    def __init__(
        self,
        path: str,
        operations: Mapping[str, Operation],
        streams: Mapping[str, Stream],
        permitted: Permission,
        mode: int,
    ) -> None:
        self.operations = operations
        self.streams = streams
        self.permitted = permitted
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
        conversation = Conversation(self.connection)
        server = self.server
        plain = {op: _plain(run) for op, run in server.operations.items()}
        known = {
            op: _permitted(op, run, conversation, server.permitted)
            for op, run in (plain | dict(server.streams)).items()
        }
        try:
            while line := self.rfile.readline(MAX_REQUEST):
                answer = answer_to(line, known)
                if answer != {"ok": True}:
                    self.wfile.write(json.dumps(answer).encode() + b"\n")
                if not line.endswith(b"\n"):
                    return
        finally:
            conversation.end()


def _plain(operation: Operation) -> Stream:
    """The one answer of an operation, as a stream."""
    return lambda request, conversation: conversation.send(operation(request))


def _permitted(
    op: str, run: Stream, conversation: Conversation, permitted: Permission
) -> Operation:
    """An operation of one connection that has sent its answers when it returns nothing."""

    def operation(request: Mapping[str, Any]) -> Mapping[str, Any]:
        if not permitted(op, conversation.caller):
            raise NarswarmError("request", f"user {conversation.caller.uid} may not {op}")
        run(request, conversation)
        return {}

    return operation


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
        name: of the socket in the directory.

    Raises:
        NotFoundError: no such program runs there, or this user may not ask it.
        BusyError: one runs, but doesn't answer.
    """

    def __init__(
        self, directory: Path, program: str, *, timeout: float = TIMEOUT, name: str = NAME
    ) -> None:
        self._directory = directory
        self._program = program
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            with near(directory) as place:
                self._socket.connect(str(place / name))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            self._socket.close()
            raise NotFoundError(directory, f"no {program} runs with this directory") from None
        except PermissionError as error:
            self._socket.close()
            raise NotFoundError(directory / name, error.strerror or str(error)) from None
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
        except OSError:
            raise self._silent() from None
        return self.next()

    def next(self) -> dict[str, Any]:
        """Take one more answer of a streamed operation.

        Raises:
            BusyError: there is no answer.
            NarswarmError: the answer is an error.
        """
        try:
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
def near(directory: Path) -> Iterator[Path]:
    """Another name of a directory: the address of a Unix socket has 107 bytes at most."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
