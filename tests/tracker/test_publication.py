# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be published."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import base32, bencoding, gcrypt, sexp
from narswarm.acl import Acl
from narswarm.errors import InvalidInputError, MismatchError, NarswarmError
from narswarm.gcrypt import KeyPair
from tracker.publication import RefusedError, check

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    MakeItem = Callable[..., Any]

SERVERS = ("https://bordeaux.guix.gnu.org", "https://ci.guix.gnu.org/")


def _body(raw: bytes, torrent: bytes) -> bytes:
    return bencoding.encode({b"narinfo": raw, b"torrent": torrent})


def test_good_publication(make_item: MakeItem, acl: Acl, signer: KeyPair) -> None:
    """What is kept is the identity of the torrent, and the signed narinfo with known sources."""
    item = make_item(
        urls=(
            "https://bordeaux.guix.gnu.org/nar/zstd/x",
            "nar/relative",
            "http://169.254.169.254/",
            "https://bordeaux.guix.gnu.org.example.org/x",
            "https://ci.guix.gnu.org/nar/x",
        )
    )
    torrent = item.meta.encode(["http://evil.example/announce"], ["http://evil.example/"], "x")
    checked = check(item.nar_hash, _body(item.narinfo, torrent), acl, SERVERS)
    assert checked.meta == item.meta
    assert checked.torrent == item.meta.encode()
    assert checked.info.hash_part == item.hash_part
    assert checked.sources == 2
    signed, _, rest = checked.narinfo.partition(b"URL:")
    assert item.narinfo.startswith(signed)
    assert b"URL:" + rest == (
        b"URL: https://bordeaux.guix.gnu.org/nar/zstd/x\nCompression: zstd\nFileSize: 9\n"
        b"URL: https://ci.guix.gnu.org/nar/x\nCompression: zstd\nFileSize: 9\n"
    )
    assert checked.signer == sexp.canonical(sexp.parse(signer.public))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "publication: bencoding has cut off at byte 0"),
        (b"le", "publication: is not a dictionary of narinfo and torrent"),
        (b"de", "publication: is not a dictionary of narinfo and torrent"),
        (b"d7:narinfo0:e", "publication: is not a dictionary of narinfo and torrent"),
        (
            b"d4:evil0:7:narinfo0:7:torrent0:e",
            "publication: is not a dictionary of narinfo and torrent",
        ),
        (
            b"d7:narinfoi1e7:torrent0:e",
            "publication: has a narinfo or torrent that is not a string",
        ),
        (b"d7:narinfole7:torrent0:e", "publication: bencoding has deeper than 1 levels at byte 10"),
        (b"d7:narinfo0:7:torrent0:e", "narinfo: has no StorePath above its signature"),
    ],
)
def test_malformed(body: bytes, message: str, acl: Acl) -> None:
    """A body that isn't exactly two strings with contents is refused."""
    with pytest.raises(InvalidInputError) as caught:
        check(bytes(32), body, acl, SERVERS)
    assert str(caught.value) == message


def test_malformed_torrent(make_item: MakeItem, acl: Acl) -> None:
    """The torrent must be of profile 1 to the last byte."""
    item = make_item()
    torrent = item.meta.encode().replace(b"12:meta versioni2e", b"12:meta versioni1e")
    with pytest.raises(InvalidInputError) as caught:
        check(item.nar_hash, _body(item.narinfo, torrent), acl, SERVERS)
    assert str(caught.value) == "torrent: meta version is not 2"


def test_other_nars(make_item: MakeItem, acl: Acl) -> None:
    """Path, narinfo and torrent must speak of the same NAR."""
    item, other = make_item(1), make_item(2)
    with pytest.raises(MismatchError) as caught:
        check(other.nar_hash, item.body, acl, SERVERS)
    assert str(caught.value) == (
        f"/gnu/store/{item.hash_part}-item: has a narinfo for another NAR than "
        f"{base32.encode(other.nar_hash)}"
    )
    with pytest.raises(MismatchError) as caught:
        check(item.nar_hash, _body(item.narinfo, other.meta.encode()), acl, SERVERS)
    assert str(caught.value).startswith(f"{other.meta.name}: is not a payload of the NAR ")


@pytest.mark.parametrize(("excess", "fits"), [(0, True), (1, False)])
def test_payload_longer_than_the_nar_allows(
    make_item: MakeItem, acl: Acl, excess: int, fits: bool
) -> None:
    """A torrent can't make machines fetch more than the NAR could need."""
    item = make_item(payload=bytes(1000 + 1000 // 64 + 64 * 1024 + excess))
    if fits:
        assert check(item.nar_hash, item.body, acl, SERVERS).meta == item.meta
    else:
        with pytest.raises(MismatchError):
            check(item.nar_hash, item.body, acl, SERVERS)


@pytest.mark.parametrize("name", ["item", "other"])
def test_a_server_file(make_item: MakeItem, acl: Acl, name: str) -> None:
    """A server's file goes under the name of the item that its narinfo is about."""
    item = make_item()
    meta = dataclasses.replace(item.meta, name=f"{item.hash_part}-{name}")
    body = _body(item.narinfo, meta.encode())
    if name == "item":
        assert check(item.nar_hash, body, acl, SERVERS).meta == meta
        return
    with pytest.raises(MismatchError) as caught:
        check(item.nar_hash, body, acl, SERVERS)
    assert str(caught.value) == (
        f"{meta.name}: is not what a server calls /gnu/store/{item.hash_part}-item"
    )


def test_narinfo_of_an_unknown_key(make_item: MakeItem, acl: Acl) -> None:
    """Only keys of the ACL vouch."""
    item = make_item(key=gcrypt.generate_key())
    with pytest.raises(RefusedError) as caught:
        check(item.nar_hash, item.body, acl, SERVERS)
    assert str(caught.value) == (
        f"/gnu/store/{item.hash_part}-item: has a narinfo with a signature by a key that is not "
        "authorised here"
    )


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [(b"Signature: 1", b"Signature: 2", "unsigned"), (b"-item", b"-iten", "hash-mismatch")],
)
def test_narinfo_that_was_altered(
    make_item: MakeItem, acl: Acl, old: bytes, new: bytes, verdict: str
) -> None:
    """A narinfo is signed as it is or it isn't vouched for."""
    item = make_item()
    body = _body(item.narinfo.replace(old, new), item.meta.encode())
    with pytest.raises(RefusedError) as caught:
        check(item.nar_hash, body, acl, SERVERS)
    assert str(caught.value).endswith(f": has a narinfo with the verdict {verdict}")


@given(st.binary(max_size=200), st.binary(max_size=200), st.data())
def test_any_bytes_are_judged(raw: bytes, torrent: bytes, data: st.DataObject) -> None:
    """Whatever is sent, the outcome is an error for the sender."""
    body = _body(raw, torrent)
    cut = data.draw(st.integers(0, len(body)))
    for attempt in (body, body[:cut], raw):
        with pytest.raises(NarswarmError):
            check(hashlib.sha256(raw).digest(), attempt, Acl(), SERVERS)
