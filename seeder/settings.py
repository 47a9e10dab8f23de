# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator can set for the seeder, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from narswarm.acl import GUIX_ACL
from narswarm.errors import SettingsError
from narswarm.guixdb import DEFAULT_DATABASE
from narswarm.swarm_settings import SwarmSettings, listen_port_of, split_address

SOCKET = Path("/run/narswarm/seeder.sock")
"""Where programs of this machine look first."""

_ANNOUNCE = "/announce"
_MIN_INTERVAL = 1.0


class Tracker(NamedTuple):
    """A tracker to announce to.

    Attributes:
        announce: its announce URL.
        base: URL of its index, None for trackers without one (UDP).
    """

    announce: str
    base: str | None


@dataclass(frozen=True, slots=True)
class Settings:
    """The table `[seeder]` of the settings file."""

    state: Path = field(
        default=Path("/var/lib/narswarm/seeder"),
        metadata={"help": "Directory of payloads, torrents and the publisher's key."},
    )
    store_db: Path = field(
        default=DEFAULT_DATABASE, metadata={"help": "Database of guix-daemon, which is only read."}
    )
    store: Path = field(
        default=Path("/gnu/store"), metadata={"help": "Where the files of store items are."}
    )
    nars: Path | None = field(
        default=None,
        metadata={
            "help": "Offer the NARs of this directory, each with its signed narinfo beside it, "
            "instead of a store: for machines without Guix."
        },
    )
    acl: Path = field(
        default=GUIX_ACL,
        metadata={"help": "Keys whose narinfos vouch for items; nothing else is ever announced."},
    )
    trackers: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Announce URLs, such as http://tracker.example.org:6969/announce."},
    )
    substitute_urls: tuple[str, ...] = field(
        default=("https://bordeaux.guix.gnu.org", "https://ci.guix.gnu.org"),
        metadata={
            "help": "Substitute servers where narinfos are looked up. Each learns the hash parts "
            "of this machine's store items."
        },
    )
    listen: tuple[str, ...] = field(
        default=("0.0.0.0:6881", "[::]:6881"),
        metadata={"help": "HOST:PORT that peers connect to."},
    )
    dht: bool = field(default=True, metadata={"help": "Announce in the DHT."})
    dht_nodes: tuple[str, ...] = field(
        default=(), metadata={"help": "HOST:PORT of DHT nodes to begin with."}
    )
    private_network: bool = field(
        default=False,
        metadata={"help": "All nodes are on one private network (no limits per subnet)."},
    )
    lsd: bool = field(default=True, metadata={"help": "Announce on the local network."})
    upnp: bool = field(default=True, metadata={"help": "Ask the router to forward the port."})
    max_disk: int = field(
        default=20 << 30,
        metadata={"help": "Bytes that payloads may take.", "unit": "bytes"},
    )
    upload_rate: int = field(
        default=0,
        metadata={"help": "Bytes a second to send at most; 0 for no limit.", "unit": "bytes"},
    )
    download_rate: int = field(
        default=0,
        metadata={"help": "Bytes a second to fetch at most; 0 for no limit.", "unit": "bytes"},
    )
    fetch_disk: int = field(
        default=4 << 30,
        metadata={
            "help": "Bytes that payloads may take while they are fetched for this machine.",
            "unit": "bytes",
        },
    )
    socket: Path = field(
        default=SOCKET,
        metadata={
            "help": "Also listen for this machine's programs here, if the directory can be "
            "written; always in the state directory."
        },
    )
    control_users: tuple[str, ...] = field(
        default=("guix-daemon",),
        metadata={"help": "Users who may have items fetched, besides root and the seeder's own."},
    )
    web: str = field(
        default="127.0.0.1:6880",
        metadata={"help": "HOST:PORT of the page and of /metrics; empty for none."},
    )
    workers: int = field(
        default=0, metadata={"help": "Threads that compress; 0 for one on each core."}
    )
    scan_interval: float = field(
        default=30.0,
        metadata={"help": "How often new items are looked for.", "unit": "seconds"},
    )
    expiry_interval: float = field(
        default=3600.0,
        metadata={
            "help": "How often payloads of items that were deleted are dropped.",
            "unit": "seconds",
        },
    )
    libtorrent: Mapping[str, int | bool | str] = field(
        default_factory=dict, metadata={"help": "Settings of libtorrent by their own names."}
    )

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            SettingsError: naming the setting.
        """
        self.tracker_list()
        for url in self.substitute_urls:
            if not _has_host(url, ("http", "https")):
                raise SettingsError("seeder.substitute_urls", f"{url!r} is not an http(s) URL")
        for name, check in (("listen", listen_port_of), ("dht_nodes", split_address)):
            for address in getattr(self, name):
                try:
                    check(address)
                except SettingsError as error:
                    raise SettingsError(f"seeder.{name}", f"{address!r} {error.reason}") from None
        if self.web:
            try:
                split_address(self.web)
            except SettingsError as error:
                raise SettingsError("seeder.web", f"{self.web!r} {error.reason}") from None
        for name in ("scan_interval", "expiry_interval"):
            if getattr(self, name) < _MIN_INTERVAL:
                raise SettingsError(f"seeder.{name}", "is less than a second")
        for name in ("workers", "upload_rate", "download_rate", "max_disk", "fetch_disk"):
            if getattr(self, name) < 0:
                raise SettingsError(f"seeder.{name}", "is less than 0")

    def check(self) -> None:
        """Make sure that libtorrent takes everything.

        Raises:
            SettingsError: names what it doesn't.
        """
        self.swarm().check()

    def tracker_list(self) -> tuple[Tracker, ...]:
        """The trackers, each once.

        Raises:
            SettingsError: something isn't an announce URL.
        """
        return tuple(dict.fromkeys(_tracker(url) for url in self.trackers))

    def swarm(self, dht_state: bytes = b"") -> SwarmSettings:
        """What the BitTorrent session is told."""
        return SwarmSettings(
            listen=self.listen,
            dht=self.dht,
            dht_nodes=self.dht_nodes,
            dht_state=dht_state,
            private_network=self.private_network,
            lsd=self.lsd,
            upnp=self.upnp,
            role="seed",
            extra=self.libtorrent,
            upload_rate=self.upload_rate,
            download_rate=self.download_rate,
        )


def _tracker(url: str) -> Tracker:
    if _has_host(url, ("udp",)):
        return Tracker(url, None)
    if not (_has_host(url, ("http", "https")) and urlsplit(url).path.endswith(_ANNOUNCE)):
        raise SettingsError(
            "seeder.trackers",
            f"{url[:300]!r} is not an announce URL such as http://HOST:PORT/announce",
        )
    return Tracker(url, url.split("?", 1)[0].removesuffix(_ANNOUNCE))


def _has_host(url: str, schemes: tuple[str, ...]) -> bool:
    """Whether this is a URL of one of these schemes, with a host and no impossible port."""
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
