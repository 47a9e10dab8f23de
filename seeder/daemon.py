# SPDX-License-Identifier: GPL-3.0-or-later
"""The long-running process: puts the parts together, runs their jobs, and ends.

It may be killed at any moment: what has to survive is in `seeder.state`, whose order of writing
allows that. Ending in an orderly way only adds that trackers are told and that the DHT's nodes
are kept.
"""

from __future__ import annotations

import base64
import logging
import random
import resource
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from apscheduler.schedulers.background import BackgroundScheduler

from narswarm.acl import Acl
from narswarm.candidates import Torrents
from narswarm.control import NAME
from narswarm.errors import (
    BusyError,
    CodecError,
    InvalidInputError,
    NarswarmError,
    NotFoundError,
)
from narswarm.files import write_atomically
from narswarm.httpclient import HttpClient
from narswarm.httpsig import PublisherKey
from narswarm.narinfos import NarinfoCache, NarinfoLookup
from narswarm.payload import check_codec
from narswarm.sdnotify import Notifier
from narswarm.swarm import Swarm
from narswarm.swarm_settings import split_address
from narswarm.trackerclient import TrackerIndex
from seeder.control import listening
from seeder.fetching import Fetcher
from seeder.fetching_adopt import Adopter
from seeder.fetching_control import FetchControl, Permissions
from seeder.fetching_store import FetchStore
from seeder.inventory import Inventory, NarDirectory, StoreInventory
from seeder.offering import Offering, fingerprint
from seeder.operator import OperatorControl
from seeder.payloads import PayloadMaker
from seeder.presence import Presence
from seeder.publish import Publisher
from seeder.reannounce import Reannouncer
from seeder.settings import Settings
from seeder.state import DATABASE, State
from seeder.vouchers import LocalVouchers, ServerVouchers, Vouchers

if TYPE_CHECKING:
    from seeder.web_page import Pages

log = logging.getLogger(__name__)

PATIENCE = 4.0
"""Seconds that jobs get to stop; nothing is lost if they don't."""

PUBLISH_INTERVAL = 15.0
WATCH_INTERVAL = 15.0
PRESENCE_INTERVAL = 60.0
REQUEST_TIMEOUT = 10.0
LOOKUPS = 16
"""Requests that a tracker's index gets at a time while items are fetched ahead."""

MAX_FILES = 65_536


