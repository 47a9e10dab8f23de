# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.session, with real sessions on loopback."""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from narswarm import base32, metainfo, nar
from narswarm.errors import NarswarmError, SettingsError
from narswarm.swarm import Swarm
from narswarm.swarm_settings import SwarmSettings
from substituter import session as module
from substituter.session import Session
from substituter.settings import SubstituterSettings
from substituter.substitute import Substitute
from tests.substituter.conftest import Item, Site, World, torrent_of

Sessions = Callable[..., Session]


@pytest.fixture
def start(settings: SubstituterSettings) -> Iterator[Sessions]:
    """Makes sessions with some settings changed; what they warn of may be collected."""
    made: list[Session] = []

    def make(warnings: list[str] | None = None, **changes: object) -> Session:
        changed = dataclasses.replace(settings, **changes)  # type: ignore[arg-type]
        warn = pytest.fail if warnings is None else warnings.append
        made.append(Session(changed, warn))
        return made[-1]

    yield make
    for session in made:
        session.close()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made."""
    directory = tmp_path / "tmp"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be nobody for a while: root may do everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_the_session_is_made_once_and_listens(start: Sessions) -> None:
    """Starting it in the background opens its sockets; everybody gets the same one."""
    session = start()
    session.start()
    session.start()
    assert session.swarm() is session.swarm()
    assert session.swarm().listen_port > 0


def test_an_error_of_libtorrent_is_told_once(start: Sessions) -> None:
    """A setting that it doesn't have is one line, and an error for each who wants the session."""
    warnings: list[str] = []
    session = start(warnings, libtorrent={"no_such_setting": 1})
    for _ in range(2):
        with pytest.raises(SettingsError):
            session.swarm()
    assert len(warnings) == 1
    assert warnings[0].startswith("libtorrent.no_such_setting: libtorrent ")
    assert warnings[0].endswith(" has no such setting")


def test_without_a_session_http_serves(
    enter: Callable[..., World],
    make_item: Callable[..., Item],
    settings: SubstituterSettings,
    site: Site,
    start: Sessions,
    tmp_path: Path,
) -> None:
    """A torrent that is known doesn't fail the item when there is nothing to fetch it with."""
    item = make_item("a")
    site.offer(item, "zstd")
    torrent = torrent_of(item, tmp_path)[0]
    directory = settings.state / "torrents" / base32.encode(item.nar_hash)
    directory.mkdir(parents=True)
    infohash = metainfo.decode(torrent, "torrent").infohash_v2.hex()
    (directory / f"{infohash}.torrent").write_bytes(torrent)
    warnings: list[str] = []
    replies: list[bytes] = []
    changed = dataclasses.replace(settings, policy="swarm-first")
    session = start(warnings, libtorrent={"no_such_setting": 1})
    helper = Substitute(enter(site.url, changed=changed).context, session, replies.append)
    for name in "xy":
        helper.run(io.BytesIO(f"substitute {item.path} {tmp_path / name}\n".encode()))
        assert b"".join(nar.dump(tmp_path / name)) == item.nar
    assert [reply.split()[0] for reply in replies] == [b"success", b"success"]
    assert len(warnings) == 1


@pytest.mark.parametrize(("age", "stays"), [(86400.0 - 60, True), (86400.0 + 60, False)])
def test_abandoned_downloads_are_removed(
    start: Sessions, settings: SubstituterSettings, age: float, stays: bool
) -> None:
    """What nobody has written to for a day goes; what is younger may be another helper's."""
    downloads = settings.state / "downloads"
    (downloads / "directory").mkdir(parents=True)
    file = downloads / "x.nar.zst"
    file.write_bytes(b"partial")
    for path in (file, downloads / "directory"):
        os.utime(path, (time.time() - age,) * 2)
    start().swarm()
    assert file.exists() is stays
    assert (downloads / "directory").exists()


def test_a_state_directory_that_cannot_be_made_is_replaced(
    start: Sessions, temporary: Path
) -> None:
    """Downloads go to a temporary directory of this user alone."""
    session = start(state=Path("/proc/narswarm"))
    session.swarm()
    assert session.downloads.parent == temporary
    assert session.downloads.stat().st_mode & 0o777 == 0o700
    session.close()
    assert list(temporary.iterdir()) == []


