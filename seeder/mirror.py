# SPDX-License-Identifier: GPL-3.0-or-later
"""Follows substitute servers: fetches what rules name, and uses what `guix publish` has baked.

It is polite to servers: one file at a time, narinfos at a rate and never twice for what is here,
and what fails is left alone for longer each time. Before anything of a file is announced it was
decompressed, and had the hash that an authorised narinfo says.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from narswarm import compression, narinfo
from narswarm.acl import Acl
from narswarm.errors import InvalidInputError, MismatchError, NarswarmError, NetworkError
from narswarm.httpwire import UnreachableError
from narswarm.narinfo import Narinfo, Source
from narswarm.payload import max_length
from narswarm.storepath import parse as parse_path
from seeder.mirror_files import (
    Downloader,
    EndedError,
    OverloadedError,
    discard,
    read,
    reject,
    torrent_of,
)
from seeder.mirror_rules import Find, Rule, items
from seeder.mirror_rules import parse as parse_rule
from seeder.mirror_seeds import MirrorSeeds
from seeder.mirror_table import MirrorTable
from seeder.publish_cache import Baked, baked, stamp
from seeder.vouchers import Lookup

log = logging.getLogger(__name__)

INTERVAL: Final = 3600.0
"""Seconds from one look at all rules to the next."""

RETRY: Final = 300.0
"""The same when something failed."""

MAX_MISSES: Final = 5
"""Files in a row that a server may fail to give until it isn't asked for more this time."""

TIMEOUT: Final = 30.0
_PREFERENCE: Final = ("zstd", "lzip", "gzip", "none")
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


