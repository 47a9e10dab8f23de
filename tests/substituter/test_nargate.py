# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.nargate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from narswarm import base32, nar, narinfo
from narswarm.errors import InvalidInputError, NetworkError
from narswarm.narinfo import Narinfo
from substituter.nargate import Gate, WrongNarError, exactly

PATH = "/gnu/store/5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f-lab-app"


def archive(directory: Path, text: bytes) -> bytes:
    """The NAR of a small directory."""
    tree = directory / f"tree-{len(text)}"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(text)
    return b"".join(nar.dump(tree))


def vouching(data: bytes) -> Narinfo:
    """A narinfo for an archive."""
    digest = hashlib.sha256(data).digest()
    return narinfo.parse(narinfo.compose(PATH, digest, len(data), []))


def test_the_signed_nar_is_put_in_place(tmp_path: Path) -> None:
    """A NAR with the narinfo's hash and size is restored."""
    data = archive(tmp_path, b"hello")
    Gate(vouching(data), str(tmp_path / "out"), None).restore([data])
    assert b"".join(nar.dump(tmp_path / "out")) == data


def test_another_nar_leaves_nothing(tmp_path: Path) -> None:
    """A well-formed NAR of the right size and another hash is removed, and both hashes are told."""
    good, wrong = archive(tmp_path, b"hello"), archive(tmp_path, b"HELLO!")
    wrong = wrong.replace(b"\x06" + bytes(7) + b"HELLO!\0\0", b"\x05" + bytes(7) + b"HELLO\0\0\0")
    assert len(wrong) == len(good)
    gate = Gate(vouching(good), str(tmp_path / "out"), None)
    with pytest.raises(WrongNarError) as caught:
        gate.restore([wrong])
    expected, actual = (hashlib.sha256(each).digest() for each in (good, wrong))
    assert caught.value.actual == actual
    assert str(caught.value) == (
        f"{PATH}: expected {base32.format_hash(expected)}, got {base32.format_hash(actual)}"
    )
    assert not (tmp_path / "out").exists()


def test_a_longer_nar_is_cut_off(tmp_path: Path) -> None:
    """Nothing beyond NarSize is read, however much a source would send."""
    good = archive(tmp_path, b"hello")

    def endless() -> Iterator[bytes]:
        yield archive(tmp_path, b"x" * 1000)
        raise AssertionError("read on")

    with pytest.raises(InvalidInputError):
        Gate(vouching(good), str(tmp_path / "out"), None).restore(endless())
    assert not (tmp_path / "out").exists()


def test_a_source_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    """What was restored so far is gone when the source gives up."""
    good = archive(tmp_path, b"hello")

    def broken() -> Iterator[bytes]:
        yield good[:-10]
        raise NetworkError("swarm", "is gone")

    with pytest.raises(NetworkError, match="swarm: is gone"):
        Gate(vouching(good), str(tmp_path / "out"), None).restore(broken())
    assert not (tmp_path / "out").exists()


def test_leftovers_of_a_killed_helper_are_replaced(tmp_path: Path) -> None:
    """An incomplete item of an earlier try is no obstacle, read-only directories included."""
    data = archive(tmp_path, b"hello")
    left = tmp_path / "out" / "deep"
    left.mkdir(parents=True)
    (left / "partial").write_bytes(b"...")
    left.chmod(0o555)
    (tmp_path / "out").chmod(0o555)
    Gate(vouching(data), str(tmp_path / "out"), None).restore([data])
    assert b"".join(nar.dump(tmp_path / "out")) == data


@pytest.mark.parametrize("size", [0, 1, 5, 6, 7, 11, 12])
def test_exactly_stops_at_the_size_without_reading_on(size: int) -> None:
    """A stream that isn't closed by the server is left after the last wanted byte."""

    def stream() -> Iterator[bytes]:
        yield b"hello "
        yield b"world!"
        raise AssertionError("read on")

    assert b"".join(exactly(stream(), size)) == b"hello world!"[:size]
