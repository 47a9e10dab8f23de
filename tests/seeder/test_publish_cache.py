# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.publish_cache: what is taken from the cache of `guix publish`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from narswarm.errors import InvalidInputError, NotFoundError
from seeder.publish_cache import Baked, baked, open_file, stamp
from tests.seeder.conftest import Made, World


def bake(cache: Path, made: Made, compression: str = "zstd") -> Path:
    """Put an item into a cache as `guix publish` does; the path of its NAR."""
    directory = cache / compression
    directory.mkdir(parents=True, exist_ok=True)
    name = made.path.rpartition("/")[2]
    (directory / f"{name}.narinfo").write_bytes(made.narinfo)
    path = directory / f"{name}.nar"
    path.write_bytes(made.nar)
    return path


def test_a_cache(world: World, tmp_path: Path) -> None:
    """Of an item that is there several times the one counts that decompresses fastest."""
    cache = tmp_path / "cache"
    one, two = world.make(), world.make()
    bake(cache, one, "gzip")
    first = bake(cache, one, "zstd")
    second = bake(cache, two, "none")
    (cache / "hashes").mkdir()
    found = list(baked(cache))
    assert found == [
        Baked(one.path.rpartition("/")[2], first),
        Baked(two.path.rpartition("/")[2], second),
    ]
    info = found[0].narinfo()
    assert (info.store_path, info.nar_hash) == (one.path, one.item.nar_hash)
    assert info.sources == ()


def test_what_is_left_alone(world: World, tmp_path: Path) -> None:
    """Links, other names, and what lacks one of its files."""
    cache = tmp_path / "cache"
    made = world.make()
    path = bake(cache, made)
    secret = tmp_path / "secret"
    secret.write_bytes(made.nar)
    path.with_suffix(".narinfo").rename(tmp_path / "narinfo")
    assert list(baked(cache)) == []
    path.with_suffix(".narinfo").symlink_to(tmp_path / "narinfo")
    assert list(baked(cache)) == []
    path.with_suffix(".narinfo").unlink()
    (tmp_path / "narinfo").rename(path.with_suffix(".narinfo"))
    path.unlink()
    path.symlink_to(secret)
    assert list(baked(cache)) == []
    assert stamp(path) == ""
    with pytest.raises(OSError, match="symbolic links"):
        open_file(path)
    for name in ("hello.nar", "hello.narinfo", "..nar"):
        (cache / "zstd" / name).write_bytes(b"")
    (cache / "lzip").symlink_to(cache / "zstd")
    assert list(baked(cache)) == []


def test_a_cache_that_is_not_there(tmp_path: Path) -> None:
    """It is an error that the operator sees."""
    with pytest.raises(NotFoundError) as caught:
        list(baked(tmp_path / "none"))
    assert str(caught.value) == f"{tmp_path / 'none'}: No such file or directory"


def test_narinfos(world: World, tmp_path: Path) -> None:
    """One that is gone, or is another item's, doesn't count."""
    one, two = world.make(), world.make()
    path = bake(tmp_path, one)
    (item,) = baked(tmp_path)
    beside = path.with_suffix(".narinfo")
    beside.write_bytes(two.narinfo)
    with pytest.raises(InvalidInputError) as other:
        item.narinfo()
    assert str(other.value) == f"{beside}: is that of {two.path}"
    beside.unlink()
    with pytest.raises(NotFoundError) as gone:
        item.narinfo()
    assert str(gone.value) == f"{beside}: No such file or directory"


def test_stamps(tmp_path: Path) -> None:
    """They change with the file; only regular files have one, and only these are opened."""
    file = tmp_path / "file"
    assert stamp(file) == ""
    file.write_bytes(b"x")
    before = stamp(file)
    assert before
    os.utime(file, (1, 1))
    changed = stamp(file)
    assert changed not in ("", before)
    file.write_bytes(b"xy")
    os.utime(file, (1, 1))
    assert stamp(file) not in ("", changed)
    assert stamp(tmp_path) == ""
    with open_file(file) as opened:
        assert opened.read() == b"xy"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="is not a regular file"):
        open_file(fifo)
