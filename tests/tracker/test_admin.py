# SPDX-License-Identifier: GPL-3.0-or-later
"""What the running tracker does for its operator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from ipaddress import ip_network
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from narswarm.acl import Acl
from narswarm.control import Control
from narswarm.errors import NarswarmError, SettingsError
from tracker import admin as admin_module
from tracker import blocks, database
from tracker.aclfile import AclFile
from tracker.admin import CHANGEABLE, Admin
from tracker.announcer import Announcer
from tracker.app import TrackerApp
from tracker.blocks import Block, Kind
from tracker.index import Index
from tracker.publication import check
from tracker.settings import Settings
from tracker.swarmstore import MemorySwarms
from tracker.wire_http import AnnounceRequest, Event

NOW = 1_700_000_000
ADDRESS = b"\xc0\0\2\1"

MakeItem = Callable[..., Any]


class Tracker:
    """A tracker without transports."""

    def __init__(self, settings: Settings) -> None:
        self.loaded: Settings | NarswarmError = settings
        self.index = Index(settings.data)
        rng = Random(1)  # noqa: S311 - the same at each run
        self.swarms = MemorySwarms(settings.limits(), keep_downloads=not settings.open)
        self.announcer = Announcer(settings.policy(), self.swarms, self.index.is_listed, rng)
        self.acl_file = AclFile(settings.acl, self.index)
        self.acl_file.refresh()
        self.app = TrackerApp(settings, self.index, self.announcer, self.acl_file)
        parts = (self.index, self.announcer, self.acl_file, self.app)
        self.admin = Admin(settings, self.load, *parts)

    def load(self) -> Settings:
        """Read the settings anew."""
        if isinstance(self.loaded, NarswarmError):
            raise self.loaded
        return self.loaded

    def announce(self, info_hash: bytes, event: Event = Event.NONE, port: int = 1) -> bool:
        """One announce; return whether it was answered."""
        request = AnnounceRequest(info_hash, b"p" * 20, port, 1, event)
        return self.announcer.announce(request, ADDRESS, NOW) is not None


MakeTracker = Callable[..., Tracker]


@pytest.fixture(name="make_tracker")
def make_tracker_fixture(tmp_path: Path, acl_text: bytes) -> Iterator[MakeTracker]:
    """A maker of trackers with one data directory."""
    acl = tmp_path / "acl"
    acl.write_bytes(acl_text)
    made: list[Tracker] = []

    def make(**changes: Any) -> Tracker:
        made.append(Tracker(replace(Settings(acl=acl, data=tmp_path / "data"), **changes)))
        return made[-1]

    yield make
    for tracker in made:
        tracker.index.close()


@pytest.fixture(name="item")
def item_fixture(tmp_path: Path, make_item: MakeItem, acl: Acl) -> Any:
    """An item that is in the index."""
    item = make_item()
    index = Index(tmp_path / "data")
    index.publish(check(item.nar_hash, item.body, acl, ()), bytes(32), NOW)
    index.close()
    return item


def _block(directory: Path, kind: Kind, value: bytes) -> None:
    with database.opened(directory / "data") as connection:
        blocks.add(connection, Block(kind, value, "", NOW))


def test_downloads_survive(make_tracker: MakeTracker, item: Any) -> None:
    """What a round wrote down is there after a kill, and is counted on."""
    first = make_tracker()
    first.admin.start()
    first.announce(item.meta.infohash_v1, Event.COMPLETED)
    first.admin.round()
    first.announce(item.meta.infohash_v1, Event.COMPLETED, port=2)
    killed = make_tracker()
    killed.announcer.restore_downloads(killed.index.downloads())
    assert killed.announcer.counts([item.meta.infohash_v1])[0].downloaded == 1
    first.admin.stop()
    second = make_tracker()
    second.admin.start()
    assert second.announcer.counts([item.meta.infohash_v1])[0].downloaded == 2
    second.admin.stop()


def test_downloads_that_cannot_be_written(
    make_tracker: MakeTracker,
    item: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They are kept for the next round, and it is said."""
    tracker = make_tracker()
    tracker.announce(item.meta.infohash_v1, Event.COMPLETED)

    def fail(_: object) -> None:
        raise NarswarmError("index", "is on a full disk")

    with monkeypatch.context() as patched:
        patched.setattr(tracker.index, "keep_downloads", fail)
        tracker.admin.keep()
    assert caplog.messages == ["numbers of downloads could not be kept: index: is on a full disk"]
    tracker.admin.keep()
    assert tracker.index.downloads() == {item.meta.infohash_v1: 1}


