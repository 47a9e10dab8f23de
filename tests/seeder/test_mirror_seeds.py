# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.mirror_seeds: what is seeded, what goes, and whose files are touched."""

from __future__ import annotations

import dataclasses
import gzip
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest

from narswarm import base32, gcrypt, metainfo, narinfo
from narswarm.acl import Acl
from narswarm.errors import InvalidInputError, NarswarmError, NotFoundError
from narswarm.gcrypt import KeyPair
from narswarm.metainfo import Metainfo
from narswarm.narinfo import Source
from narswarm.payload import Kind
from narswarm.swarm import Swarm
from narswarm.swarm_events import TorrentStatus
from narswarm.swarm_settings import SwarmSettings
from seeder.eviction import HOT
from seeder.fetching import Local
from seeder.mirror_files import torrent_of
from seeder.mirror_seeds import MirrorSeeds
from seeder.mirror_table import MirrorTable
from seeder.publish_cache import stamp
from tests.seeder.conftest import Made, World

TRACKERS = ("http://t/announce",)


class FakeSwarm:
    """Seeds by heart."""

    def __init__(self) -> None:
        self.seeded: dict[str, Path] = {}
        self.statuses: dict[str, TorrentStatus] = {}

    def seed(self, torrent: bytes, payload: Path, trackers: Sequence[str]) -> str:
        """Remember it."""
        assert tuple(trackers) == TRACKERS
        from narswarm import metainfo

        infohash = metainfo.decode(torrent, "x").infohash_v2.hex()
        self.seeded[infohash] = payload
        self.statuses[infohash] = TorrentStatus(infohash, "x", "seeding")
        return infohash

    def remove(self, infohash: str) -> None:
        """Forget it."""
        if self.seeded.pop(infohash, None) is None:
            raise NotFoundError(infohash, "is not in this session")
        del self.statuses[infohash]

    def status(self) -> list[TorrentStatus]:
        """What the test says."""
        return list(self.statuses.values())


class Bench:
    """Seeds with everything around them in the test's hands."""

    def __init__(self, world: World, quota: int = 1 << 20) -> None:
        self.world = world
        self.directory = world.root / "mirror"
        self.directory.mkdir(exist_ok=True)
        self.now = 1000.0
        self.swarm = FakeSwarm()
        self.published: list[bytes] = []
        self.table = MirrorTable(self.directory, lambda: self.now)
        self.seeds = MirrorSeeds(
            table=self.table,
            directory=self.directory,
            quota=quota,
            swarm=self.swarm,
            trackers=TRACKERS,
            publish=self._publish,
            acl=Acl.load(world.acl),
            clock=lambda: self.now,
        )

    def _publish(self, nar_hash: bytes, trackers: Collection[str]) -> None:
        assert trackers == ()
        assert self.table.find(nar_hash) is not None
        assert self.seeds.infohash(nar_hash) is None  # it comes first
        self.published.append(nar_hash)

    def adopt(self, made: Made) -> Metainfo:
        """A file that was fetched."""
        data = gzip.compress(made.nar)
        part = self.directory / "x.part"
        part.write_bytes(data)
        meta = torrent_of(iter([data]), made.parsed)
        self.seeds.adopt(part, meta, made.parsed)
        return meta

    def use(self, made: Made) -> Path:
        """A file of somebody else."""
        path = self.world.root / f"{made.item.order}.nar"
        path.write_bytes(made.nar)
        meta = torrent_of(iter([made.nar]), made.parsed)
        self.seeds.use(path, stamp(path), meta, made.parsed)
        return path


@pytest.fixture
def bench(world: World) -> Iterator[Bench]:
    """Nothing is seeded yet."""
    made = Bench(world)
    yield made
    made.table.close()


