# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig itself: without any program of ours, Guix substitutes between two nodes.

If this fails, the other end-to-end tests say nothing about narswarm.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.rig import guix
from tests.e2e.rig.guix import Mode
from tests.e2e.rig.nodes import Cluster, CommandError, Node, wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Iterator[Node]:
    """A node with sample items, `guix publish` and the proxy."""
    node = cluster.node("Srv")
    guix.daemon_start(node)
    guix.publish_start(node)
    guix.proxy_start(node)
    yield node
    cluster.remove(node)


@pytest.fixture(scope="module")
def items(server: Node) -> dict[str, str]:
    """The sample items by label, without the big one."""
    return guix.seed_store(server, big=False)


@pytest.mark.parametrize("mode", list(Mode))
def test_guix_itself(cluster: Cluster, server: Node, items: dict[str, str], mode: Mode) -> None:
    """Guix's own substituter gets an item with references over HTTP, in each mode of the daemon."""
    client = cluster.node("Cli")
    try:
        guix.authorize(client, guix.signing_key(server))
        guix.daemon_start(client, mode, [f"http://Srv:{guix.PROXY_PORT}"])
        before = guix.nar_bytes(server)
        guix.build(client, items["e2e-app"], items["tree"])
        for label in ("e2e-app", "e2e-middle", "e2e-leaf", "busybox", "tree"):
            item = items[label]
            assert guix.nar_hash(client, item) == guix.nar_hash(server, item)
            assert guix.metadata(client, item) == guix.metadata(server, item)
        guix.verify_contents(client)
        assert not guix.has(client, items["many"])
        assert guix.nar_bytes(server) > before
    finally:
        cluster.remove(client)


def test_proxy_blocks(cluster: Cluster, server: Node, items: dict[str, str]) -> None:
    """With its NARs blocked the server gives narinfos and not one byte of an item."""
    client = cluster.node("Cli")
    try:
        guix.authorize(client, guix.signing_key(server))
        guix.daemon_start(client, Mode.ROOT, [f"http://Srv:{guix.PROXY_PORT}"])
        guix.proxy_rules(server, {"^/nar/": "404"})
        before = guix.nar_bytes(server)
        guix.build(client, items["single"], check=False)
        assert not guix.has(client, items["single"])
        assert guix.nar_bytes(server) == before
        asked = [r["path"] for r in guix.proxy_log(server) if r["client"] == client.address]
        assert any(path.endswith(".narinfo") for path in asked)
    finally:
        guix.proxy_rules(server, {})
        cluster.remove(client)


def test_isolation(server: Node) -> None:
    """A node has no way out: no default route, no name server, a read-only system."""
    assert "default" not in server.run("ip", "route").stdout
    assert server.read("/etc/resolv.conf") == b""
    with pytest.raises(CommandError, match="Read-only file system"):
        server.run("touch", "/usr/bin/x")


def test_death(cluster: Cluster) -> None:
    """A node's processes end with it, also those that left their session."""
    node = cluster.node("Dead")
    node.run("sh", "-c", "setsid sleep 4242 >/dev/null 2>&1 &")
    (pid,) = wait_for("the process", lambda: node.processes("4242"))
    cluster.remove(node)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