def test_open_trackers_keep_no_downloads(make_tracker: MakeTracker, item: Any) -> None:
    """They forget a swarm with its last peer, so a number would go down again."""
    tracker = make_tracker(open=True)
    tracker.index.keep_downloads({item.meta.infohash_v1: 5})
    tracker.admin.start()
    tracker.announce(item.meta.infohash_v1, Event.COMPLETED)
    tracker.admin.stop()
    assert tracker.index.downloads() == {item.meta.infohash_v1: 5}
    assert tracker.announcer.counts([item.meta.infohash_v1])[0].downloaded == 1


def test_blocks_at_the_start(make_tracker: MakeTracker, item: Any, tmp_path: Path) -> None:
    """What was blocked while no tracker ran holds from the first announce on."""
    _block(tmp_path, Kind.INFOHASH, item.meta.infohash_v1)
    tracker = make_tracker()
    tracker.admin.start()
    assert tracker.announcer.blocks.info_hashes == {
        item.meta.infohash_v1,
        item.meta.infohash_v2[:20],
    }
    tracker.admin.stop()


def test_commands_are_obeyed(make_tracker: MakeTracker, item: Any, tmp_path: Path) -> None:
    """When the command got its answer, the block holds, and peers at blocked addresses are gone."""
    tracker = make_tracker()
    tracker.admin.start()
    assert tracker.announce(item.meta.infohash_v1)
    with Control(tmp_path / "data", "tracker") as control:
        _block(tmp_path, Kind.ADDRESS, b"192.0.2.0/24")
        assert control.ask("apply") == {}
        assert tracker.announcer.refuses(ADDRESS)
        assert tracker.announcer.totals().leechers_ipv4 == 0
        _block(tmp_path, Kind.NAR, item.nar_hash)
        control.ask("apply")
        assert item.meta.infohash_v1 in tracker.announcer.blocks.info_hashes
        before = tracker.announcer.blocks
        control.ask("apply")
        assert tracker.announcer.blocks is before
    tracker.admin.stop()


def test_blocks_are_noticed_without_being_told(
    make_tracker: MakeTracker, item: Any, tmp_path: Path
) -> None:
    """A round reads what a command wrote that couldn't say so."""
    tracker = make_tracker()
    _block(tmp_path, Kind.INFOHASH, item.meta.infohash_v1)
    tracker.admin.round()
    assert item.meta.infohash_v1 in tracker.announcer.blocks.info_hashes


def test_database_that_cannot_be_read(
    make_tracker: MakeTracker, caplog: pytest.LogCaptureFixture
) -> None:
    """A round says so and goes on."""
    tracker = make_tracker()
    tracker.index.close()
    tracker.admin.round()
    (message,) = caplog.messages
    assert message.startswith("blocks could not be read: ")


def test_numbers(make_tracker: MakeTracker, item: Any, tmp_path: Path) -> None:
    """Statistics, and the peers of torrents that are asked for."""
    tracker = make_tracker()
    tracker.admin.start()
    hashes = [item.meta.infohash_v1, item.meta.infohash_v2[:20]]
    for info_hash in hashes:
        tracker.announce(info_hash)
    tracker.announcer.scrape_http(b"info_hash=%b" % (b"x" * 20), "::1", None)
    with Control(tmp_path / "data", "tracker") as control:
        stats = control.ask("stats")
        torrents = [[info_hash.hex() for info_hash in hashes], ["00" * 20]]
        assert control.ask("counts", torrents=torrents) == {"counts": [[0, 1, 0], [0, 0, 0]]}
        for wrong in ("x", [["x"]], [1], None):
            with pytest.raises(NarswarmError) as caught:
                control.ask("counts", torrents=wrong)
            assert str(caught.value) == "request: lacks what the operation needs"
        with pytest.raises(NarswarmError) as caught:
            control.ask("counts", torrents=[[]] * 10_001)
        assert str(caught.value) == "torrents: are more than 10000"
    tracker.admin.stop()
    assert (stats["swarms"], stats["leechers_ipv4"], stats["open"]) == (2, 2, False)
    assert stats["engine"] == "python"
    names = ("holders", "held", "wanted", "polls", "preparing")
    assert [stats[name] for name in names] == [0, 0, 0, 0, 0]
    assert (stats["index"]["nars"], stats["index"]["info_hashes"]) == (1, 2)
    key = {"protocol": "http", "family": "ipv6", "action": "scrape", "outcome": "ok"}
    assert stats["requests"] == [{**key, "count": 1}]


