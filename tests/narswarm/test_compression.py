# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.compression`."""

from __future__ import annotations

import base64
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from narswarm.compression import KINDS, MAX_FRAME, MAX_OUTPUT, decompress
from narswarm.errors import InvalidInputError

SQUARES = b"".join(b"%d %d\n" % (number, number * number) for number in range(100))
"""What the programs below were given."""

# Made by gzip 1.12, zstd 1.5.4 and lzip 1.23 with the options that each line names.
SAMPLES = [
    # gzip -9n
    (
        "gzip",
        (
            "H4sIAAAAAAACAxWSuREAMQgDc1ehEmx++m/s9iIPYxB6uLrn6R1THNee0KuTsjwlr9OKPaOKs5p33tW7DDBhVKYX"
            "cZ4zs+cxunUew0y/AoOqZcPfyI3OBZNdVwGKPUVQsXrimCttj4Wy61iqQLFS/VWr/79R/51QYc6vFhR/WjAdLpcV"
            "DpnLRofNg4AnVEHy4oWet57D1ufnTv/qJVoCZQVcIK1QGuA1sgO8wYP41WFIIO+CF+h7WBUItMv/yPzSv7K47+RF"
            "P3j5ZPXXJmv+0zGE/gzZ/lan/MdL7IbYyf6d4h/HnP2JZQGfulgHXj15w7dMPvAvly96KvAUfZWKX2+VwtFfJBj4"
            "UaMo/KlVNH41Gfz29VNe3GxTIvQ0MTheNznQeDqVfxJd5PLXrdz/n6O4f/8SFPNzORLw5qkS/DGSY9+4atg/ob7w"
            "mSRK8KbUED9DtAn/IdtGz6x60beXewNvn8bQv0bo/xm6pvBnQzP4tckVgLclxqhbixFnh7PA713t4P8Hsif/V+gC"
            "AAA="
        ),
    ),
    # zstd -19 --no-check
    (
        "zstd",
        (
            "KLUv/QBoBQsAhi5XCbA7xGRYhQjijFIAVABSAAxbT2irmvCkWsLXeyHJS8IX1cIT6ghtrgjDbggBXBDGpxe0TC14"
            "Jq3gSfogiZSCv6iD9+gE7agEQ6IRBIhCMKxHv8Zzi5+eJCU+al6HrjAahELSIRpKKsSAS4MIQFIgBlh6pmGkZh6I"
            "tMxHSG+SgJTMz0Vtni06pl9RMcMeDRPgUTBDKHpD21Eb3idaw59EPySRKA1PEfXwDKIztEBUhvFrDAGuMAFV1BdJ"
            "TqXiy1QXT4Y6RVtQpRgGahQBzoVivNw7LXftPLNb52ncnyTi0vkD1+f9pnPaNpUzpKZxAnwKZ5inR/RnasSzTIv4"
            "iemJJDAl4uOkJh5YDLDrHQ2/2vHA1zo+5PojCVzp+DGrj+db5+jbKscwscYRIKxwDLnqGe2qmvFO1TL+pnojiVTJ"
            "eIKqjWf2jtFSrxjj9IYRwC8Yw/Je0QavFU+OWsUHAA=="
        ),
    ),
    # zstd -3 --check
    (
        "zstd",
        (
            "KLUv/QRYBQsAhi5XCbA7xGRYhQjijFIAVABSAAxbT2irmvCkWsLXeyHJS8IX1cIT6ghtrgjDbggBXBDGpxe0TC14"
            "Jq3gSfogiZSCv6iD9+gE7agEQ6IRBIhCMKxHv8Zzi5+eJCU+al6HrjAahELSIRpKKsSAS4MIQFIgBlh6pmGkZh6I"
            "tMxHSG+SgJTMz0Vtni06pl9RMcMeDRPgUTBDKHpD21Eb3idaw59EPySRKA1PEfXwDKIztEBUhvFrDAGuMAFV1BdJ"
            "TqXiy1QXT4Y6RVtQpRgGahQBzoVivNw7LXftPLNb52ncnyTi0vkD1+f9pnPaNpUzpKZxAnwKZ5inR/RnasSzTIv4"
            "iemJJDAl4uOkJh5YDLDrHQ2/2vHA1zo+5PojCVzp+DGrj+db5+jbKscwscYRIKxwDLnqGe2qmvFO1TL+pnojiVTJ"
            "eIKqjWf2jtFSrxjj9IYRwC8Yw/Je0QavFU+OWsUHALkcVR0="
        ),
    ),
    # lzip -9
    (
        "lzip",
        (
            "TFpJUAEMABgIAmK9usQvHdeXrjGDT6LPYv20CcaA+64K5SV8JV41jIYb5jGCHly2zKvnlfgx+JuheMZYshLr1ISa"
            "ISHnhPsoTkHI7QanO0dVtMzqnTSAQkWWv/aGM7v9JLhMGWODPEPvvKDsATkpwCTmEzhNVA21Y8g2XT8ffQSXfp7N"
            "a2I234+Aig4mA5Wp4E4qwvIpzYfh8EZd1Qi4b/abqfAQacBOol0hAISorhmNdQilWfHxwk1bVuYYnwnU3PVN83Sm"
            "Fw6NbagbxCGoZhDwTt5X9Fdjmxi1bvU4LylttVFn2+bkfrq8MQCTDauXtA7peDPwgGJ+eTtBLEljeKeDYqAsEs8y"
            "3r1mcD+wPlCVwAdIFbjkvPRX2Zt6ky6h7sA2dJv9lD1VvI4SJxAjEb74hK4E3uly8j67+swzn2IwVC2VZWgbs4ow"
            "UWTpxlnCCq7bzek2s7//D8UAALIn/1foAgAAAAAAAHEBAAAAAAAA"
        ),
    ),
    # lzip -0
    (
        "lzip",
        (
            "TFpJUAEMABgIAmK9usQvHdeXrjGDT6LPYgWzW5xm4T2C9ghnlql8pbHLZfkShfoQgCPpyrtiGG2QEVwbeVGFrxvv"
            "8zT4DYfYXbXV/IFq7MwSOAcUHtb+iKevgfakJ8//MgUp6qgtrST8W0aTYIkCePaUhibKK4f+TXzRm21fhYI9BPRb"
            "wv1fIFmlNjHRDOWLhWa3PrKetH+0YmvqoeTN3RKZ96kuGmFG2KgkvUolmv9c8j1oBT+3ZGOS7Vl4nSy0afwvoguh"
            "sXJWkx3ftIYAWZIFLd4F0ezCBRZpZ91QePTlAWx1ihpAQrROUv3mPiWBreKU5BHINNkQvGcpqUd7Mh0izuxKLb2A"
            "mzWXYGCy+0wNBXBVhDwuxBSeatXjmBxHCrM9sni4M/ZNK9YTpreFRFy/a5TPQEzWURVhZPVfcmPB1gaMO1MSMQa6"
            "9gRfc3oy7tvMVYXaPrsSkHJ8CtZSgKz3W/MNecOHyIAP0ABhMcm0NzQWm3m66BdtX85Bptn80jXq7SRhhnQWX332"
            "8UANHM1dITuJNgOlK831grtEoBNchqQetD57Hq/gsvx0QQTfisq2r6MCuHUnIcaGkf/7wVIMsif/V+gCAAAAAAAA"
            "1gEAAAAAAAA="
        ),
    ),
]
PROGRAMS = [(kind, base64.b64decode(text)) for kind, text in SAMPLES]
EMPTY = [
    ("gzip", base64.b64decode("H4sIAAAAAAAAAwMAAAAAAAAAAAA=")),
    ("zstd", base64.b64decode("KLUv/SQAAQAAmenYUQ==")),
    ("lzip", base64.b64decode("TFpJUAEMAIP/+///wAAAAAAAAAAAAAAAAAAAACQAAAAAAAAA")),
]
identifiers = ["gzip", "zstd-19", "zstd-3-check", "lzip-9", "lzip-0"]


