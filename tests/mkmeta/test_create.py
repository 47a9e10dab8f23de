# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `mkmeta.create`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from mkmeta.create import Plan, create
from mkmeta.inputs import NarInput, open_nar
from narswarm import metainfo
from narswarm.errors import AlreadyExistsError, CodecError
from tests.fixtures.golden import reference

GOLDEN: list[dict[str, Any]] = [
    vector
    for vector in json.loads(
        (Path(__file__).parents[1] / "fixtures/golden/profile-1.json").read_text()
    )["nars"]
    if vector["nar_size"] in (112, 16384, 65528, 8388616)
]


def nar_of(vector: dict[str, Any]) -> bytes:
    """Return the NAR of a golden vector."""
    return reference.nar(reference.CONTENTS[vector["contents"]](vector["contents_size"]))


def source(nar: bytes, size: int | None = None) -> NarInput:
    """Return a NAR as `open_nar` does."""
    return NarInput("x", iter([nar]), size, None)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("vector", GOLDEN, ids=lambda vector: str(vector["nar_size"]))
def test_golden(tmp_path: Path, vector: dict[str, Any], known: bool) -> None:
    """Whether the size of the NAR was known or not, its golden payload and torrent are written."""
    nar = nar_of(vector)
    made = create(source(nar, len(nar) if known else None), Plan(tmp_path))
    assert made.nar_size == len(nar)
    assert made.meta.infohash_v1.hex() == vector["infohash_v1"]
    assert made.meta.infohash_v2.hex() == vector["infohash_v2"]
    payload = tmp_path / vector["name"]
    assert made.payload == payload
    assert hashlib.sha256(payload.read_bytes()).hexdigest() == vector["payload_sha256"]
    torrent = tmp_path / f"{vector['name']}.torrent"
    assert made.torrent == torrent
    assert metainfo.decode(torrent.read_bytes(), "x") == made.meta
    assert len(list(tmp_path.iterdir())) == 2


def test_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a plan the same is computed and nothing is written."""
    monkeypatch.chdir(tmp_path)
    nar = nar_of(GOLDEN[0])
    made = create(source(nar))
    assert (made.payload, made.torrent) == (None, None)
    assert made.meta == create(source(nar), Plan(tmp_path)).meta


def test_torrent_only(tmp_path: Path) -> None:
    """Only the torrent is kept, with the trackers and the comment that were asked for."""
    nar = nar_of(GOLDEN[0])
    plan = Plan(tmp_path, torrent_only=True, trackers=["http://t"], comment="for people")
    made = create(source(nar), plan)
    assert made.payload is None
    assert made.torrent == next(tmp_path.iterdir())
    told = metainfo.decode_outside(made.torrent.read_bytes(), "x")
    assert told == (("http://t",), (), "for people")


def test_no_overwriting(tmp_path: Path) -> None:
    """What was made before is only made again with force."""
    nar = nar_of(GOLDEN[0])
    made = create(source(nar), Plan(tmp_path))
    with pytest.raises(AlreadyExistsError) as caught:
        create(source(nar), Plan(tmp_path))
    assert str(caught.value) == f"{made.payload}: exists already"
    assert create(source(nar), Plan(tmp_path, force=True)) == made
    assert len(list(tmp_path.iterdir())) == 2


def opened(directory: Path) -> list[str]:
    """Files of a directory that this process has open, with a name or without one."""
    links = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return [str(link) for link in links if link.is_relative_to(directory)]


def test_interrupt(tmp_path: Path) -> None:
    """An interrupt in the middle leaves nothing behind."""

    def interrupted() -> Iterator[bytes]:
        yield reference.noise(20_000_000)
        assert opened(tmp_path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create(NarInput("x", interrupted(), None, None), Plan(tmp_path))
    assert not list(tmp_path.iterdir())


def test_progress() -> None:
    """Progress counts bytes of the NAR and ends with all of them."""
    seen: list[int] = []
    nar = reference.nar(bytes(9 * 2**20))
    create(source(nar, len(nar)), None, seen.append)
    assert seen == [4 * 2**20, 8 * 2**20, len(nar)]


def test_same_as_the_tree(tmp_path: Path) -> None:
    """A tree and its NAR have the same torrent."""
    (tmp_path / "file").write_bytes(b"text")
    with open_nar(str(tmp_path / "file")) as tree:
        made = create(tree)
    assert made == create(source(reference.nar(b"text")))


def test_other_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another zstd makes nothing at all."""
    monkeypatch.setattr(zstandard, "ZSTD_VERSION", (1, 5, 8))
    with pytest.raises(CodecError):
        create(source(nar_of(GOLDEN[0])), Plan(tmp_path))
    assert not list(tmp_path.iterdir())
