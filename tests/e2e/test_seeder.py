# SPDX-License-Identifier: GPL-3.0-or-later
"""What the seeder promises: made when wanted, private items stay private, and it survives."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

from narswarm import base32
from narswarm.errors import ExitCode
from tests.e2e.rig import guix
from tests.e2e.rig.nodes import Node, wait_for
from tests.e2e.rig.site import CONFIG, SEEDER_PORT, SERVER, TRACKER, Fetcher, Site, toml

pytestmark = pytest.mark.e2e

STATE = "/var/lib/narswarm/on-demand"
MIB = 1 << 20

#: Slow enough that a test can step in: 8 MB/s.
SLOW = 64


@pytest.fixture
def seeder(site: Site) -> Iterator[Callable[..., None]]:
    """Starts A's seeder with a state of its own in which nothing is made before it is wanted."""
    site.stop("seeder")

    def start(**settings: object) -> None:
        site.configure_seeder(**{"state": STATE, "premake": 0, **settings})
        site.start_seeder()

    yield start
    site.stop("seeder")
    site.node.run("rm", "-rf", STATE)
    site.configure_seeder()


def _held(site: Site, label: str) -> bool:
    """Whether the tracker knows of somebody who could serve an item."""
    return bool((site.index(label) or {"holders": 0})["holders"])


def _wait_held(site: Site, *labels: str) -> None:
    for label in labels:
        wait_for(f"{label} is held", functools.partial(_held, site, label), 300)


def test_made_when_wanted(
    site: Site, seeder: Callable[..., None], fetcher: Callable[..., Fetcher]
) -> None:
    """Items without a payload are made when a build asks for them, small and large ones alike."""
    sizes = {"cold-1": 100_000, "cold-2": 200_000, "cold-3": 300_000, "cold-48": 48 * MIB}
    for label, size in sizes.items():
        site.add(label, os.urandom(size))
    seeder()
    _wait_held(site, *sizes)
    assert site.status()["payloads"] == 0
    b = fetcher()
    for label in sizes:
        begin = time.monotonic()
        b.build(label)
        print(f"{label}: {time.monotonic() - begin:.2f} s")
        b.assert_equal(label)
    assert b.http_bytes() == 0
    wait_for("all payloads", lambda: site.status()["payloads"] == len(sizes))


def test_new_item(site: Site, seeder: Callable[..., None]) -> None:
    """What comes into the store while the seeder runs is held soon, and made when wanted."""
    seeder()
    wait_for("a first look", lambda: site.status()["items"] > 0)
    site.add("newcomer", os.urandom(1000))
    begin = time.monotonic()
    wait_for("newcomer is held", lambda: _held(site, "newcomer"), 300)
    print(f"held after {time.monotonic() - begin:.1f} s")
    assert (site.index("newcomer") or {})["torrents"] == []


@pytest.fixture
def slow(site: Site) -> Iterator[None]:
    """What A sends is limited."""
    site.node.limit(SLOW)
    yield
    site.node.limit(None)


@pytest.fixture
def second(site: Site) -> Iterator[Node]:
    """Another node, for a seeder without Guix that has the NARs of some of A's items."""
    node = site.cluster.node("S")
    node.write("/etc/guix/acl", site.node.read("/etc/guix/acl"))
    yield node
    site.cluster.remove(node)


def _offer_nar(site: Site, node: Node, label: str) -> None:
    """Have a second seeder offer an item of A's that it has a NAR of."""
    item = site.items[label]
    base = item.removeprefix("/gnu/store/")
    url = f"{SERVER}/{base[:32]}.narinfo"
    site.node.run("sh", "-c", f"python3 -c '{DUMP}' {item} > /srv/nar")
    node.write(f"/srv/nars/{base}.nar", site.node.read("/srv/nar"))
    node.run("curl", "-sSf", "-o", f"/srv/nars/{base[:32]}.narinfo", url)
    values: dict[str, object] = {
        "nars": "/srv/nars",
        "trackers": [f"{TRACKER}/announce"],
        "premake": "1 GiB",
    }
    values |= {"state": "/srv/state", "dht": False, "lsd": False, "upnp": False}
    values |= {"private_network": True, "listen": [f"0.0.0.0:{SEEDER_PORT}"]}
    node.write(CONFIG, toml("seeder", values))
    node.spawn("seeder", "seeder", "run")


DUMP = """import sys
sys.path.insert(0, "/opt/narswarm")
from pathlib import Path
from narswarm import nar
sys.stdout.buffer.writelines(nar.dump(Path(sys.argv[1])))
"""


