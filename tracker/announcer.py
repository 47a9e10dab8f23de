# SPDX-License-Identifier: GPL-3.0-or-later
"""Announces and scrapes answered: the one owner of the swarms, whatever transport asks.

Request handling threads and the clock live outside; this class brings index, policy and swarms
together under one lock, so that every transport sees the same swarms.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from random import Random
from time import perf_counter
from typing import NamedTuple, Self

from tracker.blocks import BlockList
from tracker.metrics import Action, Family, Metrics, Outcome, family_of
from tracker.policy import Policy
from tracker.swarms import Limits, Swarms
from tracker.wire_http import (
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

_NONE = Counts(0, 0, 0, 0)
_SWEEP = 100
"""How many swarms are looked at for silent peers before somebody else has a turn."""

UNLISTED = "info_hash: is not in this tracker's index"
BLOCKED = "info_hash: is blocked by this tracker's operator"
REFUSED = "address: is blocked by this tracker's operator"


class BlockedError(WireError):
    """The infohash is blocked."""


class RefusedAddressError(WireError):
    """The address is blocked."""


class SwarmTotals(NamedTuple):
    """All swarms in numbers: how many there are, and how many peers by role and family."""

    swarms: int
    seeders_ipv4: int
    seeders_ipv6: int
    leechers_ipv4: int
    leechers_ipv6: int


class Announcer:
    """Answers announces and scrapes of all transports.

    Args:
        policy: what is granted.
        swarms: who is where; nobody else may touch it.
        is_listed: whether an infohash may be tracked. It is asked before anything is allocated.
        rng: what chooses peers and spreads intervals.
        metrics: where HTTP's requests are counted, and where other transports count theirs.

    Attributes:
        metrics: the same.
        blocks: what the operator keeps out; another list may take its place at any time.
    """

    def __init__(
        self,
        policy: Policy,
        swarms: Swarms,
        is_listed: Callable[[bytes], bool],
        rng: Random,
        metrics: Metrics | None = None,
    ) -> None:
        self._policy = policy
        self._swarms = swarms
        self._is_listed = is_listed
        self._rng = rng
        self._lock = threading.Lock()
        self._sweeping = threading.Lock()
        self._completed: set[bytes] = set()
        self.metrics = metrics or Metrics()
        self.blocks = BlockList()

    def reconfigure(self, policy: Policy, limits: Limits) -> None:
        """Go on with other decisions of the operator."""
        with self._lock:
            self._policy = policy
            self._swarms.limit(limits)

    def client_address(self, remote: str, forwarded: str | None) -> bytes:
        """Which address a request of HTTP comes from; see `Policy.client_address`."""
        return self._policy.client_address(remote, forwarded)

    def refuses(self, address: bytes) -> bool:
        """Whether nothing is answered to an address of 4 or 16 bytes; ask before anything else."""
        return self.blocks.has_networks and self.blocks.has_address(address)

    def announce(self, request: AnnounceRequest, address: bytes, now: int) -> AnnounceReply | None:
        """Take in one announce.

        Args:
            request: what the client said.
            address: where it said it from, 4 or 16 bytes.
            now: seconds since the epoch.

        Returns:
            The answer, or nothing when the infohash isn't listed.

        Raises:
            BlockedError: the operator blocked the infohash.
        """
        if request.info_hash in self.blocks.info_hashes:
            raise BlockedError(BLOCKED)
        if not self._is_listed(request.info_hash):
            return None
        numwant = self._policy.peers_for(request.numwant)
        with self._lock:
            counts, selection = self._swarms.announce(request, address, numwant, now, self._rng)
            intervals = self._policy.intervals(self._rng, seed=request.is_seed)
            if request.event is Event.COMPLETED:
                self._completed.add(request.info_hash)
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
        with _Counted(self.metrics, "announce") as counted:
            address = self._admit(remote, forwarded, counted)
            request = parse_announce(query)
            try:
                reply = self.announce(request, address, now)
            except BlockedError:
                counted.outcome = "blocked"
                return failure(BLOCKED, retry_in="never")
            if reply is None:
                counted.outcome = "unlisted"
                return failure(UNLISTED, retry_in=self._policy.retry_minutes)
            body = announce_reply(reply, compact=request.compact)
            counted.outcome = "ok"
            return body

    def _admit(self, remote: str, forwarded: str | None, counted: _Counted) -> bytes:
        """The address that a request of HTTP comes from, unless it is blocked."""
        address = self.client_address(remote, forwarded)
        counted.family = family_of(address)
        if self.refuses(address):
            counted.outcome = "refused"
            raise RefusedAddressError(REFUSED)
        return address

    def scrape_http(self, query: bytes, remote: str, forwarded: str | None) -> bytes:
        """Answer the query string of an HTTP scrape: numbers for every infohash that was asked.

        One that isn't listed has zeros, like one that is listed and empty: clients take an answer
        without the infohash that they asked for as broken.

        Args:
            query: the raw query string.
            remote: the address of the TCP connection.
            forwarded: X-Forwarded-For as it was received.

        Raises:
            WireError: the request can't be served.
        """
        with _Counted(self.metrics, "scrape") as counted:
            self._admit(remote, forwarded, counted)
            wanted = parse_scrape(query)
            files = dict(zip(wanted, self.counts(wanted), strict=True))
            body = scrape_reply(files, min_interval=self._policy.leecher_interval)
            counted.outcome = "ok"
            return body

    def counts(self, info_hashes: list[bytes]) -> list[Counts]:
        """The numbers of several swarms, zeros for those that aren't there or are blocked."""
        blocked = self.blocks.info_hashes
        with self._lock:
            return [
                _NONE if info_hash in blocked else self._swarms.counts(info_hash)
                for info_hash in info_hashes
            ]

    def totals(self) -> SwarmTotals:
        """How many swarms and peers there are."""
        with self._lock:
            return SwarmTotals(len(self._swarms), *self._swarms.totals)

    def restore_downloads(self, downloads: Mapping[bytes, int]) -> None:
        """Begin with numbers of downloads that were kept elsewhere."""
        with self._lock:
            self._swarms.restore(downloads)

    def take_downloads(self) -> dict[bytes, int]:
        """The numbers of downloads that changed since this was asked the last time."""
        with self._lock:
            completed, self._completed = self._completed, set()
            return {info_hash: self._swarms.counts(info_hash).downloaded for info_hash in completed}

    def give_back_downloads(self, downloads: Mapping[bytes, int]) -> None:
        """Have numbers that could not be kept be handed out again."""
        with self._lock:
            self._completed.update(downloads)

    def sample(self, info_hashes: list[bytes], limit: int) -> tuple[Counts, list[bytes]]:
        """Look at the swarms of one torrent; see `Swarms.sample`."""
        with self._lock:
            return self._swarms.sample(info_hashes, limit, self._rng)

    def expire(self, now: int) -> int:
        """Forget the peers of all swarms that fell silent or are blocked; return how many."""
        expired, finished = 0, False
        with self._sweeping:
            unwanted = self.blocks.has_address if self.blocks.has_networks else None
            while not finished:
                with self._lock:
                    swept = self._swarms.expire(now, _SWEEP, unwanted)
                expired += swept.expired
                finished = swept.finished
        return expired


class _Counted:
    """Counts one request of HTTP, whatever becomes of it."""

    __slots__ = ("_action", "_began", "_metrics", "family", "outcome")

    def __init__(self, metrics: Metrics, action: Action) -> None:
        self._metrics = metrics
        self._action = action
        self.family: Family = "unknown"
        self.outcome: Outcome = "malformed"

    def __enter__(self) -> Self:
        self._began = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.requests.inc("http", self.family, self._action, self.outcome)
        self._metrics.latency.observe("http", self._action, perf_counter() - self._began)
