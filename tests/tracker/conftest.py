# SPDX-License-Identifier: GPL-3.0-or-later
"""Publications for tests: NARs, torrents for them, and narinfos that vouch."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from narswarm import bencoding, gcrypt, metainfo, narinfo, sexp
from narswarm.acl import Acl, render
from narswarm.gcrypt import KeyPair
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import file_name
from tests import engines
from tests.engines import Engine
from tracker import index as index_module
from tracker import page, postgres, redis_link
from tracker.database import Place
from tracker.index import Index
from tracker.publication import check
from tracker.redis_link import Link
from tracker.redis_swarms import RedisSwarms
from tracker.swarms import Limits

_SCHEMAS = itertools.count()
_PREFIXES = itertools.count()
SERVER = "https://bordeaux.guix.gnu.org"


class Item(NamedTuple):
    """A store item that can be published."""

    nar_hash: bytes
    hash_part: str
    narinfo: bytes
    meta: Metainfo

    @property
    def body(self) -> bytes:
        """What a publisher sends."""
        return bencoding.encode({b"narinfo": self.narinfo, b"torrent": self.meta.encode()})


MakeItem = Callable[..., Item]
OpenSwarms = Callable[..., RedisSwarms]


@pytest.fixture(autouse=True)
def patient_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that are short for the sake of a tracker's clients are long on a busy machine."""
    for module, name in (
        (index_module, "_READER_SECONDS"),
        (page, "_SEARCH_SECONDS"),
        (redis_link, "CONNECT_SECONDS"),
        (redis_link, "REPLY_SECONDS"),
        (postgres, "_CONNECT_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 120)


@pytest.fixture(scope="session", name="signer")
def signer_fixture() -> KeyPair:
    """The key of a substitute server."""
    return gcrypt.generate_key()


@pytest.fixture(scope="session", name="acl_text")
def acl_text_fixture(signer: KeyPair) -> bytes:
    """An ACL file which authorises that key."""
    return render([sexp.parse(signer.public)])


@pytest.fixture(scope="session", name="acl")
def acl_fixture(acl_text: bytes) -> Acl:
    """An ACL which authorises that key."""
    return Acl.parse(acl_text)


@pytest.fixture(scope="session", name="make_item")
def make_item_fixture(signer: KeyPair) -> MakeItem:
    """A maker of items: one number is one NAR, another payload is another claim about it."""

    def make(
        number: int = 1,
        payload: bytes = b"payload",
        *,
        key: KeyPair = signer,
        nar_size: int = 1000,
        path: int | None = None,
        name: str = "item",
        references: tuple[str, ...] = (),
        urls: tuple[str, ...] = (f"{SERVER}/nar/zstd/x",),
    ) -> Item:
        nar_hash = hashlib.sha256(b"nar %d" % number).digest()
        hash_part = f"{number if path is None else path:032}"
        unsigned = narinfo.compose(
            f"/gnu/store/{hash_part}-{name}", nar_hash, nar_size, list(references)
        )
        signed = narinfo.sign(unsigned, key, "example.org")
        sources = [narinfo.Source(url, "zstd", 9) for url in urls]
        hasher = PieceHasher()
        hasher.update(payload)
        meta = metainfo.Metainfo.of(file_name(nar_hash), hasher.finish())
        return Item(nar_hash, hash_part, narinfo.with_sources(signed, sources), meta)

    return make


@pytest.fixture(scope="session", name="redis")
def redis_fixture() -> Iterator[Engine]:
    """A Redis for all tests that don't end it; each has names of its own."""
    with engines.redis_server() as engine:
        yield engine


@pytest.fixture(name="redis_url")
def redis_url_fixture(redis: Engine) -> str:
    """A Redis, and a prefix that nobody else has."""
    return f"{redis.url}?prefix=own-{next(_PREFIXES)}"


@pytest.fixture(name="raw")
def raw_fixture(redis: Engine) -> Iterator[Link]:
    """Redis itself."""
    with closing(Link(redis.url)) as link:
        yield link


@pytest.fixture(name="open_swarms")
def open_swarms_fixture(redis_url: str) -> Iterator[OpenSwarms]:
    """Makes trackers' views of the same swarms, with so many seconds between two sweeps."""
    with ExitStack() as stack:

        def make(limits: Limits | None = None, *, pause: int = 0) -> RedisSwarms:
            swarms = RedisSwarms(
                redis_url, limits or Limits(), keep_downloads=True, sweep_seconds=pause
            )
            return stack.enter_context(closing(swarms))

        yield make


@pytest.fixture(scope="session", name="postgres")
def postgres_fixture() -> Iterator[Engine]:
    """A PostgreSQL for all tests that don't end it; each has a schema of its own."""
    with engines.postgres_server() as engine:
        yield engine


@pytest.fixture(name="place", params=["sqlite", "postgres"])
def place_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where an index can be: a directory, or a schema of PostgreSQL that nobody else has."""
    if request.param == "sqlite":
        return tmp_path
    return new_schema(request.getfixturevalue("postgres").url)


def new_schema(url: str) -> str:
    """The URL of a PostgreSQL with a schema that is new."""
    name = f"test_{next(_SCHEMAS)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{url}?options=-csearch_path%3D{name}"


@pytest.fixture(name="index")
def index_fixture(place: Place) -> Iterator[Index]:
    """An empty index."""
    made = Index(place)
    yield made
    made.close()


@pytest.fixture(name="publish")
def publish_fixture(index: Index, acl: Acl) -> Callable[..., bool]:
    """A publisher of items."""

    def publish(item: Item, publisher: int = 1, now: int = 1_700_000_000) -> bool:
        checked = check(item.nar_hash, item.body, acl, (SERVER,))
        return index.publish(checked, publisher.to_bytes(32), now)

    return publish
