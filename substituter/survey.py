# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks everybody about many store items at once: what each server says, and what swarms there are.

guix-daemon's helpers want one good answer soon. People who ask what the weather is, or whom to
believe, want all of them, also those that don't count, and of now: nothing is taken from a cache.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import quote

from narswarm import base32, narinfo, storepath, webseeds
from narswarm.acl import Acl
from narswarm.errors import InvalidInputError, NarswarmError, NetworkError
from narswarm.httpclient import HttpClient, Response
from narswarm.narinfo import Narinfo, Verdict
from narswarm.trackeranswers import IndexEntry, parse_entry
from narswarm.trackerclient import MAX_ANSWER

BATCH: Final = 32
"""Items that one connection is asked for at a time."""

CONNECTIONS: Final = 4
"""Connections to each server."""

_FOUND: Final = frozenset({200, 202})


class Said(NamedTuple):
    """What one server says of an item.

    Attributes:
        source: its URL; of a tracker, where it is announced to.
        is_mirror: whether it is a tracker, which repeats what others have signed.
        narinfo: the answer.
        verdict: what its signature is worth.
    """

    source: str
    is_mirror: bool
    narinfo: Narinfo
    verdict: Verdict

    @property
    def is_authorised(self) -> bool:
        """Whether it counts."""
        return self.verdict is Verdict.VALID_SIGNATURE


class Swarm(NamedTuple):
    """What trackers know of a NAR.

    Attributes:
        seeds: peers that have all of the best torrent.
        peers: those that don't.
        holders: seeders that could make a torrent.
        length: bytes of the payload, None where there is no torrent yet.
        web_seeds: directories of the settings that have the payload.
    """

    seeds: int
    peers: int
    holders: int
    length: int | None
    web_seeds: int = 0

    @property
    def can_serve(self) -> bool:
        """Whether anybody there has the item."""
        return bool(self.seeds or self.holders or self.web_seeds)


NOBODY: Final = Swarm(0, 0, 0, None)