@pytest.mark.usefixtures("slow")
def test_collected_while_it_is_sent(
    site: Site, seeder: Callable[..., None], fetcher: Callable[..., Fetcher], second: Node
) -> None:
    """An item that `guix gc` deletes in the middle of an upload: its peers go on with others."""
    site.add("collected", os.urandom(64 * MIB))
    seeder(scan_interval="1 s")
    _offer_nar(site, second, "collected")
    second.limit(SLOW)

    def peers() -> set[str]:
        torrents = (site.index("collected") or {"torrents": []})["torrents"]
        return {peer.rpartition(":")[0] for torrent in torrents for peer in torrent["peers"]}

    wait_for("the second seeder", lambda: second.address in peers(), 300)
    site.node.run("seeder", "add", site.items["collected"])
    wait_for("both seeders", lambda: {site.node.address, second.address} <= peers(), 300)
    wait_for("both holders", lambda: (site.index("collected") or {})["holders"] == 2)
    payload = f"{site.nar_hash('collected')}.nar.zst"
    find = ("find", STATE, "-name", payload)
    assert site.node.run(*find).stdout
    metadata = guix.metadata(site.node, site.items["collected"])
    b = fetcher(policy="swarm-only")
    build = b.node.spawn("build", "guix", "build", site.items["collected"])
    wait_for("an upload", lambda: site.uploaded() > 4 * MIB)
    site.node.run("guix", "gc", "-D", site.items["collected"])
    wait_for("the end of its payload", lambda: not site.node.run(*find).stdout)
    build.wait(300)
    print(build.tail())
    assert b.has("collected")
    assert guix.nar_hash(b.node, site.items["collected"]) == site.nar_hash("collected")
    assert guix.metadata(b.node, site.items["collected"]) == metadata
    wait_for("one holder", lambda: (site.index("collected") or {})["holders"] == 1)
    wait_for("one seeder", lambda: site.node.address not in peers())
    assert second.address in peers()


ASK = """import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 60) as peer:
    head = b"\\x13BitTorrent protocol" + bytes(8)
    peer.sendall(head + bytes.fromhex(sys.argv[3]) + b"-XX0000-" + b"x" * 12)
    try:
        print(peer.recv(48)[28:48].hex())
    except ConnectionResetError:
        print("")
"""


def _shake(site: Site, node: Node, infohash: str) -> str:
    """The infohash that A's seeder answers a handshake with; empty if it ends the connection."""
    ask = ("python3", "-c", ASK, site.node.address, str(SEEDER_PORT))
    return node.run(*ask, infohash[:40]).stdout.strip()


def _words(site: Site, label: str) -> dict[str, bytes]:
    """What names an item in packets: infohashes and hashes, as bytes or as people write them."""
    command = ("mkmeta", "create", "--json", "--dry-run", site.items[label])
    facts: dict[str, Any] = json.loads(site.node.run(*command).stdout)
    nar_hash = base32.decode(facts["nar_hash"].removeprefix("sha256:"))
    v1, v2 = facts["infohash_v1"], facts["infohash_v2"]
    words = {"v1": bytes.fromhex(v1), "v2": bytes.fromhex(v2)[:20], "NarHash": nar_hash}
    texts = {"v1 in hexadecimal": v1, "v2 in hexadecimal": v2[:40], "NarHash in base 32": None}
    for name, text in texts.items():
        words[name] = (text or base32.encode(nar_hash)).encode()
    return words


def _seen(site: Site, words: dict[str, bytes]) -> set[str]:
    """Which words the node has sent."""
    sent = site.node.read("/srv/sent").lower()
    plain = site.node.read("/srv/sent")
    # Announces over HTTP write bytes as %XX.
    unquoted = unquote_to_bytes(plain)
    return {
        name
        for name, word in words.items()
        if word in plain or word in unquoted or (name.endswith("hexadecimal") and word in sent)
    }


def test_private_items(
    site: Site, seeder: Callable[..., None], fetcher: Callable[..., Fetcher]
) -> None:
    """An item that no server vouches for is in no packet, and whoever knows it gets nothing."""
    for label in ("public", "private"):
        site.add(label, os.urandom(100_000))
    words = {label: _words(site, label) for label in ("public", "private")}
    hash_part = site.items["private"].removeprefix("/gnu/store/")[:32]
    site.ensure_proxy({f"/{hash_part}.narinfo": "404", "^/nar/": "404"})
    sniffer = site.node.spawn("sniff", "python3", "/opt/rig/sniff.py", "/srv/sent")
    sniffer.wait_ready(lambda: "ready" in sniffer.tail())
    seeder(premake="1 GiB", lsd=True, include=["e2e-public", "e2e-private"])
    site.wait_published("public")
    b = fetcher(lsd=True, policy="swarm-first", first_byte_timeout=60.0, stall_timeout=60.0)
    b.build("public")
    assert b.http_bytes() == 0
    wait_for("public in the DHT", lambda: site.in_dht("public"))
    status = site.status()
    assert (status["items"], status["held"], status["payloads"]) == (1, 1, 1)
    assert status["not_offered"]["not vouched for"] == 1
    wait_for("what names public", lambda: {"v1", "v2", "NarHash"} <= _seen(site, words["public"]))
    assert "NarHash in base 32" in _seen(site, words["public"])
    for name in ("v1 in hexadecimal", "v2 in hexadecimal"):
        known = words["public"][name].decode()
        assert _shake(site, b.node, known) == known
        assert _shake(site, b.node, words["private"][name].decode()) == ""
    site.stop("seeder")
    # One more look after the seeder has said its last words.
    before = site.node.path("/srv/sent").stat().st_mtime_ns
    wait_for("the rest", lambda: site.node.path("/srv/sent").stat().st_mtime_ns > before + 10**9)
    site.node.kill("sniff", signal.SIGKILL)
    assert site.node.read("/srv/sent").startswith(b"lost 0\n")
    assert _seen(site, words["private"]) == set()
    # Only now, as this is a packet with its hash.
    assert site.index("private") is None


