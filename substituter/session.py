# SPDX-License-Identifier: GPL-3.0-or-later
"""The BitTorrent session of a helper: made once, while the first narinfo is still looked up."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from narswarm.errors import NarswarmError
from narswarm.files import write_atomically
from narswarm.swarm import Swarm
from narswarm.swarm_settings import SwarmSettings
from substituter.settings import SubstituterSettings

_ABANDONED = 24 * 3600.0
"""Seconds after which a download that nobody took up again is removed."""


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
        self.downloads = settings.state / "downloads"

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

    def save(self) -> None:
        """Keep the DHT's nodes for the next helper, which then knows its way at once."""
        if self._swarm is not None and self._settings.dht:
            with contextlib.suppress(OSError):
                write_atomically(self._dht_state, self._swarm.dht_state())

    def _start(self) -> None:
        self._prepare_downloads()
        settings = self._settings
        try:
            self._swarm = Swarm(
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
        except NarswarmError as error:
            self._error = error
            self._warn(str(error))

    def _prepare_downloads(self) -> None:
        try:
            self.downloads.mkdir(parents=True, exist_ok=True)
            for file in self.downloads.iterdir():
                with contextlib.suppress(OSError):
                    if file.stat().st_mtime < time.time() - _ABANDONED:
                        file.unlink()
        except OSError:
            # Not resumable, but it works.
            self.downloads = Path(tempfile.mkdtemp(prefix="narswarm-"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
