# SPDX-License-Identifier: GPL-3.0-or-later
"""The alert thread, fed with alerts that a test makes up."""

from __future__ import annotations

import errno
import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest

from narswarm.swarm_events import (
    EventReader,
    ListenFailure,
    PortMapping,
    Torrent,
    TorrentStatus,
    TrackerStatus,
)

HASH = "ab" * 32
HERE = {"address": "::1", "port": 6881}


class Session:
    """A session that says what the test gives it."""

    def __init__(self, *alerts: Any) -> None:
        self.alerts = list(alerts)
        self.descriptor = -1

    def set_alert_fd(self, descriptor: int) -> None:
        """Where libtorrent would write a byte for new alerts."""
        self.descriptor = descriptor

    def pop_alerts(self) -> list[Any]:
        """All alerts since the last call."""
        alerts, self.alerts = self.alerts, []
        return alerts


def alert(kind: str, **fields: Any) -> Any:
    """An alert by the name of its class in libtorrent."""
    hashes = SimpleNamespace(has_v2=lambda: True, v2=HASH, v1="cd" * 20)
    fields.setdefault("handle", SimpleNamespace(info_hashes=lambda: hashes))
    fields.setdefault("message", lambda: kind)
    return type(kind, (SimpleNamespace,), {})(**fields)


def error(text: str, value: int = 28, category: str = "system") -> Any:
    """An error code of a category of libtorrent."""
    return SimpleNamespace(
        message=lambda: text,
        value=lambda: value,
        category=lambda: SimpleNamespace(name=lambda: category),
    )


def read(*alerts: Any, torrent: Torrent | None = None) -> EventReader:
    """A reader that has read ALERTS and ended."""
    session = Session()
    reader = EventReader(session, on_listening=lambda: None, on_state=lambda _: None)
    if torrent is not None:
        reader.torrents[HASH] = torrent
    session.alerts = list(alerts)
    reader.stop()
    return reader


def test_a_byte_in_the_pipe_wakes_the_thread() -> None:
    """Libtorrent writes one when it has alerts; nothing else makes the thread look."""
    session = Session()
    reader = EventReader(session, on_listening=lambda: None, on_state=lambda _: None)
    session.alerts = [alert("session_stats_alert", values={"dht.dht_nodes": 3})]
    with reader.news:
        os.write(session.descriptor, b"x")
        assert reader.wait(lambda: reader.metrics_at == 1)
    assert reader.metrics == {"dht.dht_nodes": 3}
    reader.stop()


def test_the_pipe_lives_as_long_as_the_session() -> None:
    """Libtorrent writes until the session's end, and then the number may be another file's."""
    session = Session()
    EventReader(session, on_listening=lambda: None, on_state=lambda _: None).stop()
    descriptor = session.descriptor
    os.fstat(descriptor)
    del session
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_tracker_results_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies and errors add up; a good reply takes the last error's message away."""
    monkeypatch.setattr("time.time", lambda: 7.0)
    url = "http://tracker/announce"
    refused = alert(
        "tracker_error_alert", url=url, failure_reason=lambda: "", error=error("refused")
    )
    closed = alert(
        "tracker_error_alert", url=url, failure_reason=lambda: "closed", error=error("x")
    )
    good = alert("tracker_reply_alert", url=url)
    assert read(refused).trackers == {url: TrackerStatus(url, 0, 1, "refused", 7.0)}
    assert read(good, refused, closed).trackers == {url: TrackerStatus(url, 1, 2, "closed", 7.0)}
    assert read(closed, good).trackers == {url: TrackerStatus(url, 1, 1, "", 7.0)}


def test_a_tracker_that_one_address_can_t_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Announces that were skipped count as long as none went well, or the last one failed."""
    monkeypatch.setattr("time.time", lambda: 7.0)
    url = "http://tracker/announce"

    def failed(code: Any) -> Any:
        return alert("tracker_error_alert", url=url, failure_reason=lambda: "", error=code)

    skipped, refused = failed(error("skipped", 180, "libtorrent")), failed(error("refused"))
    good = alert("tracker_reply_alert", url=url)
    assert read(skipped).trackers == {url: TrackerStatus(url, 0, 1, "skipped", 7.0)}
    assert read(good, skipped).trackers == {url: TrackerStatus(url, 1, 0, "", 7.0)}
    expected = {url: TrackerStatus(url, 1, 2, "skipped", 7.0)}
    assert read(good, refused, skipped).trackers == expected
    assert read(skipped, good, skipped).trackers == {url: TrackerStatus(url, 1, 1, "", 7.0)}
    assert read(good, failed(error("x", 180))).trackers == {url: TrackerStatus(url, 1, 1, "x", 7.0)}


@pytest.mark.parametrize("kind", ["file_error_alert", "torrent_error_alert"])
def test_a_seed_with_an_error_is_logged(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for a seed, so that its error is kept in its state and in the log."""
    torrent = Torrent(None, TorrentStatus(HASH, "x.nar.zst", "seeding"))
    read(alert(kind, error=error("Input/output error")), torrent=torrent)
    assert torrent.status == TorrentStatus(HASH, "x.nar.zst", "error", error="Input/output error")
    assert caplog.messages == ["x.nar.zst: Input/output error"]


