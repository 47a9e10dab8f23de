# SPDX-License-Identifier: GPL-3.0-or-later
"""Payloads: made when somebody wants them, seeded, and thrown away for better ones.

Whatever is offered can be made again from the store, so that what is here is a cache. Of each
payload that was ever made the torrent is kept: made again it has to be the same.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from narswarm import narinfo
from narswarm.acl import Acl
from narswarm.cli import format_size
from narswarm.errors import MismatchError, NarswarmError, NotFoundError
from narswarm.narinfo import Verdict
from narswarm.swarm_events import TorrentStatus
from seeder import eviction
from seeder.inventory import Inventory, Item
from seeder.items import NOT_VOUCHED, OFFERED, UNREADABLE, Known
from seeder.payloads import PayloadMaker, StoppedError
from seeder.room import FullError, Room
from seeder.state import Nar, Offer, State

log = logging.getLogger(__name__)

RETRY = 60.0
"""Seconds until an item that couldn't be read is looked at again; they double up to a day."""

RATIO_REACHED = "ratio reached"


class Seeds(Protocol):
    """What seeds: a `narswarm.swarm.Swarm`."""

    def seed(self, torrent: bytes, payload: Path, trackers: Sequence[str]) -> str:
        """Offer a file."""

    def remove(self, infohash: str) -> None:
        """Stop offering it."""

    def status(self) -> list[TorrentStatus]:
        """All torrents."""


