# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.files."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from narswarm.files import atomic_file, write_atomically


def test_a_written_file_has_its_bytes_and_mode(tmp_path: Path) -> None:
    """The file has the given content and permissions, and nothing else is in the directory."""
    write_atomically(tmp_path / "f", b"abc", mode=0o600, durable=True)
    assert (tmp_path / "f").read_bytes() == b"abc"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    """When the block fails, the old content stays and no temporary file is left."""
    write_atomically(tmp_path / "f", b"old")

    def interrupted() -> None:
        with atomic_file(tmp_path / "f") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_the_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    """While it is being written nobody sees the name."""
    with atomic_file(tmp_path / "f") as file:
        file.write(b"x")
        assert not (tmp_path / "f").exists()
    assert (tmp_path / "f").read_bytes() == b"x"


def test_a_missing_directory_is_an_os_error(tmp_path: Path) -> None:
    """A directory that isn't there is the caller's to handle."""
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "f", b"")
