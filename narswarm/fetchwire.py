# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection to the seeder's socket as its clients have it: lines of JSON, and open files.

A payload's file is passed beside the line that tells of it, which `narswarm.control` can't take:
what comes together has to be kept together, and a file that nobody takes has to be closed.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import time
from pathlib import Path
from typing import Any, Final

from narswarm.control import MAX_ANSWER, near
from narswarm.errors import BusyError, InvalidInputError, NarswarmError, NotFoundError

_MAX_LINE: Final = 64 * 1024


class Connection:
    """A connection to the seeder.

    Args:
        path: of its socket.
        timeout: seconds to wait for it, and for an answer to what needs no peers.

    Raises:
        NotFoundError: no seeder listens there, or this user may not ask it.
        BusyError: it doesn't answer.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._buffer = b""
        self._descriptors: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            with near(path.parent) as directory:
                self._socket.connect(str(directory / path.name))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            self._socket.close()
            raise NotFoundError(path, "no seeder listens there") from None
        except PermissionError as error:
            self._socket.close()
            raise NotFoundError(path, error.strerror or str(error)) from None
        except OSError:
            self._socket.close()
            raise self._silent() from None

    def close(self) -> None:
        """Let go of it, and of files that nobody has taken."""
        self._socket.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def send(self, request: dict[str, Any]) -> None:
        """Ask; the answers are received.

        Raises:
            BusyError: nobody takes it.
        """
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            raise self._silent() from None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask for what is answered by one line.

        Raises:
            BusyError: there is no answer in time.
            InvalidInputError: it is something else.
            NarswarmError: it is an error.
        """
        self.send(request)
        deadline = time.monotonic() + self._timeout
        while True:
            answers = self.receive(deadline - time.monotonic())
            if answers:
                break
            if time.monotonic() >= deadline:
                raise self._silent()
        answer = answers[0][0]
        if not answer.get("ok"):
            subject, _, reason = str(answer.get("error", "")).partition(": ")
            raise NarswarmError(subject, reason)
        return answer

    def receive(self, timeout: float) -> list[tuple[dict[str, Any], int | None]]:
        """The answers that came, each with the file that was passed beside it.

        Raises:
            BusyError: the seeder is gone.
            InvalidInputError: it says something else.
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(max(0.0, timeout * 1000)):
            return []
        size = array.array("i").itemsize
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                _MAX_LINE, socket.CMSG_SPACE(16 * size), socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            data, ancillary = b"", []
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                files = array.array("i")
                files.frombytes(content[: len(content) - len(content) % size])
                self._descriptors += files
        if not data:
            raise BusyError(self._path, "the seeder has closed the connection")
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > MAX_ANSWER:
            raise InvalidInputError(self._path, "says a line without end")
        return [self._parse(line) for line in lines]

    def _parse(self, line: bytes) -> tuple[dict[str, Any], int | None]:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise InvalidInputError(self._path, "says something that is not a line of JSON")
        passed = answer.get("event") == "source" and self._descriptors
        return answer, self._descriptors.pop(0) if passed else None

    def _silent(self) -> BusyError:
        return BusyError(self._path, "its seeder does not answer")
