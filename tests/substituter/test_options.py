# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.options."""

from __future__ import annotations

import pytest

from substituter import options

ROOT = (
    "build-fallback=false\nbuild-use-substitutes=true\ndiscover=false\nlocale=C.UTF-8\n"
    "print-extended-build-trace=1\nsubstitute-urls=http://A:8081 http://A:8082\n"
    "terminal-columns=80\nuser-name=root\ndeduplicate=yes"
)


def test_what_guix_daemon_sends_for_root() -> None:
    """The options of a root client are read as the daemon writes them."""
    assert options.parse(ROOT) == options.DaemonOptions(
        urls=("http://A:8081", "http://A:8082"), trace=True, deduplicate=True, columns=79
    )


def test_an_ordinary_users_wishes_win() -> None:
    """What comes as untrusted-X counts before X, as in Guix."""
    text = ROOT + (
        "\nuntrusted-substitute-urls=http://B\nuntrusted-print-extended-build-trace=0"
        "\nuntrusted-terminal-columns=100"
    )
    parsed = options.parse(text)
    assert (parsed.urls, parsed.trace, parsed.columns) == (("http://B",), False, 99)


@pytest.mark.parametrize(
    ("text", "deduplicate"), [("deduplicate=yes", True), ("deduplicate=no", False), ("", False)]
)
def test_deduplication_is_what_the_daemon_says(text: str, deduplicate: bool) -> None:
    """The daemon's `--disable-deduplication` is honoured."""
    assert options.parse(text).deduplicate is deduplicate


def test_discovered_servers_come_first_and_are_bounded() -> None:
    """With `discover=true` servers on the local network are asked first, at most 50 of them."""
    discovered = [f"http://lan{n}" for n in range(60)]
    text = "discover=true\nsubstitute-urls=http://A http://lan3"
    urls = options.parse(text, discovered).urls
    assert urls == (*discovered[:50], "http://A")
    assert options.parse("discover=false\nsubstitute-urls=http://A", discovered).urls == (
        "http://A",
    )


@pytest.mark.parametrize("text", ["", "\n\n", "nonsense", "terminal-columns=x\n=\n"])
def test_garbage_gives_defaults(text: str) -> None:
    """Lines that aren't options are passed over, and numbers that aren't are the default."""
    assert options.parse(text) == options.DaemonOptions((), False, False, 79)
