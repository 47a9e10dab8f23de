# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of store items.

Store paths come from servers, peers and command lines and end up in file names and URLs, so they
are parsed once, strictly, by what the daemon itself would have made (`checkStoreName` in
`nix/libstore/store-api.cc` of Guix).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from narswarm.base32 import ALPHABET
from narswarm.errors import InvalidInputError

STORE = "/gnu/store"
"""The only store directory: NARs name it inside, so another one can't use them."""

HASH_LENGTH = 32
"""Digits of the hash part: 160 bits in nix-base32."""

NAME_LENGTH = 211
"""Longest name, which leaves room in 255 bytes for the hash part and for suffixes like `.lock`."""

_BASE_NAME = re.compile(
    rf"([{ALPHABET}]{{{HASH_LENGTH}}})-([A-Za-z0-9+_?=-][A-Za-z0-9+._?=-]{{0,{NAME_LENGTH - 1}}})"
)
_HASH_PART = re.compile(rf"[{ALPHABET}]{{{HASH_LENGTH}}}")


class StorePath(NamedTuple):
    """A store item directly under the store directory."""

    hash_part: str
    """32 nix-base32 digits."""
    name: str
    """What follows the hash part and a hyphen, such as `hello-2.12.1`."""

    @property
    def base_name(self) -> str:
        """The last component of the path, as narinfos write references."""
        return f"{self.hash_part}-{self.name}"

    @property
    def path(self) -> str:
        """The absolute path."""
        return f"{STORE}/{self.hash_part}-{self.name}"

    def __str__(self) -> str:
        return self.path


def parse(text: str) -> StorePath:
    """Read the path of a store item or its base name.

    Raises:
        InvalidInputError: anything else, a path below a store item and a trailing slash included.
    """
    match = _BASE_NAME.fullmatch(text.removeprefix(f"{STORE}/"))
    if match is None:
        raise InvalidInputError(text[:300], "is not the name of a store item")
    return StorePath(match[1], match[2])


def is_hash_part(text: str) -> bool:
    """Whether the text is 32 nix-base32 digits, fit for a file name or a URL."""
    return _HASH_PART.fullmatch(text) is not None
