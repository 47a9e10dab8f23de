# SPDX-License-Identifier: GPL-3.0-or-later
"""What is granted to whom."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random

import pytest

from narswarm.errors import SettingsError
from tracker.policy import Policy, parse_networks
from tracker.wire_http import WireError

PROXIES = parse_networks(["127.0.0.0/8", "::1", "10.0.0.0/24"])


@pytest.mark.parametrize(
    ("asked", "granted"),
    [(None, 50), (0, 0), (1, 1), (50, 50), (199, 199), (200, 200), (201, 200), (2**64, 200)],
)
def test_peers(asked: int | None, granted: int) -> None:
    """A client gets what it asks for up to a limit, and a default when it doesn't ask."""
    assert Policy(numwant=50, max_numwant=200).peers_for(asked) == granted


@pytest.mark.parametrize(("seed", "base"), [(True, 1000), (False, 100)])
def test_intervals_differ(seed: bool, base: int) -> None:
    """Replies spread within a tenth around what is set; the least interval is half of it."""
    rng = Random(1)  # noqa: S311 - the same at each run
    policy = Policy(interval=1000, leecher_interval=100)
    intervals = [policy.intervals(rng, seed=seed) for _ in range(5000)]
    assert min(each.interval for each in intervals) == base - base // 10
    assert max(each.interval for each in intervals) == base + base // 10
    assert {each.min_interval for each in intervals} == {base // 2}


@pytest.mark.parametrize(
    ("remote", "forwarded", "client"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("2001:db8::1", None, "2001:db8::1"),
        ("::ffff:192.0.2.1", None, "192.0.2.1"),
        ("fe80::1%eth0", None, "fe80::1"),
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("127.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("::ffff:127.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("::1", "::ffff:198.51.100.7", "198.51.100.7"),
        ("127.0.0.1", "6.6.6.6, 198.51.100.7", "198.51.100.7"),
        ("127.0.0.1", "6.6.6.6,198.51.100.7,10.0.0.5 , 127.0.0.1", "198.51.100.7"),
        ("127.0.0.1", "nonsense, 198.51.100.7", "198.51.100.7"),
    ],
)
def test_client_address(remote: str, forwarded: str | None, client: str) -> None:
    """A proxy is believed if it is trusted, and then only what trusted proxies wrote."""
    policy = Policy(trusted_proxies=PROXIES)
    assert policy.client_address(remote, forwarded) == ip_address(client).packed


@pytest.mark.parametrize(
    "forwarded", [None, "", "127.0.0.1", "10.0.0.1, ::1", "6.6.6.6, unknown", "6.6.6.6:80"]
)
def test_proxy_that_names_nobody(forwarded: str | None) -> None:
    """A trusted proxy must say for whom it asks; its own address is nobody's."""
    with pytest.raises(WireError) as caught:
        Policy(trusted_proxies=PROXIES).client_address("127.0.0.1", forwarded)
    assert str(caught.value) == "X-Forwarded-For: the proxy did not name the client"


def test_nobody_is_trusted_by_default() -> None:
    """Without settings, the header is what any client can write."""
    assert Policy().client_address("127.0.0.1", "6.6.6.6") == b"\x7f\0\0\1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("proxy", "'proxy' does not appear to be an IPv4 or IPv6 network"),
        ("10.0.0.1/8", "10.0.0.1/8 has host bits set"),
    ],
)
def test_bad_networks(text: str, reason: str) -> None:
    """What isn't a network is refused at start."""
    with pytest.raises(SettingsError) as caught:
        parse_networks([text])
    assert str(caught.value) == f"trusted_proxies: {reason}"
