# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP announces in C: every byte is that of the engine in Python."""

from __future__ import annotations

import importlib
import string
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from narswarm import bencoding
from tests import needs
from tracker.announcer import Announcer, RefusedAddressError
from tracker.blocks import BlockList
from tracker.metrics import RequestKey
from tracker.native import AVAILABLE, NativeAnnouncer, NativeSwarms
from tracker.policy import Policy, parse_networks
from tracker.swarms import Limits
from tracker.swarmstore import MemorySwarms
from tracker.wire_http import WireError, failure

_native: Any = importlib.import_module("tracker._native") if AVAILABLE else None

HASH = b"0123456789abcdefghij"
OTHER = b"jihgfedcba9876543210"
BAD = b"\xff" * 20
PEER = b"-XX0001-abcdefghijkl"
MINIMAL = b"info_hash=%b&peer_id=%b&port=6881" % (HASH, PEER)
FOUR, SIX, KEPT_OUT = bytes([192, 0, 2, 7]), ip_address("2001:db8::7").packed, bytes([6, 6, 6, 6])
LIMITS = Limits()
POLICY = Policy(interval=9, leecher_interval=8, retry_minutes=7)
"""Intervals of less than ten seconds are the same in each reply."""

RNG = Random(1)  # noqa: S311 - it keeps no secret

BLOCKS = BlockList([BAD], parse_networks(["6.6.6.0/24", "2001:db8:bad::/48"]))


@pytest.fixture(autouse=True, scope="module", name="built")
def built_fixture() -> None:
    """The extension."""
    needs.native()


class Pair:
    """The same tracker twice."""

    def __init__(self, *, is_open: bool = True) -> None:
        listed = {HASH, BAD}
        self.core = NativeSwarms(LIMITS, is_open=is_open, keep_downloads=True)
        self.core.replace_listed(listed)
        self.native = NativeAnnouncer(POLICY, self.core, listed.__contains__, RNG)
        memory = MemorySwarms(LIMITS, keep_downloads=True)
        self.python = Announcer(
            POLICY, memory, (lambda _: True) if is_open else listed.__contains__, RNG
        )
        self.native.blocks = self.python.blocks = BLOCKS

    def ask(self, query: bytes, address: bytes = FOUR, *, scrape: bool = False) -> bytes:
        """What C answers, when it is what Python answers."""
        answer = bytes(_native.http_answer(self.core.core, scrape, query, address, 1000))
        remote = str(ip_address(address))
        try:
            expected = (
                self.python.scrape_http(query, remote, None)
                if scrape
                else self.python.announce_http(query, remote, None, 1000)
            )
        except RefusedAddressError as error:
            expected = failure(str(error), retry_in="never")
        except WireError as error:
            expected = failure(str(error))
        assert answer == expected
        return answer


QUERIES = [
    b"",
    b"info_hash",
    b"info_hash=",
    b"&&=&=x&%",
    MINIMAL,
    MINIMAL + b"&info_hash=" + HASH,
    b"info_hash=%b&port=1" % HASH,
    b"info_hash=%b&port=1" % HASH[:19],
    b"info_hash=%bx&port=1" % HASH,
    b"info_hash=%b&peer_id=x&port=1" % HASH,
    b"info_hash=%b&peer_id=&port=1" % HASH,
    b"info_hash=%b&peer_id=%b" % (HASH, PEER),
    b"inf%%6F_hash=%b&peer_id=%b&port=1" % (quote(HASH).encode(), PEER),
    b"info_hash=%b&peer_id=%b&port=1" % (b"%" * 20, b"+" * 20),
    b"info_hash=%b&peer_id=%b&port=1" % (b"%zz%2" + b"%25" * 15, b"%c3%A9" * 10),
    b"info_hash=%b&peer_id=%b&port=1&left=1" % (BAD, PEER),
    b"info_hash=%b&peer_id=%b&port=1&left=1" % (OTHER, PEER),
    *(
        b"info_hash=%b&peer_id=%b&port=%b&event=%b" % (HASH, PEER, port, event)
        for port in (b"", b"0", b"-0", b"00", b"1", b"65535", b"65536", b"-1", b"x", b"9" * 21)
        for event in (b"", b"stopped", b"st%6Fpped", b"stopped1")
    ),
    *(
        MINIMAL + b"&%b=%b" % (name, value)
        for name in (b"left", b"numwant")
        for value in (
            *(b"", b"0", b"1", b"-0", b"-1", b"--1", b"+1", b"1e3", b"1_0", b"-", b"0x1", b"%31"),
            *(b"18446744073709551615", b"18446744073709551616", b"99999999999999999999"),
            *(b"-18446744073709551615", b"9223372036854775808", b"0" * 20, b"0" * 21),
        )
    ),
    *(MINIMAL + b"&event=" + event for event in (b"started", b"completed", b"paused", b"Paused")),
    *(
        MINIMAL + b"&left=1&compact=%b&no_peer_id=%b" % (compact, ids)
        for compact in (b"0", b"1", b"", b"00", b"%30")
        for ids in (b"0", b"1", b"", b"%31")
    ),
    MINIMAL + b"&compact=0&compact=1&left=3&left=0&ip=6.6.6.6&ipv6=::1",
    b"&".join(b"info_hash=%020d" % number for number in range(80)),
    b"&".join(b"info_hash=%020d" % (number % 7) for number in range(80, 0, -1)),
    b"&".join([*(b"info_hash=%020d" % number for number in range(74)), b"info_hash=short"]),
    b"&".join([*(b"info_hash=%020d" % number for number in range(73)), b"info_hash=short"]),
]


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("address", [FOUR, SIX, KEPT_OUT], ids=["four", "six", "kept out"])
def test_answers(address: bytes, is_open: bool) -> None:
    """Announces and scrapes, right and wrong ones, of both families, with nobody else there."""
    for query in QUERIES:
        for scrape in (False, True):
            Pair(is_open=is_open).ask(query, address, scrape=scrape)


