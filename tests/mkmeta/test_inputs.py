# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `mkmeta.inputs`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mkmeta import inputs
from mkmeta.inputs import open_nar
from narswarm import nar, storepath
from narswarm.errors import InvalidInputError, MismatchError, NarswarmError, NotFoundError
from narswarm.nar import NarError
from tests.fixtures.golden import reference

ITEM = "0abp2vlbxjwxv4chlwbx9i2qin70s120-item"


def read(path: Path | str) -> tuple[bytes, int | None, str | None]:
    """Return the NAR that an argument stands for, its size and its store path."""
    with open_nar(str(path)) as source:
        return b"".join(source.chunks), source.size, source.store_path


def refusal(path: Path | str) -> NarswarmError:
    """Return the error that reading an argument ends with."""
    with pytest.raises(NarswarmError) as caught:
        read(path)
    return caught.value


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Give a directory with a file, a link and a directory."""
    root = tmp_path / "tree"
    (root / "inner").mkdir(parents=True)
    (root / "file").write_bytes(reference.noise(3_000_000))
    (root / "link").symlink_to("file")
    return root


@pytest.mark.parametrize("name", ["", "file", "link", "inner"])
def test_anything_has_a_nar(tree: Path, name: str) -> None:
    """Of files, directories and links the NAR is made, and its size is known beforehand."""
    expected = b"".join(nar.dump(tree / name))
    assert read(tree / name) == (expected, len(expected), None)


def test_nar_files(tree: Path) -> None:
    """A regular file named *.nar is a NAR; a directory with such a name is not."""
    archive = b"".join(nar.dump(tree))
    file = tree.with_suffix(".nar")
    file.write_bytes(archive)
    assert read(file) == (archive, len(archive), None)
    directory = tree / "directory.nar"
    directory.mkdir()
    assert read(directory)[0] == b"".join(nar.dump(directory))


def test_store_items(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item of the store is known as such, whatever its name ends in; what is below isn't one."""
    monkeypatch.setattr(storepath, "STORE", str(tree))
    item = tree / f"{ITEM}.nar"
    item.write_bytes(b"text")
    (tree / ITEM).mkdir()
    (tree / ITEM / "bin").write_bytes(b"")
    assert read(item) == (reference.nar(b"text"), 120, str(item))
    assert read(f"{tree}/{ITEM}/")[2] == f"{tree}/{ITEM}"
    assert read(tree / ITEM / "bin")[2] is None
    assert read(tree / "file")[2] is None


@pytest.mark.parametrize("piped", [True, False])
def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: bool) -> None:
    """A NAR on standard input is read to its end; only a file there has a size beforehand."""
    archive = reference.nar(b"text")
    (tmp_path / "file").write_bytes(b"skipped" + archive)
    with open(tmp_path / "file", "rb") as file:
        os.lseek(file.fileno(), 7, os.SEEK_SET)
        if piped:
            reading, writing = os.pipe()
            os.write(writing, archive)
            os.close(writing)
            with open(reading, "rb") as pipe:
                monkeypatch.setattr(sys, "stdin", pipe)
                assert read("-") == (archive, None, None)
        else:
            monkeypatch.setattr(sys, "stdin", file)
            assert read("-") == (archive, len(archive), None)


def test_unreadable_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input that was closed, or is only written, is an error as of any other input."""
    monkeypatch.setattr(sys, "stdin", None)
    assert isinstance(refusal("-"), NotFoundError)
    assert str(refusal("-")) == "standard input: is closed"
    with open(tmp_path / "file", "wb") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert str(refusal("-")) == "standard input: Bad file descriptor"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is cut off after 0 bytes"),
        (b"\x7fELF" * 1000, "does not have the magic of a NAR at byte 0"),
        (reference.nar(b"text")[:-8], "is cut off after 112 bytes"),
        (reference.nar(b"text") + b"x", "has data after its end"),
        (reference.noise(20_000_000), "does not have the magic of a NAR at byte 0"),
        (reference.nar(reference.noise(9_000_000)) + b"x" * 2**20, "has data after its end"),
    ],
)
def test_no_nar(tmp_path: Path, data: bytes, reason: str) -> None:
    """What only has the name of a NAR is refused, however much of it there is."""
    file = tmp_path / "x.nar"
    file.write_bytes(data)
    error = refusal(file)
    assert isinstance(error, NarError)
    assert str(error) == f"{file}: {reason}"


def test_early_end(tmp_path: Path) -> None:
    """A NAR may be left unread; nothing of it stays behind."""
    file = tmp_path / "x.nar"
    file.write_bytes(reference.nar(reference.noise(20_000_000)))
    before = threading.active_count()
    with open_nar(str(file)) as source:
        next(source.chunks)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


@pytest.mark.parametrize("more", [-8, 8])
def test_changing_file(tmp_path: Path, more: int) -> None:
    """A NAR that grows or shrinks while it is read is refused, before it exceeds its bound."""
    file = tmp_path / "x.nar"
    archive = reference.nar(reference.noise(3_000_000))
    file.write_bytes(archive)
    with open_nar(str(file)) as source:
        given = len(next(source.chunks))
        os.truncate(file, len(archive) + more)
        rest: list[bytes] = []
        with pytest.raises(MismatchError) as caught:
            rest.extend(source.chunks)
        assert str(caught.value) == f"{file}: changed while it was read"
        assert given + sum(map(len, rest)) <= len(archive)


def test_missing(tmp_path: Path) -> None:
    """What isn't there is not found."""
    for name in ("x", "x.nar"):
        error = refusal(tmp_path / name)
        assert isinstance(error, NotFoundError)
        assert str(error) == f"{tmp_path / name}: No such file or directory"


def test_special_files(tmp_path: Path) -> None:
    """A FIFO has no NAR, and nobody waits for its writer."""
    os.mkfifo(tmp_path / "fifo")
    assert isinstance(refusal(tmp_path / "fifo"), InvalidInputError)


def test_failing_source() -> None:
    """An error of what is checked passes through, and the check ends."""

    def source() -> Iterator[bytes]:
        yield reference.nar(b"text")[:24]
        raise OSError("disk on fire")

    before = threading.active_count()
    with pytest.raises(OSError, match="disk on fire"):
        list(inputs._checked(source(), "x"))
    assert threading.active_count() == before
