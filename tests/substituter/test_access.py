# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.access."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from substituter.access import EXECUTE, READ, WRITE, Obstacle, User, obstacle

OTHER = 12345
OURS = os.geteuid()
GROUP = os.getegid()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that everybody may enter, with all that leads to it."""
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_uid == OURS and each != Path("/"):
            each.chmod(each.stat().st_mode | 0o011)
    return tmp_path


@pytest.mark.parametrize(
    ("mode", "uid", "groups", "wanted", "may"),
    [
        (0o400, OURS, (), READ, True),
        (0o077, OTHER, (), READ | WRITE | EXECUTE, True),
        (0o070, OTHER, (7, GROUP), READ | WRITE | EXECUTE, True),
        (0o707, OTHER, (GROUP,), READ, False),
        (0o704, OTHER, (), READ, True),
        (0o704, OTHER, (), READ | WRITE, False),
        (0o644, OTHER, (), EXECUTE, False),
        (0o000, 0, (), READ | WRITE, True),
        (0o644, 0, (), EXECUTE, False),
        (0o100, 0, (), EXECUTE, True),
    ],
)
def test_permission_bits(
    place: Path, mode: int, uid: int, groups: tuple[int, ...], wanted: int, may: bool
) -> None:
    """The first of owner, group and others decides; root may all but run what nobody may."""
    file = place / "file"
    file.touch()
    file.chmod(mode)
    assert (obstacle(file, User(uid, groups), wanted) is None) is may


def test_the_directory_that_bars_the_way(place: Path) -> None:
    """It is named, not the file behind it; links are followed."""
    closed = place / "closed"
    closed.mkdir()
    (closed / "file").touch()
    closed.chmod(0o700)
    (place / "link").symlink_to(closed / "file")
    found = obstacle(place / "link", User(OTHER, ()), READ)
    assert found == Obstacle(closed, f"user {OTHER} may not enter it")
    closed.chmod(0o755)
    (closed / "file").chmod(0o600)
    found = obstacle(place / "link", User(OTHER, ()), READ)
    assert found == Obstacle(closed / "file", f"user {OTHER} may not read it")


def test_what_is_not_there(place: Path) -> None:
    """The path is named as it was asked for."""
    found = obstacle(place / "none", User(0, ()), READ)
    assert found == Obstacle(place / "none", "No such file or directory")
