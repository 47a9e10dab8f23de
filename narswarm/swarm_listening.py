# SPDX-License-Identifier: GPL-3.0-or-later
"""Has downloads ask a crowd before seeds: what `narswarm.swarm_crowd` decides, told to libtorrent.

A download that listens has the flag by which libtorrent obeys the session's filter of addresses,
and seeds are what is filtered.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from narswarm import lt_compat
from narswarm.swarm_crowd import MIN_LENGTH, NEW, RECALL, STALLED, Crowd, Listening, turn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from narswarm.download import Download, Progress
    from narswarm.lt_compat import Connected


class _Begun(NamedTuple):
    """When seeds were asked for a download.

    Attributes:
        when: seconds.
        peers: who may be asked again.
        new: it has never listened.
    """

    when: float
    peers: tuple[tuple[str, int], ...]
    new: bool


class Listeners:
    """The downloads of one session that listen. Threads may share it.

    Args:
        name: of the session, by which members of a crowd tell it apart.

    Attributes:
        crowd: who was met in the swarms of what is fetched.
    """

    def __init__(self, name: str) -> None:
        self.crowd = Crowd()
        self._name = name
        self._lock = threading.Lock()
        self._listening: dict[Download, Listening] = {}
        self._begun: dict[Download, _Begun] = {}

    def members(self) -> int:
        """How many were met lately as they fetched what is fetched here, too."""
        with self._lock:
            return self.crowd.members(time.monotonic())

    def addresses(self) -> list[tuple[str, int]]:
        """Members that may have, or fetch, what is begun here."""
        with self._lock:
            return self.crowd.addresses(time.monotonic())

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
            listens = self._listen(session, download, now, 0)
            self._begun[download] = _Begun(now, tuple(peers), not listens)
            return listens

    def _listen(self, session: Any, download: Download, now: float, received: int) -> bool:
        """Note that a download listens, if there is a crowd. The lock is held."""
        members, seeds = self.crowd.members(now), self.crowd.seeds
        if not (members and seeds):
            return False
        self._listening[download] = Listening(now, received)
        lt_compat.keep_out(session, [address for address, _ in seeds])
        return True

    def look(self, session: Any, handle: Any, download: Download, progress: Progress) -> None:
        """Note who fetches the same, and have seeds asked when members bring too little.

        What has stalled listens again, which drops the connections to seeds: on a crowded line one
        that lost too much waits for many seconds, and a new one doesn't. So does what began before
        anybody was met, unless it is its turn.

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
                for peer in (peer for peer in met if peer.pieces):
                    self.crowd.meet(*peer[:2], now, seed=peer.seed, called=peer.called)
                begun = self._begun.get(download)
                if begun is None:
                    return
                others = [peer for peer in met if not peer.seed]
                listening = self._listening.get(download)
                if listening is None:
                    having = [peer for peer in others if peer.pieces]
                    late = (
                        begun.new
                        and now - begun.when < NEW
                        and 2 * progress.done < progress.total
                        and self._turn(download, having) > 0
                    )
                    stalled = progress.idle >= STALLED and now - begun.when >= RECALL
                    if (late or stalled) and self._listen(
                        session, download, now, progress.received
                    ):
                        self._begun[download] = begun._replace(new=False)
                        handle.set_flags(flag)
                    return
                place = self._turn(download, others)
                if not listening.is_over(now, progress.received, progress.idle, place):
                    return
                del self._listening[download]
                self._begun[download] = _Begun(now, begun.peers, new=False)
                seeds = [seed for seed in self.crowd.seeds if seed[1]]
            handle.unset_flags(flag)
            for other in dict.fromkeys((*seeds, *begun.peers)):
                handle.connect_peer(other)
            # An answer of a tracker connects at once, which else takes up to a second.
            handle.force_reannounce(flags=lt_compat.library().torrent_handle.ignore_min_interval)

    def _turn(self, download: Download, others: Iterable[Connected]) -> int:
        """How many of these ask seeds before this session."""
        return turn(self._name, {other.client for other in others}, download.infohash)

    def forget(self, download: Download) -> None:
        """A download has ended."""
        with self._lock:
            self._listening.pop(download, None)
            self._begun.pop(download, None)
