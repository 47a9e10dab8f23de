# SPDX-License-Identifier: GPL-3.0-or-later
"""What a BitTorrent session says: libtorrent's alerts, turned into state that programs can ask.

One thread reads all alerts of a session. It blocks in a pipe that libtorrent writes to, takes what
an alert holds before the next batch frees it, and calls nothing that waits. Of the other ways to
wait, `set_alert_notify` deadlocks with the session's end, and `wait_for_alert` of libtorrent 2.0
returns an alert that moves in memory while it is looked at. `narswarm.swarm_session` and
`narswarm.swarm` are the other half: what a session is told.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from narswarm import lt_compat

if TYPE_CHECKING:
    from collections.abc import Callable

    from narswarm.download import Download

log = logging.getLogger(__name__)

ANSWER = 5.0
"""Seconds that a session's own answers (statistics, ports, removals) are waited for."""

CATEGORIES = ("error", "status", "storage", "tracker", "piece_progress", "port_mapping")
"""Categories of alerts that `EventReader` needs."""

_SKIPPED = 180
"""libtorrent's `announce_skipped`: a tracker can't be reached from one of this machine's addresses.
Nearly every tracker can't from the loopback interface, which is said again and again."""

STATES = {"seeding": "seeding", "finished": "seeding", "downloading": "downloading"}


@dataclass(frozen=True, slots=True)
class TorrentStatus:
    """One torrent of a session.

    Attributes:
        infohash: hex, of version 2.
        name: the file's name.
        state: "seeding", "downloading", "checking" or "error".
        peers: connected now.
        seeds: those of them that have everything.
        uploaded: payload bytes sent in this run.
        downloaded: payload bytes received in this run.
        upload_rate: payload bytes a second.
        download_rate: payload bytes a second.
        complete: how many have everything, as trackers say; -1 if they don't.
        error: why the state is "error".
    """

    infohash: str
    name: str
    state: str = "checking"
    peers: int = 0
    seeds: int = 0
    uploaded: int = 0
    downloaded: int = 0
    upload_rate: int = 0
    download_rate: int = 0
    complete: int = -1
    error: str = ""


@dataclass(frozen=True, slots=True)
class TrackerStatus:
    """How the announces to one tracker went.

    Attributes:
        url: its announce URL.
        replies: answers in this run.
        errors: announces without a good answer.
        message: what the last error said; empty if the last announce went well.
        when: seconds since the epoch of the last result.
    """

    url: str
    replies: int = 0
    errors: int = 0
    message: str = ""
    when: float = 0.0


@dataclass(slots=True)
class Torrent:
    """What the session keeps of a torrent that was added."""

    handle: Any
    status: TorrentStatus
    download: Download | None = None


class ListenFailure(NamedTuple):
    """An address that could not be listened on.

    Attributes:
        address: IP address, without brackets.
        port: the one that was asked for.
        reason: what the system says.
        taken: another process listens there.
    """

    address: str
    port: int
    reason: str
    taken: bool


class PortMapping(NamedTuple):
    """What a router said when it was asked to forward a port.

    Attributes:
        by: "UPnP" or "NAT-PMP".
        protocol: "TCP" or "UDP"; empty where it is refused.
        port: of the router, 0 if it forwards none.
        error: why it doesn't.
    """

    by: str
    protocol: str
    port: int
    error: str


