# SPDX-License-Identifier: GPL-3.0-or-later
"""Announces and scrapes answered, whatever transport asks.

Request handling threads and the clock live outside; this class brings index, policy and the store
of swarms together, so that every transport sees the same swarms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from time import perf_counter
from typing import Self

from tracker.blocks import BlockList
from tracker.metrics import Action, Family, Metrics, Outcome, family_of
from tracker.policy import Policy
from tracker.swarms import Answer, Limits
from tracker.swarmstore import Asked, StoreDownError, SwarmStore, SwarmTotals
from tracker.wire_http import (
    AnnounceReply,
    AnnounceRequest,
    Counts,
    WireError,
    announce_reply,
    failure,
    parse_announce,
    parse_scrape,
    scrape_reply,
)

_NONE = Counts(0, 0, 0, 0)
_RETRY_MINUTES = 1
"""When to ask again while the store of swarms doesn't answer."""

UNLISTED = "info_hash: is not in this tracker's index"
BLOCKED = "info_hash: is blocked by this tracker's operator"
UNAVAILABLE = "tracker: does not reach its swarms now"
REFUSED = "address: is blocked by this tracker's operator"


class BlockedError(WireError):
    """The infohash is blocked."""


class RefusedAddressError(WireError):
    """The address is blocked."""


class UnavailableError(WireError):
    """The store of swarms doesn't answer now."""


class Announcer:
    """Answers announces and scrapes of all transports.

    Args:
        policy: what is granted.
        swarms: who is where.
        is_listed: whether an infohash may be tracked. It is asked before anything is allocated.
        rng: what spreads intervals.
        metrics: where HTTP's requests are counted, and where other transports count theirs.

    Attributes:
        metrics: the same.
    """

    def __init__(
        self,
        policy: Policy,
        swarms: SwarmStore,
        is_listed: Callable[[bytes], bool],
        rng: Random,
        metrics: Metrics | None = None,
    ) -> None:
        self._policy = policy
        self._swarms = swarms
        self._is_listed = is_listed
        self._rng = rng
        self.metrics = metrics or Metrics()
        self.blocks = BlockList()

    @property
    def blocks(self) -> BlockList:
        """What the operator keeps out; another list may take its place at any time."""
        return self._blocks

    @blocks.setter
    def blocks(self, blocks: BlockList) -> None:
        self._blocks = blocks

    def reconfigure(self, policy: Policy, limits: Limits) -> None:
        """Go on with other decisions of the operator."""
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
            UnavailableError: the store of swarms doesn't answer.
        """
        if not self._tracks(request):
            return None
        numwant = self._policy.peers_for(request.numwant)
        try:
            answer = self._swarms.announce(request, address, numwant, now)
        except StoreDownError as error:
            raise UnavailableError(UNAVAILABLE) from error
        return self._reply(request, address, answer)

    def announce_many(
        self, asked: Sequence[tuple[AnnounceRequest, bytes]], now: int
    ) -> list[AnnounceReply | WireError | None]:
        """Take in several announces in one go, which for a store elsewhere is one round trip.

        Args:
            asked: what clients said, and the addresses they said it from.
            now: seconds since the epoch.

        Returns:
            For each what `announce` would return, or the error it would raise.
        """
        replies: list[AnnounceReply | WireError | None] = [None] * len(asked)
        tracked: list[tuple[int, Asked]] = []
        for position, (request, address) in enumerate(asked):
            try:
                if self._tracks(request):
                    numwant = self._policy.peers_for(request.numwant)
                    tracked.append((position, Asked(request, address, numwant, now)))
            except BlockedError as error:
                replies[position] = error
        try:
            answers = self._swarms.announce_many([each for _, each in tracked]) if tracked else []
        except StoreDownError:
            for position, _ in tracked:
                replies[position] = UnavailableError(UNAVAILABLE)
            return replies
        for (position, each), answer in zip(tracked, answers, strict=True):
            replies[position] = self._reply(each.request, each.address, answer)
        return replies

    def _tracks(self, request: AnnounceRequest) -> bool:
        """Whether the infohash of an announce is tracked here."""
        if request.info_hash in self.blocks.info_hashes:
            raise BlockedError(BLOCKED)
        return self._is_listed(request.info_hash)

    def _reply(self, request: AnnounceRequest, address: bytes, answer: Answer) -> AnnounceReply:
        intervals = self._policy.intervals(self._rng, seed=request.is_seed)
        return AnnounceReply(*intervals, answer.counts, *answer.selection, address)

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
            except UnavailableError:
                counted.outcome = "failed"
                return failure(UNAVAILABLE, retry_in=_RETRY_MINUTES)
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
            try:
                files = dict(zip(wanted, self.counts(wanted), strict=True))
            except UnavailableError:
                counted.outcome = "failed"
                raise
            body = scrape_reply(files, min_interval=self._policy.leecher_interval)
            counted.outcome = "ok"
            return body

    def counts(self, info_hashes: Sequence[bytes]) -> list[Counts]:
        """The numbers of several swarms, zeros for those that aren't there or are blocked.

        Raises:
            UnavailableError: the store of swarms doesn't answer.
        """
        blocked = self.blocks.info_hashes
        shown = [info_hash for info_hash in info_hashes if info_hash not in blocked]
        try:
            found = dict(zip(shown, self._swarms.counts(shown), strict=True))
        except StoreDownError as error:
            raise UnavailableError(UNAVAILABLE) from error
        return [found.get(info_hash, _NONE) for info_hash in info_hashes]

    def totals(self) -> SwarmTotals:
        """How many swarms and peers there are."""
        return self._swarms.totals()

    def check(self) -> None:
        """See whether the store of swarms answers.

        Raises:
            StoreDownError: it doesn't.
        """
        self._swarms.check()

    def restore_downloads(self, downloads: Mapping[bytes, int]) -> None:
        """Begin with numbers of downloads that were kept elsewhere."""
        self._swarms.restore(downloads)

    def take_downloads(self) -> dict[bytes, int]:
        """The numbers of downloads that changed since this was asked the last time."""
        return self._swarms.take_downloads()

    def give_back_downloads(self, downloads: Mapping[bytes, int]) -> None:
        """Have numbers that could not be kept be handed out again."""
        self._swarms.give_back_downloads(downloads)

    def sample(self, info_hashes: Sequence[bytes], limit: int) -> tuple[Counts, list[bytes]]:
        """Look at the swarms of one torrent; see `Swarms.sample`.

        The index has answers without swarms, too: nobody is there while the store doesn't answer.
        """
        try:
            return self._swarms.sample(info_hashes, limit)
        except StoreDownError:
            return _NONE, []

    def expire(self, now: int) -> int:
        """Forget the peers of all swarms that fell silent or are blocked; return how many.

        None while the store of swarms doesn't answer; they are forgotten the next time.
        """
        unwanted = self.blocks.has_address if self.blocks.has_networks else None
        try:
            return self._swarms.expire(now, unwanted)
        except StoreDownError:
            return 0


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
