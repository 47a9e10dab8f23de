# SPDX-License-Identifier: GPL-3.0-or-later
"""The native engine: swarms and UDP in C, where the extension could be built.

It has the rules of `tracker.swarms`, `tracker.announcer` and `tracker.udp`, which serve where it is
missing. What the index and the operator decide has to be known on its side as well, since it
answers datagrams without the interpreter: here is what tells it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Final, get_args

from tracker.announcer import Announcer
from tracker.blocks import BlockList
from tracker.front import Front
from tracker.metrics import Action, Family, Metrics, Outcome, Protocol, RequestKey
from tracker.policy import Policy
from tracker.swarms import Answer, Limits, Selection
from tracker.swarmstore import Asked, SwarmTotals, give_way
from tracker.wire_http import AnnounceRequest, Counts, Event

if TYPE_CHECKING:
    from tracker import _native
else:
    _native = None
    # Without a C compiler the package is installed without it.
    with contextlib.suppress(ImportError):
        from tracker import _native

AVAILABLE: Final = _native is not None
"""Whether the extension was built."""

SWEEP = 500
"""How many swarms, or sixteen peers each, are looked at before announces have their turn: 0.1 ms,
and no more than 0.2 ms where all of them are forgotten."""
_SEED_BYTES = 48
_MAX_INT64 = (1 << 63) - 1
_PAUSE_SECONDS = 1
_PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)
_FAMILIES: Final[tuple[Family, ...]] = get_args(Family)
_ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
_OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
_EVENTS: Final = {
    Event.NONE: 0,
    Event.COMPLETED: 1,
    Event.STARTED: 2,
    Event.STOPPED: 3,
    Event.PAUSED: 4,
}

_log = logging.getLogger(__name__)


class NativeSwarms:
    """Swarms in memory that C manages; see `SwarmStore`.

    Args:
        limits: what bounds them.
        is_open: whether every infohash counts as listed.
        keep_downloads: remember how often a swarm was downloaded after its last peer left.

    Attributes:
        core: the extension's object, for front ends in C.
        limits: what bounds them now.
    """

    def __init__(self, limits: Limits, *, is_open: bool, keep_downloads: bool) -> None:
        self.core = _native.Swarms(os.urandom(_SEED_BYTES), is_open, keep_downloads)
        self._sweeping = threading.Lock()
        self.limit(limits)

    def announce(self, request: AnnounceRequest, address: bytes, numwant: int, now: int) -> Answer:
        """Take in one announce."""
        counts, selection = self.core.enter(
            request.info_hash,
            request.peer_id,
            address,
            request.port,
            min(request.left, _MAX_INT64),
            _EVENTS[request.event],
            numwant,
            request.one_family,
            not (request.compact or request.no_peer_id),
            now,
        )
        return Answer(Counts(*counts), Selection(*selection))

    def announce_many(self, asked: Sequence[Asked]) -> list[Answer]:
        """Take in several announces."""
        return [self.announce(*each) for each in asked]

    def counts(self, info_hashes: Sequence[bytes]) -> list[Counts]:
        """The numbers of swarms; of blocked ones they are zero."""
        return [Counts(*counts) for counts in self.core.scrape(b"".join(info_hashes))]

    def sample(self, info_hashes: Sequence[bytes], limit: int) -> tuple[Counts, list[bytes]]:
        """Look at several swarms as if they were one."""
        counts, peers = self.core.sample(b"".join(info_hashes), limit)
        return Counts(*counts), peers

    def expire(self, now: int, unwanted: Callable[[bytes], bool] | None = None) -> int:
        """Forget peers that fell silent or were blocked; announces have their turns in between.

        Args:
            now: seconds since the epoch.
            unwanted: not asked, as the networks of `block` are known in C.
        """
        del unwanted
        expired, finished = 0, False
        with self._sweeping:
            while not finished:
                began = time.perf_counter()
                gone, finished = self.core.expire(now, SWEEP)
                expired += gone
                if not finished:
                    give_way(time.perf_counter() - began)
        return expired

    def restore(self, downloads: Mapping[bytes, int]) -> None:
        """Begin with numbers of downloads."""
        for info_hash, count in downloads.items():
            self.core.restore(info_hash, count)

    def take_downloads(self) -> dict[bytes, int]:
        """The numbers of downloads that changed, where they are kept."""
        return self.core.take_downloads()

    def give_back_downloads(self, downloads: Mapping[bytes, int]) -> None:
        """Have numbers be handed out again."""
        self.core.give_back_downloads(b"".join(downloads))

    def limit(self, limits: Limits) -> None:
        """Set other limits."""
        self.limits = limits
        self.core.set_limits(*limits)

    def decide(self, policy: Policy) -> None:
        """Set what announces are granted that C answers by itself."""
        self.core.set_policy(
            policy.interval,
            policy.leecher_interval,
            policy.numwant,
            policy.max_numwant,
            policy.retry_minutes,
        )

    def block(self, blocks: BlockList) -> None:
        """Set what the operator keeps out."""
        self.core.set_blocked(b"".join(blocks.info_hashes))
        self.core.set_networks(blocks.packed_networks())

    def replace_listed(self, info_hashes: Collection[bytes]) -> None:
        """Set which infohashes may be tracked."""
        self.core.set_listed(b"".join(info_hashes))

    def change_listed(self, added: Collection[bytes], removed: Collection[bytes]) -> None:
        """Change which infohashes may be tracked."""
        self.core.add_listed(b"".join(added))
        self.core.remove_listed(b"".join(removed))

    def totals(self) -> SwarmTotals:
        """How many swarms and peers there are."""
        return SwarmTotals(*self.core.totals())

    def requests(self) -> dict[RequestKey, int]:
        """How many requests C answered, or didn't."""
        return {
            RequestKey(
                _PROTOCOLS[protocol], _FAMILIES[family], _ACTIONS[action], _OUTCOMES[outcome]
            ): count
            for protocol, family, action, outcome, count in self.core.numbers()[0]
        }

    def latencies(self) -> dict[tuple[Protocol, Action], tuple[list[int], float]]:
        """How long its replies took: observations by bucket, and their sum in seconds."""
        return {
            (_PROTOCOLS[protocol], _ACTIONS[action]): (buckets, seconds)
            for protocol, action, buckets, seconds in self.core.numbers()[1]
        }

    def check(self) -> None:
        """Memory always answers."""

    def close(self) -> None:
        """Nothing is held outside of the process."""


