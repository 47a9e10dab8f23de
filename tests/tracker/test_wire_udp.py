# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets of the UDP tracker protocol, byte for byte, and the ids that prove an address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker import wire_udp
from tracker.wire_http import AnnounceReply, AnnounceRequest, Counts, Event, WireError
from tracker.wire_udp import ConnectionIds

HASH = bytes(range(100, 120))
PEER_ID = b"-XX0001-abcdefghijkl"
TRANSACTION = b"\xde\xad\xbe\xef"
FOUR = b"\xc0\0\2\1"
SIX = bytes.fromhex("20010db8000000010000000000000001")
NOW = 1_700_000_040  # a minute begins
IDS = ConnectionIds(b"k" * wire_udp.KEY_BYTES)


def _announce(
    *,
    left: int = 5,
    event: int = 0,
    numwant: bytes = b"\xff\xff\xff\xff",
    port: int = 258,
    options: bytes = b"",
) -> bytes:
    """An announce whose fields stand where BEP 15 has them, each with a value of its own."""
    packet = b"connecti" + b"\0\0\0\1" + TRANSACTION + HASH + PEER_ID
    packet += (6).to_bytes(8) + left.to_bytes(8) + (7).to_bytes(8)
    packet += event.to_bytes(4) + b"\1\2\3\4" + b"key!" + numwant + port.to_bytes(2)
    assert len(packet) == wire_udp.ANNOUNCE_BYTES == 98
    return packet + options


def test_fields_of_an_announce() -> None:
    """Each field is read from its offset; order is downloaded, left, uploaded."""
    assert wire_udp.parse_announce(_announce(numwant=b"\0\0\0\x1e")) == AnnounceRequest(
        info_hash=HASH, peer_id=PEER_ID, port=258, left=5, numwant=30, one_family=True
    )


MEANINGFUL = {
    **dict.fromkeys(range(16, 36), "info_hash"),
    **dict.fromkeys(range(36, 56), "peer_id"),
    **dict.fromkeys(range(64, 72), "left"),
    **dict.fromkeys(range(80, 84), "event"),
    **dict.fromkeys(range(92, 96), "numwant"),
    **dict.fromkeys(range(96, 98), "port"),
}


@pytest.mark.parametrize("offset", range(98))
def test_every_byte_of_an_announce(offset: int) -> None:
    """A byte changes the field that it belongs to, and those of no field change nothing.

    Among these are the address, which would let a client speak for another, and the key.
    """
    plain = _announce(event=1, numwant=b"\0\0\0\x1e")
    changed = bytearray(plain)
    changed[offset] ^= 3
    before, after = wire_udp.parse_announce(plain), wire_udp.parse_announce(bytes(changed))
    different = [
        name for name, old, new in zip(before._fields, before, after, strict=True) if old != new
    ]
    assert different == ([MEANINGFUL[offset]] if offset in MEANINGFUL else [])


@pytest.mark.parametrize(
    ("number", "event"),
    [
        (0, Event.NONE),
        (1, Event.COMPLETED),
        (2, Event.STARTED),
        (3, Event.STOPPED),
        (4, Event.PAUSED),
        (5, Event.NONE),
        (2**32 - 1, Event.NONE),
    ],
)
def test_events(number: int, event: Event) -> None:
    """Four is what libtorrent sends for a partial seed; unknown ones are ordinary announces."""
    assert wire_udp.parse_announce(_announce(event=number)).event is event


@pytest.mark.parametrize(
    ("left", "read", "seed"),
    [
        (0, 0, True),
        (1, 1, False),
        (2**63 - 1, 2**63 - 1, False),
        (2**63, -1, False),
        (2**64 - 1, -1, False),
    ],
)
def test_left(left: int, read: int, *, seed: bool) -> None:
    """What a client with a magnet link sends for the size that it doesn't know isn't zero."""
    request = wire_udp.parse_announce(_announce(left=left))
    assert (request.left, request.is_seed) == (read, seed)


@pytest.mark.parametrize(
    ("numwant", "read"),
    [
        (b"\xff\xff\xff\xff", None),
        (b"\x80\0\0\0", None),
        (b"\0\0\0\0", 0),
        (b"\0\0\0\1", 1),
        (b"\x7f\xff\xff\xff", 2**31 - 1),
    ],
)
def test_numwant(numwant: bytes, read: int | None) -> None:
    """Whatever is negative leaves it to the tracker; none is none."""
    assert wire_udp.parse_announce(_announce(numwant=numwant)).numwant == read


