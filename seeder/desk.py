# SPDX-License-Identifier: GPL-3.0-or-later
"""What the owner of a seeder sees of it, and can tell it to do."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Any

from narswarm.errors import InvalidInputError, NotFoundError
from seeder.items import NEW, OFFERED, WITHDRAWN
from seeder.parts import Parts
from seeder.rules import BY_RULE


class Desk:
    """Says how a seeder is doing, and has items offered or not.

    Args:
        parts: of the seeder.
        troubles: why jobs failed, by name.
    """

    def __init__(self, parts: Parts, troubles: Mapping[str, str]) -> None:
        self._parts = parts
        self._settings = parts.settings
        self._state = parts.state
        self._swarm = parts.swarm
        self._scanner = parts.scanner
        self._offering = parts.offering
        self._workshop = parts.workshop
        self._trackers = parts.trackers
        self._fetcher = parts.fetcher
        self._troubles = troubles
        self._started = time.time()

    def add(self, store_path: str) -> None:
        """Offer an item that was withdrawn, and make its payload before somebody asks.

        Raises:
            NotFoundError: there is no such item, or nobody vouches for it.
            InvalidInputError: the settings exclude it.
            NarswarmError: that can't be said now.
        """
        self._scanner.look(thoroughly=True)
        items = self._state.items
        known = items.find(store_path)
        if known is None:
            raise NotFoundError(store_path, "is not an item of this machine")
        if known.status in BY_RULE:
            raise InvalidInputError(store_path, f"is {known.status} by the settings")
        if known.status != OFFERED:
            items.mark([store_path], NEW)
            self._scanner.vouch_for([known.item])
            self._scanner.sync()
            known = items.find(store_path)
        if known is None or known.status != OFFERED:
            raise NotFoundError(store_path, "is not vouched for")
        self._workshop.want(known.item.nar_hash, known.item.nar_size)

    def remove(self, store_path: str) -> None:
        """Offer an item no more until it is added, and throw its payload away.

        Raises:
            NotFoundError: there is no such item.
        """
        if self._state.items.find(store_path) is None:
            raise NotFoundError(store_path, "is not an item of this machine")
        self._state.items.mark([store_path], WITHDRAWN)
        self._scanner.sync()

    def status(self) -> dict[str, Any]:
        """How it is doing, as `seeder status --json` shows it."""
        counters = self._swarm.counters()
        announces = {status.url: status for status in self._swarm.trackers()}
        published = {status.tracker: status for status in self._state.publications()}
        tellers = {teller.announce: teller for teller in self._trackers.tellers}
        trackers = []
        for tracker in self._settings.tracker_list():
            url = tracker.announce
            announce, publication = announces.get(url), published.get(url)
            trackers.append(
                {
                    "url": url,
                    "announces": announce.replies if announce else 0,
                    "announce_errors": announce.errors if announce else 0,
                    "announce_message": announce.message if announce else "",
                    "published": publication.published if publication else 0,
                    "pending": publication.pending if publication else 0,
                    "publish_message": publication.message if publication else "",
                    "held": tellers[url].held if url in tellers else 0,
                    "holdings_message": tellers[url].patience.message if url in tellers else "",
                }
            )
        statuses = self._state.items.statuses()
        total = self._state.totals.total()
        return {
            "items": statuses.pop(OFFERED, 0),
            "not_offered": statuses,
            "held": self._state.items.held(),
            "payloads": len(self._offering),
            "waiting": self._workshop.waiting(),
            "paused": self._offering.paused,
            "scan_message": self._troubles.get("scan", ""),
            "payload_bytes": self._state.used(),
            "max_disk": self._settings.max_disk,
            "full": self._offering.full,
            "codec": self._parts.codec,
            "peers": counters["peers"],
            "incoming": counters["incoming"],
            "uploaded": counters["uploaded"],
            "downloaded": counters["downloaded"],
            "uploaded_ever": total[0],
            "downloaded_ever": total[1],
            "mirror": self._parts.mirror.status(),
            "mirror_message": self._troubles.get("mirror", ""),
            "dht_nodes": counters["dht_nodes"],
            "fetching": sum(not view.over for _, view, _ in self._fetcher.views()),
            "planned": self._fetcher.planned,
            "listen_port": self._parts.port,
            "port_mappings": [each._asdict() for each in self._swarm.mappings()],
            "publisher": base64.b64encode(self._parts.key.public).decode(),
            "started": int(self._started),
            "trackers": trackers,
        }
