# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.gcrypt`, against Guix's own signatures and plain-integer arithmetic."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from narswarm import gcrypt, sexp
from narswarm.errors import ExitCode, InvalidInputError
from narswarm.gcrypt import KeyPair
from narswarm.sexp import Sexp

FIXTURES = Path(__file__).parents[1] / "fixtures/guix"
NARINFOS = sorted((FIXTURES / "narinfo-none").iterdir())
GUIX_KEY = KeyPair(
    (FIXTURES / "keys/signing-key.pub").read_bytes(),
    (FIXTURES / "keys/TEST-ONLY-signing-key.sec").read_bytes(),
)
PYTHON_KEY = KeyPair(
    (FIXTURES / "keys/python-made.pub").read_bytes(),
    (FIXTURES / "keys/TEST-ONLY-python-made.sec").read_bytes(),
)
DIGEST = hashlib.sha256(b"narswarm").digest()

# The group of RFC 8032, section 5.1.
P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
Point = tuple[int, int]
BASE_Y = 4 * pow(5, P - 2, P) % P


def point(encoded: bytes) -> Point:
    """Decode a compressed point (RFC 8032, section 5.1.3)."""
    number = int.from_bytes(encoded, "little")
    y, odd = number & (1 << 255) - 1, number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return (P - x if x % 2 != odd else x), y


def add(a: Point, b: Point) -> Point:
    """Add two points by the affine law of the twisted Edwards curve."""
    product = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + product, P - 2, P)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, P - 2, P)
    return x % P, y % P


def multiply(scalar: int, base: Point) -> Point:
    """Add a point to itself by doubling."""
    result = (0, 1)
    while scalar:
        if scalar & 1:
            result = add(result, base)
        base = add(base, base)
        scalar >>= 1
    return result


def atom(tree: Sexp, name: bytes) -> bytes:
    """Give the value of a `(name value)` pair."""
    pair = sexp.find(tree, name)
    assert pair is not None
    value = pair[-1]
    assert isinstance(value, bytes)
    return value


def verifies(signature: bytes) -> bool:
    """Verify ECDSA (FIPS 186-5, section 6.4.2) with integers alone."""
    tree = sexp.parse(signature)
    r, s = (int.from_bytes(atom(tree, name), "big") for name in (b"r", b"s"))
    if not (0 < r < ORDER and 0 < s < ORDER):
        return False
    # The order has 253 bits, so 253 bits of the hash count.
    digest = int.from_bytes(atom(tree, b"hash"), "big") >> 3
    inverse = pow(s, ORDER - 2, ORDER)
    left = multiply(digest * inverse % ORDER, point(BASE_Y.to_bytes(32, "little")))
    right = multiply(r * inverse % ORDER, point(atom(tree, b"q")))
    return add(left, right)[0] % ORDER == r


def guix_signature(narinfo: Path) -> bytes:
    """Give the text of the signature in a narinfo."""
    line = narinfo.read_bytes().partition(b"Signature: ")[2].partition(b"\n")[0]
    return base64.b64decode(line.split(b";")[2])


@pytest.mark.parametrize("narinfo", NARINFOS, ids=lambda path: path.name)
def test_guix_signatures(narinfo: Path) -> None:
    """Guix's signatures verify, and arithmetic without a library agrees."""
    signature = guix_signature(narinfo)
    assert gcrypt.verify(signature) is True
    assert gcrypt.verify(sexp.parse(signature)) is True
    assert verifies(signature)


@pytest.mark.parametrize("narinfo", NARINFOS, ids=lambda path: path.name)
def test_signing_is_guix_signing(narinfo: Path) -> None:
    """Signing the same digest with the same key gives Guix's bytes."""
    digest = hashlib.sha256(narinfo.read_bytes().partition(b"Signature:")[0]).digest()
    assert gcrypt.sign(digest, GUIX_KEY) == guix_signature(narinfo)


def test_foreign_key_pair() -> None:
    """A key pair that was not made by libgcrypt signs, too."""
    signature = gcrypt.sign(DIGEST, PYTHON_KEY)
    assert gcrypt.verify(signature) is True
    assert verifies(signature)


@pytest.mark.parametrize("name", [b"r", b"s", b"hash", b"q"])
def test_one_bit(name: bytes) -> None:
    """A signature, digest or key with one bit flipped does not verify."""
    signature = gcrypt.sign(DIGEST, GUIX_KEY)
    value = atom(sexp.parse(signature), name)
    flipped = bytes([value[0] ^ 1, *value[1:]])
    changed = signature.replace(value.hex().upper().encode(), flipped.hex().upper().encode())
    assert changed != signature
    assert gcrypt.verify(changed) is False