def unpack(data: bytes, kind: str, limit: int = 1 << 20, size: int = 1 << 20) -> bytes:
    """Decompress `data`, given in pieces of `size` bytes."""
    return b"".join(decompress(pieces(data, size), kind, limit))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Cut `data` into pieces, with an empty one before each."""
    for start in range(0, len(data), size):
        yield b""
        yield data[start : start + size]


def lzip(data: bytes, exponent: int = 20) -> bytes:
    """Compress to a member of the lzip format."""
    filters = [
        {
            "id": lzma.FILTER_LZMA1,
            "dict_size": 1 << exponent,
            "lc": 3,
            "lp": 0,
            "pb": 2,
            "preset": 1,
        }
    ]
    # The .lzma container has the same stream with an end marker, after a header of 13 bytes.
    stream = lzma.compress(data, lzma.FORMAT_ALONE, filters=filters)[13:]
    trailer = zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(8, "little")
    length = (6 + len(stream) + 20).to_bytes(8, "little")
    return b"LZIP\1" + bytes([exponent]) + stream + trailer + length


PACK: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": lambda data: gzip.compress(data, 1),
    "zstd": lambda data: zstandard.ZstdCompressor(level=1).compress(data),
    "lzip": lzip,
}


@pytest.mark.parametrize(("kind", "data"), PROGRAMS, ids=identifiers)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_real_programs(kind: str, data: bytes, size: int) -> None:
    """What the real programs write is decompressed, and so are several of them in a row."""
    assert unpack(data, kind, size=size) == SQUARES
    assert unpack(data * 3, kind, size=size) == SQUARES * 3


@pytest.mark.parametrize(("kind", "data"), EMPTY)
def test_real_empty_files(kind: str, data: bytes) -> None:
    """An empty file's member gives nothing, and doesn't end what follows it."""
    member = PACK[kind](b"more")
    assert list(decompress([data], kind, 0)) == []
    assert unpack(data + member + data, kind) == b"more"


@pytest.mark.parametrize(("kind", "data"), PROGRAMS, ids=identifiers)
@pytest.mark.parametrize("before", [b"", b"member"])
def test_cut_off(kind: str, data: bytes, before: bytes) -> None:
    """A stream that is cut off anywhere within a member is refused, no bytes at all as well."""
    if before:
        before = PACK[kind](before)
    for end in range(1 if before else 0, len(data)):
        with pytest.raises(InvalidInputError) as error:
            unpack(before + data[:end], kind)
        assert str(error.value) == f"{kind} data: is cut off"


@pytest.mark.parametrize(("kind", "data"), PROGRAMS, ids=identifiers)
@pytest.mark.parametrize("rest", [b"x", b"\0", bytes(30), b"LZIQ then something that is no member"])
def test_trailing_data(kind: str, data: bytes, rest: bytes) -> None:
    """Something after the last member that isn't a member is refused."""
    with pytest.raises(InvalidInputError) as error:
        unpack(data + rest, kind)
    reasons = {
        "gzip": ("is not gzip, or is damaged", "is cut off"),
        "zstd": ("is not zstd",),
        "lzip": ("is not lzip",),
    }
    assert str(error.value) in {f"{kind} data: {reason}" for reason in reasons[kind]}


