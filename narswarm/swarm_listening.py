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
from narswarm.swarm_crowd import MIN_LENGTH, RECALL, STALLED, Crowd, Listening

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
        self._listening: dict[Download, Listening] = {}
        self._called: dict[Download, tuple[float, tuple[tuple[str, int], ...]]] = {}
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
            self._called[download] = now, tuple(peers)
            return self._listen(session, download, now, 0)

    def _listen(self, session: Any, download: Download, now: float, received: int) -> bool:
        """Note that a download listens, if there is a crowd. The lock is held."""
        members, seeds = self.crowd.members(now), self.crowd.seeds
        if not (members and seeds):
            return False
        self._listening[download] = Listening(now, members, self._random, received)
        lt_compat.keep_out(session, [address for address, _ in seeds])
        return True

    def look(self, session: Any, handle: Any, download: Download, progress: Progress) -> None:
        """Note who fetches the same, and have seeds asked when members bring too little.

        What has stalled listens again, which drops the connections to seeds: on a crowded line one
        that lost too much waits for many seconds, and a new one doesn't.

        Args:
            session: libtorrent's.
            handle: libtorrent's, of the download.
            download: one that may listen.
            progress: of it.
        """
        now = time.monotonic()
        with contextlib.suppress(RuntimeError):  # gone meanwhile
            met = lt_compat.connected(handle)
            flag = lt_compat.library().torrent_flags.apply_ip_filter
            with self._lock:
                for peer in met:
                    self.crowd.meet(*peer[:2], now, seed=peer.seed, called=peer.called)
                called, peers = self._called.get(download, (now, ()))
                listening = self._listening.get(download)
                if listening is None:
                    stalled = progress.idle >= STALLED and now - called >= RECALL
                    if stalled and self._listen(session, download, now, progress.received):
                        handle.set_flags(flag)
                    return
                if not listening.is_over(now, progress.received, progress.idle):
                    return
                del self._listening[download]
                self._called[download] = now, peers
                others = dict.fromkeys((*self.crowd.seeds, *peers))
            handle.unset_flags(flag)
            for other in others:
                handle.connect_peer(other)
            # An answer of a tracker connects at once, which else takes up to a second.
            handle.force_reannounce(flags=lt_compat.library().torrent_handle.ignore_min_interval)

    def forget(self, download: Download) -> None:
        """A download has ended."""
        with self._lock:
            self._listening.pop(download, None)
            self._called.pop(download, None)
