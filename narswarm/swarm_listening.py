# SPDX-License-Identifier: GPL-3.0-or-later
"""Has downloads ask a crowd before seeds: what `narswarm.swarm_crowd` decides, told to libtorrent.

A download that listens has the flag by which libtorrent obeys the session's filter of addresses,
and seeds are what is filtered.
"""

from __future__ import annotations

import contextlib
import threading
import time
from random import Random
from typing import TYPE_CHECKING, Any

from narswarm import lt_compat
from narswarm.swarm_crowd import MIN_LENGTH, Crowd, Listening

if TYPE_CHECKING:
    from collections.abc import Iterable

    from narswarm.download import Download, Progress


class Listeners:
    """The downloads of one session that listen. Threads may share it.

    Attributes:
        crowd: who was met in the swarms of what is fetched.
    """

    def __init__(self) -> None:
        self.crowd = Crowd()
        self._lock = threading.Lock()
        self._listening: dict[Download, tuple[Listening, tuple[tuple[str, int], ...]]] = {}
        self._random = Random()  # noqa: S311 -- it only tells members of a crowd apart

    def members(self) -> int:
        """How many were met lately as they fetched what is fetched here, too."""
        with self._lock:
            return self.crowd.members(time.monotonic())

    def begin(self, session: Any, download: Download, peers: Iterable[tuple[str, int]]) -> bool:
        """Whether a download asks members of a crowd alone at first; others are told to wait.

        Args:
            session: libtorrent's.
            download: what is about to be added.
            peers: who may be asked later.
        """
        if download.length < MIN_LENGTH:
            return False
        now = time.monotonic()
        with self._lock:
            members, seeds = self.crowd.members(now), self.crowd.seeds
            if not (members and seeds):
                return False
            listening = Listening(now, members, self._random)
            self._listening[download] = listening, (*seeds, *peers)
        lt_compat.keep_out(session, [address for address, _ in seeds])
        return True

    def look(self, handle: Any, download: Download, progress: Progress) -> None:
        """Note who fetches the same, and have seeds asked when members bring too little.

        Args:
            handle: libtorrent's, of the download.
            download: one that may listen.
            progress: of it.
        """
        now = time.monotonic()
        with contextlib.suppress(RuntimeError):  # gone meanwhile
            met = lt_compat.connected(handle)
            with self._lock:
                for peer in met:
                    self.crowd.meet(*peer[:2], now, seed=peer.seed, called=peer.called)
                listening, others = self._listening.get(download, (None, ()))
                if not listening or not listening.is_over(now, progress.received, progress.idle):
                    return
                del self._listening[download]
            lt = lt_compat.library()
            handle.unset_flags(lt.torrent_flags.apply_ip_filter)
            for other in dict.fromkeys(others):
                handle.connect_peer(other)
            # An answer of a tracker connects at once, which else takes up to a second.
            handle.force_reannounce(flags=lt.torrent_handle.ignore_min_interval)

    def forget(self, download: Download) -> None:
        """A download has ended."""
        with self._lock:
            self._listening.pop(download, None)
