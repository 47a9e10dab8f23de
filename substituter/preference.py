# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of a narinfo's URLs to use: known compressions, the one that restores fastest first."""

from __future__ import annotations

from collections.abc import Sequence

from narswarm import narinfo

_PREFERENCE = {"zstd": 0, "gzip": 1, "lzip": 2, "none": 3}
"""Compressions in the order in which they usually restore fastest over the net."""


def by_preference(sources: Sequence[narinfo.Source]) -> list[narinfo.Source]:
    """Those that can be used, the best first; order within a kind is the server's."""
    usable = [source for source in sources if source.compression in _PREFERENCE]
    return sorted(usable, key=lambda source: _PREFERENCE[source.compression])
