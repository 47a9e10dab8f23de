# SPDX-License-Identifier: GPL-3.0-or-later
"""Which items may be offered: those for which an authorised narinfo says the same.

A store also holds what was only ever built here: private programs, and files with secrets in them.
An item that a substitute server gives to anybody, signed by a key that this machine trusts, is
none of that. So nothing else is announced, published, or made into a payload.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from typing import NamedTuple, Protocol

from narswarm import narinfo
from narswarm.acl import Acl
from narswarm.errors import NetworkError
from narswarm.httpmessage import Validator
from narswarm.narinfo import Narinfo, Verdict
from narswarm.narinfocache import Cached, NarinfoCache
from narswarm.storepath import parse as parse_path
from seeder.inventory import Item, NarDirectory

log = logging.getLogger(__name__)

BATCH = 100
"""Items that are asked for at once: few enough to stop soon, enough to keep connections busy."""

TIMEOUT = 30.0
"""Seconds for a batch."""


class Disagreements:
    """The narinfos that vouch for nothing here, so that servers needn't send them again and again.

    Of an item that vouches what was found is kept in the state, and it isn't looked up any more.
    One that was built here with other bytes is looked up for ever: its narinfo is on disk, with
    what the server calls its version. That a server has none is kept by whoever looks up again.

    Args:
        disk: where they go.
    """

    def __init__(self, disk: NarinfoCache) -> None:
        self._disk = disk
        self._lock = threading.Lock()
        self._new: dict[tuple[str, str], _New] = {}
        # Nearly all items have none: to look for a file of each takes longer than all else here.
        self._there = disk.hash_parts()

    def get(self, server: str, hash_part: str, now: float) -> Cached | None:
        """See `narswarm.narinfocache.NarinfoCache`."""
        return self._disk.get(server, hash_part, now) if hash_part in self._there else None

    def put(
        self,
        server: str,
        hash_part: str,
        raw: bytes | None,
        now: float,
        ttl: float,
        validator: Validator = Validator(),  # noqa: B008 - it is immutable
    ) -> None:
        """Remember an answer until `settle` is called."""
        if raw is not None:
            with self._lock:
                self._new[server, hash_part] = _New(raw, now, ttl, validator)

    def prune_if_due(self, now: float) -> None:
        """See `narswarm.narinfocache.NarinfoCache`."""
        self._disk.prune_if_due(now)

    def settle(self, vouched: Container[str]) -> None:
        """Write what was remembered, but not of these hash parts of store paths."""
        with self._lock:
            new, self._new = self._new, {}
        for (server, hash_part), each in new.items():
            if hash_part not in vouched:
                self._there.add(hash_part)
                self._disk.put(server, hash_part, *each)


class _New(NamedTuple):
    raw: bytes
    now: float
    ttl: float
    validator: Validator


class Lookup(Protocol):
    """What finds authorised narinfos: a `narswarm.narinfos.NarinfoLookup`."""

    @property
    def servers(self) -> Sequence[str]:
        """Which servers it asks."""

    def is_down(self, server: str) -> bool:
        """Whether a server can't be reached for now."""

    def find(
        self,
        paths: Sequence[str],
        timeout: float = ...,
        warn: Callable[[str], None] | None = ...,
    ) -> dict[str, Narinfo]:
        """Authorised narinfos by path."""


class Vouchers(Protocol):
    """Says which items may be offered."""

    def find(self, items: Sequence[Item]) -> Iterator[tuple[Item, Narinfo | None]]:
        """Each item with the narinfo that vouches for it, or None."""


class ServerVouchers:
    """Narinfos of substitute servers, asked politely: a store has many items.

    Args:
        lookup: asks them, and judges signatures.
        rate: items a second at most, in the mean over a batch.
        pause: waits a number of seconds; true if the seeder is about to end.
        clock: seconds from any start, never going back.
        kept: the cache of the lookup.
    """

    def __init__(
        self,
        lookup: Lookup,
        rate: float,
        pause: Callable[[float], object],
        clock: Callable[[], float],
        kept: Disagreements | None = None,
    ) -> None:
        self._lookup = lookup
        self._kept = kept
        self._rate = rate
        self._pause = pause
        self._clock = clock
        self._next = clock()

    def find(self, items: Sequence[Item]) -> Iterator[tuple[Item, Narinfo | None]]:
        """See `Vouchers`.

        Raises:
            GcryptMissingError: no signature can be checked here.
            NetworkError: no server can be reached, so that nothing is known of items.
        """
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            wait = self._next - self._clock()
            if wait > 0 and self._pause(wait):
                return
            self._next = self._clock() + len(batch) / self._rate
            paths = [item.store_path for item in batch]
            found = self._lookup.find(paths, TIMEOUT, log.warning)
            servers = self._lookup.servers
            down = bool(servers) and all(map(self._lookup.is_down, servers))
            if not found and down:
                raise NetworkError("substitute servers", "none can be reached")
            agreed = {item: _agreed(item, found.get(item.store_path)) for item in batch}
            if self._kept is not None:
                self._kept.settle(
                    {parse_path(item.store_path).hash_part for item in batch if agreed[item]}
                )
            for item, info in agreed.items():
                # Of what was to be asked when the last server went away nothing is known.
                if info is not None or not down or item.store_path in found:
                    yield item, info


class LocalVouchers:
    """Narinfos that are beside the NARs.

    Args:
        directory: with both.
        acl: whose signatures count.
    """

    def __init__(self, directory: NarDirectory, acl: Acl) -> None:
        self._directory = directory
        self._acl = acl

    def find(self, items: Sequence[Item]) -> Iterator[tuple[Item, Narinfo | None]]:
        """See `Vouchers`.

        Raises:
            GcryptMissingError: no signature can be checked here.
        """
        for item in items:
            info = self._directory.narinfo(item.store_path)
            if info is not None:
                verdict = narinfo.verdict(info, self._acl)
                if verdict is not Verdict.VALID_SIGNATURE:
                    log.warning("%s: narinfo with the verdict %s", item.store_path, verdict)
                    info = None
            yield item, _agreed(item, info)


def _agreed(item: Item, info: Narinfo | None) -> Narinfo | None:
    """The narinfo, if it is about the bytes that this machine has."""
    if info is None:
        return None
    same = (info.store_path, info.nar_hash, info.nar_size)
    if same != (item.store_path, item.nar_hash, item.nar_size):
        log.warning(
            "%s: differs from what its substitute server signed, so it is not offered",
            item.store_path,
        )
        return None
    return info
