# SPDX-License-Identifier: GPL-3.0-or-later
"""Which items of which substitute server are mirrored: rules, and the items that they come to."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from narswarm import storepath
from narswarm.base32 import ALPHABET
from narswarm.errors import InvalidInputError, NotFoundError, SettingsError
from narswarm.narinfo import Narinfo

BATCH: Final = 50
"""Narinfos that are looked up at a time."""

MAX_ITEMS: Final = 100_000
MAX_MANIFEST: Final = 64 << 20

_ITEM = re.compile(
    rf"{storepath.STORE}/([{ALPHABET}]{{{storepath.HASH_LENGTH}}}-[A-Za-z0-9+._?=-]+)(?![/A-Za-z0-9])"
)
_FORM: Final = "is not URL (PATH... | closure PATH... | manifest FILE)"


class What(StrEnum):
    """What of a server is mirrored."""

    PATHS = "paths"
    CLOSURE = "closure"
    """Items and what they refer to."""
    MANIFEST = "manifest"
    """The closure of all items that a file names."""


class Rule(NamedTuple):
    """A rule.

    Attributes:
        server: URL of the substitute server.
        what: how the others are meant.
        names: store paths, or the absolute path of a file.
    """

    server: str
    what: What
    names: tuple[str, ...]

    def __str__(self) -> str:
        words = [] if self.what is What.PATHS else [str(self.what)]
        return shlex.join([self.server, *words, *self.names])

    def roots(self) -> list[str]:
        """The items that the rule names, as store paths.

        Raises:
            NotFoundError: the manifest can't be read.
            InvalidInputError: it names no items.
        """
        if self.what is not What.MANIFEST:
            return list(self.names)
        return manifest_items(Path(self.names[0]))


def parse(text: str) -> Rule:
    """Read a rule.

    Raises:
        SettingsError: it isn't one.
    """
    try:
        server, *names = shlex.split(text)
        parts = urlsplit(server)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good, server, names = False, "", []
    what = What.PATHS
    if names and names[0] in ("closure", "manifest"):
        what = What(names.pop(0))
    if not good or not names or set(server) & {*"?#@"}:
        raise SettingsError(text[:300], _FORM)
    if what is What.MANIFEST:
        if len(names) != 1 or not names[0].startswith("/"):
            raise SettingsError(text[:300], "names no manifest by its absolute path")
    else:
        try:
            names = [storepath.parse(name).path for name in names]
        except InvalidInputError as error:
            raise SettingsError(error.subject, error.reason) from None
    return Rule(server.rstrip("/"), what, tuple(dict.fromkeys(names)))


def manifest_items(file: Path) -> list[str]:
    """The store items that a file names: the manifest of a profile, or any list.

    Raises:
        NotFoundError: it can't be read.
        InvalidInputError: it names none.
    """
    if file.is_dir():
        file /= "manifest"
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_MANIFEST + 1).decode(errors="replace")
    except OSError as error:
        raise NotFoundError(file, error.strerror or str(error)) from None
    if len(text) > MAX_MANIFEST:
        raise InvalidInputError(file, f"is longer than {MAX_MANIFEST} bytes")
    found: dict[str, None] = {}
    for match in _ITEM.finditer(text):
        try:
            found[storepath.parse(match[1]).path] = None
        except InvalidInputError:
            continue
    if not found:
        raise InvalidInputError(
            file, "names no store items; take the manifest of a profile, or a list of store paths"
        )
    return list(found)


Find = Callable[[Sequence[str]], Mapping[str, Narinfo]]
"""Authorised narinfos by store path, of those that could be found."""


def items(rule: Rule, find: Find) -> Iterator[Narinfo | str]:
    """The items that a rule comes to, what others refer to after them.

    Args:
        rule: which.
        find: looks narinfos up, for some store paths at a time.

    Yields:
        An item's narinfo, or its store path if there is none.

    Raises:
        NarswarmError: as `Rule.roots` does, or `find`.
    """
    return _walk(rule.roots(), find, closure=rule.what is not What.PATHS)


def _walk(roots: Iterable[str], find: Find, *, closure: bool) -> Iterator[Narinfo | str]:
    seen = dict.fromkeys(roots)
    queue = list(seen)
    while queue:
        batch, queue = queue[:BATCH], queue[BATCH:]
        found = find(batch)
        for path in batch:
            info = found.get(path)
            if info is None:
                yield path
                continue
            yield info
            if not closure:
                continue
            for name in info.references:
                reference = f"{storepath.STORE}/{name}"
                if reference not in seen and len(seen) < MAX_ITEMS:
                    seen[reference] = None
                    queue.append(reference)
