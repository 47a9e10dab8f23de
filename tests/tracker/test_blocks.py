# SPDX-License-Identifier: GPL-3.0-or-later
"""What operators keep out."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import base32
from narswarm.acl import Acl
from narswarm.errors import InvalidInputError, NotFoundError
from tracker import blocks, database
from tracker.blocks import Block, BlockList, Kind
from tracker.database import Connection, Place
from tracker.index import Index
from tracker.publication import check

NOW = 1_700_000_000
HASH = bytes(range(32))
BASE32 = base32.encode(HASH)
KEY = base64.b64encode(HASH).decode()

MakeItem = Callable[..., Any]


@pytest.fixture(name="connection")
def connection_fixture(place: Place) -> Iterator[Connection]:
    """An empty database."""
    database.connect(place, create=True).close()
    with database.opened(place) as connection:
        yield connection


@pytest.mark.parametrize(
    ("kind", "text", "value", "shown"),
    [
        (Kind.NAR, BASE32, HASH, f"sha256:{BASE32}"),
        (Kind.NAR, f"sha256:{BASE32}", HASH, f"sha256:{BASE32}"),
        (Kind.NAR, HASH.hex(), HASH, f"sha256:{BASE32}"),
        (Kind.INFOHASH, HASH[:20].hex().upper(), HASH[:20], HASH[:20].hex()),
        (Kind.INFOHASH, HASH.hex(), HASH[:20], HASH[:20].hex()),
        (Kind.PUBLISHER, KEY, HASH, KEY),
        (Kind.ADDRESS, "192.0.2.1", b"192.0.2.1/32", "192.0.2.1/32"),
        (Kind.ADDRESS, "2001:DB8::/32", b"2001:db8::/32", "2001:db8::/32"),
    ],
)
def test_values(kind: Kind, text: str, value: bytes, shown: str) -> None:
    """Each kind has one way to be kept and to be shown, which can be read again."""
    assert blocks.parse(kind, text) == value
    assert Block(kind, value, "", NOW).text == shown
    assert blocks.parse(kind, shown) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (Kind.NAR, "x", "sha256:x: is neither 52 nix-base32 nor 64 hexadecimal digits"),
        (Kind.INFOHASH, "0" * 41, f"{'0' * 41}: is not an infohash of 40 or 64 hexadecimal digits"),
        (Kind.INFOHASH, "0" * 39, f"{'0' * 39}: is not an infohash of 40 or 64 hexadecimal digits"),
        (Kind.PUBLISHER, KEY[:-4], f"{KEY[:-4]}: is not a publisher's key, 32 bytes in base64"),
        (Kind.PUBLISHER, "é", "é: is not a publisher's key, 32 bytes in base64"),
        (Kind.ADDRESS, "192.0.2.1/24", "address: 192.0.2.1/24 has host bits set"),
        (
            Kind.ADDRESS,
            "example.org",
            "address: 'example.org' does not appear to be an IPv4 or IPv6 network",
        ),
    ],
)
def test_senseless_values(kind: Kind, text: str, message: str) -> None:
    """Anything else is said."""
    with pytest.raises(InvalidInputError) as caught:
        blocks.parse(kind, text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("address", "blocked"),
    [
        ("192.0.1.255", False),
        ("192.0.2.0", True),
        ("192.0.2.255", True),
        ("192.0.3.0", False),
        ("198.51.100.7", True),
        ("198.51.100.8", False),
        ("2001:db8::", True),
        ("2001:db8:ffff:ffff::1", True),
        ("2001:db9::", False),
        ("2001:db7:ffff::", False),
        ("::ffff:192.0.2.1", True),
        ("::ffff:192.0.3.1", False),
        ("c000:200::", False),
    ],
)
def test_addresses(address: str, blocked: bool) -> None:
    """A network blocks exactly the addresses in it, of its own family."""
    networks = ["192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32"]
    found = BlockList(networks=map(ip_network, networks))
    assert found.has_networks
    assert found.has_address(ip_address(address).packed) == blocked


@pytest.mark.parametrize("size", [4, 16])
def test_everybody(size: int) -> None:
    """The network of all addresses of a family has all, an empty list none."""
    every = ip_network("0.0.0.0/0" if size == 4 else "::/0")
    assert BlockList(networks=[every]).has_address(b"\xfe" * size)
    assert not BlockList(networks=[every]).has_address(b"\xfe" * (20 - size))
    assert not BlockList().has_address(b"\xfe" * size)
    assert not BlockList().has_networks


@given(
    st.lists(st.ip_addresses(network="192.0.0.0/28").map(int), max_size=3),
    st.integers(28, 32),
    st.ip_addresses(network="192.0.0.0/27"),
)
def test_addresses_like_the_standard_library(starts: list[int], prefix: int, asked: Any) -> None:
    """The look-up agrees with asking each network."""
    networks = [ip_network((start, prefix), strict=False) for start in starts]
    found = BlockList(networks=networks).has_address(asked.packed)
    assert found == any(asked in network for network in networks)


def test_rows(connection: Connection) -> None:
    """Blocks are listed by age; blocking again changes only the reason; lifting is final."""
    first = Block(Kind.ADDRESS, b"192.0.2.0/24", "abuse", NOW)
    second = Block(Kind.INFOHASH, HASH[:20], "", NOW + 1)
    for block in (second, first, first._replace(reason="flood", added=NOW + 9)):
        blocks.add(connection, block)
    assert blocks.listed(connection) == [first._replace(reason="flood"), second]
    assert blocks.listed(connection, Kind.INFOHASH) == [second]
    assert blocks.is_blocked(connection, *second[:2])
    found = blocks.load(connection)
    assert found.info_hashes == {HASH[:20]}
    assert found.has_address(b"\xc0\0\2\1")
    assert (found.publishers, found.nars) == (frozenset(), frozenset())
    blocks.remove(connection, *second[:2])
    assert not blocks.is_blocked(connection, *second[:2])
    with pytest.raises(NotFoundError) as caught:
        blocks.remove(connection, *second[:2])
    assert str(caught.value) == f"{HASH[:20].hex()}: is not blocked"


def test_keys_and_nars(connection: Connection) -> None:
    """Keys and NARs are known as soon as they are read, each as what it is."""
    blocks.add(connection, Block(Kind.PUBLISHER, bytes(32), "", NOW))
    blocks.add(connection, Block(Kind.NAR, HASH, "", NOW))
    found = blocks.load(connection)
    assert (found.publishers, found.nars) == (frozenset({bytes(32)}), frozenset({HASH}))


def _publish(place: Place, item: Any, acl: Acl) -> None:
    index = Index(place)
    index.publish(check(item.nar_hash, item.body, acl, ()), bytes(32), NOW)
    index.close()


def test_withdraw(place: Place, connection: Connection, make_item: MakeItem, acl: Acl) -> None:
    """Nothing is left of the NAR, it and its torrents are blocked, and one step lifts that."""
    gone, stays = make_item(1), make_item(2)
    for item in (gone, stays):
        _publish(place, item, acl)
    mine = Block(Kind.INFOHASH, gone.meta.infohash_v1, "mine", NOW)
    blocks.add(connection, mine)
    with connection.transaction():
        blocks.withdraw(connection, gone.nar_hash, "wrong", NOW + 1)
    for table in ("nars", "narinfos", "torrents", "claims"):
        count = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
        assert count == (1,), table
    v2 = gone.meta.infohash_v2[:20]
    assert blocks.listed(connection) == [
        mine,
        Block(Kind.INFOHASH, v2, "wrong", NOW + 1, gone.nar_hash),
        Block(Kind.NAR, gone.nar_hash, "wrong", NOW + 1, gone.nar_hash),
    ]
    with pytest.raises(NotFoundError) as caught:
        blocks.withdraw(connection, gone.nar_hash, "", NOW)
    digest = base32.format_hash(gone.nar_hash)
    assert str(caught.value) == f"{digest}: is not in the index"
    blocks.remove(connection, Kind.NAR, gone.nar_hash)
    assert blocks.listed(connection) == [mine]


def test_resolve(place: Place, connection: Connection, make_item: MakeItem, acl: Acl) -> None:
    """A NAR is meant by its hash, known or not, or by a store item, with all NARs it ever had."""
    items = [make_item(1, path=7), make_item(2, path=7)]
    for item in items:
        _publish(place, item, acl)
    name = f"{7:032}-item"
    for text in (name, f"/gnu/store/{name}"):
        assert {*blocks.resolve(connection, text)} == {item.nar_hash for item in items}
    assert blocks.resolve(connection, BASE32) == [HASH]
    with pytest.raises(NotFoundError) as caught:
        blocks.resolve(connection, f"{8:032}-item")
    assert str(caught.value) == f"{8:032}-item: is not in the index"
    with pytest.raises(InvalidInputError) as invalid:
        blocks.resolve(connection, "x")
    assert str(invalid.value) == "x: is neither a NAR's hash nor a store item"
