# SPDX-License-Identifier: GPL-3.0-or-later
"""What programs of this machine may ask of the fetcher, through the seeder's socket.

`narswarm.fetchclient` is the other end. A fetch belongs to its connection: closing it cancels what
nobody else wants.
"""

from __future__ import annotations

import math
import os
import pwd
from collections.abc import Collection, Mapping
from typing import Any, Final

from narswarm import base32, narinfo, storepath
from narswarm.control import Caller, Conversation, Operation, Stream
from narswarm.errors import InvalidInputError, NarswarmError, NotFoundError
from narswarm.fetchclient import Wanted
from seeder.fetching import Fetcher
from seeder.fetching_job import View

INTERVAL: Final = 1.0
"""Seconds after which progress is told again although nothing has changed."""

OPEN: Final = frozenset({"status", "list", "fetches"})
"""Operations that everybody may ask for who can connect."""


class FetchControl:
    """The operations of a fetcher.

    Args:
        fetcher: does it.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    @property
    def operations(self) -> dict[str, Operation]:
        """Those with one answer."""
        return {"refuse": self._refuse}

    @property
    def streams(self) -> dict[str, Stream]:
        """Those that hold on to the connection."""
        return {"fetch": self._fetch, "prefetch": self._prefetch}

    def _fetch(self, request: Mapping[str, Any], conversation: Conversation) -> None:
        wanted = parse_wanted(request)
        more = request.get("more") is True
        with self._fetcher.use(wanted, conversation.wake, more=more) as look:
            told = View()
            while not told.complete:
                view, beside = look(), _pace(*self._fetcher.pace())
                if view.serial != told.serial:
                    _pass_file(view, conversation)
                if view.complete:
                    conversation.send({"event": "done"})
                elif view.error is not None:
                    raise NotFoundError(wanted.store_path, view.error.reason)
                elif view.serial or view.preparing or beside:
                    beside |= {"members": self._fetcher.members}
                    conversation.send({"event": "progress", **_progress(view), **beside})
                told = view
                if not view.complete:
                    conversation.wait(INTERVAL)

    def _prefetch(self, request: Mapping[str, Any], conversation: Conversation) -> None:
        items = [parse_wanted(item) for item in request["items"]]
        accepted = self._fetcher.plan(conversation, items)
        conversation.at_end(lambda: self._fetcher.forget(conversation))
        conversation.send({"accepted": accepted})

    def _refuse(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        infohash = request["infohash"]
        if not (isinstance(infohash, str) and len(bytes.fromhex(infohash)) == 32):
            raise InvalidInputError("infohash", "is not one of version 2")
        self._fetcher.refuse(base32.parse_hash(str(request["nar_hash"])), infohash.lower())
        return {}


def parse_wanted(request: Mapping[str, Any]) -> Wanted:
    """What is asked for.

    Raises:
        InvalidInputError: it is no NAR of a store item.
        TypeError: it is something else altogether.
        KeyError: a part is missing.
    """
    nar_hash = base32.parse_hash(str(request["nar_hash"]))
    size, path = request["nar_size"], str(request["store_path"])
    if type(size) is not int or not 0 < size <= narinfo.MAX_NAR_SIZE:
        raise InvalidInputError("nar_size", "is not a number of bytes")
    return Wanted(nar_hash, size, storepath.parse(path).path)


class Permissions:
    """Who may ask for what: root, the seeder's own user, and those in the settings.

    Args:
        users: names; those that this machine doesn't have are passed over.
    """

    def __init__(self, users: Collection[str]) -> None:
        self._users = {0, os.geteuid()}
        for name in users:
            try:
                self._users.add(pwd.getpwnam(name).pw_uid)
            except KeyError:
                continue

    def __call__(self, op: str, caller: Caller) -> bool:
        """Whether somebody may ask for an operation."""
        return op in OPEN or caller.uid in self._users


def _pass_file(view: View, conversation: Conversation) -> None:
    if view.path is None:
        raise NarswarmError("fetch", "has no file")
    try:
        file = os.open(view.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NarswarmError(view.path, error.strerror or str(error)) from None
    try:
        conversation.send(
            {
                "event": "source",
                "infohash": view.infohash,
                "kind": str(view.kind),
                "length": view.length,
            },
            file,
        )
    finally:
        os.close(file)


def _pace(rate: float, idle: float) -> dict[str, Any]:
    """Of all that is fetched; nothing as long as nothing moves."""
    return {"pace": round(rate), "quiet": round(idle, 3)} if idle < math.inf else {}


def _progress(view: View) -> dict[str, Any]:
    progress = view.progress
    return {
        "contiguous": view.contiguous,
        "done": max(progress.done, view.contiguous),
        "peers": progress.peers,
        "rate": progress.rate,
        "idle": round(progress.idle, 3),
        "received": max(progress.received, view.contiguous),
        "preparing": view.preparing,
    }
