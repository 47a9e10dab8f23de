# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.swarm_listening: what it tells a torrent, which a fake notes."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from narswarm import lt_compat, swarm_listening
from narswarm.download import Download, Progress
from narswarm.lt_compat import Connected
from narswarm.swarm_crowd import AT_LEAST, MEMORY, MIN_LENGTH, NEW, RECALL, STALLED, turn
from narswarm.swarm_listening import Listeners

SEED = Connected("10.0.0.1", 6881, seed=True, called=True, pieces=4)
MEMBER = Connected("10.0.0.2", 40000, seed=False, called=False, pieces=1)
OWN = "narswarm 00000000"
INFOHASH = "ab" * 32
NOTHING = Progress(0, MIN_LENGTH, 0, 0, 0.0, 0)


class Fetched:
    """A download of which only the length matters."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.infohash = INFOHASH


class Handle:
    """A torrent that notes what it is told."""

    def __init__(self, *peers: Connected) -> None:
        self.peers = list(peers)
        self.called: list[tuple[str, int]] = []
        self.flags = 1
        self.announces = 0

    def set_flags(self, flags: int) -> None:
        """The filter counts."""
        self.flags |= flags

    def unset_flags(self, flags: int) -> None:
        """The filter counts no more."""
        self.flags &= ~flags

    def connect_peer(self, peer: tuple[str, int]) -> None:
        """Somebody is called."""
        self.called.append(peer)

    def force_reannounce(self, *, flags: int) -> None:
        """Trackers are asked."""
        self.announces += flags


class Lab:
    """Listeners, with time and libtorrent in the test's hands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.filtered: list[str] = []
        self.listeners = Listeners(OWN)
        library = SimpleNamespace(
            torrent_flags=SimpleNamespace(apply_ip_filter=1),
            torrent_handle=SimpleNamespace(ignore_min_interval=1),
        )
        monkeypatch.setattr(lt_compat, "library", lambda: library)
        monkeypatch.setattr(lt_compat, "keep_out", lambda _, seeds: self.filtered.extend(seeds))
        monkeypatch.setattr(lt_compat, "connected", self._connected)
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(swarm_listening, "time", clock)

    def _connected(self, handle: Handle | None) -> list[Connected]:
        if handle is None:
            raise RuntimeError("invalid torrent handle used")
        return handle.peers

    def begin(self, download: Download, *peers: tuple[str, int]) -> bool:
        """Whether a download listens."""
        return self.listeners.begin(None, download, peers)

    def look(self, handle: Handle | None, download: Download, progress: Progress = NOTHING) -> None:
        """A look at a download."""
        self.listeners.look(None, handle, download, progress)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Nobody was met yet."""
    return Lab(monkeypatch)


def download(length: int = MIN_LENGTH) -> Download:
    """Something that could be fetched."""
    return cast(Download, Fetched(length))


@pytest.mark.parametrize(
    ("peers", "length", "later", "listens"),
    [
        ([SEED, MEMBER], MIN_LENGTH, 0.0, True),
        ([SEED, MEMBER], MIN_LENGTH - 1, 0.0, False),
        ([SEED, MEMBER], MIN_LENGTH, MEMORY, False),
        ([SEED], MIN_LENGTH, 0.0, False),
        ([MEMBER], MIN_LENGTH, 0.0, False),
        ([], MIN_LENGTH, 0.0, False),
    ],
)
def test_who_listens(
    lab: Lab, peers: list[Connected], length: int, later: float, listens: bool
) -> None:
    """A download that is worth it, when members and a seed were met."""
    lab.look(Handle(*peers), download())
    lab.now += later
    assert lab.begin(download(length)) is listens
    assert lab.filtered == (["10.0.0.1"] if listens else [])


def test_seeds_are_asked_at_last(lab: Lab) -> None:
    """With the seeds that were met, those that trackers named are called, each once."""
    one, handle = download(), Handle()
    lab.look(Handle(SEED, MEMBER), download())
    assert lab.begin(one, ("10.0.0.1", 6881), ("10.0.0.3", 1))
    lab.look(handle, one)
    assert (handle.called, handle.flags, handle.announces) == ([], 1, 0)
    lab.now += AT_LEAST
    for _ in range(2):
        lab.look(handle, one)
        assert handle.called == [("10.0.0.1", 6881), ("10.0.0.3", 1)]
        assert (handle.flags, handle.announces) == (0, 1)


@pytest.mark.parametrize(
    ("idle", "later", "again"),
    [(STALLED, RECALL, True), (STALLED - 0.1, RECALL, False), (STALLED, RECALL - 0.1, False)],
)
def test_what_stalls_listens_again(lab: Lab, idle: float, later: float, *, again: bool) -> None:
    """A silent download lets go of its seeds, unless they were called a moment ago."""
    one, handle = download(), Handle()
    lab.look(Handle(SEED, MEMBER), download())
    assert lab.begin(one)
    lab.now += AT_LEAST
    silent = dataclasses.replace(NOTHING, idle=idle, received=7)
    lab.look(handle, one)
    lab.filtered.clear()
    lab.now += later
    lab.look(handle, one, silent)
    assert (handle.flags, lab.filtered) == ((1, ["10.0.0.1"]) if again else (0, []))
    lab.now += AT_LEAST
    lab.look(handle, one, dataclasses.replace(silent, idle=0.1))
    assert (handle.flags, len(handle.called)) == (0, 2 if again else 1)


def test_what_stalls_without_a_crowd(lab: Lab) -> None:
    """It keeps the seeds it has; so does what is read from its beginning, and never listened."""
    one, handle = download(), Handle()
    assert not lab.begin(one)
    silent = dataclasses.replace(NOTHING, idle=60.0)
    lab.now += RECALL
    lab.look(handle, one, silent)
    other = Handle(SEED, MEMBER)
    lab.look(other, download(), silent)
    assert lab.filtered == []


def test_what_has_ended_listens_no_more(lab: Lab) -> None:
    """Nobody is called for it."""
    one, handle = download(), Handle()
    lab.look(Handle(SEED, MEMBER), download())
    assert lab.begin(one)
    lab.listeners.forget(one)
    lab.listeners.forget(one)
    lab.now += AT_LEAST
    lab.look(handle, one)
    assert handle.called == []


def test_a_torrent_that_is_gone(lab: Lab) -> None:
    """A look at it is none."""
    gone: Any = None
    lab.look(gone, download())
    assert lab.listeners.members() == 0
    lab.look(Handle(MEMBER), download())
    assert lab.listeners.members() == 1


def named(place: int) -> str:
    """What a member calls itself whose turn is before (1) or after (0) this session's."""
    names = (f"narswarm {number:08x}" for number in range(1, 1000))
    return next(name for name in names if turn(OWN, [name], INFOHASH) == place)


