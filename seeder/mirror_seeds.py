# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of substitute servers that are seeded here.

Some are copies in our own directory, within a quota. Others belong to somebody else, such as
`guix publish`, and are seeded where they are; they are never written or removed, and when one is
gone, or is another one, it is taken out of its swarm before a peer is told of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from narswarm import base32, metainfo, narinfo, storepath, webseeds
from narswarm.acl import Acl
from narswarm.cli import format_size
from narswarm.errors import InvalidInputError, NarswarmError, NotFoundError
from narswarm.files import write_atomically
from narswarm.metainfo import Metainfo
from narswarm.narinfo import Narinfo, Verdict
from narswarm.payload import Kind
from seeder import eviction
from seeder.fetching import Local
from seeder.mirror_files import SCRAPS, discard
from seeder.mirror_table import Mirrored, MirrorTable
from seeder.offering import Seeds
from seeder.publish_cache import stamp

log = logging.getLogger(__name__)

SUFFIX: Final = ".file"


class MirrorSeeds:
    """What is mirrored, and seeded.

    Args:
        table: what is kept.
        directory: of our own copies.
        quota: bytes that they may take.
        swarm: seeds.
        trackers: announce URLs.
        publish: tells indexes of trackers of a file.
        acl: whose signatures count.
        clock: seconds since the epoch.

    Attributes:
        quota: bytes that our own copies may take.
        wanted: NAR hashes of what is followed; None as long as that isn't known.
        full: why something had no room; empty if all had.
    """

    def __init__(
        self,
        *,
        table: MirrorTable,
        directory: Path,
        quota: int,
        swarm: Seeds,
        trackers: Sequence[str],
        publish: Callable[[bytes, Collection[str]], None],
        acl: Acl,
        clock: Callable[[], float],
    ) -> None:
        self._table = table
        self._directory = directory
        self.quota = quota
        self._swarm = swarm
        self._trackers = tuple(trackers)
        self._publish = publish
        self._acl = acl
        self._clock = clock
        self._lock = threading.RLock()
        self._seeded: dict[bytes, Mirrored] = {}
        self._sent: dict[str, int] = {}
        self.wanted: frozenset[bytes] | None = None
        self.full = ""

    def __len__(self) -> int:
        return len(self._seeded)

    def has(self, nar_hash: bytes) -> bool:
        """Whether a NAR is seeded."""
        return nar_hash in self._seeded

    def in_place(self) -> set[str]:
        """Paths of files that are somebody else's."""
        return {file.path for file in list(self._seeded.values()) if file.in_place}

    def infohash(self, nar_hash: bytes) -> str | None:
        """The torrent of a NAR, if it is seeded."""
        file = self._seeded.get(nar_hash)
        return None if file is None else file.infohash

    def infohashes(self) -> list[str]:
        """All torrents that are seeded."""
        return [file.infohash for file in list(self._seeded.values())]

    def local(self, nar_hash: bytes) -> Local | None:
        """The file of a NAR, for the programs of this machine."""
        file = self._seeded.get(nar_hash)
        if file is None or stamp(self._path(file)) != file.stamp:
            return None
        return Local(self._path(file), file.infohash, Kind.SERVER, file.length)

    # What is kept

    def restore(self) -> None:
        """Seed again what is kept: nothing is hashed, nobody is asked."""
        files = self._table.all()
        known = {file.path for file in files}
        for path in self._directory.glob(f"*{SUFFIX}"):
            if path.name not in known:
                path.unlink(missing_ok=True)
        for file in files:
            if stamp(self._path(file)) == file.stamp:
                self._seed(file)
            else:
                log.warning("%s: its mirrored file is gone or changed", file.store_path)
                self._drop(file)

    def rejudge(self, acl: Acl) -> None:
        """Take another ACL: what it doesn't authorise any more is dropped.

        Raises:
            GcryptMissingError: no signature can be checked here.
        """
        self._acl = acl
        for file in self._table.all():
            if narinfo.verdict(file.narinfo, acl) is not Verdict.VALID_SIGNATURE:
                log.warning("%s: no longer vouched for", file.store_path)
                self._drop(file)

    def adopt(self, part: Path, meta: Metainfo, info: Narinfo) -> None:
        """Take over a file that was fetched, checked, and is beside our directory.

        Raises:
            InvalidInputError: nobody vouches for it.
            OSError: it can't be renamed.
        """
        self._require_valid(info)
        path = self._directory / f"{base32.encode(info.nar_hash)}{SUFFIX}"
        part.rename(path)
        self._keep(path.name, stamp(path), meta, info)

    def take(self, path: Path, torrent: bytes, info: Narinfo) -> Path | None:
        """Take over a file that came from a swarm, and was checked; None if there is no room.

        Raises:
            InvalidInputError: nobody vouches for it, or it isn't called like the item.
            NarswarmError: it can't be renamed.
        """
        meta = metainfo.decode(torrent, info.store_path)
        if meta.name != storepath.parse(info.store_path).base_name:
            raise InvalidInputError(meta.name, f"is not what a server calls {info.store_path}")
        if not self.make_room(meta.length):
            return None
        try:
            self.adopt(path, meta, info)
        except OSError as error:
            raise NarswarmError(path, error.strerror or str(error)) from None
        return self._directory / f"{base32.encode(info.nar_hash)}{SUFFIX}"

    def use(self, path: Path, seen: str, meta: Metainfo, info: Narinfo) -> None:
        """Seed a file of somebody else where it is.

        Args:
            path: absolute.
            seen: its stamp before it was read.
            meta: its torrent.
            info: vouches for it.

        Raises:
            InvalidInputError: nobody vouches for it, or it has changed.
        """
        self._require_valid(info)
        if not seen or stamp(path) != seen:
            raise InvalidInputError(path, "has changed while it was read")
        self._keep(str(path), seen, meta, info)

    def _require_valid(self, info: Narinfo) -> None:
        verdict = narinfo.verdict(info, self._acl)
        if verdict is not Verdict.VALID_SIGNATURE:
            raise InvalidInputError(info.store_path, f"has a narinfo with the verdict {verdict}")

    def _keep(self, path: str, seen: str, meta: Metainfo, info: Narinfo) -> None:
        # With absolute URLs alone: those of a server mean nothing at a tracker.
        sources = [source for source in info.sources if "://" in source.url]
        file = Mirrored(
            nar_hash=info.nar_hash,
            store_path=info.store_path,
            path=path,
            stamp=seen,
            length=meta.length,
            infohash=meta.infohash_v2.hex(),
            torrent=meta.encode(),
            narinfo=narinfo.with_sources(info.raw, sources),
        )
        before = self._table.find(info.nar_hash)
        if before is not None:
            self._take_out(before)
        self._table.add(file, self._trackers)
        self._offer_torrent(meta, file.store_path, info)
        # First, so that trackers which only track what is in their index take the announce.
        self._publish(file.nar_hash, ())
        self._seed(file)
        log.info("seeding the server's file of %s: %s", file.store_path, format_size(file.length))

    def _offer_torrent(self, meta: Metainfo, store_path: str, info: Narinfo) -> None:
        """Write a torrent for clients that aren't ours, with the server as a web seed."""
        servers = webseeds.of_sources(info.sources, meta.name, meta.length)
        with suppress(OSError):  # nobody needs it here
            write_atomically(
                self._torrent(info.nar_hash), meta.encode(self._trackers, servers, store_path)
            )

    def _torrent(self, nar_hash: bytes) -> Path:
        return self._directory / f"{base32.encode(nar_hash)}.torrent"

    def _path(self, file: Mirrored) -> Path:
        return self._directory / file.path  # which is the latter where that is absolute

    def _seed(self, file: Mirrored) -> None:
        with self._lock:
            self._swarm.seed(file.torrent, self._path(file), self._trackers)
            self._seeded[file.nar_hash] = file

    # What goes

    def make_room(self, needed: int, nar_hash: bytes = b"") -> bool:
        """Remove what isn't followed any more until there is room; whether there is.

        Args:
            needed: bytes.
            nar_hash: of the NAR that they are for, of which a part may be here.
        """
        partial = self._partial(nar_hash)
        free = self.quota - self._table.used() - partial
        if free < needed <= self.quota and self.wanted is not None:
            wanted = self.wanted
            sending = {status.infohash for status in self._swarm.status() if status.upload_rate}
            with self._lock:
                busy = {f.nar_hash for f in self._seeded.values() if f.infohash in sending}
            rest = [each for each in self._table.payloads() if each.nar_hash not in wanted]
            for gone in eviction.choose(rest, needed - free, self._clock(), busy) or ():
                file = self._table.find(gone)
                if file is not None:
                    log.info("making room: the server's file of %s", file.store_path)
                    self._drop(file)
            free = self.quota - self._table.used() - partial
        return free >= needed

    def _partial(self, nar_hash: bytes) -> int:
        """Bytes of files of other NARs that broke off."""
        own = base32.encode(nar_hash)
        size = 0
        for part in self._directory.glob("*.part"):
            if part.stem != own:
                with suppress(FileNotFoundError):
                    size += part.stat().st_size
        return size

    def tidy(self) -> None:
        """Remove what broke off and isn't followed any more."""
        if self.wanted is None:
            return
        wanted = {base32.encode(nar_hash) for nar_hash in self.wanted}
        for scrap in list(self._directory.iterdir()):
            if scrap.suffix in SCRAPS and scrap.stem not in wanted:
                discard(scrap)

    def check(self) -> None:
        """Take files out that are gone, or turned out to be damaged."""
        states = {status.infohash: status for status in self._swarm.status()}
        for file in list(self._seeded.values()):
            status = states.get(file.infohash)
            if stamp(self._path(file)) != file.stamp:
                log.info("%s: the server's file of it is gone or changed", file.store_path)
            elif status is None or status.state == "seeding":
                continue
            else:
                reason = f": {status.error}" if status.error else ""
                log.warning("%s: its mirrored file is damaged%s", file.store_path, reason)
            self._drop(file)

    def count(self) -> None:
        """Note how much was sent of each file, and how many others have it."""
        files = {file.infohash: file for file in list(self._seeded.values())}
        amounts: list[tuple[bytes, int, int]] = []
        for status in self._swarm.status():
            file = files.get(status.infohash)
            sent = status.uploaded - self._sent.get(status.infohash, 0)
            if file is not None and sent > 0:
                self._sent[status.infohash] = status.uploaded
                amounts.append((file.nar_hash, sent, max(-1, status.complete - 1)))
        if amounts:
            self._table.sent(amounts)

    def withdraw(self, nar_hash: bytes, infohash: str) -> None:
        """Seed a file no more, if it is seeded: it isn't the NAR."""
        file = self._seeded.get(nar_hash)
        if file is not None and file.infohash == infohash:
            self._drop(file)

    def _drop(self, file: Mirrored) -> None:
        """In this order, since a row promises a file."""
        self._take_out(file)
        self._table.drop(file.nar_hash)
        self._torrent(file.nar_hash).unlink(missing_ok=True)
        if not file.in_place:
            self._path(file).unlink(missing_ok=True)

    def _take_out(self, file: Mirrored) -> None:
        with self._lock:
            self._seeded.pop(file.nar_hash, None)
        with suppress(NotFoundError):
            self._swarm.remove(file.infohash)
        self._sent.pop(file.infohash, None)
