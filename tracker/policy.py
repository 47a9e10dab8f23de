# SPDX-License-Identifier: GPL-3.0-or-later
"""What this tracker grants: from which address somebody speaks, how many peers, how often.

These are decisions of an operator, kept apart from the protocol and from the swarms so that each
can be read, set and tested alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from random import Random
from typing import NamedTuple

from narswarm.errors import SettingsError
from tracker.wire_http import WireError

Network = IPv4Network | IPv6Network


class Intervals(NamedTuple):
    """Seconds until a client should, and may, announce again."""

    interval: int
    min_interval: int


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's decisions about announces.

    Attributes:
        interval: seconds between the announces of a seed, which stays for hours.
        leecher_interval: the same for a leecher: its download takes seconds, and so does the
            news of who else has begun.
        numwant: how many peers a client gets that doesn't say.
        max_numwant: how many it gets at most.
        retry_minutes: when to ask again for an infohash that isn't in the index. Never "never":
            the next publication may bring it.
        trusted_proxies: whose X-Forwarded-For is believed.
    """

    interval: int = 1800
    leecher_interval: int = 90
    numwant: int = 50
    max_numwant: int = 200
    retry_minutes: int = 5
    trusted_proxies: tuple[Network, ...] = ()

    def peers_for(self, numwant: int | None) -> int:
        """How many peers a client gets that asked for so many."""
        return min(self.numwant if numwant is None else numwant, self.max_numwant)

    def intervals(self, rng: Random, *, seed: bool) -> Intervals:
        """When to come back: up to a tenth earlier or later than set.

        A seed box adds all its torrents at once and would announce all of them at once for ever;
        different intervals spread them.
        """
        base = self.interval if seed else self.leecher_interval
        interval = rng.randint(base - base // 10, base + base // 10)
        return Intervals(interval, base // 2)

    def client_address(self, remote: str, forwarded: str | None) -> bytes:
        """Which address a request comes from, 4 or 16 bytes.

        X-Forwarded-For counts only from a trusted proxy, and of it the last entry that isn't a
        trusted proxy itself: everything further left was written by who knows whom.

        Args:
            remote: the address of the TCP connection.
            forwarded: the header's value, entries separated by commas.

        Raises:
            WireError: a trusted proxy did not say for whom it asks; its own address would
                send the swarm to the proxy.
        """
        address = _address(remote)
        if not self._trusts(address):
            return address.packed
        for entry in reversed((forwarded or "").split(",")):
            try:
                address = _address(entry.strip())
            except ValueError:
                break
            if not self._trusts(address):
                return address.packed
        raise WireError("X-Forwarded-For: the proxy did not name the client")

    def _trusts(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self.trusted_proxies)


def _address(text: str) -> IPv4Address | IPv6Address:
    """Read an address; IPv4 that a dual-stack socket shows as IPv6 is IPv4, scopes are dropped."""
    address = ip_address(text.partition("%")[0])
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def parse_networks(texts: Iterable[str], setting: str = "trusted_proxies") -> tuple[Network, ...]:
    """Read networks, such as `127.0.0.1` or `2001:db8::/32`.

    Args:
        texts: the networks.
        setting: what they are for.

    Raises:
        SettingsError: one is neither an address nor a network.
    """
    networks = []
    for text in texts:
        try:
            networks.append(ip_network(text))
        except ValueError as error:
            raise SettingsError(setting, str(error)) from None
    return tuple(networks)
