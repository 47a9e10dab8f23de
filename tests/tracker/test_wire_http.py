# SPDX-License-Identifier: GPL-3.0-or-later
"""Queries to values and replies to bytes."""

from __future__ import annotations

from typing import Literal
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from narswarm import bencoding
from tracker.wire_http import (
    MAX_SCRAPE,
    AnnounceReply,
    AnnounceRequest,
    Counts,
    Event,
    WireError,
    announce_reply,
    failure,
    parse_announce,
    parse_scrape,
    scrape_reply,
)

HASH = b"0123456789abcdefghij"
PEER = b"-XX0001-abcdefghijkl"
MINIMAL = b"info_hash=%b&peer_id=%b&port=6881" % (HASH, PEER)
REQUEST = AnnounceRequest(HASH, PEER, 6881)

NUMBERS = Counts(complete=3, incomplete=5, downloaded=7, downloaders=4)
REPLY = AnnounceReply(1800, 900, NUMBERS, b"\x7f\0\0\1\x1a\xe1", b"", b"", b"", b"\x0a\0\0\1")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"", REQUEST),
        (b"left=0", REQUEST._replace(left=0)),
        (b"left=1", REQUEST._replace(left=1)),
        (b"left=18446744073709551615", REQUEST._replace(left=2**64 - 1)),
        (b"left=-1", REQUEST),
        (b"left=-5", REQUEST),
        (b"event=", REQUEST),
        (b"event=empty", REQUEST),
        (b"event=started", REQUEST._replace(event=Event.STARTED)),
        (b"event=completed", REQUEST._replace(event=Event.COMPLETED)),
        (b"event=stopped", REQUEST._replace(event=Event.STOPPED)),
        (b"event=paused", REQUEST._replace(event=Event.PAUSED)),
        (b"event=p%61used", REQUEST._replace(event=Event.PAUSED)),
        (b"numwant=0", REQUEST._replace(numwant=0)),
        (b"numwant=1", REQUEST._replace(numwant=1)),
        (b"numwant=-1", REQUEST),
        (b"compact=0", REQUEST._replace(compact=False)),
        (b"compact=1", REQUEST),
        (b"compact=yes", REQUEST),
        (b"no_peer_id=1", REQUEST._replace(no_peer_id=True)),
        (b"no_peer_id=0", REQUEST),
        (b"ip=10.0.0.1&ipv4=None&ipv6=::1&uploaded=x&downloaded=&key=1&supportcrypto", REQUEST),
        (b"port=1&peer_id=short&numwant=9&numwant=nonsense", REQUEST._replace(numwant=9)),
        (b"&&=&=x&%", REQUEST),
    ],
)
def test_announce(query: bytes, expected: AnnounceRequest) -> None:
    """Three parameters are needed; others count when they say something, the first of each."""
    assert parse_announce(MINIMAL + b"&" + query) == expected


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (b"", "info_hash: is missing"),
        (b"peer_id=%b&port=1" % PEER, "info_hash: is missing"),
        (b"info_hash=&peer_id=%b&port=1" % PEER, "info_hash: has 0 bytes instead of 20"),
        (b"info_hash=%b&port=1" % HASH[:19], "info_hash: has 19 bytes instead of 20"),
        (b"info_hash=%bx&port=1" % HASH, "info_hash: has 21 bytes instead of 20"),
        (MINIMAL + b"&info_hash=" + HASH, "info_hash: only one may be announced at a time"),
        (b"info_hash=%b&port=1" % HASH, "peer_id: is missing"),
        (b"info_hash=%b&peer_id=x&port=1" % HASH, "peer_id: has 1 bytes instead of 20"),
        (b"info_hash=%b&peer_id=%b" % (HASH, PEER), "port: is missing"),
        (b"info_hash=%b&peer_id=%b&port=" % (HASH, PEER), "port: is not a number of 64 bits"),
        (b"info_hash=%b&peer_id=%b&port=0" % (HASH, PEER), "port: is not between 1 and 65535"),
        (b"info_hash=%b&peer_id=%b&port=-1" % (HASH, PEER), "port: is not between 1 and 65535"),
        (b"info_hash=%b&peer_id=%b&port=65536" % (HASH, PEER), "port: is not between 1 and 65535"),
        (MINIMAL + b"&left=", "left: is not a number of 64 bits"),
        (MINIMAL + b"&left=1e3", "left: is not a number of 64 bits"),
        (MINIMAL + b"&left=--1", "left: is not a number of 64 bits"),
        (MINIMAL + b"&left=+1", "left: is not a number of 64 bits"),
        (MINIMAL + b"&left=1_0", "left: is not a number of 64 bits"),
        (MINIMAL + b"&left=18446744073709551616", "left: is not a number of 64 bits"),
        (MINIMAL + b"&left=" + b"0" * 21, "left: is not a number of 64 bits"),
        (MINIMAL + b"&numwant=many", "numwant: is not a number of 64 bits"),
    ],
)
def test_announce_refusals(query: bytes, reason: str) -> None:
    """A parameter that is missing or malformed is named in the failure reason."""
    with pytest.raises(WireError) as caught:
        parse_announce(query)
    assert str(caught.value) == reason