@pytest.mark.parametrize(("kind", "data"), PROGRAMS[2:] + PROGRAMS[:1])
def test_damage_shows(kind: str, data: bytes) -> None:
    """Of a format with a checksum, damage after the header is noticed or changes nothing."""
    noticed = 0
    for position in range(10, len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        try:
            # Deflate has a few unused bits at the end of its last byte.
            assert unpack(bytes(damaged), kind) == SQUARES
        except InvalidInputError:
            noticed += 1
    assert noticed >= len(data) - 11


@pytest.mark.parametrize("position", [-20, -16, -8])
def test_lzip_trailer(position: int) -> None:
    """CRC, data size and member size of lzip are each compared."""
    data = bytearray(lzip(b"data"))
    data[position] ^= 1
    with pytest.raises(InvalidInputError) as error:
        unpack(bytes(data), "lzip")
    assert str(error.value) == "lzip data: is damaged"


@settings(deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    parts=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=4),
    size=st.integers(1, 100),
)
def test_round_trip(kind: str, parts: list[bytes], size: int) -> None:
    """Members of any content, cut anywhere, give their contents in order."""
    data = b"".join(PACK[kind](part) for part in parts)
    assert unpack(data, kind, size=size) == b"".join(parts)


@settings(deadline=None)
@given(
    kind=st.sampled_from(["gzip", "zstd", "lzip"]),
    position=st.integers(0, 400),
    data=st.binary(max_size=40),
    removed=st.integers(0, 40),
)
def test_arbitrary_damage(kind: str, position: int, data: bytes, removed: int) -> None:
    """Whatever the bytes, nothing but the one error is raised."""
    sample = next(sample for name, sample in PROGRAMS[::-1] if name == kind)
    for bytes_ in (data, sample[:position] + data + sample[position + removed :]):
        try:
            unpack(bytes_, kind)
        except InvalidInputError as error:
            assert error.subject == f"{kind} data"  # noqa: PT017 - it may also be another good stream