class Seeder:
    """One seeder from start to end.

    Args:
        settings: checked ones.
        stop: set by whoever wants it to end.
    """

    def __init__(self, settings: Settings, stop: threading.Event) -> None:
        self._settings = settings
        self._stop = stop
        self._started = time.time()
        self._running = 0
        self._idle = threading.Condition()
        self._codec = ""
        self._troubles: dict[str, str] = {}
        self._notifier = Notifier.of_process()

    def run(self, ready: Callable[[int, int], None]) -> bool:
        """Seed until STOP is set.

        Args:
            ready: told the number of items and the port when peers can connect.

        Returns:
            Whether all threads have ended. If not, they wait for somebody else's answer, and
            the process can end without them.

        Raises:
            BusyError: another seeder has this state directory, or another process a port.
            InvalidInputError: its database is damaged.
            NarswarmError: something that has to be there isn't.
        """
        try:
            return self._run(ready)
        except sqlite3.Error as error:
            raise InvalidInputError(self._settings.state / DATABASE, str(error)) from None

    def _run(self, ready: Callable[[int, int], None]) -> bool:
        settings = self._settings
        raise_file_limit()
        with ExitStack() as stack:
            acl_text = _read_acl(settings)
            acl = Acl.parse(acl_text, settings.acl)
            self._state = stack.enter_context(State(settings.state))
            self._state.track(tracker.announce for tracker in settings.tracker_list())
            self._key = PublisherKey.load_or_create(settings.state / "publisher.key")
            self._swarm = stack.enter_context(Swarm(settings.swarm(self._dht_state())))
            client = stack.enter_context(HttpClient())
            self._build(acl, client)
            self._port = self._swarm.listen_port
            self._offering.restore(acl, fingerprint(acl_text))
            stack.callback(self._torrents.close)
            stack.callback(self._fetcher.close)
            fetches = FetchControl(self._fetcher)
            self._operator.apply()
            stack.enter_context(
                listening(
                    (settings.state / NAME, settings.socket),
                    {
                        "status": self._answer_status,
                        **fetches.operations,
                        **self._operator.operations,
                    },
                    fetches.streams | self._operator.streams,
                    Permissions(settings.control_users),
                )
            )
            self._serve(stack)
            scheduler = self._schedule()
            ready(len(self._offering), self._port)
            self._notifier.ready(f"{len(self._offering)} items, port {self._port}")
            while not self._stop.wait(self._notifier.interval):
                self._live()
            self._notifier.stopping()
            scheduler.shutdown(wait=False)
            with self._idle:
                ended = self._idle.wait_for(lambda: not self._running, PATIENCE)
            self._save_dht()
        return ended

    def _build(self, acl: Acl, client: HttpClient) -> None:
        settings = self._settings
        trackers = settings.tracker_list()
        inventory: Inventory
        vouchers: Vouchers
        if settings.nars is not None:
            directory = NarDirectory(settings.nars)
            inventory, vouchers = directory, LocalVouchers(directory, acl)
        else:
            inventory = StoreInventory(settings.store_db, settings.store)
            cache = NarinfoCache(settings.state / "narinfos")
            vouchers = ServerVouchers(NarinfoLookup(client, settings.substitute_urls, acl, cache))
        maker: PayloadMaker | None = PayloadMaker(
            self._state.payloads,
            settings.max_disk,
            self._state.used,
            self._stop.is_set,
            settings.workers,
        )
        try:
            check_codec()
        except CodecError as error:
            self._codec = str(error)
            maker = None
            log.warning("%s; what is here already is seeded all the same", error)
        indexes = [
            (tracker.announce, TrackerIndex(client, tracker.base, timeout=REQUEST_TIMEOUT))
            for tracker in trackers
            if tracker.base is not None
        ]
        self._publisher = Publisher(
            self._state,
            self._key,
            indexes,
            clock=time.time,
            stopping=self._stop.is_set,
            published=self._announce,
            rng=random.Random(),  # noqa: S311  it spreads load
        )
        self._offering = Offering(
            state=self._state,
            inventory=inventory,
            vouchers=vouchers,
            maker=maker,
            swarm=self._swarm,
            trackers=[tracker.announce for tracker in trackers],
            publish=self._publisher.publish,
            clock=time.time,
            stopping=self._stop.is_set,
        )
        self._operator = OperatorControl(self._state, self._offering, self._swarm)
        self._torrents = Torrents(
            settings.state / "torrents", [index for _, index in indexes], workers=LOOKUPS
        )
        self._fetcher = Fetcher(
            swarm=self._swarm,
            torrents=self._torrents,
            store=FetchStore(settings.state / "fetching", settings.fetch_disk),
            finisher=Adopter(
                self._state,
                self._offering,
                vouchers,
                self._torrents.refuse,
                lambda: settings.max_disk - self._state.used(),
                self._stop.is_set,
            ),
            trackers=[tracker.announce for tracker in trackers],
            rate=settings.download_rate,
        )
        self._reannouncer = Reannouncer(self._swarm, self._offering.infohashes, self._stop.wait)
        self._presence = Presence(
            self._state, indexes, announce=self._reannouncer.announce_all, clock=time.time
        )

    def _serve(self, stack: ExitStack) -> None:
        """Show the page; a seeder without one seeds all the same."""
        self._pages: Pages | None = None
        if not self._settings.web:
            return
        # Not at the top: whoever wants no page needs no Flask.
        from seeder.metrics import exposition  # noqa: PLC0415
        from seeder.web import WebServer, create_app  # noqa: PLC0415
        from seeder.web_page import Pages  # noqa: PLC0415

        self._pages = Pages(
            self._state, self._swarm, self.status, self._operator.items, self._fetcher.views
        )
        host, _ = split_address(self._settings.web)
        app = create_app(self._pages.page, exposition(self.status), [host])
        try:
            server = WebServer(app, self._settings.web)
        except BusyError as error:
            log.warning("%s", error)
            return
        stack.callback(server.close)
        log.info("page: http://%s/", self._settings.web)

    def _live(self) -> None:
        """Give systemd a sign of life if the session gives one; else it starts another seeder."""
        with suppress(NarswarmError):
            peers = self._swarm.counters()["peers"]
            self._notifier.alive()
            self._notifier.status(f"{len(self._offering)} items, {peers} peers")

    # Jobs

    def _schedule(self) -> BackgroundScheduler:
        scheduler = BackgroundScheduler(
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        now = datetime.now(UTC)
        jobs: list[tuple[str, Callable[[], None], float, float]] = [
            ("scan", self._offering.scan, self._settings.scan_interval, 0.0),
            ("publish", self._publisher.run, PUBLISH_INTERVAL, 0.0),
            ("reannounce", self._watch, WATCH_INTERVAL, WATCH_INTERVAL),
            ("presence", self._presence.run, PRESENCE_INTERVAL, PRESENCE_INTERVAL),
            ("expiry", self._expire, self._settings.expiry_interval, 60.0),
        ]
        for name, function, seconds, delay in jobs:
            scheduler.add_job(
                self._job,
                "interval",
                args=(name, function),
                id=name,
                seconds=seconds,
                next_run_time=now + timedelta(seconds=delay),
            )
        scheduler.start()
        return scheduler

    def _job(self, name: str, function: Callable[[], None]) -> None:
        """Run a job; what it can't do now it does the next time."""
        with self._idle:
            if self._stop.is_set():
                return
            self._running += 1
        try:
            function()
        except NarswarmError as error:
            self._trouble(name, str(error))
        except OSError as error:
            self._trouble(name, f"{error.filename or 'system'}: {error.strerror or error}")
        except sqlite3.Error as error:
            self._trouble(name, f"{self._settings.state / DATABASE}: {error}")
        else:
            self._troubles.pop(name, None)
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def _trouble(self, name: str, message: str) -> None:
        """Note why a job failed, until it works again."""
        self._troubles[name] = message
        log.warning("%s: %s", name, message)

    def _watch(self) -> None:
        self._offering.check()
        self._operator.apply()
        self._reannouncer.run()
        if self._pages is not None:
            self._pages.note()

    def _expire(self) -> None:
        self._save_dht()
        self._offering.expire()
        self._torrents.prune_if_due(time.time())

    def _announce(self, nar_hash: bytes) -> None:
        """A tracker knows a NAR by now; it may have refused the announce before."""
        infohash = self._offering.infohash(nar_hash)
        if infohash is not None:
            with suppress(NotFoundError):
                self._swarm.reannounce(infohash)

    # The DHT's nodes

    def _dht_state(self) -> bytes:
        with suppress(OSError):
            return (self._settings.state / "dht.state").read_bytes()
        return b""

    def _save_dht(self) -> None:
        if self._settings.dht:
            with suppress(OSError, NarswarmError):
                write_atomically(self._settings.state / "dht.state", self._swarm.dht_state())

    # What people see

    def _answer_status(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self.status()
        except sqlite3.Error as error:
            raise InvalidInputError(self._settings.state / DATABASE, str(error)) from None

    def status(self) -> dict[str, Any]:
        """How it is doing, as `seeder status --json` shows it."""
        counters = self._swarm.counters()
        announces = {status.url: status for status in self._swarm.trackers()}
        published = {status.tracker: status for status in self._state.publications()}
        trackers = []
        for tracker in self._settings.tracker_list():
            url = tracker.announce
            announce, publication = announces.get(url), published.get(url)
            trackers.append(
                {
                    "url": url,
                    "announces": announce.replies if announce else 0,
                    "announce_errors": announce.errors if announce else 0,
                    "announce_message": announce.message if announce else "",
                    "published": publication.published if publication else 0,
                    "pending": publication.pending if publication else 0,
                    "publish_message": publication.message if publication else "",
                }
            )
        return {
            "items": len(self._offering),
            "paused": self._operator.paused,
            "not_offered": self._state.misses(),
            "scan_message": self._troubles.get("scan", ""),
            "payload_bytes": self._state.used(),
            "max_disk": self._settings.max_disk,
            "full": self._offering.full,
            "codec": self._codec,
            "peers": counters["peers"],
            "incoming": counters["incoming"],
            "uploaded": counters["uploaded"],
            "downloaded": counters["downloaded"],
            "dht_nodes": counters["dht_nodes"],
            "fetching": sum(not view.over for _, view, _ in self._fetcher.views()),
            "planned": self._fetcher.planned,
            "listen_port": self._port,
            "publisher": base64.b64encode(self._key.public).decode(),
            "started": int(self._started),
            "trackers": trackers,
        }


def raise_file_limit() -> None:
    """Allow as many open files as may be: a session takes as many peers as it has files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _read_acl(settings: Settings) -> bytes:
    try:
        return settings.acl.read_bytes()
    except OSError as error:
        raise NotFoundError(settings.acl, error.strerror or str(error)) from None
