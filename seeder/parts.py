# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a seeder, and who tells whom."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Sequence

from narswarm.acl import Acl
from narswarm.candidates import Torrents
from narswarm.errors import CodecError, NotFoundError
from narswarm.httpclient import HttpClient
from narswarm.narinfos import NarinfoCache, NarinfoLookup
from narswarm.payload import check_codec
from narswarm.swarm import Swarm
from narswarm.swarm_events import TorrentStatus
from narswarm.trackerclient import TrackerIndex
from seeder.aclfile import AclFile
from seeder.credentials import publisher_key
from seeder.dht_announces import DhtAnnouncer
from seeder.fetching import Fetcher
from seeder.fetching_adopt import Adopter
from seeder.fetching_store import FetchStore
from seeder.holdings import Correspondence, Listener, Teller
from seeder.inventory import Inventory, NarDirectory, StoreInventory
from seeder.items import Scope
from seeder.mirror import Mirror
from seeder.mirror_files import Downloader
from seeder.mirror_seeds import MirrorSeeds
from seeder.mirror_table import MirrorTable
from seeder.offering import Offering
from seeder.payloads import PayloadMaker
from seeder.presence import Presence
from seeder.publish import Publisher
from seeder.reannounce import Reannouncer
from seeder.rules import Rules
from seeder.scan import Scanner
from seeder.settings import Settings
from seeder.state import State
from seeder.vouchers import Disagreements, LocalVouchers, ServerVouchers, Vouchers
from seeder.workshop import Workshop

log = logging.getLogger(__name__)

REQUEST_TIMEOUT = 10.0
MIRROR_CONNECTIONS = 2
"""Connections by which a mirrored server is asked for narinfos."""

LOOKUPS = 32
"""Requests that a tracker's index gets at a time while items are fetched ahead; half may wait."""


