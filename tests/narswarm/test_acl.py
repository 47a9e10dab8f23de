# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.acl`."""

from __future__ import annotations

from pathlib import Path

import pytest

from narswarm import acl, sexp
from narswarm.acl import Acl
from narswarm.errors import InvalidInputError, NotFoundError

KEYS = Path(__file__).parents[1] / "fixtures/guix/keys"
SIGNER = (KEYS / "signing-key.pub").read_bytes()
STRANGER = (KEYS / "unauthorized-signing-key.pub").read_bytes()
KEY = b"(public-key (ecc (curve Ed25519) (q #01#)))"
TAG = b"(tag (guix import))"


def test_guix_file() -> None:
    """The file that Guix wrote has its three keys and no others."""
    trusted = Acl.load(KEYS / "acl")
    assert len(trusted) == 3
    assert trusted
    assert trusted.authorizes(sexp.parse(SIGNER))
    assert not trusted.authorizes(sexp.parse(STRANGER))


def test_structural_equality() -> None:
    """A key is the same however it is spelled, and another one if anything is added."""
    trusted = Acl.parse(b"(acl (entry " + KEY + TAG + b"))")
    assert trusted.authorizes(sexp.parse(b'(10:public-key("ecc"(curve #45643235353139#)(q 1:\1)))'))
    for other in (
        b"(public-key (ecc (curve Ed25519) (q #02#)))",
        b"(public-key (ecc (curve Ed25519) (q #01#) (flags eddsa)))",
        b"(public-key (ecc (q #01#) (curve Ed25519)))",
        b"(public-key (ecc (curve Ed25519) (q #01#)) x)",
        b"(entry)",
        b"public-key",
    ):
        assert not trusted.authorizes(sexp.parse(other))


def test_empty() -> None:
    """An empty list is an ACL which authorises nobody."""
    for trusted in (Acl(), Acl.parse(b"(acl)")):
        assert len(trusted) == 0
        assert not trusted
        assert not trusted.authorizes(sexp.parse(SIGNER))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is not an s-expression at byte 0"),
        (b"acl", "is not an access control list"),
        (b"()", "is not an access control list"),
        (b"(entry)", "is not an access control list"),
        (b"((acl))", "is not an access control list"),
        (b"(acl entry)", "entry 1 is not a public key tagged (guix import)"),
        (b"(acl (entry))", "entry 1 is not a public key tagged (guix import)"),
        (b"(acl (entry %k))", "entry 1 is not a public key tagged (guix import)"),
        (b"(acl (entry %k %t x))", "entry 1 is not a public key tagged (guix import)"),
        (b"(acl (entry %t %k))", "entry 1 is not a public key tagged (guix import)"),
        (
            b"(acl (entry %k (tag (guix export))))",
            "entry 1 is not a public key tagged (guix import)",
        ),
        (b"(acl (entry %k (tag (guix))))", "entry 1 is not a public key tagged (guix import)"),
        (b"(acl (entry %k %t) (deny %k %t))", "entry 2 is not a public key tagged (guix import)"),
        (b"(acl (entry (private-key) %t))", "entry 1 is not a public key tagged (guix import)"),
    ],
)
def test_refusals(text: bytes, reason: str) -> None:
    """A list with an entry of any other shape is refused as a whole."""
    text = text.replace(b"%k", KEY).replace(b"%t", TAG)
    with pytest.raises(InvalidInputError) as error:
        Acl.parse(text, "/etc/guix/acl")
    assert str(error.value) == f"/etc/guix/acl: {reason}"


def test_missing_file(tmp_path: Path) -> None:
    """A file that is missing or is no file is named."""
    with pytest.raises(NotFoundError) as error:
        Acl.load(tmp_path / "acl")
    assert str(error.value) == f"{tmp_path}/acl: no such file or directory"
    with pytest.raises(NotFoundError) as error:
        Acl.load(tmp_path)
    assert str(error.value) == f"{tmp_path}: is a directory"


def test_huge_file(tmp_path: Path) -> None:
    """A file beyond the limit is refused without being read to its end."""
    path = tmp_path / "acl"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidInputError) as error:
        Acl.load(path)
    assert str(error.value) == f"{path}: is longer than 1048576 bytes"


def test_render() -> None:
    """Rendering the keys of Guix's file gives its bytes; texts, trees and repetitions may mix."""
    text = (KEYS / "acl").read_bytes()
    tree = sexp.parse(text)
    keys = [key for entry in tree[1:] if (key := sexp.find(entry, b"public-key"))]  # type: ignore[arg-type]
    assert acl.render([SIGNER, *keys, SIGNER]) == text
    assert acl.render([]) == b"(acl)\n"


@pytest.mark.parametrize("key", [b"public-key", b"(private-key)", [], [[b"public-key"]]])
def test_render_refusals(key: sexp.Sexp) -> None:
    """Only public keys can be authorised."""
    with pytest.raises(InvalidInputError) as error:
        acl.render([key])
    assert str(error.value) == "public key: is not a public-key expression"
