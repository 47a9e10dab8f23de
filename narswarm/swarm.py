# SPDX-License-Identifier: GPL-3.0-or-later
"""A BitTorrent session with its torrents: the place that tells libtorrent what to do with them.

Of libtorrent's Python binding one more rule is kept here, beside those of `narswarm.swarm_session`:
a torrent that is added paused and resumed as soon as it is checked connects at once, where one
that is added running waits for the next turn of a loop of one second.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from narswarm import lt_compat
from narswarm.download import Download
from narswarm.errors import BusyError, InvalidInputError, NotFoundError
from narswarm.swarm_events import Torrent, TorrentStatus, TrackerStatus
from narswarm.swarm_listening import Listeners
from narswarm.swarm_session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from narswarm.download import Progress
    from narswarm.swarm_crowd import Crowd
    from narswarm.swarm_settings import SwarmSettings

DELETE_FILES = 1
"""libtorrent's `session_handle::delete_files`; the binding gives it different types by version."""


class Swarm(Session):
    """A session with its torrents."""

    def __init__(self, settings: SwarmSettings) -> None:
        """Check SETTINGS; see `narswarm.swarm_session.Session`."""
        super().__init__(settings)
        self._starved: set[str] = set()
        self._listeners = Listeners(self._name)
        self._utp = settings.role == "seed"

    def seed(self, torrent: bytes, payload: Path, trackers: Sequence[str]) -> str:
        """Offer a complete file, which isn't read before a peer wants it.

        Args:
            torrent: a .torrent with its piece layers; its own trackers are ignored.
            payload: the file, whatever its name.
            trackers: announce URLs.

        Returns:
            The infohash in hex.

        Raises:
            InvalidInputError: not a torrent of one file.
        """
        facts = lt_compat.load_torrent(torrent, payload.name)
        params = facts.params
        flags = lt_compat.library().torrent_flags
        params.flags = (
            flags.seed_mode
            | flags.no_verify_files
            | flags.update_subscribe
            | flags.override_trackers
            | flags.override_web_seeds
        )
        if self._settings.lan_only:  # else the filter is what downloads listen by, and theirs alone
            params.flags |= flags.apply_ip_filter
        params.save_path = str(payload.absolute().parent)
        params.renamed_files = {0: str(payload.absolute())}
        params.trackers = list(trackers)
        self._add(params, Torrent(None, TorrentStatus(facts.infohash, facts.name, "seeding")))
        return facts.infohash

    def fetch(
        self,
        torrent: bytes,
        directory: Path,
        *,
        trackers: Sequence[str] = (),
        peers: Sequence[tuple[str, int]] = (),
        web_seeds: Sequence[str] = (),
        in_order: bool = True,
    ) -> Download:
        """Begin to fetch; `Download.chunks` reads.

        A partial file of an earlier attempt in DIRECTORY is checked and completed.

        Args:
            torrent: a .torrent of one file; trackers and web seeds in it are ignored.
            directory: where the file is made.
            trackers: announce URLs.
            peers: IP addresses and ports to connect to at once.
            web_seeds: URLs of directories that have the file, each with a slash at its end.
            in_order: pieces from the beginning, for somebody who waits for the first. Else those
                that few peers have come first, so that peers have something for each other, and
                seeds may be asked later than members of a crowd (`narswarm.swarm_crowd`).

        Raises:
            InvalidInputError: not a torrent of one file.
            BusyError: this session fetches or seeds it already.
        """
        facts = lt_compat.load_torrent(torrent)
        download = Download(
            facts,
            directory.absolute(),
            starving=self._on_starving,
            remove=self._drop,
            looked=self._on_look,
        )
        params = facts.params
        flags = lt_compat.library().torrent_flags
        params.flags = (
            flags.paused
            | (flags.sequential_download if in_order else flags.paused)
            | flags.update_subscribe
            | flags.override_trackers
            | flags.override_web_seeds
        )
        patient = not in_order and not web_seeds and not self._settings.proxy
        if self._settings.lan_only or (
            patient and self._listeners.begin(self._start()[0], download, peers)
        ):
            params.flags |= flags.apply_ip_filter
        params.save_path = str(directory.absolute())
        params.trackers = list(trackers)
        # An .append() to the property would be lost.
        params.peers = [*peers, *self._listeners.addresses()]
        params.url_seeds = list(web_seeds)
        record = Torrent(None, TorrentStatus(facts.infohash, facts.name), download)
        added = False
        try:
            added = self._add(params, record)
        finally:
            if not added:
                self._listeners.forget(download)
        if not added:
            raise BusyError(facts.name, "this session has that torrent already")
        return download

    def _add(self, params: Any, record: Torrent) -> bool:
        """Hand a torrent to libtorrent; False if the session has it."""
        session, events = self._start()
        infohash = record.status.infohash
        with self._lock:
            if infohash in events.torrents:
                return False
            # Known before libtorrent's first alert about it can be.
            events.torrents[infohash] = record
        if record.download is not None:
            self._choose_transport()  # before it connects to anybody
        try:
            record.handle = session.add_torrent(params)
        except RuntimeError as error:
            events.torrents.pop(infohash, None)
            raise InvalidInputError(
                record.status.name, f"libtorrent refuses it: {error}"
            ) from error
        if record.download is not None:
            record.download.attach(record.handle)
        return True

    def remove(self, infohash: str) -> None:
        """Stop seeding or fetching; files stay.

        Raises:
            NotFoundError: no such torrent here.
        """
        self._end(self._find(infohash), delete=False)

    def connect(self, infohash: str, peers: Iterable[tuple[str, int]]) -> None:
        """Try these peers, IP addresses and ports.

        Raises:
            NotFoundError: no such torrent here.
        """
        handle = self._find(infohash).handle
        for peer in peers:
            handle.connect_peer(peer)

    def reannounce(self, infohash: str) -> None:
        """Tell trackers now, however soon after the last announce.

        Raises:
            NotFoundError: no such torrent here.
        """
        handle = self._find(infohash).handle
        # A tracker that was restarted doesn't remember what interval it asked for.
        flags = lt_compat.library().torrent_handle.ignore_min_interval
        handle.force_reannounce(flags=flags)

    def announce_in_dht(self, infohash: str) -> None:
        """Tell the DHT now, if this session takes part in it.

        Raises:
            NotFoundError: no such torrent here.
        """
        handle = self._find(infohash).handle
        if self._settings.dht:
            handle.force_dht_announce()

    def _find(self, infohash: str) -> Torrent:
        _, events = self._start()
        torrent = events.torrents.get(infohash)
        if torrent is None or torrent.handle is None:
            raise NotFoundError(infohash, "is not in this session")
        return torrent

    def _drop(self, download: Download, keep: bool) -> None:
        """What `Download.cancel` does to the session."""
        events = self._events
        torrent = events.torrents.get(download.infohash) if events is not None else None
        if torrent is not None and torrent.download is download:
            self._end(torrent, delete=not keep)
        if not keep:
            download.path.unlink(missing_ok=True)

    def _end(self, torrent: Torrent, *, delete: bool) -> None:
        """Take a torrent out and wait until libtorrent has let go of it."""
        infohash = torrent.status.infohash
        with self._lock:
            session, events = self._session, self._events
        if session is None or events is None:
            return
        if torrent.download is not None:
            torrent.download.fail("was removed")
            self._listeners.forget(torrent.download)
        with events.news:
            if infohash in events.removals:
                return  # another thread is at it
            events.removals[infohash] = delete
            session.remove_torrent(torrent.handle, DELETE_FILES if delete else 0)
            events.wait(lambda: infohash not in events.removals)
            events.removals.pop(infohash, None)
        with self._lock:
            events.torrents.pop(infohash, None)
            self._starved.discard(infohash)
        self._choose_transport()

    def pause_seeding(self, *, paused: bool) -> None:
        """Stop offering all files that are seeded now, or offer them again."""
        _, events = self._start()
        for torrent in list(events.torrents.values()):
            if torrent.download is None and torrent.handle is not None:
                if paused:
                    torrent.handle.pause()
                else:
                    torrent.handle.resume()

    # Crowds

    @property
    def crowd(self) -> Crowd:
        """Who was met in the swarms of what is fetched."""
        return self._listeners.crowd

    def members(self) -> int:
        """How many were met lately as they fetched what is fetched here, too."""
        return self._listeners.members()

    def _on_look(self, download: Download, progress: Progress) -> None:
        """What `Download.look` tells the session."""
        session, events = self._session, self._events
        torrent = events.torrents.get(download.infohash) if events is not None else None
        if session is not None and torrent is not None and torrent.handle is not None:
            self._listeners.look(session, torrent.handle, download, progress)

    # What users see

    def status(self) -> list[TorrentStatus]:
        """All torrents, in the order in which they were added."""
        session, events = self._start()
        with events.news:
            before = events.updates
            session.post_torrent_updates()
            events.wait(lambda: events.updates > before)
        with self._lock:
            return [torrent.status for torrent in events.torrents.values()]

    def trackers(self) -> list[TrackerStatus]:
        """All trackers that answered an announce, or should have."""
        _, events = self._start()
        with events.news:
            return list(events.trackers.values())

    def peers(self, most: int = 1000) -> list[str]:
        """IP addresses of peers that are connected now, once for each torrent; at most so many."""
        found: list[str] = []
        for status in self.status():
            if status.peers and len(found) < most:
                with contextlib.suppress(NotFoundError, RuntimeError):  # gone meanwhile
                    peers = self._find(status.infohash).handle.get_peer_info()
                    found += [str(peer.ip[0]) for peer in peers]
        return found[:most]

    # Reactions; the first is called by the alert thread, so nothing here waits

    def _on_state(self, torrent: Torrent) -> None:
        if torrent.download is not None and torrent.status.state == "seeding":
            self._starved.discard(torrent.status.infohash)
            self._choose_transport()

    def _on_starving(self, download: Download) -> None:
        """A download gets nothing: let it try uTP, which passes NATs where TCP can't."""
        if download.infohash not in self._starved:
            self._starved.add(download.infohash)
            self._choose_transport()

    def _choose_transport(self) -> None:
        """Use uTP for outgoing connections unless a download runs that does well without.

        libtorrent tries uTP before TCP when both are on, and a bulk transfer over uTP has a
        fiftieth of the speed. So downloads begin with TCP alone.
        """
        with self._lock:
            session, events = self._session, self._events
            if session is None or events is None or "enable_outgoing_utp" in self._settings.extra:
                return
            fetching = any(
                torrent.download is not None and torrent.status.state != "seeding"
                for torrent in list(events.torrents.values())
            )
            wanted = bool(self._starved) or (self._settings.role == "seed" and not fetching)
            if wanted == self._utp:
                return
            self._utp = wanted
            session.apply_settings({"enable_outgoing_utp": wanted})
