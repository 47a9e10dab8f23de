# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the gateway gets the payload of an item: bytes as they are on the way, still compressed.

The substituter wants the NAR; who fetches from the gateway wants bytes to be passed on. So this
gives payloads, one way after the other: the seeder of this machine, a swarm, a server.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Protocol

from narswarm import webseeds
from narswarm.candidates import Candidate
from narswarm.download import Progress, SwarmStalledError
from narswarm.errors import NetworkError
from narswarm.fetchclient import SeederClient, SourceChangedError, Wanted
from narswarm.narinfo import Narinfo, Source
from narswarm.payload import Kind
from substituter.context import Context
from substituter.nargate import exactly
from substituter.preference import by_preference
from substituter.race import Policy
from substituter.session import Session
from substituter.sources import Patience

MAX_TORRENTS: Final = 8
"""Torrents that are tried for one item: strangers may have named any number."""

_LOOK: Final = 0.2
_TIMEOUT: Final = 30.0


class Attempt(NamedTuple):
    """A payload that begins to arrive.

    Attributes:
        compression: as narinfos call it, or `any`.
        length: bytes of the payload, None where nobody says.
        tag: tells these bytes from all others that could be the same NAR.
        infohash: of the torrent, "" where it is none.
        chunks: the bytes.
    """

    compression: str
    length: int | None
    tag: str
    infohash: str
    chunks: Iterator[bytes]


Attempts = Iterator[AbstractContextManager[Attempt]]


class Finder(Protocol):
    """What gives the attempts for an item: `Finding`, or what a test puts in its place."""

    def attempts(self, narinfo: Narinfo, is_wanted: Callable[[], bool]) -> Attempts:
        """One attempt after the other, as long as somebody asks for more."""

    def refuse(self, narinfo: Narinfo, infohash: str) -> None:
        """Never use a torrent again: its payload was another NAR."""


