# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking narinfos up on substitute servers.

Several servers may have an item, and each may be slow, down, or lie. An answer is a narinfo that
an authorised key signed for exactly the path in question; whatever else a server says is as if it
had said nothing. The servers have an order: a later one is asked when all before it have said no,
or when they take long, and of several answers the first in that order counts. The whole takes no
longer than it may: guix-daemon waits for it, and without any time-out of its own.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from narswarm import narinfo, storepath
from narswarm.errors import InvalidInputError, NetworkError
from narswarm.httpmessage import Validator
from narswarm.httpwire import UnreachableError
from narswarm.narinfo import Narinfo, Verdict
from narswarm.narinfocache import Cached, NarinfoCache
from narswarm.narinfosearch import BATCH, Search

if TYPE_CHECKING:
    from narswarm.acl import Acl
    from narswarm.httpclient import HttpClient, Response

__all__ = ["NarinfoCache", "NarinfoLookup"]

TTL: Final = 36 * 3600
"""Seconds that a narinfo is fresh if its server doesn't say; this and the next are Guix's."""

MISS_TTL: Final = 120
"""Seconds that a server isn't asked again for what it doesn't have."""

ERROR_TTL: Final = 60
"""Seconds that a server isn't asked again for an item of which it said nonsense."""

MAX_TTL: Final = 30 * 86400
MAX_MISS_TTL: Final = 3600

BREAK: Final = 10.0
"""Seconds that a server which can't be reached is left alone."""

MAX_FAILURES: Final = 3
"""Answers in a row that a server may break off until it is left alone, too."""

SILENCE: Final = 2.0
"""Seconds in which a server that is well answers at least one of several requests."""

HEDGE: Final = 0.3
"""Seconds until a server is asked although the one before it has not answered."""

MAX_REST: Final = 3600.0
"""Seconds that a server is left alone at most which asks for that."""

_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=([0-9]{1,9})(?![0-9])")
_MISSES = frozenset({202, 404, 410})
_BUSY = frozenset({429, 503})
_NOT_MODIFIED = 304


class OverloadedError(NetworkError):
    """A server asks to be left alone.

    Attributes:
        seconds: for how long.
    """

    def __init__(self, url: str, status: int, seconds: float) -> None:
        super().__init__(url, f"answered {status}: it has too much to do")
        self.seconds = seconds


class _Old(NamedTuple):
    """What is kept of a server of which the time is over, and counts still."""

    raw: bytes
    info: Narinfo
    validator: Validator


class Cache(Protocol):
    """Where answers are kept: a `narswarm.narinfocache.NarinfoCache`."""

    def get(self, server: str, hash_part: str, now: float) -> Cached | None:
        """Give what is kept."""

    def put(
        self,
        server: str,
        hash_part: str,
        raw: bytes | None,
        now: float,
        ttl: float,
        validator: Validator = ...,
    ) -> None:
        """Keep what a server said."""

    def prune_if_due(self, now: float) -> None:
        """Clean up now and then."""


