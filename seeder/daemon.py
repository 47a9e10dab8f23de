# SPDX-License-Identifier: GPL-3.0-or-later
"""The long-running process: puts the parts together, runs their jobs, and ends.

It may be killed at any moment: what has to survive is in `seeder.state`, whose order of writing
allows that. Ending in an orderly way only adds that trackers are told and that the DHT's nodes
are kept.
"""

from __future__ import annotations

import logging
import resource
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from apscheduler.schedulers.background import BackgroundScheduler

from narswarm.control import NAME
from narswarm.errors import BusyError, InvalidInputError, NarswarmError
from narswarm.files import write_atomically
from narswarm.httpclient import HttpClient
from narswarm.sdnotify import Notifier
from narswarm.swarm import Swarm
from narswarm.swarm_settings import split_address
from narswarm.trackerclient import LONGEST_WAIT
from seeder.aclfile import AclFile
from seeder.control import listening
from seeder.desk import Desk
from seeder.dht_announces import INTERVAL as DHT_INTERVAL
from seeder.fetching_control import FetchControl, Permissions
from seeder.operator import OperatorControl
from seeder.parts import REQUEST_TIMEOUT, Parts
from seeder.schedule import Moment, Rates, rates_at
from seeder.settings import Settings
from seeder.state import DATABASE, State

if TYPE_CHECKING:
    from seeder.web_page import Pages

log = logging.getLogger(__name__)

PATIENCE = 4.0
"""Seconds that jobs get to stop; nothing is lost if they don't."""

