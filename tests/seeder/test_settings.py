# SPDX-License-Identifier: GPL-3.0-or-later
"""What the seeder refuses to be told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from narswarm import settings as narswarm_settings
from narswarm.errors import SettingsError
from seeder.settings import Settings, Tracker


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://t.example:6969/announce", "http://t.example:6969"),
        ("https://t.example/a/announce", "https://t.example/a"),
        ("http://t.example/announce?key=1", "http://t.example"),
        ("udp://t.example:6969", None),
        ("udp://t.example:6969/announce", None),
    ],
)
def test_trackers(url: str, base: str | None) -> None:
    """The index of a tracker is beside its announce URL; over UDP there is none."""
    assert Settings(trackers=(url, url)).tracker_list() == (Tracker(url, base),)


@pytest.mark.parametrize(
    "url",
    [
        "t.example",
        "http://t.example",
        "http://t.example/announce/",
        "http:///announce",
        "http://t.example:0/announce",
        "http://t.example:99999/announce",
        "ftp://t.example/announce",
        "http://[::1/announce",
    ],
)
def test_what_is_no_tracker(url: str) -> None:
    """Something that nobody could announce to is refused at the start."""
    with pytest.raises(SettingsError) as caught:
        Settings(trackers=(url,)).check()
    assert str(caught.value) == (
        f"seeder.trackers: {url!r} is not an announce URL such as http://HOST:PORT/announce"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"trackers": ("",)},
            "seeder.trackers: '' is not an announce URL such as http://HOST:PORT/announce",
        ),
        ({"scan_interval": 0.9}, "seeder.scan_interval: is less than a second"),
        ({"expiry_interval": 0.0}, "seeder.expiry_interval: is less than a second"),
        ({"workers": -1}, "seeder.workers: is less than 0"),
        ({"upload_rate": -1}, "seeder.upload_rate: is less than 0"),
        ({"max_disk": -1}, "seeder.max_disk: is less than 0"),
        ({"premake": -1}, "seeder.premake: is less than 0"),
        ({"ratio": -0.1}, "seeder.ratio: is less than 0"),
        ({"narinfo_rate": 0.0}, "seeder.narinfo_rate: is not more than 0"),
        (
            {"proxy": "http://x:1"},
            "seeder.proxy: 'http://x:1' is not socks5://[USER:PASSWORD@]HOST:PORT",
        ),
        (
            {"schedule": ("always",)},
            "seeder.schedule: 'always' is not like 'mon-fri 08:00-18:00 up=1MB/s'",
        ),
        (
            {"extra_trackers": ("x",)},
            "seeder.extra_trackers: 'x' is not an announce URL such as http://HOST:PORT/announce",
        ),
        (
            {"mirror": ("http://s hello",)},
            "seeder.mirror: 'hello' is not the name of a store item",
        ),
        ({"mirror_disk": -1}, "seeder.mirror_disk: is less than 0"),
        (
            {"mirror_rate": (16 << 10) - 1},
            "seeder.mirror_rate: is less than 16384 bytes a second",
        ),
        (
            {"web_seeds": ("http://cdn",)},
            "seeder.web_seeds: 'http://cdn' is not the URL of a directory, such as https://HOST/DIR/",
        ),
        ({"dht_nodes": ("x",)}, "seeder.dht_nodes: 'x' is not HOST:PORT"),
        ({"listen": ("x",)}, "seeder.listen: 'x' is not HOST:PORT"),
        (
            {"substitute_urls": ("ftp://x",)},
            "seeder.substitute_urls: 'ftp://x' is not an http(s) URL",
        ),
        (
            {"substitute_urls": ("http://",)},
            "seeder.substitute_urls: 'http://' is not an http(s) URL",
        ),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str) -> None:
    """Each error names the setting."""
    with pytest.raises(SettingsError) as caught:
        Settings(**values).check()
    assert str(caught.value) == message


def test_defaults_are_fine() -> None:
    """A seeder without a settings file starts."""
    Settings().check()
    assert Settings().swarm().role == "seed"


def test_every_setting_is_explained_and_can_be_read(tmp_path: Path) -> None:
    """What `describe` writes is a settings file again."""
    for field in dataclasses.fields(Settings):
        assert field.metadata["help"].endswith(".")
    text = narswarm_settings.describe(Settings, "seeder")
    file = tmp_path / "narswarm.toml"
    file.write_text(text.replace("\n#", "\n").replace('nars = "/"\n', ""), encoding="utf-8")
    unset = ("#nars", "#premake", "#publish_cache")
    lines = [line for line in text.splitlines() if not line.startswith("# ")]
    file.write_text(
        "\n".join(line.removeprefix("#") for line in lines if not line.startswith(unset)),
        encoding="utf-8",
    )
    assert narswarm_settings.load(Settings, "seeder", file=file, environ={}) == Settings()


def test_what_is_mirrored() -> None:
    """A rule has a server and items; any rate from a slow one on, or none, is fine."""
    item = f"/gnu/store/{'0' * 32}-hello"
    settings = Settings(mirror=(f"http://s closure {item}",), mirror_rate=16 << 10)
    assert [str(rule) for rule in settings.mirror_rules()] == [f"http://s closure {item}"]
    assert Settings().mirror_rules() == ()


def test_extra_trackers_have_no_index() -> None:
    """They come after the others, and each URL once."""
    settings = Settings(
        trackers=("http://t/announce",),
        extra_trackers=("http://t/announce", "http://u/announce", "http://u/announce"),
    )
    assert settings.tracker_list() == (
        Tracker("http://t/announce", "http://t"),
        Tracker("http://u/announce", None),
    )


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ({"trackers": ("http://t/announce",)}, 0),
        ({"trackers": ("udp://t:1",)}, 100),
        ({"extra_trackers": ("http://t/announce",)}, 100),
        ({}, 100),
        ({"trackers": ("http://t/announce",), "nars": Path("/nars")}, 100),
        ({"trackers": ("http://t/announce",), "premake": 7}, 7),
        ({"premake": 0}, 0),
    ],
)
def test_what_is_made_before_somebody_asks(values: dict[str, Any], size: int) -> None:
    """Nothing, unless nobody could ask, or a directory is there to be offered."""
    assert Settings(max_disk=100, **values).premake_bytes == size


def test_the_local_network_alone() -> None:
    """Neither the DHT nor the router is asked; a seeder that only fetches sends nothing."""
    session = Settings(lan_only=True, leech_only=True, max_connections=9).swarm()
    assert (session.dht, session.upnp, session.lsd) == (False, False, True)
    assert (session.lan_only, session.upload, session.connections) == (True, False, 9)
    assert Settings().swarm().upload
