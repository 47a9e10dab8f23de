# SPDX-License-Identifier: GPL-3.0-or-later
"""What `redis_swarms.lua` answers, read as what it should be, or as nothing."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

from tracker.swarms import Answer, Selection
from tracker.swarmstore import Asked
from tracker.wire_http import Counts

SUMMARY: Final = struct.Struct(">4I5i")
"""Seeds, leechers, downloads, partial seeds; changes of the four pools, and of the swarms."""

WIDTHS: Final = (6, 18)
"""Bytes of address and port, by family."""

_AMOUNTS: Final = struct.Struct(">II")


def number(value: object) -> int:
    """A number that isn't negative, as text; else 0."""
    return int(value) if isinstance(value, bytes) and re.fullmatch(rb"[0-9]{1,18}", value) else 0


def numbers(values: object) -> list[int]:
    """Five numbers, zeros where they aren't any."""
    found = values if isinstance(values, list) and len(values) == 5 else [None] * 5
    return [number(value) for value in found]


def read_counts(result: object) -> Counts | None:
    """The counts that an operation's answer begins with."""
    if not isinstance(result, bytes) or len(result) < SUMMARY.size:
        return None
    complete, incomplete, downloaded, partial, *_ = SUMMARY.unpack_from(result)
    return Counts(complete, incomplete, downloaded, max(incomplete - partial, 0))


def read_answer(result: object, asked: Asked) -> Answer | None:
    """The answer to an announce, or nothing when it isn't one."""
    counts = read_counts(result)
    if counts is None or not isinstance(result, bytes):
        return None
    at = SUMMARY.size + _AMOUNTS.size
    if len(result) < at:
        return None
    amounts = _AMOUNTS.unpack_from(result, SUMMARY.size)
    with_ids = not (asked.request.compact or asked.request.no_peer_id)
    if sum(amounts) > asked.numwant:
        return None
    parts: list[bytes] = []
    for width in (*WIDTHS, 20 * with_ids, 20 * with_ids):
        size = amounts[len(parts) % 2] * width
        parts.append(result[at : at + size])
        at += size
    return Answer(counts, Selection(*parts)) if at == len(result) else None


def read_pools(result: bytes) -> Iterator[list[bytes]]:
    """The peers that an operation's answer has after the counts, by pool."""
    at = SUMMARY.size
    for place in range(4):
        if len(result) < at + _AMOUNTS.size:
            return
        _, amount = _AMOUNTS.unpack_from(result, at)
        at += _AMOUNTS.size
        width = WIDTHS[place % 2]
        end = min(at + amount * width, len(result))
        yield [result[start : start + width] for start in range(at, end - width + 1, width)]
        at = end
