# SPDX-License-Identifier: GPL-3.0-or-later
"""Announces and scrapes from query string to reply."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_network
from random import Random
from typing import NoReturn

import pytest

from narswarm import bencoding
from tracker import swarmstore
from tracker.announcer import Announcer, BlockedError, RefusedAddressError, UnavailableError
from tracker.blocks import BlockList
from tracker.policy import Policy, parse_networks
from tracker.swarms import Limits
from tracker.swarmstore import MemorySwarms, StoreDownError, SwarmTotals
from tracker.wire_http import AnnounceReply, AnnounceRequest, Counts, WireError

LISTED = b"l" * 20
OTHER = b"o" * 20
UNLISTED = b"u" * 20
NOW = 1_700_000_000


@pytest.fixture(name="swarms")
def swarms_fixture() -> MemorySwarms:
    """Empty swarms of a closed tracker."""
    return MemorySwarms(Limits(leecher_timeout=100), keep_downloads=True)


@pytest.fixture(name="announcer")
def announcer_fixture(swarms: MemorySwarms) -> Announcer:
    """A closed tracker with one infohash behind a proxy at 10.0.0.1."""
    policy = Policy(
        interval=1000, leecher_interval=100, trusted_proxies=parse_networks(["10.0.0.1"])
    )
    rng = Random(1)  # noqa: S311 - the same at each run
    return Announcer(policy, swarms, {LISTED, OTHER}.__contains__, rng)


def _query(info_hash: bytes = LISTED, port: int = 1, more: bytes = b"") -> bytes:
    return b"info_hash=%b&peer_id=%b&port=%d&%b" % (info_hash, b"p" * 20, port, more)


def _announce(
    announcer: Announcer, query: bytes, remote: str = "192.0.2.1", now: int = NOW
) -> bencoding.Value:
    return bencoding.decode(announcer.announce_http(query, remote, None, now), "reply")


def test_announce(announcer: Announcer) -> None:
    """A reply tells where the asker was seen, and others."""
    _announce(announcer, _query(port=258, more=b"left=0"))
    reply = _announce(announcer, _query(port=2, more=b"left=9"))
    assert isinstance(reply, dict)
    assert reply.pop(b"interval") in range(90, 111)
    assert reply == {
        b"complete": 1,
        b"downloaded": 0,
        b"external ip": b"\xc0\0\2\1",
        b"incomplete": 1,
        b"min interval": 50,
        b"peers": b"\xc0\0\2\1\1\2",
    }


def test_seeds_come_back_later(announcer: Announcer) -> None:
    """Each role has its own interval."""
    reply = _announce(announcer, _query(more=b"left=0"))
    assert isinstance(reply, dict)
    assert reply[b"interval"] in range(900, 1101)
    assert reply[b"min interval"] == 500


def test_addresses_in_parameters_are_ignored(announcer: Announcer) -> None:
    """Who says to be elsewhere is known by where it is."""
    _announce(announcer, _query(port=2, more=b"ip=6.6.6.6&ipv4=6.6.6.6:7&ipv6=::6"))
    reply = _announce(announcer, _query(port=3))
    assert isinstance(reply, dict)
    assert reply[b"peers"] == b"\xc0\0\2\1\0\2"
    assert b"peers6" not in reply


@pytest.mark.parametrize(
    ("more", "peer"),
    [
        (b"compact=0", {b"ip": b"192.0.2.1", b"peer id": b"p" * 20, b"port": 2}),
        (b"compact=0&no_peer_id=1", {b"ip": b"192.0.2.1", b"port": 2}),
    ],
)
def test_lists_that_are_not_packed(
    announcer: Announcer, more: bytes, peer: dict[bytes, bencoding.Value]
) -> None:
    """Peers are dictionaries for who asks, with their ids unless these are unwanted."""
    _announce(announcer, _query(port=2))
    reply = _announce(announcer, _query(port=3, more=more))
    assert isinstance(reply, dict)
    assert reply[b"peers"] == [peer]


def test_unlisted_infohashes_cost_nothing(announcer: Announcer, swarms: MemorySwarms) -> None:
    """They are refused for some minutes before anything is allocated."""
    assert _announce(announcer, _query(UNLISTED)) == {
        b"failure reason": b"info_hash: is not in this tracker's index",
        b"interval": 300,
        b"retry in": 5,
    }
    assert swarms.totals().swarms == 0


def test_proxies_name_the_client(announcer: Announcer) -> None:
    """Behind a trusted proxy, the client's address is in the header."""
    reply = announcer.announce_http(_query(), "10.0.0.1", "198.51.100.7", NOW)
    assert b"11:external ip4:\xc6\x33\x64\x07" in reply
    with pytest.raises(WireError):
        announcer.announce_http(_query(), "10.0.0.1", None, NOW)


