# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator can set, and what is made of it."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from pathlib import Path

from narswarm.acl import GUIX_ACL
from narswarm.errors import SettingsError
from tracker.policy import Network, Policy, parse_networks
from tracker.redis_link import parse_url
from tracker.swarms import Limits

IN_MEMORY = "memory"
"""The value of `swarms` that needs no other program."""

ENGINES = ("auto", "native", "python")
"""The values of `engine`."""

_KEY_BYTES = 32
_LONGEST_INTERVAL = 86_400
"""Seconds. Whoever asks for more gets peers that are long gone, and a UDP reply has 32 bits."""
_POSTGRES = re.compile(r"(postgres(ql)?://.*)?")
_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?")


@dataclass(frozen=True, slots=True)
class Settings:
    """The table `[tracker]` of the settings file."""

    listen: tuple[str, ...] = field(
        default=("[::]:6969",),
        metadata={"help": "Addresses to listen on, HOST:PORT. [::] takes IPv4 as well."},
    )
    udp: bool = field(
        default=True,
        metadata={"help": "Answer announces over UDP as well, at the same addresses and ports."},
    )
    data: Path = field(
        default=Path("/var/lib/narswarm/tracker"),
        metadata={"help": "Directory of the index, a key and a socket."},
    )
    index: str = field(
        default="",
        metadata={"help": "URL of PostgreSQL for the index; without, it is in the directory."},
    )
    swarms: str = field(
        default="memory",
        metadata={"help": "Where swarms are: memory, or redis://HOST:PORT/DATABASE to share them."},
    )
    engine: str = field(
        default="auto",
        metadata={"help": "What keeps swarms in memory: native (C), python, or auto, the better."},
    )
    index_size: int = field(
        default=20 << 30,
        metadata={"help": "How large the index may grow.", "unit": "bytes"},
    )
    open: bool = field(
        default=False,
        metadata={"help": "Track any infohash, not just those of the index."},
    )
    acl: Path = field(
        default=GUIX_ACL,
        metadata={"help": "Keys whose narinfos may be published; read again when it changes."},
    )
    publishers: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Keys that may publish, in base64. None listed: any key may."},
    )
    nar_servers: tuple[str, ...] = field(
        default=("https://bordeaux.guix.gnu.org", "https://ci.guix.gnu.org"),
        metadata={"help": "Substitute servers whose NARs the mirrored narinfos may point to."},
    )
    url: str | None = field(
        default=None,
        metadata={"help": "Public URL of this tracker. Needed behind a proxy that ends TLS."},
    )
    trusted_proxies: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Addresses or networks whose X-Forwarded-For is believed."},
    )
    metrics_from: tuple[str, ...] = field(
        default=("127.0.0.0/8", "::1"),
        metadata={"help": "Addresses or networks that may read /metrics."},
    )
    page: bool = field(
        default=True,
        metadata={"help": "Show people a page at /, with a search."},
    )
    title: str = field(
        default="narswarm tracker", metadata={"help": "What the page calls this tracker."}
    )
    contact: str = field(
        default="",
        metadata={"help": "Mail address or URL of the operator, for the page."},
    )
    interval: int = field(
        default=1800,
        metadata={"help": "Time between the announces of a seed.", "unit": "seconds"},
    )
    leecher_interval: int = field(
        default=90,
        metadata={"help": "Time between the announces of a leecher.", "unit": "seconds"},
    )
    numwant: int = field(default=50, metadata={"help": "Peers for a client that doesn't say."})
    max_numwant: int = field(default=200, metadata={"help": "Peers that a client gets at most."})
    max_swarms: int = field(default=500_000, metadata={"help": "Swarms kept in memory."})
    max_peers: int = field(default=2_000_000, metadata={"help": "Peers kept in memory."})
    max_swarm_peers: int = field(default=20_000, metadata={"help": "Peers kept of one swarm."})
    max_address_ports: int = field(
        default=32,
        metadata={"help": "Peers kept of one swarm that have the same address, or IPv6 /64."},
    )
    max_holders: int = field(
        default=10_000, metadata={"help": "Seeders whose lists of what they hold are kept."}
    )
    max_holder_items: int = field(
        default=1_000_000, metadata={"help": "Items kept of one seeder's list."}
    )
    max_held_items: int = field(
        default=50_000_000,
        metadata={"help": "Items kept of all lists together, 8 bytes each."},
    )
    threads: int = field(default=16, metadata={"help": "Requests that are served at a time."})

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            SettingsError: naming the setting.
        """
        positive = (
            "interval leecher_interval max_numwant max_swarms max_peers max_swarm_peers"
            " max_address_ports max_holders max_holder_items max_held_items threads index_size"
        )
        for name in positive.split():
            if getattr(self, name) < 1:
                raise SettingsError(name, "is less than 1")
        for name in ("interval", "leecher_interval"):
            if getattr(self, name) > _LONGEST_INTERVAL:
                raise SettingsError(name, "is longer than a day")
        if not 0 <= self.numwant <= self.max_numwant:
            raise SettingsError("numwant", f"is not between 0 and max_numwant, {self.max_numwant}")
        if self.url is not None and not _URL.fullmatch(self.url):
            raise SettingsError("url", f"{self.url!r} is not an http or https URL")
        for server in self.nar_servers:
            if not _URL.fullmatch(server):
                raise SettingsError("nar_servers", f"{server!r} is not an http or https URL")
        self._check_stores()
        if not self.listen:
            raise SettingsError("listen", "names no address")

    def _check_stores(self) -> None:
        """Refuse places for index and swarms that can't be; no message has a password in it."""
        if not _POSTGRES.fullmatch(self.index):
            raise SettingsError("index", "is not postgresql://HOST:PORT/DATABASE")
        if self.swarms != IN_MEMORY:
            parse_url(self.swarms)
        if self.engine not in ENGINES:
            raise SettingsError("engine", f"{self.engine!r} is neither auto, native nor python")
        if self.engine == "native" and self.swarms != IN_MEMORY:
            raise SettingsError("engine", "native has its swarms in memory only")

    @property
    def place(self) -> Path | str:
        """Where the index is."""
        return self.index or self.data

    def policy(self) -> Policy:
        """What announces are granted.

        Raises:
            SettingsError: a proxy is neither an address nor a network.
        """
        return Policy(
            interval=self.interval,
            leecher_interval=self.leecher_interval,
            numwant=self.numwant,
            max_numwant=self.max_numwant,
            trusted_proxies=parse_networks(self.trusted_proxies),
        )

    def metrics_networks(self) -> tuple[Network, ...]:
        """Who may read the metrics.

        Raises:
            SettingsError: one is neither an address nor a network.
        """
        return parse_networks(self.metrics_from, "metrics_from")

    def limits(self) -> Limits:
        """What bounds the swarms. A peer may miss one announce and be late for the next.

        No client is forgotten within 20 minutes: several announce no more often than every 5,
        whatever a tracker says.
        """
        return Limits(
            swarms=self.max_swarms,
            peers=self.max_peers,
            swarm_peers=self.max_swarm_peers,
            address_ports=self.max_address_ports,
            seed_timeout=max(self.interval * 5 // 2, 1200),
            leecher_timeout=max(self.leecher_interval * 5 // 2, 1200),
        )

    def holdings_limits(self) -> tuple[int, int, int]:
        """How many lists of holdings are kept, items of one of them, and items of all."""
        return self.max_holders, self.max_holder_items, self.max_held_items

    def publisher_keys(self) -> frozenset[bytes]:
        """The keys that may publish, 32 bytes each; none means any.

        Raises:
            SettingsError: one isn't a key.
        """
        keys = set()
        for text in self.publishers:
            try:
                key = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                key = b""
            if len(key) != _KEY_BYTES:
                raise SettingsError("publishers", f"{text!r} is not 32 bytes in base64")
            keys.add(key)
        return frozenset(keys)


def parse_listen(text: str) -> tuple[str, int]:
    """Read `HOST:PORT`, `[HOST]:PORT` or `:PORT`, which is all addresses.

    Raises:
        SettingsError: it is something else.
    """
    host, colon, port = text.rpartition(":")
    host = host or "[::]"
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise SettingsError("listen", f"{text!r} is not HOST:PORT")
    if not bracketed and ":" in host:
        raise SettingsError("listen", f"{text!r} has an IPv6 address without brackets")
    return host.strip("[]"), int(port)
