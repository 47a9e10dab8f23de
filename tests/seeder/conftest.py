# SPDX-License-Identifier: GPL-3.0-or-later
"""Store items with NARs and signed narinfos, in a directory and in a store with a database."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from narswarm import bencoding, gcrypt, nar, narinfo, sexp
from narswarm.acl import Acl, render
from narswarm.base32 import format_hash
from narswarm.gcrypt import KeyPair
from narswarm.narinfo import Narinfo, Source
from seeder.inventory import Item

SERVER = "https://server.example.org"


class Made(NamedTuple):
    """A store item of the test."""

    item: Item
    nar: bytes
    narinfo: bytes

    @property
    def path(self) -> str:
        """Its store path."""
        return self.item.store_path

    @property
    def parsed(self) -> Narinfo:
        """Its narinfo as a substitute server gives it."""
        return narinfo.parse(self.narinfo, SERVER)


class World:
    """Makes items, and puts them where a seeder looks for them."""

    def __init__(self, root: Path, signer: KeyPair) -> None:
        self.root = root
        self.signer = signer
        self.nars = root / "nars"
        self.store = root / "store"
        self.database = root / "db.sqlite"
        self.acl = root / "acl"
        self.nars.mkdir()
        self.store.mkdir()
        self.acl.write_bytes(render([sexp.parse(signer.public)]))
        with closing(sqlite3.connect(self.database)) as db:
            db.execute(
                "CREATE TABLE ValidPaths (id integer primary key autoincrement not null,"
                " path text unique not null, hash text not null,"
                " registrationTime integer not null, deriver text, narSize integer)"
            )
        self._count = 0

    def make(self, name: str = "item", content: bytes = b"content") -> Made:
        """A new item, which is in the store's directory but nowhere else."""
        self._count += 1
        base_name = f"{self._count:032}-{name}"
        file = self.store / base_name
        file.write_bytes(content)
        data = b"".join(nar.dump(file))
        nar_hash = hashlib.sha256(data).digest()
        path = f"/gnu/store/{base_name}"
        unsigned = narinfo.compose(path, nar_hash, len(data), [])
        signed = narinfo.sign(unsigned, self.signer, "example.org")
        text = narinfo.with_sources(signed, [Source(f"nar/{base_name}", "none", len(data))])
        return Made(Item(self._count, path, nar_hash, len(data)), data, text)

    def put_nar(self, made: Made) -> None:
        """Put an item into the directory of NARs."""
        base_name = made.path.rpartition("/")[2]
        (self.nars / f"{base_name}.nar").write_bytes(made.nar)
        (self.nars / f"{base_name[:32]}.narinfo").write_bytes(made.narinfo)

    def register(self, made: Made, *, nar_hash: bytes | None = None) -> None:
        """Make an item valid in the store's database."""
        text = f"sha256:{(nar_hash or made.item.nar_hash).hex()}"
        with closing(sqlite3.connect(self.database)) as db, db:
            db.execute(
                "INSERT INTO ValidPaths VALUES (?, ?, ?, 1, '', ?)",
                (made.item.order, made.path, text, made.item.nar_size),
            )

    def delete(self, made: Made) -> None:
        """What `guix gc -D` does."""
        with closing(sqlite3.connect(self.database)) as db, db:
            db.execute("DELETE FROM ValidPaths WHERE path = ?", (made.path,))


class Server:
    """An HTTP server that is a tracker, its index, and a substitute server.

    Attributes:
        published: bodies that were PUT.
        holdings: bodies that were POSTed.
        wanted: NAR hashes to be answered to who asks what is wanted; each once.
        announced: queries of announces.
        files: what it gives for other paths.
        forbids: whether it refuses what is published.
    """

    def __init__(self) -> None:
        self.published: list[bytes] = []
        self.holdings: list[dict[bytes, Any]] = []
        self.wanted: list[bytes] = []
        self.announced: list[str] = []
        self.files: dict[str, bytes] = {}
        self.forbids = False
        self.changed = threading.Condition()
        self.ended = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                with outer.changed:
                    if path == "/announce":
                        outer.announced.append(query)
                        self._answer(200, b"d8:intervali1800e5:peers0:e")
                    elif path == "/v1/wanted":
                        outer.changed.wait_for(lambda: outer.wanted or outer.ended, 50)
                        wanted, outer.wanted = outer.wanted, []
                        marks = [{"nar_hash": format_hash(h), "requests": 1} for h in wanted]
                        body = {"cursor": 1, "wanted": marks}
                        self._answer(200, json.dumps(body).encode())
                    elif path in outer.files:
                        self._answer(200, outer.files[path])
                    else:
                        self._answer(404, b"")
                    outer.changed.notify_all()

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with outer.changed:
                    if outer.forbids:
                        self._answer(403, b'{"error": "publisher: is not allowed"}')
                    else:
                        outer.published.append(body)
                        self._answer(201, b"{}")
                    outer.changed.notify_all()

            def do_POST(self) -> None:
                body = bencoding.decode(self.rfile.read(int(self.headers["Content-Length"])), "")
                assert isinstance(body, dict)
                with outer.changed:
                    outer.holdings.append(body)
                    answer = {"generation": body[b"generation"], "held": 1, "lease": 1800}
                    self._answer(200, json.dumps(answer).encode())
                    outer.changed.notify_all()

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def wait(self, ready: Callable[[], object]) -> None:
        """Wait until requests have made something true."""
        with self.changed:
            assert self.changed.wait_for(ready, 120.0), "it did not happen"

    def want(self, nar_hash: bytes) -> None:
        """Somebody wants a NAR."""
        with self.changed:
            self.wanted.append(nar_hash)
            self.changed.notify_all()

    def close(self) -> None:
        """Stop."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(name="server")
def server_fixture() -> Iterator[Server]:
    """A running server."""
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session", name="signer")
def signer_fixture() -> KeyPair:
    """The key of a substitute server."""
    return gcrypt.generate_key()


@pytest.fixture(name="world")
def world_fixture(tmp_path: Path, signer: KeyPair) -> World:
    """An empty world."""
    return World(tmp_path, signer)


@pytest.fixture(name="acl")
def acl_fixture(world: World) -> Acl:
    """An ACL which authorises the signer."""
    return Acl.load(world.acl)
