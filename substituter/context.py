# SPDX-License-Identifier: GPL-3.0-or-later
"""What both helpers, the one for queries and the one for substitution, work with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from narswarm.acl import Acl
from narswarm.errors import NarswarmError, SettingsError
from narswarm.httpclient import HttpClient
from narswarm.narinfo import Narinfo
from narswarm.narinfos import NarinfoCache, NarinfoLookup
from narswarm.trackerclient import TrackerIndex
from substituter import options, report
from substituter.settings import SubstituterSettings
from substituter.torrents import Torrents

_DISCOVERED = Path("/var/guix/discover/publish")
_READ_TIMEOUT = 10.0
_WORKERS = 16


class Context:
    """One helper process's view of the machine and the network.

    Args:
        settings: of this program.
        environ: as guix-daemon gave it.
        warn: shows one line to the user.

    Raises:
        NarswarmError: the ACL is missing or malformed.
    """

    def __init__(
        self,
        settings: SubstituterSettings,
        environ: Mapping[str, str],
        warn: Callable[[str], None] = report.warn,
    ) -> None:
        self.settings = settings
        self.environ = environ
        self.warn = warn
        self.options = options.parse(environ.get("_NIX_OPTIONS", ""), _discovered())
        self.client = HttpClient(_READ_TIMEOUT)
        self.executor = ThreadPoolExecutor(_WORKERS, thread_name_prefix="lookup")
        self._cache = NarinfoCache(settings.state / "narinfo")
        self.indexes = [
            TrackerIndex(self.client, base) for base in map(tracker_base, settings.trackers)
        ]
        self.torrents = Torrents(settings.state / "torrents", self.indexes, self.executor)
        self._warned: set[str] = set()
        self._acl = b""
        self.reload_acl()

    def close(self) -> None:
        """Let go of threads and connections; a helper that is killed needs no such thing."""
        self.executor.shutdown(cancel_futures=True)
        self.client.close()

    def reload_acl(self) -> None:
        """Read the ACL anew, as Guix does before each substitution.

        Raises:
            NarswarmError: it is missing or malformed.
        """
        acl = Acl.load(self.settings.acl)
        text = self.settings.acl.read_bytes()
        # A new look-up would forget which servers are down.
        if text != self._acl:
            self._acl = text
            self._servers = NarinfoLookup(self.client, self.options.urls, acl, self._cache)
            mirrors = [index.narinfo_url for index in self.indexes]
            self._mirrors = NarinfoLookup(self.client, mirrors, acl, self._cache)

    def narinfos(self, paths: Iterable[str], timeout: float) -> dict[str, Narinfo]:
        """Authorised narinfos: from the substitute servers, else as trackers mirror them."""
        wanted = list(paths)
        deadline = time.monotonic() + timeout
        found = self._servers.find(wanted, timeout, self.warn_once)
        missing = [path for path in wanted if path not in found]
        if missing and self.indexes:
            # What servers that hang have used up isn't taken from the trackers.
            left = max(deadline - time.monotonic(), timeout / 2)
            found |= self._mirrors.find(missing, left, self.warn_once)
        return found

    def equivalents(self, narinfo: Narinfo, timeout: float) -> list[Narinfo]:
        """What the other servers say of the same NAR, in the order of the servers."""

        def ask(server: str) -> Narinfo | None:
            try:
                return self._servers.ask(server, narinfo.store_path, timeout)
            except NarswarmError:
                return None

        return [
            other
            for other in self.executor.map(ask, self._servers.servers)
            if other and (other.nar_hash, other.nar_size) == (narinfo.nar_hash, narinfo.nar_size)
        ]

    def warn_once(self, message: str) -> None:
        """Show a line unless this process has shown it already."""
        if message not in self._warned:
            self._warned.add(message)
            self.warn(message)


def tracker_base(announce: str) -> str:
    """The index of a tracker from its announce URL.

    Raises:
        SettingsError: it isn't an HTTP URL that ends in `/announce`.
    """
    parts = urlsplit(announce)
    if parts.scheme not in ("http", "https") or not parts.path.endswith("/announce"):
        raise SettingsError(announce, "expected an announce URL such as http://HOST:PORT/announce")
    return announce.removesuffix("announce").rstrip("/")


def _discovered() -> list[str]:
    try:
        with _DISCOVERED.open() as file:
            return [line.strip() for line in file][: options.MAX_DISCOVERED]
    except (OSError, UnicodeDecodeError):
        return []
