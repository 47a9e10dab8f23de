# SPDX-License-Identifier: GPL-3.0-or-later
"""What was fetched is offered on, under the same rule as everything else.

A payload is offered only when its NAR was hashed here, and when the seeder's own vouchers have an
authorised narinfo for it: that somebody asked to fetch it is no reason to announce it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from narswarm import compression, narinfo
from narswarm.errors import MismatchError, NarswarmError, NotFoundError
from narswarm.narinfo import Narinfo
from narswarm.payload import Kind, file_name
from seeder.fetching import Fetched, Local
from seeder.inventory import Item
from seeder.state import Nar, State
from seeder.vouchers import Vouchers

log = logging.getLogger(__name__)

_READ = 1 << 20


class Offers(Protocol):
    """What offers: a `seeder.offering.Offering`."""

    def adopt(self, nar: Nar) -> None:
        """Offer a payload."""

    def withdraw(self, nar_hash: bytes, infohash: str) -> None:
        """Offer it no more."""


class Mirrors(Protocol):
    """What has files of servers: a `seeder.mirror_seeds.MirrorSeeds`."""

    def local(self, nar_hash: bytes) -> Local | None:
        """The file of a NAR."""

    def has(self, nar_hash: bytes) -> bool:
        """Whether there is one of a NAR."""

    def take(self, path: Path, torrent: bytes, info: Narinfo) -> Path | None:
        """Seed one that was fetched and checked; where it is then, None if there is no room."""

    def withdraw(self, nar_hash: bytes, infohash: str) -> None:
        """It is another NAR."""


class Adopter:
    """Takes over what was fetched; a `seeder.fetching.Finisher`.

    Args:
        state: what is offered.
        offering: offers it.
        vouchers: says what may be offered.
        refuse: told of torrents that carry another NAR than they should.
        room: asked how many bytes more may be kept.
        stopping: asked now and then whether to stop.
        mirrored: the files of substitute servers that are seeded here.
    """

    def __init__(
        self,
        state: State,
        offering: Offers,
        vouchers: Vouchers,
        refuse: Callable[[bytes, str], None],
        room: Callable[[], int],
        stopping: Callable[[], bool],
        mirrored: Mirrors | None = None,
    ) -> None:
        self._state = state
        self._offering = offering
        self._vouchers = vouchers
        self._refuse = refuse
        self._room = room
        self._stopping = stopping
        self._mirrored = mirrored

    def local(self, nar_hash: bytes) -> Local | None:
        """See `seeder.fetching.Finisher`."""
        made = self._made(nar_hash)
        if made is None and self._mirrored is not None:
            return self._mirrored.local(nar_hash)
        return made

    def _made(self, nar_hash: bytes) -> Local | None:
        try:
            nar = self._state.get(nar_hash)
        except NotFoundError:
            return None
        path = self._state.payloads / nar.payload
        try:
            if path.stat().st_size != nar.length:
                return None
        except OSError:
            return None
        return Local(path, nar.infohash, Kind.ZSTD, nar.length)

    def finish(self, fetched: Fetched, leave: Callable[[], None]) -> Path | None:
        """See `seeder.fetching.Finisher`."""
        wanted, payload = fetched.wanted, fetched.payload
        if payload.kind is Kind.SERVER:
            if self._mirrored is None or self._mirrored.has(wanted.nar_hash):
                return None
        elif payload.kind is not Kind.ZSTD or payload.length > self._room():
            return None
        try:
            self._check(fetched)
        except NarswarmError:
            self._refuse(wanted.nar_hash, payload.infohash)
            raise
        item = Item(0, wanted.store_path, wanted.nar_hash, wanted.nar_size)
        if self._stopping():
            return None
        for _, info in self._vouchers.find([item]):
            if info is not None and payload.kind is Kind.SERVER and self._mirrored is not None:
                leave()
                return self._mirrored.take(payload.path, fetched.torrent, info)
            if info is not None:
                return self._adopt(fetched, leave, narinfo.with_sources(info.raw, info.sources))
        return None

    def withdraw(self, nar_hash: bytes, infohash: str) -> None:
        """See `seeder.fetching.Finisher`."""
        self._offering.withdraw(nar_hash, infohash)
        if self._mirrored is not None:
            self._mirrored.withdraw(nar_hash, infohash)

    def _adopt(self, fetched: Fetched, leave: Callable[[], None], raw: bytes) -> Path | None:
        wanted, payload = fetched.wanted, fetched.payload
        path = self._state.payloads / file_name(wanted.nar_hash)
        if self._made(wanted.nar_hash) is not None:
            return None  # made here meanwhile
        leave()
        try:
            payload.path.rename(path)
        except OSError as error:
            raise NarswarmError(path, error.strerror or str(error)) from None
        nar = Nar(
            nar_hash=wanted.nar_hash,
            store_path=wanted.store_path,
            nar_size=wanted.nar_size,
            payload=path.name,
            length=payload.length,
            infohash=payload.infohash,
            torrent=fetched.torrent,
            narinfo=raw,
        )
        self._offering.adopt(nar)
        return path

    def _check(self, fetched: Fetched) -> None:
        """See that the payload is the NAR: who reads it checks that, too, but maybe later."""
        wanted, path = fetched.wanted, fetched.payload.path
        digest, size = hashlib.sha256(), 0
        for chunk in compression.decompress(
            _read(path), fetched.payload.kind.compression, limit=wanted.nar_size, subject=str(path)
        ):
            digest.update(chunk)
            size += len(chunk)
            if self._stopping():
                return
        if (digest.digest(), size) != (wanted.nar_hash, wanted.nar_size):
            raise MismatchError(wanted.store_path, "was fetched, but is another NAR")


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_READ):
            yield chunk
