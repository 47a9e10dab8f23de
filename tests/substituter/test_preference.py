# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.preference."""

from __future__ import annotations

from narswarm import narinfo
from substituter.preference import by_preference


def test_compressions_that_are_not_known_are_left_out() -> None:
    """What can be used is sorted by how fast it restores; within a kind, as the server has it."""
    kinds = ("xz", "none", "gzip", "br", "lzip", "zstd", "gzip", "")
    sources = [narinfo.Source(f"http://h/{n}", kind) for n, kind in enumerate(kinds)]
    assert [source.url[-1] for source in by_preference(sources)] == ["5", "2", "6", "4", "1"]