@pytest.mark.parametrize("place", [0, 1])
def test_others_have_their_turn_first(lab: Lab, place: int) -> None:
    """A member that fetches the same and is before this session keeps it waiting; no other does."""
    one, handle = download(), Handle(MEMBER._replace(client=named(place), pieces=0))
    lab.look(Handle(SEED, MEMBER), download())
    assert lab.begin(one)
    lab.now += AT_LEAST
    lab.look(handle, one)
    assert handle.flags == place


@pytest.mark.parametrize(
    ("place", "pieces", "later", "done", "yields"),
    [
        (1, 1, 0.25, 0.4, True),
        (0, 1, 0.25, 0.4, False),
        (1, 0, 0.25, 0.4, False),
        (1, 1, NEW, 0.4, False),
        (1, 1, 0.25, 0.5, False),
    ],
)
def test_what_began_before_anybody_was_met(
    lab: Lab, place: int, pieces: int, later: float, done: float, *, yields: bool
) -> None:
    """It lets go of its seeds once if somebody whose turn is before has something of it."""
    one, handle = download(), Handle(SEED, MEMBER._replace(client=named(place), pieces=pieces))
    assert not lab.begin(one)
    handle.flags = 0
    lab.now += later
    progress = dataclasses.replace(NOTHING, done=int(done * MIN_LENGTH), received=7)
    lab.look(Handle(MEMBER), download())
    lab.look(handle, one, progress)
    assert (handle.flags, lab.filtered) == ((1, ["10.0.0.1"]) if yields else (0, []))
    if yields:
        before, handle.peers = handle.peers, []
        lab.now += AT_LEAST
        lab.look(handle, one, progress)
        handle.peers = before
        lab.look(handle, one, progress)
        assert handle.flags == 0


def test_a_seed_that_has_not_spoken_is_no_member(lab: Lab) -> None:
    """Who has nothing may be about to say that it has everything."""
    lab.look(Handle(MEMBER._replace(pieces=0)), download())
    assert lab.listeners.members() == 0


def test_members_are_called_for_what_is_begun(lab: Lab) -> None:
    """Where they listen, as long as they were met lately."""
    lab.look(Handle(MEMBER._replace(called=True), SEED), download())
    assert lab.listeners.addresses() == [("10.0.0.2", 40000)]
    lab.now += MEMORY
    assert lab.listeners.addresses() == []


def test_a_seed_without_a_port_is_not_called(lab: Lab) -> None:
    """One that has connected to us is kept out while a download listens, and not called later."""
    one, handle = download(), Handle()
    lab.look(Handle(SEED._replace(called=False), MEMBER), download())
    assert lab.begin(one)
    assert lab.filtered == ["10.0.0.1"]
    lab.now += AT_LEAST
    lab.look(handle, one)
    assert (handle.called, handle.flags, handle.announces) == ([], 0, 1)