@pytest.mark.parametrize("kind", KINDS)
def test_limit(kind: str) -> None:
    """Exactly the limit may come out, not a byte more."""
    data = PACK[kind](bytes(5000)) + PACK[kind](b"\1" * 5000)
    assert len(unpack(data, kind, 10000)) == 10000
    with pytest.raises(InvalidInputError) as error:
        unpack(data, kind, 9999)
    assert str(error.value) == f"{kind} data: decompresses to more than 9999 bytes"


@pytest.mark.parametrize("kind", KINDS)
def test_bomb(kind: str) -> None:
    """However much a few bytes decompress to, it comes 1 MiB at a time, up to the limit."""
    data = PACK[kind](bytes(20 << 20))
    total = 0
    stream = decompress([data], kind, 5 << 20)
    with pytest.raises(InvalidInputError) as error:  # noqa: PT012 - the loop is what raises
        for piece in stream:
            assert len(piece) <= MAX_OUTPUT
            total += len(piece)
    assert str(error.value) == f"{kind} data: decompresses to more than {5 << 20} bytes"
    assert total == 5 << 20


@pytest.mark.parametrize("kind", KINDS)
def test_large(kind: str) -> None:
    """A stream of many blocks and incompressible stretches is whole."""
    contents = os.urandom(700_000) + bytes(3_000_000) + SQUARES * 1500 + os.urandom(1_000_000)
    data = PACK[kind](contents)
    found = list(decompress(pieces(data, 50_000), kind, len(contents)))
    assert b"".join(found) == contents
    assert max(map(len, found)) <= MAX_OUTPUT


def test_zstd_without_content_size() -> None:
    """A frame that doesn't say how long its content is, as a pipe gives, is decompressed."""
    frame = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    data = frame.compress(SQUARES) + frame.flush()
    assert unpack(data, "zstd", size=5) == SQUARES


def test_zstd_skippable_frames() -> None:
    """Skippable frames are passed over, before, between and after frames."""
    frame = PACK["zstd"](b"frame")
    skipped = bytes.fromhex("5f2a4d18") + (300).to_bytes(4, "little") + bytes(300)
    data = skipped + frame + skipped * 2 + frame + skipped
    for size in (1, 100, 1 << 20):
        assert unpack(data, "zstd", size=size) == b"frameframe"
    for end in range(1, len(skipped)):
        with pytest.raises(InvalidInputError) as error:
            unpack(frame + skipped[:end], "zstd")
        assert str(error.value) in {"zstd data: is cut off", "zstd data: is not zstd"}


@pytest.mark.parametrize(("exponent", "fits"), [(27, True), (28, False)])
def test_zstd_window(exponent: int, *, fits: bool) -> None:
    """A frame that needs a window of more than 128 MiB is refused by its header."""
    descriptor, window = 0, (exponent - 10) << 3
    last_raw_block = (1 | 5 << 3).to_bytes(3, "little") + b"hello"
    data = bytes.fromhex("28b52ffd") + bytes([descriptor, window]) + last_raw_block
    if fits:
        assert unpack(data, "zstd") == b"hello"
        return
    with pytest.raises(InvalidInputError) as error:
        unpack(data, "zstd")
    assert str(error.value) == "zstd data: needs a window of more than 134217728 bytes"


@pytest.mark.parametrize(
    "block", [1 | 3 << 1 | 5 << 3, 1 | (128 * 1024 + 1) << 3, 1 | 1 << 1 | (128 * 1024 + 1) << 3]
)
def test_zstd_blocks(block: int) -> None:
    """Blocks of the reserved type or larger than 128 KiB are refused before they are read."""
    data = bytes.fromhex("28b52ffd") + b"\0\x50" + block.to_bytes(3, "little")
    with pytest.raises(InvalidInputError) as error:
        unpack(data, "zstd")
    assert str(error.value) == "zstd data: is damaged"