def test_a_file_is_seeded(bench: Bench, world: World) -> None:
    """From our directory, published first, with the narinfo that vouches for it."""
    made = world.make()
    nar_hash = made.item.nar_hash
    meta = bench.adopt(made)
    path = bench.directory / f"{base32.encode(nar_hash)}.file"
    infohash = meta.infohash_v2.hex()
    assert bench.swarm.seeded == {infohash: path}
    assert (bench.seeds.has(nar_hash), len(bench.seeds)) == (True, 1)
    assert (bench.seeds.infohash(nar_hash), bench.seeds.infohashes()) == (infohash, [infohash])
    assert bench.published == [nar_hash]
    row = bench.table.find(nar_hash)
    assert row is not None
    assert b"URL: https://server.example.org/nar/" in row.narinfo
    assert bench.seeds.local(nar_hash) == Local(path, infohash, Kind.SERVER, meta.length)
    assert bench.seeds.local(bytes(32)) is None
    path.write_bytes(b"")
    assert bench.seeds.local(nar_hash) is None


def test_a_torrent_for_other_clients(bench: Bench, world: World) -> None:
    """It names the trackers, and the server as web seed, if the server has this very file."""
    made = world.make()
    length = len(gzip.compress(made.nar))
    name = made.path.rpartition("/")[2]
    sources = [Source(f"nar/{kind}/{name}", kind, length) for kind in ("gzip", "zstd")]
    sources[1] = dataclasses.replace(sources[1], file_size=9)
    raw = narinfo.with_sources(made.narinfo, sources)
    meta = bench.adopt(made._replace(narinfo=raw))
    file = bench.directory / f"{base32.encode(made.item.nar_hash)}.torrent"
    torrent = file.read_bytes()
    assert metainfo.decode(torrent, "x") == meta
    assert metainfo.decode_outside(torrent, "x") == (
        TRACKERS,
        ("https://server.example.org/nar/gzip/",),
        made.path,
    )
    bench.seeds.withdraw(made.item.nar_hash, meta.infohash_v2.hex())
    assert not file.exists()


def test_a_file_from_a_swarm(bench: Bench, world: World) -> None:
    """It is renamed into our directory, if it has the item's name and there is room."""
    made = world.make()
    data = gzip.compress(made.nar)
    path = world.root / "fetched"
    path.write_bytes(data)
    meta = torrent_of(iter([data]), made.parsed)
    other = dataclasses.replace(meta, name=f"{'0' * 32}-other")
    with pytest.raises(InvalidInputError) as caught:
        bench.seeds.take(path, other.encode(), made.parsed)
    assert str(caught.value) == f"{other.name}: is not what a server calls {made.path}"
    taken = bench.seeds.take(path, meta.encode(), made.parsed)
    assert list(bench.swarm.seeded.values()) == [taken]
    assert not path.exists()
    with pytest.raises(NarswarmError) as gone:
        bench.seeds.take(path, meta.encode(), made.parsed)
    assert str(gone.value) == f"{path}: No such file or directory"
    bench.table.close()
    small = Bench(world, quota=len(data) - 1)
    assert small.seeds.take(path, meta.encode(), made.parsed) is None
    small.table.close()


def test_no_peer_is_harmed_by_a_file_that_goes(bench: Bench, world: World) -> None:
    """Whoever asks for it before that is noticed gets it from others."""
    made = world.make(content=os.urandom(300_000))
    settings = SwarmSettings(
        listen=("127.0.0.1:0",), dht=False, lsd=False, upnp=False, private_network=True
    )
    data = gzip.compress(made.nar)
    copy = world.root / "copy"
    copy.write_bytes(data)
    torrent = torrent_of(iter([data]), made.parsed).encode()
    seeding = dataclasses.replace(settings, role="seed")
    with Swarm(seeding) as first, Swarm(seeding) as second, Swarm(settings) as leecher:
        bench.seeds._swarm = first
        place = world.root / "place.nar"
        place.write_bytes(data)
        meta = metainfo.decode(torrent, "x")
        bench.seeds._trackers = ()
        bench.seeds.use(place, stamp(place), meta, made.parsed)
        place.unlink()
        second.seed(torrent, copy, [])
        peers = [("127.0.0.1", first.listen_port), ("127.0.0.1", second.listen_port)]
        fetched = leecher.fetch(torrent, world.root / "fetched", peers=peers)
        assert b"".join(fetched.chunks(stall=lambda progress: progress.idle > 120)) == data
        bench.seeds.check()
        assert first.status() == []
        assert not place.exists()