def test_reload(
    make_tracker: MakeTracker, item: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What can change does, what can't is said, and ACL and blocks are read too."""
    caplog.set_level(logging.INFO)
    tracker = make_tracker()
    _block(tmp_path, Kind.ADDRESS, b"198.51.100.0/24")
    (tmp_path / "acl").write_bytes(b"(acl)")
    old = tracker.load()
    tracker.loaded = replace(old, interval=100, metrics_from=("10.0.0.0/8",), threads=3, open=True)
    tracker.admin.reload()
    assert caplog.messages == [
        "reloaded; settings that changed: interval, metrics_from",
        "these take a restart: open, threads",
    ]
    assert tracker.announcer._policy.interval == 100
    assert tracker.swarms.limits.seed_timeout == 1200
    assert tracker.app._metrics_from == (ip_network("10.0.0.0/8"),)
    assert tracker.app._settings.threads == old.threads
    assert tracker.announcer.blocks.has_networks
    assert not tracker.index.is_listed(item.meta.infohash_v1)
    caplog.clear()
    tracker.loaded = replace(old, interval=100, metrics_from=("10.0.0.0/8",))
    tracker.admin.reload()
    assert caplog.messages == ["reloaded; settings that changed: none"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "file: is missing"),
        ({"interval": 100, "publishers": ("x",)}, "publishers: 'x' is not 32 bytes in base64"),
        (
            {"interval": 100, "trusted_proxies": ("x",)},
            "trusted_proxies: 'x' does not appear to be an IPv4 or IPv6 network",
        ),
    ],
)
def test_reload_of_senseless_settings(
    make_tracker: MakeTracker,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any] | None,
    message: str,
) -> None:
    """Nothing of them is taken, and the tracker goes on."""
    tracker = make_tracker()
    tracker.loaded = (
        SettingsError("file", "is missing")
        if changes is None
        else replace(tracker.load(), **changes)
    )
    tracker.admin.reload()
    assert caplog.messages == [f"settings stay as they are: {message}"]
    assert tracker.announcer._policy.interval == 1800


def test_signal_reloads(make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request to reload is taken up by the thread, before it ends."""
    tracker = make_tracker()
    calls: list[str] = []
    monkeypatch.setattr(tracker.admin, "reload", lambda: calls.append("reload"))
    monkeypatch.setattr(tracker.admin, "keep", lambda: calls.append("keep"))
    tracker.admin.request_reload()
    tracker.admin.start()
    tracker.admin.stop()
    assert calls == ["reload", "keep"]


def test_rounds(make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing wakes the thread for long enough, it does a round."""
    tracker = make_tracker()
    monkeypatch.setattr(admin_module, "ROUND_SECONDS", 0)
    wake = tracker.admin._wake
    monkeypatch.setattr(tracker.admin, "round", lambda: wake.put(False))
    tracker.admin._run()
    assert wake.empty()


def test_without_socket(
    make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A tracker that can't make its socket serves all the same."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    tracker = make_tracker()
    monkeypatch.setattr(admin_module, "ControlServer", fail)
    tracker.admin.start()
    tracker.admin.stop()
    assert caplog.messages == [
        "control socket: No space left on device; commands can't reach this tracker"
    ]


def test_changeable_settings_exist() -> None:
    """All of them are settings."""
    assert {field.name for field in fields(Settings)} > CHANGEABLE
    assert SimpleNamespace(**dict.fromkeys(CHANGEABLE))
