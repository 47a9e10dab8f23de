# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `mkmeta.verify`."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from mkmeta.create import Made, Plan, create
from mkmeta.inputs import open_nar
from mkmeta.verify import is_payload, verify
from narswarm.errors import CodecError, NotFoundError
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import Kind, file_name
from tests.fixtures.golden import reference

CONTENTS = reference.noise(300_000)


@pytest.fixture
def item(tmp_path: Path) -> Path:
    """Give a file whose payload has five pieces, the last of them short."""
    (tmp_path / "item").write_bytes(CONTENTS)
    return tmp_path / "item"


@pytest.fixture
def made(item: Path, tmp_path: Path) -> Made:
    """Give its payload and torrent."""
    with open_nar(str(item)) as source:
        return create(source, Plan(tmp_path))


def test_payload_and_nar(made: Made, tmp_path: Path) -> None:
    """The payload and the NAR that it was made of agree with the torrent."""
    archive = tmp_path / "x.nar"
    archive.write_bytes(reference.nar(CONTENTS))
    for path in (archive, made.payload):
        seen: list[int] = []
        report = verify(str(path), made.meta, seen.append)
        assert report.fault is None
        assert report.length == seen[-1] == made.meta.length


def test_tree(tmp_path: Path) -> None:
    """A directory agrees with the torrent that was made of it, and not after a change."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(CONTENTS)
    with open_nar(str(tree)) as source:
        meta = create(source).meta
    assert verify(str(tree), meta).fault is None
    flip(200_000)(tree / "file")
    report = verify(str(tree), meta)
    assert report.bad_pieces == (3,)
    assert report.fault == "1 of 5 pieces differ from the torrent"


def flip(position: int) -> Callable[[Path], None]:
    """Return the change of one byte."""

    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)

    return change


def resize(more: int) -> Callable[[Path], None]:
    """Return the change of the size."""
    return lambda path: os.truncate(path, path.stat().st_size + more)


@pytest.mark.parametrize(
    ("change", "bad", "fault"),
    [
        (flip(0), (0,), "1 of 5 pieces differ from the torrent"),
        (flip(65535), (0,), "1 of 5 pieces differ from the torrent"),
        (flip(65536), (1,), "1 of 5 pieces differ from the torrent"),
        (flip(-1), (4,), "1 of 5 pieces differ from the torrent"),
        (resize(-1), (4,), "1 of 5 pieces differ from the torrent"),
        (resize(-100_000), (3, 4), "2 of 5 pieces differ from the torrent"),
        (
            lambda path: os.truncate(path, 0),
            (0, 1, 2, 3, 4),
            "5 of 5 pieces differ from the torrent",
        ),
        (resize(1), (), "has 300131 bytes, and the torrent 300130"),
        (resize(100_000), (), "has 400130 bytes, and the torrent 300130"),
    ],
)
def test_damage(
    made: Made, change: Callable[[Path], None], bad: tuple[int, ...], fault: str
) -> None:
    """Damage is found where it is, up to the end of the file."""
    assert made.payload is not None
    change(made.payload)
    report = verify(str(made.payload), made.meta)
    assert report.bad_pieces == bad
    assert report.fault == fault


def test_both_hashes_count(made: Made) -> None:
    """A torrent that is wrong for v1 or for v2 peers alone is found out."""
    meta = made.meta
    for lying in (
        dataclasses.replace(meta, pieces=bytes(20) + meta.pieces[20:]),
        dataclasses.replace(meta, piece_layer=bytes(32) + meta.piece_layer[32:]),
    ):
        assert verify(str(made.payload), lying).bad_pieces == (0,)


def test_one_piece(tmp_path: Path) -> None:
    """A payload of one piece is compared with the root itself."""
    data = reference.payload(reference.nar(b"text"))
    hasher = PieceHasher()
    hasher.update(data)
    (tmp_path / "x").write_bytes(data)
    meta = Metainfo.of(file_name(bytes(32)), hasher.finish())
    report = verify(str(tmp_path / "x"), meta)
    assert report.bad_pieces == ()
    assert report.fault == "is the torrent's payload, but its name is not the hash of the NAR in it"
    lying = dataclasses.replace(meta, pieces_root=bytes(32))
    assert verify(str(tmp_path / "x"), lying).bad_pieces == (0,)


def test_no_frames(tmp_path: Path) -> None:
    """A torrent of something that isn't compressed at all has no NAR, though its pieces agree."""
    data = bytes(100_000)
    hasher = PieceHasher()
    hasher.update(data)
    (tmp_path / "x").write_bytes(data)
    report = verify(str(tmp_path / "x"), Metainfo.of(file_name(bytes(32)), hasher.finish()))
    assert (report.bad_pieces, report.nar_hash) == ((), None)
    assert report.fault == "is the torrent's payload, but its name is not the hash of the NAR in it"


def test_plain_nars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torrent of the NAR itself is compared with the NAR, for which no codec is needed."""
    monkeypatch.setattr(zstandard, "ZSTD_VERSION", (1, 5, 8))
    archive = reference.nar(b"text")
    file = tmp_path / "x.nar"
    file.write_bytes(archive)
    hasher = PieceHasher()
    hasher.update(archive)
    meta = Metainfo.of(file_name(hashlib.sha256(archive).digest(), Kind.NAR), hasher.finish())
    assert verify(str(file), meta).fault is None
    with pytest.raises(CodecError):
        verify(str(file), dataclasses.replace(meta, name=file_name(meta.nar_hash)))


def test_what_is_a_payload(tmp_path: Path) -> None:
    """Regular files are payloads, unless their name says that they are NARs."""
    for name in ("x.nar", "x.nar.zst", "x"):
        (tmp_path / name).write_bytes(b"")
    assert not is_payload(str(tmp_path))
    assert not is_payload(str(tmp_path / "x.nar"))
    assert is_payload(str(tmp_path / "x.nar.zst"))
    assert is_payload(str(tmp_path / "x"))
    assert not is_payload("-")


def test_missing(tmp_path: Path, made: Made) -> None:
    """What isn't there is not found."""
    with pytest.raises(NotFoundError) as caught:
        verify(str(tmp_path / "missing"), made.meta)
    assert str(caught.value) == f"{tmp_path / 'missing'}: No such file or directory"