class Finding:
    """The ways of this machine.

    Args:
        context: the machine and the network.
        session: gives the swarm.
    """

    def __init__(self, context: Context, session: Session) -> None:
        self._context = context
        self._session = session

    def refuse(self, narinfo: Narinfo, infohash: str) -> None:
        """Never use a torrent again, here or in the seeder."""
        self._context.refuse(narinfo.nar_hash, infohash)

    def attempts(self, narinfo: Narinfo, is_wanted: Callable[[], bool]) -> Attempts:
        """Swarms, then servers; in the other order, or without servers, where the policy says so.

        Args:
            narinfo: authorised.
            is_wanted: whether anybody still waits; if not, what is being tried is given up.
        """
        policy = self._context.settings.policy
        ways = [self._swarms(narinfo, is_wanted), self._servers(narinfo)]
        if policy == Policy.SWARM_ONLY:
            ways.pop()
        elif policy == Policy.HTTP_FIRST:
            ways.reverse()
        return itertools.chain.from_iterable(ways)

    def _swarms(self, narinfo: Narinfo, is_wanted: Callable[[], bool]) -> Attempts:
        context, settings = self._context, self._context.settings
        alone = settings.policy == Policy.SWARM_ONLY or not narinfo.sources
        patience = Patience(settings.first_byte_timeout, settings.stall_timeout, settings.patience)
        begun = time.monotonic()

        def stall(progress: Progress) -> bool:
            elapsed = time.monotonic() - begun
            return not is_wanted() or patience.is_over(progress, elapsed, alone=alone)

        if context.seeder is not None:
            for _ in range(MAX_TORRENTS):
                changed = threading.Event()
                yield self._from_seeder(context.seeder, narinfo, stall, changed)
                if not changed.is_set():
                    break
                begun = time.monotonic()
        if not context.may_have_torrents(narinfo):
            return
        torrents = context.torrents
        wait = settings.patience if alone else settings.first_byte_timeout
        known = torrents.known(narinfo.nar_hash, narinfo.nar_size)
        asked = torrents.ask(narinfo.nar_hash, narinfo.nar_size, wait, context.warn_once)
        seen: set[str] = set()
        # A tracker's answer names peers, which matter more than to know the torrent.
        for candidate in itertools.chain(asked, known):
            if candidate.infohash not in seen and len(seen) < MAX_TORRENTS:
                seen.add(candidate.infohash)
                begun = time.monotonic()
                yield self._from_swarm(candidate, self._web_seeds(narinfo, candidate), stall)

    @contextlib.contextmanager
    def _from_seeder(
        self,
        client: SeederClient,
        narinfo: Narinfo,
        stall: Callable[[Progress], bool],
        changed: threading.Event,
    ) -> Iterator[Attempt]:
        wanted = Wanted(narinfo.nar_hash, narinfo.nar_size, narinfo.store_path)
        begun = time.monotonic()
        with client.fetch(wanted) as fetching:
            while True:
                try:
                    source = fetching.source(_LOOK)
                    break
                except SwarmStalledError:
                    if stall(Progress(0, 0, 0, 0, time.monotonic() - begun, 0)):
                        raise
            yield Attempt(
                source.kind.compression,
                source.length,
                source.infohash,
                source.infohash,
                _noting(changed, fetching.chunks(stall=stall)),
            )

    @contextlib.contextmanager
    def _from_swarm(
        self, candidate: Candidate, web_seeds: list[str], stall: Callable[[Progress], bool]
    ) -> Iterator[Attempt]:
        download = self._session.swarm().fetch(
            candidate.torrent,
            self._session.downloads,
            trackers=self._context.settings.trackers,
            peers=candidate.peers,
            web_seeds=web_seeds,
        )
        try:
            yield Attempt(
                candidate.kind.compression,
                candidate.length,
                candidate.infohash,
                candidate.infohash,
                download.chunks(stall=stall),
            )
        finally:
            with contextlib.suppress(OSError):
                download.cancel(keep=False)

    def _web_seeds(self, narinfo: Narinfo, candidate: Candidate) -> list[str]:
        """Where the payload is over HTTP, as far as this machine knows by itself.

        A server's own file as a web seed is a way to that server, which the policy may bar.
        """
        settings = self._context.settings
        found = [*webseeds.of_settings(settings.web_seeds, candidate.kind)]
        if candidate.kind is Kind.SERVER and settings.policy != Policy.SWARM_ONLY:
            urls = self._context.options.urls
            found += webseeds.of_servers(narinfo.sources, urls, candidate.name, candidate.length)
        return found

    def _servers(self, narinfo: Narinfo) -> Attempts:
        tried: set[str] = set()
        for each in self._narinfos(narinfo):
            for source in by_preference(each.sources):
                if source.url not in tried:
                    tried.add(source.url)
                    yield self._from_server(source, narinfo)

    def _narinfos(self, narinfo: Narinfo) -> Iterator[Narinfo]:
        yield narinfo
        yield from self._context.equivalents(narinfo, _TIMEOUT)  # asked when the first has failed

    @contextlib.contextmanager
    def _from_server(self, source: Source, narinfo: Narinfo) -> Iterator[Attempt]:
        with self._context.client.stream(source.url, keep=True) as response:
            if response.status != 200:
                raise NetworkError(source.url, f"the server answered {response.status}")
            plain = source.compression == "none"
            chunks = exactly(response, narinfo.nar_size) if plain else iter(response)
            yield Attempt(source.compression, response.length, source.url, "", chunks)


def known_length(context: Context, narinfo: Narinfo) -> int | None:
    """Bytes of the payload that the swarm would give, as far as this machine knows it already."""
    known = context.torrents.known(narinfo.nar_hash, narinfo.nar_size)
    return next((each.length for each in known if each.kind is Kind.ZSTD), None)


def _noting(changed: threading.Event, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Note that the seeder begins anew with another torrent: it is worth asking again."""
    try:
        yield from chunks
    except SourceChangedError:
        changed.set()
        raise
