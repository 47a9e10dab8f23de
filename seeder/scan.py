# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the table of items as the inventory is, and finds out which of them may be offered.

Looking costs next to nothing while nothing changes, so it is done often: new items are noticed
soon, and what `guix gc` deleted is no longer promised to anybody. An item goes from "not looked up
yet" to "offered", or to a reason why it isn't; what nobody vouches for is looked up again, at
intervals that double up to a day, since a substitute server may have been about to bake it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from narswarm import narinfo
from narswarm.acl import Acl
from narswarm.errors import NetworkError
from narswarm.narinfo import Narinfo, Verdict
from seeder.inventory import Inventory, Item
from seeder.items import NEW, NOT_VOUCHED, OFFERED, WITHDRAWN, ItemTable, Scope
from seeder.rules import BY_RULE, Rules
from seeder.vouchers import BATCH, Vouchers

log = logging.getLogger(__name__)

FIRST_RETRY = 60.0
"""Seconds until an item is looked up again: `guix publish` may have been about to bake it."""

SYNC_INTERVAL = 5.0
"""Seconds between two lists of holdings while many items are looked up."""

FIRST_PAUSE = 10.0
LONGEST_PAUSE = 600.0
_ROWS = 2000


class Scanner:
    """Looks at the inventory.

    Args:
        items: the table.
        inventory: what there is.
        vouchers: says what may be offered.
        rules: say what shall be.
        scope: which offered items are held.
        changed: told when what is offered has changed.
        stopping: asked between two steps whether to stop.
        clock: seconds from any start, never going back.
    """

    def __init__(
        self,
        *,
        items: ItemTable,
        inventory: Inventory,
        vouchers: Vouchers,
        rules: Rules,
        scope: Scope,
        changed: Callable[[], None],
        stopping: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._items = items
        self._inventory = inventory
        self._vouchers = vouchers
        self._rules = rules
        self._scope = scope
        self._changed = changed
        self._stopping = stopping
        self._clock = clock
        self._lock = threading.RLock()
        self._stamp: object = None
        self._synced = -SYNC_INTERVAL
        self._failures = 0
        self._paused_until = 0.0

    def scan(self) -> None:
        """Look at what is new and what is gone, and look up what isn't known yet.

        Raises:
            NarswarmError: the inventory or the signatures can't be read now.
            NetworkError: no substitute server can be reached.
        """
        self.look()
        if self._clock() >= self._paused_until:
            self._vouch()

    def look(self, *, thoroughly: bool = False) -> None:
        """Take over what came and what went since the last look.

        Args:
            thoroughly: also if nothing seems to have changed.

        Raises:
            NarswarmError: the inventory can't be read now.
        """
        with self._lock:
            stamp = self._inventory.stamp()
            if stamp == self._stamp and not thoroughly:
                return
            self._add(self._inventory.items(self._items.last()))
            count, known = self._inventory.count(), len(self._items)
            if not count and known:
                log.warning("the inventory is empty all of a sudden; nothing is dropped")
            else:
                if count > known:
                    self._add(self._inventory.items())  # of the same moment as the last one
                differs = thoroughly or count != len(self._items)
                if differs and self._items.keep(self._inventory.paths()):
                    self._changed()  # also if nothing is held, as while the seeder pauses
            # As it was before reading: what came meanwhile is read the next time.
            self._stamp = stamp
            self.sync()

    def _add(self, items: Iterable[Item]) -> None:
        rest = iter(items)
        while batch := list(islice(rest, _ROWS)):
            self._items.add((item, self._rules.against(item) or NEW) for item in batch)

    def gone(self, item: Item) -> bool:
        """Whether an item that couldn't be read isn't valid any more; then it is forgotten.

        Raises:
            NarswarmError: that can't be said now.
        """
        now = self._inventory.item(item.store_path)
        if now is not None and now.nar_hash == item.nar_hash:
            return False
        self._items.remove(item.store_path)
        self.sync()
        return True

    def sync(self) -> None:
        """Bring the holdings up to date."""
        with self._lock:
            self._synced = self._clock()
            if self._items.sync(self._scope):
                self._changed()

    def hold(self, scope: Scope) -> None:
        """Hold all offered items, those with a payload, or none."""
        with self._lock:
            self._scope = scope
            self.sync()

    # What may be offered

    def _vouch(self) -> None:
        looked_up = 0
        while not self._stopping() and (batch := self._items.pending(BATCH)):
            try:
                seen = self.vouch_for(batch)
            except NetworkError:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures, 20))
                self._failures += 1
                self._paused_until = self._clock() + pause
                self.sync()
                raise
            if not seen:
                break  # told to stop
            looked_up += seen
            self._failures = 0
            if self._clock() - self._synced >= SYNC_INTERVAL:
                self.sync()
            self.look()
        if looked_up:
            self.sync()

    def vouch_for(self, batch: list[Item]) -> int:
        """Look items up; returns how many were.

        Raises:
            NarswarmError: as `Vouchers.find` does.
        """
        good, bad = [], []
        for item, info in self._vouchers.find(batch):
            if info is None:
                bad.append(item)
            else:
                # With absolute URLs: those of a server mean nothing at a tracker.
                good.append((item, narinfo.with_sources(info.raw, info.sources)))
        self._items.vouched(good)
        self._items.missed(bad, NOT_VOUCHED, FIRST_RETRY)
        return len(good) + len(bad)

    def find(self, items: Sequence[Item]) -> Iterator[tuple[Item, Narinfo | None]]:
        """See `Vouchers`; what the settings or the owner exclude nobody vouches for."""
        wanted = []
        for item in items:
            known = self._items.of(item.nar_hash)
            if self._rules.against(item) or (known is not None and known.status == WITHDRAWN):
                yield item, None
            else:
                wanted.append(item)
        yield from self._vouchers.find(wanted)

    @property
    def rules_text(self) -> str:
        """Changes when the rules do."""
        return self._rules.text

    def rejudge(self, acl: Acl, vouchers: Vouchers) -> bool:
        """Take another ACL: what it doesn't authorise any more isn't offered.

        Args:
            acl: whose signatures count from now on.
            vouchers: those that go by it.

        Returns:
            Whether everything was looked at; not if the seeder is about to end.

        Raises:
            GcryptMissingError: no signature can be checked here.
        """
        self._vouchers = vouchers
        for page in self._items.pages(OFFERED):
            if self._stopping():
                return False
            bad = [
                known.item.store_path
                for known in page
                if narinfo.verdict(known.narinfo, acl) is not Verdict.VALID_SIGNATURE
            ]
            for path in bad:
                log.warning("%s: no longer vouched for", path)
            self._items.mark(bad, NOT_VOUCHED)
        self._items.hurry()
        self.sync()
        return True

    def apply_rules(self) -> None:
        """Judge all items anew by what the settings say."""
        for page in self._items.pages():
            changes: dict[str, list[str]] = {}
            for item, status, _ in page:
                reason = self._rules.against(item)
                if status in {WITHDRAWN, reason}:
                    continue
                if reason is not None:
                    changes.setdefault(reason, []).append(item.store_path)
                elif status in BY_RULE:
                    changes.setdefault(NEW, []).append(item.store_path)
            for status, paths in changes.items():
                self._items.mark(paths, status)
        self.sync()
