# SPDX-License-Identifier: GPL-3.0-or-later
"""Trackers that say what a test wants them to say, on the site of a substitute server."""

from __future__ import annotations

import json
from collections.abc import Sequence

from narswarm import base32, metainfo, narinfo
from narswarm.payload import file_name
from tests.substituter.conftest import Item, Site

PEERS = ("127.0.0.1:6881", "[::1]:7")


def infohash(data: bytes) -> str:
    """The name of a torrent."""
    return metainfo.decode(data, "torrent").infohash_v2.hex()


def serve(
    site: Site,
    item: Item,
    *listed: bytes,
    given: bytes | None = None,
    peers: Sequence[str] = PEERS,
) -> None:
    """Be a tracker that lists torrents for an item and gives them, or another one instead."""
    base = f"/v1/nar/{base32.encode(item.nar_hash)}"
    entries = []
    for data in listed:
        meta = metainfo.decode(data, "torrent")
        entries.append(
            {
                "kind": "nar.zst",
                "name": file_name(item.nar_hash),
                "length": meta.length,
                "piece_length": meta.piece_length,
                "infohash_v1": meta.infohash_v1.hex(),
                "infohash_v2": meta.infohash_v2.hex(),
                "seeders": len(peers),
                "leechers": 0,
                "publishers": 1,
                "peers": list(peers),
            }
        )
        site.bodies[f"{base}.torrent?infohash={meta.infohash_v2.hex()}"] = given or data
    answer = {
        "nar_hash": base32.format_hash(item.nar_hash),
        "nar_size": len(item.nar),
        "torrents": entries,
    }
    site.bodies[base] = json.dumps(answer).encode()


def mirror(site: Site, item: Item, *urls: str) -> None:
    """Be a tracker that mirrors a narinfo with these places of the NAR, or without any."""
    sources = [narinfo.Source(url, "zstd") for url in urls]
    site.bodies[f"/v1/narinfo/{item.hash_part}.narinfo"] = narinfo.with_sources(
        item.narinfo, sources
    )
