# SPDX-License-Identifier: GPL-3.0-or-later
"""Node A, which has the items, and nodes B, which want them.

A runs `guix publish` behind the proxy, the tracker and the seeder. A test may break any of it;
`Site.ensure` mends what the test before it broke.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from substituter import launcher
from tests.e2e.rig import guix
from tests.e2e.rig.guix import Mode
from tests.e2e.rig.nodes import Cluster, DeadlineError, wait_for

TRACKER_PORT = 6969
SEEDER_PORT = 6881
DHT_PORT = 7000
DHT_NODES = 6

TRACKER = f"http://A:{TRACKER_PORT}"
SERVER = f"http://A:{guix.PROXY_PORT}"
CONFIG = "/etc/narswarm/narswarm.toml"
SEEDER_STATE = "/var/lib/narswarm/seeder"
SHELL = "/opt/rig/shell.scm"
EXTENSIONS = "/opt/narswarm/substituter/guix/extensions"

BLOCKED = {"^/nar/": "404"}


def toml(table: str, values: Mapping[str, object]) -> str:
    """A TOML table of strings, numbers, booleans, lists and tables of such."""

    def show(value: object) -> str:
        if isinstance(value, Mapping):
            inner = ", ".join(f"{name} = {show(each)}" for name, each in value.items())
            return f"{{ {inner} }}"
        return json.dumps(value)

    lines = [f"{name} = {show(value)}" for name, value in values.items()]
    return "\n".join([f"[{table}]", *lines]) + "\n"


class Site:
    """Node A with all its services, and the nodes of the DHT."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.dht = cluster.node("D")
        self.node = cluster.node("A")
        self.items: dict[str, str] = {}
        self._hashes: dict[str, str] = {}
        command = ("python3", "/opt/rig/dhtnodes.py", self.dht.address, str(DHT_PORT))
        dht = self.dht.spawn("dht", *command, str(DHT_NODES))
        dht.wait_ready(lambda: "ready" in dht.tail())
        guix.daemon_start(self.node)
        self.items = guix.seed_store(self.node)
        guix.publish_start(self.node)
        guix.authorize(self.node, guix.signing_key(self.node))
        self.configure_seeder()
        self.ensure()

    @property
    def dht_nodes(self) -> list[str]:
        """Where the private DHT is joined."""
        return [f"{self.dht.address}:{DHT_PORT + index}" for index in range(3)]

    def configure_seeder(self, **more: object) -> None:
        """Write the seeder's settings file."""
        values = {
            "state": SEEDER_STATE,
            "acl": "/etc/guix/acl",
            "trackers": [f"{TRACKER}/announce"],
            "substitute_urls": [f"http://127.0.0.1:{guix.PROXY_PORT}"],
            "listen": [f"0.0.0.0:{SEEDER_PORT}"],
            "dht": True,
            "dht_nodes": self.dht_nodes,
            "lsd": False,
            "upnp": False,
            "private_network": True,
            # Tests wait until items are published, which else happens when they are wanted.
            "premake": "10 GiB",
            **more,
        }
        self.node.write(CONFIG, toml("seeder", values))

    # -- services ---------------------------------------------------------------------------------

    def ensure(self, rules: Mapping[str, str] = BLOCKED) -> None:
        """Have all services running, and the proxy obey `rules`."""
        self.ensure_proxy(rules)
        if not self._running("tracker"):
            # A new tracker knows no peers, and the seeder has no reason to announce again soon.
            self.stop("seeder")
        self.start_tracker()
        self.start_seeder()

    def ensure_proxy(self, rules: Mapping[str, str]) -> None:
        """Have the proxy run and obey `rules`."""
        if self._running("proxy"):
            guix.proxy_rules(self.node, rules)
        else:
            guix.proxy_start(self.node, rules)

    def start_tracker(self) -> None:
        """Start the tracker unless it runs."""
        if self._running("tracker"):
            return
        listen = f"0.0.0.0:{TRACKER_PORT}"
        command = ("tracker", "serve", "--listen", listen, "--data", "/srv/tracker")
        service = self.node.spawn("tracker", *command, "--acl", "/etc/guix/acl")
        service.wait_ready(lambda: self.node.listening(TRACKER_PORT))

    def start_seeder(self) -> None:
        """Start the seeder unless it runs."""
        if self._running("seeder"):
            return
        service = self.node.spawn("seeder", "seeder", "run")
        service.wait_ready(lambda: self.node.listening(SEEDER_PORT))

    def add(self, label: str, content: bytes) -> None:
        """Put one more item into A's store, a single file."""
        self.node.write("/srv/added", content)
        command = ("guix", "repl", "--", "/opt/rig/add.scm", f"e2e-{label}", "/srv/added")
        self.items[label] = self.node.run(*command).stdout

    def add_many(self, label: str, count: int) -> list[str]:
        """Put COUNT items into A's store, each of which refers to the one before; their labels.

        With a negative number as many, and none refers to another. The seeder starts anew, so
        that it finds them.
        """
        return self._made("chain.scm", f"e2e-{label}", str(count), self.items["busybox"])

    def add_packages(self) -> list[str]:
        """Build the packages of shell.scm and what they need; labels. The seeder starts anew."""
        return self._made("shell-seed.scm", SHELL, "/usr/lib/x86_64-linux-gnu/guix/guile")

    def _made(self, script: str, *arguments: str) -> list[str]:
        """Run a script that puts items into A's store, and have the seeder find them."""
        output = self.node.run("guix", "repl", "--", f"/opt/rig/{script}", *arguments).stdout
        made = dict(line.split(" ", 1) for line in output.splitlines())
        self.items |= made
        self.stop("seeder")
        self.start_seeder()
        return list(made)

    def stop(self, *names: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End services of A: tracker, seeder, proxy."""
        for name in names:
            self.node.kill(name, number)

    def _running(self, name: str) -> bool:
        service = self.node.services.get(name)
        if service is None:
            return False
        if not service.alive():
            del self.node.services[name]
            return False
        service.thaw()
        return True

    # -- what is there ----------------------------------------------------------------------------

    def nar_hash(self, label: str) -> str:
        """The NarHash of an item of A, 52 characters."""
        item = self.items[label]
        if item not in self._hashes:
            self._hashes[item] = guix.nar_hash(self.node, item)
        return self._hashes[item]

    def index(self, label: str) -> dict[str, Any] | None:
        """What the tracker's index says about an item."""
        url = f"{TRACKER}/v1/nar/{self.nar_hash(label)}"
        done = self.node.run(
            "curl", "-sS", "--fail-with-body", "--max-time", "60", url, check=False
        )
        answer: dict[str, Any] | None = json.loads(done.stdout) if not done.returncode else None
        return answer

    def torrent(self, label: str) -> bytes:
        """An item's torrent as the tracker gives it."""
        url = f"{TRACKER}/v1/nar/{self.nar_hash(label)}.torrent"
        self.node.run("curl", "-sS", "-f", "-o", "/srv/torrent", url)
        return self.node.read("/srv/torrent")

    def wait_published(self, *labels: str, timeout: float = 300.0) -> None:
        """Wait until the tracker lists items with a seeder each."""

        def seeded() -> bool:
            answer = self.index(label)
            return answer is not None and any(t["seeders"] for t in answer["torrents"])

        for label in labels:
            try:
                wait_for(f"{label} in the index", seeded, timeout)
            except DeadlineError as error:
                found = f"the tracker: {self.index(label)}\nthe seeder: {self.status()}"
                log = self.node.services["seeder"].tail()
                raise DeadlineError(f"{error}\n{found}\n{log}") from None

    def payload_length(self, label: str) -> int:
        """Bytes of an item's payload."""
        answer = self.index(label)
        assert answer is not None
        return int(answer["torrents"][0]["length"])

    def status(self) -> dict[str, Any]:
        """What `seeder status --json` says."""
        shown = self.node.run("seeder", "status", "--json").stdout
        answer: dict[str, Any] = json.loads(shown)
        return answer

    def uploaded(self) -> int:
        """Bytes of payload that the seeder has sent since it started."""
        return int(self.status()["uploaded"])

    def in_dht(self, label: str) -> bool:
        """Whether the DHT knows a peer for an item's torrent (its v2 infohash)."""
        answer = self.index(label)
        assert answer is not None
        infohash = answer["torrents"][0]["infohash_v2"]
        command = ("python3", "/opt/rig/dhtnodes.py", "--ask", self.dht.address, infohash)
        return bool(self.dht.run(*command, *self.dht_nodes).stdout)


class Fetcher:
    """A node B: guix-daemon with the substituter."""

    def __init__(
        self,
        site: Site,
        name: str,
        mode: Mode = Mode.ROOT,
        *,
        authorize: bool = True,
        servers: Sequence[str] = (SERVER,),
        program: str = "extension",
        daemon_args: Sequence[str] = (),
        **settings: object,
    ) -> None:
        self.site = site
        self.node = node = site.cluster.node(name)
        values = {
            "trackers": [f"{TRACKER}/announce"],
            "dht": True,
            "dht_nodes": site.dht_nodes,
            "lsd": False,
            "upnp": False,
            "private_network": True,
            **settings,
        }
        node.write(CONFIG, toml("substituter", values))
        if authorize:
            guix.authorize(node, guix.signing_key(site.node))
        start = launcher.text(Path("/usr/local/bin/substituter"), Path("/usr/bin/guix"))
        node.write(f"/{launcher.LAUNCHER}", start, launcher.MODE)
        env = {
            "extension": {"GUIX_EXTENSIONS_PATH": EXTENSIONS},
            "GUIX": {"GUIX": "/usr/local/bin/substituter"},
            "launcher": {"GUIX": f"/{launcher.LAUNCHER}", "GUIX_EXTENSIONS_PATH": EXTENSIONS},
            "guix": {},
        }[program]
        self.daemon = guix.daemon_start(node, mode, servers, env, daemon_args)

    def build(self, *labels: str, args: Sequence[str] = (), timeout: float = 600.0) -> str:
        """`guix build` of items by label; everything it printed."""
        items = [self.site.items[label] for label in labels]
        return guix.build(self.node, *items, args=args, check=False, timeout=timeout)

    def has(self, label: str) -> bool:
        """Whether the item is there."""
        return guix.has(self.node, self.site.items[label])

    def exists(self, label: str) -> bool:
        """Whether anything is at the item's place in the store, be it valid or not."""
        item = self.node.path(self.site.items[label])
        return item.exists() or item.is_symlink()

    def assert_equal(self, *labels: str) -> None:
        """The items are valid here, and in all respects as they are on A."""
        for label in labels:
            item = self.site.items[label]
            assert guix.has(self.node, item), f"{label} is not there"
            assert guix.nar_hash(self.node, item) == self.site.nar_hash(label)
            assert guix.metadata(self.node, item) == guix.metadata(self.site.node, item)

    def nar_requests(self) -> list[dict[str, Any]]:
        """The requests for NARs that this node sent to A's proxy."""
        log = guix.proxy_log(self.site.node)
        return [r for r in log if r["client"] == self.node.address and "/nar/" in r["path"]]

    def http_bytes(self) -> int:
        """Bytes of NARs that this node got over HTTP."""
        return sum(r["bytes"] for r in self.nar_requests())

    def forget(self, *labels: str) -> None:
        """Delete items from the store."""
        self.node.run("guix", "gc", "-D", *(self.site.items[label] for label in labels))
