# SPDX-License-Identifier: GPL-3.0-or-later
"""What a BitTorrent session may be told, and the libtorrent settings that follow.

Two presets carry what was measured on libtorrent for our two uses: many small downloads that
must start within milliseconds ("fetch"), and many thousands of idle torrents ("seed"). What a
user writes in the `libtorrent` table of the settings file goes on top, checked by name and type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from narswarm import lt_compat
from narswarm.errors import SettingsError

_LISTEN = re.compile(r"[^\s,]+:([0-9]{1,5})[ls]*")  # libtorrent's flags: local network, TLS

OWN_SETTINGS = {
    "alert_mask": "which the programs need as it is",
    "alert_queue_size": "which the programs need as it is",
    "dht_bootstrap_nodes": "set dht_nodes",
    "download_rate_limit": "set download_rate",
    "enable_dht": "set dht",
    "enable_lsd": "set lsd",
    "enable_natpmp": "set upnp",
    "enable_upnp": "set upnp",
    "handshake_client_version": "which tells members of a crowd apart",
    "listen_interfaces": "set listen",
    "proxy_hostname": "set proxy",
    "proxy_password": "set proxy",
    "proxy_port": "set proxy",
    "proxy_type": "set proxy",
    "proxy_username": "set proxy",
    "upload_rate_limit": "set upload_rate",
}
"""Settings of libtorrent that a field here decides, and which one."""

COMMON = {
    "user_agent": "narswarm",
    "webtorrent_stun_server": "",  # 2.1 would ask a stranger's server for our address
    "stop_tracker_timeout": 1,  # the session's end waits that long, with the interpreter locked
    "alert_queue_size": 100_000,  # mass adds overflow the 2,000 of the default
    "max_retry_port_bind": 0,  # a port that was asked for is that port: firewalls name it
    "listen_system_port_fallback": False,
    "allow_multiple_connections_per_ip": True,  # universities and carriers share addresses
    "min_reconnect_time": 1,  # a full seeder refuses; 60 s later the download is long elsewhere
    "connection_speed": 1000,
    # Slots are given anew every 15 s, in which a crowd that fetches the same is done.
    "unchoke_slots_limit": -1,
    # What has been asked of a seed isn't taken from a peer that gets it meanwhile.
    "request_queue_time": 1,
    # The default stops at the first that answers, and peers at the others hear nothing.
    "announce_to_all_trackers": True,
    "announce_to_all_tiers": True,
    "apply_ip_filter_to_trackers": False,  # the user has named them; it is for peers
    "active_seeds": -1,
    "active_downloads": -1,
    "active_limit": -1,
    "active_dht_limit": -1,
    "active_tracker_limit": -1,
    "active_lsd_limit": -1,
}

FETCH = {
    # The default tries uTP first, which moves about 10 MB/s where TCP moves hundreds;
    # `Swarm` lets it in when a download starves (peers behind NAT may have nothing else).
    "enable_outgoing_utp": False,
    "connections_limit": 2000,
    # A session that ends in a moment mustn't be in others' routing tables (BEP 43).
    "dht_read_only": True,
    "dht_announce_interval": 15,  # lookups are paced by it: 900 s would starve a batch
}

SEED = {
    "connections_limit": 8000,  # beyond it peers are refused, and wait for a minute
    "listen_queue_size": 1000,
    "dht_announce_interval": 24 * 3600,  # the seeder does it, faster (seeder.dht_announces)
    "dht_upload_rate_limit": 500_000,  # the default delays announces
    # Multicasts for each torrent; those who look for one multicast too, and a seeder hears them.
    "local_service_announce_interval": 3600,
}

# libtorrent's proxy_type_t
_SOCKS5 = 2
_SOCKS5_WITH_PASSWORD = 3

LAN = (
    ("10.0.0.0", "10.255.255.255"),
    ("127.0.0.0", "127.255.255.255"),
    ("169.254.0.0", "169.254.255.255"),
    ("172.16.0.0", "172.31.255.255"),
    ("192.168.0.0", "192.168.255.255"),
    ("::1", "::1"),
    ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
)
"""Addresses of local networks (RFC 1918, 3927, 4193, 4291), first and last."""

PRIVATE = {
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_prefer_verified_node_ids": False,
    "dht_ignore_dark_internet": False,
    "dht_upload_rate_limit": 10_000_000,
    "dht_block_ratelimit": 10_000,
}


@dataclass(frozen=True, slots=True)
class SwarmSettings:
    """How one BitTorrent session behaves.

    Attributes:
        listen: libtorrent's listen_interfaces, such as "0.0.0.0:6881"; port 0 takes a free one.
        dht: take part in the distributed hash table (BEP 5).
        dht_nodes: HOST:PORT of nodes to begin with; empty stands for libtorrent's own.
        dht_state: what `Swarm.dht_state()` returned before, which spares the bootstrap.
        private_network: all nodes are on one LAN or on loopback, so the DHT mustn't count
            addresses as it does on the Internet.
        lsd: local service discovery (BEP 14).
        upnp: ask routers for a port, by UPnP and NAT-PMP.
        role: which measured preset is the ground.
        extra: libtorrent settings by their own names.
        upload_rate: bytes a second, 0 without limit.
        download_rate: bytes a second, 0 without limit.
        connections: peers at most, 0 for the preset's number.
        proxy: URL of a SOCKS5 proxy for peers and trackers, such as socks5://HOST:PORT.
        lan_only: connect to peers with private addresses only.
        upload: send payload to peers at all.
    """

    listen: tuple[str, ...] = ("0.0.0.0:0", "[::]:0")
    dht: bool = True
    dht_nodes: tuple[str, ...] = ()
    dht_state: bytes = b""
    private_network: bool = False
    lsd: bool = True
    upnp: bool = True
    role: Literal["fetch", "seed"] = "fetch"
    extra: Mapping[str, int | str | bool] = field(default_factory=dict)
    upload_rate: int = 0
    download_rate: int = 0
    connections: int = 0
    proxy: str = ""
    lan_only: bool = False
    upload: bool = True

    def check(self) -> None:
        """Find what libtorrent would refuse, before a session exists.

        Raises:
            SettingsError: names the setting.
        """
        for address in self.listen:
            listen_port_of(address)
        for node in self.dht_nodes:
            split_address(node)
        proxy_settings(self.proxy)
        for key in self.extra:
            if key in OWN_SETTINGS:
                raise SettingsError(
                    f"libtorrent.{key}", f"is not to be set here: {OWN_SETTINGS[key]}"
                )
        if self.extra:
            lt_compat.check_settings(self.extra)

    def pack(self, alert_mask: int, name: str = "") -> dict[str, Any]:
        """The settings that a session starts with.

        Args:
            alert_mask: categories of alerts.
            name: what the session calls itself to peers (BEP 10), empty for its user agent.

        The DHT starts off: `Swarm` turns it on when the session listens, since libtorrent 2.1.1
        otherwise forgets the saved nodes if there are no bootstrap nodes.
        """
        preset = COMMON | (FETCH if self.role == "fetch" else SEED)
        if self.private_network:
            preset |= PRIVATE
        pack = lt_compat.known(preset) | {
            "alert_mask": alert_mask,
            "handshake_client_version": name,
            "listen_interfaces": ",".join(self.listen),
            "enable_dht": False,
            "enable_lsd": self.lsd,
            "enable_upnp": self.upnp,
            "enable_natpmp": self.upnp,
            "upload_rate_limit": self.upload_rate,
            "download_rate_limit": self.download_rate,
        }
        if self.private_network:
            pack["dht_bootstrap_nodes"] = ""  # a router bootstraps nobody unless it knows others
        elif self.dht_nodes:
            pack["dht_bootstrap_nodes"] = ",".join(self.dht_nodes)
        if self.connections:
            pack["connections_limit"] = self.connections
        if not self.upload:
            pack["unchoke_slots_limit"] = 0
        return pack | proxy_settings(self.proxy) | dict(self.extra)


def proxy_settings(url: str) -> dict[str, Any]:
    """What libtorrent is told of a SOCKS5 proxy; nothing without one.

    Raises:
        SettingsError: something else than `socks5://[USER:PASSWORD@]HOST:PORT`.
    """
    if not url:
        return {}
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not (host and port and parts.scheme == "socks5" and parts.path in {"", "/"}):
        raise SettingsError(url, "is not socks5://[USER:PASSWORD@]HOST:PORT")
    return {
        "proxy_type": _SOCKS5 if parts.username is None else _SOCKS5_WITH_PASSWORD,
        "proxy_hostname": host,
        "proxy_port": port,
        "proxy_username": unquote(parts.username or ""),
        "proxy_password": unquote(parts.password or ""),
    }


def listen_port_of(text: str) -> int:
    """The port of what libtorrent could listen on: an address or a device, and a port.

    Raises:
        SettingsError: something else.
    """
    match = _LISTEN.fullmatch(text)
    if not match or int(match[1]) > 65535:
        raise SettingsError(text, "is not HOST:PORT")
    return int(match[1])


def split_address(text: str) -> tuple[str, int]:
    """HOST:PORT or [IPv6]:PORT as a pair.

    Raises:
        SettingsError: something else.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise SettingsError(text, "is not HOST:PORT")
    return host, int(port)
