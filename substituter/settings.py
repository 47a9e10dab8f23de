# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be set for the substituter, and its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from narswarm.errors import SettingsError

POLICIES: Final = ("race", "swarm-only", "swarm-first", "http-first")
"""See `substituter.race.Policy`."""


@dataclass(frozen=True, slots=True)
class SubstituterSettings:
    """The `[substituter]` table of `/etc/narswarm/narswarm.toml`."""

    trackers: tuple[str, ...] = field(
        default=(), metadata={"help": "announce URLs of trackers, such as http://HOST/announce"}
    )
    state: Path = field(
        default=Path("/var/guix/narswarm"),
        metadata={"help": "where narinfos, torrents and partial downloads are kept"},
    )
    acl: Path = field(
        default=Path("/etc/guix/acl"), metadata={"help": "keys that narinfos may be signed by"}
    )
    guix: Path | None = field(
        default=None, metadata={"help": "the real guix; looked for in the usual places if not set"}
    )
    seeder: str | None = field(
        default=None,
        metadata={
            "help": "the socket of this machine's seeder, which fetches for the substituter; "
            'looked for in the usual places if not set, not used if it is ""'
        },
    )
    dht: bool = field(default=True, metadata={"help": "whether peers are looked up in the DHT"})
    dht_nodes: tuple[str, ...] = field(
        default=(), metadata={"help": "HOST:PORT of DHT nodes to start from"}
    )
    lsd: bool = field(
        default=True, metadata={"help": "whether peers are looked for on the local network"}
    )
    upnp: bool = field(
        default=False, metadata={"help": "whether the router is asked to forward a port"}
    )
    private_network: bool = field(
        default=False,
        metadata={"help": "whether all nodes are on one private network (no limits per subnet)"},
    )
    listen: tuple[str, ...] = field(
        default=("0.0.0.0:0", "[::]:0"),
        metadata={"help": "HOST:PORT that peers may connect to; port 0 takes a free one"},
    )
    policy: str = field(
        default="race",
        metadata={
            "help": "race, swarm-first, swarm-only or http-first: whether the swarm and substitute "
            "servers race for items, or which of them is used as long as it doesn't fail"
        },
    )
    quorum: int = field(
        default=1,
        metadata={
            "help": "how many different authorised keys must have signed the same hash for an item"
        },
    )
    query_timeout: float = field(
        default=20.0,
        metadata={
            "unit": "seconds",
            "help": "how long one query may take; guix-daemon itself would wait for ever",
        },
    )
    first_byte_timeout: float = field(
        default=2.0,
        metadata={
            "unit": "seconds",
            "help": "how long a swarm may take to send its first byte before it is given up",
        },
    )
    stall_timeout: float = field(
        default=5.0,
        metadata={
            "unit": "seconds",
            "help": "how long a swarm may send nothing before it is given up",
        },
    )
    patience: float = field(
        default=30.0,
        metadata={
            "unit": "seconds",
            "help": "how long a swarm may send nothing when there is no other source",
        },
    )
    prefetch_disk: int = field(
        default=1 << 30,
        metadata={
            "unit": "bytes",
            "help": "what the next items of a plan may take while they are fetched ahead; as much "
            "again for payloads that are uploaded meanwhile; 0 fetches nothing ahead",
        },
    )
    web_seeds: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "URLs of directories that have payloads over HTTP, such as "
            "https://HOST/payloads/; the swarm's downloads use them, too"
        },
    )
    libtorrent: Mapping[str, int | bool | str] = field(
        default_factory=dict, metadata={"help": "settings of libtorrent by their own names"}
    )

    def __post_init__(self) -> None:
        """Check what has few values.

        Raises:
            SettingsError: one has another.
        """
        if self.policy not in POLICIES:
            raise SettingsError("policy", f"expected {', '.join(POLICIES)}, got {self.policy!r}")
        if self.web_seeds:
            from narswarm import webseeds  # noqa: PLC0415 -- most have none

            webseeds.check(self.web_seeds, "web_seeds")
        if self.quorum < 1:
            raise SettingsError("quorum", f"expected a number of keys from 1, got {self.quorum}")
