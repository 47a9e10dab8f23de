# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines that guix-daemon and its substitute helper exchange.

Commands come on file descriptor 0, replies go to 4. Source: `guix/scripts/substitute.scm` and
`nix/libstore/local-store.cc`, `nix/libstore/build.cc` of Guix 1.5.
"""

from __future__ import annotations

from typing import NamedTuple

from narswarm import base32
from narswarm.narinfo import Narinfo
from narswarm.storepath import STORE

REPLY_FD = 4

NOT_FOUND = b"not-found\n"
END = b"\n"
"""Ends the reply to a query; alone, it says that nothing is available."""


class Command(NamedTuple):
    """One line of the daemon: a verb and its words."""

    verb: str
    words: tuple[str, ...]


def parse_command(line: bytes) -> Command | None:
    """Split a line; None for an empty one.

    Store paths are ASCII; other bytes survive as surrogates, so that they are found nowhere.
    """
    words = line.decode("ascii", "surrogateescape").split()
    return Command(words[0], tuple(words[1:])) if words else None


def have(path: str) -> bytes:
    """The line of an available path in the reply to `have`."""
    return path.encode() + b"\n"


def info(narinfo: Narinfo, download_size: int) -> bytes:
    """The lines of an available path in the reply to `info`.

    Args:
        narinfo: what an authorised key says of the path.
        download_size: bytes that will be transferred, 0 when unknown.
    """
    lines = [
        narinfo.store_path,
        f"{STORE}/{narinfo.deriver}" if narinfo.deriver else "",
        str(len(narinfo.references)),
        *(f"{STORE}/{reference}" for reference in narinfo.references),
        str(download_size),
        str(narinfo.nar_size),
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def success(sha256: bytes, size: int) -> bytes:
    """The status of an item that is in place; the daemon believes it blindly."""
    return f"success {base32.format_hash(sha256)} {size}\n".encode()


def hash_mismatch(expected: bytes, actual: bytes) -> bytes:
    """The status of an item of which only wrong copies could be had."""
    return f"hash-mismatch sha256 {base32.encode(expected)} {base32.encode(actual)}\n".encode()
