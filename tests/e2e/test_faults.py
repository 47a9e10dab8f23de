# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong: peers that die or lie, servers that are gone, a full disk, a killed helper."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.rig import guix
from tests.e2e.rig.guix import Mode
from tests.e2e.rig.nodes import wait_for
from tests.e2e.rig.site import SERVER, TRACKER, Fetcher, Site

pytestmark = pytest.mark.e2e

BIG = "e2e-big"

#: Slow enough that a test can step in: 8 MB/s of some 116 MB.
SLOW = 64

#: Seconds that a swarm is waited for, where nothing else may bring an item.
SURE = {"first_byte_timeout": 60.0, "stall_timeout": 60.0}


@pytest.fixture
def slow(site: Site) -> Iterator[None]:
    """What A sends is limited."""
    site.node.limit(SLOW)
    yield
    site.node.limit(None)


def _start_big(b: Fetcher) -> None:
    """Start `guix build` of the big item and wait until a part of it is in the store."""
    item = b.site.items[BIG]
    build = b.node.spawn("build", "guix", "build", item)
    noise = b.node.path(f"{item}/noise")
    build.wait_ready(lambda: noise.exists() and noise.stat().st_size > 10_000_000, 300)


@pytest.mark.usefixtures("slow")
def test_seeder_killed(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """When the seeder dies in the middle of a transfer, HTTP brings the item."""
    site.wait_published(BIG)
    site.ensure(rules={})
    # In a race servers may be first.
    b = fetcher(policy="swarm-first")
    _start_big(b)
    site.stop("seeder", number=signal.SIGKILL)
    b.node.services["build"].wait(300)
    b.assert_equal(BIG)
    # First the one, then the other.
    shown = b.node.services["build"].log.read_text(errors="replace")
    swarm, _, server = shown.partition("downloading from http://")
    assert "downloading from bittorrent://" in swarm
    assert server
    assert b.http_bytes() > 0


@pytest.mark.parametrize("rest", ["http", "honest"])
def test_lying_torrent(site: Site, fetcher: Callable[..., Fetcher], rest: str) -> None:
    """A torrent with another NAR than its name says is refused, and the next source is taken."""
    label = f"lie-{rest}"
    site.stop("seeder")
    site.add(label, os.urandom(300_000))
    item = site.items[label]
    if rest == "http":
        site.ensure_proxy({})
    else:
        site.start_seeder()
        site.wait_published(label)
    narinfo = f"{SERVER}/{item.removeprefix('/gnu/store/')[:32]}.narinfo"
    command = ("python3", "/opt/rig/liar.py", TRACKER, narinfo, item, f"/srv/{label}", "7001")
    name = f"liar-{rest}"
    liar = site.node.spawn(name, *command, env={"PYTHONPATH": "/opt/narswarm"})
    try:
        liar.wait_ready(lambda: "published" in liar.tail())
        infohash = liar.tail().split("published ")[1].split()[0]

        def liar_is_seen() -> bool:
            torrents = (site.index(label) or {"torrents": []})["torrents"]
            return any(t["infohash_v2"] == infohash and t["seeders"] for t in torrents)

        wait_for("the lying torrent in the index", liar_is_seen)
        b = fetcher(dht=False, policy="swarm-first", **SURE)
        output = b.build(label)
        b.assert_equal(label)
        if rest == "http":
            assert f"downloading from bittorrent://{infohash}/" in output
            assert "downloading from http://" in output
        assert bool(b.http_bytes()) == (rest == "http")
    finally:
        site.stop(name)


def test_unauthorised_key(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """An item whose narinfo no authorised key has signed is not taken from anywhere."""
    site.wait_published("medium")
    site.ensure(rules={})
    b = fetcher(authorize=False)
    before = site.uploaded()
    b.build("medium")
    assert not b.has("medium")
    assert not b.exists("medium")
    assert b.nar_requests() == []
    assert site.uploaded() == before


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_tracker_gone(site: Site, fetcher: Callable[..., Fetcher], how: str) -> None:
    """Without a tracker, or with one that never answers, HTTP brings the item."""
    site.ensure(rules={})
    if how == "killed":
        site.stop("tracker", number=signal.SIGKILL)
    else:
        site.node.services["tracker"].freeze()
    b = fetcher()
    b.build("extra-1")
    b.assert_equal("extra-1")
    assert b.http_bytes() > 0


def test_upstream_gone(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """Without any substitute server, narinfos come from the tracker and NARs from the swarm."""
    site.wait_published("extra-2")
    site.stop("proxy", number=signal.SIGKILL)
    b = fetcher(Mode.UNPRIVILEGED)
    b.build("extra-2")
    b.assert_equal("extra-2")


def test_everything_gone(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """Without any source the build ends by itself, and the daemon's next one works."""
    site.stop("tracker", "seeder", "proxy", number=signal.SIGKILL)
    b = fetcher()
    b.build("extra-3")
    assert not b.has("extra-3")
    assert not b.exists("extra-3")
    site.ensure()
    site.wait_published("extra-4")
    b.build("extra-4")
    b.assert_equal("extra-4")


@pytest.mark.parametrize("fault", ["404", "cut:2000", "corrupt"])
def test_next_item(site: Site, fetcher: Callable[..., Fetcher], fault: str) -> None:
    """An item that no source can deliver fails alone: the same helper brings the next one."""
    site.ensure(rules={"/nar/.*extra-5": fault})
    site.stop("tracker", "seeder")
    b = fetcher(patience=2.0)
    b.build("extra-5", "extra-6", args=["--keep-going"])
    b.build("extra-6")
    assert not b.has("extra-5")
    assert not b.exists("extra-5")
    b.assert_equal("extra-6")
    guix.proxy_rules(site.node, {})
    b.build("extra-5")
    b.assert_equal("extra-5")


def test_disk_full(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """An item that the store has no room for fails and leaves nothing; a small one still fits."""
    site.wait_published(BIG, "extra-7")
    b = fetcher()
    b.node.run("mount", "-t", "tmpfs", "-o", "size=64m,mode=1775", "tmpfs", "/gnu/store")
    b.node.run("mkdir", "/gnu/store/.links")
    output = b.build(BIG)
    assert not b.has(BIG)
    assert not b.exists(BIG)
    assert "No space left on device" in output
    free = b.node.run("stat", "-f", "-c", "%a", "/gnu/store").stdout
    assert int(free) * 4096 > 60 << 20
    b.build("extra-7")
    b.assert_equal("extra-7")


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("who", ["helper", "client"])
def test_killed_while_restoring(site: Site, fetcher: Callable[..., Fetcher], who: str) -> None:
    """A helper killed in the middle of an item, by hand or with its client, harms no later try."""
    site.wait_published(BIG)
    b = fetcher(Mode.UNPRIVILEGED)
    _start_big(b)
    helpers = b.node.processes("--substitute")
    assert helpers
    if who == "helper":
        for pid in helpers:
            os.kill(pid, signal.SIGKILL)
    else:
        b.node.services["build"].send(signal.SIGKILL)
    b.node.services["build"].wait(300)
    wait_for("the end of the helper", lambda: not b.node.processes("--substitute"))
    assert not b.has(BIG)
    b.build(BIG)
    b.assert_equal(BIG)
    assert b.http_bytes() == 0
