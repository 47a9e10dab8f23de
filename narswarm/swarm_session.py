# SPDX-License-Identifier: GPL-3.0-or-later
"""A BitTorrent session without its torrents: how it begins and ends, listens, and joins the DHT.

Rules of libtorrent's Python binding that are kept here and in `narswarm.swarm_events`, each found
by a crash or a hang:

- alerts are popped by one thread only, and what they hold is copied before the next pop;
- that thread waits in a pipe, never in libtorrent;
- a session doesn't survive `fork()`, so it is made when it is first used.

`narswarm.swarm` adds the torrents.
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING, Any, Self

from narswarm import lt_compat
from narswarm.errors import BusyError, NetworkError
from narswarm.swarm_crowd import session_name
from narswarm.swarm_events import CATEGORIES, EventReader, PortMapping, Torrent
from narswarm.swarm_settings import LAN, SwarmSettings, listen_port_of, split_address

if TYPE_CHECKING:
    from types import TracebackType


class Session:
    """libtorrent's session. Threads may share it; a context manager closes it."""

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
        self._name = session_name()

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
                    self._settings.pack(mask, self._name),
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

    def _metrics(self, session: Any, events: EventReader) -> dict[str, int]:
        """The session's own statistics, as of now."""
        with events.news:
            before = events.metrics_at
            session.post_session_stats()
            events.wait(lambda: events.metrics_at > before)
            return events.metrics

    # Reactions, which the alert thread calls, so that nothing here waits

    def _on_listening(self) -> None:
        session = self._session
        if session is None or not self._settings.dht:
            return
        session.apply_settings({"enable_dht": True})
        if self._settings.private_network:
            for node in self._settings.dht_nodes:
                session.add_dht_node(split_address(node))

    def _on_state(self, torrent: Torrent) -> None:
        """The state of a torrent has changed."""
