# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.webseeds."""

from __future__ import annotations

import pytest

from narswarm import webseeds
from narswarm.errors import SettingsError
from narswarm.narinfo import Source
from narswarm.payload import Kind

SERVER = "https://server.example.org"
NAME = f"{'0' * 32}-hello+1.0"


@pytest.mark.parametrize(
    "url",
    [
        "https://cdn.example.org/payloads",
        "https://cdn.example.org",
        "ftp://cdn.example.org/",
        "/srv/payloads/",
        "https:///payloads/",
        "https://cdn.example.org/?x=/",
        "https://cdn.example.org/#/",
        "https://user@cdn.example.org/",
        "https://cdn.example.org:0/",
        "https://[cdn/",
    ],
)
def test_what_is_no_directory(url: str) -> None:
    """What libtorrent couldn't append a name to is a mistake in the settings."""
    with pytest.raises(SettingsError) as caught:
        webseeds.check(["https://cdn.example.org/payloads/", url], "seeder.web_seeds")
    assert str(caught.value) == (
        f"seeder.web_seeds: {url!r} is not the URL of a directory, such as https://HOST/DIR/"
    )


def test_directories() -> None:
    """Directories over HTTP and HTTPS are fine, wherever they are."""
    webseeds.check([], "x")
    webseeds.check(["https://cdn.example.org/", "http://[::1]:8080/a/b/"], "x")


def test_settings_are_for_payloads_with_names_of_their_own() -> None:
    """A directory has what is named by its NAR; a server's file has one name for several files."""
    urls = ("https://cdn.example.org/",)
    assert [webseeds.of_settings(urls, kind) for kind in Kind] == [urls, urls, ()]


@pytest.mark.parametrize(
    ("url", "size", "servers", "found"),
    [
        (f"{SERVER}/nar/zstd/{NAME}", 9, [SERVER], [f"{SERVER}/nar/zstd/"]),
        (f"{SERVER}/nar/zstd/{NAME}", 9, [f"{SERVER}/"], [f"{SERVER}/nar/zstd/"]),
        (f"{SERVER}/nar/zstd/{NAME.replace('+', '%2B')}", 9, [SERVER], [f"{SERVER}/nar/zstd/"]),
        (f"{SERVER}/nar/zstd/{NAME}", 9, [f"{SERVER}/sub"], []),
        (f"{SERVER}/nar/zstd/{NAME}", 9, [], []),
        (f"{SERVER}/nar/zstd/{NAME}", 8, [SERVER], []),
        (f"{SERVER}/nar/zstd/{NAME}", None, [SERVER], []),
        (f"{SERVER}/nar/zstd/{NAME}x", 9, [SERVER], []),
        (f"{SERVER}/nar/zstd/{NAME}?x", 9, [SERVER], []),
        (f"{SERVER}.evil.example/{NAME}", 9, [SERVER], []),
        (f"http://169.254.169.254/{NAME}", 9, [SERVER], []),
        (f"nar/zstd/{NAME}", 9, [SERVER], []),
    ],
)
def test_servers(url: str, size: int | None, servers: list[str], found: list[str]) -> None:
    """Only at this machine's own servers, under the torrent's name and with its length."""
    sources = [Source(f"{SERVER}/nar/lzip/{NAME}", "lzip", 7), Source(url, "zstd", size)]
    assert webseeds.of_servers(sources, servers, NAME, 9) == found
