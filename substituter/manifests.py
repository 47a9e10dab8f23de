# SPDX-License-Identifier: GPL-3.0-or-later
"""Which store items somebody means: from arguments, lists, and the manifests of Guix profiles."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TextIO

from narswarm import storepath
from narswarm.errors import InvalidInputError, NotFoundError
from narswarm.storepath import STORE

MAX_BYTES: Final = 64 << 20
"""Longest manifest or list."""

MAX_ITEMS: Final = 100_000

_TOKEN: Final = re.compile(r';[^\n]*|"(?:[^"\\]|\\.)*"', re.DOTALL)
"""Comments and texts of Scheme; a quote in a comment begins no text."""

_SPECIFICATIONS: Final = re.compile(r"\b(?:specifications->manifest|packages->manifest)\b")


def items(
    arguments: Iterable[str], manifest: Path | None = None, standard_input: TextIO | None = None
) -> list[str]:
    """The store items that are meant, each once, in their order.

    Args:
        arguments: store paths, or paths below a store item or to one by a link; `-` for a list on
            standard input.
        manifest: a profile, its `manifest` file, or a list.
        standard_input: what `-` reads.

    Raises:
        InvalidInputError: something isn't a store item.
        NotFoundError: a file can't be read.
    """
    found: dict[str, None] = {}
    for argument in arguments:
        if argument == "-":
            text = (standard_input or sys.stdin).read(MAX_BYTES + 1)
            found |= dict.fromkeys(parse(text, "standard input"))
        else:
            found[_item(argument)] = None
    if manifest is not None:
        found |= dict.fromkeys(parse(_read(manifest), manifest))
    if len(found) > MAX_ITEMS:
        raise InvalidInputError("items", f"are more than {MAX_ITEMS}")
    return list(found)


def parse(text: str, source: object) -> list[str]:
    """Read a manifest of a profile (an S-expression), or a list with one store path a line.

    Raises:
        InvalidInputError: it is neither.
    """
    if len(text) > MAX_BYTES:
        raise InvalidInputError(source, f"is longer than {MAX_BYTES} bytes")
    if text.lstrip().startswith(("(", ";")):
        return _from_scheme(text, source)
    lines = [line.strip() for line in text.split("\n")]
    return [_item(line) for line in lines if line and not line.startswith("#")]


def _from_scheme(text: str, source: object) -> list[str]:
    """Every text that is the path of a store item: `(item "/gnu/store/…")` and the like."""
    found = []
    for match in _TOKEN.finditer(text):
        value = match[0][1:-1]
        if match[0].startswith('"') and value.startswith(f"{STORE}/"):
            try:
                path = storepath.parse(value).path
            except InvalidInputError:
                continue  # a file of an item, as search paths have it
            found.append(path)
    if not found and _SPECIFICATIONS.search(text):
        raise InvalidInputError(
            source,
            "names packages, not store items; take the manifest of a profile, "
            "such as ~/.guix-profile/manifest",
        )
    if not found:
        raise InvalidInputError(source, "names no store items")
    return list(dict.fromkeys(found))


def _item(argument: str) -> str:
    path = argument
    if not path.startswith(f"{STORE}/"):
        # A profile, or a program on PATH, is a link to what is in the store.
        path = str(Path(path).resolve())
    base_name = path.removeprefix(f"{STORE}/").partition("/")[0]
    if not path.startswith(f"{STORE}/"):
        raise InvalidInputError(argument[:300], "is not in the store")
    return storepath.parse(base_name).path


def _read(file: Path) -> str:
    if file.is_dir():
        file /= "manifest"
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            return opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotFoundError(file, error.strerror or str(error)) from error
