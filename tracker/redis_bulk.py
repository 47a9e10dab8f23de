# SPDX-License-Identifier: GPL-3.0-or-later
"""Holdings and what is wanted, told to other trackers through Redis.

Each tracker has all lists and marks in its own memory and answers from there. A list that changes
is written to Redis, where the others find it within seconds; a mark is a message in a stream, which
reaches those who wait at any tracker at once. A tracker that starts reads what there is. While
Redis doesn't answer each tracker goes on with what it has.

What is read is checked for its shape: who else can write to this Redis can say who holds what, and
no more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from operator import lt
from typing import Final

from tracker.holdings import LEASE, Holdings, Snapshot
from tracker.redis_link import Command, Link, parse_url
from tracker.swarmstore import StoreDownError
from tracker.wanted import LIFETIME, MAX_MARKS
from tracker.wire_http import HASH_BYTES

SYNC_SECONDS: Final = 2.0
"""How often lists that others were told are looked for."""

_BLOCK_SECONDS = 0.5
_PAUSE_SECONDS = 1.0
_MESSAGES = 1000
_KEY_BYTES = 32
_NAR_BYTES = 32
_HEAD: Final = struct.Struct(">Qdd")
_WHICH: Final = struct.Struct(">Qd")

_log = logging.getLogger(__name__)


class RedisBulk:
    """Shares lists and marks with other trackers, in a thread of its own.

    Args:
        url: of Redis, with a `prefix` as `tracker.redis_link` reads it.
        holdings: this tracker's lists.
        heard: is called with a NAR's hash, its infohashes, and whether it is wanted (or only has
            them by now), when another tracker says so.
        clock: seconds since the epoch.

    Raises:
        SettingsError: the URL is none, or Redis' Python package isn't installed.
    """

    def __init__(
        self,
        url: str,
        holdings: Holdings,
        heard: Callable[[bytes, Sequence[bytes], bool], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        url, prefix = parse_url(url)
        self._link = Link(url)
        self._holders = f"{prefix}:holders"
        self._list = f"{prefix}:held:"
        self._stream = f"{prefix}:wanted"
        self._holdings = holdings
        self._heard = heard
        self._clock = clock
        self._name = os.urandom(8)
        self._ended = threading.Event()
        self._last = f"{int((clock() - LIFETIME) * 1000)}-0".encode()
        self._thread = threading.Thread(target=self._run, name="redis-bulk", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._link.close()

    def refresh(self, key: bytes) -> None:
        """Have the newest list of a key here, before it is changed."""
        with contextlib.suppress(StoreDownError):  # what is here has to do
            head = self._link.ask("HGET", self._holders, key)
            if isinstance(head, bytes):
                self._take(key, head)

    def held(self, key: bytes) -> None:
        """Tell the others a key's list, which changed or has a new lease."""
        snapshot = self._holdings.snapshot(key)
        if snapshot is None:
            return
        head = _HEAD.pack(snapshot.generation, snapshot.expires, snapshot.complete)
        name = self._list.encode() + key
        with contextlib.suppress(StoreDownError):  # else the next pass tells it
            found = self._link.ask("GETRANGE", name, 0, _WHICH.size - 1)
            if found == _which(snapshot):
                renew: Command = ("EXPIRE", name, LEASE)
            else:
                renew = ("SET", name, _packed(snapshot), "EX", LEASE)
            self._link.run([renew, ("HSET", self._holders, key, head)])

    def wanted(self, nar_hash: bytes, info_hashes: Sequence[bytes], *, is_new: bool) -> None:
        """Tell the others that a NAR is wanted, or which torrents it has by now."""
        body = bytes([is_new]) + self._name + nar_hash + b"".join(info_hashes)
        with contextlib.suppress(StoreDownError):  # who waits here was told
            self._link.run([("XADD", self._stream, "MAXLEN", "~", MAX_MARKS, "*", "m", body)])

    def sync(self) -> None:
        """Take in lists that others were told, and tell them those that Redis hasn't.

        Raises:
            StoreDownError: Redis doesn't answer.
        """
        seen = set()
        for key, head in _pairs(self._link.ask("HGETALL", self._holders)):
            if isinstance(key, bytes) and isinstance(head, bytes) and self._take(key, head):
                seen.add(key)
        for key in self._holdings.keys(self._clock()):
            if key not in seen:
                self.held(key)

    def _take(self, key: bytes, head: bytes) -> bool:
        """Take in a list if it isn't here; return whether Redis has one as good as that here."""
        if len(key) != _KEY_BYTES or len(head) != _HEAD.size:
            return False
        generation, expires, complete = _HEAD.unpack(head)
        now = self._clock()
        if not now < expires <= now + 2 * LEASE:
            self._link.ask("HDEL", self._holders, key)
            return False
        named = Snapshot(array("Q"), generation, expires, complete)
        present = self._holdings.snapshot(key)
        if present is not None and _age(present) >= _age(named):
            return _age(present) == _age(named)
        if present is not None and _which(present) == _which(named):
            items: array[int] | None = present.items
        else:
            items = _unpacked(self._link.ask("GET", self._list.encode() + key), _which(named))
        if items is not None:  # else it is on its way, or gone; the next pass sees
            self._holdings.install(key, named._replace(items=items), now)
        return True

    def listen(self) -> None:
        """Wait a moment for messages, and take them in.

        Raises:
            StoreDownError: Redis doesn't answer.
        """
        block = int(_BLOCK_SECONDS * 1000)
        reply = self._link.ask(
            *("XREAD", "COUNT", _MESSAGES, "BLOCK", block, "STREAMS", self._stream, self._last)
        )
        for number, body in _messages(reply):
            self._last = number
            self._hear(body)

    def _hear(self, body: bytes) -> None:
        is_new, name, rest = body[:1], body[1:9], body[9:]
        hashes = rest[_NAR_BYTES:]
        if len(rest) < _NAR_BYTES or len(hashes) % HASH_BYTES or name == self._name:
            return
        info_hashes = [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]
        self._heard(rest[:_NAR_BYTES], info_hashes, is_new == b"\1")

    def _run(self) -> None:
        due, said = 0.0, False
        while not self._ended.is_set():
            try:
                if time.monotonic() >= due:
                    self.sync()
                    due = time.monotonic() + SYNC_SECONDS
                self.listen()
                said = False
            except StoreDownError as error:
                if not said:
                    _log.warning("holdings aren't shared: %s", error)
                said = True
                self._ended.wait(_PAUSE_SECONDS)


