# SPDX-License-Identifier: GPL-3.0-or-later
"""A libtorrent client that finds peers by a tracker and by nothing else.

peer.py TORRENT DIRECTORY PORT TRACKER [RATE]

It fetches into DIRECTORY, or seeds what is there, until killed; at most RATE bytes a second are
sent. It prints `whole` as soon as it has everything.
"""

from __future__ import annotations

import sys
from pathlib import Path

import libtorrent as lt


def main(torrent: str, directory: str, port: str, tracker: str, rate: str = "0") -> None:
    """Take part in the swarm until killed."""
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
    params.ti = lt.torrent_info(Path(torrent).read_bytes())
    params.save_path = directory
    params.trackers = [tracker]
    params.flags |= lt.torrent_flags.disable_pex
    handle = session.add_torrent(params)
    handle.set_upload_limit(int(rate))
    handle.replace_trackers([lt.announce_entry(tracker)])
    said = False
    while True:
        session.wait_for_alert(1000)
        session.pop_alerts()
        if not said and handle.status().is_seeding:
            print("whole", flush=True)
            said = True


if __name__ == "__main__":
    main(*sys.argv[1:])
