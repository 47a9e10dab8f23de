# SPDX-License-Identifier: GPL-3.0-or-later
"""Which items are offered, and how they come and go.

Items go through the same steps however they were found: an authorised narinfo vouches for them,
their payload is made, they are kept in the state, published, and seeded. What fails is noted with
a time at which it is tried again, so that one bad item never holds up the others.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from narswarm import narinfo
from narswarm.acl import Acl
from narswarm.cli import format_size
from narswarm.errors import CodecError, NarswarmError, NotFoundError
from narswarm.narinfo import Narinfo, Verdict
from narswarm.swarm import TorrentStatus
from seeder.inventory import Inventory, Item
from seeder.payloads import FullError, PayloadMaker, StoppedError
from seeder.state import Nar, Offer, State
from seeder.vouchers import Vouchers

log = logging.getLogger(__name__)

DAY = 86_400.0
FIRST_RETRY = 60.0
"""Seconds until an item is looked up again: `guix publish` may have been about to bake it."""

FULL_PAUSE = 300.0
"""Seconds without new payloads when there is no room for them."""

NEVER = 100 * 365 * DAY
"""Seconds until an item is tried again that somebody doesn't want to be offered."""

_NO_ROOM = "no room"

FEW = 100
"""Items that are looked up one by one rather than by reading the whole inventory."""


class Seeds(Protocol):
    """What seeds: a `narswarm.swarm.Swarm`."""

    def seed(self, torrent: bytes, payload: Path, trackers: Sequence[str]) -> str:
        """Offer a file."""

    def remove(self, infohash: str) -> None:
        """Stop offering it."""

    def status(self) -> list[TorrentStatus]:
        """All torrents."""


