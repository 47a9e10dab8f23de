# SPDX-License-Identifier: GPL-3.0-or-later
"""Web seeds: HTTP servers that have the file of a torrent (BEP 19).

They are never taken from a torrent, since those are made by strangers, who must not choose where
machines connect to. There are two that a machine knows by itself: directories of payloads that its
settings name, and its own substitute servers, of which a narinfo says where they have a file.

A web seed is the URL of a directory, to which libtorrent appends the torrent's name. The URL of the
file itself would not do: with some lengths libtorrent appends the name to that one as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from narswarm.errors import SettingsError

if TYPE_CHECKING:
    from narswarm.narinfo import Source
    from narswarm.payload import Kind


def check(urls: Iterable[str], setting: str) -> None:
    """Make sure that these are URLs of directories.

    Raises:
        SettingsError: one isn't; SETTING is the subject.
    """
    for url in urls:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not (good and parts.path.endswith("/") and "@" not in parts.netloc) or set(url) & {
            *"?#"
        }:
            raise SettingsError(
                setting, f"{url[:300]!r} is not the URL of a directory, such as https://HOST/DIR/"
            )


def of_settings(urls: Sequence[str], kind: Kind) -> Sequence[str]:
    """Those of the settings that can have a payload: they have files that are named by their NAR.

    Args:
        urls: of directories.
        kind: of the payload.
    """
    return () if kind == "server" else urls


def of_servers(
    sources: Iterable[Source], servers: Iterable[str], name: str, length: int
) -> list[str]:
    """Where this machine's substitute servers have the file of a torrent.

    Args:
        sources: of an authorised narinfo. They aren't signed, and a tracker may have passed them
            on, so that only those at a server of this machine count.
        servers: URLs of the substitute servers of this machine.
        name: of the torrent.
        length: of the torrent's file.

    Returns:
        URLs of directories.
    """
    prefixes = tuple(f"{server.rstrip('/')}/" for server in servers)
    return of_sources(
        (source for source in sources if prefixes and source.url.startswith(prefixes)),
        name,
        length,
    )


def of_sources(sources: Iterable[Source], name: str, length: int) -> list[str]:
    """Which of some places have the file of a torrent.

    Args:
        sources: of a narinfo.
        name: of the torrent, which has to be what the URL ends in.
        length: of the torrent's file. It tells apart what a server has in several compressions,
            all under one name.

    Returns:
        URLs of directories.
    """
    found = []
    for source in sources:
        directory, slash, last = source.url.rpartition("/")
        fits = source.file_size == length and unquote(last) == name
        if fits and "://" in directory and not set(source.url) & {*"?#"}:
            found.append(directory + slash)
    return found