@pytest.mark.parametrize(("port", "allowed"), [(0, True), (1, True), (65535, True), (65536, False)])
def test_port_of_a_peer_that_stops(port: int, allowed: bool) -> None:
    """Port 0 is taken from who leaves, since nobody will connect to it."""
    query = b"info_hash=%b&peer_id=%b&event=stopped&port=%d" % (HASH, PEER, port)
    if allowed:
        assert parse_announce(query).port == port
    else:
        with pytest.raises(WireError):
            parse_announce(query)


@given(st.binary(min_size=20, max_size=20), st.binary(min_size=20, max_size=20))
@example(b"+" * 20, b"%" * 20)
@example(b"&=;#?/ \0\n\r\x7f\x80\xff+%25%xy", bytes(20))
def test_binary_infohashes_survive(info_hash: bytes, peer_id: bytes) -> None:
    """Any 20 bytes come through their escapes, and a plus sign is a plus sign."""
    query = f"info_hash={quote(info_hash, safe='+')}&peer_id={quote(peer_id, safe='')}&port=1"
    request = parse_announce(query.encode())
    assert (request.info_hash, request.peer_id) == (info_hash, peer_id)


@given(st.binary(max_size=300))
def test_any_query_is_answered(query: bytes) -> None:
    """Whatever is sent, it is a request or a refusal that can be encoded."""
    for parse in (parse_announce, parse_scrape):
        reason = ""
        try:
            parse(query)
        except WireError as error:
            reason = str(error)
        decoded = bencoding.decode(failure(reason), "reply")
        assert decoded == {b"failure reason": reason.encode()}


@pytest.mark.parametrize(
    ("left", "event", "is_seed"),
    [
        (0, Event.NONE, True),
        (1, Event.NONE, False),
        (-1, Event.NONE, False),
        (1, Event.COMPLETED, True),
        (-1, Event.COMPLETED, True),
        (1, Event.PAUSED, False),
    ],
)
def test_who_is_a_seed(left: int, event: Event, is_seed: bool) -> None:
    """Nothing left makes a seed, and so does having completed; not saying doesn't."""
    assert REQUEST._replace(left=left, event=event).is_seed is is_seed


def _hash(number: int) -> bytes:
    return b"%020d" % number


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"info_hash=" + HASH, [HASH]),
        (b"info_hash=%b&x=1&info_hash=%b" % (_hash(2), _hash(1)), [_hash(2), _hash(1)]),
        (b"info_hash=%b&info_hash=%b" % (HASH, HASH), [HASH]),
        (b"info%5Fhash=" + HASH, [HASH]),
    ],
)
def test_scrape(query: bytes, expected: list[bytes]) -> None:
    """A scrape is a list of infohashes, each once, in their order."""
    assert parse_scrape(query) == expected