@pytest.mark.usefixtures("seeder")
def test_unprivileged(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """It seeds as a user who may write nothing but its state, store and database read-only."""
    site.add("unprivileged", os.urandom(300_000))
    site.configure_seeder(state=STATE, premake=0)
    node = site.node
    node.run("install", "-d", "-o", "nobody", "-m", "755", STATE)
    mounts = "mount --bind /gnu /gnu && mount -o remount,ro,bind /gnu && "
    mounts += "mount --bind /var/guix /var/guix && mount -o remount,ro,bind /var/guix && "
    drop = "exec setpriv --reuid=nobody --regid=nogroup --clear-groups --no-new-privs seeder run"
    node.spawn("seeder", "unshare", "--mount", "sh", "-c", mounts + drop)
    node.services["seeder"].wait_ready(lambda: node.listening(SEEDER_PORT))
    # What was asked for is what runs.
    (pid,) = node.processes("/usr/local/bin/seeder")
    status = Path(f"/proc/{pid}/status").read_text()
    assert "\nUid:\t65534\t65534\t65534\t65534\n" in status
    _wait_held(site, "unprivileged")
    b = fetcher()
    b.build("unprivileged")
    b.assert_equal("unprivileged")
    assert b.http_bytes() == 0


def test_second_seeder(site: Site, seeder: Callable[..., None]) -> None:
    """A second seeder with the same state ends at once, and says which process has it."""
    seeder()
    done = site.node.run("seeder", "run", check=False)
    assert done.returncode == ExitCode.BUSY
    pid = site.node.read(f"{STATE}/lock").decode()
    assert done.stderr.endswith(f"{STATE}: is in use by the seeder with process id {pid}\n")
    assert site.status()["listen_port"] == SEEDER_PORT


def test_killed_while_making(
    site: Site, seeder: Callable[..., None], fetcher: Callable[..., Fetcher]
) -> None:
    """Killed while it makes a payload it starts again with the others, and without reading them."""
    for label, size in {"whole": 64 * MIB, "half": 256 * MIB}.items():
        site.add(label, os.urandom(size))
    seeder(include=["e2e-whole", "e2e-half"])
    _wait_held(site, "whole", "half")
    site.node.run("seeder", "add", site.items["whole"])
    site.wait_published("whole")
    payloads = site.node.path(f"{STATE}/payloads")
    site.node.run("seeder", "add", site.items["half"])

    def unfinished() -> list[int]:
        # It may get its name at any moment.
        with contextlib.suppress(FileNotFoundError):
            return [each.stat().st_size for each in payloads.glob(".*")]
        return []

    wait_for("a part of a payload", lambda: sum(unfinished()) > 16 * MIB)
    site.stop("seeder", number=signal.SIGKILL)
    assert 16 * MIB < sum(unfinished()) < 256 * MIB
    site.start_seeder()
    assert site.status()["payloads"] == 1
    assert unfinished() == []
    # All that it has read so far, whether from disk or not; the payload alone has 64 MiB.
    read = Path(f"/proc/{site.node.services['seeder'].pid}/io").read_text().split()[1]
    assert int(read) < 48 * MIB
    b = fetcher()
    b.build("whole", "half")
    b.assert_equal("whole", "half")
    assert b.http_bytes() == 0


def test_tracker_restarted(
    site: Site, seeder: Callable[..., None], fetcher: Callable[..., Fetcher]
) -> None:
    """A tracker that was away hears again what is held and seeded."""
    for label in ("before", "cold"):
        site.add(label, os.urandom(100_000))
    seeder()
    _wait_held(site, "before", "cold")
    site.node.run("seeder", "add", site.items["before"])
    site.wait_published("before")
    site.stop("tracker", number=signal.SIGKILL)
    site.start_tracker()
    begin = time.monotonic()
    _wait_held(site, "cold")
    print(f"held again after {time.monotonic() - begin:.1f} s")
    site.wait_published("before", timeout=600)
    print(f"seeded again after {time.monotonic() - begin:.1f} s")
    b = fetcher()
    b.build("before", "cold")
    b.assert_equal("before", "cold")
    assert b.http_bytes() == 0


def test_the_doctor_knows_that_the_port_is_open(site: Site, second: Node) -> None:
    """The tracker has looked, at the node's address, by TCP and by uTP."""
    site.add("examined", os.urandom(1000))
    _offer_nar(site, second, "examined")
    wait_for("the second seeder", lambda: second.listening(SEEDER_PORT))
    done = second.run("seeder", "doctor", "--json", check=False)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    port = found[f"port {SEEDER_PORT}"]
    assert port["verdict"] == "ok", port
    assert port["seen"] == {
        "tracker": TRACKER,
        "address": second.address,
        "tcp": "open",
        "utp": "open",
    }
