# SPDX-License-Identifier: GPL-3.0-or-later
"""Which payloads make room for one that is wanted now.

Every payload of a store can be made again, so what is thrown away costs time and no data. Those
stay longest that are fetched a lot, that were fetched lately, and that few others seed. What is
being fetched, or was wanted in the last minutes, isn't thrown away at all: a seeder with a small
quota would only make the same payloads again and again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

HOT = 600.0
"""Seconds after its last use for which a payload isn't thrown away."""

HALF_LIFE = 2 * 86_400.0
"""Seconds without use after which a payload is worth half as much."""

_UNKNOWN_SEEDS = 1
_RARITY = 4.0
"""How much more the only seed is worth than one of very many."""


class Payload(NamedTuple):
    """A payload, and what says how much it is worth.

    Attributes:
        nar_hash: of its NAR.
        length: bytes.
        requests: how often it was wanted.
        uploaded: bytes sent of it, ever.
        used: when it was wanted or sent last, seconds since the epoch.
        others: seeds besides this one, as trackers count them; -1 if they don't.
    """

    nar_hash: bytes
    length: int
    requests: int
    uploaded: int
    used: float
    others: int


def worth(payload: Payload, now: float) -> float:
    """How much a payload is worth keeping; larger is more.

    Args:
        payload: which.
        now: seconds since the epoch.
    """
    demand = 1.0 + payload.requests + payload.uploaded / max(1, payload.length)
    # A time in the future was noted by a clock that was wrong.
    idle = max(0.0, now - payload.used)
    others = payload.others if payload.others >= 0 else _UNKNOWN_SEEDS
    rarity = 1.0 + (_RARITY - 1.0) / (1 + others)
    # Weakly by size: one large payload goes rather than dozens of small ones that are as good.
    size = max(1.0, payload.length / 2**20) ** 0.25
    return float(demand * rarity / size * 0.5 ** min(idle / HALF_LIFE, 1000.0))


def choose(
    payloads: Iterable[Payload], needed: int, now: float, busy: Collection[bytes] = ()
) -> list[bytes] | None:
    """Choose what makes room.

    Args:
        payloads: all that there are.
        needed: bytes.
        now: seconds since the epoch.
        busy: NAR hashes of payloads that are being sent.

    Returns:
        NAR hashes, the least worth first; None if there isn't enough that may go.
    """
    idle = [
        payload
        for payload in payloads
        if payload.nar_hash not in busy and not 0 <= now - payload.used < HOT
    ]
    idle.sort(key=lambda payload: (worth(payload, now), payload.nar_hash))
    chosen: list[bytes] = []
    for payload in idle:
        if needed <= 0:
            break
        chosen.append(payload.nar_hash)
        needed -= payload.length
    return chosen if needed <= 0 else None
