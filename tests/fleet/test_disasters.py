# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/disasters.md: followed literally, its commands bring the fleet back.

Each test leaves the fleet serving.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.rig.nodes import CommandError, wait_for
from tests.fleet import guide
from tests.fleet.conftest import Deployed
from tests.fleet.deployment import Deployment
from tests.fleet.guide import DISASTERS, HERE, Block
from tests.fleet.machines import Machine

pytestmark = pytest.mark.fleet

STATE = "/var/lib/narswarm/seeder"


def _follow(fleet: Deployment, block: Block, **values: str) -> str:
    """Run the commands of a block where it says, with values for its words in capitals."""
    script = block.script
    for word, value in values.items():
        script = script.replace(word.replace("_", "-"), shlex.quote(value))
    if block.where == HERE:
        return fleet.operate(script)
    return fleet[block.where].run(f"bash -euc {shlex.quote(script)}").stdout


def _follow_until_well(fleet: Deployment, block: Block) -> None:
    """Ask whether all is well, as somebody does who waits for it."""

    def well() -> bool:
        try:
            _follow(fleet, block)
        except CommandError:
            return False
        return True

    wait_for(f"{block.where} to be well", well)


@pytest.fixture
def fleet(deployed: Deployed) -> Iterator[Deployment]:
    """The fleet as it was deployed, with its usual settings afterwards."""
    deployed.fleet.prepare(deployed.wheel)
    yield deployed.fleet
    deployed.fleet.settings.clear()


def _publisher(fleet: Deployment, name: str) -> str:
    return str(fleet.status(name)["publisher"])


def _publishers(fleet: Deployment, item: str) -> list[str]:
    """Whose claims count for an item, as the tracker says."""
    index = fleet["t1"].run("runuser -u narswarm -- tracker export").stdout
    lines = [json.loads(line) for line in index.splitlines()]
    path = fleet.items[item]
    return [
        publisher
        for line in lines
        if path in line["store_paths"]
        for torrent in line["torrents"]
        for publisher in torrent["publishers"]
    ]


def test_a_machine_restarts(fleet: Deployment) -> None:
    """A box serves again what it served, and its firewall is there again."""
    restart, look = guide.blocks(DISASTERS, "A machine restarts")
    assert restart == Block("s1", "systemctl reboot\n")
    before = fleet.status("s1")["items"]
    fleet["s1"].reboot()
    _follow_until_well(fleet, look)
    wait_for("the items", lambda: fleet.status("s1")["items"] == before)
    assert "policy drop" in fleet["s1"].run("nft list table inet narswarm").stdout
    assert "bittorrent://" in fleet.build("reboot")


@contextmanager
def _small_disk(machine: Machine, size: str, path: str, services: str) -> Iterator[None]:
    """A disk for what services keep in a directory, and for apt's archives, full of the latter.

    Args:
        machine: which gets it.
        size: of the disk.
        path: the directory.
        services: which are stopped while their files are moved.
    """
    # What postgresql.service stands for stops beside it.
    stop = f"systemctl stop {services} 'postgresql@*'"
    archives = "/var/cache/apt/archives"
    mount = [
        stop,
        "mkdir -p /root/disk",
        f"mount -t tmpfs -o size={size},mode=755 tmpfs /root/disk",
        *(
            f"cp -a {each} /root/disk && mount --bind /root/disk/$(basename {each}) {each}"
            for each in (path, archives)
        ),
        f"systemctl start {services}",
    ]
    machine.run(" && ".join(mount))
    machine.run(f"dd if=/dev/zero of={archives}/old_1_all.deb bs=64k", check=False)
    try:
        yield
    finally:
        machine.run(
            f"{stop} && umount {path} {archives} &&"
            f" find {path} -mindepth 1 -delete && cp -aT /root/disk/$(basename {path}) {path} &&"
            f" umount /root/disk && systemctl start {services}"
        )


def test_a_disk_is_full(fleet: Deployment) -> None:
    """A box goes on seeding, and makes what it couldn't make once there is room."""
    box = fleet["s2"]
    look, tidy, restart, *_ = guide.blocks(DISASTERS, "A disk is full")
    before = fleet.status("s2")["items"]
    with _small_disk(box, "8m", STATE, "narswarm-seeder"):
        fleet.offer("s2", "full")
        wait_for("the seeder to say so", lambda: "disk is full" in box.run("seeder status").stdout)
        assert " 100% " in _follow(fleet, look)
        assert "bittorrent://" in fleet.build("box2")
        assert fleet.status("s2")["items"] == before
        _follow(fleet, tidy)
        _follow(fleet, restart)
        wait_for("the item", lambda: fleet.status("s2")["items"] == before + 1)
        fleet.wait_seeded("full", seeders=2)
    _follow_until_well(fleet, restart)
    assert "bittorrent://" in fleet.build("full")


