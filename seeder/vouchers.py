# SPDX-License-Identifier: GPL-3.0-or-later
"""Which items may be offered: those for which an authorised narinfo says the same.

A store also holds what was only ever built here: private programs, and files with secrets in them.
An item that a substitute server gives to anybody, signed by a key that this machine trusts, is
none of that. So nothing else is announced, published, or made into a payload.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from narswarm import narinfo
from narswarm.acl import Acl
from narswarm.narinfo import Narinfo, Verdict
from seeder.inventory import Item, NarDirectory

log = logging.getLogger(__name__)

BATCH = 100
"""Items that are asked for at once: few enough to stop soon, enough to keep connections busy."""

TIMEOUT = 30.0
"""Seconds for a batch."""


class Lookup(Protocol):
    """What finds authorised narinfos: a `narswarm.narinfos.NarinfoLookup`."""

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
    """Narinfos of substitute servers.

    Args:
        lookup: asks them; it judges signatures and keeps answers.
    """

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    def find(self, items: Sequence[Item]) -> Iterator[tuple[Item, Narinfo | None]]:
        """See `Vouchers`.

        Raises:
            GcryptMissingError: no signature can be checked here.
        """
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            paths = [item.store_path for item in batch]
            found = self._lookup.find(paths, TIMEOUT, log.warning)
            for item in batch:
                yield item, _agreed(item, found.get(item.store_path))


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
