# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator can set."""

from __future__ import annotations

import base64
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from narswarm.errors import SettingsError
from narswarm.settings import load
from tracker.settings import Settings, parse_listen

KEY = base64.b64encode(bytes(32)).decode()


def test_defaults() -> None:
    """A tracker without settings is closed, on the usual port, and trusts no proxy."""
    settings = Settings()
    assert not settings.open
    assert settings.listen == ("[::]:6969",)
    assert settings.policy().trusted_proxies == ()
    assert settings.publisher_keys() == frozenset()
    assert settings.holdings_limits() == (10_000, 1_000_000, 50_000_000)


def test_loaded_from_the_environment() -> None:
    """Units and lists are read as in all programs."""
    environ = {
        "NARSWARM_TRACKER_INTERVAL": "10 min",
        "NARSWARM_TRACKER_INDEX_SIZE": "1 GiB",
        "NARSWARM_TRACKER_TRUSTED_PROXIES": "127.0.0.1 10.0.0.0/8",
        "NARSWARM_TRACKER_PUBLISHERS": KEY,
    }
    settings = load(Settings, "tracker", environ=environ, flags={"open": True})
    assert settings.open
    assert settings.index_size == 1 << 30
    assert settings.policy().interval == 600
    assert settings.policy().trusted_proxies == (
        ip_network("127.0.0.1/32"),
        ip_network("10.0.0.0/8"),
    )
    assert settings.publisher_keys() == {bytes(32)}


@pytest.mark.parametrize(
    ("interval", "timeout"), [(1, 1200), (480, 1200), (481, 1202), (1800, 4500), (86_400, 216_000)]
)
def test_timeouts_follow_intervals(interval: int, timeout: int) -> None:
    """Nobody is forgotten who misses one announce, nor within 20 minutes."""
    limits = Settings(interval=interval, leecher_interval=interval).limits()
    assert (limits.seed_timeout, limits.leecher_timeout) == (timeout, timeout)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interval": 0}, "interval: is less than 1"),
        ({"max_holders": 0}, "max_holders: is less than 1"),
        ({"max_holder_items": 0}, "max_holder_items: is less than 1"),
        ({"max_held_items": 0}, "max_held_items: is less than 1"),
        ({"interval": 86_401}, "interval: is longer than a day"),
        ({"index": "mysql://u:secret@h/d"}, "index: is not postgresql://HOST:PORT/DATABASE"),
        ({"swarms": "disk"}, "swarms: is neither memory nor redis://HOST:PORT/DATABASE"),
        ({"leecher_interval": 86_401}, "leecher_interval: is longer than a day"),
        ({"engine": "c"}, "engine: 'c' is neither auto, native nor python"),
        (
            {"engine": "native", "swarms": "redis://127.0.0.1/0"},
            "engine: native has its swarms in memory only",
        ),
        ({"threads": 0}, "threads: is less than 1"),
        ({"index_size": -1}, "index_size: is less than 1"),
        ({"numwant": 201}, "numwant: is not between 0 and max_numwant, 200"),
        ({"numwant": -1}, "numwant: is not between 0 and max_numwant, 200"),
        ({"url": "tracker.example"}, "url: 'tracker.example' is not an http or https URL"),
        ({"url": "http://a b/"}, "url: 'http://a b/' is not an http or https URL"),
        ({"nar_servers": ("x",)}, "nar_servers: 'x' is not an http or https URL"),
        ({"listen": ()}, "listen: names no address"),
    ],
)
def test_senseless_settings(values: dict[str, Any], message: str) -> None:
    """They are refused by name when they are read."""
    with pytest.raises(SettingsError) as caught:
        Settings(**values)
    assert str(caught.value) == message


@pytest.mark.parametrize("key", ["", "x", KEY[:-4], KEY + KEY, "é" * 43 + "="])
def test_bad_publishers(key: str) -> None:
    """A publisher is 32 bytes in base64."""
    with pytest.raises(SettingsError) as caught:
        Settings(publishers=(key,)).publisher_keys()
    assert str(caught.value) == f"publishers: {key!r} is not 32 bytes in base64"


def test_who_may_read_metrics() -> None:
    """Without settings this machine; networks are checked by name."""
    assert Settings().metrics_networks() == (ip_network("127.0.0.0/8"), ip_network("::1"))
    with pytest.raises(SettingsError) as caught:
        Settings(metrics_from=("10.0.0.1/8",)).metrics_networks()
    assert str(caught.value) == "metrics_from: 10.0.0.1/8 has host bits set"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("localhost:0", ("localhost", 0)),
        ("[::]:6969", ("::", 6969)),
        ("[::1]:65535", ("::1", 65535)),
        (":6969", ("::", 6969)),
    ],
)
def test_listen(text: str, expected: tuple[str, int]) -> None:
    """A host and a port, the host in brackets if it has colons."""
    assert parse_listen(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not HOST:PORT"),
        ("6969", "'6969' is not HOST:PORT"),
        ("localhost", "'localhost' is not HOST:PORT"),
        ("localhost:", "'localhost:' is not HOST:PORT"),
        ("localhost:65536", "'localhost:65536' is not HOST:PORT"),
        ("localhost:-1", "'localhost:-1' is not HOST:PORT"),
        ("::1:6969", "'::1:6969' has an IPv6 address without brackets"),
    ],
)
def test_bad_listen(text: str, reason: str) -> None:
    """Anything else is refused."""
    with pytest.raises(SettingsError) as caught:
        parse_listen(text)
    assert str(caught.value) == f"listen: {reason}"


def test_place_of_the_index() -> None:
    """It is in the directory unless there is a URL."""
    assert Settings(data=Path("/data")).place == Path("/data")
    url = "postgres://h/d"
    assert Settings(data=Path("/data"), index=url).place == url
