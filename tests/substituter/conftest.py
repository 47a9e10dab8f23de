# SPDX-License-Identifier: GPL-3.0-or-later
"""A small world for the substituter: a key, a substitute server, a tracker, a seeding session."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard

from narswarm import acl, base32, gcrypt, nar, narinfo, sexp
from narswarm.gcrypt import KeyPair
from narswarm.httpclient import HttpClient
from narswarm.httpsig import PublisherKey
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import FrameCompressor, file_name
from narswarm.swarm import Swarm
from narswarm.swarm_settings import SwarmSettings
from narswarm.trackerclient import TrackerIndex
from substituter.context import Context
from substituter.settings import SubstituterSettings
from tests.processes import end, start_tracker


class Item(NamedTuple):
    """A store item that a test may ask for."""

    path: str
    nar: bytes
    narinfo: bytes

    @property
    def nar_hash(self) -> bytes:
        """SHA-256 of the NAR."""
        return hashlib.sha256(self.nar).digest()

    @property
    def hash_part(self) -> str:
        """The 32 digits of its narinfo's name."""
        return self.path[11:43]


class Site:
    """A substitute server on loopback: paths and what they answer."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes | Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.requests: list[str] = []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                """Answer from the table."""
                site.requests.append(self.path)
                body = site.bodies.get(self.path)
                if callable(body):
                    body(self)
                    return
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def do_HEAD(self) -> None:
                """Say how long a body is."""
                site.requests.append(f"HEAD {self.path}")
                body = site.bodies.get(self.path)
                length = len(body) if isinstance(body, bytes) else 0
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(length))
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def offer(self, item: Item, *kinds: str, nar: bytes | None = None) -> None:
        """Serve an item's narinfo and its NAR in these compressions."""
        data = item.nar if nar is None else nar
        sources = []
        for kind in kinds:
            url = f"nar/{kind}/{item.path[11:]}"
            self.bodies[f"/{url}"] = COMPRESS[kind](data)
            sources.append(narinfo.Source(url, kind, len(COMPRESS[kind](data))))
        self.bodies[f"/{item.hash_part}.narinfo"] = narinfo.with_sources(item.narinfo, sources)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": lambda data: (c := zlib.compressobj(wbits=31)).compress(data) + c.flush(),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.fixture
def site() -> Iterator[Site]:
    """A substitute server that has nothing yet."""
    server = Site()
    yield server
    server.close()


@pytest.fixture(scope="session")
def key() -> KeyPair:
    """The key that is authorised."""
    return gcrypt.generate_key()


@pytest.fixture
def make_item(tmp_path: Path, key: KeyPair) -> Callable[..., Item]:
    """Makes signed items: a directory with one file each."""

    def make(name: str, text: bytes = b"hello\n", references: tuple[str, ...] = ()) -> Item:
        tree = tmp_path / "samples" / name
        tree.mkdir(parents=True, exist_ok=True)
        (tree / "file").write_bytes(text)
        data = b"".join(nar.dump(tree))
        digest = hashlib.sha256(data).digest()
        hash_part = base32.encode(hashlib.sha256(name.encode()).digest())[:32]
        path = f"/gnu/store/{hash_part}-{name}"
        unsigned = narinfo.compose(path, digest, len(data), references)
        return Item(path, data, narinfo.sign(unsigned, key, "test"))

    return make


@pytest.fixture
def settings(tmp_path: Path, key: KeyPair) -> SubstituterSettings:
    """Settings that keep to loopback and to the test's folder."""
    acl_file = tmp_path / "acl"
    acl_file.write_bytes(acl.render([sexp.parse(key.public)]))
    return SubstituterSettings(
        state=tmp_path / "state",
        acl=acl_file,
        guix=Path("/bin/false"),
        seeder="",
        dht=False,
        lsd=False,
        listen=("127.0.0.1:0",),
        query_timeout=60.0,
        patience=60.0,
        first_byte_timeout=60.0,
        stall_timeout=60.0,
    )


class World(NamedTuple):
    """A context and what it has shown to the user."""

    context: Context
    warnings: list[str]


@pytest.fixture
def enter(settings: SubstituterSettings) -> Iterator[Callable[..., World]]:
    """Makes a context as a helper process has it."""
    worlds: list[World] = []

    def make(*urls: str, options: str = "", changed: SubstituterSettings | None = None) -> World:
        warnings: list[str] = []
        environ = {
            "_NIX_OPTIONS": f"substitute-urls={' '.join(urls)}\n"
            f"print-extended-build-trace=1\n{options}"
        }
        worlds.append(World(Context(changed or settings, environ, warnings.append), warnings))
        return worlds[-1]

    yield make
    for world in worlds:
        world.context.close()


def torrent_of(item: Item, directory: Path, nar: bytes | None = None) -> tuple[bytes, Path]:
    """The torrent for an item, and its payload in a directory; of another NAR, a liar's."""
    payload = directory / file_name(item.nar_hash)
    hasher = PieceHasher()
    with (
        payload.open("wb") as file,
        FrameCompressor([item.nar if nar is None else nar]) as frames,
    ):
        for frame in frames:
            hasher.update(frame)
            file.write(frame)
    return Metainfo.of(payload.name, hasher.finish()).encode(), payload


class Net:
    """A tracker and a seeding session on loopback."""

    def __init__(self, directory: Path, acl_file: Path) -> None:
        self.directory = directory
        self.tracker = Tracker(directory / "tracker", acl_file)
        self.swarm = Swarm(
            SwarmSettings(listen=("127.0.0.1:0",), dht=False, lsd=False, upnp=False, role="seed")
        )
        self.client = HttpClient(60.0)

    def seed(self, item: Item, nar: bytes | None = None) -> str:
        """Publish and seed an item, maybe with the payload of another; its infohash."""
        directory = self.directory / f"seed-{len(list(self.directory.iterdir()))}"
        directory.mkdir()
        torrent, payload = torrent_of(item, directory, nar)
        key = PublisherKey.load_or_create(directory / "publisher.key")
        index = TrackerIndex(self.client, self.tracker.url)
        index.publish(key, item.nar_hash, torrent, item.narinfo, time.time())
        infohash = self.swarm.seed(torrent, payload, [f"{self.tracker.url}/announce"])
        deadline = time.monotonic() + 120
        while not self._seen(item, infohash):
            assert time.monotonic() < deadline, "the seed never announced itself"
        return infohash

    def _seen(self, item: Item, infohash: str) -> bool:
        entry = TrackerIndex(self.client, self.tracker.url).lookup(item.nar_hash)
        return entry is not None and any(
            torrent.infohash_v2.hex() == infohash and torrent.peers for torrent in entry.torrents
        )

    def close(self) -> None:
        """End both."""
        self.swarm.close()
        self.client.close()
        self.tracker.close()


class Tracker:
    """The real tracker in a process of its own."""

    def __init__(self, directory: Path, acl_file: Path) -> None:
        directory.mkdir()
        self._process, (port,) = start_tracker(directory, ["127.0.0.1:0"], "--acl", str(acl_file))
        self.url = f"http://127.0.0.1:{port}"

    def close(self) -> None:
        """End it; twice is as well as once."""
        end(self._process)


@pytest.fixture
def net(tmp_path: Path, settings: SubstituterSettings) -> Iterator[Net]:
    """A tracker and a session that seeds what a test wants seeded."""
    directory = tmp_path / "net"
    directory.mkdir()
    made = Net(directory, settings.acl)
    yield made
    made.close()
