# SPDX-License-Identifier: GPL-3.0-or-later
"""What swarms in Redis have beyond the rules of every store: others, restarts, and rubbish."""

from __future__ import annotations

import base64
import logging

import pytest

from tests import engines
from tests.tracker.announces import HASH, NOW, OTHER, asked
from tests.tracker.conftest import OpenSwarms
from tracker.redis_link import Link, parse_url
from tracker.redis_script import BATCH
from tracker.redis_swarms import RedisSwarms
from tracker.swarms import Answer, Limits
from tracker.swarmstore import StoreDownError, SwarmTotals
from tracker.wire_http import Counts, Event


def name(url: str, info_hash: bytes = HASH) -> str:
    """What the keys of a swarm begin with."""
    tag = base64.urlsafe_b64encode(info_hash).rstrip(b"=").decode()
    return f"{parse_url(url)[1]}:{{{tag}}}"


def test_trackers_share(open_swarms: OpenSwarms) -> None:
    """What one is told the other tells: peers, counts, downloads and totals."""
    one, other = open_swarms(), open_swarms()
    one.announce(*asked(left=0, event=Event.COMPLETED))
    assert other.announce(*asked(2)) == Answer(
        Counts(1, 1, 1, 1), other.announce(*asked(2)).selection
    )
    assert other.announce(*asked(2)).selection.peers4 == b"\x0a\0\0\1\0\1"
    assert one.counts([HASH, OTHER]) == [Counts(1, 1, 1, 1), Counts(0, 0, 0, 0)]
    other.totals()  # says what changed there
    assert one.totals() == other.totals() == SwarmTotals(1, 1, 0, 1, 0)
    assert one.take_downloads() == {HASH: 1}
    assert other.take_downloads() == {}


def test_many_at_once(open_swarms: OpenSwarms) -> None:
    """They are taken in their order, in one go."""
    swarms = open_swarms()
    answers = swarms.announce_many(
        [asked(port, info_hash=h) for h in (HASH, OTHER) for port in (1, 2)]
    )
    assert [answer.counts.incomplete for answer in answers] == [1, 2, 1, 2]
    assert [len(answer.selection.peers4) for answer in answers] == [0, 6, 0, 6]
    assert swarms.announce_many([]) == []


def test_keys(open_swarms: OpenSwarms, redis_url: str, raw: Link) -> None:
    """All keys of a swarm have its hash tag, and each goes by itself when nobody comes any more."""
    swarms = open_swarms(Limits(address_ports=2, seed_timeout=1000, leecher_timeout=100))
    for port in (1, 2, 3):
        swarms.announce(*asked(port, event=Event.PAUSED))
    swarms.announce(*asked(left=0, event=Event.COMPLETED, host=2))
    found = raw.ask("KEYS", f"{parse_url(redis_url)[1]}:[{{]*")
    assert isinstance(found, list)
    assert sorted(found) == [
        f"{name(redis_url)}:{each}".encode() for each in ("0", "2", "d", "n2", "p")
    ]
    seconds = {each[-2:]: raw.ask("TTL", each) for each in found if not each.endswith(b"d")}
    assert seconds.keys() == {b":0", b":2", b"n2", b":p"}
    for key, left in seconds.items():
        most = 1300 if key == b":0" else 400
        assert isinstance(left, int)
        assert most - 300 < left <= most  # some have gone by
    assert swarms.counts([HASH]) == [Counts(1, 2, 1, 0)]


def test_large_swarms(open_swarms: OpenSwarms) -> None:
    """Beyond the sizes at which Redis packs and networks are counted, the rules are the same."""
    swarms = open_swarms(Limits(address_ports=40))
    swarms.announce_many([asked(port, host=1) for port in range(1, 31)])
    swarms.announce_many([asked(port, host=host) for port in (1, 2) for host in range(2, 200)])
    swarms.announce_many([asked(port, host=1) for port in range(31, 51)])
    assert swarms.counts([HASH]) == [Counts(0, 40 + 2 * 198, 0, 40 + 2 * 198)]
    swarms.announce_many([asked(port, host=1, event=Event.STOPPED) for port in range(1, 51)])
    assert swarms.counts([HASH]) == [Counts(0, 2 * 198, 0, 2 * 198)]
    counts, peers = swarms.sample([HASH], 50)
    assert (counts.incomplete, len(set(peers))) == (2 * 198, 50)
    assert swarms.expire(NOW + 5000) == 2 * 198
    assert swarms.totals() == SwarmTotals(0, 0, 0, 0, 0)


