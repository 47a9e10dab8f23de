# SPDX-License-Identifier: GPL-3.0-or-later
"""What the running tracker does for its operator: obey, reload, and keep what should last.

One thread does all of it, apart from the threads that answer. Signals and commands only wake it or
ask it; what they change is in files and in the database, so none of it is lost when the process is.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from queue import Empty, SimpleQueue
from typing import Any, Final

from narswarm.control import ControlServer
from narswarm.errors import NarswarmError
from tracker.aclfile import AclFile
from tracker.announcer import Announcer
from tracker.app import TrackerApp
from tracker.index import Index
from tracker.settings import Settings

ROUND_SECONDS = 30
"""How often numbers are written down: a kill loses no more than those of this time."""

CHANGEABLE: Final = frozenset(
    {
        "contact",
        "interval",
        "leecher_interval",
        "max_address_ports",
        "max_held_items",
        "max_holder_items",
        "max_holders",
        "max_numwant",
        "max_peers",
        "max_swarm_peers",
        "max_swarms",
        "metrics_from",
        "nar_servers",
        "numwant",
        "page",
        "publishers",
        "title",
        "trusted_proxies",
        "url",
    }
)
"""Settings that a reload changes; the others take a restart."""

MAX_ASKED = 10_000
"""Torrents that one request may ask for."""

_log = logging.getLogger(__name__)


class Admin:
    """Serves the operator of a running tracker.

    Args:
        settings: what it runs with.
        reload: reads the settings anew, from where they came from.
        index: the index.
        announcer: the swarms.
        acl_file: the access control list.
        app: the application.
    """

    def __init__(
        self,
        settings: Settings,
        reload: Callable[[], Settings],
        index: Index,
        announcer: Announcer,
        acl_file: AclFile,
        app: TrackerApp,
    ) -> None:
        self._settings = settings
        self._load = reload
        self._index = index
        self._announcer = announcer
        self._acl_file = acl_file
        self._app = app
        self._began = time.monotonic()
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._applying = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="admin", daemon=True)
        self._control: ControlServer | None = None

    def start(self) -> None:
        """Take up what was kept, and begin."""
        if not self._settings.open:
            self._announcer.restore_downloads(self._index.downloads())
        self._announcer.blocks = self._index.blocks
        operations = {"apply": self._apply, "counts": self._counts, "stats": self._stats}
        try:
            self._control = ControlServer(self._settings.data, operations)
        except OSError as error:
            _log.warning("control socket: %s; commands can't reach this tracker", error.strerror)
        self._thread.start()
        self._index.follow(self._catch_up)

    def request_reload(self) -> None:
        """Have settings, ACL and blocks read again soon. A signal handler may call this."""
        self._wake.put(True)

    def stop(self) -> None:
        """Answer no more commands but those who wait, and write down what should last."""
        self._app.close()
        if self._control is not None:
            self._control.close()
        self._wake.put(False)
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                going_on = self._wake.get(timeout=ROUND_SECONDS)
            except Empty:
                self.round()
            else:
                if not going_on:
                    self.keep()
                    return
                self.reload()

    def _catch_up(self) -> None:
        """Go by what another tracker or its operator wrote."""
        try:
            self.apply()
        except NarswarmError as error:
            _log.debug("what others wrote is read later: %s", error)

    def round(self) -> None:
        """Do what is done again and again: write numbers down, read what commands wrote."""
        try:
            self.apply()
        except NarswarmError as error:
            _log.warning("blocks could not be read: %s", error)
        self.keep()

    def keep(self) -> None:
        """Write down the numbers of downloads that changed."""
        if self._settings.open:
            return  # an open tracker forgets a swarm, and its number, with its last peer
        counts = self._announcer.take_downloads()
        if not counts:
            return
        try:
            self._index.keep_downloads(counts)
        except NarswarmError as error:
            self._announcer.give_back_downloads(counts)
            _log.warning("numbers of downloads could not be kept: %s", error)

    def apply(self) -> None:
        """Go by what commands wrote into the database.

        Raises:
            NarswarmError: it can't be read.
        """
        with self._applying:
            self._index.refresh()
            if self._announcer.blocks is self._index.blocks:
                return
            self._announcer.blocks = self._index.blocks
        if self._announcer.blocks.has_networks:
            self._announcer.expire(int(time.time()))

    def reload(self) -> None:
        """Read settings, ACL and blocks again, and say what became of it."""
        self._acl_file.refresh()
        self.round()
        try:
            loaded = self._load()
            frozen = {
                field.name: getattr(self._settings, field.name)
                for field in fields(Settings)
                if field.name not in CHANGEABLE
            }
            refused = [name for name, value in frozen.items() if getattr(loaded, name) != value]
            settings = replace(loaded, **frozen)
            policy = settings.policy()
            self._app.reconfigure(settings)
        except NarswarmError as error:
            _log.warning("settings stay as they are: %s", error)
            return
        self._announcer.reconfigure(policy, settings.limits())
        changed = [
            name
            for name in sorted(CHANGEABLE)
            if getattr(settings, name) != getattr(self._settings, name)
        ]
        self._settings = settings
        _log.info("reloaded; settings that changed: %s", ", ".join(changed) or "none")
        if refused:
            _log.warning("these take a restart: %s", ", ".join(refused))

    def _apply(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        self.apply()
        return {}

    def _counts(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Seeders, leechers and downloads of torrents, each given by its infohashes."""
        torrents = request["torrents"]
        if len(torrents) > MAX_ASKED:
            raise NarswarmError("torrents", f"are more than {MAX_ASKED}")
        return {"counts": [self._count(map(bytes.fromhex, torrent)) for torrent in torrents]}

    def _count(self, info_hashes: Iterable[bytes]) -> list[int]:
        counts, _ = self._announcer.sample(list(info_hashes), 0)
        return [counts.complete, counts.incomplete, counts.downloaded]

    def _stats(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        swarms = self._announcer.totals()._asdict()
        requests = self._announcer.metrics.requests.values()
        return {
            "pid": os.getpid(),
            "uptime_seconds": int(time.monotonic() - self._began),
            "open": self._settings.open,
            "engine": self._announcer.metrics.engine,
            **swarms,
            **self._app.bulk.totals()._asdict(),
            "index": self._index.totals()._asdict(),
            "requests": [
                {**key._asdict(), "count": count} for key, count in sorted(requests.items())
            ],
        }