class Parts:
    """Everything that a seeder consists of, connected.

    Args:
        settings: checked ones.
        stop: set when the seeder is to end.
        acl_file: whose signatures count.
        state: what is kept.
        swarm: the BitTorrent session.
        client: makes requests.
        patient: makes requests that wait for a minute.
    """

    def __init__(
        self,
        settings: Settings,
        stop: threading.Event,
        acl_file: AclFile,
        state: State,
        swarm: Swarm,
        client: HttpClient,
        patient: HttpClient,
    ) -> None:
        self.settings = settings
        self.acl_file = acl_file
        self.state = state
        self.swarm = swarm
        self.port = swarm.listen_port
        self.key = publisher_key(settings.state, os.environ)
        self._stop = stop
        self._client = client
        self._rng = random.Random()  # noqa: S311  it spreads load
        announces = [tracker.announce for tracker in settings.tracker_list()]
        indexes = self._indexes(client)
        inventory: Inventory = (
            StoreInventory(settings.store_db, settings.store)
            if settings.nars is None
            else NarDirectory(settings.nars)
        )
        self._inventory = inventory
        maker: PayloadMaker | None = PayloadMaker(state.payloads, stop.is_set, settings.workers)
        self.codec = ""
        try:
            check_codec()
        except CodecError as error:
            self.codec = str(error)
            maker = None
            log.warning("%s; what is here already is seeded all the same", error)
        self.publisher = Publisher(
            state,
            self.key,
            indexes,
            clock=time.time,
            stopping=stop.is_set,
            published=self._announce,
            rng=self._rng,
        )
        self._scope = Scope.ALL if maker else Scope.MADE
        self.rules = Rules(settings.include, settings.exclude, settings.min_size, settings.max_size)
        self.scanner = Scanner(
            items=state.items,
            inventory=inventory,
            vouchers=self._vouchers(acl_file.acl),
            rules=self.rules,
            scope=self._scope,
            changed=self._on_changed,
            stopping=stop.is_set,
            clock=time.monotonic,
        )
        self.offering = Offering(
            state=state,
            inventory=inventory,
            maker=maker,
            quota=settings.max_disk,
            premake=settings.premake_bytes,
            ratio=settings.ratio,
            swarm=swarm,
            trackers=announces,
            publish=self.publisher.publish,
            gone=self.scanner.gone,
            acl=acl_file.acl,
            clock=time.time,
            stopping=stop.is_set,
        )
        self.mirror, self.mirror_publisher = self._mirror(announces, indexes)
        self.workshop = Workshop(self.offering.make, self.offering.make_spare, time.monotonic)
        self.trackers = Correspondence(
            map(self._correspond, indexes, self._indexes(patient)),
            stop,
            lambda url, told: state.set_note(f"told {url}", str(told)),
        )
        self.torrents = Torrents(
            settings.state / "torrents", [index for _, index in indexes], workers=LOOKUPS
        )
        self.partial = FetchStore(settings.state / "fetching", settings.fetch_disk)
        self.fetcher = Fetcher(
            swarm=swarm,
            torrents=self.torrents,
            store=self.partial,
            finisher=Adopter(
                state,
                self.offering,
                self.scanner,
                self.torrents.refuse,
                lambda: 0 if settings.leech_only else settings.max_disk - state.used(),
                stop.is_set,
                None if settings.leech_only else self.mirror.seeds,
            ),
            trackers=announces,
            rate=settings.download_rate,
            web_seeds=settings.web_seeds,
        )
        self.reannouncer = Reannouncer(swarm, self._infohashes, stop.wait)
        self.dht_announcer = DhtAnnouncer(swarm, self._infohashes, time.monotonic)
        self.presences = [
            Presence(taken, indexes, announce=self.reannouncer.announce_all, clock=time.time)
            for taken in (state, self._mirror_table)
        ]

    def restore(self) -> None:
        """Seed what is kept, and judge what is known by the rules as they are now."""
        if self.state.note("acl") != self.acl_file.fingerprint:
            self.offering.rejudge(self.acl_file.acl)
            self.mirror.rejudge(self.acl_file.acl)
        self.offering.restore()
        self.mirror.seeds.restore()
        # What another key claims may count no more: this one claims it anew, at once.
        public = self.key.public.hex()
        if self.state.note("publisher") not in {None, public}:
            for tracker in self.settings.tracker_list():
                self.state.republish(tracker.announce)
                self._mirror_table.republish(tracker.announce)
        self.state.set_note("publisher", public)
        if self.state.note("rules") != self.rules.text:
            self.scanner.apply_rules()
            self.state.set_note("rules", self.rules.text)
        # Trackers may know this seeder's key by now that didn't when it ended.
        self.publisher.retry()
        self.mirror_publisher.retry()
        self.offering.reconcile()

    def retry(self) -> None:
        """Ask trackers again that are left alone, or refused something."""
        self.publisher.retry()
        self.mirror_publisher.retry()
        self.trackers.retry()
        self.mirror.poke()

    def status(self) -> list[TorrentStatus]:
        """All torrents of the session."""
        return self.swarm.status()

    def pause_seeding(self, *, paused: bool) -> None:
        """Offer nothing, or everything again; nothing is forgotten."""
        self.offering.paused = self.mirror.paused = paused
        self.scanner.hold(Scope.NONE if paused else self._scope)
        self.swarm.pause_seeding(paused=paused)
        self.workshop.poke()

    def look_at_acl(self) -> None:
        """Go by the ACL as it is now.

        Raises:
            NarswarmError: it can't be read; what it said last still holds.
        """
        if self.acl_file.changed():
            log.info("%s has changed", self.settings.acl)
            self.offering.rejudge(self.acl_file.acl)
            self.mirror.rejudge(self.acl_file.acl)
        fingerprint = self.acl_file.fingerprint
        if self.state.note("acl") != fingerprint:
            acl = self.acl_file.acl
            if self.scanner.rejudge(acl, self._vouchers(acl)):
                self.state.set_note("acl", fingerprint)

    def _vouchers(self, acl: Acl) -> Vouchers:
        if isinstance(self._inventory, NarDirectory):
            return LocalVouchers(self._inventory, acl)
        kept = Disagreements(NarinfoCache(self.settings.state / "narinfo"))
        lookup = NarinfoLookup(self._client, self.settings.substitute_urls, acl, kept)
        rate = self.settings.narinfo_rate
        return ServerVouchers(lookup, rate, self._stop.wait, time.monotonic, kept)

    def _mirror(
        self, announces: Sequence[str], indexes: Sequence[tuple[str, TrackerIndex]]
    ) -> tuple[Mirror, Publisher]:
        settings, stop = self.settings, self._stop
        directory = settings.state / "mirror"
        try:
            directory.mkdir(exist_ok=True)
        except OSError as error:
            raise NotFoundError(directory, error.strerror or str(error)) from None
        table = self._mirror_table = MirrorTable(directory, time.time)
        table.track(announces)
        cache = NarinfoCache(directory / "narinfo")
        publisher = Publisher(
            table,
            self.key,
            indexes,
            clock=time.time,
            stopping=stop.is_set,
            published=self._announce,
            rng=self._rng,
        )
        mirror = Mirror(
            table=table,
            seeds=MirrorSeeds(
                table=table,
                directory=directory,
                quota=settings.mirror_disk,
                swarm=self.swarm,
                trackers=announces,
                publish=publisher.publish,
                acl=self.acl_file.acl,
                clock=time.time,
            ),
            downloader=Downloader(
                self._client, directory, settings.mirror_rate, stop.wait, time.monotonic
            ),
            rules=settings.mirror_rules(),
            cache=settings.publish_cache,
            lookup=lambda server, acl: NarinfoLookup(
                self._client, [server], acl, cache, workers=MIRROR_CONNECTIONS
            ),
            acl=self.acl_file.acl,
            narinfo_rate=settings.narinfo_rate,
            pause=stop.wait,
            clock=time.monotonic,
        )
        return mirror, publisher

    def _infohashes(self) -> list[str]:
        return [*self.offering.infohashes(), *self.mirror.seeds.infohashes()]

    def _indexes(self, client: HttpClient) -> list[tuple[str, TrackerIndex]]:
        return [
            (tracker.announce, TrackerIndex(client, tracker.base, timeout=REQUEST_TIMEOUT))
            for tracker in self.settings.tracker_list()
            if tracker.base is not None
        ]

    def _correspond(
        self, quick: tuple[str, TrackerIndex], patient: tuple[str, TrackerIndex]
    ) -> tuple[Teller, Listener]:
        announce, index = quick
        teller = Teller(
            announce,
            index,
            self.key,
            self.state.items,
            port=self.port,
            told=int(self.state.note(f"told {announce}") or 0),
            clock=time.monotonic,
            wall_clock=time.time,
            rng=self._rng,
        )
        listener = Listener(
            teller,
            patient[1],
            self.key,
            self._want,
            clock=time.monotonic,
            wall_clock=time.time,
            rng=self._rng,
        )
        return teller, listener

    def _announce(self, nar_hash: bytes) -> None:
        """A tracker knows a NAR by now; it may have refused the announce before."""
        for infohash in (self.offering.infohash(nar_hash), self.mirror.seeds.infohash(nar_hash)):
            if infohash is not None:
                self.reannouncer.announce(infohash)

    def _on_changed(self) -> None:
        """Items came or went."""
        self.offering.reconcile()
        self.trackers.wake()
        self.workshop.poke()

    def _want(self, nar_hash: bytes, tracker: str) -> None:
        """Somebody asked a tracker for a NAR."""
        known = self.state.items.of(nar_hash)
        if known is not None:
            self.workshop.want(nar_hash, known.item.nar_size, [tracker])
