# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.fetching_control; what goes over the socket is in test_fetching."""

from __future__ import annotations

import json
import math
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from narswarm import base32
from narswarm.control import Caller, ControlServer, near
from narswarm.errors import InvalidInputError, NarswarmError, NetworkError
from narswarm.fetchclient import SeederClient, Wanted
from seeder import fetching_control
from seeder.fetching_control import FetchControl, Permissions, parse_wanted
from seeder.fetching_job import View

PATH = f"/gnu/store/{'0' * 32}-item"
REQUEST = {"nar_hash": base32.format_hash(b"\1" * 32), "nar_size": 5, "store_path": PATH}


class Refuser:
    """A fetcher that only remembers."""

    def __init__(self, *views: View) -> None:
        self.refused: list[tuple[bytes, str]] = []
        self.views = list(views)
        self.paces = [(0.0, math.inf), (0.0, math.inf), (1000.4, 0.25)]

    def pace(self) -> tuple[float, float]:
        """Something comes from the third time on."""
        return self.paces.pop(0) if self.paces[1:] else self.paces[0]

    @property
    def members(self) -> int:
        """A crowd is there as soon as something comes."""
        return 0 if self.paces[1:] else 7

    def refuse(self, nar_hash: bytes, infohash: str) -> None:
        """Remember it."""
        self.refused.append((nar_hash, infohash))

    def use(self, _wanted: Wanted, _listener: object, *, more: bool) -> Refuser:
        """Be the context."""
        self.more = more
        return self

    def __enter__(self) -> Any:
        return lambda: self.views.pop(0) if self.views[1:] else self.views[0]

    def __exit__(self, *_: object) -> None:
        pass


def test_what_is_wanted() -> None:
    """A NAR by its hash, with its size and the item."""
    assert parse_wanted(REQUEST) == Wanted(b"\1" * 32, 5, PATH)
    assert parse_wanted(REQUEST | {"store_path": PATH[11:]}) == Wanted(b"\1" * 32, 5, PATH)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("nar_hash", 5, "5: is not a sha256 hash"),
        ("nar_size", 0, "nar_size: is not a number of bytes"),
        ("nar_size", 1 << 63, "nar_size: is not a number of bytes"),
        ("nar_size", True, "nar_size: is not a number of bytes"),
        ("nar_size", "5", "nar_size: is not a number of bytes"),
        ("store_path", "/etc/passwd", "/etc/passwd: is not the name of a store item"),
        ("store_path", f"{PATH}/bin", f"{PATH}/bin: is not the name of a store item"),
    ],
)
def test_what_is_no_nar(name: str, value: object, error: str) -> None:
    """Each part is looked at."""
    with pytest.raises(InvalidInputError) as caught:
        parse_wanted(REQUEST | {name: value})
    assert str(caught.value) == error


@pytest.mark.parametrize("infohash", ["ab" * 31, "ab" * 33, 5, None, "x" * 64])
def test_a_refusal_names_a_torrent(infohash: object) -> None:
    """By its infohash of version 2, nothing else: it becomes the name of a file."""
    refuser: Any = Refuser()
    refuse = FetchControl(refuser).operations["refuse"]
    with pytest.raises(ValueError if infohash == "x" * 64 else InvalidInputError):
        refuse(REQUEST | {"infohash": infohash})
    assert refuser.refused == []
    assert refuse(REQUEST | {"infohash": "AB" * 32}) == {}
    assert refuser.refused == [(b"\1" * 32, "ab" * 32)]


def test_who_may_ask() -> None:
    """Everybody how it is doing; root, this user, and those named what costs something."""
    permitted = Permissions(("nobody", "no-such-user"))
    for uid, may in ((0, True), (os.geteuid(), True), (65534, True), (65533, False)):
        caller = Caller(1, uid, uid)
        assert permitted("status", caller)
        assert permitted("list", caller)
        for op in ("fetch", "prefetch", "refuse", "pause", "add", "unknown"):
            assert permitted(op, caller) is may


@pytest.mark.parametrize(
    ("view", "error"),
    [
        (View(serial=1), "item: has no file"),
        (View(serial=1, path=Path("/none/x")), "item: No such file or directory"),
        (View(error=NarswarmError("x", "is bad")), "item: is bad"),
    ],
)
def test_a_fetch_without_a_file(tmp_path: Path, view: View, error: str) -> None:
    """Is an error."""
    refuser: Any = Refuser(view)
    control = FetchControl(refuser)
    server = ControlServer(tmp_path, {}, streams=control.streams)
    with (
        SeederClient(tmp_path / "control.sock") as client,
        client.fetch(Wanted(b"\1" * 32, 5, PATH)) as fetch,
        pytest.raises(NetworkError) as caught,
    ):
        list(fetch.chunks())
    server.close()
    assert str(caught.value) == f"{'0' * 32}-{error}"


def test_what_is_prepared_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is a torrent, too; and as soon as anything comes, how fast everything does."""
    monkeypatch.setattr(fetching_control, "INTERVAL", 0.001)
    path = tmp_path / "payload"
    path.write_bytes(b"hello")
    source = View(serial=1, path=path, length=5)
    refuser: Any = Refuser(
        View(),
        View(preparing=True),
        View(),
        replace(source, preparing=True),
        source,
        replace(source, complete=True, contiguous=5),
    )
    server = ControlServer(tmp_path, {}, streams=FetchControl(refuser).streams)
    answers: list[dict[str, Any]] = []
    with near(tmp_path) as directory, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(directory / "control.sock"))
        request = {"op": "fetch", "more": True, **REQUEST}
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile() as lines:
            while not answers or answers[-1]["event"] != "done":
                answers.append(json.loads(lines.readline()))
    server.close()
    assert [(each["event"], each.get("preparing")) for each in answers] == [
        ("progress", True),
        ("progress", False),
        ("source", None),
        ("progress", True),
        ("progress", False),
        ("done", None),
    ]
    told = [(each.get("pace"), each.get("quiet"), each.get("members")) for each in answers]
    coming = (1000, 0.25, 7)
    assert told == [(None, None, 7), coming, (None,) * 3, coming, coming, (None,) * 3]
    assert refuser.more
