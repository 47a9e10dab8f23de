# SPDX-License-Identifier: GPL-3.0-or-later
"""What both helpers, the one for queries and the one for substitution, work with."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from narswarm import base32, gcrypt, sexp
from narswarm.acl import Acl
from narswarm.errors import NarswarmError, NotFoundError, SettingsError
from narswarm.httpclient import HttpClient
from narswarm.narinfo import Narinfo
from narswarm.narinfos import NarinfoCache, NarinfoLookup
from substituter import options, report
from substituter.preference import by_preference
from substituter.race import Way
from substituter.settings import SubstituterSettings

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from narswarm.candidates import Torrents
    from narswarm.fetchclient import SeederClient
    from narswarm.trackerclient import TrackerIndex

_DISCOVERED = Path("/var/guix/discover/publish")
_MAX_DISCOVERED_FILE = 64 << 10
_READ_TIMEOUT = 10.0
_DRIP_TIMEOUT = 20.0
"""Seconds that a NAR may take beyond what it takes at the client's least rate."""

_SILENCE = 2.0
"""Seconds after which trackers are asked for what servers haven't answered."""

_TRACKER_TIMEOUT = 10.0
_WORKERS = 16
_ANNOUNCE = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.%]+\]|[^\[\]/?#@:\s]+)(?::[0-9]{1,5})?/(?:[^?#\s]*/)?announce"
)
_NO_SIGNATURE: sexp.Sexp = [b"", [b"sig-val"], [b"data"], [b"public-key"]]


