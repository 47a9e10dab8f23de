# SPDX-License-Identifier: GPL-3.0-or-later
"""The base 32 of Nix and Guix, in which store paths and NAR hashes are written.

It differs from RFC 4648 in its alphabet and in its order: the bytes are one little-endian number,
and its most significant digit comes first (`guix/base32.scm`).
"""

from __future__ import annotations

from narswarm.errors import InvalidInputError

ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"
"""The 32 digits in order of value: `e`, `o`, `t` and `u` are left out."""

_VALUES = {digit: value for value, digit in enumerate(ALPHABET)}
_HASH_SIZE = 32


def encode(data: bytes) -> str:
    """Write bytes in nix-base32, `ceil(len(data) * 8 / 5)` digits long."""
    number = int.from_bytes(data, "little")
    length = (len(data) * 8 + 4) // 5
    return "".join(ALPHABET[number >> shift & 31] for shift in range(length * 5 - 5, -1, -5))


def decode(text: str) -> bytes:
    """Read nix-base32.

    Only what `encode` can have written is accepted, so that equal bytes have one spelling: Guix
    drops surplus bits of the first digit silently, which is refused here.

    Raises:
        InvalidInputError: a foreign character, an impossible length, or surplus bits.
    """
    number = 0
    for digit in text:
        value = _VALUES.get(digit)
        if value is None:
            raise InvalidInputError(text[:64], f"{digit!r} is not a nix-base32 digit")
        number = number << 5 | value
    size = len(text) * 5 // 8
    if (size * 8 + 4) // 5 != len(text) or number >> size * 8:
        raise InvalidInputError(text[:64], "is not the nix-base32 form of whole bytes")
    return number.to_bytes(size, "little")


def format_hash(digest: bytes) -> str:
    """Write a SHA-256 digest (32 bytes) as narinfos do: `sha256:` and 52 digits."""
    return f"sha256:{encode(digest)}"


def parse_hash(text: str) -> bytes:
    """Read `sha256:` and 52 nix-base32 or 64 hexadecimal digits into a digest of 32 bytes.

    Narinfos have the former, the daemon's database and its protocol also the latter.

    Raises:
        InvalidInputError: another algorithm, length or alphabet.
    """
    algorithm, _, digits = text.partition(":")
    if algorithm != "sha256":
        raise InvalidInputError(text[:80], "is not a sha256 hash")
    if len(digits) == _HASH_SIZE * 2 and digits.isascii():
        try:
            digest = bytes.fromhex(digits)
        except ValueError:
            digest = b""
    elif len(digits) == (_HASH_SIZE * 8 + 4) // 5:
        digest = decode(digits)
    else:
        digest = b""
    # bytes.fromhex() skips blanks, so the size has to be looked at again.
    if len(digest) != _HASH_SIZE:
        raise InvalidInputError(text[:80], "is neither 52 nix-base32 nor 64 hexadecimal digits")
    return digest
