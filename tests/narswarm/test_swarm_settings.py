# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of sessions: what is refused, and what libtorrent is told."""

from __future__ import annotations

from typing import Any

import pytest

from narswarm import lt_compat
from narswarm.errors import SettingsError
from narswarm.swarm_settings import (
    COMMON,
    FETCH,
    OWN_SETTINGS,
    PRIVATE,
    SEED,
    SwarmSettings,
    proxy_settings,
    split_address,
)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("dht.example.org:6881", ("dht.example.org", 6881)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
    ],
)
def test_addresses(text: str, pair: tuple[str, int]) -> None:
    """HOST:PORT, with IPv6 in brackets."""
    assert split_address(text) == pair


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "host",
        "host:",
        ":6881",
        "host:0",
        "host:65536",
        "host:-1",
        "h:٣",
        "::1:80",
        "[]:80",
    ],
)
def test_what_is_no_address(text: str) -> None:
    """Everything else is refused by name."""
    with pytest.raises(SettingsError) as caught:
        split_address(text)
    assert str(caught.value) == f"{text}: is not HOST:PORT"
    with pytest.raises(SettingsError):
        SwarmSettings(dht_nodes=(text,)).check()


@pytest.mark.parametrize(
    "text", ["0.0.0.0:6881", "[::]:0", "[fe80::1%eth0]:65535", "eth0:6881", "127.0.0.1:1l"]
)
def test_what_can_be_listened_on(text: str) -> None:
    """An address or a device, and a port."""
    SwarmSettings(listen=(text,)).check()


@pytest.mark.parametrize("text", ["", "x", "6881", ":6881", "a:", "a:65536", "a b:1", "a:1,b:2"])
def test_what_cannot_be_listened_on(text: str) -> None:
    """A typing error is told before a session exists."""
    with pytest.raises(SettingsError) as caught:
        SwarmSettings(listen=(text,)).check()
    assert str(caught.value) == f"{text}: is not HOST:PORT"


@pytest.mark.parametrize("key", sorted(OWN_SETTINGS))
def test_settings_with_a_field_are_refused_in_the_table(key: str) -> None:
    """One thing is said in one place; the error names that place."""
    with pytest.raises(SettingsError) as caught:
        SwarmSettings(extra={key: 1}).check()
    assert str(caught.value) == f"libtorrent.{key}: is not to be set here: {OWN_SETTINGS[key]}"


def test_presets_name_real_settings_of_the_right_type() -> None:
    """A typing error in a preset would be dropped in silence as "not in this version"."""
    newer = {"webtorrent_stun_server"}
    presets: list[dict[str, Any]] = [COMMON, FETCH, SEED, PRIVATE]
    for preset in presets:
        lt_compat.check_settings({k: v for k, v in preset.items() if k not in newer})
    defaults = lt_compat.library().default_settings()  # 2.0 leaves out texts without one
    lt_compat.check_settings({key: defaults.get(key, "") for key in OWN_SETTINGS})


def test_the_pack_of_a_fetching_session() -> None:
    """Fields win over presets, the user's own settings over all."""
    pack = SwarmSettings(
        listen=("0.0.0.0:1", "[::]:2"),
        dht_nodes=("a:1", "b:2"),
        lsd=False,
        upnp=False,
        upload_rate=5,
        download_rate=6,
        extra={"connections_limit": 7},
    ).pack(3)
    wanted = {
        "alert_mask": 3,
        "listen_interfaces": "0.0.0.0:1,[::]:2",
        "dht_bootstrap_nodes": "a:1,b:2",
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "upload_rate_limit": 5,
        "download_rate_limit": 6,
        "connections_limit": 7,
        "enable_outgoing_utp": False,
    }
    assert {key: pack[key] for key in wanted} == wanted


def test_nodes_of_libtorrent_are_the_default() -> None:
    """Without nodes of one's own libtorrent's stay; a private network has none but its own."""
    assert "dht_bootstrap_nodes" not in SwarmSettings().pack(0)
    private = SwarmSettings(private_network=True, dht_nodes=("a:1",)).pack(0)
    assert private["dht_bootstrap_nodes"] == ""
    assert private["dht_restrict_routing_ips"] is False


def test_a_seeding_session_takes_thousands_of_peers() -> None:
    """The limit of 200 connections would refuse peers for a minute each."""
    pack = SwarmSettings(role="seed").pack(0)
    assert pack["connections_limit"] == 8000
    assert "enable_outgoing_utp" not in pack


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("", {}),
        (
            "socks5://127.0.0.1:9050",
            {
                "proxy_type": 2,
                "proxy_hostname": "127.0.0.1",
                "proxy_port": 9050,
                "proxy_username": "",
                "proxy_password": "",
            },
        ),
        (
            "socks5://me:a%40b@proxy.example:1080",
            {
                "proxy_type": 3,
                "proxy_hostname": "proxy.example",
                "proxy_port": 1080,
                "proxy_username": "me",
                "proxy_password": "a@b",
            },
        ),
    ],
)
def test_a_proxy(url: str, wanted: dict[str, Any]) -> None:
    """A SOCKS5 proxy with or without a password, as libtorrent takes it."""
    assert proxy_settings(url) == wanted
    lt_compat.check_settings(wanted)
    assert SwarmSettings(proxy=url).pack(0).items() >= wanted.items()


@pytest.mark.parametrize(
    "url", ["http://h:1", "socks5://h", "socks5://:1", "socks5://h:99999", "socks5://h:1/x", "h:1"]
)
def test_what_is_no_proxy(url: str) -> None:
    """The error says what is expected."""
    with pytest.raises(SettingsError) as caught:
        SwarmSettings(proxy=url).check()
    assert str(caught.value) == f"{url}: is not socks5://[USER:PASSWORD@]HOST:PORT"


def test_limits_of_a_session() -> None:
    """Connections, a session that sends nothing, and one for the local network alone."""
    pack = SwarmSettings(role="seed", connections=50, upload=False, lan_only=True).pack(0)
    assert pack["connections_limit"] == 50
    assert pack["unchoke_slots_limit"] == 0
    assert pack["apply_ip_filter_to_trackers"] is False


def test_what_is_on_without_being_asked() -> None:
    """Both presets leave uTP and, with it, hole punching and peer exchange to libtorrent."""
    for role in ("fetch", "seed"):
        pack = SwarmSettings(role=role).pack(0)
        assert not {"enable_incoming_utp", "anonymous_mode", "force_proxy"} & set(pack)
    assert lt_compat.library().default_settings()["enable_incoming_utp"] is True
