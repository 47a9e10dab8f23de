# SPDX-License-Identifier: GPL-3.0-or-later
"""Announces and scrapes answered: the one owner of the swarms, whatever transport asks.

Request handling threads and the clock live outside; this class brings index, policy and swarms
together under one lock, so that every transport sees the same swarms.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random

from tracker.policy import Policy
from tracker.swarms import Swarms
from tracker.wire_http import (
    AnnounceReply,
    AnnounceRequest,
    Counts,
    announce_reply,
    failure,
    parse_announce,
    parse_scrape,
    scrape_reply,
)

_SWEEP = 100
"""How many swarms are looked at for silent peers before somebody else has a turn."""

UNLISTED = "info_hash: is not in this tracker's index"


class Announcer:
    """Answers announces and scrapes of all transports.

    Args:
        policy: what is granted.
        swarms: who is where; nobody else may touch it.
        is_listed: whether an infohash may be tracked. It is asked before anything is allocated.
        rng: what chooses peers and spreads intervals.
    """

    def __init__(
        self, policy: Policy, swarms: Swarms, is_listed: Callable[[bytes], bool], rng: Random
    ) -> None:
        self._policy = policy
        self._swarms = swarms
        self._is_listed = is_listed
        self._rng = rng
        self._lock = threading.Lock()

    def announce(self, request: AnnounceRequest, address: bytes, now: int) -> AnnounceReply | None:
        """Take in one announce.

        Args:
            request: what the client said.
            address: where it said it from, 4 or 16 bytes.
            now: seconds since the epoch.

        Returns:
            The answer, or nothing when the infohash isn't listed.
        """
        if not self._is_listed(request.info_hash):
            return None
        numwant = self._policy.peers_for(request.numwant)
        with self._lock:
            counts, selection = self._swarms.announce(request, address, numwant, now, self._rng)
            intervals = self._policy.intervals(self._rng, seed=request.is_seed)
        return AnnounceReply(*intervals, counts, *selection, address)

    def announce_http(self, query: bytes, remote: str, forwarded: str | None, now: int) -> bytes:
        """Answer the query string of an HTTP announce.

        Args:
            query: the raw query string.
            remote: the address of the TCP connection.
            forwarded: X-Forwarded-For as it was received.
            now: seconds since the epoch.

        Raises:
            WireError: the request can't be served.
        """
        request = parse_announce(query)
        reply = self.announce(request, self._policy.client_address(remote, forwarded), now)
        if reply is None:
            return failure(UNLISTED, retry_in=self._policy.retry_minutes)
        return announce_reply(reply, compact=request.compact)

    def scrape_http(self, query: bytes) -> bytes:
        """Answer the query string of an HTTP scrape: numbers for every infohash that was asked.

        One that isn't listed has zeros, like one that is listed and empty: clients take an answer
        without the infohash that they asked for as broken.

        Raises:
            WireError: the request can't be served.
        """
        wanted = parse_scrape(query)
        files = dict(zip(wanted, self.counts(wanted), strict=True))
        return scrape_reply(files, min_interval=self._policy.leecher_interval)

    def counts(self, info_hashes: list[bytes]) -> list[Counts]:
        """The numbers of several swarms, zeros for those that aren't there."""
        with self._lock:
            return [self._swarms.counts(info_hash) for info_hash in info_hashes]

    def sample(self, info_hashes: list[bytes], limit: int) -> tuple[Counts, list[bytes]]:
        """Look at the swarms of one torrent; see `Swarms.sample`."""
        with self._lock:
            return self._swarms.sample(info_hashes, limit, self._rng)

    def expire(self, now: int) -> int:
        """Forget the peers of all swarms that fell silent; return how many."""
        expired, finished = 0, False
        while not finished:
            with self._lock:
                swept = self._swarms.expire(now, _SWEEP)
            expired += swept.expired
            finished = swept.finished
        return expired
