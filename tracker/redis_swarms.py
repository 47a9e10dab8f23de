# SPDX-License-Identifier: GPL-3.0-or-later
"""Swarms in Redis: several trackers, on one machine or several, with the same peers.

A swarm is a few small keys of Redis, whose names have the infohash as their hash tag; each announce
is one run of `redis_swarms.lua`, and many announces are one round trip. The rules are those of
`tracker.swarms`. Two things differ, as no script may look at all of Redis: limits on all swarms and
peers go by totals which trackers add up, exact after each sweep; and a torrent with very many peers
has its two swarms joined by a sample.

What is read is checked for its shape: another program that can write to this Redis can lie about
who is where, and no more.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import islice
from random import Random
from typing import Final

from tracker.redis_link import Command, Link, parse_url
from tracker.redis_replies import read_answer, read_counts, read_pools
from tracker.redis_script import BATCH, Script
from tracker.redis_sweep import Sweeper
from tracker.swarms import Answer, Limits, Selection
from tracker.swarmstore import Asked, StoreDownError, SwarmTotals
from tracker.wire_http import AnnounceRequest, Counts, Event

_EXACT = 1000
"""Peers of a pool that are compared with those of the other swarm of a hybrid."""

_GRACE_SECONDS = 300
"""How much longer than its peers a key stays that nobody sweeps."""
_DOWNLOADS_SECONDS = 400 * 86400

_NUMBERS: Final = struct.Struct(">IBBBBBIIIIIII")
_EVENTS: Final = {Event.COMPLETED: 1, Event.STOPPED: 2, Event.PAUSED: 3}
_NOTHING: Final = Answer(Counts(0, 0, 0, 0), Selection(b"", b""))
_ORDERS: Final = {
    (needs_nothing, six, one_family): "".join(
        str(2 * leechers + family)
        for leechers in ((True,) if needs_nothing else (False, True))
        for family in ((six,) if one_family else (six, not six))
    )
    for needs_nothing in (False, True)
    for six in (False, True)
    for one_family in (False, True)
}

_log = logging.getLogger(__name__)


class RedisSwarms:
    """Swarms that several trackers share.

    Args:
        url: of Redis; its parameter `prefix` is what names of keys begin with.
        limits: what bounds them. All trackers should have the same.
        keep_downloads: remember how often a swarm was downloaded after its last peer left.
        rng: what chooses where Redis doesn't.
        sweep_seconds: how long after a sweep, whichever tracker did it, none is due unless other
            addresses are unwanted.

    Raises:
        SettingsError: the URL is none, or Redis' Python package isn't installed.
    """

    def __init__(
        self,
        url: str,
        limits: Limits,
        *,
        keep_downloads: bool,
        rng: Random | None = None,
        sweep_seconds: int = 290,
    ) -> None:
        url, prefix = parse_url(url)
        text = resources.files("tracker").joinpath("redis_swarms.lua").read_text()
        self._script = script = Script(Link(url, text), prefix)
        self._limits = limits
        self._kept = _DOWNLOADS_SECONDS if keep_downloads else 0
        self._rng = rng or Random()  # noqa: S311 - it chooses peers, and keeps no secret
        self._sweeper = Sweeper(script, self._kept, sweep_seconds)
        self._lock = threading.Lock()
        self._sweeping = threading.Lock()
        self._completed: set[bytes] = set()
        self._unrestored: dict[bytes, int] = {}

    def announce(self, request: AnnounceRequest, address: bytes, numwant: int, now: int) -> Answer:
        """Take in one announce.

        Raises:
            StoreDownError: Redis doesn't answer, or can't write.
        """
        return self.announce_many([Asked(request, address, numwant, now)])[0]

    def announce_many(self, asked: Sequence[Asked]) -> list[Answer]:
        """Take in several announces; one that Redis refuses alone has an empty answer.

        Raises:
            StoreDownError: Redis doesn't answer, or can't write.
        """
        with self._lock:
            limits = self._limits
        swarms, *peers = self._script.totals()
        may = (swarms < limits.swarms, sum(peers) < limits.peers)
        commands = [self._announce(each, limits, may) for each in asked]
        results = self._script.run(commands)
        answers = []
        for each, result in zip(asked, results, strict=True):
            answer = read_answer(result, each)
            if answer and each.request.event is Event.COMPLETED:
                with self._lock:
                    self._completed.add(each.request.info_hash)
            answers.append(answer or _NOTHING)
        failed = next((each for each in results if isinstance(each, Exception)), None)
        if failed and all(isinstance(each, Exception) for each in results):
            raise StoreDownError("Redis", str(failed)) from failed
        return answers

    def _announce(self, asked: Asked, limits: Limits, may: tuple[bool, bool]) -> Command:
        request, address, numwant, now = asked
        six, seed = len(address) > 4, request.is_seed
        event = _EVENTS.get(request.event, 0)
        packed = _NUMBERS.pack(
            now,
            2 * (not seed) + six,
            event,
            not (request.compact or request.no_peer_id),
            *may,
            numwant,
            self._rng.getrandbits(31),
            limits.swarm_peers,
            limits.address_ports,
            limits.seed_timeout + _GRACE_SECONDS,
            limits.leecher_timeout + _GRACE_SECONDS,
            self._kept,
        )
        order = _ORDERS[seed or request.event is Event.PAUSED, six, request.one_family]
        key = address + request.port.to_bytes(2)
        return self._script.call(request.info_hash, "announce", packed, order, request.peer_id, key)

    def counts(self, info_hashes: Sequence[bytes]) -> list[Counts]:
        """The numbers of swarms, zeros for one that can't be read.

        Raises:
            StoreDownError: Redis doesn't answer.
        """
        if not info_hashes:
            return []
        results = self._script.run(
            [self._script.call(info_hash, "counts") for info_hash in info_hashes]
        )
        return [read_counts(result) or _NOTHING.counts for result in results]

    def sample(self, info_hashes: Sequence[bytes], limit: int) -> tuple[Counts, list[bytes]]:
        """Look at several swarms as if they were one.

        Peers of more than 1,000 of a role and family aren't compared: the larger swarm counts.

        Raises:
            StoreDownError: Redis doesn't answer.
        """
        seeds: set[bytes] = set()
        leechers: set[bytes] = set()
        most = [0, 0]
        downloaded = partial = 0
        results = self._script.run(
            [self._script.call(each, "sample", _EXACT) for each in info_hashes]
        )
        for result in results:
            counts = read_counts(result)
            if counts is None or not isinstance(result, bytes):
                continue
            downloaded = max(downloaded, counts.downloaded)
            partial = max(partial, counts.incomplete - counts.downloaders)
            most = [max(most[0], counts.complete), max(most[1], counts.incomplete)]
            for place, keys in enumerate(read_pools(result)):
                (leechers if place >= 2 else seeds).update(keys)
        leechers -= seeds
        peers: list[bytes] = []
        for role in (seeds, leechers):
            room, ordered = limit - len(peers), sorted(role)
            peers += ordered if len(ordered) <= room else self._rng.sample(ordered, room)
        complete = max(most[0], len(seeds)) if most[0] > _EXACT else len(seeds)
        incomplete = max(most[1], len(leechers)) if most[1] > _EXACT else len(leechers)
        return Counts(complete, incomplete, downloaded, max(incomplete - partial, 0)), peers

    def expire(self, now: int, unwanted: Callable[[bytes], bool] | None = None) -> int:
        """Forget peers that fell silent, unless another tracker just does or did.

        Raises:
            StoreDownError: Redis doesn't answer.
        """
        with self._sweeping:
            self._restore_pending()
            return self._sweeper.sweep(now, self._limits, unwanted)

    def restore(self, downloads: Mapping[bytes, int]) -> None:
        """Take numbers of downloads where Redis has lower ones, now or when it answers."""
        if not self._kept:
            return
        with self._lock:
            self._unrestored.update((each, count) for each, count in downloads.items() if count)
        try:
            self._restore_pending()
        except StoreDownError as error:
            _log.warning("numbers of downloads are taken up later: %s", error)

    def _restore_pending(self) -> None:
        while True:
            with self._lock:
                some = dict(islice(self._unrestored.items(), BATCH))
            if not some:
                return
            self._script.run(
                [
                    self._script.call(info_hash, "restore", min(count, 2**32 - 1), self._kept)
                    for info_hash, count in some.items()
                ]
            )
            with self._lock:
                for info_hash in some:
                    self._unrestored.pop(info_hash, None)

    def take_downloads(self) -> dict[bytes, int]:
        """The numbers of downloads that changed here; none while Redis doesn't answer."""
        with self._lock:
            completed, self._completed = list(self._completed), set()
        taken: dict[bytes, int] = {}
        try:
            for start in range(0, len(completed), BATCH):
                some = completed[start : start + BATCH]
                counts = self.counts(some)
                taken.update(
                    (each, found.downloaded) for each, found in zip(some, counts, strict=True)
                )
        except StoreDownError:
            self.give_back_downloads({each: 0 for each in completed if each not in taken})
        return taken

    def give_back_downloads(self, downloads: Mapping[bytes, int]) -> None:
        """Have numbers be handed out again."""
        with self._lock:
            self._completed.update(downloads)

    def limit(self, limits: Limits) -> None:
        """Set other limits."""
        with self._lock:
            self._limits = limits

    def totals(self) -> SwarmTotals:
        """How many swarms and peers all trackers have; the last that is known without Redis."""
        try:
            self._script.run([])
        except StoreDownError:
            _log.debug("totals are those of earlier")
        swarms, *peers = (max(total, 0) for total in self._script.totals())
        return SwarmTotals(swarms, *peers)

    def check(self) -> None:
        """See whether Redis answers.

        Raises:
            StoreDownError: it doesn't.
        """
        self._script.link.ask("PING")

    def close(self) -> None:
        """Say what changed, and let go of Redis."""
        try:
            self._script.run([])
        except StoreDownError:
            _log.debug("the next sweep finds what changed")
        self._script.link.close()
