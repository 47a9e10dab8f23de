# SPDX-License-Identifier: GPL-3.0-or-later
"""The BitTorrent session of a helper: made once, while the first narinfo is still looked up."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from narswarm.errors import NarswarmError
from substituter.settings import SubstituterSettings

if TYPE_CHECKING:
    from narswarm.download import Download
    from narswarm.swarm import Swarm

_ABANDONED = 24 * 3600.0
"""Seconds after which a download that nobody took up again is removed."""

_AHEAD = "ahead-"

_SAVE_INTERVAL = 60.0
"""Seconds from one saving of the DHT's nodes to the next."""


class Session:
    """Gives the swarm, and the directory where payloads are put together.

    Args:
        settings: of this program.
        warn: shows one line to the user.
    """

    def __init__(self, settings: SubstituterSettings, warn: Callable[[str], None]) -> None:
        self._settings = settings
        self._warn = warn
        self._dht_state = settings.state / "dht.state"
        self._swarm: Swarm | None = None
        self._error: NarswarmError | None = None
        self._starter: threading.Thread | None = None
        self._saved = -math.inf
        self._lock = threading.Lock()
        self._kept: deque[Download] = deque()
        self.downloads = settings.state / "downloads"
        self._temporary: Path | None = None

    @property
    def ahead(self) -> Path:
        """Where payloads are that nobody waits for yet: gone with this process, or soon after."""
        directory = self.downloads / f"{_AHEAD}{os.getpid()}"
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, exist_ok=True)
        return directory

    def keep(self, download: Download) -> None:
        """Upload a complete payload until this ends, or others need its room."""
        surplus = []
        with self._lock:
            self._kept.append(download)
            total = sum(each.length for each in self._kept)
            while total > self._settings.prefetch_disk:
                surplus.append(self._kept.popleft())
                total -= surplus[-1].length
        for each in surplus:
            with contextlib.suppress(OSError):
                each.cancel(keep=False)

    def start(self) -> None:
        """Begin to make the session, once, without waiting for it."""
        if self._starter is None:
            self._starter = threading.Thread(target=self._start, name="session", daemon=True)
            self._starter.start()

    def swarm(self) -> Swarm:
        """The session.

        Raises:
            NarswarmError: libtorrent could not be set up.
        """
        self.start()
        if self._starter is not None:
            self._starter.join()
        if self._swarm is None:
            raise self._error or NarswarmError("session", "could not be started")
        return self._swarm

    def close(self) -> None:
        """Leave all swarms; a helper that is killed needs no such thing."""
        if self._starter is not None:
            self._starter.join()
        if self._swarm is not None:
            self._swarm.close()
        _remove(self.downloads / f"{_AHEAD}{os.getpid()}")
        if self._temporary is not None:
            _remove(self._temporary)

    def save(self) -> None:
        """Keep the DHT's nodes for the next helper, which then knows its way at once.

        A young session knows none yet, not even those that it began with: the file stays then.
        """
        now = time.monotonic()
        if self._swarm is None or not self._settings.dht or now - self._saved < _SAVE_INTERVAL:
            return
        from narswarm.files import write_atomically  # noqa: PLC0415 -- as below

        with contextlib.suppress(OSError, NarswarmError):
            if self._swarm.counters()["dht_nodes"]:
                write_atomically(self._dht_state, self._swarm.dht_state())
                self._saved = now

    def _start(self) -> None:
        # Most items come without a session, and this takes as long as a small one.
        from narswarm.swarm import Swarm  # noqa: PLC0415
        from narswarm.swarm_settings import SwarmSettings  # noqa: PLC0415

        settings = self._settings
        try:
            self._prepare_downloads()
            swarm = Swarm(
                SwarmSettings(
                    listen=settings.listen,
                    dht=settings.dht,
                    dht_nodes=settings.dht_nodes,
                    dht_state=_read(self._dht_state) if settings.dht else b"",
                    private_network=settings.private_network,
                    lsd=settings.lsd,
                    upnp=settings.upnp,
                    role="fetch",
                    extra=settings.libtorrent,
                )
            )
            # Opens the sockets, which would else wait for the first item.
            self._swarm = swarm.__enter__()
        except NarswarmError as error:
            self._error = error
            self._warn(str(error))

    def _prepare_downloads(self) -> None:
        """Have a directory for downloads, without those that were abandoned.

        Raises:
            NarswarmError: there is no place for one at all.
        """
        try:
            self.downloads.mkdir(parents=True, exist_ok=True)
            for file in self.downloads.iterdir():
                with contextlib.suppress(OSError):
                    if file.name.startswith(_AHEAD):
                        # A killed helper has left it.
                        if not os.path.exists(f"/proc/{file.name.removeprefix(_AHEAD)}"):  # noqa: PTH110 -- never raises
                            _remove(file)
                        continue
                    if file.stat().st_mtime < time.time() - _ABANDONED:
                        file.unlink()
            if os.access(self.downloads, os.W_OK | os.X_OK, effective_ids=True):
                return
        except OSError:
            pass
        import tempfile  # noqa: PLC0415 -- hardly ever

        try:
            # Not resumable, but it works.
            self.downloads = self._temporary = Path(tempfile.mkdtemp(prefix="narswarm-"))
        except OSError as error:
            raise NarswarmError(self.downloads, error.strerror or str(error)) from error


def _remove(directory: Path) -> None:
    """Remove a directory of files."""
    with contextlib.suppress(OSError):
        for file in directory.iterdir():
            file.unlink(missing_ok=True)
        directory.rmdir()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