def test_a_directory_of_another_user_is_replaced(
    start: Sessions, settings: SubstituterSettings, temporary: Path, tmp_path: Path
) -> None:
    """That the directory exists isn't enough: its files are to be made in it."""
    downloads = settings.state / "downloads"
    downloads.mkdir(parents=True)
    downloads.chmod(0o555)
    session = start()
    opened = [path for path in [tmp_path, *tmp_path.parents] if not path.stat().st_mode & 1]
    for path in opened:
        path.chmod(0o755)
    with unprivileged():
        session._prepare_downloads()
        assert session.downloads.parent == temporary


def test_no_place_for_downloads_is_an_error(
    start: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a temporary directory either there is no session, and the user learns why."""

    def fail(**_: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    warnings: list[str] = []
    session = start(warnings, state=Path("/proc/narswarm"))
    with pytest.raises(NarswarmError) as caught:
        session.swarm()
    assert str(caught.value) == ("/proc/narswarm/downloads: No usable temporary directory found")
    assert warnings == [str(caught.value)]


def with_dht(**changes: object) -> dict[str, object]:
    """Settings of a DHT on loopback."""
    return {"dht": True, "private_network": True, **changes}


def wait_for_nodes(swarm: Swarm) -> None:
    """Wait until a session knows a node."""
    deadline = time.monotonic() + 120
    while not swarm.counters()["dht_nodes"]:
        assert time.monotonic() < deadline, "no node was found"


def test_nodes_are_saved_when_there_are_some(
    start: Sessions, settings: SubstituterSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A young session leaves what an earlier one has saved; one with nodes replaces it."""
    state = settings.state / "dht.state"
    state.parent.mkdir()
    state.write_bytes(b"of an earlier session")
    node = Swarm(
        SwarmSettings(
            listen=("127.0.0.1:0",),
            dht=True,
            lsd=False,
            upnp=False,
            private_network=True,
            role="seed",
        )
    )
    with node:
        session = start(**with_dht())
        swarm = session.swarm()
        session.save()
        assert state.read_bytes() == b"of an earlier session"
        assert swarm.listen_port
        swarm.add_dht_node("127.0.0.1", node.listen_port)
        wait_for_nodes(swarm)
        session.save()
        saved = state.read_bytes()
        assert b"nodes" in saved
        # Not at each item.
        state.write_bytes(b"")
        session.save()
        assert state.read_bytes() == b""
        monkeypatch.setattr(module, "_SAVE_INTERVAL", 0.0)
        session.save()
        assert b"nodes" in state.read_bytes()


def test_saving_never_fails(start: Sessions) -> None:
    """Before the start, without a DHT, and with a directory that can't be written."""
    for changes in ({}, with_dht(state=Path("/proc/narswarm"))):
        session = start(**changes)
        session.save()
        session.swarm()
        session.save()


def test_a_session_that_was_never_started_can_be_closed(start: Sessions) -> None:
    """Also twice."""
    session = start()
    session.close()
    session.close()


class Kept:
    """A complete payload."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.cancelled: list[bool] = []

    def cancel(self, *, keep: bool) -> None:
        """Leave the swarm."""
        self.cancelled.append(keep)


def test_payloads_are_uploaded_until_others_need_the_room(start: Sessions) -> None:
    """The oldest goes first, with its file."""
    session = start(prefetch_disk=10)
    kept = [Kept(4), Kept(4), Kept(4)]
    for each in kept:
        session.keep(each)  # type: ignore[arg-type]
    assert [each.cancelled for each in kept] == [[False], [], []]


def test_what_killed_helpers_fetched_ahead_is_removed(
    start: Sessions, settings: SubstituterSettings
) -> None:
    """A helper has no time to clean up; those that run keep theirs."""
    downloads = settings.state / "downloads"
    for name in ("ahead-999999999", f"ahead-{os.getppid()}"):
        (downloads / name).mkdir(parents=True)
        (downloads / name / "payload").touch()
    session = start()
    session.swarm()
    assert sorted(each.name for each in downloads.iterdir()) == [f"ahead-{os.getppid()}"]
    (session.ahead / "payload").touch()
    session.close()
    assert sorted(each.name for each in downloads.iterdir()) == [f"ahead-{os.getppid()}"]
