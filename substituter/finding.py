# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an item may come from: torrents that are known or that trackers name, and servers."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from narswarm.errors import NarswarmError
from narswarm.narinfo import Narinfo
from substituter.context import Context
from substituter.lane import NarSource
from substituter.preference import by_preference
from substituter.race import Policy, Way
from substituter.session import Session
from substituter.sources import HttpSource, Patience, SwarmSource

if TYPE_CHECKING:
    from narswarm.candidates import Candidate

NARINFO_TIMEOUT: Final = 30.0
"""Seconds in which servers say what they know of an item."""

MAX_QUICK: Final = 3
"""Torrents that are tried as long as servers may have the item: strangers may name many."""


class Finder:
    """Finds the sources of items.

    Args:
        context: the machine and the network.
        session: gives the swarm.
    """

    def __init__(self, context: Context, session: Session) -> None:
        self._context = context
        self._session = session

    @property
    def patience(self) -> Patience:
        """When to give up a swarm."""
        settings = self._context.settings
        return Patience(settings.first_byte_timeout, settings.stall_timeout, settings.patience)

    def ways(self, narinfo: Narinfo) -> frozenset[Way]:
        """The ways by which this process may fetch an item ahead.

        Where a seeder is on this machine, swarms are its business.
        """
        context, ways = self._context, set()
        if narinfo.sources and context.settings.policy != Policy.SWARM_ONLY:
            ways.add(Way.HTTP)
        if context.seeder is None and context.may_have_torrents(narinfo):
            ways.add(Way.SWARM)
        return frozenset(ways)

    def ahead(
        self, narinfo: Narinfo, way: Way, busy: Callable[[], bool] = bool
    ) -> Iterator[NarSource]:
        """The sources of an item that nobody waits for yet: a few, and nobody is hurried.

        Args:
            narinfo: of the item.
            way: which of them.
            busy: whether others come by this way, so that trackers may be slow to answer.
        """
        if way is Way.HTTP:
            sources = by_preference(narinfo.sources)
            return (HttpSource(self._context.client, each, narinfo.nar_size) for each in sources)
        timeout = self._context.settings.first_byte_timeout
        found = self.torrents(narinfo, timeout, threading.Event(), (), ahead=True, busy=busy)
        return itertools.islice(found, MAX_QUICK)

    def torrents(
        self,
        narinfo: Narinfo,
        timeout: float,
        dropped: threading.Event,
        refused: Container[str],
        *,
        ahead: bool = False,
        busy: Callable[[], bool] | None = None,
    ) -> Iterator[NarSource]:
        """The torrents of an item, those that are known before those that trackers name.

        Args:
            narinfo: of the item.
            timeout: seconds for the trackers.
            dropped: ends the search.
            refused: infohashes of those that were wrong.
            ahead: nobody waits for the item yet.
            busy: whether trackers may take longer.
        """
        tried: set[str] = set()
        context, settings = self._context, self._context.settings
        if context.trackers:
            self._session.start()
        torrents = context.torrents
        known = torrents.known(narinfo.nar_hash, narinfo.nar_size)
        asked = torrents.ask(
            narinfo.nar_hash,
            narinfo.nar_size,
            timeout,
            context.warn_once,
            dropped,
            patient=not ahead,
            busy=busy,
        )
        for candidate in itertools.chain(known, asked):
            if candidate.infohash in tried or candidate.infohash in refused:
                continue
            tried.add(candidate.infohash)
            try:
                swarm = self._session.swarm()
            except NarswarmError:
                return  # the session has said why; there are other ways
            yield SwarmSource(
                swarm,
                candidate,
                narinfo.nar_size,
                self._session.ahead if ahead else self._session.downloads,
                settings.trackers,
                self.patience,
                narinfo.store_path.rpartition("/")[2],
                self._web_seeds(narinfo, candidate),
                self._session.keep if ahead else None,
            )

    def servers(self, narinfo: Narinfo, refused: Iterable[str]) -> Iterator[NarSource]:
        """The URLs of an item, and then those that other servers have for the same NAR."""
        tried = set(refused)
        narinfos = itertools.chain(
            [narinfo], _lazily(lambda: self._context.equivalents(narinfo, NARINFO_TIMEOUT))
        )
        for each in narinfos:
            for source in by_preference(each.sources):
                if source.url not in tried:
                    tried.add(source.url)
                    yield HttpSource(self._context.client, source, narinfo.nar_size)

    def _web_seeds(self, narinfo: Narinfo, candidate: Candidate) -> list[str]:
        """Where the payload of a torrent is over HTTP, as far as this machine knows by itself."""
        settings = self._context.settings
        if not settings.web_seeds and candidate.kind != "server":
            return []
        from narswarm import webseeds  # noqa: PLC0415 -- few torrents have one

        found = [*webseeds.of_settings(settings.web_seeds, candidate.kind)]
        if candidate.kind == "server" and settings.policy != Policy.SWARM_ONLY:
            servers = self._context.options.urls
            found += webseeds.of_servers(narinfo.sources, servers, candidate.name, candidate.length)
        return found


def _lazily(make: Callable[[], Iterable[Narinfo]]) -> Iterator[Narinfo]:
    """The values of `make`, which isn't called before the first of them is wanted."""
    yield from make()