def test_a_trackers_disk_is_full(fleet: Deployment) -> None:
    """Announces go on without the index, and what couldn't be published is once there is room."""
    tracker = fleet["t1"]
    *_, tidy, restart = guide.blocks(DISASTERS, "A disk is full")
    infohash = fleet.torrent("first")["infohash_v1"]
    # PostgreSQL's log is written in files of 16 MiB; some that are there already come first.
    log = "runuser -u postgres -- psql narswarm -c 'SELECT pg_switch_wal()' -c"
    log += " \"SELECT pg_create_restore_point('full')\""

    def ended() -> bool:
        tracker.run(log, check=False)
        return tracker.run("systemctl is-failed 'postgresql@*'", check=False).returncode == 0

    def pending() -> set[int]:
        return {each["pending"] for each in fleet.status("s2")["trackers"]}

    wait_for("s2 to have published", lambda: pending() == {0})
    with _small_disk(tracker, "200m", "/var/lib/postgresql", "narswarm-tracker postgresql"):
        wait_for("PostgreSQL to end", ended)
        fleet.offer("s2", "reboot")
        wait_for("s2 to have something to publish", lambda: pending() == {1})
        for each in ("t1", "t2"):
            answer = fleet.announce(infohash, each)
            assert "5:peers" in answer
            assert "failure" not in answer
        assert "bittorrent://" in fleet.build("first")
        _follow(fleet, tidy)
        _follow_until_well(fleet, restart)
        wait_for("s2 to have published", lambda: pending() == {0})
        fleet.wait_seeded("reboot", seeders=2)
    _follow_until_well(fleet, restart)
    fleet.wait_seeded("reboot", tracker="t2", seeders=2)


def test_a_publishers_key_is_stolen(fleet: Deployment) -> None:
    """Trackers that name publishers take the new key, and the old one's word doesn't count."""
    make, tell, use, block = guide.blocks(DISASTERS, "A publisher's key is lost or stolen")
    old, other = _publisher(fleet, "s2"), _publisher(fleet, "s1")
    assert old in _publishers(fleet, "box2")
    new = _follow(fleet, make).strip()
    assert new != old
    fleet.settings["tracker"] = {"publishers": [new, other]}
    fleet.prepare(fleet.wheel)
    _follow(fleet, tell)
    _follow(fleet, use)
    assert _publisher(fleet, "s2") == new
    _follow(fleet, block, OLD_KEY=old)
    wait_for("the claim by the new key", lambda: new in _publishers(fleet, "box2"))
    assert old not in _publishers(fleet, "box2")
    fleet.wait_seeded("box2")


def test_a_signing_key_changes(fleet: Deployment) -> None:
    """First both keys count, then the new one alone; what it signed is fetched, too."""
    box, user = fleet["s1"], fleet["u"]
    authorize, spread = guide.blocks(DISASTERS, "A substitute server's signing key changes")
    box.run(f"guix build {fleet.items['box2']}")
    old = _key(box.run("cat /etc/guix/signing-key.pub").stdout)
    box.run(
        "mkdir -p /root/old && mv /etc/guix/signing-key.* /root/old/ &&"
        " guix archive --generate-key && cp /etc/guix/signing-key.pub /root/new-key.pub"
    )
    new = _key(box.run("cat /root/new-key.pub").stdout)
    _follow(fleet, authorize)
    _follow(fleet, spread)
    for name in ("t1", "t2", "s2"):
        acl = fleet[name].run("cat /etc/narswarm/acl").stdout
        assert old in acl
        assert new in acl
    user.run("guix archive --authorize", stdin=box.run("cat /root/new-key.pub").stdout)
    # The server signs by the new key from here on.
    box.run("systemctl restart publish")
    fleet.add("rotated")
    fleet.wait_seeded("first", "rotated")
    box.run(f"python3 - {old}", stdin=_WITHOUT)
    _follow(fleet, spread)
    assert old not in fleet["t1"].run("cat /etc/narswarm/acl").stdout
    assert new in fleet["t1"].run("cat /etc/narswarm/acl").stdout
    fleet.wait_seeded("first", "rotated")
    assert "bittorrent://" in fleet.build("rotated")
    # The other box has narinfos of old, and then new ones of the same server.
    wait_for("s2 to offer nothing", lambda: fleet.status("s2")["items"] == 0)
    fleet.offer("s2", "box2", "upgrade")
    wait_for("s2 to offer both again", lambda: fleet.status("s2")["items"] == 2)
    fleet.wait_seeded("box2", seeders=2)


def test_a_tracker_is_lost(fleet: Deployment) -> None:
    """A bare machine becomes the tracker that it was, with index, peers and keys."""
    backup, rebuild, look = guide.blocks(DISASTERS, "A tracker is lost")
    indexed = _publishers(fleet, "first"), _publishers(fleet, "box2")
    assert all(indexed)
    _follow(fleet, backup)
    fleet["t1"].replace()
    fleet.trust("t1")
    fleet.certify("t1")
    _follow(fleet, rebuild)
    _follow_until_well(fleet, look)
    assert (_publishers(fleet, "first"), _publishers(fleet, "box2")) == indexed
    for tracker in ("t1", "t2"):
        fleet.wait_seeded("first", "box2", "restored", tracker=tracker)
    assert "bittorrent://" in fleet.build("restored")


#: Takes the entry with a key out of the ACL, as one does with an editor.
_WITHOUT = """\
import sys
from pathlib import Path
file = Path("/etc/guix/acl")
text = file.read_text()
start = text.rindex("(entry", 0, text.index(sys.argv[1]))
depth = 0
for end, letter in enumerate(text[start:], start):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
        break
file.write_text(text[:start] + text[end + 1:])
"""


def _key(text: str) -> str:
    """The hexadecimal digits that are a public key."""
    (found,) = re.findall(r"#([0-9A-F]{64})#", text)
    return str(found)


def test_the_guide_has_nothing_but_what_is_followed() -> None:
    """Each section with commands has a test above."""
    titles = re.findall(r"(?m)^## (.*)$", DISASTERS.read_text())
    assert {title: len(guide.blocks(DISASTERS, title)) for title in titles} == {
        "A machine restarts": 2,
        "A disk is full": 5,
        "A publisher's key is lost or stolen": 4,
        "A substitute server's signing key changes": 2,
        "A tracker is lost": 3,
    }
