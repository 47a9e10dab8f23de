# SPDX-License-Identifier: GPL-3.0-or-later
"""Announces and scrapes from query string to reply."""

from __future__ import annotations

from random import Random

import pytest

from narswarm import bencoding
from tracker import announcer as announcer_module
from tracker.announcer import Announcer
from tracker.policy import Policy, parse_networks
from tracker.swarms import Limits, Swarms
from tracker.wire_http import Counts, WireError

LISTED = b"l" * 20
OTHER = b"o" * 20
UNLISTED = b"u" * 20
NOW = 1_700_000_000


@pytest.fixture(name="swarms")
def swarms_fixture() -> Swarms:
    """Empty swarms of a closed tracker."""
    return Swarms(Limits(leecher_timeout=100), keep_downloads=True)


@pytest.fixture(name="announcer")
def announcer_fixture(swarms: Swarms) -> Announcer:
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


def test_unlisted_infohashes_cost_nothing(announcer: Announcer, swarms: Swarms) -> None:
    """They are refused for some minutes before anything is allocated."""
    assert _announce(announcer, _query(UNLISTED)) == {
        b"failure reason": b"info_hash: is not in this tracker's index",
        b"interval": 300,
        b"retry in": 5,
    }
    assert len(swarms) == 0


def test_proxies_name_the_client(announcer: Announcer) -> None:
    """Behind a trusted proxy, the client's address is in the header."""
    reply = announcer.announce_http(_query(), "10.0.0.1", "198.51.100.7", NOW)
    assert b"11:external ip4:\xc6\x33\x64\x07" in reply
    with pytest.raises(WireError):
        announcer.announce_http(_query(), "10.0.0.1", None, NOW)


def test_scrape(announcer: Announcer) -> None:
    """Every infohash that is asked for has numbers, and asking changes nothing."""
    _announce(announcer, _query(more=b"left=0"))
    query = b"info_hash=%b&info_hash=%b" % (UNLISTED, LISTED)
    zero = {b"complete": 0, b"downloaded": 0, b"downloaders": 0, b"incomplete": 0}
    for _ in range(2):
        assert bencoding.decode(announcer.scrape_http(query), "reply") == {
            b"files": {LISTED: {**zero, b"complete": 1}, UNLISTED: zero},
            b"flags": {b"min_request_interval": 100},
        }


def test_sample(announcer: Announcer) -> None:
    """The index can ask who is there."""
    _announce(announcer, _query(port=2))
    assert announcer.sample([LISTED, UNLISTED], 5) == (Counts(0, 1, 0, 1), [b"\xc0\0\2\1\0\2"])


def test_silent_peers(
    announcer: Announcer, swarms: Swarms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All swarms are looked at, a few at a time."""
    monkeypatch.setattr(announcer_module, "_SWEEP", 1)
    for now, info_hash in ((NOW, LISTED), (NOW + 50, OTHER)):
        _announce(announcer, _query(info_hash), now=now)
    assert [announcer.expire(NOW + later) for later in (100, 101, 150, 151)] == [0, 1, 0, 1]
    assert swarms.peers == 0
