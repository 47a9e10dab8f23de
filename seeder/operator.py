# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running seeder does for its operator, through its socket: list, pause, add, remove."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from narswarm import base32, storepath
from narswarm.control import Conversation, Operation, Stream
from narswarm.swarm_events import TorrentStatus
from seeder.listing import Listed
from seeder.state import State

BATCH: Final = 500
"""Items in one line of an answer."""

PAUSED: Final = "paused"
"""The note that survives a restart."""


class Sessions(Protocol):
    """What seeds: a `seeder.parts.Parts`."""

    def status(self) -> list[TorrentStatus]:
        """All torrents."""

    def pause_seeding(self, *, paused: bool) -> None:
        """Stop or go on."""


class Items(Protocol):
    """What is offered: a `seeder.desk.Desk`."""

    def add(self, store_path: str) -> None:
        """Offer an item now."""

    def remove(self, store_path: str) -> None:
        """Offer it no more."""


class OperatorControl:
    """The operations of an operator.

    Args:
        state: what is offered.
        offering: offers it.
        swarm: seeds it.
    """

    def __init__(self, state: State, offering: Items, swarm: Sessions) -> None:
        self._state = state
        self._offering = offering
        self._swarm = swarm

    @property
    def operations(self) -> dict[str, Operation]:
        """Those with one answer."""
        return {
            "pause": lambda _request: self._pause(paused=True),
            "resume": lambda _request: self._pause(paused=False),
            "add": self._add,
            "remove": self._remove,
        }

    @property
    def streams(self) -> dict[str, Stream]:
        """Those with several."""
        return {"list": self._list}

    @property
    def paused(self) -> bool:
        """Whether nothing is seeded until `resume`."""
        return bool(self._state.note(PAUSED))

    def apply(self) -> None:
        """Pause what was added since, if seeding is paused."""
        if self.paused:
            self._swarm.pause_seeding(paused=True)

    def items(self) -> Iterator[dict[str, Any]]:
        """All items, those that are offered first, each with the reason why or why not."""
        statuses = {status.infohash: status for status in self._swarm.status()}
        paused = self.paused
        for listed in self._state.listing.items(offered=True):
            yield _offered(listed, statuses.get(listed.infohash), paused=paused)
        yield from map(_not_offered, self._state.listing.items(offered=False))

    def some(self, offered: int, others: int) -> list[dict[str, Any]]:
        """Items as `items` gives them, but only some: those of which most was sent are first.

        Args:
            offered: how many that are offered.
            others: how many that aren't.
        """
        statuses = {status.infohash: status for status in self._swarm.status()}
        paused = self.paused
        found = [
            _offered(listed, statuses.get(listed.infohash), paused=paused)
            for listed in self._state.listing.most_sent(offered)
        ]
        rest = itertools.islice(self._state.listing.items(offered=False), others)
        return [*found, *map(_not_offered, rest)]

    def _list(self, _request: Mapping[str, Any], conversation: Conversation) -> None:
        batch: list[dict[str, Any]] = []
        for item in self.items():
            batch.append(item)
            if len(batch) == BATCH:
                conversation.send({"items": batch, "more": True})
                batch = []
        conversation.send({"items": batch, "more": False})

    def _pause(self, *, paused: bool) -> Mapping[str, Any]:
        # First, so that a seeder that is killed now comes back as it was told to be.
        self._state.set_note(PAUSED, "1" if paused else "")
        self._swarm.pause_seeding(paused=paused)
        return {"paused": paused}

    def _add(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        path = storepath.parse(str(request["store_path"])).path
        self._offering.add(path)
        self.apply()
        return {"store_path": path}

    def _remove(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        path = storepath.parse(str(request["store_path"])).path
        self._offering.remove(path)
        return {"store_path": path}


def _not_offered(listed: Listed) -> dict[str, Any]:
    return {"store_path": listed.store_path, "offered": False, "reason": listed.status}


def _offered(listed: Listed, status: TorrentStatus | None, *, paused: bool) -> dict[str, Any]:
    reason = "vouched for" if listed.present else "vouched for, made when wanted"
    if paused:
        reason = "vouched for, but paused"
    return {
        "store_path": listed.store_path,
        "offered": True,
        "reason": reason,
        "nar_hash": base32.format_hash(listed.nar_hash),
        "infohash": listed.infohash,
        "length": listed.length if listed.present else 0,
        "peers": status.peers if status else 0,
        "uploaded": listed.uploaded,
        "upload_rate": status.upload_rate if status else 0,
    }
