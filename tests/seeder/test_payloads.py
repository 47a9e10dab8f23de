# SPDX-License-Identifier: GPL-3.0-or-later
"""Payloads: within the quota, of the NAR that was promised, or not at all."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from narswarm import metainfo
from narswarm.errors import MismatchError, NarswarmError
from narswarm.metainfo import Metainfo
from narswarm.payload import CHUNK, file_name
from seeder import payloads
from seeder.inventory import Item
from seeder.payloads import PayloadMaker, StoppedError
from seeder.room import FullError, Room
from tests.seeder.conftest import World


def make(
    world: World, item: Item, chunks: Iterator[bytes], quota: int = 1 << 30, *, stop: bool = False
) -> Metainfo:
    """Make a payload in the world's root."""
    target = world.root / "payloads"
    target.mkdir(exist_ok=True)
    room = Room(target, quota, lambda: 0, lambda _: None)
    with room.claim(evict=False) as claim:
        return PayloadMaker(target, lambda: stop, 1).make(item, chunks, claim)


def left(world: World) -> list[str]:
    """Files that are there."""
    return [path.name for path in (world.root / "payloads").iterdir()]


@pytest.mark.parametrize("size", [0, 1, CHUNK + 1])
def test_a_payload_is_the_canonical_one(world: World, size: int) -> None:
    """It decompresses to the NAR, and its torrent may carry that."""
    made = world.make(content=b"x" * size)
    meta = make(world, made.item, iter([made.nar]))
    payload = (world.root / "payloads" / file_name(made.item.nar_hash)).read_bytes()
    reader = zstandard.ZstdDecompressor().stream_reader(payload, read_across_frames=True)
    assert reader.read() == made.nar
    assert meta.length == len(payload)
    metainfo.require_for(meta, made.item.nar_hash, made.item.nar_size)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda nar: nar[:-1] + b"\1", "has another NAR than the database says"),
        (lambda nar: nar[:-8], "has another NAR than the database says"),
        (lambda nar: nar + b"\0", "has a longer NAR than the database says"),
    ],
)
def test_another_nar_makes_nothing(
    world: World, change: Callable[[bytes], bytes], reason: str
) -> None:
    """A store that was changed under the daemon's hands isn't offered."""
    made = world.make()
    with pytest.raises(MismatchError) as caught:
        make(world, made.item, iter([change(made.nar)]))
    assert str(caught.value) == f"{made.path}: {reason}"
    assert left(world) == []


def test_the_quota_is_kept(world: World) -> None:
    """A payload that doesn't fit is given up."""
    made = world.make()
    directory = world.root / "payloads"
    length = make(world, made.item, iter([made.nar])).length
    make(world, made.item, iter([made.nar]), length)
    (directory / file_name(made.item.nar_hash)).unlink()
    with pytest.raises(FullError) as caught:
        make(world, made.item, iter([made.nar]), length - 1)
    assert str(caught.value) == f"{directory}: may hold {length - 1} bytes and is full"
    assert left(world) == []


@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (errno.ENOSPC, FullError, "No space left on device"),
        (errno.EDQUOT, FullError, "Disk quota exceeded"),
        (errno.EIO, NarswarmError, "Input/output error"),
    ],
)
def test_a_full_disk_is_no_end(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[NarswarmError],
    reason: str,
) -> None:
    """Errors of the disk are told apart: for some, waiting helps."""

    def broken(*_: object, **__: object) -> None:
        raise OSError(number, reason)

    monkeypatch.setattr(payloads, "atomic_file", broken)
    made = world.make()
    with pytest.raises(NarswarmError) as caught:
        make(world, made.item, iter([made.nar]))
    assert type(caught.value) is kind
    assert caught.value.reason == reason


def test_stopping_leaves_nothing(world: World) -> None:
    """A seeder that ends doesn't finish a payload of hours."""
    made = world.make()
    with pytest.raises(StoppedError):
        make(world, made.item, iter([made.nar]), stop=True)
    assert left(world) == []


def test_errors_of_reading_pass_through(world: World, tmp_path: Path) -> None:
    """What is wrong with the item is what its reader says."""
    made = world.make()

    def chunks() -> Iterator[bytes]:
        yield made.nar[:10]
        raise MismatchError(tmp_path, "became shorter while it was read")

    with pytest.raises(MismatchError, match="became shorter"):
        make(world, made.item, chunks())
    assert left(world) == []