def test_a_restart(bench: Bench, world: World) -> None:
    """What is there is seeded again; what is lost, changed or of no use goes."""
    kept, lost, changed = (world.make(content=b"%d" % number) for number in range(3))
    metas = [bench.adopt(made) for made in (kept, lost, changed)]
    place = bench.use(world.make(content=b"place"))
    gone = bench.use(world.make(content=b"gone"))
    paths = [bench.swarm.seeded[meta.infohash_v2.hex()] for meta in metas]
    paths[1].unlink()
    os.utime(paths[2], (1, 1))
    gone.unlink()
    (bench.directory / "left.file").write_bytes(b"by a seeder that was killed")
    (bench.directory / "half.part").write_bytes(b"to be continued")
    bench.table.close()
    again = Bench(world)
    again.seeds.restore()
    assert sorted(again.swarm.seeded.values()) == sorted([paths[0], place])
    assert sorted(
        path.name
        for path in again.directory.iterdir()
        if path.suffix not in (".sqlite", ".torrent")
    ) == [
        *sorted([paths[0].name, "half.part"]),
        *(name for name in ("mirror.sqlite-shm", "mirror.sqlite-wal")),
    ]
    assert again.published == []
    again.table.close()


def test_a_file_in_place(bench: Bench, world: World) -> None:
    """It is neither copied nor counted, and it is never removed."""
    made = world.make()
    path = bench.use(made)
    assert list(bench.swarm.seeded.values()) == [path]
    assert (bench.table.used(), bench.seeds.in_place()) == (0, {str(path)})
    bench.seeds.check()
    assert len(bench.seeds) == 1
    bench.seeds.withdraw(made.item.nar_hash, "ab" * 32)
    assert len(bench.seeds) == 1
    bench.seeds.withdraw(made.item.nar_hash, bench.seeds.infohashes()[0])
    assert (len(bench.seeds), bench.swarm.seeded) == (0, {})
    assert path.read_bytes() == made.nar


@pytest.mark.parametrize("how", ["deleted", "replaced", "link"])
def test_a_file_in_place_that_goes(bench: Bench, world: World, how: str) -> None:
    """Its torrent is taken out of its swarm, and whatever is there now isn't touched."""
    made = world.make()
    path = bench.use(made)
    path.rename(world.root / "elsewhere")
    if how == "replaced":
        path.write_bytes(b"another")
    elif how == "link":
        path.symlink_to(world.root / "elsewhere")
    bench.seeds.check()
    assert (len(bench.seeds), bench.swarm.seeded, bench.table.count()) == (0, {}, 0)
    assert (how != "deleted") == os.path.lexists(path)


def test_a_file_that_changes_while_it_is_read(bench: Bench, world: World) -> None:
    """It isn't used: its torrent may be that of two files."""
    made = world.make()
    path = world.root / "x.nar"
    path.write_bytes(made.nar)
    meta = torrent_of(iter([made.nar]), made.parsed)
    with pytest.raises(InvalidInputError) as caught:
        bench.seeds.use(path, "before", meta, made.parsed)
    assert str(caught.value) == f"{path}: has changed while it was read"


def test_a_damaged_file(bench: Bench, world: World) -> None:
    """A peer found that out; it is removed, so that it is fetched again."""
    meta = bench.adopt(world.make())
    infohash = meta.infohash_v2.hex()
    path = bench.swarm.seeded[infohash]
    bench.swarm.statuses[infohash] = TorrentStatus(infohash, "x", "downloading", error="bad")
    bench.seeds.check()
    assert (len(bench.seeds), path.exists(), bench.table.count()) == (0, False, 0)


def test_another_file_of_the_same_nar(bench: Bench, world: World) -> None:
    """The new one takes the place of the old one."""
    made = world.make()
    bench.use(made)
    meta = bench.adopt(made)
    assert list(bench.swarm.seeded) == [meta.infohash_v2.hex()]
    assert (bench.table.count(), bench.seeds.in_place()) == (1, set())