@pytest.mark.parametrize("event", range(6))
def test_port_zero(event: int) -> None:
    """Nobody can connect to port 0, but who leaves may send it."""
    if event == 3:
        assert wire_udp.parse_announce(_announce(event=event, port=0)).port == 0
        return
    with pytest.raises(WireError) as caught:
        wire_udp.parse_announce(_announce(event=event, port=0))
    assert str(caught.value) == "port: is not between 1 and 65535"


def test_last_port() -> None:
    """Ports are unsigned."""
    assert wire_udp.parse_announce(_announce(port=65535)).port == 65535


@pytest.mark.parametrize(
    ("options", "url"),
    [
        (b"", b""),
        (b"\0", b""),
        (b"\2\4/abc", b"/abc"),
        (b"\2\4/abc\0", b"/abc"),
        (b"\2\4/abc\0\2\4/def", b"/abc"),
        (b"\1\1\2\4/abc\1", b"/abc"),
        (b"\2\4/abc\2\4/def", b"/abc/def"),
        (b"\2\4/abc\2\0\2\1d", b"/abcd"),
        (b"\2\0", b""),
        (b"\3\2xx\2\4/abc\xff\0\2\1d", b"/abcd"),
        (b"\2", b""),
        (b"\2\4/ab", b""),
        (b"\2\4/abc\2\2d", b"/abc"),
        (b"\2\4/abc\3", b"/abc"),
        (b"\2\4/abc\3\xff", b"/abc"),
        (b"\2\xff" + b"u" * 255 + b"\2\1v", b"u" * 255 + b"v"),
    ],
)
def test_options(options: bytes, url: bytes) -> None:
    """Parts of a URL are put together, unknown options skipped, what is cut off ignored."""
    packet = _announce(options=options)
    assert wire_udp.url_data(packet) == url
    assert wire_udp.parse_announce(packet) == wire_udp.parse_announce(_announce())


@given(st.binary(max_size=300))
def test_any_options(options: bytes) -> None:
    """No tail makes an announce unreadable or gives more than it holds."""
    assert len(wire_udp.url_data(_announce(options=options))) <= max(len(options) - 2, 0)


@given(st.lists(st.binary(min_size=1, max_size=255), max_size=5), st.booleans())
def test_urls_in_pieces(parts: list[bytes], ended: bool) -> None:
    """A URL comes out as it was put in, however it was cut."""
    options = b"".join(b"\2" + bytes([len(part)]) + part for part in parts) + b"\0" * ended
    assert wire_udp.url_data(_announce(options=options)) == b"".join(parts)


@pytest.mark.parametrize("count", [0, 1, 2, 73, 74, 75, 80])
@pytest.mark.parametrize("tail", [0, 1, 19])
def test_scrape(count: int, tail: int) -> None:
    """The first 74 infohashes in order; what isn't a whole one is ignored."""
    hashes = [bytes([number]) * 20 for number in range(count)]
    packet = b"connecti" + b"\0\0\0\2" + TRANSACTION + b"".join(hashes) + b"x" * tail
    assert wire_udp.parse_scrape(packet) == hashes[:74]


def test_scrape_of_the_same_twice() -> None:
    """The answer has a place for each, so the same infohash is asked for twice."""
    packet = b"connecti" + b"\0\0\0\2" + TRANSACTION + HASH * 2
    assert wire_udp.parse_scrape(packet) == [HASH, HASH]


CONNECT = bytes.fromhex("00000417271019800000000012345678")


def test_connect() -> None:
    """The magic number and action 0; the reply repeats the transaction and is no longer."""
    assert wire_udp.is_connect(CONNECT)
    assert wire_udp.is_connect(CONNECT + b"more")
    reply = wire_udp.connect_reply(CONNECT[12:], b"idididid")
    assert reply == bytes.fromhex("0000000012345678") + b"idididid"
    assert len(reply) == len(CONNECT) == wire_udp.HEADER_BYTES


@pytest.mark.parametrize("offset", range(12))
def test_every_byte_of_a_connect(offset: int) -> None:
    """With any other magic number or action it isn't one."""
    changed = bytearray(CONNECT)
    changed[offset] ^= 1
    assert not wire_udp.is_connect(bytes(changed))


PEERS4 = b"".join(b"\x0a\0" + number.to_bytes(2) + b"\1\2" for number in range(300))
PEERS6 = b"".join(SIX[:14] + number.to_bytes(2) + b"\1\2" for number in range(100))


