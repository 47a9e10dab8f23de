# SPDX-License-Identifier: GPL-3.0-or-later
"""A small DHT of its own: nodes that hold no torrents.

dhtnodes.py ADDRESS FIRST-PORT COUNT        serve until killed
dhtnodes.py --ask ADDRESS INFOHASH NODE:PORT...   print the peers that the DHT knows for a torrent
"""

from __future__ import annotations

import socket
import sys
import time
from typing import Any

import libtorrent as lt

# All nodes share a few addresses of one network, which a public DHT would not put up with.
SETTINGS: dict[str, Any] = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "dht_bootstrap_nodes": "",
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_prefer_verified_node_ids": False,
    "dht_block_ratelimit": 10_000,
    "dht_upload_rate_limit": 10_000_000,
    "alert_mask": lt.alert.category_t.dht_notification
    | lt.alert.category_t.dht_operation_notification,
}


def listen(address: str, port: int, known: list[tuple[str, int]]) -> lt.session:
    """A node that will know some others once it takes part; its socket is open."""
    packed = [socket.inet_aton(host) + at.to_bytes(2, "big") for host, at in known]
    state: Any = {b"dht state": {b"nodes": packed}}
    settings: Any = {**SETTINGS, "listen_interfaces": f"{address}:{port}"}
    params = lt.read_session_params(lt.bencode(state))
    params.settings = settings
    session = lt.session(params)
    while not session.listen_port():
        time.sleep(0.01)
    return session


def take_part(session: lt.session) -> None:
    """Enable the DHT, which at the start would make libtorrent forget the nodes it was given."""
    session.apply_settings({"enable_dht": True})


def serve(address: str, first: int, count: int) -> None:
    """Run `count` nodes that know each other."""
    everybody = [(address, first + index) for index in range(count)]
    sessions = [listen(*me, [other for other in everybody if other != me]) for me in everybody]
    # A node that is not there when it's asked first is not asked again for minutes.
    for session in sessions:
        take_part(session)
    print("ready", flush=True)
    while True:
        for session in sessions:
            session.wait_for_alert(1000)
            session.pop_alerts()


def ask(address: str, infohash: str, *start: str) -> None:
    """Print the first peers that are found, one HOST:PORT a line; nothing after 5 s.

    The lookup begins at all nodes of START: one alone needn't be among those that were told.
    """
    known = [(host, int(port)) for host, _, port in (node.rpartition(":") for node in start)]
    # Others mustn't remember a node that is gone in a moment: each would be waited for (BEP 43).
    SETTINGS["dht_read_only"] = True
    session = listen(address, 0, known)
    take_part(session)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        session.dht_get_peers(lt.sha1_hash(bytes.fromhex(infohash)[:20]))
        session.wait_for_alert(500)
        for alert in session.pop_alerts():
            if isinstance(alert, lt.dht_get_peers_reply_alert) and (peers := alert.peers()):
                for peer in peers:
                    print(f"{peer[0]}:{peer[1]}")
                return


if __name__ == "__main__":
    if sys.argv[1] == "--ask":
        ask(*sys.argv[2:])
    else:
        serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
