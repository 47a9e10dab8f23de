# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.sexp`, with libgcrypt itself as the oracle of spelling and layout."""

from __future__ import annotations

import base64
import ctypes
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import sexp
from narswarm.errors import InvalidInputError
from narswarm.sexp import Sexp

FIXTURES = Path(__file__).parents[1] / "fixtures/guix"

TEXTS = sorted([*(FIXTURES / "keys").iterdir()])
NARINFOS = sorted(FIXTURES.glob("narinfo-*/*.narinfo"))

atoms = st.one_of(
    st.from_regex(rb"[A-Za-z./_:*+=0-9-]{1,12}", fullmatch=True),
    st.binary(min_size=1, max_size=40),
    st.text(
        alphabet="ab \"'\\\n\t\b\v\f\r\x07\x1f~\x7f\x80\xa0\xa1\xff", min_size=1, max_size=8
    ).map(lambda text: text.encode("latin-1")),
)
lists: st.SearchStrategy[Sexp] = st.recursive(
    st.lists(atoms, min_size=1, max_size=4),
    lambda inner: st.lists(st.one_of(atoms, inner), min_size=1, max_size=4),
    max_leaves=12,
)


def libgcrypt_prints(text: bytes) -> bytes:
    """Let libgcrypt read a text and print it in its advanced format."""
    library = ctypes.CDLL("libgcrypt.so.20")
    library.gcry_check_version(None)
    library.gcry_sexp_sprint.restype = ctypes.c_size_t
    library.gcry_sexp_sprint.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    library.gcry_sexp_release.argtypes = [ctypes.c_void_p]
    handle = ctypes.c_void_p()
    assert not library.gcry_sexp_new(ctypes.byref(handle), text, ctypes.c_size_t(len(text)), 1)
    size = library.gcry_sexp_sprint(handle, 3, None, 0)
    buffer = ctypes.create_string_buffer(size)
    library.gcry_sexp_sprint(handle, 3, buffer, size)
    library.gcry_sexp_release(handle)
    return buffer.value


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_layout_of_guix_files(path: Path) -> None:
    """Keys and access control lists are written as Guix wrote them."""
    text = path.read_bytes()
    assert sexp.advanced(sexp.parse(text)) == text


@pytest.mark.parametrize("path", NARINFOS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_layout_of_guix_signatures(path: Path) -> None:
    """Signatures are written as Guix wrote them."""
    line = path.read_bytes().partition(b"Signature: ")[2].partition(b"\n")[0]
    text = base64.b64decode(line.split(b";")[2])
    assert sexp.advanced(sexp.parse(text)) == text


@given(lists)
def test_layout_of_libgcrypt(tree: Sexp) -> None:
    """Any expression is printed as libgcrypt prints it, except for a NUL inside a token."""
    printed = libgcrypt_prints(sexp.canonical(tree))
    if b"\0" not in sexp.canonical(tree):
        assert sexp.advanced(tree) == printed
    assert libgcrypt_prints(sexp.advanced(tree)) == printed


@given(lists)
def test_round_trips(tree: Sexp) -> None:
    """Both syntaxes read back to the same expression."""
    assert sexp.parse(sexp.canonical(tree)) == tree
    assert sexp.parse(sexp.advanced(tree)) == tree


@given(st.text(alphabet="()ab1 3:#\"\\x4'\n\0", max_size=25))
def test_any_text(text: str) -> None:
    """Whatever is accepted has one canonical form; everything else raises the one error."""
    try:
        tree = sexp.parse(text.encode())
    except InvalidInputError:
        return
    assert sexp.parse(sexp.canonical(tree)) == tree


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        (b"abc", b"abc"),
        (b"()", []),
        (b"(a b (c))", [b"a", b"b", [b"c"]]),
        (b"(1:a2:\0)(3:b c))", [b"a", b"\0)", [b"b c"]]),
        (b"(a 0:)", [b"a", b""]),
        (b'(a"b"c)', [b"a", b"b", b"c"]),
        (b"(#61##6 3#)", [b"a", b"c"]),
        (b"\n\t\v\f\r(a)\n\0", [b"a"]),
        (b'("\\b\\t\\v\\n\\f\\r\\"\\\'\\\\")', [b"\b\t\v\n\f\r\"'\\"]),
        (b'("\\x41\\101\\\nb\\\r\nc")', [b"AAbc"]),
        (b"(a" * 3 + b")" * 3, [b"a", [b"a", [b"a"]]]),
        (b"65535:" + b"x" * 65535, b"x" * 65535),
        (b"a" + b" " * (sexp.MAX_BYTES - 1), b"a"),
    ],
)
def test_spellings(text: bytes, tree: Sexp) -> None:
    """However an atom is spelled, it is its bytes."""
    assert sexp.parse(text) == tree


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is not an s-expression at byte 0"),
        (b"(", "is not an s-expression at byte 1"),
        (b"(a", "is not an s-expression at byte 2"),
        (b")", "closes no list at byte 0"),
        (b"(a))", "goes on after the s-expression at byte 3"),
        (b"(a)(b)", "goes on after the s-expression at byte 3"),
        (b"(a;b)", "is not an s-expression at byte 2"),
        (b"(a [hint]b)", "is not an s-expression at byte 2"),
        (b"(a |YWJj|)", "is not an s-expression at byte 2"),
        (b"(a 12)", "is not an s-expression at byte 2"),
        (b"(a 01:b)", "is not an s-expression at byte 2"),
        (b"(a #6#)", "has an odd number of hexadecimal digits at byte 2"),
        (b"(a #6g#)", "is not an s-expression at byte 2"),
        (b'(a "b', "is not an s-expression at byte 2"),
        (b'(a "\\q")', "has an unknown escape in the string at byte 2"),
        (b"(5:ab)", "ends in an atom of 5 bytes"),
        (b"65536:" + b"x" * 65536, "has an atom longer than 65535 bytes"),
        (b"x" * 65536, "has an atom longer than 65535 bytes"),
        (b"999999:", "is not an s-expression at byte 0"),
        (b"a" + b" " * sexp.MAX_BYTES, "is longer than 1048576 bytes"),
        (b"(" * 33 + b")" * 33, "is nested deeper than 32 lists"),
        (b"(" * 500_000, "is nested deeper than 32 lists"),
    ],
)
def test_refusals(text: bytes, reason: str) -> None:
    """What is not exactly one s-expression within the limits is refused, with the place."""
    with pytest.raises(InvalidInputError) as error:
        sexp.parse(text, "/etc/guix/acl")
    assert str(error.value) == f"/etc/guix/acl: {reason}"


def test_deepest() -> None:
    """Lists may be nested up to the limit."""
    text = b"(" * sexp.MAX_DEPTH + b")" * sexp.MAX_DEPTH
    assert sexp.canonical(sexp.parse(text)) == text


def test_find() -> None:
    """The first list in the order of the text that starts with the name is found."""
    tree = sexp.parse(b"(a key (b (key 1:1)) (key 1:2) ((key) x))")
    assert sexp.find(tree, b"key") == [b"key", b"1"]
    assert sexp.find(tree, b"a") is tree
    assert sexp.find(tree, b"none") is None
    assert sexp.find(b"key", b"key") is None
    assert sexp.find([[], [b"key"]], b"key") == [b"key"]


def test_empty_atom() -> None:
    """An empty atom is a pair of quotation marks."""
    assert sexp.advanced([b"a", b"", [b"b"]]) == b'(a "" \n (b)\n )\n'