@pytest.mark.parametrize("first", [FOUR, SIX])
@pytest.mark.parametrize("second", [FOUR, SIX])
def test_answers_with_a_peer(first: bytes, second: bytes) -> None:
    """Who asks after somebody else gets that one, in each form."""
    for query in QUERIES:
        pair = Pair()
        pair.ask(MINIMAL.replace(b"6881", b"256") + b"&left=0&event=started", first)
        pair.ask(query, second)
        pair.ask(b"info_hash=" + HASH, second, scrape=True)


def test_scrape_is_sorted() -> None:
    """Infohashes stand in the order of their bytes, each once, however they were asked for."""
    pair = Pair()
    hashes = [bytes([number * 37 % 256]) * 20 for number in range(74)]
    query = b"&".join(b"info_hash=" + quote(each).encode() for each in [*hashes, hashes[0]])
    reply = bencoding.decode(pair.ask(query, scrape=True), "reply")
    assert isinstance(reply, dict)
    files = reply[b"files"]
    assert isinstance(files, dict)
    assert list(files) == sorted(hashes)


def test_many_peers() -> None:
    """As many peers as may be wanted fit into an answer, as dictionaries with ids too."""
    core = NativeSwarms(LIMITS, is_open=True, keep_downloads=False)
    core.decide(Policy(max_numwant=5000))
    for number in range(2500):
        address = b"\x20\x01\x0d\xb8" + number.to_bytes(4) + b"\xfe\xdc\xba\x98" * 2
        core.core.enter(HASH, PEER, address, 65535, 0, 0, 0, False, False, 1000)
    query = MINIMAL + b"&left=1&numwant=5000"
    reply = bencoding.decode(_native.http_answer(core.core, False, query, SIX, 1000), "reply")
    assert isinstance(reply, dict)
    peers = reply[b"peers6"]
    assert isinstance(peers, bytes)
    assert len(peers) == 2000 * 18
    query += b"&compact=0"
    reply = bencoding.decode(_native.http_answer(core.core, False, query, SIX, 1000), "reply")
    assert isinstance(reply, dict)
    entries = reply[b"peers"]
    assert isinstance(entries, list)
    assert len(entries) == 2000
    assert all(
        isinstance(entry, dict) and set(entry) == {b"ip", b"peer id", b"port"} for entry in entries
    )


def test_unknown_address() -> None:
    """Who comes through a proxy that doesn't say for whom it asks gets a failure."""
    pair = Pair()
    answer = _native.http_answer(pair.core.core, False, MINIMAL, b"", 1000)
    assert answer == failure("X-Forwarded-For: the proxy did not name the client")


def test_counts() -> None:
    """Requests are counted by what became of them, and their time, as in Python."""
    pair = Pair(is_open=False)
    for query in (MINIMAL, MINIMAL + b"&left=x", MINIMAL.replace(HASH, OTHER), b"info_hash=" + BAD):
        pair.ask(query)
        pair.ask(query, SIX, scrape=True)
    pair.ask(MINIMAL.replace(HASH, BAD))
    pair.ask(b"", KEPT_OUT)
    pair.ask(b"", KEPT_OUT, scrape=True)
    found = pair.native.metrics.requests.values()
    assert found == pair.python.metrics.requests.values()
    assert found[RequestKey("http", "ipv4", "announce", "unlisted")] == 1
    both = [each.metrics.latency.values() for each in (pair.native, pair.python)]
    totals = [{key: each.cumulative[-1] for key, each in found.items()} for found in both]
    assert totals[0] == totals[1] == {("http", "announce"): 6, ("http", "scrape"): 5}