def test_blocked_infohashes(announcer: Announcer, swarms: MemorySwarms) -> None:
    """They are refused for ever, listed or not, and what is there isn't told any more."""
    _announce(announcer, _query(more=b"left=0"))
    announcer.blocks = BlockList({LISTED, UNLISTED})
    for info_hash in (LISTED, UNLISTED):
        assert _announce(announcer, _query(info_hash)) == {
            b"failure reason": b"info_hash: is blocked by this tracker's operator",
            b"interval": 86400,
            b"retry in": b"never",
        }
    assert announcer.counts([LISTED]) == [Counts(0, 0, 0, 0)]
    assert sum(swarms.totals()[1:]) == 1
    with pytest.raises(BlockedError):
        announcer.announce(AnnounceRequest(LISTED, b"p" * 20, 1), bytes(4), NOW)
    announcer.blocks = BlockList()
    assert announcer.counts([LISTED]) == [Counts(1, 0, 0, 0)]


def test_blocked_addresses(announcer: Announcer) -> None:
    """They are refused before anything is read, behind a proxy too, and their peers forgotten."""
    _announce(announcer, _query(), "192.0.2.1")
    _announce(announcer, _query(), "198.51.100.1")
    announcer.blocks = BlockList(networks=[ip_network("192.0.2.0/24")])
    assert announcer.refuses(b"\xc0\0\2\1")
    assert not announcer.refuses(b"\xc0\0\3\1")
    for ask in (announcer.announce_http, lambda *some: announcer.scrape_http(*some[:3])):
        for remote, forwarded in (("192.0.2.9", None), ("10.0.0.1", "192.0.2.9")):
            with pytest.raises(RefusedAddressError) as caught:
                ask(b"nonsense", remote, forwarded, NOW)
            assert str(caught.value) == "address: is blocked by this tracker's operator"
    assert announcer.expire(NOW) == 1
    assert announcer.totals() == SwarmTotals(1, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("remote", "info_hash", "key"),
    [
        ("192.0.2.1", LISTED, ("ipv4", "ok")),
        ("::1", LISTED, ("ipv6", "ok")),
        ("::ffff:192.0.2.1", UNLISTED, ("ipv4", "unlisted")),
        ("192.0.2.1", b"short", ("ipv4", "malformed")),
        ("10.0.0.1", LISTED, ("unknown", "malformed")),
        ("192.0.2.1", OTHER, ("ipv4", "blocked")),
        ("198.51.100.1", LISTED, ("ipv4", "refused")),
    ],
)
def test_requests_are_counted(
    announcer: Announcer, remote: str, info_hash: bytes, key: tuple[str, str]
) -> None:
    """Whatever becomes of a request, it is counted once, with how long it took."""
    announcer.blocks = BlockList({OTHER}, [ip_network("198.51.100.0/24")])
    with suppress(WireError):
        announcer.announce_http(_query(info_hash), remote, None, NOW)
    family, outcome = key
    assert announcer.metrics.requests.values() == {("http", family, "announce", outcome): 1}
    assert announcer.metrics.latency.values()["http", "announce"].cumulative[-1] == 1


def test_scrapes_are_counted(announcer: Announcer) -> None:
    """A scrape is another action."""
    announcer.scrape_http(b"info_hash=%b" % LISTED, "::1", None)
    with pytest.raises(WireError):
        announcer.scrape_http(b"", "192.0.2.1", None)
    assert announcer.metrics.requests.values() == {
        ("http", "ipv6", "scrape", "ok"): 1,
        ("http", "ipv4", "scrape", "malformed"): 1,
    }
    assert announcer.metrics.latency.values()["http", "scrape"].cumulative[-1] == 2


def test_downloads_to_keep(announcer: Announcer) -> None:
    """Numbers are handed out after they changed, once, and go on from where they were."""
    announcer.restore_downloads({LISTED: 5})
    assert announcer.take_downloads() == {}
    _announce(announcer, _query(more=b"event=completed"))
    _announce(announcer, _query(OTHER, more=b"left=0"))
    assert announcer.take_downloads() == {LISTED: 6}
    assert announcer.take_downloads() == {}