class NarinfoLookup:
    """Finds authorised narinfos; one instance serves a whole process.

    Args:
        client: makes the requests.
        servers: URLs of substitute servers, best first.
        acl: whose signatures count.
        cache: where answers are kept, None for nowhere.
        clock: seconds since 1970.
        workers: number of requests that each server gets at a time.
        hedge: seconds until the next server is asked, too.
    """

    def __init__(
        self,
        client: HttpClient,
        servers: Sequence[str],
        acl: Acl,
        cache: Cache | None = None,
        clock: Callable[[], float] = time.time,
        workers: int = 16,
        hedge: float = HEDGE,
    ) -> None:
        self.servers = tuple(dict.fromkeys(server.rstrip("/") for server in servers))
        self.workers = workers
        self.hedge = hedge
        self._client = client
        self._acl = acl
        self._cache = cache
        self._clock = clock
        self._lock = threading.Lock()
        self._down: dict[str, tuple[float, float]] = {}
        self._failures: dict[str, int] = {}
        self._waiting: dict[str, float] = {}
        self._warned: set[str] = set()
        self._warnings: list[str] = []

    def find(
        self,
        paths: Iterable[str],
        timeout: float = 10.0,
        warn: Callable[[str], None] | None = None,
    ) -> dict[str, Narinfo]:
        """Look up several store paths at once.

        Args:
            paths: absolute paths. What isn't a store path is not found.
            timeout: seconds after which it returns what it has.
            warn: is given a line about each server that can't be reached, once.

        Returns:
            The authorised narinfos, by path, in the order of `paths`.

        Raises:
            GcryptMissingError: no libgcrypt here, so that no signature can be checked.
        """
        found: dict[str, Narinfo | None] = {}
        asked: list[tuple[str, int]] = []
        for path in dict.fromkeys(paths):
            if not _is_store_path(path):
                continue
            found[path], rank = self._from_cache(path)
            if found[path] is None and rank < len(self.servers):
                asked.append((path, rank))
        if asked:
            found |= Search(self, asked).run(timeout)
        if self._cache is not None:
            self._cache.prune_if_due(self._clock())
        with self._lock:
            warnings, self._warnings = self._warnings, []
        if warn is not None:
            for warning in warnings:
                warn(warning)
        return {path: answer for path, answer in found.items() if answer is not None}

    def find_one(
        self, path: str, timeout: float = 10.0, warn: Callable[[str], None] | None = None
    ) -> Narinfo | None:
        """Look up one store path; see `find`."""
        return self.find([path], timeout, warn).get(path)

    def find_all(
        self,
        paths: Iterable[str],
        timeout: float = 10.0,
        warn: Callable[[str], None] | None = None,
    ) -> dict[str, list[Narinfo]]:
        """What every server has for each path, for those who compare; see `find`.

        Servers that can't be asked are taken to say what they said before.

        Returns:
            The authorised narinfos by path, in the order of the servers.
        """
        wanted = [path for path in dict.fromkeys(paths) if _is_store_path(path)]
        said: list[dict[str, Narinfo | None]] = [{} for _ in self.servers]
        end = time.monotonic() + timeout
        threads = [
            threading.Thread(target=self._ask_all, args=(server, wanted, end, each), daemon=True)
            for server, each in zip(self.servers, said, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        found: dict[str, list[Narinfo]] = {}
        for path in wanted:
            for server, each in zip(self.servers, said, strict=True):
                answer = each[path] if path in each else self._stale_of(server, path)
                if answer is not None:
                    found.setdefault(path, []).append(answer)
        with self._lock:
            warnings, self._warnings = self._warnings, []
        if warn is not None:
            for warning in warnings:
                warn(warning)
        return found

    def _ask_all(
        self, server: str, paths: Sequence[str], end: float, said: dict[str, Narinfo | None]
    ) -> None:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            if self.is_down(server):
                return
            try:
                answers = self.ask_many(server, batch, end - time.monotonic())
                said.update(zip(batch, answers, strict=True))  # those before an error stay
                self.succeeded(server)
            except NetworkError as error:
                self.failed(server, error, in_time=time.monotonic() < end)
                return

    def ask(self, server: str, path: str, timeout: float) -> Narinfo | None:
        """Give what one server has for a path, from the cache if that is fresh.

        Raises:
            NetworkError: the server can't be asked.
        """
        return next(self.ask_many(server, [path], timeout))

    def ask_many(
        self, server: str, paths: Sequence[str], timeout: float
    ) -> Iterator[Narinfo | None]:
        """Give what one server has for each of some paths, asked by one connection.

        Of what was kept with what the server called its version, it only has to say that nothing
        has changed.

        Raises:
            OverloadedError: the server asks to be left alone.
            NetworkError: the server can't be asked; those that were given still count.
        """
        now = self._clock()
        known: dict[str, Narinfo | None] = {}
        old: dict[str, _Old] = {}
        for path in paths:
            cached = self._cache.get(server, _hash_part(path), now) if self._cache else None
            if cached is None or not (cached.fresh or any(cached.validator)):
                continue
            info = self._judge(cached.raw, server, path)
            if cached.fresh:
                known[path] = info
            elif cached.raw is not None and info is not None:
                # Only of what counts: else what was damaged here would stay so.
                old[path] = _Old(cached.raw, info, cached.validator)
        unknown = [path for path in paths if path not in known]
        responses: Iterator[Response] = iter(())
        if unknown:
            with self._lock:
                self._waiting.setdefault(server, now)
            urls = [f"{server}/{_hash_part(path)}.narinfo" for path in unknown]
            conditions = [
                old[path].validator.conditions() if path in old else {} for path in unknown
            ]
            responses = self._client.pipeline(
                urls,
                headers=conditions,
                max_bytes=narinfo.MAX_BYTES,
                timeout=max(timeout, 0.001),
            )
        for path in paths:
            if path in known:
                yield known[path]
            else:
                yield self._take(server, path, next(responses), now, old.get(path))

    def _take(
        self, server: str, path: str, response: Response, now: float, old: _Old | None
    ) -> Narinfo | None:
        """Keep an answer, and give it if it counts."""
        if response.status in _BUSY:
            raise OverloadedError(server, response.status, _rest(response))
        age = _MAX_AGE.search(response.headers.get("cache-control", "").lower())
        raw, ttl = None, float(ERROR_TTL)
        validator = Validator.of(response.headers)
        same = old if response.status == _NOT_MODIFIED else None
        if same is not None or (response.status == 200 and _names(response.body, path)):
            raw = response.body if same is None else same.raw
            ttl = min(int(age[1]), MAX_TTL) if age else TTL
        elif response.status in _MISSES:
            ttl = min(max(int(age[1]), MISS_TTL), MAX_MISS_TTL) if age else MISS_TTL
        if self._cache is not None:
            if same is not None and not any(validator):
                validator = same.validator
            self._cache.put(server, _hash_part(path), raw, now, ttl, validator)
        return self._judge(raw, server, path) if same is None else same.info

    def stale(self, path: str) -> Narinfo | None:
        """Give an authorised narinfo of which the time is over: a signature has no end."""
        for server in self.servers:
            answer = self._stale_of(server, path)
            if answer is not None:
                return answer
        return None

    def _stale_of(self, server: str, path: str) -> Narinfo | None:
        cached = self._cache and self._cache.get(server, _hash_part(path), self._clock())
        return self._judge(cached.raw, server, path) if cached else None

    def is_down(self, server: str) -> bool:
        """Whether a server is left alone for now, or has not answered anything for some time."""
        with self._lock:
            if self._is_silent(server):
                self._warn(server, "does not answer")
                return True
            until, seconds = self._down.get(server, (0.0, 0.0))
            return 0 < until - self._clock() <= seconds  # not if the clock was put back

    def succeeded(self, server: str) -> None:
        """Note that a server answered."""
        with self._lock:
            self._waiting.pop(server, None)
            self._failures.pop(server, None)

    def failed(self, server: str, error: NetworkError, *, in_time: bool) -> None:
        """Note that a server did not answer, and leave it alone if it won't.

        Args:
            server: its URL.
            error: what happened.
            in_time: whether the server had the time that it needs.
        """
        with self._lock:
            silent = self._is_silent(server)
            self._waiting.pop(server, None)
            if isinstance(error, OverloadedError):
                self._down[server] = (self._clock() + error.seconds, error.seconds)
                self._warn(server, error.reason)
                return
            if not in_time and not silent:
                return
            failures = self._failures[server] = self._failures.get(server, 0) + 1
            if silent or failures >= MAX_FAILURES or isinstance(error, UnreachableError):
                self._down[server] = (self._clock() + BREAK, BREAK)
                self._warn(server, error.reason)

    def _is_silent(self, server: str) -> bool:
        now = self._clock()
        return now - self._waiting.get(server, now) >= SILENCE

    def _warn(self, server: str, reason: str) -> None:
        if server not in self._warned:
            self._warned.add(server)
            self._warnings.append(f"{server}: {reason}")

    def _from_cache(self, path: str) -> tuple[Narinfo | None, int]:
        """Give a narinfo, or None and the number of the first server that has to be asked."""
        now = self._clock()
        for rank, server in enumerate(self.servers):
            cached = self._cache.get(server, _hash_part(path), now) if self._cache else None
            if cached is None or not cached.fresh:
                return None, rank
            answer = self._judge(cached.raw, server, path)
            if answer is not None:
                return answer, rank
        return None, len(self.servers)

    def _judge(self, raw: bytes | None, server: str, path: str) -> Narinfo | None:
        """Give a narinfo if it is about this path and an authorised key signed it."""
        if raw is None:
            return None
        try:
            parsed = narinfo.parse(raw, server)
        except InvalidInputError:
            return None
        if parsed.store_path != path or not _is_valid(parsed, self._acl):
            return None
        return parsed


def _rest(response: Response) -> float:
    """Seconds for which a server wants to be left alone."""
    text = response.headers.get("retry-after", "")
    seconds = float(text) if text.isascii() and text.isdigit() and len(text) < 9 else BREAK
    return min(max(seconds, BREAK), MAX_REST)


def _is_store_path(path: str) -> bool:
    try:
        return storepath.parse(path).path == path
    except InvalidInputError:
        return False


def _hash_part(path: str) -> str:
    start = len(storepath.STORE) + 1
    return path[start : start + storepath.HASH_LENGTH]


def _is_valid(parsed: Narinfo, acl: Acl) -> bool:
    return narinfo.verdict(parsed, acl) is Verdict.VALID_SIGNATURE


def _names(raw: bytes, path: str) -> bool:
    """Whether this is a narinfo of that path, signed by whomever."""
    try:
        return narinfo.parse(raw).store_path == path
    except InvalidInputError:
        return False
