# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway: guix-daemons as they are get their substitutes from the swarm by it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.rig import guix
from tests.e2e.rig.guix import Mode
from tests.e2e.rig.nodes import Node
from tests.e2e.rig.site import CONFIG, SERVER, TRACKER, Fetcher, Site, toml

pytestmark = pytest.mark.e2e

PORT = 8182
URL = f"http://G:{PORT}"
WANTED = ("single", "tree", "many", "medium", "e2e-app", "e2e-app:doc", "e2e-big")
REFERENCES = ("busybox", "e2e-leaf", "e2e-middle")


@pytest.fixture
def gateway(site: Site) -> Iterator[Node]:
    """A node with nothing but the gateway."""
    node = site.cluster.node("G")
    values = {
        "trackers": [f"{TRACKER}/announce"],
        "dht": False,
        "lsd": False,
        "upnp": False,
        "private_network": True,
    }
    node.write(CONFIG, toml("substituter", values))
    node.run("mkdir", "-p", "/etc/guix")
    node.write("/etc/guix/acl", site.node.read("/etc/guix/acl"))
    command = ("substituter", "gateway", "--listen", f"0.0.0.0:{PORT}", "--substitute-urls", SERVER)
    service = node.spawn("gateway", *command)
    service.wait_ready(lambda: node.listening(PORT))
    yield node
    print(service.tail())
    site.cluster.remove(node)


@pytest.mark.usefixtures("gateway")
def test_an_unmodified_daemon(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """All comes from the swarm; the servers that have the narinfos give no NAR to anybody."""
    site.wait_published(*WANTED, *REFERENCES)
    before, uploaded = guix.nar_bytes(site.node), site.uploaded()
    b = fetcher(Mode.ROOT, program="guix", servers=[URL])
    output = b.build(*WANTED)
    b.assert_equal(*WANTED, *REFERENCES)
    guix.verify_contents(b.node)
    assert f"{URL}/nar/zstd/" in output
    assert guix.nar_bytes(site.node) == before
    first = site.uploaded() - uploaded
    # Another one costs the swarm nothing.
    c = fetcher(Mode.UNPRIVILEGED, program="guix", servers=[URL])
    c.build(*WANTED)
    c.assert_equal(*WANTED, *REFERENCES)
    assert site.uploaded() - uploaded == first


@pytest.mark.usefixtures("gateway")
def test_without_a_swarm(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """No tracker and no seeder: the servers' own NARs are passed on."""
    site.stop("tracker", "seeder")
    site.ensure_proxy({})
    before = guix.nar_bytes(site.node)
    b = fetcher(Mode.ROOT, program="guix", servers=[URL])
    b.build("single", "medium")
    b.assert_equal("single", "medium")
    assert guix.nar_bytes(site.node) > before


def test_parts_and_heads(site: Site, gateway: Node) -> None:
    """HEAD and ranges, for curl, of the payload and of the NAR."""
    site.wait_published("e2e-big")
    name = site.items["e2e-big"].rpartition("/")[2]

    def curl(path: str, *words: str) -> bytes:
        gateway.run("curl", "-sS", "-f", "-o", "/srv/out", *words, f"{URL}{path}")
        return gateway.read("/srv/out")

    part = curl(f"/nar/zstd/{name}", "-r", "1000000-1999999")  # nothing was fetched before
    whole = curl(f"/nar/zstd/{name}")
    assert whole[1_000_000:2_000_000] == part
    assert len(whole) == site.payload_length("e2e-big")
    head = gateway.run("curl", "-sS", "-I", f"{URL}/nar/zstd/{name}").stdout
    assert f"Content-Length: {len(whole)}\r\n" in head.replace("\n", "\r\n").replace("\r\r", "\r")
    nar = curl(f"/nar/{name}")
    assert curl(f"/nar/{name}", "-r", "-1000") == nar[-1000:]
    assert hashlib.sha256(nar).hexdigest() == gateway_hash(site, "e2e-big")


def gateway_hash(site: Site, label: str) -> str:
    """The NarHash of an item in hexadecimal."""
    item = site.items[label]
    return site.node.run("guix", "hash", "-S", "nar", "-f", "hex", item).stdout.strip()
