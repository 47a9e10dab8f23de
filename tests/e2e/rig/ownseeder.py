# SPDX-License-Identifier: GPL-3.0-or-later
"""A seeder on a node B, whose substituter finds it and has it fetch."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.rig.site import CONFIG, SEEDER_PORT, SEEDER_STATE, SERVER, TRACKER, Fetcher, toml

_BEGIN = "[seeder]\n"


def start(fetcher: Fetcher, **more: object) -> None:
    """Run a seeder that knows nothing yet."""
    stop(fetcher)
    node = fetcher.node
    values = {
        "state": SEEDER_STATE,
        "acl": "/etc/guix/acl",
        "trackers": [f"{TRACKER}/announce"],
        "substitute_urls": [SERVER],
        "listen": [f"0.0.0.0:{SEEDER_PORT}"],
        "dht": True,
        "dht_nodes": fetcher.site.dht_nodes,
        "lsd": False,
        "upnp": False,
        "private_network": True,
        **more,
    }
    node.write(CONFIG, node.read(CONFIG).decode() + toml("seeder", values))
    service = node.spawn("seeder", "seeder", "run")
    service.wait_ready(lambda: node.listening(SEEDER_PORT))


def stop(fetcher: Fetcher) -> None:
    """End it, if there is one, with all that it has."""
    node = fetcher.node
    node.kill("seeder")
    node.write(CONFIG, node.read(CONFIG).decode().partition(_BEGIN)[0])
    node.run("rm", "-rf", SEEDER_STATE)


def status(fetcher: Fetcher) -> dict[str, Any]:
    """What it says of itself."""
    shown = fetcher.node.run("seeder", "status", "--json").stdout
    answer: dict[str, Any] = json.loads(shown)
    return answer
