# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.control."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from narswarm.control import (
    MAX_REQUEST,
    NAME,
    Control,
    ControlServer,
    Conversation,
    GoneError,
    answer_to,
)
from narswarm.errors import BusyError, NarswarmError, NotFoundError


def _echo(request: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"said": request["say"]}


def _fail(_: Mapping[str, Any]) -> Mapping[str, Any]:
    raise NarswarmError("index", "is broken: badly")


def _break(_: Mapping[str, Any]) -> Mapping[str, Any]:
    raise sqlite3.DatabaseError("database disk image is malformed")


OPERATIONS = {"echo": _echo, "fail": _fail}


@pytest.fixture(name="directory")
def directory_fixture(tmp_path: Path) -> Iterator[Path]:
    """A data directory with a server in it, deeper than a socket's address is long."""
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    server = ControlServer(directory, OPERATIONS)
    yield directory
    server.close()


def test_questions_and_answers(directory: Path) -> None:
    """One connection may ask several times; an error of the tracker is one of the command."""
    with Control(directory, "tracker") as control:
        assert control.ask("echo", say="a\nb") == {"said": "a\nb"}
        with pytest.raises(NarswarmError) as caught:
            control.ask("fail")
        assert str(caught.value) == "index: is broken: badly"
        assert control.ask("echo", say=[1]) == {"said": [1]}


def test_only_its_owner_may_ask(directory: Path) -> None:
    """Nobody else gets as far as connecting, unless everybody may."""
    assert (directory / NAME).stat().st_mode & 0o777 == 0o600
    server = ControlServer(directory, OPERATIONS, mode=0o666)
    assert (directory / NAME).stat().st_mode & 0o777 == 0o666
    server.close()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"", 'request: is not a line such as {"op": "status"}'),
        (b"[]", 'request: is not a line such as {"op": "status"}'),
        (b"\xff", 'request: is not a line such as {"op": "status"}'),
        (b"[" * 100_000, 'request: is not a line such as {"op": "status"}'),
        (b'{"op": []}', 'request: is not a line such as {"op": "status"}'),
        (b"{}", "request: no such operation; there are: echo, fail"),
        (b'{"op": "x"}', "request: no such operation; there are: echo, fail"),
        (b'{"op": "echo"}', "request: lacks what the operation needs"),
    ],
)
def test_senseless_requests(line: bytes, error: str) -> None:
    """They are answered like others."""
    assert answer_to(line, OPERATIONS) == {"ok": False, "error": error}