class Offering:
    """What this seeder offers.

    Args:
        state: what is kept of it.
        inventory: what could be offered.
        vouchers: says what may be.
        maker: makes payloads; None if this machine can't.
        swarm: seeds.
        trackers: announce URLs.
        publish: tells trackers' indexes of a NAR.
        clock: seconds since the epoch.
        stopping: asked between two steps whether to stop.
    """

    def __init__(
        self,
        *,
        state: State,
        inventory: Inventory,
        vouchers: Vouchers,
        maker: PayloadMaker | None,
        swarm: Seeds,
        trackers: Sequence[str],
        publish: Callable[[bytes], None],
        clock: Callable[[], float],
        stopping: Callable[[], bool],
    ) -> None:
        self._state = state
        self._inventory = inventory
        self._vouchers = vouchers
        self._maker = maker
        self._swarm = swarm
        self._trackers = tuple(trackers)
        self._publish = publish
        self._clock = clock
        self._stopping = stopping
        self._offered: dict[bytes, Offer] = {}
        self._seen = 0
        self._paused_until = 0.0
        self._full = ""

    def __len__(self) -> int:
        return len(self._offered)

    def infohash(self, nar_hash: bytes) -> str | None:
        """The torrent of a NAR, if it is seeded."""
        offer = self._offered.get(nar_hash)
        return None if offer is None else offer.infohash

    def infohashes(self) -> list[str]:
        """All torrents that are seeded."""
        return [offer.infohash for offer in list(self._offered.values())]

    @property
    def full(self) -> str:
        """Why there are items without room; empty if there are none."""
        if _NO_ROOM not in self._state.misses():
            return ""
        return self._full or f"{self._state.payloads}: had no room for everything"

    # What is kept

    def restore(self, acl: Acl, fingerprint: str) -> None:
        """Seed again what the state has: nothing is hashed, nobody is asked.

        Args:
            acl: whose signatures count now.
            fingerprint: another one than last time means that the ACL was changed; then what no
                authorised key vouches for any more is dropped.

        Raises:
            GcryptMissingError: the ACL was changed, and no signature can be checked here.
        """
        changed = self._state.note("acl") != fingerprint
        self._state.sweep()
        for offer in self._state.offers():
            if self._stopping():
                return
            reason = self._unfit(offer, acl if changed else None)
            if reason:
                log.warning("%s: %s", offer.store_path, reason)
                self._state.drop(offer.nar_hash)
                continue
            self._seed(offer, self._state.get(offer.nar_hash).torrent)
        self._state.set_note("acl", fingerprint)

    def _unfit(self, offer: Offer, acl: Acl | None) -> str | None:
        """Why something that is kept can't be offered any more."""
        try:
            length = (self._state.payloads / offer.payload).stat().st_size
        except OSError as error:
            return f"its payload is lost: {error.strerror}"
        if length != offer.length:
            return f"its payload has {length} bytes instead of {offer.length}"
        if acl is not None:
            raw = self._state.get(offer.nar_hash).narinfo
            verdict = narinfo.verdict(raw, acl)
            if verdict is not Verdict.VALID_SIGNATURE:
                return f"no longer vouched for: {verdict}"
        return None

    def _seed(self, offer: Offer, torrent: bytes) -> None:
        self._swarm.seed(torrent, self._state.payloads / offer.payload, self._trackers)
        self._offered[offer.nar_hash] = offer

    # What is new

    def scan(self) -> None:
        """Offer what is new and may be offered, newest items first.

        Those who want an item have mostly just pulled the channels that brought it, so that the
        newest are wanted most when there isn't room for all.

        Raises:
            NarswarmError: the inventory or the signatures can't be read now.
        """
        if self._maker is None or self._clock() < self._paused_until:
            return
        seen, items = self._candidates()
        failures = 0
        for item, info in self._vouchers.find(items):
            if self._stopping():
                return
            try:
                self._consider(item, info, self._maker)
                failures = 0
            except StoppedError:
                return
            except FullError as error:
                self._miss(item, _NO_ROOM, FULL_PAUSE)
                failures += 1
                if not self._full:
                    log.warning("%s", error)
                self._full = str(error)
                if failures == FEW:
                    self._paused_until = self._clock() + FULL_PAUSE
                    return
            except NarswarmError as error:
                log.warning("%s", error)
                self._miss(item, "unreadable", FIRST_RETRY)
        self._seen = max(self._seen, seen)
        if not self.full:
            self._full = ""  # so that the next time is told again

    def _candidates(self) -> tuple[int, list[Item]]:
        """What to look at, newest first, and the order of the newest item that there is."""
        later = self._state.missed() if self._seen == 0 else set()
        found: dict[str, Item] = {}
        seen = self._seen
        for item in self._inventory.items(self._seen):
            seen = max(seen, item.order)
            if item.nar_hash not in self._offered and item.store_path not in later:
                found[item.store_path] = item
        found |= {item.store_path: item for item in self._retries()}
        return seen, sorted(found.values(), reverse=True)

    def _retries(self) -> Iterator[Item]:
        """Items that failed before and are to be tried again."""
        paths = self._state.retries(self._clock())
        if len(paths) > FEW:
            wanted = set(paths)
            there = [item for item in self._inventory.items() if item.store_path in wanted]
        else:
            there = [item for item in map(self._inventory.item, paths) if item is not None]
        self._state.forget(set(paths) - {item.store_path for item in there})
        for item in there:
            if item.nar_hash in self._offered:
                self._state.forget([item.store_path])
            else:
                yield item

    def _consider(self, item: Item, info: Narinfo | None, maker: PayloadMaker) -> None:
        if item.nar_hash in self._offered:
            return  # two items with the same content have one NAR
        if info is None:
            self._miss(item, "not vouched for", FIRST_RETRY)
            return
        meta = maker.make(item, self._inventory.open(item))
        nar = Nar(
            nar_hash=item.nar_hash,
            store_path=item.store_path,
            nar_size=item.nar_size,
            payload=meta.name,
            length=meta.length,
            infohash=meta.infohash_v2.hex(),
            torrent=meta.encode(),
            # With absolute URLs: those of a server mean nothing at a tracker.
            narinfo=narinfo.with_sources(info.raw, info.sources),
        )
        self._state.add(nar, self._trackers)
        # First, so that trackers which only track what is in their index take the announce.
        self._publish(nar.nar_hash)
        offer = Offer(nar.nar_hash, nar.store_path, nar.payload, nar.length, nar.infohash)
        self._seed(offer, nar.torrent)
        log.info(
            "seeding %s: %s, of a NAR of %s",
            item.store_path,
            format_size(meta.length),
            format_size(item.nar_size),
        )

    def adopt(self, nar: Nar) -> None:
        """Offer a payload that was fetched and is in its place by now.

        Args:
            nar: with the narinfo that vouches for it.
        """
        self._state.add(nar, self._trackers)
        self._publish(nar.nar_hash)
        offer = Offer(nar.nar_hash, nar.store_path, nar.payload, nar.length, nar.infohash)
        self._seed(offer, nar.torrent)
        log.info("seeding %s, which was fetched", nar.store_path)

    def add(self, store_path: str) -> None:
        """Offer an item now, whenever it would have been tried again.

        Raises:
            NotFoundError: it isn't here, or nobody vouches for it.
            CodecError: this machine can't make payloads.
            NarswarmError: its payload can't be made.
        """
        item = self._inventory.item(store_path)
        if item is None:
            raise NotFoundError(store_path, "is not in this machine's store")
        if item.nar_hash in self._offered:
            return
        if self._maker is None:
            raise CodecError("seeder", "makes no payloads with this machine's zstd")
        self._state.forget([store_path])
        for _, info in self._vouchers.find([item]):
            self._consider(item, info, self._maker)
            if info is None:
                raise NotFoundError(store_path, "no authorised narinfo vouches for it")

    def remove(self, store_path: str) -> None:
        """Offer an item no more until `add`, or until it has left this machine for a while.

        Raises:
            NotFoundError: it is neither offered nor here.
        """
        for offer in list(self._offered.values()):
            if offer.store_path == store_path:
                self._drop(offer)
                break
        else:
            if self._inventory.item(store_path) is None:
                raise NotFoundError(store_path, "is not offered")
        self._state.miss(store_path, "removed", self._clock(), NEVER, NEVER)

    def withdraw(self, nar_hash: bytes, infohash: str) -> None:
        """Offer a torrent no more, if it is offered: its payload isn't the NAR."""
        offer = self._offered.get(nar_hash)
        if offer is not None and offer.infohash == infohash:
            log.warning("%s: its payload was another NAR", offer.store_path)
            self._drop(offer)

    def _miss(self, item: Item, reason: str, first: float) -> None:
        self._state.miss(item.store_path, reason, self._clock(), first, DAY)

    # What is gone

    def check(self) -> None:
        """Take payloads out that turned out to be damaged; they are made again."""
        offers = {offer.infohash: offer for offer in list(self._offered.values())}
        for status in self._swarm.status():
            offer = offers.get(status.infohash)
            if offer is None or status.state == "seeding":
                continue
            log.warning(
                "%s: its payload is damaged%s",
                offer.store_path,
                f": {status.error}" if status.error else "",
            )
            self._drop(offer)
            self._state.miss(offer.store_path, "damaged", self._clock(), 1.0, DAY)

    def expire(self) -> None:
        """Drop what is no longer in the inventory, and look at all of it in the next scan.

        Raises:
            NarswarmError: the inventory can't be read now.
        """
        offers = list(self._offered.values())
        missed = self._state.missed()
        hashes: set[bytes] = set()
        for item in self._inventory.items():
            hashes.add(item.nar_hash)
            missed.discard(item.store_path)
        if offers and not hashes:
            log.warning("the inventory is empty all of a sudden; nothing is dropped")
            return
        for offer in offers:
            if offer.nar_hash not in hashes:
                log.info("dropping %s, which is no longer here", offer.store_path)
                self._drop(offer)
        self._state.forget(missed)
        self._seen = 0

    def _drop(self, offer: Offer) -> None:
        self._offered.pop(offer.nar_hash, None)
        with suppress(NotFoundError):
            self._swarm.remove(offer.infohash)
        self._state.drop(offer.nar_hash)
        self._paused_until = 0.0


def fingerprint(acl_text: bytes) -> str:
    """What changes when an ACL file does."""
    return hashlib.sha256(acl_text).hexdigest()