@pytest.mark.parametrize("count", [MAX_SCRAPE - 1, MAX_SCRAPE, MAX_SCRAPE + 1])
def test_long_scrapes_are_cut(count: int) -> None:
    """No more infohashes are answered than fit into a packet of UDP."""
    query = b"&".join(b"info_hash=" + _hash(number) for number in range(count))
    assert parse_scrape(query) == [_hash(number) for number in range(min(count, MAX_SCRAPE))]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (b"", "info_hash: is missing, and full scrapes are not served"),
        (b"x=1", "info_hash: is missing, and full scrapes are not served"),
        (b"info_hash=%b&info_hash=x" % HASH, "info_hash: has 1 bytes instead of 20"),
    ],
)
def test_scrape_refusals(query: bytes, reason: str) -> None:
    """A scrape of everything, or of something malformed, is refused."""
    with pytest.raises(WireError) as caught:
        parse_scrape(query)
    assert str(caught.value) == reason


COMMON = (
    b"d8:completei3e10:downloadedi7e11:external ip4:\x0a\0\0\x0110:incompletei5e"
    b"8:intervali1800e12:min intervali900e"
)
SIX = b"\x20\x01\x0d\xb8" + bytes(11) + b"\1\x1a\xe2"


@pytest.mark.parametrize(
    ("reply", "compact", "expected"),
    [
        (REPLY, True, COMMON + b"5:peers6:\x7f\0\0\1\x1a\xe1e"),
        (REPLY._replace(peers4=b""), True, COMMON + b"5:peers0:e"),
        (
            REPLY._replace(peers6=SIX),
            True,
            COMMON + b"5:peers6:\x7f\0\0\1\x1a\xe16:peers618:" + SIX + b"e",
        ),
        (
            REPLY._replace(peers4=b"", external_ip=SIX[:16]),
            True,
            COMMON.replace(b"4:\x0a\0\0\1", b"16:" + SIX[:16]) + b"5:peers0:6:peers60:e",
        ),
        (REPLY._replace(peers4=b""), False, COMMON + b"5:peerslee"),
        (REPLY, False, COMMON + b"5:peersld2:ip9:127.0.0.14:porti6881eeee"),
        (
            REPLY._replace(ids4=PEER),
            False,
            COMMON + b"5:peersld2:ip9:127.0.0.17:peer id20:" + PEER + b"4:porti6881eeee",
        ),
        (
            REPLY._replace(peers6=SIX, ids6=PEER),
            False,
            COMMON
            + b"5:peersld2:ip9:127.0.0.14:porti6881ee"
            + b"d2:ip11:2001:db8::17:peer id20:"
            + PEER
            + b"4:porti6882eeee",
        ),
    ],
)
def test_announce_reply(reply: AnnounceReply, compact: bool, expected: bytes) -> None:
    """Replies are canonical bencoding, always with `peers`, packed unless it was refused."""
    encoded = announce_reply(reply, compact=compact)
    assert encoded == expected
    assert bencoding.encode(bencoding.decode(encoded, "reply")) == encoded


@pytest.mark.parametrize(
    ("retry_in", "expected"),
    [
        (None, b"d14:failure reason6:a: cate"),
        (5, b"d14:failure reason6:a: cat8:intervali300e8:retry ini5ee"),
        ("never", b"d14:failure reason6:a: cat8:intervali86400e8:retry in5:nevere"),
    ],
)
def test_failure(retry_in: int | Literal["never"] | None, expected: bytes) -> None:
    """A refusal says when to come back, in minutes (BEP 31) and for libtorrent in seconds."""
    assert failure("a: cat", retry_in=retry_in) == expected


def test_scrape_reply() -> None:
    """Counts stand under their infohashes, which are sorted as raw bytes."""
    files = {b"\xff" * 20: NUMBERS, b"\x00" * 20: Counts(0, 0, 0, 0)}
    assert scrape_reply(files, min_interval=90) == (
        b"d5:filesd"
        b"20:" + bytes(20) + b"d8:completei0e10:downloadedi0e11:downloadersi0e10:incompletei0ee"
        b"20:" + b"\xff" * 20 + b"d8:completei3e10:downloadedi7e11:downloadersi4e10:incompletei5ee"
        b"e5:flagsd20:min_request_intervali90eee"
    )
