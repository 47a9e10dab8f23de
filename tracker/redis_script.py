# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of `redis_swarms.lua`, and the totals of all swarms that they change.

Totals are kept in Redis as well. What changed here goes there with the next commands, whatever they
are, and what all trackers have together comes back with their answers.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence

from tracker.redis_link import Command, Link
from tracker.redis_replies import SUMMARY, numbers
from tracker.swarmstore import StoreDownError

BATCH = 200
"""Commands that are sent at once."""


class Script:
    """The script in one Redis, for one prefix.

    Args:
        link: to Redis; it knows the script.
        prefix: what names of keys begin with.
    """

    def __init__(self, link: Link, prefix: str) -> None:
        self.link = link
        self.prefix = prefix
        self._totals_key = f"{prefix}:totals"
        self._lock = threading.Lock()
        self._known = [0] * 5
        self._unsaid = [0] * 5

    def name(self, info_hash: bytes) -> str:
        """What the names of a swarm's keys begin with."""
        # In base64, since a hash tag ends with the first brace.
        tag = base64.urlsafe_b64encode(info_hash).rstrip(b"=").decode()
        return f"{self.prefix}:{{{tag}}}"

    def call(self, info_hash: bytes, *arguments: str | bytes | int) -> Command:
        """A command that runs the script."""
        return ("EVALSHA", self.link.digest, 1, self.name(info_hash), *arguments)

    def run(self, commands: Sequence[Command]) -> list[object]:
        """Send commands of the script, and account for what they changed.

        The totals go along: what changed here since the last time, and what all have then.

        Raises:
            StoreDownError: Redis doesn't answer.
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
            results = self.link.run([*totals, *commands])
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

    def totals(self) -> list[int]:
        """Swarms and peers of each role and family, as far as is known here."""
        with self._lock:
            return [known + unsaid for known, unsaid in zip(self._known, self._unsaid, strict=True)]

    def set_totals(self, found: list[int]) -> None:
        """Have the totals be what somebody has counted.

        Raises:
            StoreDownError: Redis doesn't answer.
        """
        with self._lock:
            self._unsaid, self._known = [0] * 5, found
        pairs = [value for pair in enumerate(found) for value in pair]
        self.link.ask("HSET", self._totals_key, *pairs)
