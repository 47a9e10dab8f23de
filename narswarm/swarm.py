# SPDX-License-Identifier: GPL-3.0-or-later
"""A BitTorrent session: the place that tells libtorrent what to do.

Rules of libtorrent's Python binding that are kept here and in `narswarm.swarm_events`, each found
by a crash or a hang:

- alerts are popped by one thread only, and what they hold is copied before the next pop;
- that thread waits in a pipe, never in libtorrent;
- a session doesn't survive `fork()`, so it is made when it is first used;
- a torrent that is added paused and resumed as soon as it is checked connects at once, where one
  that is added running waits for the next turn of a loop of one second.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, Self

from narswarm import lt_compat
from narswarm.download import Download, Progress, SwarmStalledError
from narswarm.errors import BusyError, InvalidInputError, NetworkError, NotFoundError
from narswarm.swarm_events import (
    CATEGORIES,
    EventReader,
    PortMapping,
    Torrent,
    TorrentStatus,
    TrackerStatus,
)
from narswarm.swarm_listening import Listeners
from narswarm.swarm_settings import LAN, SwarmSettings, listen_port_of, split_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from narswarm.swarm_crowd import Crowd

__all__ = [
    "Download",
    "PortMapping",
    "Progress",
    "Swarm",
    "SwarmSettings",
    "SwarmStalledError",
    "TorrentStatus",
    "TrackerStatus",
]

DELETE_FILES = 1
"""libtorrent's `session_handle::delete_files`; the binding gives it different types by version."""


class Swarm:
    """A session with its torrents. Threads may share it; a context manager closes it."""

    def __init__(self, settings: SwarmSettings) -> None:
        """Check SETTINGS; sockets are opened by the first use.

        Raises:
            SettingsError: libtorrent has no such setting, or an address isn't one.
            NotFoundError: libtorrent isn't installed, and settings of it are to be checked.
        """
        settings.check()
        self._settings = settings
        self._lock = threading.Lock()
        self._session: Any = None
        self._events: EventReader | None = None
        self._process = 0
        self._closed = False
        self._starved: set[str] = set()
        self._listeners = Listeners()
        self._utp = settings.role == "seed"

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # The session

    def _start(self) -> tuple[Any, EventReader]:
        """The session and its events, made now if this is the first use."""
        with self._lock:
            if self._closed:
                raise NetworkError("BitTorrent session", "is closed")
            if self._events is None:
                lt = lt_compat.library()
                mask = 0
                for name in CATEGORIES + (("dht",) if self._settings.role == "fetch" else ()):
                    mask |= int(getattr(lt.alert_category, name))
                self._session = lt_compat.new_session(
                    self._settings.pack(mask),
                    self._settings.dht_state if self._settings.dht else b"",
                    stream=self._settings.role == "fetch",
                )
                if self._settings.lan_only:
                    lt_compat.let_in_only(self._session, LAN)
                self._events = EventReader(
                    self._session, on_listening=self._on_listening, on_state=self._on_state
                )
                self._process = os.getpid()
                atexit.register(self.close)
            return self._session, self._events

    def close(self) -> None:
        """End all transfers; takes about a second at most, while trackers are told."""
        if self._process not in (0, os.getpid()):
            return  # the child of a fork has the object, but none of the session's threads
        with self._lock:
            self._closed = True
            session, self._session = self._session, None
            events = self._events
        if session is None or events is None:
            return
        atexit.unregister(self.close)
        for torrent in list(events.torrents.values()):
            if torrent.download is not None:
                torrent.download.fail("the BitTorrent session was closed")
        session.pause()
        events.stop()

    @property
    def listen_port(self) -> int:
        """The TCP port that peers can connect to.

        Raises:
            BusyError: another process has a port of the settings, at one address at least.
            NetworkError: no address of the settings can be listened on.
        """
        session, events = self._start()
        with events.news:
            events.wait(lambda: events.listening or events.listen_failures)
        # An answer from libtorrent's own thread, which opens all sockets in one go.
        port = int(session.listen_port())
        self._metrics(session, events)  # what it said of that before is read by then
        with events.news:
            failures = list(events.listen_failures)
            listening = set(events.listening)
        wanted = {listen_port_of(address) for address in self._settings.listen}
        for failure in failures:
            # One that is open all the same is in the settings twice, as by a wildcard.
            if failure.taken and failure.port in wanted and failure[:2] not in listening:
                host = f"[{failure.address}]" if ":" in failure.address else failure.address
                raise BusyError(f"{host}:{failure.port}", failure.reason)
        if not port:
            raise NetworkError(
                ", ".join(self._settings.listen),
                failures[0].reason if failures else "nothing listens there",
            )
        return port

    def add_dht_node(self, host: str, port: int) -> None:
        """Make a DHT node known."""
        session, _ = self._start()
        session.add_dht_node((host, port))

    def dht_state(self) -> bytes:
        """The DHT's nodes, for the settings of the next session; empty without a DHT."""
        session, _ = self._start()
        return lt_compat.dht_state(session) if self._settings.dht else b""

    def limit_rates(self, upload: int, download: int) -> None:
        """Set the bytes a second that are sent and received at most, 0 for no limit."""
        session, _ = self._start()
        session.apply_settings({"upload_rate_limit": upload, "download_rate_limit": download})

    def pause_seeding(self, *, paused: bool) -> None:
        """Stop offering all files that are seeded now, or offer them again."""
        _, events = self._start()
        for torrent in list(events.torrents.values()):
            if torrent.download is None and torrent.handle is not None:
                if paused:
                    torrent.handle.pause()
                else:
                    torrent.handle.resume()

    # Torrents

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
        params.peers = list(peers)  # an .append() to the property would be lost
        params.url_seeds = list(web_seeds)
        record = Torrent(None, TorrentStatus(facts.infohash, facts.name), download)
        if not self._add(params, record):
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

    def mappings(self) -> list[PortMapping]:
        """What routers said when they were asked to forward our port."""
        _, events = self._start()
        with events.news:
            return list(events.mappings.values())

    def counters(self) -> dict[str, int]:
        """Payload bytes "uploaded" and "downloaded", "peers", "incoming" and "dht_nodes"."""
        metrics = self._metrics(*self._start())
        return {
            "uploaded": metrics.get("net.sent_payload_bytes", 0),
            "downloaded": metrics.get("net.recv_payload_bytes", 0),
            "peers": metrics.get("peer.num_peers_connected", 0),
            "incoming": metrics.get("peer.incoming_connections", 0),
            "dht_nodes": metrics.get("dht.dht_nodes", 0),
        }

    def peers(self, most: int = 1000) -> list[str]:
        """IP addresses of peers that are connected now, once for each torrent; at most so many."""
        found: list[str] = []
        for status in self.status():
            if status.peers and len(found) < most:
                with contextlib.suppress(NotFoundError, RuntimeError):  # gone meanwhile
                    peers = self._find(status.infohash).handle.get_peer_info()
                    found += [str(peer.ip[0]) for peer in peers]
        return found[:most]

    def _metrics(self, session: Any, events: EventReader) -> dict[str, int]:
        """The session's own statistics, as of now."""
        with events.news:
            before = events.metrics_at
            session.post_session_stats()
            events.wait(lambda: events.metrics_at > before)
            return events.metrics

    # Reactions; the first two are called by the alert thread, so nothing here waits

    def _on_listening(self) -> None:
        session = self._session
        if session is None or not self._settings.dht:
            return
        session.apply_settings({"enable_dht": True})
        if self._settings.private_network:
            for node in self._settings.dht_nodes:
                session.add_dht_node(split_address(node))

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