def test_an_operation_that_breaks(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asked hears why, and so does the log, with the place."""
    answer = answer_to(b'{"op": "status"}', {"status": _break})
    assert answer == {"ok": False, "error": "status: database disk image is malformed"}
    assert caplog.messages == ["status"]
    assert "in _break" in caplog.text


def test_request_without_end(directory: Path) -> None:
    """A line that is too long is answered with an error, and the connection ends."""
    with Control(directory, "tracker") as control:
        control._socket.sendall(b"[" * MAX_REQUEST)
        assert json.loads(control._answers.readline())["ok"] is False
        assert control._answers.readline() == b""


def test_nobody_there(tmp_path: Path) -> None:
    """No tracker, or one that was killed, is said."""
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NotFoundError) as caught:
            Control(directory, "tracker")
        assert str(caught.value) == f"{directory}: no tracker runs with this directory"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / NAME))
    with pytest.raises(NotFoundError) as caught:
        Control(tmp_path, "tracker")
    assert str(caught.value) == f"{tmp_path}: no tracker runs with this directory"
    server = ControlServer(tmp_path, OPERATIONS)
    with Control(tmp_path, "tracker") as control:
        assert control.ask("echo", say=1) == {"said": 1}
    server.close()
    assert list(tmp_path.iterdir()) == []


def test_no_answer(tmp_path: Path) -> None:
    """A tracker that hangs or dies meanwhile is another error."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / NAME))
        listener.listen()
        with (
            Control(tmp_path, "tracker", timeout=0.01) as control,
            pytest.raises(BusyError) as caught,
        ):
            control.ask("echo")
        assert str(caught.value) == f"{tmp_path}: its tracker does not answer"
        with Control(tmp_path, "tracker") as control:
            listener.accept()[0].close()
            listener.accept()[0].close()
            with pytest.raises(BusyError):
                control.ask("echo")


class Streaming:
    """A server with streams, in the test's hands."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.conversations: SimpleQueue[Conversation] = SimpleQueue()
        self.gone = threading.Event()
        self.ended = threading.Event()
        self.may = True
        self.server = ControlServer(
            directory,
            OPERATIONS,
            streams={"count": self._count, "wait": self._wait, "stay": self._stay},
            permitted=lambda _op, _caller: self.may,
        )

    def _count(self, request: Mapping[str, Any], conversation: Conversation) -> None:
        for number in range(request["to"]):
            conversation.send({"number": number})
        if request["to"] == 2:
            raise NarswarmError("count", "is 2")

    def _wait(self, _request: Mapping[str, Any], conversation: Conversation) -> None:
        self.conversations.put(conversation)
        try:
            while True:
                conversation.send({"woken": conversation.wait(120)})
        except GoneError:
            self.gone.set()
            raise

    def _stay(self, _request: Mapping[str, Any], conversation: Conversation) -> None:
        conversation.at_end(self.ended.set)
        with (self.directory / "file").open("w+b") as file:
            file.write(b"content")
            file.flush()
            conversation.send({"user": conversation.caller.uid}, file.fileno())


@pytest.fixture(name="streaming")
def streaming_fixture(tmp_path: Path) -> Iterator[Streaming]:
    """A server with streams."""
    made = Streaming(tmp_path)
    yield made
    made.server.close()


def _lines(control: Control, count: int) -> list[dict[str, Any]]:
    return [json.loads(control._answers.readline()) for _ in range(count)]


def test_a_stream_answers_several_lines(streaming: Streaming) -> None:
    """An error is the last of them, and the connection takes the next request then."""
    with Control(streaming.directory, "tracker") as control:
        control._socket.sendall(b'{"op": "count", "to": 2}\n{"op": "count", "to": 1}\n')
        control._socket.sendall(b'{"op": "count"}\n{"op": "echo", "say": 1}\n')
        assert _lines(control, 6) == [
            {"ok": True, "number": 0},
            {"ok": True, "number": 1},
            {"ok": False, "error": "count: is 2"},
            {"ok": True, "number": 0},
            {"ok": False, "error": "request: lacks what the operation needs"},
            {"ok": True, "said": 1},
        ]


def test_a_stream_is_woken_and_hears_the_end(streaming: Streaming) -> None:
    """Whoever knows something new wakes it, once or often; a closed connection ends its wait."""
    with Control(streaming.directory, "tracker") as control:
        control._socket.sendall(b'{"op": "wait"}\n')
        conversation = streaming.conversations.get(timeout=120)
        conversation.wake()
        assert _lines(control, 1) == [{"ok": True, "woken": True}]
    assert streaming.gone.wait(120)


def test_waking_the_dead(tmp_path: Path) -> None:
    """What has ended is neither woken nor waited for; a wake before the wait isn't lost."""
    one, other = socket.socketpair()
    with one, other:
        conversation = Conversation(one)
        assert not conversation.wait(0)
        conversation.wake()
        conversation.wake()
        assert conversation.wait(0)
        assert not conversation.wait(0)
        conversation.end()
        conversation.wake()
        with pytest.raises(GoneError) as caught:
            conversation.wait(0)
        assert str(caught.value) == "connection: was closed by whoever asked"
        other.close()
        with pytest.raises(GoneError):
            conversation.send({})
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_passed_and_the_end_is_told(streaming: Streaming) -> None:
    """The other process reads what this one opened; what belongs to a connection ends with it."""
    with Control(streaming.directory, "tracker") as control:
        control._socket.sendall(b'{"op": "stay"}\n')
        data, files, _, _ = socket.recv_fds(control._socket, 1000, 4)
        assert json.loads(data) == {"ok": True, "user": os.getuid()}
        assert os.pread(files[0], 100, 0) == b"content"
        os.close(files[0])
        assert not streaming.ended.is_set()
    assert streaming.ended.wait(120)


def test_who_may_not_ask(streaming: Streaming) -> None:
    """Is told so, for streams and for others."""
    streaming.may = False
    with Control(streaming.directory, "tracker") as control:
        for op in ("echo", "count"):
            with pytest.raises(NarswarmError) as caught:
                control.ask(op, say=1, to=1)
            assert str(caught.value) == f"request: user {os.getuid()} may not {op}"