@pytest.mark.parametrize(
    ("address", "peers", "size"), [(FOUR, PEERS4[: 6 * 242], 1472), (SIX, PEERS6[: 18 * 79], 1442)]
)
def test_announce_reply(address: bytes, peers: bytes, size: int) -> None:
    """Interval, leechers, seeders, then peers of the asker's family as many as fit."""
    counts = Counts(complete=3, incomplete=2, downloaded=9, downloaders=1)
    reply = AnnounceReply(1800, 900, counts, PEERS4, PEERS6, b"", b"", address)
    packet = wire_udp.announce_reply(TRANSACTION, reply)
    numbers = bytes.fromhex("00000708 00000002 00000003")
    assert packet == b"\0\0\0\1" + TRANSACTION + numbers + peers
    assert len(packet) == size


@pytest.mark.parametrize("address", [FOUR, SIX])
def test_announce_reply_without_peers(address: bytes) -> None:
    """An empty swarm has 20 bytes."""
    reply = AnnounceReply(90, 45, Counts(0, 1, 0, 1), b"", b"", b"", b"", address)
    assert len(wire_udp.announce_reply(TRANSACTION, reply)) == 20


def test_scrape_reply() -> None:
    """Seeders, completed, leechers; 74 of them fit into any packet."""
    swarms = [Counts(1, 2, 3, 4), Counts(0, 0, 0, 0)]
    numbers = bytes.fromhex("00000001 00000003 00000002") + bytes(12)
    assert wire_udp.scrape_reply(TRANSACTION, swarms) == b"\0\0\0\2" + TRANSACTION + numbers
    assert wire_udp.scrape_reply(TRANSACTION, []) == b"\0\0\0\2" + TRANSACTION
    assert len(wire_udp.scrape_reply(TRANSACTION, swarms[:1] * 74)) == 896


def test_error_reply() -> None:
    """The text isn't ended by a NUL."""
    assert wire_udp.error_reply(TRANSACTION, "port: no") == b"\0\0\0\3" + TRANSACTION + b"port: no"


@pytest.mark.parametrize("address", [FOUR, SIX])
@pytest.mark.parametrize(
    ("issued", "asked", "holds"),
    [
        (0, 0, True),
        (0, 120, True),
        (0, 179, True),
        (0, 180, False),
        (59, 179, True),
        (59, 180, False),
        (60, 0, True),
        (119, 0, True),
        (120, 0, False),
        (0, 256 * 60, False),
        (0, 257 * 60, False),
        (0, 128 * 60, False),
    ],
)
def test_age_of_ids(address: bytes, issued: int, asked: int, *, holds: bool) -> None:
    """An id holds for at least two minutes and less than three, and from a clock a minute ahead."""
    connection_id = IDS.issue(address, NOW + issued)
    assert IDS.holds(connection_id, address, NOW + asked) is holds


@pytest.mark.parametrize("bit", range(64))
def test_every_bit_of_an_id(bit: int) -> None:
    """Nothing but the id itself holds."""
    connection_id = IDS.issue(FOUR, NOW)
    changed = (int.from_bytes(connection_id) ^ 1 << bit).to_bytes(8)
    assert not IDS.holds(changed, FOUR, NOW)


@pytest.mark.parametrize(
    ("address", "other", "holds"),
    [
        (FOUR, b"\xc0\0\2\2", False),
        (SIX, SIX[:15] + b"\2", True),
        (SIX, SIX[:8] + bytes(8), True),
        (SIX, SIX[:7] + b"\0" + SIX[8:], False),
        (FOUR, FOUR + bytes(12), False),
    ],
)
def test_ids_of_others(address: bytes, other: bytes, *, holds: bool) -> None:
    """An id belongs to an address; of IPv6, to the 64 bits that its owner has all addresses of."""
    assert IDS.holds(IDS.issue(address, NOW), other, NOW) is holds


@pytest.mark.parametrize("now", [0, 59, 60, 119])
@pytest.mark.parametrize("first", [0, 1, 2, 254, 255])
def test_clocks_that_were_never_set(now: int, first: int) -> None:
    """At the epoch, ids seem to be from before it; nothing else is different."""
    assert not IDS.holds(bytes([first]) + bytes(7), FOUR, now)
    assert IDS.holds(IDS.issue(FOUR, now), FOUR, now + 120)


def test_keys() -> None:
    """Two with one key take each other's ids, and with another key nobody does."""
    connection_id = IDS.issue(FOUR, NOW)
    assert len(connection_id) == 8
    assert ConnectionIds(b"k" * 32).holds(connection_id, FOUR, NOW)
    assert not ConnectionIds(b"l" * 32).holds(connection_id, FOUR, NOW)


@given(st.binary(min_size=8, max_size=8), st.sampled_from([FOUR, SIX]), st.integers(0, 2**40))
def test_guesses(guess: bytes, address: bytes, now: int) -> None:
    """What wasn't issued doesn't hold, at any time."""
    assert not IDS.holds(guess, address, now)
