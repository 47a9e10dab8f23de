# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.fetchwire, against the other end of its socket."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from narswarm import fetchwire
from narswarm.errors import BusyError, InvalidInputError, NarswarmError, NotFoundError
from narswarm.fetchwire import Connection
from tests.narswarm.fakeseeder import open_files


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket at which a seeder may answer."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
        made.listen()
        yield made


def accepted(listener: socket.socket, timeout: float = 120) -> tuple[Connection, socket.socket]:
    """Both ends of a connection."""
    ours = Connection(Path(listener.getsockname()), timeout)
    return ours, listener.accept()[0]


def test_one_question_has_one_answer(listener: socket.socket) -> None:
    """A line each."""
    ours, theirs = accepted(listener)
    theirs.sendall(b'{"ok": true, "accepted": 3}\n')
    assert ours.ask({"op": "prefetch", "items": []}) == {"ok": True, "accepted": 3}
    assert theirs.recv(1000) == b'{"op": "prefetch", "items": []}\n'
    ours.close()
    theirs.close()


def test_an_answer_may_be_an_error(listener: socket.socket) -> None:
    """It is the one that the seeder had."""
    ours, theirs = accepted(listener)
    theirs.sendall(b'{"ok": false, "error": "request: lacks what the operation needs"}\n')
    with pytest.raises(NarswarmError) as caught:
        ours.ask({"op": "prefetch"})
    assert str(caught.value) == "request: lacks what the operation needs"
    ours.close()
    theirs.close()


def test_lines_need_not_come_whole(listener: socket.socket) -> None:
    """What has come of a line waits for its rest; several may come at once."""
    ours, theirs = accepted(listener)
    assert ours.receive(0.0) == []
    theirs.sendall(b'{"event":')
    assert ours.receive(120) == []
    theirs.sendall(b' "progress"}\n{"event": "done"}\n{')
    assert ours.receive(120) == [({"event": "progress"}, None), ({"event": "done"}, None)]
    ours.close()
    theirs.close()


def test_files_belong_to_the_lines_that_tell_of_them(
    listener: socket.socket, tmp_path: Path
) -> None:
    """In order; what nobody takes is closed with the connection."""
    before = open_files()
    ours, theirs = accepted(listener)
    (tmp_path / "a").write_bytes(b"content")
    with (tmp_path / "a").open("rb") as file:
        lines = b'{"event": "progress"}\n{"event": "source"}\n'
        socket.send_fds(theirs, [lines], [file.fileno(), file.fileno()])
    (first, none), (second, descriptor) = ours.receive(120)
    assert (first, none) == ({"event": "progress"}, None)
    assert second == {"event": "source"}
    assert descriptor is not None
    assert os.read(descriptor, 100) == b"content"
    os.close(descriptor)
    theirs.close()
    ours.close()
    assert open_files() == before


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the seeder has closed the connection"),
        (b'{"event": "done"}', "the seeder has closed the connection"),
        (b"[]\n", "says something that is not a line of JSON"),
        (b"\xff\n", "says something that is not a line of JSON"),
    ],
)
def test_what_is_no_answer(listener: socket.socket, answer: bytes, reason: str) -> None:
    """Is an error of the connection."""
    ours, theirs = accepted(listener)
    theirs.sendall(answer)
    theirs.close()
    with pytest.raises(NarswarmError) as caught:
        list(iter(lambda: ours.receive(120), None))
    assert str(caught.value) == f"{listener.getsockname()}: {reason}"
    ours.close()


def test_a_line_has_a_largest_size(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no end isn't kept."""
    monkeypatch.setattr(fetchwire, "MAX_ANSWER", 20)
    ours, theirs = accepted(listener)
    theirs.sendall(b"x" * 20)
    assert ours.receive(120) == []
    theirs.sendall(b"x")
    with pytest.raises(InvalidInputError) as caught:
        ours.receive(120)
    assert str(caught.value) == f"{listener.getsockname()}: says a line without end"
    ours.close()
    theirs.close()


def test_silence_ends(listener: socket.socket) -> None:
    """Half a line is none."""
    ours, theirs = accepted(listener, timeout=0.01)
    theirs.sendall(b'{"ok": true')
    with pytest.raises(BusyError) as caught:
        ours.ask({"op": "prefetch"})
    assert str(caught.value) == f"{listener.getsockname()}: its seeder does not answer"
    ours.close()
    theirs.close()


def test_no_seeder(tmp_path: Path) -> None:
    """Nobody, or one that was killed: known at once."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    for path in (tmp_path / "dead", tmp_path / "none", tmp_path / "none" / "none"):
        with pytest.raises(NotFoundError) as caught:
            Connection(path, 120)
        assert str(caught.value) == f"{path}: no seeder listens there"


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (errno.EACCES, NotFoundError, "Permission denied"),
        (errno.EAGAIN, BusyError, "its seeder does not answer"),
    ],
)
def test_a_seeder_that_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, error: int, kind: type[NarswarmError], reason: str
) -> None:
    """Whoever may not ask has none; one with too many callers is there."""
    path = Path("/run/narswarm/s")

    def near(_: Path) -> AbstractContextManager[Path]:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fetchwire, "near", near)
    with pytest.raises(kind) as caught:
        Connection(path, 120)
    assert str(caught.value) == f"{path}: {reason}"
