# SPDX-License-Identifier: GPL-3.0-or-later
"""Guix in a node: its daemon in three modes, `guix publish`, sample items, and comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from tests.e2e.rig.nodes import Node, Service

DAEMON_SOCKET = "/var/guix/daemon-socket/socket"
PUBLISH_PORT = 8081
PROXY_PORT = 8080
RULES = "/srv/proxy/rules.json"
PROXY_LOG = "/srv/proxy/log"


class Mode(StrEnum):
    """How guix-daemon runs."""

    ROOT = "root"
    """All as root."""
    USERS = "users"
    """As root with build users, the classic installation."""
    UNPRIVILEGED = "unpriv"
    """As user guix-daemon with CAP_CHOWN alone, which Guix 1.5 and Debian do by default."""


def daemon_start(
    node: Node,
    mode: Mode = Mode.ROOT,
    substitute_urls: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
) -> Service:
    """Start guix-daemon and wait until it answers."""
    user, capabilities, owner, extra = None, "", "root", list(args)
    if mode is Mode.USERS:
        extra.append("--build-users-group=guixbuild")
    elif mode is Mode.UNPRIVILEGED:
        user, capabilities, owner = "guix-daemon", "+chown", "guix-daemon"
    node.run("mkdir", "-p", "/gnu/store", "/var/guix", "/var/log/guix")
    node.run("chown", "-R", f"{owner}:{owner}", "/gnu/store", "/var/guix", "/var/log/guix")
    if mode is Mode.USERS:
        node.run("chown", "root:guixbuild", "/gnu/store")
        node.run("chmod", "1775", "/gnu/store")
    node.run("rm", "-f", DAEMON_SOCKET)
    # Without URLs it would look for Guix's own servers, which no node can reach.
    urls = " ".join(substitute_urls) or "http://127.0.0.1:9"
    service = node.spawn(
        "guix-daemon",
        "guix-daemon",
        "--discover=no",
        "--no-offload",
        "--disable-chroot",
        f"--substitute-urls={urls}",
        *extra,
        user=user,
        env=env,
        capabilities=capabilities,
    )
    service.wait_ready(node.path(DAEMON_SOCKET).is_socket)
    return service


def signing_key(node: Node) -> str:
    """The node's public signing key, made if need be."""
    if not node.path("/etc/guix/signing-key.sec").exists():
        node.run("guix", "archive", "--generate-key")
    return node.read("/etc/guix/signing-key.pub").decode()


def authorize(node: Node, key: str) -> None:
    """Let narinfos that `key` signed count on this node."""
    node.run("guix", "archive", "--authorize", stdin=key.encode())


def seed_store(node: Node, *, big: bool = True) -> dict[str, str]:
    """Put the sample items of seed.scm into the node's store; store paths by label."""
    words = ["big"] if big else []
    output = node.run("guix", "repl", "--", "/opt/rig/seed.scm", *words).stdout
    return dict(line.split(" ", 1) for line in output.splitlines())


def publish_start(node: Node, args: Sequence[str] = ("-C", "zstd:3")) -> Service:
    """Start `guix publish`, reachable by way of the proxy alone (`proxy_start`)."""
    signing_key(node)
    listen = ("--listen=127.0.0.1", f"--port={PUBLISH_PORT}")
    service = node.spawn("guix-publish", "guix", "publish", *listen, *args)
    service.wait_ready(lambda: node.listening(PUBLISH_PORT))
    return service


def proxy_start(node: Node, rules: Mapping[str, str] | None = None) -> Service:
    """Start the rig's proxy in front of `guix publish`; `rules` as in proxy.py."""
    proxy_rules(node, rules or {})
    listen, upstream = f"0.0.0.0:{PROXY_PORT}", f"http://127.0.0.1:{PUBLISH_PORT}"
    command = ("python3", "/opt/rig/proxy.py", listen, upstream, RULES, PROXY_LOG)
    service = node.spawn("proxy", *command)
    service.wait_ready(lambda: node.listening(PROXY_PORT))
    return service


def proxy_rules(node: Node, rules: Mapping[str, str]) -> None:
    """Change what the proxy does, from the next request on."""
    node.write(RULES, json.dumps(rules))


def proxy_log(node: Node) -> list[dict[str, Any]]:
    """The proxy's requests so far: dictionaries of client, path, status and bytes sent."""
    log = node.path(PROXY_LOG)
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def nar_bytes(node: Node) -> int:
    """How many bytes of NARs the proxy has sent so far."""
    return sum(r["bytes"] for r in proxy_log(node) if "/nar/" in r["path"] and r["status"] == 200)


def build(
    node: Node, *items: str, args: Sequence[str] = (), check: bool = True, timeout: float = 600.0
) -> str:
    """`guix build` of store items or derivations; everything it printed.

    It exits with 0 also when nobody has an item that was named by its store path, so tests look at
    the store afterwards.
    """
    done = node.run("guix", "build", *args, *items, check=check, timeout=timeout)
    # pytest shows it when the test fails.
    print(
        f"$ guix build {' '.join([*args, *items])}   (on {node.name})\n{done.stdout}{done.stderr}"
    )
    return done.stdout + done.stderr


def nar_hash(node: Node, item: str) -> str:
    """The item's NarHash, computed by Guix from the files."""
    return node.run("guix", "hash", "-S", "nar", item).stdout.strip()


def has(node: Node, item: str) -> bool:
    """Whether the item is valid in the node's store, by the daemon's database."""
    query = f"SELECT count(*) FROM ValidPaths WHERE path = '{item}'"  # noqa: S608
    # The daemon may still be closing the database.
    command = ("sqlite3", "-cmd", ".timeout 60000", "/var/guix/db/db.sqlite", query)
    return node.run(*command).stdout.strip() == "1"


def metadata(node: Node, item: str) -> list[str]:
    """Mode, time, size, target and name of all files of an item, as the store must have them."""
    shown = node.run("find", item, "-printf", "%M %T@ %s %l %p\n").stdout
    # What a directory's own size is, is up to the file system.
    lines = [line.split(" ") for line in shown.splitlines()]
    return sorted(" ".join(w[:2] + w[3:] if w[0][0] == "d" else w) for w in lines)


def verify_contents(node: Node) -> None:
    """Let the daemon compare all files of the store with its database."""
    node.run("guix", "gc", "--verify=contents")