def test_zstd_dictionary() -> None:
    """A frame that was made with a dictionary is refused; nobody has one."""
    dictionary = zstandard.ZstdCompressionDict(SQUARES, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    plain = zstandard.ZstdCompressor(dict_data=dictionary).compress(SQUARES)
    # A raw dictionary has no id; give the header the id 7.
    data = plain[:4] + bytes([plain[4] | 1, 7 if plain[4] & 0x20 else plain[5]]) + plain[5:]
    with pytest.raises(InvalidInputError) as error:
        unpack(data, "zstd")
    assert str(error.value) == "zstd data: is damaged"


@pytest.mark.parametrize(("coded", "size"), [(11, 2048), (28, 1 << 28), (29 | 7 << 5, 0x12000000)])
def test_lzip_dictionary(coded: int, size: int) -> None:
    """A member with a dictionary below 4 KiB or above 128 MiB is refused by its header."""
    with pytest.raises(InvalidInputError) as error:
        unpack(b"LZIP\1" + bytes([coded]) + bytes(30), "lzip")
    assert str(error.value) == f"lzip data: needs a dictionary of {size} bytes"


def test_lzip_version() -> None:
    """Versions of lzip other than 1 are refused."""
    with pytest.raises(InvalidInputError) as error:
        unpack(b"LZIP\0\x14" + lzip(b"x")[6:], "lzip")
    assert str(error.value) == "lzip data: is not lzip"


def test_unknown_kind() -> None:
    """A compression that nobody knows is refused at once, by its name."""
    with pytest.raises(InvalidInputError) as error:
        decompress([], "xz", 1)
    assert str(error.value) == "compressed data: has an unknown compression 'xz'"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_any_kind(kind: str, size: int) -> None:
    """The first bytes say which kind it is; those of a NAR are none of a compression."""
    nar = b"\r\0\0\0\0\0\0\0nix-archive-1\0\0\0" + SQUARES
    assert unpack(PACK[kind](nar), "any", size=size, limit=len(nar)) == nar


def test_any_kind_of_nothing() -> None:
    """An empty file is an empty NAR, which the hash will refuse; a damaged one is damaged."""
    assert unpack(b"", "any") == b""
    with pytest.raises(InvalidInputError) as error:
        unpack(b"LZIP", "any")
    assert str(error.value) == "compressed data: is cut off"


def test_subject() -> None:
    """Errors are about what the caller says."""
    with pytest.raises(InvalidInputError) as error:
        list(decompress([b"no"], "gzip", 10, subject="http://server/nar/gzip/x"))
    assert str(error.value) == "http://server/nar/gzip/x: is not gzip, or is damaged"


def frames(count: int, size: int) -> list[bytes]:
    """Frames that say how large they are."""
    compressor = zstandard.ZstdCompressor(write_content_size=True)
    return [compressor.compress(bytes([number]) * (size - number)) for number in range(count)]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_zstd_threads(threads: int, count: int) -> None:
    """Frames that threads decompress come in their order, also beside others."""
    size = 100_000
    parts = frames(count, size)
    whole = b"".join(bytes([number]) * (size - number) for number in range(count))
    for between, plain in (
        (b"", b""),
        (b"\x50\x2a\x4d\x18\x02\0\0\0xy", b""),
        (zstandard.ZstdCompressor(write_content_size=False).compress(b"stream"), b"stream"),
        (zstandard.ZstdCompressor().compress(bytes(MAX_FRAME + 1)), bytes(MAX_FRAME + 1)),
        (zstandard.ZstdCompressor(write_checksum=True).compress(b"checked"), b"checked"),
    ):
        data = parts[0] + between + b"".join(parts[1:])
        expected = whole[:size] + plain + whole[size:]
        made = decompress(pieces(data, 1000), "zstd", len(expected), threads=threads)
        assert b"".join(made) == expected


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda frame: frame[:-1], "is cut off"),
        (lambda frame: frame + b"x", "is not zstd"),
        # What is in the blocks isn't as long as the header says.
        (lambda frame: frame[:5] + bytes([frame[5] ^ 1]) + frame[6:], "is damaged"),
    ],
)
def test_zstd_threads_damage(damage: Callable[[bytes], bytes], reason: str) -> None:
    """An error of a thread is the same as without threads."""
    data = frames(1, 100_000)[0] + damage(frames(1, 100_000)[0])
    for threads in (0, 2):
        with pytest.raises(InvalidInputError) as caught:
            list(decompress([data], "zstd", 1 << 20, threads=threads))
        assert str(caught.value) == f"zstd data: {reason}"


def test_zstd_threads_limit() -> None:
    """Also with threads nothing comes beyond the limit."""
    data = b"".join(frames(3, 100_000))
    made = decompress([data], "zstd", 150_000, threads=2)
    assert len(next(made)) == 100_000
    with pytest.raises(InvalidInputError) as caught:
        next(made)
    assert str(caught.value) == "zstd data: decompresses to more than 150000 bytes"
