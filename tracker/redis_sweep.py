# SPDX-License-Identifier: GPL-3.0-or-later
"""Sweeps over swarms in Redis: who fell silent or is unwanted is forgotten, and all are counted.

Several trackers share the work: one sweeps at a time, and the others not soon after it. A sweep
looks at all keys a page at a time, so that announces of others come in between.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence

from tracker.redis_replies import SUMMARY, WIDTHS, number
from tracker.redis_script import BATCH, Script
from tracker.swarms import Limits
from tracker.swarmstore import StoreDownError
from tracker.wire_http import HASH_BYTES

Unwanted = Callable[[bytes], bool]
"""Whether nobody shall be told of an address."""

_LOOKED_AT = 250
"""Peers that one step of a sweep looks at."""

_LEASE_SECONDS = 60


class Sweeper:
    """Sweeps, one at a time.

    Args:
        script: what runs in Redis.
        kept: seconds that a number of downloads stays, or 0.
        pause: seconds after a sweep, whichever tracker did it, for which none is due unless other
            addresses are unwanted.
    """

    def __init__(self, script: Script, kept: int, pause: int) -> None:
        self._script = script
        self._kept = kept
        self._pause = pause
        self._swept_for: Unwanted | None = None

    def sweep(self, now: int, limits: Limits, unwanted: Unwanted | None) -> int:
        """Forget peers unless another tracker just does or did; how many.

        Raises:
            StoreDownError: Redis doesn't answer.
        """
        link, prefix = self._script.link, self._script.prefix
        if unwanted == self._swept_for and self._swept_recently(now):
            return 0
        lease, token = f"{prefix}:sweeper", base64.b64encode(os.urandom(12))
        if link.ask("SET", lease, token, "NX", "EX", _LEASE_SECONDS) is None:
            return 0
        try:
            expired = self._sweep(now, limits, unwanted)
            self._swept_for = unwanted
            link.ask("SET", f"{prefix}:swept", now, "EX", 86400)
        finally:
            if link.ask("GET", lease) == token:
                link.ask("DEL", lease)
        return expired

    def _swept_recently(self, now: int) -> bool:
        last = number(self._script.link.ask("GET", f"{self._script.prefix}:swept"))
        return 0 <= now - last < self._pause

    def _sweep(self, now: int, limits: Limits, unwanted: Unwanted | None) -> int:
        """Look at all swarms, a batch at a time, and set the totals to what was found."""
        script = self._script
        expired, found, cursor = 0, [0] * 5, b"0"
        while True:
            page = script.link.ask(
                "SCAN", cursor, "MATCH", f"{script.prefix}:{{*}}:[0-3]", "COUNT", BATCH
            )
            if not isinstance(page, list) or len(page) != 2:
                raise StoreDownError("Redis", "answers what is no page of keys")
            cursor = page[0]
            pools = [pool for pool in map(self._parse, page[1]) if pool]
            expired += self._sweep_pools(pools, now, limits, found)
            if unwanted is not None:
                expired += self._forget(pools, unwanted, found)
            script.link.ask("EXPIRE", f"{script.prefix}:sweeper", _LEASE_SECONDS)
            if cursor == b"0":
                break
        script.set_totals(found)
        return expired

    def _parse(self, name: object) -> tuple[bytes, int] | None:
        """Infohash and place that the name of a key has."""
        try:
            tag, place = bytes(name)[len(self._script.prefix) + 2 :].split(b"}:")  # type: ignore[call-overload]
            info_hash = base64.urlsafe_b64decode(tag + b"=")
        except (TypeError, ValueError):
            return None
        return (info_hash, int(place)) if len(info_hash) == HASH_BYTES else None

    def _sweep_pools(
        self, pools: Sequence[tuple[bytes, int]], now: int, limits: Limits, found: list[int]
    ) -> int:
        """Forget silent peers of pools; add to `found` who is left."""
        expired = 0
        waiting = [(info_hash, place, b"0") for info_hash, place in pools]
        while waiting:
            results = self._script.run(
                [
                    self._script.call(
                        info_hash,
                        "sweep",
                        place,
                        _oldest(place, now, limits),
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

    def _forget(
        self,
        pools: Sequence[tuple[bytes, int]],
        unwanted: Unwanted,
        found: list[int],
    ) -> int:
        """Forget the peers of pools that are at unwanted addresses."""
        forgotten = 0
        waiting = [(info_hash, place, b"0") for info_hash, place in pools]
        while waiting:
            pages = self._script.link.run(
                [
                    ("HSCAN", f"{self._script.name(info_hash)}:{place}", at, "COUNT", _LOOKED_AT)
                    for info_hash, place, at in waiting
                ]
            )
            commands, again = [], []
            for (info_hash, place, _), page in zip(waiting, pages, strict=True):
                if not isinstance(page, list) or len(page) != 2:
                    continue  # no hash
                keys = [key for key in page[1][::2] if len(key) == WIDTHS[place % 2]]
                if gone := [key for key in keys if unwanted(key[:-2])]:
                    commands.append(
                        self._script.call(info_hash, "forget", place, self._kept, *gone)
                    )
                if page[0] != b"0":
                    again.append((info_hash, place, page[0]))
            for result in self._script.run(commands) if commands else ():
                if isinstance(result, bytes) and len(result) == SUMMARY.size:
                    *_, a, b, c, d, swarms = SUMMARY.unpack(result)
                    for at, change in enumerate((swarms, a, b, c, d)):
                        found[at] = max(found[at] + change, 0)
                    forgotten -= a + b + c + d
            waiting = again
        return forgotten


def _oldest(place: int, now: int, limits: Limits) -> int:
    return now - (limits.seed_timeout if place < 2 else limits.leecher_timeout)
