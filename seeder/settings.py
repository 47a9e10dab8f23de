# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator can set for the seeder, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from narswarm import webseeds
from narswarm.acl import GUIX_ACL
from narswarm.errors import SettingsError
from narswarm.guixdb import DEFAULT_DATABASE
from narswarm.swarm_settings import (
    SwarmSettings,
    listen_port_of,
    proxy_settings,
    split_address,
)
from seeder.mirror_rules import Rule
from seeder.mirror_rules import parse as parse_mirror
from seeder.schedule import Rule as RateRule
from seeder.schedule import parse as parse_rates

SOCKET = Path("/run/narswarm/seeder.sock")
"""Where programs of this machine look first."""

_ANNOUNCE = "/announce"
_MIN_INTERVAL = 1.0
_MIN_RATE = 16 << 10
"""Bytes a second; a file that comes more slowly than a few thousand is given up."""
_NOT_NEGATIVE = (
    *("workers", "upload_rate", "download_rate", "max_disk", "min_size", "max_size"),
    *("max_connections", "premake", "ratio", "fetch_disk", "mirror_disk", "mirror_rate"),
)


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
    extra_trackers: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Announce URLs of trackers without an index: they are announced to."},
    )
    substitute_urls: tuple[str, ...] = field(
        default=("https://bordeaux.guix.gnu.org", "https://ci.guix.gnu.org"),
        metadata={
            "help": "Substitute servers where narinfos are looked up. Each learns the hash parts "
            "of this machine's store items."
        },
    )
    narinfo_rate: float = field(
        default=50.0,
        metadata={"help": "Items a second that are looked up at substitute servers at most."},
    )
    include: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Globs of names of items, such as 'emacs-*'; if set, only these."},
    )
    exclude: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Globs of names of items that are never offered, whoever asks."},
    )
    min_size: int = field(
        default=0, metadata={"help": "Bytes of the smallest NAR to offer.", "unit": "bytes"}
    )
    max_size: int = field(
        default=0,
        metadata={"help": "Bytes of the largest NAR to offer; 0 for any.", "unit": "bytes"},
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
    proxy: str = field(
        default="",
        metadata={
            "help": "SOCKS5 proxy for peers and trackers' announces, such as "
            "socks5://127.0.0.1:9050. HTTP requests go by http_proxy and https_proxy."
        },
    )
    lan_only: bool = field(
        default=False,
        metadata={"help": "Exchange payload with private addresses only; without DHT and UPnP."},
    )
    leech_only: bool = field(
        default=False,
        metadata={"help": "Offer and send nothing; fetch for this machine's substituter alone."},
    )
    max_connections: int = field(
        default=0, metadata={"help": "Peers at most; 0 for 8000, or what open files allow."}
    )
    max_disk: int = field(
        default=20 << 30,
        metadata={"help": "Bytes that payloads may take.", "unit": "bytes"},
    )
    premake: int | None = field(
        default=None,
        metadata={
            "help": "Bytes of payloads to make before somebody asks, newest items first. Not set: "
            "max_disk where nobody could ask (no HTTP tracker) and for `nars`, else 0.",
            "unit": "bytes",
        },
    )
    ratio: float = field(
        default=0.0,
        metadata={"help": "Offer an item no more when it was sent so many times; 0 for ever."},
    )
    upload_rate: int = field(
        default=0,
        metadata={"help": "Bytes a second to send at most; 0 for no limit.", "unit": "bytes"},
    )
    download_rate: int = field(
        default=0,
        metadata={"help": "Bytes a second to receive at most; 0 for no limit.", "unit": "bytes"},
    )
    schedule: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Other rates by local time, such as 'mon-fri 08:00-18:00 up=1MB/s down=0'. "
            "The first that says a direction counts. Not to be set by the environment."
        },
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
    mirror: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Files of substitute servers to keep and seed: 'URL PATH...', "
            "'URL closure PATH...' or 'URL manifest FILE'."
        },
    )
    mirror_disk: int = field(
        default=20 << 30,
        metadata={"help": "Bytes that mirrored files may take.", "unit": "bytes"},
    )
    mirror_rate: int = field(
        default=0,
        metadata={
            "help": "Bytes a second that a mirrored server is asked for; 0 without limit.",
            "unit": "bytes",
        },
    )
    publish_cache: Path | None = field(
        default=None,
        metadata={
            "help": "The directory of `guix publish --cache=DIR`, whose files are seeded where "
            "they are."
        },
    )
    web_seeds: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "URLs of directories that have payloads over HTTP, such as "
            "https://HOST/payloads/; what is fetched for this machine comes from there, too."
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
        default=10.0,
        metadata={
            "help": "How often new and deleted items, and a changed ACL, are looked for.",
            "unit": "seconds",
        },
    )
    expiry_interval: float = field(
        default=3600.0,
        metadata={
            "help": "How often the whole inventory is compared, also if nothing seems changed.",
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
        self.rules_of_rates()
        for url in self.substitute_urls:
            if not _has_host(url, ("http", "https")):
                raise SettingsError("seeder.substitute_urls", f"{url!r} is not an http(s) URL")
        self.mirror_rules()
        if 0 < self.mirror_rate < _MIN_RATE:
            raise SettingsError("seeder.mirror_rate", f"is less than {_MIN_RATE} bytes a second")
        webseeds.check(self.web_seeds, "seeder.web_seeds")
        addresses: tuple[tuple[str, Sequence[str], Callable[[str], object]], ...] = (
            ("listen", self.listen, listen_port_of),
            ("dht_nodes", self.dht_nodes, split_address),
            ("web", [self.web] if self.web else [], split_address),
            ("proxy", [self.proxy], proxy_settings),
        )
        for name, values, check in addresses:
            for address in values:
                try:
                    check(address)
                except SettingsError as error:
                    raise SettingsError(f"seeder.{name}", f"{address!r} {error.reason}") from None
        for name in ("scan_interval", "expiry_interval"):
            if getattr(self, name) < _MIN_INTERVAL:
                raise SettingsError(f"seeder.{name}", "is less than a second")
        for name in _NOT_NEGATIVE:
            if (getattr(self, name) or 0) < 0:
                raise SettingsError(f"seeder.{name}", "is less than 0")
        if self.narinfo_rate <= 0:
            raise SettingsError("seeder.narinfo_rate", "is not more than 0")

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
        own = dict.fromkeys(_tracker("trackers", url) for url in self.trackers)
        urls = {tracker.announce for tracker in own}
        extra = (_tracker("extra_trackers", url) for url in self.extra_trackers)
        bare = dict.fromkeys(Tracker(each.announce, None) for each in extra)
        return (*own, *(each for each in bare if each.announce not in urls))

    def rules_of_rates(self) -> tuple[RateRule, ...]:
        """The schedule.

        Raises:
            SettingsError: something isn't a rule of one.
        """
        try:
            return tuple(parse_rates(text) for text in self.schedule)
        except SettingsError as error:
            raise SettingsError("seeder.schedule", error.reason) from None

    def mirror_rules(self) -> tuple[Rule, ...]:
        """What is mirrored.

        Raises:
            SettingsError: something isn't a rule of that.
        """
        try:
            return tuple(parse_mirror(text) for text in self.mirror)
        except SettingsError as error:
            raise SettingsError("seeder.mirror", f"{error.subject!r} {error.reason}") from None

    @property
    def premake_bytes(self) -> int:
        """What `premake` comes to."""
        if self.premake is not None:
            return self.premake
        can_ask = any(tracker.base is not None for tracker in self.tracker_list())
        return 0 if can_ask and self.nars is None else self.max_disk

    def swarm(self, dht_state: bytes = b"") -> SwarmSettings:
        """What the BitTorrent session is told."""
        return SwarmSettings(
            listen=self.listen,
            dht=self.dht and not self.lan_only,
            dht_nodes=self.dht_nodes,
            dht_state=dht_state,
            private_network=self.private_network,
            lsd=self.lsd,
            upnp=self.upnp and not self.lan_only,
            role="seed",
            extra=self.libtorrent,
            upload_rate=self.upload_rate,
            download_rate=self.download_rate,
            connections=self.max_connections,
            proxy=self.proxy,
            lan_only=self.lan_only,
            upload=not self.leech_only,
        )


def _tracker(setting: str, url: str) -> Tracker:
    if _has_host(url, ("udp",)):
        return Tracker(url, None)
    if not (_has_host(url, ("http", "https")) and urlsplit(url).path.endswith(_ANNOUNCE)):
        raise SettingsError(
            f"seeder.{setting}",
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
