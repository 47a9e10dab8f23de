# SPDX-License-Identifier: GPL-3.0-or-later
"""Which items the gateway has: those with an authorised narinfo, and how it describes them.

The part that is signed, and the signature, pass through as they were made upstream, so that
clients judge for themselves. What isn't signed says where to fetch, which is here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from narswarm import narinfo, storepath
from narswarm.errors import InvalidInputError, NarswarmError, NetworkError
from narswarm.narinfo import Narinfo, Source
from narswarm.narinfocache import NarinfoCache
from narswarm.narinfos import BREAK, MISS_TTL, TTL
from substituter.context import Context
from substituter.gatewaysources import known_length
from substituter.preference import by_preference
from substituter.race import Policy

MAX_NAMES: Final = 100_000
"""Store paths that are remembered by their hash parts."""

LEARN_AGAIN: Final = 600.0
"""Seconds in which trackers aren't asked again for the torrents of an item."""

_TIMEOUT: Final = 10.0
_RATHER_NOT: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})


class Items:
    """What can be asked for.

    Args:
        context: the machine and the network.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._cache = NarinfoCache(context.settings.state / "narinfo")
        self._names: OrderedDict[str, str] = OrderedDict()
        self._learned: OrderedDict[bytes, float] = OrderedDict()
        self._down: dict[str, float] = {}
        self._lock = threading.Lock()

    def by_hash_part(self, hash_part: str) -> Narinfo | None:
        """The authorised narinfo of the item with this hash part, if it can be fetched.

        Raises:
            NetworkError: nobody could be asked.
            NarswarmError: the ACL is missing or malformed.
        """
        path = self._path(hash_part)
        if path is None:
            return None
        found = self.by_path(path)
        return found if found is not None and self._can_be_fetched(found) else None

    def prepare(self, hash_parts: Iterable[str]) -> None:
        """Ask for several items at once, so that each is at hand when it is its turn."""

        def ask(hash_part: str) -> None:
            with contextlib.suppress(NetworkError):  # told when it is its turn
                self._path(hash_part)

        list(self._context.executor.map(ask, dict.fromkeys(hash_parts)))

    def by_path(self, path: str) -> Narinfo | None:
        """The authorised narinfo of an item.

        Raises:
            NarswarmError: the ACL is missing or malformed.
        """
        self._context.reload_acl()
        return self._context.narinfos([path], _TIMEOUT).get(path)

    def render(self, found: Narinfo) -> bytes:
        """A narinfo for clients: its signed part and signature as they are, and our URLs."""
        name = quote(found.store_path.rpartition("/")[2], safe="+._-")
        sources = [
            Source(f"nar/zstd/{name}", "zstd", known_length(self._context, found)),
            Source(f"nar/{name}", "none", found.nar_size),
        ]
        return narinfo.with_sources(found.raw, sources)

    def learn(self, found: Narinfo) -> None:
        """Look its torrents up before its NAR is asked for; once in a while for each."""
        if not self._context.trackers:
            return
        now = time.monotonic()
        with self._lock:
            if now - self._learned.get(found.nar_hash, -LEARN_AGAIN) < LEARN_AGAIN:
                return
            self._learned[found.nar_hash] = now
            self._learned.move_to_end(found.nar_hash)
            while len(self._learned) > MAX_NAMES:
                self._learned.popitem(last=False)
        self._context.torrents.learn(found.nar_hash, found.nar_size, self._context.warn_once)

    def _path(self, hash_part: str) -> str | None:
        """The store path that some server names for a hash part; nobody is believed by that."""
        with self._lock:
            if hash_part in self._names:
                self._names.move_to_end(hash_part)
                return self._names[hash_part]
        path = next(self._named(hash_part), None)
        if path is not None:
            with self._lock:
                self._names[hash_part] = path
                while len(self._names) > MAX_NAMES:
                    self._names.popitem(last=False)
        return path

    def _named(self, hash_part: str) -> Iterator[str]:
        """What servers answer, who are asked for it a second time only if it isn't kept."""
        context, now = self._context, time.time()
        mirrors = [f"{base}/v1/narinfo" for base in context.trackers]
        answered = False
        for server in dict.fromkeys(url.rstrip("/") for url in (*context.options.urls, *mirrors)):
            kept = self._cache.get(server, hash_part, now)
            raw = kept.raw if kept else None
            if kept is None or not kept.fresh:
                if now < self._down.get(server, 0.0):
                    continue
                try:
                    url = f"{server}/{hash_part}.narinfo"
                    response = context.client.request(
                        "GET", url, max_bytes=narinfo.MAX_BYTES, timeout=_TIMEOUT
                    )
                except NetworkError as error:
                    self._down[server] = time.time() + BREAK
                    context.warn_once(f"{server}: {error.reason}")
                else:
                    answered = True
                    if response.status == HTTPStatus.OK:
                        raw = response.body
                        self._cache.put(server, hash_part, raw, now, TTL)
                    elif response.status in _RATHER_NOT:
                        raw = None
                        self._cache.put(server, hash_part, None, now, MISS_TTL)
            else:
                answered = True
            path = _store_path(raw, hash_part)
            if path is not None:
                yield path
        if not answered:
            raise NetworkError(hash_part, "no server answers")

    def _can_be_fetched(self, found: Narinfo) -> bool:
        """Whether anybody may have the NAR: trackers also mirror narinfos of what is gone."""
        policy = self._context.settings.policy
        if by_preference(found.sources) and policy != Policy.SWARM_ONLY:
            return True
        torrents, wait = self._context.torrents, self._context.settings.first_byte_timeout
        deserted = set()
        try:
            for each in torrents.ask(found.nar_hash, found.nar_size, wait, self._context.warn_once):
                if each.peers:
                    return True
                deserted.add(each.infohash)
        except NarswarmError:
            return False
        known = torrents.known(found.nar_hash, found.nar_size)
        return any(each.infohash not in deserted for each in known)


def _store_path(raw: bytes | None, hash_part: str) -> str | None:
    if raw is None:
        return None
    try:
        path = storepath.parse(narinfo.parse(raw).store_path)
    except InvalidInputError:
        return None
    return path.path if path.hash_part == hash_part else None