class Context:
    """One helper process's view of the machine and the network.

    Args:
        settings: of this program.
        environ: as guix-daemon gave it.
        warn: shows one line to the user.

    Raises:
        NarswarmError: the ACL is missing or malformed, or a setting is wrong.
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
        self.client = HttpClient(_READ_TIMEOUT, _DRIP_TIMEOUT)
        self.plans = settings.state / "plans"
        self._cache = NarinfoCache(settings.state / "narinfo")
        self.trackers = [tracker_base(announce) for announce in settings.trackers]
        self._making = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._torrents: Torrents | None = None
        self._seeder: tuple[SeederClient | None] | None = None
        self.rates: dict[Way, float] = {}
        """Bytes of NAR a second that each way has brought lately."""
        self.ahead: set[str] = set()
        """Store paths that the seeder was asked to fetch ahead."""
        self._warned: set[str] = set()
        # Raises now, while guix can still take over, where there is no libgcrypt.
        gcrypt.verify(_NO_SIGNATURE)
        self._acl = b""
        self.reload_acl()

    def close(self) -> None:
        """Let go of threads and connections; a helper that is killed needs no such thing."""
        if self._seeder and self._seeder[0]:
            self._seeder[0].close()
        if self._torrents is not None:
            self._torrents.close()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        self.client.close()

    # What takes milliseconds to load, and isn't needed before the first answer.

    @property
    def executor(self) -> ThreadPoolExecutor:
        """Threads for small questions."""
        with self._making:
            if self._executor is None:
                from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

                self._executor = ThreadPoolExecutor(_WORKERS, thread_name_prefix="lookup")
            return self._executor

    @property
    def torrents(self) -> Torrents:
        """What is known of torrents, here and by trackers."""
        with self._making:
            if self._torrents is None:
                from narswarm.candidates import Torrents  # noqa: PLC0415

                self._torrents = Torrents(self.settings.state / "torrents", self._indexes())
            return self._torrents

    @property
    def seeder(self) -> SeederClient | None:
        """The seeder of this machine, if there is one."""
        with self._making:
            if self._seeder is None:
                from narswarm import fetchclient  # noqa: PLC0415

                found = fetchclient.find(self.settings.seeder)
                self._seeder = (fetchclient.SeederClient(found) if found else None,)
            return self._seeder[0]

    def refuse(self, nar_hash: bytes, infohash: str) -> None:
        """Never use a torrent again, here or in the seeder: its payload was another NAR."""
        self.torrents.refuse(nar_hash, infohash)
        if self.seeder is not None:
            with contextlib.suppress(NarswarmError):
                self.seeder.refuse(nar_hash, infohash)

    def may_have_torrents(self, narinfo: Narinfo) -> bool:
        """Whether anybody could know a torrent of a NAR."""
        directory = self.settings.state / "torrents" / base32.encode(narinfo.nar_hash)
        return bool(self.trackers) or os.path.isdir(directory)  # noqa: PTH112 -- never raises

    def _indexes(self) -> list[TrackerIndex]:
        if not self.trackers:
            return []
        from narswarm.trackerclient import TrackerIndex  # noqa: PLC0415

        return [TrackerIndex(self.client, base, timeout=_TRACKER_TIMEOUT) for base in self.trackers]

    def reload_acl(self) -> None:
        """Read the ACL anew, as Guix does before each substitution.

        Raises:
            NarswarmError: it is missing or malformed.
        """
        text = _read_acl(self.settings.acl)
        # A new look-up would forget which servers are down.
        if text != self._acl:
            acl = Acl.parse(text, self.settings.acl)
            self._acl = text
            self._servers = NarinfoLookup(self.client, self.options.urls, acl, self._cache)
            mirrors = [f"{base}/v1/narinfo" for base in self.trackers]
            self._mirrors = NarinfoLookup(self.client, mirrors, acl, self._cache)

    def narinfos(self, paths: Iterable[str], timeout: float) -> dict[str, Narinfo]:
        """Authorised narinfos: from the substitute servers, else as trackers mirror them.

        Args:
            paths: store paths.
            timeout: seconds for all of it; servers that hang leave a half to the trackers.

        A server that has a narinfo without a place of the NAR doesn't hide those that know one.
        """
        wanted = list(paths)
        deadline = time.monotonic() + timeout
        for_servers = timeout / 2 if self.trackers else timeout
        if self.settings.quorum > 1:
            return self._agreed(wanted, for_servers, deadline)
        if not self.trackers:
            return self._of_servers(wanted, for_servers)
        said: list[dict[str, Narinfo]] = []
        errors: list[Exception] = []

        def ask() -> None:
            try:
                said.append(self._of_servers(wanted, for_servers))
            except Exception as error:  # noqa: BLE001 -- raised again below
                errors.append(error)

        servers = threading.Thread(target=ask, name="servers", daemon=True)
        servers.start()
        servers.join(min(_SILENCE, for_servers))
        missing = wanted if not said else [path for path in wanted if path not in said[0]]
        found: dict[str, Narinfo] = {}
        if missing and not errors:
            left = max(0.0, deadline - time.monotonic())
            found = self._mirrors.find(missing, left, self.warn_once)
        if len(found) < len(set(missing)):
            servers.join(max(0.0, deadline - time.monotonic()))
        if errors:
            raise errors[0]
        found |= said[0] if said else {}
        return {path: found[path] for path in wanted if path in found}

    def _of_servers(self, wanted: list[str], timeout: float) -> dict[str, Narinfo]:
        deadline = time.monotonic() + timeout
        found = self._servers.find(wanted, timeout, self.warn_once)
        if len(self._servers.servers) > 1:
            for path, narinfo in found.items():
                left = deadline - time.monotonic()
                if left > 0 and not by_preference(narinfo.sources):
                    others = self.equivalents(narinfo, left)
                    better = (other for other in others if by_preference(other.sources))
                    found[path] = next(better, narinfo)
        return found

    def _agreed(self, wanted: list[str], for_servers: float, deadline: float) -> dict[str, Narinfo]:
        """The narinfos that enough keys agree on; who disagrees is told."""
        from narswarm import quorum  # noqa: PLC0415 -- for those who want it

        said = self._servers.find_all(wanted, for_servers, self.warn_once)
        if self.trackers:
            left = max(0.0, deadline - time.monotonic())
            for path, more in self._mirrors.find_all(wanted, left, self.warn_once).items():
                said.setdefault(path, []).extend(more)
        found: dict[str, Narinfo] = {}
        for path in wanted:
            opinions = quorum.opinions(said.get(path, []))
            agreed = quorum.agreed(opinions, self.settings.quorum)
            if agreed is not None:
                found[path] = agreed
            elif opinions:
                keys, needed = len(opinions[0].keys), self.settings.quorum
                self.warn_once(f"{path}: {keys} of {needed} keys that have to agree on it do")
            if disagreement := quorum.disagreement(opinions):
                self.warn_once(disagreement)
        return found

    def equivalents(self, narinfo: Narinfo, timeout: float) -> Iterator[Narinfo]:
        """What the other servers say of the same NAR, as their answers come.

        One that the narinfo names as a source isn't asked: it has said it, and may hang by now.
        """
        from concurrent.futures import as_completed  # noqa: PLC0415

        def ask(server: str) -> Narinfo | None:
            try:
                if self._servers.is_down(server):
                    return None
                return self._servers.ask(server, narinfo.store_path, timeout)
            except NarswarmError:
                return None

        said = tuple(source.url for source in narinfo.sources)
        others = [
            server
            for server in self._servers.servers
            if not any(url.startswith(f"{server}/") for url in said)
        ]
        for future in as_completed([self.executor.submit(ask, server) for server in others]):
            other = future.result()
            if other and (other.nar_hash, other.nar_size) == (narinfo.nar_hash, narinfo.nar_size):
                yield other

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
    if not _ANNOUNCE.fullmatch(announce):
        raise SettingsError(announce, "expected an announce URL such as http://HOST:PORT/announce")
    return announce.removesuffix("announce").rstrip("/")


def _discovered() -> list[str]:
    try:
        with _DISCOVERED.open() as file:
            lines = file.read(_MAX_DISCOVERED_FILE).split("\n")
    except (OSError, UnicodeDecodeError):
        return []
    return [line.strip() for line in lines if line.strip()][: options.MAX_DISCOVERED]


def _read_acl(path: Path) -> bytes:
    """The text of the ACL, read once: what is compared is what counts."""
    try:
        with path.open("rb") as file:
            return file.read(sexp.MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise NotFoundError(path, reason[0].lower() + reason[1:]) from error
