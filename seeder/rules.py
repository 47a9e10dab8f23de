# SPDX-License-Identifier: GPL-3.0-or-later
"""Which items their owner wants to offer, by name and size."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from typing import Final

from narswarm.storepath import HASH_LENGTH, STORE
from seeder.inventory import Item
from seeder.items import EXCLUDED

TOO_SMALL: Final = "too small"
TOO_LARGE: Final = "too large"

BY_RULE: Final = (EXCLUDED, TOO_SMALL, TOO_LARGE)
"""Statuses that rules give."""

_NAME: Final = len(STORE) + 1 + HASH_LENGTH + 1


class Rules:
    """What settings say.

    Args:
        include: globs; if there are any, an item's name has to match one.
        exclude: globs; an item whose name matches one isn't offered.
        min_size: bytes of the smallest NAR.
        max_size: bytes of the largest NAR, 0 for any.
    """

    def __init__(
        self,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        min_size: int = 0,
        max_size: int = 0,
    ) -> None:
        self._include = _pattern(include)
        self._exclude = _pattern(exclude)
        self._min_size = min_size
        self._max_size = max_size

    @property
    def text(self) -> str:
        """Changes when the rules do."""
        patterns = [each.pattern if each else "" for each in (self._include, self._exclude)]
        return repr((*patterns, self._min_size, self._max_size))

    def against(self, item: Item) -> str | None:
        """Why an item isn't to be offered, None if it may be."""
        name = item.store_path[_NAME:]
        if self._exclude is not None and self._exclude.match(name):
            return EXCLUDED
        if self._include is not None and not self._include.match(name):
            return EXCLUDED
        if item.nar_size < self._min_size:
            return TOO_SMALL
        if self._max_size and item.nar_size > self._max_size:
            return TOO_LARGE
        return None


def _pattern(globs: Iterable[str]) -> re.Pattern[str] | None:
    parts = [translate(glob) for glob in globs]
    return re.compile("|".join(parts)) if parts else None