class NativeAnnouncer(Announcer):
    """An announcer whose decisions are known to the native engine as well.

    Args:
        policy: what is granted.
        swarms: who is where.
        is_listed: whether an infohash may be tracked.
        rng: what spreads intervals of announces that are answered here.
        metrics: where requests are counted; what C counts is told there, too.
    """

    def __init__(
        self,
        policy: Policy,
        swarms: NativeSwarms,
        is_listed: Callable[[bytes], bool],
        rng: Random,
        metrics: Metrics | None = None,
    ) -> None:
        self._native = swarms
        self._front: Front | None = None
        super().__init__(policy, swarms, is_listed, rng, metrics)
        swarms.decide(policy)
        self.metrics.engine = "native"
        self.metrics.requests.join(swarms.requests)
        self.metrics.latency.join(swarms.latencies)

    @property
    def blocks(self) -> BlockList:
        """What the operator keeps out; another list may take its place at any time."""
        return self._blocks

    @blocks.setter
    def blocks(self, blocks: BlockList) -> None:
        self._blocks = blocks
        self._native.block(blocks)

    def reconfigure(self, policy: Policy, limits: Limits) -> None:
        """Go on with other decisions of the operator."""
        super().reconfigure(policy, limits)
        self._native.decide(policy)
        if self._front is not None:
            self._front.reconfigure(policy.trusted_proxies)

    def open_front(self, sockets: Sequence[socket.socket]) -> Front:
        """Make what answers HTTP from listening sockets, and keep it up to date.

        Args:
            sockets: where it accepts; they stay the caller's.
        """
        self._front = Front(
            _native.HttpFront, self._native.core, sockets, self._policy.trusted_proxies
        )
        return self._front


class NativeUdpServer:
    """Serves UDP sockets from one thread that doesn't need the interpreter.

    Args:
        sockets: bound; they stay the caller's.
        swarms: who is where, and what is granted.
        key: the key of connection ids.
    """

    def __init__(self, sockets: Iterable[socket.socket], swarms: NativeSwarms, key: bytes) -> None:
        self._udp = _native.Udp(swarms.core, key, [sock.fileno() for sock in sockets])
        self._thread = threading.Thread(target=self._run, name="udp", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the batch at hand."""
        self._udp.stop()
        self._thread.join()

    def respond(self, packet: bytes, address: bytes, now: int) -> bytes | None:
        """What a datagram from an address of 4 or 16 bytes is answered."""
        return self._udp.respond(packet, address, now)

    def _run(self) -> None:
        while True:
            try:
                self._udp.serve()
            except OSError:
                # The thread, and with it UDP for all, must not end with one batch.
                _log.exception("a batch of datagrams could not be served")
                time.sleep(_PAUSE_SECONDS)
            else:
                return