def _packed(snapshot: Snapshot) -> bytes:
    """A list as Redis has it: which it is, and the items in network order."""
    items = array("Q", snapshot.items)
    if sys.byteorder == "little":
        items.byteswap()
    return _which(snapshot) + items.tobytes()


def _which(snapshot: Snapshot) -> bytes:
    """Which list it is: a generation alone isn't enough, as a seeder may begin to count anew."""
    return _WHICH.pack(snapshot.generation, snapshot.complete)


def _age(snapshot: Snapshot) -> tuple[float, float, int]:
    """What is more in a newer list of the same key."""
    return snapshot.expires, snapshot.complete, snapshot.generation


def _unpacked(data: object, which: bytes) -> array[int] | None:
    """Read a list, if it is this one."""
    size = _WHICH.size
    if not isinstance(data, bytes) or len(data) % 8 or data[:size] != which:
        return None
    items = array("Q")
    items.frombytes(memoryview(data)[size:])
    if sys.byteorder == "little":
        items.byteswap()
    ahead = iter(items)
    next(ahead, None)
    return items if all(map(lt, items, ahead)) else None


def _pairs(reply: object) -> list[tuple[object, object]]:
    """What a reply maps to what: a dictionary in RESP3, in RESP2 a list by turns."""
    if isinstance(reply, dict):
        return list(reply.items())
    flat = reply if isinstance(reply, list) else []
    return list(zip(flat[::2], flat[1::2], strict=False))


def _messages(reply: object) -> Iterator[tuple[bytes, bytes]]:
    """The numbers and bodies in a reply to XREAD."""
    streams = reply if isinstance(reply, list) and len(reply) == 1 else [reply]
    for stream in streams:
        # RESP2 has a list of pairs, which for one stream is a list of one.
        for _, entries in _pairs(stream):
            for entry in entries if isinstance(entries, list) else []:
                match entry:
                    case [bytes(number), [_, bytes(body)]]:
                        yield number, body
                    case [bytes(number), *_]:
                        yield number, b""
