# SPDX-License-Identifier: GPL-3.0-or-later
"""What swarms in memory have beyond the rules of every store: sweeps in parts."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random

from tracker.swarms import Answer, Limits, Swarms, Swept
from tracker.wire_http import AnnounceRequest, Counts, Event

HASH = b"h" * 20
OTHER = b"o" * 20
PEER = b"p" * 20
NOW = 1_700_000_000


class Swarm:
    """One swarm as a test speaks about it: peers by text, replies as sets."""

    def __init__(self, limits: Limits | None = None, *, keep_downloads: bool = False) -> None:
        self.swarms = Swarms(limits or Limits(), keep_downloads=keep_downloads)
        self.rng = Random(1)  # noqa: S311 - the same at each run

    def announce(
        self,
        address: str = "10.0.0.1",
        port: int = 1,
        *,
        left: int = 1,
        event: Event = Event.NONE,
        numwant: int = 50,
        now: int = NOW,
        info_hash: bytes = HASH,
        peer_id: bytes = PEER,
        compact: bool = True,
    ) -> Answer:
        """One announce, of a leecher unless said otherwise."""
        request = AnnounceRequest(info_hash, peer_id, port, left, event, compact=compact)
        packed = ip_address(address).packed
        return self.swarms.announce(request, packed, numwant, now, self.rng)


def test_expiry_goes_on_where_it_stopped() -> None:
    """With a small budget, all swarms have their turn, and new ones in the next round."""
    swarm = Swarm()
    for number in range(10):
        swarm.announce(info_hash=b"%020d" % number)
    later = NOW + 10_000
    swept = [swarm.swarms.expire(later, 3) for _ in range(4)]
    assert swept == [(3, False), (3, False), (3, False), (1, True)]
    assert len(swarm.swarms) == 0
    swarm.announce()
    assert swarm.swarms.expire(later, 3) == Swept(1, finished=True)


def test_expiry_survives_changes_between_calls() -> None:
    """A swarm may vanish while a sweep is under way."""
    swarm = Swarm()
    for number in range(4):
        swarm.announce(info_hash=b"%020d" % number)
    assert swarm.swarms.expire(NOW, 1) == Swept(0, finished=False)
    for number in range(4):
        swarm.announce(info_hash=b"%020d" % number, event=Event.STOPPED)
    assert swarm.swarms.expire(NOW + 10_000, 10) == Swept(0, finished=True)


def test_restored_downloads() -> None:
    """Numbers that were kept go on, where swarms without peers are remembered."""
    swarm = Swarm(Limits(swarms=2), keep_downloads=True)
    swarm.swarms.restore({HASH: 7, OTHER: 0, PEER: 1, b"x" * 20: 2})
    assert len(swarm.swarms) == 2
    assert swarm.announce(event=Event.COMPLETED).counts == Counts(1, 0, 8, 0)
    assert swarm.swarms.counts(PEER) == Counts(0, 0, 1, 0)
    forgetful = Swarm()
    forgetful.swarms.restore({HASH: 7})
    assert len(forgetful.swarms) == 0