@pytest.mark.parametrize("part", [b"sig-val", b"data", b"public-key", b"ecdsa", b"ecc", b"hash"])
def test_missing_part(part: bytes) -> None:
    """A signature that lacks one of its parts does not verify."""
    signature = gcrypt.sign(DIGEST, GUIX_KEY)
    assert gcrypt.verify(signature.replace(b"(" + part + b" ", b"(other ")) is False


def test_nested_key_is_not_used() -> None:
    """A second key hidden in another part can't stand in for the first one in the text."""
    foreign = sexp.parse(gcrypt.sign(DIGEST, PYTHON_KEY))
    key, data = sexp.find(foreign, b"public-key"), sexp.find(foreign, b"data")
    value = sexp.find(foreign, b"sig-val")
    assert key is not None
    assert data is not None
    assert value is not None
    ours = sexp.parse(GUIX_KEY.public)
    assert gcrypt.verify([b"signature", key, data, value]) is True
    assert gcrypt.verify([b"signature", ours, [*data, key], value]) is False
    assert gcrypt.verify([b"signature", ours, data, [*value, key]]) is False
    assert gcrypt.verify([b"signature", [b"public-key", *ours[1:], *key[1:]], data, value]) is False


def test_generated_key() -> None:
    """A new key pair has the form of Guix's files and makes signatures that verify."""
    key = gcrypt.generate_key()
    digits = re.compile(rb"#[0-9A-F]{64}#")
    assert digits.sub(b"##", key.public) == digits.sub(b"##", GUIX_KEY.public)
    assert re.sub(rb"#[0-9A-F]{62,66}#", b"##", key.private) == digits.sub(b"##", GUIX_KEY.private)
    signature = gcrypt.sign(DIGEST, key)
    assert gcrypt.verify(signature) is True
    assert verifies(signature)
    assert gcrypt.generate_key() != key


def test_rsa_key() -> None:
    """RSA keys, which Guix made before libgcrypt 1.6, sign and verify."""
    key = gcrypt.generate_key(b"(genkey (rsa (nbits 4:1024)))")
    signature = gcrypt.sign(DIGEST, key)
    assert b"(flags pkcs1)" in signature
    assert gcrypt.verify(signature) is True
    assert gcrypt.verify(signature.replace(b"#00", b"#01")) is False
    other = signature.replace(DIGEST.hex().upper().encode(), b"00" * 32)
    assert gcrypt.verify(other) is False


def test_many_threads() -> None:
    """Several threads may verify and sign at the same time."""
    signature = gcrypt.sign(DIGEST, GUIX_KEY)
    results: list[bool] = []

    def work() -> None:
        for _ in range(10):
            same = gcrypt.sign(DIGEST, GUIX_KEY) == signature
            results.append(same and gcrypt.verify(signature))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 40


def test_text_that_is_no_expression() -> None:
    """A text that is not an s-expression raises."""
    with pytest.raises(InvalidInputError) as error:
        gcrypt.verify(b"(signature")
    assert str(error.value) == "signature: is not an s-expression at byte 10"


def test_refused_by_libgcrypt() -> None:
    """What libgcrypt refuses to sign with or to generate is named with its reason."""
    with pytest.raises(InvalidInputError) as error:
        gcrypt.sign(DIGEST, KeyPair(GUIX_KEY.public, GUIX_KEY.public))
    assert str(error.value) == "gcry_pk_sign: libgcrypt refuses: Invalid object"
    with pytest.raises(InvalidInputError) as error:
        gcrypt.generate_key(b"(genkey (nothing))")
    assert str(error.value) == "gcry_pk_genkey: libgcrypt refuses: Invalid public key algorithm"


def test_library_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libgcrypt the error says what to install."""

    def refuse(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(gcrypt, "_library", None)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(gcrypt.GcryptMissingError) as error:
        gcrypt.verify([b"signature", [b"data"], [b"sig-val"], [b"public-key"]])
    assert str(error.value) == (
        "libgcrypt.so.20: is not installed; install libgcrypt (package libgcrypt20 of Debian, "
        "libgcrypt of Guix, Fedora and Arch)"
    )
    assert error.value.exit_code is ExitCode.SETTINGS


def test_lazy_loading() -> None:
    """Importing the module loads neither ctypes nor libgcrypt."""
    code = "import sys, narswarm.gcrypt; sys.exit('ctypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
