# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of scripts.guixdaemon, with shell scripts in the substituter's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.guixdaemon import Substituter

PATH = "/gnu/store/" + "0" * 32 + "-item"


def substituter(file: Path, text: str) -> Substituter:
    """A script that gets what the substituter would get."""
    file.write_text(text)
    return Substituter(["/bin/sh", str(file)], {"PATH": "/usr/bin:/bin", "SAID": "so"})


@pytest.mark.parametrize(("reply", "known"), [("", False), (f"{PATH}\\n", True)])
def test_what_is_there(tmp_path: Path, reply: str, known: bool) -> None:
    """An empty line says that nothing is."""
    text = f'read line; printf "{reply}\\n" >&4; read end'
    assert substituter(tmp_path / "s", text).available(PATH) is known


def test_an_item_is_asked_for(tmp_path: Path) -> None:
    """By its path and where it goes; what was said of peers is told, what servers sent isn't."""
    text = f"""echo "$1 $2 $SAID" > {tmp_path}/started
        while read line; do
            echo "$line" > {tmp_path}/asked
            echo "@ download-succeeded /x https://example.org/x 5"
            echo "@ download-succeeded /x bittorrent:aa 7" >&2
            echo success >&4
        done"""
    with substituter(tmp_path / "s", text) as started:
        for number in range(2):
            assert started.substitute(PATH, tmp_path / str(number)) == ("success", 7)
            assert (tmp_path / "asked").read_text() == f"substitute {PATH} {tmp_path}/{number}\n"
    assert (tmp_path / "started").read_text() == "substitute --substitute so\n"


def test_one_that_ends(tmp_path: Path) -> None:
    """Is no reason to wait."""
    with (
        substituter(tmp_path / "s", "echo broken >&2") as started,
        pytest.raises(SystemExit) as caught,
    ):
        started.substitute(PATH, tmp_path / "x")
    assert str(caught.value).startswith("the substituter has ended: b")
