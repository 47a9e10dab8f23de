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

import base64
import logging
import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import islice
from random import Random
from typing import Final

from tracker.redis_link import Command, Link, parse_url
from tracker.redis_replies import (
    SUMMARY,
    WIDTHS,
    number,
    numbers,
    read_answer,
    read_counts,
    read_pools,
)
from tracker.swarms import Answer, Limits, Selection
from tracker.swarmstore import Asked, StoreDownError, SwarmTotals
from tracker.wire_http import HASH_BYTES, AnnounceRequest, Counts, Event

BATCH = 200
"""Commands that are sent at once."""

_EXACT = 1000
"""Peers of a pool that are compared with those of the other swarm of a hybrid."""

_LOOKED_AT = 250
"""Peers that one step of a sweep looks at."""

_LEASE_SECONDS = 60
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
        url, self._prefix = parse_url(url)
        script = resources.files("tracker").joinpath("redis_swarms.lua").read_text()
        self._link = Link(url, script)
        self._limits = limits
        self._kept = _DOWNLOADS_SECONDS if keep_downloads else 0
        self._rng = rng or Random()  # noqa: S311 - it chooses peers, and keeps no secret
        self._sweep_seconds = sweep_seconds
        self._swept_for: Callable[[bytes], bool] | None = None
        self._totals_key = f"{self._prefix}:totals"
        self._lock = threading.Lock()
        self._sweeping = threading.Lock()
        self._known = [0] * 5
        self._unsaid = [0] * 5
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
            swarms, *peers = (
                known + unsaid for known, unsaid in zip(self._known, self._unsaid, strict=True)
            )
            may = (swarms < limits.swarms, sum(peers) < limits.peers)
        commands = [self._announce(each, limits, may) for each in asked]
        results = self._run(commands)
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
        return self._call(request.info_hash, "announce", packed, order, request.peer_id, key)

    def _name(self, info_hash: bytes) -> str:
        # In base64, since a hash tag ends with the first brace.
        tag = base64.urlsafe_b64encode(info_hash).rstrip(b"=").decode()
        return f"{self._prefix}:{{{tag}}}"

    def _call(self, info_hash: bytes, *arguments: str | bytes | int) -> Command:
        return ("EVALSHA", self._link.digest, 1, self._name(info_hash), *arguments)

    def _run(self, commands: Sequence[Command]) -> list[object]:
        """Send commands of the script, and account for what they changed.

        The totals go along: what changed here since the last time, and what all have then.
        """
        with self._lock:
            unsaid, self._unsaid = self._unsaid, [0] * 5
        totals: list[Command] = [
            ("HINCRBY", self._totals_key, place, change)
            for place, change in enumerate(unsaid)
            if change
        ]
        totals.append(("HMGET", self._totals_key, *range(5)))
        try:
            results = self._link.run([*totals, *commands])
        except StoreDownError:
            with self._lock:
                self._add(unsaid)
            raise
        with self._lock:
            self._known = numbers(results[len(totals) - 1])
            for result in results[len(totals) :]:
                if isinstance(result, list) and len(result) == 4:
                    result = result[1]  # noqa: PLW2901 - of a sweep
                if isinstance(result, bytes) and len(result) >= SUMMARY.size:
                    *_, a, b, c, d, swarms = SUMMARY.unpack_from(result)
                    self._add([swarms, a, b, c, d])
        return results[len(totals) :]

    def _add(self, changes: Sequence[int]) -> None:
        self._unsaid = [one + other for one, other in zip(self._unsaid, changes, strict=True)]

    def counts(self, info_hashes: Sequence[bytes]) -> list[Counts]:
        """The numbers of swarms, zeros for one that can't be read.

        Raises:
            StoreDownError: Redis doesn't answer.
        """
        if not info_hashes:
            return []
        results = self._run([self._call(info_hash, "counts") for info_hash in info_hashes])
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
        results = self._run([self._call(each, "sample", _EXACT) for each in info_hashes])
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
        token = base64.b64encode(os.urandom(12))
        with self._sweeping:
            self._restore_pending()
            if unwanted == self._swept_for and self._swept_recently(now):
                return 0
            lease = (f"{self._prefix}:sweeper", token)
            if self._link.ask("SET", *lease, "NX", "EX", _LEASE_SECONDS) is None:
                return 0
            try:
                expired = self._sweep(now, unwanted)
                self._swept_for = unwanted
                self._link.ask("SET", f"{self._prefix}:swept", now, "EX", 86400)
            finally:
                if self._link.ask("GET", lease[0]) == token:
                    self._link.ask("DEL", lease[0])
        return expired

    def _swept_recently(self, now: int) -> bool:
        last = number(self._link.ask("GET", f"{self._prefix}:swept"))
        return 0 <= now - last < self._sweep_seconds

    def _sweep(self, now: int, unwanted: Callable[[bytes], bool] | None) -> int:
        """Look at all swarms, a batch at a time, and set the totals to what was found."""
        expired, found, cursor = 0, [0] * 5, b"0"
        while True:
            page = self._link.ask(
                "SCAN", cursor, "MATCH", f"{self._prefix}:{{*}}:[0-3]", "COUNT", BATCH
            )
            if not isinstance(page, list) or len(page) != 2:
                raise StoreDownError("Redis", "answers what is no page of keys")
            cursor = page[0]
            pools = [pool for pool in map(self._parse, page[1]) if pool]
            expired += self._sweep_pools(pools, now, found)
            if unwanted is not None:
                expired += self._forget(pools, unwanted, found)
            self._link.ask("EXPIRE", f"{self._prefix}:sweeper", _LEASE_SECONDS)
            if cursor == b"0":
                break
        with self._lock:
            self._unsaid, self._known = [0] * 5, found
        pairs = [value for pair in enumerate(found) for value in pair]
        self._link.ask("HSET", self._totals_key, *pairs)
        return expired

    def _parse(self, name: object) -> tuple[bytes, int] | None:
        """Infohash and place that the name of a key has."""
        try:
            tag, place = bytes(name)[len(self._prefix) + 2 :].split(b"}:")  # type: ignore[call-overload]
            info_hash = base64.urlsafe_b64decode(tag + b"=")
        except (TypeError, ValueError):
            return None
        return (info_hash, int(place)) if len(info_hash) == HASH_BYTES else None

    def _sweep_pools(self, pools: Sequence[tuple[bytes, int]], now: int, found: list[int]) -> int:
        """Forget silent peers of pools; add to `found` who is left."""
        expired = 0
        waiting = [(info_hash, place, b"0") for info_hash, place in pools]
        while waiting:
            results = self._run(
                [
                    self._call(
                        info_hash,
                        "sweep",
                        place,
                        self._oldest(place, now),
                        at,
                        _LOOKED_AT,
                        self._kept,
                    )
                    for info_hash, place, at in waiting
                ]
            )
            again = []
            for (info_hash, place, _), result in zip(waiting, results, strict=True):
                if not isinstance(result, list) or len(result) != 4:
                    continue  # a key that isn't ours, or not what it was
                expired -= sum(SUMMARY.unpack(result[1])[4:8])
                if result[0] == b"0":
                    found[0] += result[2]
                    found[1 + place] += result[3]
                else:
                    again.append((info_hash, place, result[0]))
            waiting = again
        return expired

    def _oldest(self, place: int, now: int) -> int:
        limits = self._limits
        return now - (limits.seed_timeout if place < 2 else limits.leecher_timeout)

    def _forget(
        self,
        pools: Sequence[tuple[bytes, int]],
        unwanted: Callable[[bytes], bool],
        found: list[int],
    ) -> int:
        """Forget the peers of pools that are at unwanted addresses."""
        forgotten = 0
        waiting = [(info_hash, place, b"0") for info_hash, place in pools]
        while waiting:
            pages = self._link.run(
                [
                    ("HSCAN", f"{self._name(info_hash)}:{place}", at, "COUNT", _LOOKED_AT)
                    for info_hash, place, at in waiting
                ]
            )
            commands, again = [], []
            for (info_hash, place, _), page in zip(waiting, pages, strict=True):
                if not isinstance(page, list) or len(page) != 2:
                    continue  # no hash
                keys = [key for key in page[1][::2] if len(key) == WIDTHS[place % 2]]
                if gone := [key for key in keys if unwanted(key[:-2])]:
                    commands.append(self._call(info_hash, "forget", place, self._kept, *gone))
                if page[0] != b"0":
                    again.append((info_hash, place, page[0]))
            for result in self._run(commands) if commands else ():
                if isinstance(result, bytes) and len(result) == SUMMARY.size:
                    *_, a, b, c, d, swarms = SUMMARY.unpack(result)
                    for at, change in enumerate((swarms, a, b, c, d)):
                        found[at] = max(found[at] + change, 0)
                    forgotten -= a + b + c + d
            waiting = again
        return forgotten

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
            self._run(
                [
                    self._call(info_hash, "restore", min(count, 2**32 - 1), self._kept)
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
            self._run([])
        except StoreDownError:
            _log.debug("totals are those of earlier")
        with self._lock:
            swarms, *peers = (
                max(known + unsaid, 0)
                for known, unsaid in zip(self._known, self._unsaid, strict=True)
            )
        return SwarmTotals(swarms, *peers)

    def check(self) -> None:
        """See whether Redis answers.

        Raises:
            StoreDownError: it doesn't.
        """
        self._link.ask("PING")

    def close(self) -> None:
        """Say what changed, and let go of Redis."""
        try:
            self._run([])
        except StoreDownError:
            _log.debug("the next sweep finds what changed")
        self._link.close()
