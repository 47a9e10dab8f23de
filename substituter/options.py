# SPDX-License-Identifier: GPL-3.0-or-later
"""What guix-daemon tells its helper about the session, in the environment.

Source: `guix/scripts/substitute.scm` of Guix 1.5, `daemon-options` and what follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MAX_DISCOVERED = 50
"""Guix takes no more servers than this from `guix discover`."""

_DEFAULT_COLUMNS = 80


class DaemonOptions(NamedTuple):
    """The options of one session.

    Attributes:
        urls: substitute servers, in order of preference.
        trace: whether the client wants `@ download-…` lines instead of text for people.
        deduplicate: whether files are to be shared through `/gnu/store/.links`.
        columns: the width of the client's terminal.
    """

    urls: tuple[str, ...]
    trace: bool
    deduplicate: bool
    columns: int


def parse(text: str, discovered: Sequence[str] = ()) -> DaemonOptions:
    """Read the value of `_NIX_OPTIONS`.

    Args:
        text: `name=value` pairs, one a line; lines without `=` are passed over.
        discovered: servers that `guix discover` found; used if the daemon says `discover=true`.

    An ordinary user's own wishes come as `untrusted-NAME` and win, which is safe for URLs only
    because narinfos are signed.
    """
    values = dict(line.split("=", 1) for line in text.split("\n") if "=" in line)

    def client_or_admin(name: str) -> str | None:
        return values.get(f"untrusted-{name}", values.get(name))

    urls = (client_or_admin("substitute-urls") or "").split()
    if values.get("discover") == "true":
        urls = [*discovered[:MAX_DISCOVERED], *urls]
    return DaemonOptions(
        urls=tuple(dict.fromkeys(urls)),
        trace=_number(client_or_admin("print-extended-build-trace"), 0) > 0,
        deduplicate=values.get("deduplicate", "no") != "no",
        columns=max(20, _number(client_or_admin("terminal-columns"), _DEFAULT_COLUMNS) - 1),
    )


def _number(text: str | None, default: int) -> int:
    try:
        return int(text) if text is not None else default
    except ValueError:
        return default
