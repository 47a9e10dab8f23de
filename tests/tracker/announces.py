# SPDX-License-Identifier: GPL-3.0-or-later
"""Announces as tests of stores make them."""

from __future__ import annotations

from tracker.swarmstore import Asked
from tracker.wire_http import AnnounceRequest, Event

HASH = b"}{" * 10
OTHER = bytes(range(20))
NOW = 1_700_000_000


def asked(
    port: int = 1,
    *,
    left: int = 1,
    event: Event = Event.NONE,
    info_hash: bytes = HASH,
    host: int = 1,
) -> Asked:
    """An announce from 10.0.0.<host>, of a leecher unless said otherwise."""
    request = AnnounceRequest(info_hash, b"p" * 20, port, left, event)
    return Asked(request, bytes([10, 0, 0, host]), 50, NOW)
