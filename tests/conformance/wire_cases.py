# SPDX-License-Identifier: GPL-3.0-or-later
"""What trackers are asked in `test_tracker_oracles.py`, and what ours says.

Each case has infohashes of its own, so that all of them can be put to one running tracker, in any
order. What other trackers say instead is in `wire_differences.py`.
"""

from __future__ import annotations

from tests.conformance.wire_steps import Announce, Case, Crowd, H, Packet, Request, Scrape

NOBODY = "0 seeds, 0 leechers, no peers"
LEECHER = "0 seeds, 1 leecher, no peers"
SEED = "1 seed, 0 leechers, no peers"
ZERO = "0 seeds 0 leechers 0 downloads"

SHARED = (
    # -- who is there --
    Case("a leecher comes first", (Announce(1),), LEECHER),
    Case("a seed comes first", (Announce(1, left=0),), SEED),
    Case("a second leecher", (Announce(1), Announce(2)), "0 seeds, 2 leechers, peers 1"),
    Case(
        "a leecher finds seed and leecher",
        (Announce(1, left=0), Announce(2), Announce(3)),
        "1 seed, 2 leechers, peers 1 2",
    ),
    Case(
        "a seed asks for peers",
        (Announce(1, left=0), Announce(2), Announce(3, left=0)),
        "2 seeds, 1 leecher, peers 2",
    ),
    Case("a peer announces again", (Announce(1), Announce(1)), LEECHER),
    Case("the asker among the peers", (Announce(1, show="all"),), LEECHER),
    Case("left is not known", (Announce(1, left=None),), LEECHER),
    Case("left of more than 4 GiB", (Announce(1, left=2**33),), LEECHER),
    Case(
        "one peer id at two ports",
        (Announce(1, peer=7), Announce(2, peer=7)),
        "0 seeds, 2 leechers, peers 1",
    ),
    Case("two peer ids at one port", (Announce(1, peer=7), Announce(1, peer=8)), LEECHER),
    Case("two swarms", (Announce(1), Announce(2, infohash=1)), LEECHER),
    Case(
        "another address is named",
        (Announce(1, ip="6.6.6.6"), Announce(2)),
        "0 seeds, 2 leechers, peers 1",
    ),
    # -- events --
    Case("started", (Announce(1, event="started"),), LEECHER),
    Case("an event that nobody knows", (Announce(1, event="unknown"),), LEECHER),
    Case(
        "completed",
        (Announce(1), Announce(1, left=0, event="completed")),
        SEED,
    ),
    Case(
        "nothing is left, without an event",
        (Announce(1), Announce(1, left=0)),
        SEED,
    ),
    Case("completed with something left", (Announce(1), Announce(1, event="completed")), SEED),
    Case("completed and unknown before", (Announce(1, left=0, event="completed"),), SEED),
    Case("a seed that is no longer whole", (Announce(1, left=0), Announce(1)), LEECHER),
    Case("paused", (Announce(1), Announce(1, event="paused")), LEECHER),
    Case(
        "a paused peer asks for peers",
        (Announce(1, left=0), Announce(2), Announce(3, event="paused")),
        "1 seed, 2 leechers, peers 2",
    ),
    Case(
        "stopped",
        (Announce(1), Announce(2), Announce(1, event="stopped")),
        LEECHER,
    ),
    Case(
        "after somebody stopped",
        (Announce(1), Announce(2), Announce(1, event="stopped"), Announce(2)),
        LEECHER,
    ),
    Case("the last one stops", (Announce(1), Announce(1, event="stopped")), NOBODY),
    Case("a stranger stops", (Announce(1), Announce(2, event="stopped")), LEECHER),
    Case(
        "a seed stops",
        (Announce(1, left=0), Announce(2, left=0), Announce(1, left=0, event="stopped")),
        SEED,
    ),
    # -- ports and numbers --
    Case("port 0", (Announce(0, show="count"),), "failure"),
    Case("stopped at port 0", (Announce(1), Announce(0, event="stopped")), LEECHER),
    Case(
        "port 65535", (Announce(65535, show="all"), Announce(2)), "0 seeds, 2 leechers, peers 65535"
    ),
    Case("0 peers are wanted", (Announce(1), Announce(2, numwant=0, show="count")), "0 peers"),
    Case("1 peer is wanted", (Crowd(9), Announce(1, numwant=1, show="count")), "1 peers"),
    Case("no number is wanted", (Crowd(99), Announce(1, show="count")), "50 peers"),
    Case("-1 peers are wanted", (Crowd(99), Announce(1, numwant=-1, show="count")), "50 peers"),
    Case(
        "2147483647 peers are wanted",
        (Crowd(240), Announce(1, numwant=2**31 - 1, show="count")),
        "200 peers",
    ),
    Case("a leecher's interval", (Announce(1, show="interval"),), "about 90 s"),
    Case("a seed's interval", (Announce(1, left=0, show="interval"),), "about 1800 s"),
    # -- scrapes --
    Case("scrape", (Announce(1, left=0), Announce(2), Scrape()), "1 seed 1 leecher 0 downloads"),
    Case("scrape of an unknown infohash", (Scrape(),), ZERO),
    Case(
        "scrape of two infohashes",
        (Announce(1), Announce(2, left=0, infohash=1), Scrape((0, 1))),
        "0 seeds 1 leecher 0 downloads; 1 seed 0 leechers 0 downloads",
    ),
    Case(
        "scrape of a known and an unknown infohash",
        (Announce(1), Scrape((0, 1))),
        f"0 seeds 1 leecher 0 downloads; {ZERO}",
    ),
    Case(
        "scrape of one infohash twice",
        (Announce(1), Scrape((0, 0), show="number")),
        "1 entries",
        udp="2 entries",
    ),
    Case(
        "scrape of 74",
        (*(Announce(1, infohash=number) for number in range(74)), Scrape(range(74), show="number")),
        "74 entries",
    ),
    Case(
        "scrape of 75",
        (*(Announce(1, infohash=number) for number in range(75)), Scrape(range(75), show="number")),
        "74 entries",
    ),
    Case(
        "a download",
        (Announce(1), Announce(1, left=0, event="completed"), Scrape()),
        "1 seed 0 leechers 1 download",
    ),
    Case(
        "a download that is told twice",
        (Announce(1), *[Announce(1, left=0, event="completed")] * 2, Scrape()),
        "1 seed 0 leechers 1 download",
    ),
    Case(
        "a download that is told once more after a stop",
        (
            Announce(2),
            Announce(1),
            Announce(1, left=0, event="completed"),
            Announce(1, left=0, event="stopped"),
            Announce(1, left=0, event="completed"),
            Scrape(),
        ),
        "1 seed 1 leecher 2 downloads",
    ),
    Case(
        "nothing is left, without an event, in a scrape",
        (Announce(1), Announce(1, left=0), Scrape()),
        "1 seed 0 leechers 0 downloads",
    ),
    Case(
        "a seed says completed",
        (Announce(1, left=0), Announce(1, left=0, event="completed"), Scrape()),
        "1 seed 0 leechers 0 downloads",
    ),
    Case(
        "a seed from the beginning in a scrape",
        (Announce(1, left=0, event="started"), Scrape()),
        "1 seed 0 leechers 0 downloads",
    ),
    Case(
        "paused in a scrape",
        (Announce(1, event="paused"), Scrape()),
        "0 seeds 1 leecher 0 downloads",
    ),
    # -- IPv6 --
    Case("IPv6", (Announce(1, host="::1"),), LEECHER),
    Case(
        "IPv6 peers of an IPv6 client",
        (Announce(1, host="::1"), Announce(2, host="::1")),
        "0 seeds, 2 leechers, peers [::1]:1",
    ),
    Case(
        "an IPv6 client, and an IPv4 peer",
        (Announce(1), Announce(2, host="::1")),
        "0 seeds, 2 leechers, peers 1",
        udp="0 seeds, 2 leechers, no peers",
    ),
    Case(
        "an IPv4 client, and an IPv6 peer",
        (Announce(1, host="::1"), Announce(2)),
        "0 seeds, 2 leechers, peers [::1]:1",
        udp="0 seeds, 2 leechers, no peers",
    ),
    Case(
        "scrape over IPv6",
        (Announce(1), Announce(2, host="::1"), Scrape(host="::1")),
        "0 seeds 2 leechers 0 downloads",
    ),
    # -- closed --
    Case(
        "an infohash that isn't listed",
        (Announce(1),),
        "failure, retry",
        udp="failure",
        closed=True,
    ),
    Case("scrape of one that isn't listed", (Scrape(),), ZERO, closed=True),
)