class Mirror:
    """Follows rules.

    Args:
        table: what is kept.
        seeds: what is seeded.
        downloader: fetches files.
        rules: those of the settings.
        cache: directory of `guix publish`, None for none.
        lookup: makes what finds authorised narinfos at one server.
        acl: whose signatures count.
        narinfo_rate: items a second that are looked up at most.
        pause: waits a number of seconds; true if the seeder is about to end.
        clock: seconds from any start, never going back.
    """

    def __init__(
        self,
        *,
        table: MirrorTable,
        seeds: MirrorSeeds,
        downloader: Downloader,
        rules: Sequence[Rule],
        cache: Path | None,
        lookup: Callable[[str, Acl], Lookup],
        acl: Acl,
        narinfo_rate: float,
        pause: Callable[[float], bool],
        clock: Callable[[], float],
    ) -> None:
        self._table = table
        self.seeds = seeds
        self._downloader = downloader
        self._rules = tuple(rules)
        self._cache = cache
        self._make_lookup = lookup
        self._lookups: dict[str, Lookup] = {}
        self._acl = acl
        self._rate = narinfo_rate
        self._pause = pause
        self._clock = clock
        self._poked = threading.Event()
        self._next = -float("inf")
        self._refused: dict[str, str] = {}
        self._missing = 0
        self._misses = 0
        self.paused = False

    def close(self) -> None:
        """Nothing can be asked any more."""
        self._table.close()

    def poke(self) -> None:
        """Look at all rules the next time."""
        self._poked.set()

    def rejudge(self, acl: Acl) -> None:
        """Take another ACL.

        Raises:
            GcryptMissingError: no signature can be checked here.
        """
        self._acl = acl
        self._lookups.clear()
        self._refused.clear()
        self.seeds.rejudge(acl)
        self.poke()

    # What the operator says

    def rules(self) -> list[Rule]:
        """Those of the settings, and those that came by command."""
        return list(dict.fromkeys([*self._rules, *map(parse_rule, self._table.rules())]))

    def change(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Add a rule, or remove one that was added so; an operation of the control socket.

        Raises:
            SettingsError: it isn't a rule.
            InvalidInputError: the settings have it, so that it can't be removed.
        """
        rule = parse_rule(str(request["rule"]))
        there = not request.get("forget", False)
        if not there and rule in self._rules:
            raise InvalidInputError(rule, "is in the settings")
        changed = self._table.set_rule(str(rule), there=there)
        self.poke()
        return {"rule": str(rule), "changed": changed}

    def status(self) -> dict[str, Any]:
        """How it is doing."""
        return {
            "rules": [str(rule) for rule in self.rules()],
            "files": len(self.seeds),
            "in_place": len(self.seeds.in_place()),
            "bytes": self._table.used(),
            "max_disk": self.seeds.quota,
            "missing": self._missing,
            "full": self.seeds.full,
            "failures": self._table.failures(),
        }

    # What is done

    def run(self) -> None:
        """Do what is due.

        Raises:
            NarswarmError: a manifest or the cache can't be read.
        """
        if self.paused:
            return
        problems: list[NarswarmError] = []
        try:
            if self._cache is not None:
                try:
                    self._use_baked(self._cache)
                except EndedError:
                    raise
                except NarswarmError as error:
                    problems.append(error)
            if self._poked.is_set() or self._clock() >= self._next:
                self._poked.clear()
                problems += self._follow_all()
                self._next = self._clock() + (RETRY if problems else INTERVAL)
        except EndedError:
            return
        if problems:
            raise problems[0]

    def _follow_all(self) -> list[NarswarmError]:
        wanted: set[bytes] = set()
        problems: list[NarswarmError] = []
        self.seeds.full = ""
        self._missing = 0
        for rule in self.rules():
            try:
                self._follow(rule, wanted)
            except EndedError:
                raise
            except NarswarmError as error:
                problems.append(error)
        self.seeds.wanted = None if problems else frozenset(wanted)
        self.seeds.tidy()
        return problems

    def _follow(self, rule: Rule, wanted: set[bytes]) -> None:
        for each in items(rule, self._finder(rule.server)):
            if isinstance(each, str):
                self._missing += 1
                continue
            wanted.add(each.nar_hash)
            if not self.seeds.has(each.nar_hash) and not self._obtain(rule.server, each):
                self._missing += 1

    def _finder(self, server: str) -> Find:
        if server not in self._lookups:
            self._lookups[server] = self._make_lookup(server, self._acl)
        lookup = self._lookups[server]

        def find(paths: Sequence[str]) -> Mapping[str, Narinfo]:
            found: dict[str, Narinfo] = {}
            for path in paths:
                raw = self._table.narinfo(path)
                if raw is not None:
                    found[path] = narinfo.parse(raw)
            rest = [path for path in paths if path not in found]
            if rest:
                if self._pause(len(rest) / self._rate):
                    raise EndedError
                found |= lookup.find(rest, TIMEOUT, log.info)
                if lookup.is_down(server) and not all(path in found for path in paths):
                    raise NetworkError(server, "can't be reached")
            return found

        return find

    def _obtain(self, server: str, info: Narinfo) -> bool:
        """Fetch a file and seed it; whether that went well.

        Raises:
            NetworkError: nothing more is to be had of this server now.
        """
        source = choose(info)
        if source is None or not self._table.is_open(source.url):
            return False
        if not self._table.is_open(server):
            raise NetworkError(server, "is left alone for a while")
        size = source.file_size or max_length(info.nar_size)
        if not self.seeds.make_room(size, info.nar_hash):
            self._no_room(info)
            return False
        try:
            part = self._downloader.fetch(source, info)
            try:
                meta = torrent_of(read(part, lambda: self._pause(0)), info)
                self.seeds.adopt(part, meta, info)
            except MismatchError:
                reject(part)
                raise
            except InvalidInputError:
                discard(part)
                raise
            discard(part)  # what belongs to it
        except OverloadedError as error:
            self._table.failed(server, error.reason, error.seconds)
            raise
        except UnreachableError as error:
            self._table.failed(server, error.reason)
            raise
        except EndedError:
            raise
        except NarswarmError as error:
            log.warning("%s", error)
            self._table.failed(source.url, error.reason)
            self._misses += 1
            if self._misses >= MAX_MISSES:
                self._misses = 0
                raise NetworkError(server, "gives no file that is of use") from error
            return False
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._no_room(info)
            return False
        self._misses = 0
        self._table.succeeded(source.url)
        self._table.succeeded(server)
        return True

    def _no_room(self, info: Narinfo) -> None:
        if not self.seeds.full:
            log.warning("%s: no room for the server's file of it", info.store_path)
        self.seeds.full = f"no room for {info.store_path}"

    # The cache of `guix publish`

    def _use_baked(self, directory: Path) -> None:
        used = self.seeds.in_place()
        for item in baked(directory):
            path = str(item.path)
            if path in used:
                continue
            seen = stamp(item.path)
            if not seen or self._refused.get(path) == seen:
                continue
            try:
                self._use(item, seen)
            except EndedError:
                raise
            except (NarswarmError, OSError) as error:
                # Gone again, or what nobody vouches for: it isn't looked at before it changes.
                log.info("%s", error)
                self._refused[path] = seen

    def _use(self, item: Baked, seen: str) -> None:
        info = item.narinfo()
        if narinfo.verdict(info, self._acl) is not narinfo.Verdict.VALID_SIGNATURE:
            raise InvalidInputError(info.store_path, "is in the cache, and not vouched for")
        if self.seeds.has(info.nar_hash):
            self._refused[str(item.path)] = seen
            return
        meta = torrent_of(read(item.path, lambda: self._pause(0)), info)
        self.seeds.use(item.path, seen, meta, info)


def choose(info: Narinfo) -> Source | None:
    """The file of an item that is mirrored: of a kind that decompresses fast, if there is one.

    Only one that is called like the item: it is the torrent's name, and with this name the server
    is a web seed for all who fetch the torrent.
    """
    name = parse_path(info.store_path).base_name
    fit = [
        source
        for source in info.sources
        if source.compression in compression.KINDS
        and unquote(source.url.rpartition("/")[2]) == name
        and not set(source.url) & {*"?#"}
        and (source.file_size or 0) <= max_length(info.nar_size)
    ]
    return min(fit, key=lambda source: _PREFERENCE.index(source.compression), default=None)