class Survey:
    """Asks substitute servers and trackers.

    Args:
        client: makes the requests.
        servers: URLs of substitute servers.
        trackers: base URLs of trackers.
        acl: whose signatures count.
        timeout: seconds for all narinfos, again for all swarms, and again for all web seeds.
        web_seeds: URLs of directories with payloads.
    """

    def __init__(
        self,
        client: HttpClient,
        servers: Sequence[str],
        trackers: Sequence[str],
        acl: Acl,
        timeout: float = 30.0,
        web_seeds: Sequence[str] = (),
    ) -> None:
        self.servers = tuple(dict.fromkeys(server.rstrip("/") for server in servers))
        self.trackers = tuple(dict.fromkeys(trackers))
        self.silent: dict[str, str] = {}
        """Who gave no proper answer, and why."""
        self.heard: set[str] = set()
        """Who gave one."""
        self._web_seeds = tuple(dict.fromkeys(web_seeds))
        self._client = client
        self._acl = acl
        self._timeout = timeout

    def narinfos(self, paths: Iterable[str]) -> dict[str, list[Said]]:
        """Ask about store paths.

        Returns:
            What was said, by path, in the order of the servers, trackers last.

        Raises:
            GcryptMissingError: no libgcrypt here, so that no signature can be checked.
        """
        wanted = list(dict.fromkeys(paths))
        names = [f"{storepath.parse(path).hash_part}.narinfo" for path in wanted]
        asked = {server: [f"{server}/{name}" for name in names] for server in self.servers}
        asked |= {
            f"{base}/announce": [f"{base}/v1/narinfo/{name}" for name in names]
            for base in self.trackers
        }
        said: dict[str, list[Said]] = {path: [] for path in wanted}
        for source, answers in self._ask(asked, narinfo.MAX_BYTES).items():
            for path, response in zip(wanted, answers, strict=True):
                each = self._judge(source, path, response)
                if each is not None:
                    said[path].append(each)
        return said

    def swarms(self, hashes: Iterable[bytes]) -> dict[bytes, Swarm]:
        """Ask the trackers' indexes about NARs; no torrent is made because of it."""
        wanted = list(dict.fromkeys(hashes))
        names = [base32.encode(each) for each in wanted]
        asked = {
            f"{base}/announce": [f"{base}/v1/nar/{name}" for name in names]
            for base in self.trackers
        }
        found = dict.fromkeys(wanted, NOBODY)
        names_of: dict[bytes, set[tuple[str, int]]] = {each: set() for each in wanted}
        for tracker, answers in self._ask(asked, MAX_ANSWER).items():
            for nar_hash, response in zip(wanted, answers, strict=True):
                if response is None or response.status not in _FOUND:
                    continue
                try:
                    entry = parse_entry(response.body, nar_hash, response.url)
                except NetworkError as error:
                    self.silent[tracker] = error.reason
                    continue
                found[nar_hash] = _more(found[nar_hash], entry)
                names_of[nar_hash] |= {
                    (torrent.name, torrent.length)
                    for torrent in entry.torrents
                    if webseeds.of_settings(self._web_seeds, torrent.kind)
                }
        return self._with_web_seeds(found, names_of)

    def _with_web_seeds(
        self, found: dict[bytes, Swarm], names: Mapping[bytes, Iterable[tuple[str, int]]]
    ) -> dict[bytes, Swarm]:
        """Count those that have the payload of the best torrent."""
        payloads = {
            nar_hash: name
            for nar_hash, torrents in names.items()
            for name, length in torrents
            if length == found[nar_hash].length
        }
        asked = {
            directory: [f"{directory}{quote(name)}" for name in payloads.values()]
            for directory in self._web_seeds
        }
        for answers in self._ask(asked, 0, "HEAD").values():
            for nar_hash, response in zip(payloads, answers, strict=True):
                swarm = found[nar_hash]
                if response is not None and _has(response, swarm.length):
                    found[nar_hash] = swarm._replace(web_seeds=swarm.web_seeds + 1)
        return found

    def _judge(self, source: str, path: str, response: Response | None) -> Said | None:
        if response is None or response.status != HTTPStatus.OK:
            return None
        try:
            parsed = narinfo.parse(response.body, source.removesuffix("/announce"))
            verdict = narinfo.verdict(parsed, self._acl)
        except InvalidInputError:
            return None
        if parsed.store_path != path:
            return None
        return Said(
            source,
            source.removesuffix("/announce") in self.trackers and source not in self.servers,
            parsed,
            verdict,
        )

    def _ask(
        self, asked: Mapping[str, Sequence[str]], max_bytes: int, method: str = "GET"
    ) -> dict[str, list[Response | None]]:
        """Ask all sources at the same time, each by a few connections.

        Threads that hang in the resolver keep neither the caller nor the process from ending.
        """
        answers: dict[str, list[Response | None]] = {s: [None] * len(u) for s, u in asked.items()}
        end = time.monotonic() + self._timeout
        threads = []
        for source, urls in asked.items():
            starts = deque(range(0, len(urls), BATCH))
            for _ in range(min(CONNECTIONS, len(starts))):
                arguments = (source, urls, starts, answers[source], end, max_bytes, method)
                threads.append(threading.Thread(target=self._work, args=arguments, daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        # What comes too late doesn't change what is being looked at.
        return {source: list(each) for source, each in answers.items()}

    def _work(
        self,
        source: str,
        urls: Sequence[str],
        starts: deque[int],
        answers: list[Response | None],
        end: float,
        max_bytes: int,
        method: str,
    ) -> None:
        while source not in self.silent:
            try:
                start = starts.popleft()
            except IndexError:
                return
            batch = urls[start : start + BATCH]
            try:
                left = max(0.001, end - time.monotonic())
                responses = (
                    self._client.pipeline(batch, max_bytes=max_bytes, timeout=left)
                    if method == "GET"
                    else (self._client.request(method, url, timeout=left) for url in batch)
                )
                for index, response in enumerate(responses, start):
                    answers[index] = response
                    self.heard.add(source)
                    if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                        self.silent[source] = f"answers {response.status}"
            except NarswarmError as error:
                self.silent[source] = error.reason


def _has(response: Response, length: int | None) -> bool:
    """Whether the answer to a HEAD says that the payload is there, with its length."""
    return (
        response.status == HTTPStatus.OK
        and length is not None
        and response.headers.get("content-length") == str(length)
    )


def _more(known: Swarm, entry: IndexEntry) -> Swarm:
    """What is known when one more tracker has answered; the same peers may be at several."""
    best = max(entry.torrents, key=lambda torrent: torrent.seeders, default=None)
    holders = max(known.holders, entry.holders)
    if best is None or (known.length is not None and best.seeders < known.seeds):
        return known._replace(holders=holders)
    return Swarm(best.seeders, best.leechers, holders, best.length)
