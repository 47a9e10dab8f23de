# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking the seeder on this machine."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from narswarm.errors import BusyError, NarswarmError, NotFoundError
from seeder.control import MAX_REQUEST, NAME, ControlServer, answer_to, ask
from seeder.state import State


def fail() -> dict[str, Any]:
    """An operation that can't be done."""
    raise BusyError("index", "is locked by another process")


OPERATIONS = {"status": lambda: {"items": 3}, "fail": fail}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    """A running server; its directory has a name that is too long for a socket."""
    directory = tmp_path / ("long" * 30)
    directory.mkdir()
    control = ControlServer(directory, OPERATIONS)
    yield directory
    control.close()


def test_a_question_is_answered(server: Path) -> None:
    """Also under a path longer than a socket's address, and by anybody on the machine."""
    assert ask(server, "status") == {"items": 3}
    assert stat.S_IMODE((server / NAME).stat().st_mode) == 0o666


def test_errors_come_back_as_errors(server: Path) -> None:
    """Subject and reason stay apart."""
    with pytest.raises(NarswarmError) as caught:
        ask(server, "fail")
    assert str(caught.value) == "index: is locked by another process"
    assert caught.value.reason == "is locked by another process"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b'{"op": "status"}\n', {"ok": True, "items": 3}),
        (b'{"op": "status", "more": 1}', {"ok": True, "items": 3}),
        (
            b'{"op": "other"}',
            {"ok": False, "error": "request: no such operation; there are: fail, status"},
        ),
        (b"{}", {"ok": False, "error": "request: no such operation; there are: fail, status"}),
        *(
            (
                line,
                {"ok": False, "error": 'request: expected a line such as {"op": "status"}'},
            )
            for line in (b"\n", b"status", b"[]", b"5", b'{"op": []}', b"\xff", b"[" * 60_000)
        ),
    ],
)
def test_requests(line: bytes, answer: dict[str, Any]) -> None:
    """Whatever somebody sends is answered with a line."""
    assert answer_to(line, OPERATIONS) == answer


def test_a_long_request_is_cut_off(server: Path) -> None:
    """A client can't fill the seeder's memory."""
    descriptor = os.open(server, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"/proc/self/fd/{descriptor}/{NAME}")
        client.sendall(b"x" * MAX_REQUEST)
        with client.makefile("rb") as answers:
            assert b"expected a line" in answers.readline()
            assert answers.readline() == b""
    os.close(descriptor)


def test_no_seeder_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that isn't one, an empty one, and the socket of a killed seeder."""
    with socket.socket(socket.AF_UNIX) as dead:
        monkeypatch.chdir(tmp_path)
        dead.bind(NAME)
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotFoundError) as caught:
            ask(directory, "status")
        assert str(caught.value) == f"{directory}: no seeder runs with this state directory"
    control = ControlServer(tmp_path, OPERATIONS)
    assert ask(tmp_path, "status") == {"items": 3}
    control.close()
    assert not (tmp_path / NAME).exists()


def test_a_seeder_that_does_not_answer(tmp_path: Path) -> None:
    """One that is starting holds the directory, but has no socket yet."""
    with State(tmp_path):
        with pytest.raises(BusyError) as caught:
            ask(tmp_path, "status")
        assert str(caught.value) == (
            f"{tmp_path}: the seeder with process id {os.getpid()} does not answer (yet)"
        )