PUBLISH_INTERVAL = 15.0
WATCH_INTERVAL = 15.0
PRESENCE_INTERVAL = 60.0
MIRROR_INTERVAL = 10.0
COUNT_INTERVAL = 60.0
SCHEDULE_INTERVAL = 30.0
CLOCK_INTERVAL = 10.0
CLOCK_JUMP = 30.0
"""Seconds by which the clock may differ from what passed."""

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
        self._running = 0
        self._idle = threading.Condition()
        self._troubles: dict[str, str] = {}
        self._rates = Rates(settings.upload_rate, settings.download_rate)
        self._notifier = Notifier.of_process()
        self._begun = threading.Event()

    def reload(self) -> None:
        """Look at the ACL, and ask trackers again that refused something; a signal handler may."""
        if self._begun.is_set():
            threading.Thread(target=self._job, args=("reload", self._retry), daemon=True).start()

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
            acl_file = AclFile(settings.acl)
            state = stack.enter_context(State(settings.state))
            state.track(tracker.announce for tracker in settings.tracker_list())
            swarm = stack.enter_context(Swarm(settings.swarm(self._dht_state())))
            client = stack.enter_context(HttpClient())
            patient = stack.enter_context(HttpClient(timeout=LONGEST_WAIT + REQUEST_TIMEOUT))
            parts = Parts(settings, self._stop, acl_file, state, swarm, client, patient)
            self._parts = parts
            self._desk = Desk(parts, self._troubles)
            stack.callback(parts.mirror.close)
            if not settings.leech_only:
                parts.restore()
            stack.callback(parts.torrents.close)
            stack.callback(parts.fetcher.close)
            fetches = FetchControl(parts.fetcher)
            self._operator = OperatorControl(state, self._desk, parts)
            self._operator.apply()
            stack.enter_context(
                listening(
                    (settings.state / NAME, settings.socket),
                    {
                        "status": self._answer_status,
                        **fetches.operations,
                        **self._operator.operations,
                        "mirror": self._change_mirror,
                    },
                    fetches.streams | self._operator.streams,
                    Permissions(settings.control_users),
                )
            )
            self._serve(stack)
            items = state.items.held() or len(parts.offering)
            scheduler = self._scheduler = self._schedule()
            if not settings.leech_only:
                parts.workshop.start()
                parts.trackers.start()
            ready(items, parts.port)
            self._begun.set()
            self._notifier.ready(f"{items} items, port {parts.port}")
            self._wait(scheduler)
            self._notifier.stopping()
            scheduler.shutdown(wait=False)
            parts.trackers.wake()
            ended = parts.workshop.stop(PATIENCE / 2)
            ended &= parts.trackers.join(PATIENCE / 2)
            with self._idle:
                ended &= self._idle.wait_for(lambda: not self._running, PATIENCE)
            self._count()
            self._save_dht()
        return ended

    def _serve(self, stack: ExitStack) -> None:
        """Show the page; a seeder without one seeds all the same."""
        self._pages: Pages | None = None
        if not self._settings.web:
            return
        # Not at the top: whoever wants no page needs no Flask.
        from seeder.metrics import exposition  # noqa: PLC0415
        from seeder.web import WebServer, create_app  # noqa: PLC0415
        from seeder.web_page import Pages  # noqa: PLC0415

        parts, status = self._parts, self._desk.status
        self._pages = Pages(
            parts.state, parts.swarm, status, self._operator.some, parts.fetcher.views
        )
        host, _ = split_address(self._settings.web)
        app = create_app(self._pages.page, exposition(status), [host])
        try:
            server = WebServer(app, self._settings.web)
        except BusyError as error:
            log.warning("%s", error)
            return
        stack.callback(server.close)
        log.info("page: http://%s/", self._settings.web)

    def _wait(self, scheduler: BackgroundScheduler) -> None:
        """Wait for the end; show signs of life, and run jobs in time though the clock is put."""
        offset = time.time() - time.monotonic()
        interval = self._notifier.interval
        while not self._stop.wait(CLOCK_INTERVAL if interval is None else interval):
            if interval is not None:
                self._live()
            drift = time.time() - time.monotonic() - offset
            if abs(drift) > CLOCK_JUMP:
                log.info("the clock was put by %d seconds", drift)
                offset += drift
                for job in scheduler.get_jobs():
                    job.modify(next_run_time=datetime.now(UTC))

    def _live(self) -> None:
        """Give systemd a sign of life if the session gives one; else it starts another seeder."""
        with suppress(NarswarmError):
            peers = self._parts.swarm.counters()["peers"]
            self._notifier.alive()
            self._notifier.status(f"{self._parts.state.items.held()} items, {peers} peers")

    # Jobs

    def _schedule(self) -> BackgroundScheduler:
        scheduler = BackgroundScheduler(
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        now = datetime.now(UTC)
        parts, settings = self._parts, self._settings
        jobs: list[tuple[str, Callable[[], None], float, float]] = [
            ("count", self._count, COUNT_INTERVAL, COUNT_INTERVAL),
            ("expiry", self._expire, settings.expiry_interval, 60.0),
        ]
        if settings.schedule:
            jobs.append(("schedule", self._apply_schedule, SCHEDULE_INTERVAL, 0.0))
        if not settings.leech_only:
            jobs += [
                ("scan", self._scan, settings.scan_interval, 0.0),
                ("acl", parts.look_at_acl, settings.scan_interval, 0.0),
                ("publish", self._publish, PUBLISH_INTERVAL, 0.0),
                ("reannounce", self._watch, WATCH_INTERVAL, WATCH_INTERVAL),
                ("mirror", parts.mirror.run, MIRROR_INTERVAL, 0.0),
                ("presence", self._ask_trackers, PRESENCE_INTERVAL, PRESENCE_INTERVAL),
            ]
            if settings.dht and not settings.lan_only:
                jobs.append(("dht", parts.dht_announcer.run, DHT_INTERVAL, 0.0))
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
        if self._troubles.get(name) != message:
            log.warning("%s: %s", name, message)
        self._troubles[name] = message

    def _scan(self) -> None:
        self._parts.scanner.scan()
        self._parts.workshop.poke()

    def _retry(self) -> None:
        if self._settings.leech_only:
            return
        log.info("trackers that refused something are asked again")
        self._parts.retry()
        for name in ("publish", "acl", "mirror"):
            self._scheduler.modify_job(name, next_run_time=datetime.now(UTC))

    def _publish(self) -> None:
        self._parts.publisher.run()
        self._parts.mirror_publisher.run()

    def _ask_trackers(self) -> None:
        for presence in self._parts.presences:
            presence.run()

    def _watch(self) -> None:
        self._parts.offering.check()
        self._parts.mirror.seeds.check()
        self._operator.apply()
        self._parts.reannouncer.run()

    def _expire(self) -> None:
        self._save_dht()
        self._parts.torrents.prune_if_due(time.time())
        self._parts.partial.expire()
        if not self._settings.leech_only:
            self._parts.scanner.look(thoroughly=True)
            self._parts.offering.reconcile()

    def _count(self) -> None:
        parts = self._parts
        counters = parts.swarm.counters()
        parts.state.totals.count(counters["uploaded"], counters["downloaded"], time.time())
        parts.mirror.seeds.count()
        if parts.offering.count():
            parts.scanner.sync()
        if self._pages is not None:
            self._pages.note()

    def _apply_schedule(self) -> None:
        local = time.localtime()
        settings = self._settings
        rates = rates_at(
            settings.rules_of_rates(),
            Moment(local.tm_wday, local.tm_hour * 60 + local.tm_min),
            Rates(settings.upload_rate, settings.download_rate),
        )
        if rates != self._rates:
            self._parts.swarm.limit_rates(*rates)
            self._rates = rates

    def _change_mirror(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._settings.leech_only:
            raise InvalidInputError("mirror", "is nothing for a seeder with leech_only")
        return self._parts.mirror.change(request)

    # The DHT's nodes

    def _dht_state(self) -> bytes:
        with suppress(OSError):
            return (self._settings.state / "dht.state").read_bytes()
        return b""

    def _save_dht(self) -> None:
        if self._settings.dht:
            with suppress(OSError, NarswarmError):
                write_atomically(self._settings.state / "dht.state", self._parts.swarm.dht_state())

    # What people see

    def _answer_status(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._desk.status()
        except sqlite3.Error as error:
            raise InvalidInputError(self._settings.state / DATABASE, str(error)) from None


def raise_file_limit() -> None:
    """Allow as many open files as may be: a session takes as many peers as it has files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