_A = "/announce?info_hash={H}&peer_id={P}&port=1&left=10"
_PLAIN = "-NS0001-000000000001"


def _http(
    name: str, target: str, expected: str, *, show: str = "peers", before: bool = False
) -> Case:
    """A case of one request, `before` which another peer may have come."""
    steps = (Announce(2),) if before else ()
    return Case(name, (*steps, Request(target, show=show)), expected, ("http",))


def _forms(name: str, spelled: str, raw: bytes, expected: str) -> Case:
    """A case of an infohash that is spelled in some way; another peer has announced it."""
    target = _A.replace("{H}", spelled)
    return Case(name, (Announce(2), Request(target)), expected, ("http",), raw=raw)


TWO = "0 seeds, 2 leechers, peers 2"
_MIXED = bytes.fromhex("00ff7eab") + b"0123456789abcdef"
_RESERVED = b"!$'()*,:@/?~-._[];<>"

HTTP = (
    # -- what is missing or wrong --
    _http("no query", "/announce", "failure"),
    _http("an empty query", "/announce?", "failure"),
    _http("no info_hash", "/announce?peer_id={P}&port=1&left=10", "failure"),
    _http("an empty info_hash", _A.replace("{H}", ""), "failure"),
    _http("info_hash of 19 bytes", _A.replace("{H}", "x" * 19), "failure"),
    _http("info_hash of 21 bytes", _A.replace("{H}", "x" * 21), "failure"),
    _http("info_hash of 32 bytes", _A.replace("{H}", "x" * 32), "failure"),
    _http("info_hash in hexadecimal", _A.replace("{H}", "ab" * 20), "failure"),
    _http("two infohashes", _A + "&info_hash=" + "y" * 20, "failure"),
    _http("no peer_id", "/announce?info_hash={H}&port=1&left=10", "failure"),
    _http("an empty peer_id", _A.replace("{P}", ""), "failure"),
    _http("peer_id of 19 bytes", _A.replace("{P}", "x" * 19), "failure"),
    _http("peer_id of 21 bytes", _A.replace("{P}", "x" * 21), "failure"),
    _http("no port", "/announce?info_hash={H}&peer_id={P}&left=10", "failure"),
    _http("an empty port", _A.replace("port=1", "port="), "failure"),
    _http("a port of letters", _A.replace("port=1", "port=x"), "failure"),
    _http("port 65536", _A.replace("port=1", "port=65536"), "failure"),
    _http("port -1", _A.replace("port=1", "port=-1"), "failure"),
    _http("no left", _A.replace("&left=10", ""), LEECHER),
    _http("left of letters", _A.replace("left=10", "left=x"), "failure"),
    _http("left of -1", _A.replace("left=10", "left=-1"), LEECHER),
    _http("numwant of letters", _A + "&numwant=x", "failure"),
    _http("uploaded of letters", _A + "&uploaded=x&downloaded=x", LEECHER),
    _http("an empty event", _A + "&event=", LEECHER),
    _http("event=empty", _A + "&event=empty", LEECHER),
    _http("parameters that nobody knows", _A + "&key=1&supportcrypto=1&x&y=&=z&&", LEECHER),
    _http(
        "parameters in another order", "/announce?left=10&port=1&peer_id={P}&info_hash={H}", LEECHER
    ),
    # -- repeated --
    _http("port twice", _A + "&port=3", LEECHER),
    _http("left twice", _A + "&left=0", LEECHER),
    _http("event twice", _A + "&event=started&event=stopped", LEECHER),
    _http(
        "numwant twice",
        _A + "&numwant=0&numwant=50&compact=1",
        "0 seeds, 2 leechers, no peers",
        before=True,
    ),
    # -- addresses --
    _http("ipv4 and ipv6", _A + "&ipv4=6.6.6.6&ipv6=::6", LEECHER),
    _http("external ip", _A, "127.0.0.1", show="address"),
    Case(
        "X-Forwarded-For from anybody",
        (
            Request(_A.replace("port=1", "port=2"), headers=("X-Forwarded-For: 6.6.6.6",)),
            Request(_A + "&compact=1"),
        ),
        TWO,
        ("http",),
    ),
    # -- forms of the reply --
    _http("compact=1", _A + "&compact=1", "packed", show="form", before=True),
    _http("no compact", _A, "packed", show="form", before=True),
    _http(
        "compact=0", _A + "&compact=0", "dictionaries of ip peer_id port", show="form", before=True
    ),
    _http(
        "compact=0 and no_peer_id",
        _A + "&compact=0&no_peer_id=1",
        "dictionaries of ip port",
        show="form",
        before=True,
    ),
    _http(
        "keys of a reply",
        _A + "&compact=1",
        "complete downloaded external_ip incomplete interval min_interval peers",
        show="keys",
    ),
    _http(
        "keys of a reply to a stop",
        _A + "&compact=1&event=stopped",
        "complete downloaded external_ip incomplete interval min_interval peers",
        show="keys",
    ),
    _http("type of a reply", _A, "status 200, text/plain", show="type"),
    Case(
        "gzip is accepted",
        (Request(_A, headers=("Accept-Encoding: gzip",), show="gzip"),),
        "plain",
        ("http",),
    ),
    # -- how bytes are spelled --
    _forms("escapes in small letters", "%00%ff%7e%ab0123456789abcdef", _MIXED, TWO),
    _forms("escapes in mixed letters", "%00%fF%7E%aB0123456789abcdef", _MIXED, TWO),
    _forms(
        "everything is escaped",
        "".join(f"%{byte:02x}" for byte in b"abcdefghijklmnopqrst"),
        b"abcdefghijklmnopqrst",
        TWO,
    ),
    _forms("nothing is escaped", "abcdefghijklmnopqrsu", b"abcdefghijklmnopqrsu", TWO),
    _forms("reserved characters as they are", _RESERVED.decode(), _RESERVED, TWO),
    _forms(
        "bytes above 127 as they are",
        bytes(range(0xA0, 0xB4)).decode("latin-1"),
        bytes(range(0xA0, 0xB4)),
        "status 400",
    ),
    _forms("plus signs as they are", "+" * 20, b"+" * 20, TWO),
    _forms("plus signs that are escaped", "%2Bx" * 10, b"+x" * 10, TWO),
    _forms("an equals sign as it is", "abcdefghij=abcdefghi", b"abcdefghij=abcdefghi", TWO),
    _forms("an escape of no number", "abcdefghijklmnopq%zz", b"abcdefghijklmnopq%zz", TWO),
    _forms("half an escape at the end", "abcdefghijklmnopqrs%", b"abcdefghijklmnopqrs%", TWO),
    _forms("a zero byte first", "%00abcdefghijklmnopqrs", b"\0abcdefghijklmnopqrs", TWO),
    _http("an escaped name", _A.replace("info_hash=", "info%5Fhash="), LEECHER),
    _http("a name in capitals", _A.replace("port=", "PORT="), "failure"),
    # -- HTTP --
    _http("an unknown path", "/nothing", "status 404"),
    _http("a slash after announce", _A.replace("/announce", "/announce/"), "status 404"),
    _http("announce.php", _A.replace("/announce", "/announce.php"), "status 404"),
    _http("a key in the path", _A.replace("/announce", "/key/announce"), "status 404"),
    _http("two slashes before announce", _A.replace("/announce", "//announce"), "status 404"),
    _http("a whole address as the target", f"http://tracker{_A}", LEECHER),
    Case("HEAD", (Request(_A, method="HEAD", show="length"),), "status 200, 0 bytes", ("http",)),
    Case(
        "HEAD makes a peer",
        (Request(_A.replace("port=1", "port=2"), method="HEAD"), Announce(1)),
        "0 seeds, 2 leechers, peers 2",
        ("http",),
    ),
    Case(
        "POST",
        (Request(_A, method="POST", headers=("Content-Length: 0",)),),
        "status 405",
        ("http",),
    ),
    Case("HTTP/1.0", (Request(_A + "&compact=1", version="1.0"),), LEECHER, ("http",)),
    _http("scrape of none", "/scrape", "failure", show="refusal"),
    _http("scrape of an infohash of 19 bytes", "/scrape?info_hash=" + "x" * 19, "failure"),
    _http(
        "scrape of one that is right and one that is short",
        "/scrape?info_hash={H}&info_hash=x",
        "failure",
        before=True,
    ),
)