_VALUES = st.one_of(
    st.sampled_from([HASH, PEER, b"0", b"1", b"-1", b"stopped", b"completed", b"paused", b"%30"]),
    st.binary(max_size=24).map(lambda raw: quote(raw).encode()),
    st.integers(-(1 << 65), 1 << 65).map(lambda number: b"%d" % number),
    st.text(string.printable, max_size=24).map(str.encode),
)
_NAMES = st.sampled_from(
    [
        *(b"info_hash", b"peer_id", b"port", b"left", b"event", b"numwant", b"compact"),
        *(b"no_peer_id", b"info%5fhash", b"info_has%68", b"info_hash%", b"", b"port%00"),
    ]
)
_FIELDS = st.lists(st.tuples(_NAMES, _VALUES).map(b"=".join), max_size=9)


@given(_FIELDS, st.sampled_from([b"", MINIMAL]), st.sampled_from([FOUR, SIX]), st.booleans())
@example([b"%", b"=", b"info_hash=" + b"%41" * 20, b"peer_id=" + PEER, b"port=1"], b"", FOUR, False)
@settings(max_examples=400)
def test_any_query(fields: list[bytes], rest: bytes, address: bytes, scrape: bool) -> None:
    """Whatever a query says, both engines understand the same."""
    pair = Pair()
    pair.ask(MINIMAL.replace(b"6881", b"2") + b"&left=0", FOUR)
    pair.ask(b"&".join([*fields, rest]), address, scrape=scrape)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(query: bytes, scrape: bool) -> None:
    """The same of bytes that are no query at all."""
    Pair().ask(query, scrape=scrape)


PROXIES = parse_networks(["127.0.0.1", "10.0.0.0/9", "::1", "2001:db8:0:8000::/49"])
_TEXTS = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(
        [
            *("127.0.0.1", " 127.0.0.1 ", "10.127.255.255", "10.128.0.0", "1.2.3.4%5", "%"),
            *("::1", "::ffff:127.0.0.1", "2001:db8:0:8000::1", "2001:db8:0:7fff::1"),
            *("", "unknown", "01.2.3.4", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.4:80"),
            *("::ffff:6.6.6.6", "1:2:3:4:5:6:7::", "::1:2:3:4:5:6:7:8", ":::", "12345::"),
            *("::1.2.3.4", "0.0.0.1", "1.2.3.4::", "::1.2.3.4.5", "00.0.0.0", "[::1]", "::%e"),
        ]
    ),
    st.text("0123456789abcdef:.% ", max_size=45),
)


@given(
    st.sampled_from(["127.0.0.1", "10.1.2.3", "10.200.0.1", "::1", "2001:db8:0:ffff::", "::2"]),
    st.none() | st.lists(_TEXTS, max_size=5).map(",".join),
)
@example("127.0.0.1", "6.6.6.6, 198.51.100.7")
@example("127.0.0.1", "")
@example("::1", None)
def test_client_address(remote: str, forwarded: str | None) -> None:
    """X-Forwarded-For is believed of whom, and as far as, `Policy.client_address` believes it."""
    try:
        expected = Policy(trusted_proxies=PROXIES).client_address(remote, forwarded)
    except WireError:
        expected = None
    found = _native.http_client_address(
        [(network.network_address.packed, network.prefixlen) for network in PROXIES],
        ip_address(remote).packed,
        None if forwarded is None else forwarded.encode(),
    )
    assert found == expected


def test_mapped_addresses() -> None:
    """A client of IPv4 whom a socket shows as IPv6 is one of IPv4, also for the list of proxies."""
    mapped = ip_address("::ffff:192.0.2.7").packed
    assert _native.http_client_address([], mapped, None) == FOUR
    proxies = [(ip_network("192.0.2.0/24").network_address.packed, 24)]
    assert _native.http_client_address(proxies, mapped, b"2001:db8::7") == SIX


GET = b"GET /announce?x=1 HTTP/1.1\r\n"


