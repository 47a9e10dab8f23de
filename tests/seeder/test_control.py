# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.control."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from narswarm.control import NAME, Control, ControlServer, everybody
from narswarm.errors import BusyError, NarswarmError, NotFoundError
from seeder.control import MODE, ask, listening
from seeder.state import State

OPERATIONS = {"status": lambda _request: {"items": 3}}


def test_a_question_is_answered(tmp_path: Path) -> None:
    """Anybody on the machine may ask, and errors come back as errors."""
    server = ControlServer(tmp_path, OPERATIONS, mode=MODE)
    assert ask(tmp_path, "status") == {"items": 3}
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o666
    with pytest.raises(NarswarmError) as caught:
        ask(tmp_path, "other")
    assert str(caught.value) == "request: no such operation; there are: status"
    server.close()


def test_no_seeder_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that isn't one, and the socket of a killed seeder."""
    with socket.socket(socket.AF_UNIX) as dead:
        monkeypatch.chdir(tmp_path)
        dead.bind(NAME)
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotFoundError) as caught:
            ask(directory, "status")
        assert str(caught.value) == f"{directory}: no seeder runs with this directory"


def test_a_seeder_that_does_not_answer(tmp_path: Path) -> None:
    """One that is starting holds the directory, but has no socket yet."""
    with State(tmp_path), pytest.raises(BusyError) as caught:
        ask(tmp_path, "status")
    assert str(caught.value) == (
        f"{tmp_path}: the seeder with process id {os.getpid()} does not answer (yet)"
    )


def test_two_sockets(tmp_path: Path) -> None:
    """One in the state directory, and one where everybody looks."""
    state, run = tmp_path / "state", tmp_path / "run"
    state.mkdir()
    run.mkdir()
    paths = (state / NAME, run / "seeder.sock")
    with listening(paths, OPERATIONS, {}, everybody):
        assert ask(state, "status") == {"items": 3}
        with Control(run, "seeder", name="seeder.sock") as control:
            assert control.ask("status") == {"items": 3}
        assert paths[1].stat().st_mode & 0o777 == MODE
    assert list(run.iterdir()) == []


def test_the_second_socket_is_not_needed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where its directory isn't there, or another seeder answers; one that was killed doesn't."""
    caplog.set_level("INFO")
    first, second, run = tmp_path / "first", tmp_path / "second", tmp_path / "run"
    for directory in (first, second, run):
        directory.mkdir()
    common = run / "seeder.sock"
    with listening((first / NAME, tmp_path / "none" / "x"), OPERATIONS, {}, everybody):
        assert ask(first, "status") == {"items": 3}
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(common))
    with listening((first / NAME, common), OPERATIONS, {}, everybody):
        other = {"status": lambda _request: {"items": 4}}
        with listening((second / NAME, common), other, {}, everybody):
            assert ask(second, "status") == {"items": 4}
            with Control(run, "seeder", name="seeder.sock") as control:
                assert control.ask("status") == {"items": 3}
        assert common.exists()
    assert caplog.messages == [f"{common}: another seeder listens there"]