def test_room(world: World) -> None:
    """What is followed no more makes room; as long as that isn't known, nothing does."""
    items = [world.make(content=os.urandom(1000)) for _ in range(3)]
    bench = Bench(world, quota=3000)
    lengths = [bench.adopt(made).length for made in items[:2]]
    bench.now += HOT
    assert bench.seeds.make_room(3000 - sum(lengths))
    needed = 3000 - sum(lengths) + 1
    assert not bench.seeds.make_room(needed)
    bench.seeds.wanted = frozenset(made.item.nar_hash for made in items)
    assert not bench.seeds.make_room(needed)
    bench.seeds.wanted = frozenset([items[0].item.nar_hash])
    assert not bench.seeds.make_room(3001)
    assert len(bench.seeds) == 2
    sending = bench.seeds.infohash(items[1].item.nar_hash) or ""
    idle = bench.swarm.statuses[sending]
    bench.swarm.statuses[sending] = TorrentStatus(sending, "x", "seeding", upload_rate=1)
    assert not bench.seeds.make_room(needed)
    bench.swarm.statuses[sending] = idle
    assert bench.seeds.make_room(needed)
    assert bench.seeds.has(items[0].item.nar_hash)
    assert not bench.seeds.has(items[1].item.nar_hash)
    bench.table.close()


def test_what_broke_off_takes_room(world: World) -> None:
    """Of other files; and it goes when it is followed no more."""
    bench = Bench(world, quota=1000)
    followed, other = world.make(content=b"1"), world.make(content=b"2")
    parts = []
    for made in (followed, other):
        part = bench.directory / f"{base32.encode(made.item.nar_hash)}.part"
        part.write_bytes(bytes(300))
        part.with_suffix(".note").write_text("x")
        parts.append(part)
    assert bench.seeds.make_room(700, followed.item.nar_hash)
    assert not bench.seeds.make_room(701, followed.item.nar_hash)
    assert not bench.seeds.make_room(401)
    bench.seeds.tidy()
    assert [part.exists() for part in parts] == [True, True]
    bench.seeds.wanted = frozenset([followed.item.nar_hash])
    bench.seeds.tidy()
    assert [part.exists() for part in parts] == [True, False]
    assert not parts[1].with_suffix(".note").exists()
    assert bench.seeds.make_room(1000, followed.item.nar_hash)
    bench.table.close()


def test_what_was_sent(bench: Bench, world: World) -> None:
    """It is counted once, and says how many others have the file."""
    infohash = bench.adopt(world.make()).infohash_v2.hex()
    for uploaded in (0, 5, 5, 9):
        bench.swarm.statuses[infohash] = TorrentStatus(
            infohash, "x", "seeding", uploaded=uploaded, complete=3
        )
        bench.seeds.count()
    (payload,) = bench.table.payloads()
    assert (payload.uploaded, payload.others) == (9, 2)


def test_whom_to_believe(bench: Bench, world: World, signer: KeyPair) -> None:
    """Without an authorised signature nothing is seeded, nor any more once it is withdrawn."""
    made = world.make()
    world.signer = gcrypt.generate_key()
    other = world.make()
    world.signer = signer
    with pytest.raises(InvalidInputError) as caught:
        bench.adopt(other)
    assert str(caught.value) == f"{other.path}: has a narinfo with the verdict unauthorized-key"
    with pytest.raises(InvalidInputError):
        bench.use(other)
    assert len(bench.seeds) == 0
    bench.adopt(made)
    path = bench.use(world.make(content=b"other"))
    bench.seeds.rejudge(Acl.load(world.acl))
    assert len(bench.seeds) == 2
    bench.seeds.rejudge(Acl.parse(b"(acl)", "none"))
    assert (len(bench.seeds), bench.swarm.seeded, bench.table.count()) == (0, {}, 0)
    assert path.exists()
    assert list(bench.directory.glob("*.file")) == []
