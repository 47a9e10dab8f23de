# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an attack takes place: servers, a tracker, peers, and an item that is wanted."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import random
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from narswarm import base32, metainfo, narinfo
from narswarm.gcrypt import KeyPair
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import compress_chunk, file_name
from narswarm.swarm import Swarm
from tests.conformance import adversary_nars as nars
from tests.conformance.adversary_peers import Behaviour, Dead, Peer
from tests.substituter import trackers
from tests.substituter.conftest import Item, Site

Request = http.server.BaseHTTPRequestHandler
SIZE = 200_000
"""Bytes of an item's only file, which don't compress."""


class Stage:
    """Everything that a case may use.

    Args:
        directory: of this case.
        key: the authorised one.
        swarm: a session that seeds.

    Attributes:
        item: what is attacked.
        server: the first substitute server; it has nothing yet.
        second: the one after it.
        tracker: a site that is a tracker if the case makes it one.
        urls: of the substitute servers, in order.
        lines: settings of the program.
        over: is set when the case is over.
    """

    def __init__(self, directory: Path, key: KeyPair, swarm: Swarm, name: str) -> None:
        self.directory = directory
        self.key = key
        self.server, self.second, self.tracker = Site(), Site(), Site()
        self.urls = [self.server.url, self.second.url]
        self.over = threading.Event()
        self.lines = [
            f'trackers = ["{self.tracker.url}/announce"]',
            'first_byte_timeout = "1 s"',
            'stall_timeout = "1 s"',
            'patience = "10 s"',
            'query_timeout = "5 s"',
        ]
        self.name = "".join(c if c.isalnum() else "-" for c in name)
        self.item = self.make("attacked", self.noise(name))
        self._swarm = swarm
        self._closing: list[Callable[[], None]] = []

    def close(self) -> None:
        """End all of it."""
        self.over.set()
        for close in self._closing:
            close()
        for site in (self.server, self.second, self.tracker):
            site.close()

    # -- items ------------------------------------------------------------------------------------

    def make(self, name: str, nar: bytes, size: int | None = None, path: str = "") -> Item:
        """A signed item with this NAR; one may lie about its size and path."""
        digest = base32.encode(hashlib.sha256(f"{self.name} {name}".encode()).digest())[:32]
        path = path or f"/gnu/store/{digest}-{name}"
        size = len(nar) if size is None else size
        unsigned = narinfo.compose("/gnu/store/" + "0" * 32 + "-x", _sha(nar), size, ())
        unsigned = unsigned.replace(b"/gnu/store/" + b"0" * 32 + b"-x", path.encode(), 1)
        signed = narinfo.sign(unsigned, self.key, "test")
        return Item(path, nar, signed)

    def noise(self, name: str) -> bytes:
        """The NAR of a directory with a file that doesn't compress."""
        noise = random.Random(name).randbytes(SIZE)  # noqa: S311 -- a sample
        return nars.archive(nars.directory((b"file", nars.regular(noise))))

    def narinfo(self, item: Item | None = None, *urls: str, kind: str = "none") -> bytes:
        """A true narinfo with these places of the NAR."""
        item = item or self.item
        return narinfo.with_sources(item.narinfo, [narinfo.Source(url, kind) for url in urls])

    def answer(self, site: Site, body: bytes | Callable[[Request], None]) -> None:
        """Answer so to whoever asks for the item's narinfo."""
        site.bodies[f"/{self.item.hash_part}.narinfo"] = body

    # -- servers ----------------------------------------------------------------------------------

    def honest(self, site: Site | None = None) -> None:
        """A server, the second one by default, has the item as it is."""
        (site or self.second).offer(self.item, "none")

    def serve(self, body: bytes | Callable[[Request], None], kind: str = "none") -> None:
        """The first server has the item's narinfo, and this for its NAR."""
        path = f"nar/{self.item.path[11:]}"
        self.server.bodies[f"/{path}"] = body
        self.answer(self.server, self.narinfo(self.item, path, kind=kind))

    def raw(
        self, *parts: bytes, slowly: bytes = b"", again: bytes = b"", pause: float = 0.0
    ) -> Callable[[Request], None]:
        """An answer byte by byte.

        Args:
            parts: are sent at once.
            slowly: is sent after that, a byte after each pause.
            again: is sent for as long as somebody reads.
            pause: seconds; with nothing to send, the connection stays open.
        """

        def answer(request: Request) -> None:
            request.close_connection = True
            with contextlib.suppress(OSError):
                for part in parts:
                    request.wfile.write(part)
                for index in range(len(slowly)):
                    if self.over.wait(pause):
                        return
                    request.wfile.write(slowly[index : index + 1])
                while again and not self.over.wait(pause):
                    request.wfile.write(again)
                if not again and pause:
                    self.over.wait()

        return answer

    # -- the swarm --------------------------------------------------------------------------------

    def torrent(self, payload: bytes | None = None) -> tuple[bytes, Metainfo, bytes]:
        """A torrent in the item's name: as it is encoded, as it is, and its payload."""
        if payload is None:
            payload = compress_chunk(self.item.nar)
        hasher = PieceHasher()
        hasher.update(payload)
        meta = Metainfo.of(file_name(self.item.nar_hash), hasher.finish())
        return meta.encode(), meta, payload

    def seed(self, payload: bytes | None = None) -> tuple[bytes, str]:
        """Have the item seeded with this payload, honest by default; the torrent and where."""
        torrent, meta, data = self.torrent(payload)
        file = self.directory / f"seeded-{meta.infohash_v2.hex()[:8]}"
        file.write_bytes(data)
        self._swarm.seed(torrent, file, [])
        return torrent, f"127.0.0.1:{self._swarm.listen_port}"

    def peer(self, meta: Metainfo, behaviour: Behaviour) -> str:
        """A peer that behaves so; where it is."""
        peer = Peer(meta, behaviour)
        self._closing.append(peer.close)
        return peer.address

    def dead(self, count: int) -> list[str]:
        """Addresses that don't answer."""
        made = Dead(count)
        self._closing.append(made.close)
        return made.addresses

    def track(self, torrent: bytes, *peers: str) -> None:
        """The tracker lists a torrent with these peers."""
        trackers.serve(self.tracker, self.item, torrent, peers=peers)

    def index(self, body: bytes | Callable[[Request], None]) -> None:
        """The tracker answers so when it is asked about the item."""
        self.tracker.bodies[f"/v1/nar/{base32.encode(self.item.nar_hash)}"] = body

    def offer_good(self) -> Item:
        """An item that nobody attacks, over HTTP and in the swarm."""
        attacked, self.item = self.item, self.make("good", self._plain())
        try:
            self.honest()
            trackers.mirror(self.tracker, self.item)
            torrent, address = self.seed()
            self.track(torrent, address)
            return self.item
        finally:
            self.item = attacked

    def _plain(self) -> bytes:
        """A NAR of its own for each case, so that sessions don't meet the same torrent twice."""
        return nars.archive(nars.directory((b"file", nars.regular(self.name.encode()))))

    def policy(self, name: str) -> None:
        """Set the policy."""
        self.lines.append(f'policy = "{name}"')


