# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that can offer a store, for bench/seeder_clients.py: how each is set up and asked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from narswarm.errors import NarswarmError
from seeder import control
from tests.e2e.rig.nodes import Node, Service
from tests.e2e.rig.site import CONFIG, SEEDER_PORT, toml

HERE: Final = "/srv/bench"
"""The folder that a contender has in its node."""

DEADLINE: Final = 900.0
"""Seconds that any one step may take."""
RPC_PORT: Final = 9091
WEB_PORT: Final = 8090


class Site(NamedTuple):
    """Where a contender announces.

    Attributes:
        node: has the tracker and the DHT.
        tracker: the URL of the tracker.
        dht: where the DHT is joined.
    """

    node: Node
    tracker: str
    dht: str


class Contender(NamedTuple):
    """A program that offers items.

    Attributes:
        name: as the table shows it.
        files: what it needs, of the world's.
        configure: writes its settings.
        start: starts it.
        add: gives it the items, the first time.
        offered: how many items it offers now.
        saved: how many it would know of if it were started anew.
        hashes: how many infohashes of a torrent it announces; none if it tells what it holds.
        kept: what it has on disk beside the store.
    """

    name: str
    files: tuple[str, ...]
    configure: Callable[[Site, Node], None]
    start: Callable[[Node], Service]
    add: Callable[[Node], None]
    offered: Callable[[Node], int]
    saved: Callable[[Node], int]
    hashes: int
    kept: tuple[str, ...]


def files(node: Node, directory: str, pattern: str = "*") -> int:
    """How many files a node has in a directory."""
    return sum(1 for _ in node.path(directory).glob(pattern))


def nothing_more(_: Node) -> None:
    """What a contender was given it has."""


def seeder(name: str, **settings: object) -> Contender:
    """This project's."""

    def configure(site: Site, node: Node) -> None:
        values = {
            "state": f"{HERE}/state",
            "store_db": f"{HERE}/db.sqlite",
            "store": f"{HERE}/store",
            "acl": f"{HERE}/acl",
            "substitute_urls": ["http://127.0.0.1:9"],
            "trackers": [f"{site.tracker}/announce"],
            "listen": [f"0.0.0.0:{SEEDER_PORT}"],
            "dht_nodes": [site.dht],
            "private_network": True,
            "lsd": False,
            "upnp": False,
            **settings,
        }
        node.write(CONFIG, toml("seeder", values))

    def count(node: Node) -> int:
        try:
            answer = control.ask(node.path(f"{HERE}/state"), "status")
        except NarswarmError:
            return 0  # it is starting
        return int(answer["payloads" if "premake" in settings else "held"])

    return Contender(
        name,
        ("store", "db.sqlite", "acl", "state"),
        configure,
        lambda node: node.spawn("client", "seeder", "run"),
        nothing_more,
        count,
        count,
        2 if "premake" in settings else 0,
        (f"{HERE}/state",),
    )


def transmission() -> Contender:
    """Transmission, with its defaults but for what needs the internet."""
    home = f"{HERE}/transmission"

    def configure(site: Site, node: Node) -> None:
        node.run("ip", "route", "add", "default", "dev", "eth0")
        settings = {
            "download-dir": f"{HERE}/payloads",
            "lpd-enabled": False,
            "port-forwarding-enabled": False,
            "rpc-authentication-required": False,
            "rpc-port": RPC_PORT,
        }
        node.write(f"{home}/settings.json", json.dumps(settings))
        node.write(f"{home}/dht.bootstrap", site.dht.replace(":", " ") + "\n")

    def start(node: Node) -> Service:
        service = node.spawn("client", "transmission-daemon", "-f", "-g", home)
        service.wait_ready(lambda: node.listening(RPC_PORT), DEADLINE)
        return service

    def add(node: Node) -> None:
        fields = f"ls | sed 's/^/-a /' | xargs -n 400 transmission-remote {RPC_PORT}"
        command = f"cd {HERE}/torrents && {fields} >../log"
        node.run("sh", "-c", command, timeout=DEADLINE)

    def count(node: Node) -> int:
        url = f"http://127.0.0.1:{RPC_PORT}/transmission/rpc"
        shown = node.run("curl", "-s", url, check=False).stdout
        session = re.search(r"X-Transmission-Session-Id: (\w+)", shown)
        if session is None:
            return 0
        question = {"method": "torrent-get", "arguments": {"fields": ["status", "leftUntilDone"]}}
        answer = node.run("curl", "-s", "-H", session[0], "-d", json.dumps(question), url).stdout
        torrents = json.loads(answer)["arguments"]["torrents"]
        return sum(each["status"] == 6 and not each["leftUntilDone"] for each in torrents)

    return Contender(
        "transmission-daemon",
        ("payloads",),
        configure,
        start,
        add,
        count,
        lambda node: files(node, f"{home}/torrents"),
        1,
        (f"{HERE}/payloads", home),
    )


def qbittorrent() -> Contender:
    """QBittorrent without a queue, which would offer five torrents at a time."""
    home = f"{HERE}/qbittorrent"
    url = f"http://127.0.0.1:{WEB_PORT}/api/v2/torrents"

    def configure(site: Site, node: Node) -> None:
        node.write(
            f"{home}/qBittorrent/config/qBittorrent.conf",
            "[LegalNotice]\nAccepted=true\n[BitTorrent]\n"
            "Session\\LSDEnabled=false\nSession\\QueueingSystemEnabled=false\n"
            "Session\\MaxActiveCheckingTorrents=1000\n"  # else it looks at one in a second
            f"Session\\DHTBootstrapNodes={site.dht}\n"
            f"Session\\DefaultSavePath={HERE}/payloads\n"
            "[Network]\nPortForwardingEnabled=false\n"
            f"[Preferences]\nWebUI\\LocalHostAuth=false\nWebUI\\Port={WEB_PORT}\n",
        )

    def start(node: Node) -> Service:
        service = node.spawn("client", "qbittorrent-nox", f"--profile={home}")
        service.wait_ready(lambda: node.listening(WEB_PORT), DEADLINE)
        return service

    def add(node: Node) -> None:
        fields = "ls | sed 's/.*/-F torrents=@&/' | xargs -n 200"
        command = (
            f"cd {HERE}/torrents && {fields} curl -sSf -o ../log -F skip_checking=true {url}/add"
        )
        node.run("sh", "-c", command, timeout=DEADLINE)

    def count(node: Node) -> int:
        shown = node.run("curl", "-s", f"{url}/info?filter=seeding", check=False).stdout
        found = json.loads(shown) if shown.startswith("[") else []
        return sum(each["state"] in {"uploading", "stalledUP"} for each in found)

    return Contender(
        "qbittorrent-nox",
        ("payloads",),
        configure,
        start,
        add,
        count,
        lambda node: files(node, f"{home}/qBittorrent/data/BT_backup", "*.fastresume"),
        2,
        (f"{HERE}/payloads", home),
    )


CONTENDERS = {
    "on-demand": seeder("seeder, nothing made"),
    "made": seeder("seeder, all made", premake="10 GiB", exclude=["item-1"]),
    "transmission": transmission(),
    "qbittorrent": qbittorrent(),
}