class Offering:
    """The payloads of this seeder.

    Args:
        state: what is kept.
        inventory: what payloads are made of.
        maker: makes them; None if this machine can't.
        quota: bytes that they may take.
        premake: bytes of payloads to make before somebody asks.
        ratio: an item is offered no more when it was sent so many times; 0 for no such limit.
        swarm: seeds.
        trackers: announce URLs.
        publish: tells indexes of trackers of a NAR; of all if none is named.
        gone: asked about an item that couldn't be read whether it isn't there any more.
        acl: whose signatures count.
        clock: seconds since the epoch.
        stopping: asked between two steps whether to stop.
    """

    def __init__(
        self,
        *,
        state: State,
        inventory: Inventory,
        maker: PayloadMaker | None,
        quota: int,
        premake: int,
        ratio: float,
        swarm: Seeds,
        trackers: Sequence[str],
        publish: Callable[[bytes, Collection[str]], None],
        gone: Callable[[Item], bool],
        acl: Acl,
        clock: Callable[[], float],
        stopping: Callable[[], bool],
    ) -> None:
        self._state = state
        self._inventory = inventory
        self._maker = maker
        self._premake = min(premake, quota)
        self._ratio = ratio
        self._swarm = swarm
        self._trackers = tuple(trackers)
        self._publish = publish
        self._gone = gone
        self._acl = acl
        self._clock = clock
        self._stopping = stopping
        self._room = Room(state.payloads, quota, state.used, self._make_room)
        self._lock = threading.RLock()
        self._offered: dict[bytes, Offer] = {}
        self._sent: dict[str, int] = {}
        self._skip: set[bytes] = set()
        self._full = ""
        self.paused = False

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
        """Why the last payload had no room; empty if it had."""
        return self._full

    # What is kept

    def restore(self) -> None:
        """Seed again what the state has: nothing is hashed, nobody is asked."""
        self._state.sweep()
        for offer in self._state.offers():
            if self._stopping():
                return
            reason = self._unfit(offer)
            if reason:
                log.warning("%s: %s", offer.store_path, reason)
                self._state.evict(offer.nar_hash)
                continue
            self._seed(offer, self._state.get(offer.nar_hash).torrent)

    def _unfit(self, offer: Offer) -> str | None:
        """Why something that is kept can't be offered any more."""
        try:
            length = (self._state.payloads / offer.payload).stat().st_size
        except OSError as error:
            return f"its payload is lost: {error.strerror}"
        if length != offer.length:
            return f"its payload has {length} bytes instead of {offer.length}"
        return None

    def rejudge(self, acl: Acl) -> None:
        """Take another ACL: what it doesn't authorise any more is dropped.

        Raises:
            GcryptMissingError: no signature can be checked here.
        """
        self._acl = acl
        for offer in self._state.offers():
            if narinfo.verdict(self._state.get(offer.nar_hash).narinfo, acl) is not (
                Verdict.VALID_SIGNATURE
            ):
                log.warning("%s: no longer vouched for", offer.store_path)
                self._drop(offer)

    def reconcile(self) -> None:
        """Drop what isn't to be offered any more: its item is gone, or excluded."""
        for offer in self._state.orphans():
            if offer.nar_hash in self._offered:
                log.info("dropping %s, which is no longer offered", offer.store_path)
            self._drop(offer)

    # What is wanted

    def make(self, nar_hash: bytes, trackers: Collection[str] = ()) -> None:
        """Have a NAR seeded and published, if it may be offered. Failures are noted.

        Args:
            nar_hash: which.
            trackers: announce URLs of those that want it; all without any.
        """
        self._attempt(nar_hash, trackers, evict=True)

    def make_spare(self) -> bool:
        """Make something that nobody asked for; false if there is nothing to make, or no room."""
        if self._maker is None or self.paused or self._state.used() >= self._premake:
            return False
        nar_hash = self._state.unmade(self._skip)
        if nar_hash is None or self._stopping():
            return False
        if not self._attempt(nar_hash, (), evict=False):
            self._skip.add(nar_hash)
        return True

    def _attempt(self, nar_hash: bytes, trackers: Collection[str], *, evict: bool) -> bool:
        if self.paused:
            return False
        if nar_hash in self._offered:
            self._state.requested(nar_hash, self._clock())
            self._publish(nar_hash, trackers)
            return True
        known = self._state.items.of(nar_hash)
        if known is None or known.status != OFFERED or self._maker is None:
            return False
        try:
            if narinfo.verdict(known.narinfo, self._acl) is not Verdict.VALID_SIGNATURE:
                self._state.items.mark([known.item.store_path], NOT_VOUCHED)
                return False
            self._make(known, self._maker, trackers, evict=evict)
        except StoppedError:
            return False
        except FullError as error:
            if not self._full:
                log.warning("%s", error)
            self._full = str(error)
            return False
        except NarswarmError as error:
            self._unreadable(known.item, error)
            return False
        if not self._skip:
            self._full = ""  # so that the next time is told again
        return True

    def _make(
        self, known: Known, maker: PayloadMaker, trackers: Collection[str], *, evict: bool
    ) -> None:
        item = known.item
        before = self._before(item)
        with self._room.claim(evict=evict) as claim:
            if before is not None:
                claim.reserve(before.length)
            meta = maker.make(item, self._inventory.open(item), claim)
            if before is not None and before.infohash != meta.infohash_v2.hex():
                self._state.drop(item.nar_hash)
                raise MismatchError(item.store_path, "has another payload than when it was made")
            nar = Nar(
                nar_hash=item.nar_hash,
                store_path=item.store_path,
                nar_size=item.nar_size,
                payload=meta.name,
                length=meta.length,
                infohash=meta.infohash_v2.hex(),
                torrent=meta.encode(),
                narinfo=known.narinfo,
            )
            offer = self._keep(nar, adopted=False)
        # First, so that trackers which only track what is in their index take the announce.
        self._publish(item.nar_hash, trackers)
        self._seed(offer, nar.torrent)
        log.info(
            "seeding %s: %s, of a NAR of %s",
            item.store_path,
            format_size(meta.length),
            format_size(item.nar_size),
        )

    def _before(self, item: Item) -> Nar | None:
        with suppress(NotFoundError):
            return self._state.get(item.nar_hash)
        return None

    def _keep(self, nar: Nar, *, adopted: bool) -> Offer:
        now = self._clock()
        self._state.add(nar, self._trackers, now, adopted=adopted)
        self._state.requested(nar.nar_hash, now)
        return Offer(nar.nar_hash, nar.store_path, nar.payload, nar.length, nar.infohash)

    def adopt(self, nar: Nar) -> None:
        """Offer a payload that was fetched and is in its place by now.

        It stays though no item has this NAR yet: whoever fetched it is about to make one of it.

        Args:
            nar: with the narinfo that vouches for it.
        """
        offer = self._keep(nar, adopted=True)
        self._publish(nar.nar_hash, ())
        self._seed(offer, nar.torrent)
        log.info("seeding %s, which was fetched", nar.store_path)

    def withdraw(self, nar_hash: bytes, infohash: str) -> None:
        """Offer a torrent no more, if it is offered: its payload isn't the NAR."""
        offer = self._offered.get(nar_hash)
        if offer is not None and offer.infohash == infohash:
            log.warning("%s: its payload was another NAR", offer.store_path)
            self._drop(offer)

    def _seed(self, offer: Offer, torrent: bytes) -> None:
        with self._lock:
            self._swarm.seed(torrent, self._state.payloads / offer.payload, self._trackers)
            self._offered[offer.nar_hash] = offer

    def _unreadable(self, item: Item, error: NarswarmError) -> None:
        """An item can't be read: it was deleted just now, or there is something wrong with it."""
        try:
            if self._gone(item):
                log.info("%s was deleted before its payload was made", item.store_path)
                return
        except NarswarmError:
            pass  # the daemon is busy with its database; the next look finds out
        log.warning("%s", error)
        self._state.items.missed([item], UNREADABLE, RETRY)

    # What goes

    def _make_room(self, needed: int) -> None:
        """Remove payloads until there is room, if that is possible at all."""
        sending = {status.infohash for status in self._swarm.status() if status.upload_rate}
        with self._lock:
            busy = {offer.nar_hash for offer in self._offered.values() if offer.infohash in sending}
            now = self._clock()
            for nar_hash in eviction.choose(self._state.payload_list(), needed, now, busy) or ():
                offer = self._offered.pop(nar_hash, None)
                if offer is not None:
                    log.info("making room: %s", offer.store_path)
                    self._remove(offer)
                self._state.evict(nar_hash)

    def check(self) -> None:
        """Take payloads out that turned out to be damaged; they can be made again."""
        offers = {offer.infohash: offer for offer in list(self._offered.values())}
        for status in self._swarm.status():
            offer = offers.get(status.infohash)
            if offer is None or status.state == "seeding":
                continue
            reason = f": {status.error}" if status.error else ""
            log.warning("%s: its payload is damaged%s", offer.store_path, reason)
            self._take_out(offer)
            self._state.evict(offer.nar_hash)

    def count(self) -> bool:
        """Note how much was sent of each payload, and how many others have it.

        Returns:
            Whether something is no longer offered, since it was sent often enough.
        """
        offers = {offer.infohash: offer for offer in list(self._offered.values())}
        amounts: list[tuple[bytes, int, int]] = []
        for status in self._swarm.status():
            offer = offers.get(status.infohash)
            if offer is None:
                continue
            sent = status.uploaded - self._sent.get(status.infohash, 0)
            if sent > 0:
                self._sent[status.infohash] = status.uploaded
                amounts.append((offer.nar_hash, sent, max(-1, status.complete - 1)))
        if amounts:
            self._state.sent(amounts, self._clock())
        return bool(self._ratio) and self._retire({nar_hash for nar_hash, _, _ in amounts})

    def _retire(self, nar_hashes: Collection[bytes]) -> bool:
        """Offer no more what was sent often enough."""
        retired = False
        for payload in self._state.payload_list():
            if (
                payload.nar_hash in nar_hashes
                and payload.uploaded >= self._ratio * payload.length
                and (known := self._state.items.of(payload.nar_hash)) is not None
            ):
                self._state.items.mark([known.item.store_path], RATIO_REACHED)
                retired = True
        return retired

    def _drop(self, offer: Offer) -> None:
        self._take_out(offer)
        self._state.drop(offer.nar_hash)

    def _take_out(self, offer: Offer) -> None:
        with self._lock:
            if self._offered.pop(offer.nar_hash, None) is not None:
                self._remove(offer)

    def _remove(self, offer: Offer) -> None:
        with suppress(NotFoundError):
            self._swarm.remove(offer.infohash)
        self._sent.pop(offer.infohash, None)
        self._skip.clear()