def _read(head: bytes) -> Any:
    return _native.http_read(head)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET /announce HTTP/1.1\r\n\r\n", {"query": b""}),
        (b"GET /announce? HTTP/1.1\r\n\r\nGET", {"query": b""}),
        (GET + b"\r\n", {}),
        (b"HEAD /scrape?x=1 HTTP/1.1\r\n\r\n", {"scrape": True, "head": True}),
        (b"GET /announce?x=1 HTTP/1.0\r\n\r\n", {"keep_alive": False}),
        (
            b"GET /announce?x=1 HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
            {"keep_alive": True},
        ),
        (GET + b"connection: foo , CLOSE\t\r\n\r\n", {"keep_alive": False}),
        (GET + b"Connection: keep-alive, close\r\n\r\n", {"keep_alive": False}),
        (GET + b"Connection: closed\r\n\r\n", {}),
        (GET + b"Host: x\r\nAccept: */*\r\nUser-Agent:\r\n\r\n", {}),
        (GET + b"X-Forwarded-For:  a, b \r\n\r\n", {"forwarded": b"a, b"}),
        (GET + b"x-forwarded-for:a\r\nX-FORWARDED-FOR: b\r\n\r\n", {"forwarded": b"a,b"}),
        (GET + b"X-Forwarded-For:\r\n\r\n", {"forwarded": b""}),
        (GET + b"A: b\r\n" * 50 + b"\r\n", {}),
        (GET + b"A: " + b"b" * 2043 + b"\r\n\r\n", {}),
        (b"GET /announce?" + b"x" * (8188 - 23) + b" HTTP/1.1\r\n\r\n", {"query": b"x" * 8165}),
    ],
)
def test_heads(head: bytes, expected: dict[str, object]) -> None:
    """Plain announces and scrapes are read."""
    found = _read(head)
    whole = {"scrape": False, "head": False, "keep_alive": True, "query": b"x=1", "forwarded": None}
    assert found == {**whole, **expected, "length": head.index(b"\r\n\r\n") + 4}


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /announcer HTTP/1.1\r\n\r\n",
        b"GET /announce/ HTTP/1.1\r\n\r\n",
        b"GET /%61nnounce HTTP/1.1\r\n\r\n",
        b"GET http://x/announce HTTP/1.1\r\n\r\n",
        b"GET /announce#x HTTP/1.1\r\n\r\n",
        b"GET /announce?x#y HTTP/1.1\r\n\r\n",
        b"GET /announce?\xe4 HTTP/1.1\r\n\r\n",
        b"GET /announce?\t HTTP/1.1\r\n\r\n",
        b"GET  /announce HTTP/1.1\r\n\r\n",
        b"GET /announce  HTTP/1.1\r\n\r\n",
        b"GET /announce HTTP/1.1 \r\n\r\n",
        b"GET /announce HTTP/1.2\r\n\r\n",
        b"GET /announce HTTP/2.0\r\n\r\n",
        b"GET /announce\r\n\r\n",
        b"get /announce HTTP/1.1\r\n\r\n",
        b"POST /announce HTTP/1.1\r\n\r\n",
        b"GET /announce?" + b"x" * (8189 - 23) + b" HTTP/1.1\r\n\r\n",
        GET + b"Content-Length: 0\r\n\r\n",
        GET + b"Content-Type: text/plain\r\n\r\n",
        GET + b"transfer-encoding: chunked\r\n\r\n",
        GET + b"Expect: 100-continue\r\n\r\n",
        GET + b"Upgrade: h2c\r\n\r\n",
        GET + b"Host: a\r\nHost: b\r\n\r\n",
        GET + b"A : b\r\n\r\n",
        GET + b": b\r\n\r\n",
        GET + b"A\r\n\r\n",
        GET + b"A: b\r\n c\r\n\r\n",
        GET + b"A: \xe4\r\n\r\n",
        GET + b"A: \x7f\r\n\r\n",
        GET + b"A: b\r\n" * 51 + b"\r\n",
        GET + b"A: " + b"b" * 2044 + b"\r\n\r\n",
    ],
)
def test_heads_for_others(head: bytes) -> None:
    """Whatever isn't plain is somebody else's to read or to refuse."""
    assert _read(head) == "others"


@pytest.mark.parametrize(
    "head",
    [
        b"\n",
        b"\r\n",
        b"\rx",
        b"\r\r",
        b"\0",
        b"GET /announce HTTP/1.1\n",
        b"GET /announce HTTP/1.1\r\nA: b\n",
        b"GET /announce HTTP/1.1\r\nA: \0",
        b"GET /announce HTTP/1.1\r\n\rx",
        b"\x16\x03\x01",
    ],
)
def test_malformed_heads(head: bytes) -> None:
    """Of some beginnings no request comes, so nothing further is waited for."""
    assert _read(head) == "malformed"


@given(st.binary(max_size=300), st.sampled_from([b"", GET, GET + b"A: b\r\n"]))
def test_any_head(data: bytes, before: bytes) -> None:
    """Any bytes are something, and what is whole stays so whatever follows."""
    found = _read(before + data)
    assert isinstance(found, dict) or found in {"incomplete", "malformed", "others"}
    if found != "incomplete":
        assert _read(before + data + b"\0x") == found


@pytest.mark.parametrize("head", [GET + b"Host: x\r\n\r\n", b"PUT /x HTTP/1.1\r\nA: b\r\n\r\n"])
def test_incomplete_heads(head: bytes) -> None:
    """A head ends with its empty line, and not before."""
    for size in range(len(head)):
        assert _read(head[:size]) == "incomplete"