def test_large_samples(open_swarms: OpenSwarms) -> None:
    """Of two swarms with more peers than are compared, the larger one counts."""
    swarms = open_swarms()
    for info_hash in (HASH, OTHER):
        for start in range(0, 1200, 100):
            some = range(start, start + 100 + 10 * (info_hash == HASH))
            swarms.announce_many(
                [asked(1 + n // 200, host=n % 200, info_hash=info_hash) for n in some]
            )
    counts, peers = swarms.sample([OTHER, HASH], 5)
    assert (counts.incomplete, len(peers)) == (1210, 5)


def test_rubbish(open_swarms: OpenSwarms, redis_url: str, raw: Link) -> None:
    """What no tracker wrote is passed over and swept away; other swarms aren't touched by it."""
    swarms = open_swarms()
    swarms.announce_many([asked(), asked(info_hash=OTHER)])
    pool = f"{name(redis_url)}:2"
    raw.ask("HSET", pool, "short", "x", b"\x0a\0\0\7\0\7", "x", b"\x0a\0\0\1\0\2", b"")
    raw.ask("HSET", f"{name(redis_url)}:n2", b"\x0a\0\0\1", "odd")
    raw.ask("SET", f"{name(redis_url)}:d", "many")
    answer = swarms.announce(*asked(9, event=Event.COMPLETED))
    assert answer.counts.downloaded == 1
    assert b"short" not in answer.selection.peers4
    assert swarms.expire(NOW) == 3
    assert swarms.counts([HASH]) == [Counts(1, 1, 1, 1)]
    raw.ask("SET", pool, "no hash at all")
    one, other = swarms.announce_many([asked(2), asked(2, info_hash=OTHER)])
    assert one.counts == Counts(0, 0, 0, 0)
    assert other.counts == Counts(0, 2, 0, 2)
    assert swarms.counts([HASH, OTHER]) == [Counts(0, 0, 0, 0), Counts(0, 2, 0, 2)]
    assert swarms.sample([HASH, OTHER], 9)[0] == Counts(0, 2, 0, 2)
    with pytest.raises(StoreDownError) as caught:
        swarms.announce(*asked(2))
    assert str(caught.value).startswith("Redis: ")
    assert "WRONGTYPE" in str(caught.value)
    raw.ask("SET", f"{parse_url(redis_url)[1]}:{{nonsense}}:0", "x")
    assert swarms.expire(NOW) == 0


def test_restored_downloads(open_swarms: OpenSwarms) -> None:
    """The higher number counts, and many are taken at once."""
    swarms = open_swarms()
    swarms.announce(*asked(event=Event.COMPLETED))
    others = {b"%020d" % number: number for number in range(BATCH + 5)}
    swarms.restore({HASH: 7, OTHER: 1, **others})
    open_swarms().restore({HASH: 3, OTHER: 9})
    assert [each.downloaded for each in swarms.counts([HASH, OTHER, b"%020d" % 203])] == [7, 9, 203]


def test_gone_and_back(caplog: pytest.LogCaptureFixture) -> None:
    """Without Redis all that must answer says so at once; with it, everything goes on."""
    with engines.redis_server() as engine:
        swarms = RedisSwarms(engine.url, Limits(), keep_downloads=True)
        swarms.announce(*asked(event=Event.COMPLETED))
        before = swarms.totals()
        engine.stop()
        for ask in (
            lambda: swarms.announce(*asked()),
            lambda: swarms.counts([HASH]),
            lambda: swarms.sample([HASH], 1),
            lambda: swarms.expire(NOW),
            swarms.check,
        ):
            with pytest.raises(StoreDownError):
                ask()
        assert swarms.totals() == before
        assert swarms.take_downloads() == {}
        caplog.set_level(logging.WARNING)
        swarms.restore({OTHER: 5})
        assert caplog.messages == [
            "numbers of downloads are taken up later: Redis: does not answer"
        ]
        engine.start()
        swarms._script.link._failures = 0  # as after the pause
        swarms.check()
        swarms.expire(NOW)
        assert swarms.counts([OTHER])[0].downloaded == 5
        assert swarms.take_downloads() == {HASH: 0}
        swarms.close()