def test_other_decisions(announcer: Announcer) -> None:
    """Policy and limits can change while it runs."""
    _announce(announcer, _query(port=1))
    announcer.reconfigure(Policy(leecher_interval=10), Limits(swarm_peers=1))
    reply = _announce(announcer, _query(port=2))
    assert isinstance(reply, dict)
    assert reply[b"min interval"] == 5
    assert announcer.totals() == SwarmTotals(1, 0, 0, 1, 0)


def test_scrape(announcer: Announcer) -> None:
    """Every infohash that is asked for has numbers, and asking changes nothing."""
    _announce(announcer, _query(more=b"left=0"))
    query = b"info_hash=%b&info_hash=%b" % (UNLISTED, LISTED)
    zero = {b"complete": 0, b"downloaded": 0, b"downloaders": 0, b"incomplete": 0}
    for _ in range(2):
        assert bencoding.decode(announcer.scrape_http(query, "::1", None), "reply") == {
            b"files": {LISTED: {**zero, b"complete": 1}, UNLISTED: zero},
            b"flags": {b"min_request_interval": 100},
        }


def test_sample(announcer: Announcer) -> None:
    """The index can ask who is there."""
    _announce(announcer, _query(port=2))
    assert announcer.sample([LISTED, UNLISTED], 5) == (Counts(0, 1, 0, 1), [b"\xc0\0\2\1\0\2"])


def test_silent_peers(
    announcer: Announcer, swarms: MemorySwarms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All swarms are looked at, a few at a time."""
    monkeypatch.setattr(swarmstore, "SWEEP", 1)
    for now, info_hash in ((NOW, LISTED), (NOW + 50, OTHER)):
        _announce(announcer, _query(info_hash), now=now)
    assert [announcer.expire(NOW + later) for later in (100, 101, 150, 151)] == [0, 1, 0, 1]
    assert sum(swarms.totals()[1:]) == 0


class Down(MemorySwarms):
    """A store that doesn't answer."""

    def __init__(self) -> None:
        super().__init__(Limits(), keep_downloads=True)
        self.announce_many = self.counts = self.sample = self.announce = self._fail  # type: ignore[method-assign,assignment]
        self.expire = self.check = self._fail  # type: ignore[method-assign,assignment]

    def _fail(self, *_: object) -> NoReturn:
        raise StoreDownError("store", "is down")


def test_store_that_does_not_answer() -> None:
    """Clients are told to come back soon; the index has its answers; nothing else breaks."""
    announcer = Announcer(Policy(), Down(), {LISTED}.__contains__, Random(1))  # noqa: S311
    assert _announce(announcer, _query()) == {
        b"failure reason": b"tracker: does not reach its swarms now",
        b"interval": 60,
        b"retry in": 1,
    }
    with pytest.raises(WireError) as caught:
        announcer.scrape_http(b"info_hash=%b" % LISTED, "::1", None)
    assert str(caught.value) == "tracker: does not reach its swarms now"
    request = AnnounceRequest(LISTED, b"p" * 20, 1)
    unlisted, failed = announcer.announce_many(
        [(request._replace(info_hash=UNLISTED), bytes(4)), (request, bytes(4))], NOW
    )
    assert unlisted is None
    assert isinstance(failed, UnavailableError)
    assert announcer.sample([LISTED], 5) == (Counts(0, 0, 0, 0), [])
    assert announcer.expire(NOW) == 0
    with pytest.raises(StoreDownError):
        announcer.check()
    assert announcer.metrics.requests.values() == {
        ("http", "ipv4", "announce", "failed"): 1,
        ("http", "ipv6", "scrape", "failed"): 1,
    }


def test_many_at_once(announcer: Announcer) -> None:
    """Each has the answer that it would have alone."""
    announcer.blocks = BlockList({OTHER})
    requests = [AnnounceRequest(each, b"p" * 20, 1) for each in (LISTED, UNLISTED, OTHER, LISTED)]
    addresses = [bytes([number]) * 4 for number in range(4)]
    first, unlisted, blocked, second = announcer.announce_many(
        list(zip(requests, addresses, strict=True)), NOW
    )
    assert isinstance(first, AnnounceReply)
    assert isinstance(second, AnnounceReply)
    assert (first.peers4, second.peers4) == (b"", bytes(4) + b"\0\1")
    assert second.external_ip == addresses[3]
    assert unlisted is None
    assert isinstance(blocked, BlockedError)