def test_an_alert_that_can_t_be_handled_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """One broken alert doesn't end the thread that everybody waits for."""
    with caplog.at_level(logging.ERROR):
        reader = read(alert("tracker_reply_alert"), alert("listen_succeeded_alert", **HERE))
    assert caplog.messages == ["libtorrent's tracker_reply_alert"]
    assert reader.listening == {("::1", 6881)}


@pytest.mark.parametrize(
    ("category", "code", "taken"),
    [
        ("system", errno.EADDRINUSE, True),
        ("system", errno.EACCES, False),
        ("libtorrent", errno.EADDRINUSE, False),
    ],
)
def test_why_a_port_is_not_listened_on(category: str, code: int, *, taken: bool) -> None:
    """A port that somebody else has is told apart from one that can't be had at all."""
    reason = SimpleNamespace(
        message=lambda: "why",
        value=lambda: code,
        category=lambda: SimpleNamespace(name=lambda: category),
    )
    reader = read(alert("listen_failed_alert", error=reason, **HERE))
    assert reader.listen_failures == [ListenFailure("::1", 6881, "why", taken)]
    assert not reader.listening


def test_alerts_of_unknown_torrents_are_passed_over() -> None:
    """Alerts may come after a torrent was removed."""
    kinds = ["torrent_checked_alert", "state_changed_alert", "piece_finished_alert"]
    kinds += ["read_piece_alert", "file_error_alert", "anything_else_alert"]
    reader = read(*(alert(kind) for kind in kinds))
    assert reader.torrents == {}


def test_lost_alerts_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Libtorrent drops alerts when its queue is full: somebody should know."""
    read(alert("alerts_dropped_alert", message=lambda: "dropped alerts: piece_finished"))
    assert caplog.messages == ["dropped alerts: piece_finished"]


@pytest.mark.parametrize(
    ("delete", "kind", "done"),
    [
        (False, "torrent_removed_alert", True),
        (True, "torrent_removed_alert", False),
        (True, "torrent_deleted_alert", True),
        (True, "torrent_delete_failed_alert", True),
    ],
)
def test_a_removal_is_over_when_the_files_are(kind: str, *, delete: bool, done: bool) -> None:
    """With its files a torrent is removed when they are deleted, or can't be."""
    session = Session()
    reader = EventReader(session, on_listening=lambda: None, on_state=lambda _: None)
    reader.removals[HASH] = delete
    hashes = SimpleNamespace(has_v2=lambda: True, v2=HASH)
    session.alerts = [alert(kind, info_hashes=hashes)]
    reader.stop()
    assert (HASH not in reader.removals) is done


class Name:
    """An enumerator of libtorrent."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


def test_what_routers_say() -> None:
    """The last word about each mapping counts; an answer ends the search for a router."""
    upnp, natpmp, tcp, udp = map(Name, ("upnp", "natpmp", "tcp", "udp"))

    def mapped(mapping: int, by: object, protocol: object, port: int) -> Any:
        return alert(
            "portmap_alert",
            mapping=mapping,
            map_transport=by,
            map_protocol=protocol,
            external_port=port,
        )

    def refused(mapping: int, by: object, reason: str) -> Any:
        return alert("portmap_error_alert", mapping=mapping, map_transport=by, error=error(reason))

    reader = read(
        refused(-1, upnp, "no router found"),
        refused(-1, natpmp, "no router found"),
        mapped(0, upnp, tcp, 6881),
        mapped(1, upnp, udp, 6881),
        refused(1, upnp, "it has enough"),
        refused(2, upnp, "it has enough"),
        mapped(2, upnp, udp, 7000),
    )
    assert list(reader.mappings.values()) == [
        PortMapping("NAT-PMP", "", 0, "no router found"),
        PortMapping("UPnP", "TCP", 6881, ""),
        PortMapping("UPnP", "", 0, "it has enough"),
        PortMapping("UPnP", "UDP", 7000, ""),
    ]