def infohash(torrent: bytes) -> str:
    """The name of a torrent, in messages and indexes."""
    return metainfo.decode(torrent, "torrent").infohash_v2.hex()


def _sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class Sentinel:
    """A tree that nobody may touch, beside the one that items are put into."""

    def __init__(self, directory: Path) -> None:
        self.store = directory / "store"
        self.store.mkdir()
        self._directory = directory
        beside = directory / "beside"
        (beside / "inner").mkdir(parents=True)
        (beside / "file").write_text("precious\n")
        (beside / "inner" / "run").write_text("#!/bin/sh\n")
        (beside / "inner" / "run").chmod(0o755)
        (beside / "link").symlink_to("file")
        neighbour = self.store / "neighbour"
        neighbour.mkdir()
        (neighbour / "file").write_text("another item\n")
        neighbour.chmod(0o555)

    def look(self) -> dict[str, tuple[object, ...]]:
        """Everything about all files: a rename, a touch or a change of a mode would show."""
        seen: dict[str, tuple[object, ...]] = {}
        for top in (self._directory / "beside", self.store / "neighbour"):
            for path in [top, *sorted(top.rglob("*"))]:
                found = path.lstat()
                content: object = None
                if stat.S_ISLNK(found.st_mode):
                    content = os.readlink(path)  # noqa: PTH115 -- as it is
                elif stat.S_ISREG(found.st_mode):
                    content = path.read_bytes()
                seen[str(path)] = (
                    found.st_ino,
                    found.st_mode,
                    found.st_nlink,
                    found.st_size,
                    found.st_mtime_ns,
                    found.st_ctime_ns,
                    content,
                )
        # What else there is, by name: nothing may appear either.
        seen["names"] = tuple(sorted(path.name for path in self._directory.iterdir()))
        seen["items"] = tuple(sorted(path.name for path in self.store.iterdir()))
        return seen