_PEER = Announce(1).peer_id
_BODY = H + _PEER + bytes(7) + b"\0" + bytes(7) + b"\x0a" + bytes(8)


def _announce(event: int = 0, numwant: int = -1, port: int = 1, options: bytes = b"") -> bytes:
    """All of an announce after the transaction, with 10 bytes left."""
    rest = event.to_bytes(4) + bytes(8) + numwant.to_bytes(4, signed=True) + port.to_bytes(2)
    return _BODY + rest + options


def _udp(name: str, packet: Packet, expected: str) -> Case:
    """A case of one datagram."""
    return Case(name, (packet,), expected, ("udp",))


_URL = b"\x02\x05/a?b=" + b"\x02\x01c"

UDP = (
    _udp("connect", Packet(0, connection="magic", show="bytes"), "action 0, 16 bytes"),
    _udp(
        "connect with more bytes", Packet(0, b"x" * 50, "magic", show="bytes"), "action 0, 16 bytes"
    ),
    _udp("connect of 15 bytes", Packet(0, connection="magic", cut=15), "silence"),
    _udp("connect without the magic number", Packet(0, connection="zero"), "silence"),
    _udp("connect with a connection id", Packet(0, connection="own"), "silence"),
    _udp("an empty datagram", Packet(1, _announce(), cut=0), "silence"),
    _udp("a datagram of 8 bytes", Packet(1, _announce(), cut=8), "silence"),
    _udp("a datagram of 15 bytes", Packet(1, _announce(), cut=15), "silence"),
    _udp("announce with the magic number", Packet(1, _announce(), "magic"), "silence"),
    _udp("announce with the id 0", Packet(1, _announce(), "zero"), "silence"),
    _udp("announce with an id that is one bit off", Packet(1, _announce(), "altered"), "silence"),
    _udp("announce with another address's id", Packet(1, _announce(), "foreign"), "silence"),
    _udp("announce with the id from another port", Packet(1, _announce(), "moved"), LEECHER),
    _udp("scrape with the id 0", Packet(2, H, "zero"), "silence"),
    _udp("announce of 16 bytes", Packet(1), "silence"),
    _udp("announce of 97 bytes", Packet(1, _announce(), cut=97), "silence"),
    _udp("announce of 98 bytes", Packet(1, _announce(), cut=98), LEECHER),
    _udp("announce with more bytes", Packet(1, _announce(options=bytes(40))), LEECHER),
    _udp("announce with BEP 41's URL", Packet(1, _announce(options=_URL)), LEECHER),
    _udp(
        "announce with BEP 41's NOP and end", Packet(1, _announce(options=b"\1\1\0more")), LEECHER
    ),
    _udp(
        "announce with an unknown option",
        Packet(1, _announce(options=b"\xc8\3abc" + _URL)),
        LEECHER,
    ),
    _udp("announce with an option cut off", Packet(1, _announce(options=b"\2\xffabc")), LEECHER),
    _udp("announce with an option's length cut off", Packet(1, _announce(options=b"\2")), LEECHER),
    _udp("announce of 2048 bytes", Packet(1, _announce(options=bytes(2048 - 98))), LEECHER),
    _udp("event 5", Packet(1, _announce(event=5)), LEECHER),
    _udp("event 2 to the power of 31", Packet(1, _announce(event=2**31)), LEECHER),
    _udp("-2147483648 peers are wanted", Packet(1, _announce(numwant=-(2**31))), LEECHER),
    Case(
        "the form of a failure",
        (Packet(1, _announce(), show="text"),),
        "action 3, text",
        ("udp",),
        closed=True,
    ),
    _udp("action 3", Packet(3, _announce()), "silence"),
    _udp("action 4", Packet(4, _announce()), "silence"),
    _udp("action 2 to the power of 24", Packet(2**24, _announce()), "silence"),
    _udp("scrape of none over UDP", Packet(2, show="bytes"), "action 2, 8 bytes"),
    _udp("scrape of half an infohash", Packet(2, bytes(10), show="bytes"), "action 2, 8 bytes"),
    _udp("scrape of one and a half", Packet(2, H + bytes(10), show="bytes"), "action 2, 20 bytes"),
)

CASES = (*SHARED, *HTTP, *UDP)
