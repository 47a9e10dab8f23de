# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.base32`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import base32
from narswarm.errors import InvalidInputError

NARS = sorted((Path(__file__).parents[1] / "fixtures/guix/nar").iterdir())
NARINFOS = Path(__file__).parents[1] / "fixtures/guix/narinfo-none"

EMPTY = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"\x00", "00"),
        (b"\x1f", "0z"),
        (b"\xff", "7z"),
        (b"\x01\x00", "0001"),
        (b"\x00\x01", "0080"),
        (hashlib.sha256(b"").digest(), EMPTY),
    ],
)
def test_known_values(data: bytes, text: str) -> None:
    """Bytes are one little-endian number, written with its most significant digit first."""
    assert base32.encode(data) == text
    assert base32.decode(text) == data


@pytest.mark.parametrize("nar", NARS, ids=lambda nar: nar.name)
def test_guix_hashes(nar: Path) -> None:
    """The SHA-256 of each NAR is written as the NarHash that Guix gave it."""
    narinfo = (NARINFOS / f"{nar.name[:32]}.narinfo").read_text()
    digest = hashlib.sha256(nar.read_bytes()).digest()
    assert f"\nNarHash: {base32.format_hash(digest)}\n" in narinfo


@given(st.binary(max_size=70))
def test_round_trip(data: bytes) -> None:
    """What was encoded decodes to itself, at every length."""
    assert base32.decode(base32.encode(data)) == data


@given(st.text(alphabet=base32.ALPHABET, max_size=60))
def test_one_spelling(text: str) -> None:
    """A text is refused or is the one spelling of its bytes."""
    try:
        data = base32.decode(text)
    except InvalidInputError:
        return
    assert base32.encode(data) == text


@pytest.mark.parametrize("digit", ["e", "o", "t", "u", "A", "-", " ", "\n", "\0", "é"])
def test_foreign_digits(digit: str) -> None:
    """Letters outside of the alphabet are refused, upper case among them."""
    with pytest.raises(InvalidInputError) as error:
        base32.decode("0" + digit)
    assert str(error.value) == f"0{digit}: {digit!r} is not a nix-base32 digit"


@pytest.mark.parametrize("text", ["0", "000", "000000", "80", "zz", "1" * 54, "g" + EMPTY[1:]])
def test_impossible_texts(text: str) -> None:
    """Lengths that no number of bytes has, and surplus bits in the first digit, are refused."""
    with pytest.raises(InvalidInputError) as error:
        base32.decode(text)
    assert str(error.value) == f"{text}: is not the nix-base32 form of whole bytes"


def test_hash_forms() -> None:
    """A hash may be written in nix-base32 or in hexadecimal digits of either case."""
    digest = hashlib.sha256(b"").digest()
    assert base32.format_hash(digest) == f"sha256:{EMPTY}"
    for text in (f"sha256:{EMPTY}", f"sha256:{digest.hex()}", f"sha256:{digest.hex().upper()}"):
        assert base32.parse_hash(text) == digest


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a sha256 hash"),
        (EMPTY, "is not a sha256 hash"),
        (f"sha1:{EMPTY}", "is not a sha256 hash"),
        (f"SHA256:{EMPTY}", "is not a sha256 hash"),
        ("sha256:", "is neither 52 nix-base32 nor 64 hexadecimal digits"),
        (f"sha256:{EMPTY[1:]}", "is neither 52 nix-base32 nor 64 hexadecimal digits"),
        (f"sha256:{EMPTY}0", "is neither 52 nix-base32 nor 64 hexadecimal digits"),
        ("sha256:" + "0" * 63, "is neither 52 nix-base32 nor 64 hexadecimal digits"),
        ("sha256:" + "0" * 65, "is neither 52 nix-base32 nor 64 hexadecimal digits"),
        ("sha256:" + "0" * 63 + "g", "is neither 52 nix-base32 nor 64 hexadecimal digits"),
        ("sha256:" + "00 " * 20 + "0000", "is neither 52 nix-base32 nor 64 hexadecimal digits"),
        ("sha256:" + "\u0660" * 64, "is neither 52 nix-base32 nor 64 hexadecimal digits"),
    ],
)
def test_bad_hashes(text: str, reason: str) -> None:
    """Other algorithms, lengths and alphabets are refused."""
    with pytest.raises(InvalidInputError) as error:
        base32.parse_hash(text)
    assert str(error.value) == f"{text}: {reason}"
