# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.payload`."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from narswarm import payload
from narswarm.errors import CodecError, InvalidInputError
from tests.fixtures.golden import reference

GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "fixtures/golden/profile-1.json").read_text()
)["nars"]
NAR_HASH = hashlib.sha256(b"").digest()
NAME = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"


def threads() -> set[threading.Thread]:
    """Return the threads of compressors that are alive."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("narswarm-")}


@pytest.mark.parametrize(
    "vector", GOLDEN, ids=lambda vector: f"{vector['contents']}-{vector['nar_size']}"
)
def test_golden(vector: dict[str, Any]) -> None:
    """The payloads of NARs around every boundary never change."""
    nar = reference.nar(reference.CONTENTS[vector["contents"]](vector["contents_size"]))
    frames = payload.FrameCompressor([nar])
    made = b"".join(frames)
    assert len(made) == vector["payload_length"]
    assert hashlib.sha256(made).hexdigest() == vector["payload_sha256"]
    assert frames.nar_size == vector["nar_size"] == len(nar)
    assert frames.nar_sha256.hex() == vector["nar_sha256"]
    assert payload.file_name(frames.nar_sha256) == vector["name"]
    assert len(made) <= payload.max_length(len(nar))


@pytest.mark.parametrize("workers", [None, 1, 3, 64])
def test_frames_are_functions_of_their_chunks(workers: int | None) -> None:
    """Frames don't depend on how the NAR comes, on the workers or on what a worker did before."""
    chunks = [reference.mixed(payload.CHUNK), reference.zeros(payload.CHUNK), reference.text(5000)]
    nar = b"".join(chunks) * 2
    pieces = [nar[start : start + 1_000_003] for start in range(0, len(nar), 1_000_003)]
    frames = list(payload.FrameCompressor(pieces, workers))
    expected = [nar[start : start + payload.CHUNK] for start in range(0, len(nar), payload.CHUNK)]
    assert frames == [payload.compress_chunk(chunk) for chunk in expected]


@pytest.mark.parametrize("size", [1, 300, 70_000, payload.CHUNK])
def test_frame_header(size: int) -> None:
    """A frame says its content size and has neither checksum nor dictionary (RFC 8878)."""
    header = zstandard.get_frame_parameters(payload.compress_chunk(reference.mixed(size)))
    assert header.content_size == size
    assert not header.has_checksum
    assert header.dict_id == 0


@given(st.lists(st.binary(max_size=3000), max_size=20))
def test_round_trip(pieces: list[bytes]) -> None:
    """Any zstd makes the NAR of the payload again; of nothing there is nothing."""
    frames = payload.FrameCompressor(iter(pieces), 2)
    made = b"".join(frames)
    nar = b"".join(pieces)
    assert frames.nar_sha256 == hashlib.sha256(nar).digest()
    if nar:
        assert zstandard.ZstdDecompressor().decompress(made) == nar
    else:
        assert made == b""


def test_threads_end() -> None:
    """No thread is left after the last frame."""
    frames = payload.FrameCompressor([bytes(payload.CHUNK * 3)], 2)
    before = threads()
    next(frames)
    assert threads() - before
    list(frames)
    assert not threads() - before


def test_closing_early() -> None:
    """Closing ends the threads; nothing more is read, and there are no more frames and no hash."""
    source = iter([bytes(payload.CHUNK)] * 10)
    before = threads()
    with payload.FrameCompressor(source, 2) as frames:
        next(frames)
    assert not threads() - before
    assert len(list(source)) == 10 - 4
    assert list(frames) == []
    with pytest.raises(RuntimeError, match="the last frame hasn't come yet"):
        frames.nar_sha256  # noqa: B018
    with pytest.raises(RuntimeError, match="the last frame hasn't come yet"):
        frames.nar_size  # noqa: B018


def test_error_of_the_source() -> None:
    """An exception of the source is the consumer's, after the frames it can't belong to."""

    def source() -> Iterator[bytes]:
        yield bytes(payload.CHUNK)
        raise OSError("disk on fire")

    before = threads()
    frames = payload.FrameCompressor(source(), 2)
    with pytest.raises(OSError, match="disk on fire"):
        list(frames)
    assert not threads() - before
    with pytest.raises(RuntimeError):
        frames.nar_sha256  # noqa: B018


