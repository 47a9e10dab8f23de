# SPDX-License-Identifier: GPL-3.0-or-later
"""A seeder that lies: publishes a torrent for an item and serves something else.

    liar.py TRACKER NARINFO-URL STORE-ITEM DIRECTORY PORT

The torrent is whole and its payload matches it; only the payload decompresses to a NAR with one
byte changed. Nobody can tell before the NAR has been hashed.
"""

from __future__ import annotations

import sys
import time
import urllib.request
from pathlib import Path

import libtorrent as lt

from narswarm import nar, narinfo, payload
from narswarm.httpclient import HttpClient
from narswarm.httpsig import PublisherKey
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import FrameCompressor
from narswarm.trackerclient import TrackerIndex


def forge(item: str, nar_hash: bytes, directory: Path) -> bytes:
    """Make payload and torrent of a damaged copy, under the name of the true one."""
    data = bytearray(b"".join(nar.dump(item)))
    data[len(data) // 2] ^= 1
    frames = b"".join(FrameCompressor([bytes(data)]))
    name = payload.file_name(nar_hash)
    (directory / name).write_bytes(frames)
    hasher = PieceHasher()
    hasher.update(frames)
    return Metainfo.of(name, hasher.finish()).encode()


def main(tracker: str, url: str, item: str, work: str, port: str) -> None:
    """Publish, announce and serve until killed."""
    directory = Path(work)
    directory.mkdir(parents=True)
    with urllib.request.urlopen(url) as answer:
        raw = answer.read()
    truth = narinfo.parse(raw)
    torrent = forge(item, truth.nar_hash, directory)
    session = lt.session(
        {
            "listen_interfaces": f"0.0.0.0:{port}",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
        }
    )
    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(torrent)
    params.save_path = str(directory)
    params.trackers = [f"{tracker}/announce"]
    params.flags |= lt.torrent_flags.seed_mode
    key = PublisherKey.load_or_create(directory / "key")
    index = TrackerIndex(HttpClient(timeout=60.0), tracker)
    index.publish(key, truth.nar_hash, torrent, raw, int(time.time()))
    session.add_torrent(params)
    print("published", params.ti.info_hashes().v2, flush=True)
    while True:
        session.wait_for_alert(1000)
        session.pop_alerts()


if __name__ == "__main__":
    main(*sys.argv[1:])