class EventReader:
    """The alert thread of one session and what it has learnt.

    Attributes:
        torrents: by infohash; the session's owner adds and removes them.
        trackers: by announce URL.
        metrics: libtorrent's session statistics, as of `metrics_at`.
        metrics_at: how many statistics came so far.
        updates: how many state updates came so far.
        listening: IP addresses and ports that are listened on.
        listen_failures: addresses that aren't listened on, in the order of their failures.
        mappings: what routers said, by protocol of the question and its number.
        removals: infohashes that are being removed, and whether with their files.
        news: notified when any of the above changes.
    """

    def __init__(
        self,
        session: Any,
        *,
        on_listening: Callable[[], None],
        on_state: Callable[[Torrent], None],
    ) -> None:
        self.torrents: dict[str, Torrent] = {}
        self.trackers: dict[str, TrackerStatus] = {}
        self.metrics: dict[str, int] = {}
        self.metrics_at = 0
        self.updates = 0
        self.listening: set[tuple[str, int]] = set()
        self.listen_failures: list[ListenFailure] = []
        self.mappings: dict[tuple[str, int], PortMapping] = {}
        self.removals: dict[str, bool] = {}
        self.news = threading.Condition()
        self._session = session
        self._listen_hook = on_listening
        self._state_hook = on_state
        self._stopping = False
        reading, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        session.set_alert_fd(self._wake)
        # libtorrent writes until the session's end, which is when its last user lets go of it.
        weakref.finalize(session, _close, reading, self._wake).atexit = False
        self._thread = threading.Thread(
            target=self._run, args=(reading,), name="alerts", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread; must come before the session's end."""
        self._stopping = True
        with contextlib.suppress(BlockingIOError):  # full, so that it wakes anyway
            os.write(self._wake, b"\0")
        self._thread.join(ANSWER)
        self._session = None

    def wait(self, ready: Callable[[], object]) -> bool:
        """Wait until READY is true, but not for ever; `news` is held."""
        return bool(self.news.wait_for(ready, ANSWER))

    def _run(self, wakes: int) -> None:
        session = self._session
        handlers: dict[str, Any] = {
            "alerts_dropped_alert": self._on_dropped,
            "cache_flushed_alert": self._on_flushed,
            "dht_bootstrap_alert": self._on_dht_bootstrap,
            "file_error_alert": self._on_error,
            "listen_failed_alert": self._on_listen_failed,
            "listen_succeeded_alert": self._on_listening,
            "piece_finished_alert": self._on_piece,
            "portmap_alert": self._on_mapped,
            "portmap_error_alert": self._on_not_mapped,
            "read_piece_alert": self._on_read,
            "session_stats_alert": self._on_metrics,
            "state_changed_alert": self._on_state,
            "state_update_alert": self._on_updates,
            "torrent_checked_alert": self._on_checked,
            "torrent_delete_failed_alert": self._on_deleted,
            "torrent_deleted_alert": self._on_deleted,
            "torrent_error_alert": self._on_error,
            "torrent_removed_alert": self._on_removed,
            "tracker_error_alert": self._on_tracker_error,
            "tracker_reply_alert": self._on_tracker_reply,
        }
        stopping = False
        while not stopping:
            stopping = self._stopping  # and what was said until then is still read
            for alert in session.pop_alerts():
                handler = handlers.get(type(alert).__name__)
                if handler is not None:
                    try:
                        handler(alert)
                    except Exception:
                        log.exception("libtorrent's %s", type(alert).__name__)
            if not stopping:
                os.read(wakes, 4096)

    def _of(self, alert: Any) -> Torrent | None:
        return self.torrents.get(lt_compat.hash_text(alert.handle.info_hashes()))

    def _on_listening(self, alert: Any) -> None:
        first = not self.listening
        with self.news:
            self.listening.add((alert.address, alert.port))
            self.news.notify_all()
        if first:
            log.debug("%s", alert.message())
            self._listen_hook()

    def _on_listen_failed(self, alert: Any) -> None:
        error = alert.error
        taken = error.category().name() == "system" and error.value() == errno.EADDRINUSE
        failure = ListenFailure(alert.address, alert.port, error.message(), taken)
        with self.news:
            self.listen_failures.append(failure)
            self.news.notify_all()
        log.info("%s", alert.message())

    def _on_mapped(self, alert: Any) -> None:
        by, protocol = _asked_by(alert), str(alert.map_protocol).upper()
        mapping = PortMapping(by, protocol, int(alert.external_port), "")
        with self.news:
            self.mappings.pop((by, -1), None)  # it wasn't found at first
            self.mappings[by, int(alert.mapping)] = mapping

    def _on_not_mapped(self, alert: Any) -> None:
        by = _asked_by(alert)
        with self.news:
            self.mappings[by, int(alert.mapping)] = PortMapping(by, "", 0, alert.error.message())

    def _on_dropped(self, alert: Any) -> None:
        log.warning("%s", alert.message())

    def _on_dht_bootstrap(self, _alert: Any) -> None:
        """The DHT is usable from now on; downloads that asked before got nothing."""
        for torrent in list(self.torrents.values()):
            if torrent.download is not None and torrent.handle is not None:
                torrent.handle.force_dht_announce()

    def _on_checked(self, alert: Any) -> None:
        torrent = self._of(alert)
        if torrent is None or torrent.download is None:
            return
        alert.handle.resume()
        pieces = alert.handle.status(lt_compat.library().status_flags_t.query_pieces).pieces
        torrent.download.have({piece for piece, there in enumerate(pieces) if there})

    def _on_state(self, alert: Any) -> None:
        torrent = self._of(alert)
        if torrent is None:
            return
        state = str(alert.state)
        torrent.status = replace(torrent.status, state=STATES.get(state, "checking"))
        if torrent.download is not None:
            if state == "checking_files":
                alert.handle.resume()  # a paused torrent never checks the file that it found
            self._state_hook(torrent)

    def _on_piece(self, alert: Any) -> None:
        torrent = self._of(alert)
        if torrent is not None and torrent.download is not None:
            torrent.download.have({alert.piece_index})

    def _on_flushed(self, alert: Any) -> None:
        torrent = self._of(alert)
        if torrent is not None and torrent.download is not None:
            torrent.download.flushed()

    def _on_read(self, alert: Any) -> None:
        torrent = self._of(alert)
        if torrent is None or torrent.download is None:
            return
        if alert.error.value():
            torrent.download.fail(f"piece {alert.piece} can't be read: {alert.error.message()}")
        else:
            torrent.download.deliver(alert.piece, bytes(alert.buffer))

    def _on_error(self, alert: Any) -> None:
        torrent = self._of(alert)
        if torrent is None:
            return
        reason = alert.error.message()
        torrent.status = replace(torrent.status, state="error", error=reason)
        if torrent.download is not None:
            torrent.download.fail(reason)
        else:
            log.warning("%s: %s", torrent.status.name, reason)

    def _on_removed(self, alert: Any) -> None:
        infohash = lt_compat.hash_text(alert.info_hashes)
        if not self.removals.get(infohash, True):
            self._removed(infohash)

    def _on_deleted(self, alert: Any) -> None:
        self._removed(lt_compat.hash_text(alert.info_hashes))

    def _removed(self, infohash: str) -> None:
        with self.news:
            self.removals.pop(infohash, None)
            self.news.notify_all()

    def _on_metrics(self, alert: Any) -> None:
        values = dict(alert.values)
        with self.news:
            self.metrics = values
            self.metrics_at += 1
            self.news.notify_all()

    def _on_updates(self, alert: Any) -> None:
        for status in alert.status:
            torrent = self.torrents.get(lt_compat.hash_text(status.info_hashes))
            if torrent is None:
                continue
            known = torrent.status
            state = STATES.get(str(status.state), "checking")
            torrent.status = TorrentStatus(
                infohash=known.infohash,
                name=known.name,
                state="error" if known.error else state,
                peers=status.num_peers,
                seeds=status.num_seeds,
                uploaded=status.total_payload_upload,
                downloaded=status.total_payload_download,
                upload_rate=status.upload_payload_rate,
                download_rate=status.download_payload_rate,
                complete=status.num_complete,
                error=known.error,
            )
        with self.news:
            self.updates += 1
            self.news.notify_all()

    def _on_tracker_reply(self, alert: Any) -> None:
        tracker = self.trackers.get(alert.url) or TrackerStatus(alert.url)
        self.trackers[tracker.url] = replace(
            tracker, replies=tracker.replies + 1, message="", when=time.time()
        )

    def _on_tracker_error(self, alert: Any) -> None:
        tracker = self.trackers.get(alert.url) or TrackerStatus(alert.url)
        skipped = alert.error.category().name() == "libtorrent" and alert.error.value() == _SKIPPED
        if skipped and tracker.replies and not tracker.message:
            return  # it answers to another address of this machine
        message = alert.failure_reason() or alert.error.message()
        self.trackers[tracker.url] = replace(
            tracker, errors=tracker.errors + 1, message=message, when=time.time()
        )


def _asked_by(alert: Any) -> str:
    """How a router was asked; PCP is shown as its predecessor NAT-PMP."""
    return "UPnP" if str(alert.map_transport) == "upnp" else "NAT-PMP"


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