def test_bounded_read_ahead() -> None:
    """No more chunks are in memory than there are workers and two."""
    taken = 0

    def source() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(20):
            taken += 1
            yield bytes(payload.CHUNK)

    ahead = [taken - given for given, _ in enumerate(payload.FrameCompressor(source(), 3), 1)]
    assert max(ahead) == 3 + 2 - 1
    assert taken == 20


@pytest.mark.parametrize("kind", [payload.Kind.ZSTD, payload.Kind.NAR])
def test_names(kind: payload.Kind) -> None:
    """A name is the NarHash in nix-base32 and the kind, and reads back."""
    name = payload.file_name(NAR_HASH, kind)
    assert name == f"{NAME}.{kind}"
    assert payload.parse_file_name(name) == (NAR_HASH, kind)
    assert payload.kind_of(name) is kind


SERVER_NAME = f"{'0' * 32}-hello+1.0?x=y"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        (SERVER_NAME, True),
        (f"{'0' * 32}-{'n' * 211}", True),
        (f"{'0' * 32}-{'n' * 212}", False),
        (f"/gnu/store/{SERVER_NAME}", False),
        (f"zstd/{SERVER_NAME}", False),
        (f"{SERVER_NAME}%20", False),
        (f"{SERVER_NAME}\n", False),
        ("hello", False),
        ("..", False),
    ],
)
def test_names_of_servers(name: str, known: bool) -> None:
    """A server's file is called like its store item, and like nothing that leads elsewhere."""
    assert payload.is_server_name(name) is known
    if known:
        assert payload.kind_of(name) is payload.Kind.SERVER
        return
    with pytest.raises(InvalidInputError) as caught:
        payload.kind_of(name)
    assert str(caught.value) == f"{name[:80]}: is not the name of a payload"


@pytest.mark.parametrize(
    "name",
    [
        "",
        NAME,
        f"{NAME}.zst",
        f"{NAME}.nar.xz",
        f"{NAME}.nar.zst\n",
        f"{NAME[1:]}.nar",
        f"{NAME}0.nar",
        f"e{NAME[1:]}.nar",
        f"../{NAME}.nar",
        f"{NAME.upper()}.nar",
    ],
)
def test_foreign_names(name: str) -> None:
    """Whatever isn't exactly such a name is refused."""
    with pytest.raises(InvalidInputError) as caught:
        payload.parse_file_name(name)
    assert str(caught.value) == f"{name}: is not the name of a payload"


def test_surplus_bits_of_a_name() -> None:
    """One hash has one name: digits that 32 bytes can't give are refused."""
    with pytest.raises(InvalidInputError):
        payload.parse_file_name(f"z{NAME[1:]}.nar")


@pytest.mark.parametrize(
    ("nar_size", "longest"), [(0, 65536), (63, 65599), (64, 65601), (2**30, 2**30 + 2**24 + 65536)]
)
def test_max_length(nar_size: int, longest: int) -> None:
    """A payload is at most a 64th and 64 KiB longer than its NAR."""
    assert payload.max_length(nar_size) == longest


def test_codec_is_right() -> None:
    """The zstd of this environment is the one of profile 1, and says so every time."""
    payload.check_codec()
    payload.check_codec()


def test_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another libzstd makes no payloads, and the error names both versions."""
    monkeypatch.setattr(zstandard, "ZSTD_VERSION", (1, 5, 6))
    for make in (payload.check_codec, lambda: payload.FrameCompressor([]), compress_something):
        with pytest.raises(CodecError) as caught:
            make()
        assert str(caught.value) == (
            "libzstd 1.5.6: payloads of profile 1 are made by libzstd 1.5.7 only"
        )


def compress_something() -> object:
    """Make a frame."""
    return payload.compress_chunk(b"x")


def test_other_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A libzstd that has the version but makes other frames is found out."""
    payload._makes_vectors.cache_clear()
    monkeypatch.setattr(payload, "LEVEL", 8)
    try:
        with pytest.raises(CodecError) as caught:
            payload.check_codec()
    finally:
        payload._makes_vectors.cache_clear()
    assert str(caught.value) == (
        "libzstd 1.5.7: makes other frames than the libzstd 1.5.7 of profile 1"
    )


def test_codec_input() -> None:
    """What the codec is checked with is the documented formula."""
    assert payload.codec_input(270_000) == reference.mixed(270_000)
