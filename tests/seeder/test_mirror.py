# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.mirror: what is fetched, what isn't asked twice, what the operator sees."""

from __future__ import annotations

import errno
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from narswarm import gcrypt, narinfo
from narswarm.acl import Acl
from narswarm.errors import InvalidInputError, NarswarmError, NotFoundError, SettingsError
from narswarm.httpclient import HttpClient
from narswarm.narinfo import Narinfo, Source
from narswarm.narinfos import NarinfoLookup
from narswarm.payload import max_length
from seeder.mirror import INTERVAL, MAX_MISSES, RETRY, Mirror, choose
from seeder.mirror_files import SCRAPS, Downloader
from seeder.mirror_rules import Rule, parse
from seeder.mirror_table import FIRST_RETRY
from tests.seeder.conftest import Made, World
from tests.seeder.mirrorworld import FileServer
from tests.seeder.test_mirror_seeds import Bench as Seeds
from tests.seeder.test_publish_cache import bake


class Bench:
    """A mirror whose time and server are the test's."""

    def __init__(self, world: World, rules: Sequence[str] = (), quota: int = 1 << 20) -> None:
        self.world = world
        self.server = FileServer()
        self.client = HttpClient(10.0)
        self.seeds = Seeds(world, quota)
        self.stopping = False
        self.paused = 0.0
        self.cache = world.root / "cache"
        self.cache.mkdir()
        self.mirror = Mirror(
            table=self.seeds.table,
            seeds=self.seeds.seeds,
            downloader=Downloader(
                self.client, self.seeds.directory, 0, self.pause, lambda: self.seeds.now
            ),
            rules=[parse(f"{self.server.url} {rule}") for rule in rules],
            cache=self.cache,
            lookup=lambda server, acl: NarinfoLookup(self.client, [server], acl),
            acl=Acl.load(world.acl),
            narinfo_rate=10.0,
            pause=self.pause,
            clock=lambda: self.seeds.now,
        )

    def pause(self, seconds: float) -> bool:
        """Take time."""
        self.paused += seconds
        return self.stopping

    def run(self, later: float = 0.0) -> str:
        """Do what is due, maybe later; what the operator is told of it."""
        self.seeds.now += later
        try:
            self.mirror.run()
        except NarswarmError as error:
            return str(error)
        return ""

    def asked(self) -> list[str]:
        """The paths that the server was asked for since the last time."""
        asked = [path for path, *_ in self.server.asked]
        self.server.asked.clear()
        return asked

    def followed(self) -> set[bytes] | None:
        """NAR hashes of what is followed, if that is known."""
        wanted = self.seeds.seeds.wanted
        return None if wanted is None else set(wanted)

    def follow(self, *words: str, forget: bool = False) -> None:
        """What `seeder mirror` does."""
        rule = " ".join([self.server.url, *words])
        self.mirror.change({"rule": rule, "forget": forget})

    def close(self) -> None:
        """End it all."""
        self.server.close()
        self.client.close()
        self.mirror.close()


@pytest.fixture
def bench(world: World) -> Iterator[Bench]:
    """A mirror without rules."""
    made = Bench(world)
    yield made
    made.close()


def referring(world: World, made: Made, *references: Made) -> Made:
    """The same item, which refers to others."""
    unsigned = narinfo.compose(
        made.path, made.item.nar_hash, made.item.nar_size, [each.path for each in references]
    )
    return made._replace(narinfo=narinfo.sign(unsigned, world.signer, "example.org"))


def name(made: Made) -> str:
    """The base name."""
    return made.path.rpartition("/")[2]


def test_a_closure(bench: Bench, world: World) -> None:
    """It is fetched once, seeded, and the server isn't asked again for what is here."""
    leaf = world.make("leaf", b"leaf")
    top = referring(world, world.make("top", b"top"), leaf)
    for each in (leaf, top):
        bench.server.offer(each)
    bench.follow("closure", top.path)
    assert bench.run() == ""
    assert bench.asked() == [
        f"/{name(top)[:32]}.narinfo",
        f"/nar/gzip/{name(top)}",
        f"/{name(leaf)[:32]}.narinfo",
        f"/nar/gzip/{name(leaf)}",
    ]
    assert bench.paused == pytest.approx(0.2)  # two narinfos at ten a second
    assert len(bench.seeds.seeds) == 2
    paths = sorted(path.read_bytes() for path in bench.seeds.swarm.seeded.values())
    assert paths == sorted(gzip.compress(each.nar) for each in (leaf, top))
    bench.run(INTERVAL)
    assert bench.asked() == []
    assert bench.mirror.status() == {
        "rules": [f"{bench.server.url} closure {top.path}"],
        "files": 2,
        "in_place": 0,
        "bytes": sum(map(len, paths)),
        "max_disk": 1 << 20,
        "missing": 0,
        "full": "",
        "failures": [],
    }


def test_when_it_looks(bench: Bench, world: World) -> None:
    """At all rules once an hour, sooner after a failure, and at once when one comes or goes."""
    made = world.make()
    bench.run()
    bench.server.offer(made)
    bench.follow(made.path)
    bench.run()
    assert len(bench.seeds.seeds) == 1
    other = world.make(content=b"other")
    bench.follow(other.path)
    assert bench.run() == ""
    assert (bench.mirror.status()["missing"], bench.asked()[2:]) == (
        1,
        [f"/{name(other)[:32]}.narinfo"],
    )
    bench.server.offer(other)
    bench.run(INTERVAL - 1)
    assert bench.asked() == []
    bench.mirror.paused = True
    bench.run(1)
    assert bench.asked() == []
    bench.mirror.paused = False
    bench.run()
    assert len(bench.seeds.seeds) == 2


def test_a_server_that_is_gone(bench: Bench, world: World) -> None:
    """What is here stays; what isn't is tried again later, and nothing makes room meanwhile."""
    one, two = world.make(content=b"1"), world.make(content=b"2")
    bench.server.offer(one)
    bench.follow(one.path)
    bench.run()
    assert bench.followed() == {one.item.nar_hash}
    bench.follow(two.path)
    bench.server.close()
    bench.client.close()
    assert bench.run() == f"{bench.server.url}: can't be reached"
    assert len(bench.seeds.seeds) == 1
    assert bench.followed() is None
    assert bench.run(RETRY - 1) == ""
    assert bench.run(1) == f"{bench.server.url}: can't be reached"


def test_a_server_that_has_enough(bench: Bench, world: World) -> None:
    """It is left alone for as long as it says, with everything that it has."""
    items = [world.make(content=b"%d" % number) for number in range(3)]
    for made in items:
        bench.server.offer(made)
    bench.follow(*(made.path for made in items))
    narinfos = {path: body for path, body in bench.server.files.items() if "/nar/" not in path}
    find = bench.mirror._finder(bench.server.url)
    find([made.path for made in items])
    assert len(narinfos) == 3
    bench.asked()
    infos = find([made.path for made in items])
    bench.server.status, bench.server.fields = 503, {"Retry-After": "1000"}
    with pytest.raises(NarswarmError) as busy:
        bench.mirror._obtain(bench.server.url, infos[items[0].path])
    assert str(busy.value).endswith(": the server answered 503")
    bench.server.status = 0
    bench.asked()
    with pytest.raises(NarswarmError) as left:
        bench.mirror._obtain(bench.server.url, infos[items[1].path])
    assert str(left.value) == f"{bench.server.url}: is left alone for a while"
    assert bench.asked() == []
    bench.seeds.now += 1000
    assert bench.mirror._obtain(bench.server.url, infos[items[1].path])
    assert bench.mirror.status()["failures"] == []


def test_a_wrong_file(bench: Bench, world: World) -> None:
    """It is thrown away, never announced, and not fetched again soon."""
    made = world.make()
    bench.server.offer(made, gzip.compress(b"another NAR"))
    bench.follow(made.path)
    assert bench.run() == ""
    url = f"{bench.server.url}/nar/gzip/{name(made)}"
    assert bench.mirror.status()["failures"] == [
        f"{url}: has another NAR at the server than is signed"
    ]
    assert (bench.seeds.published, bench.seeds.swarm.seeded) == ([], {})
    directory = bench.seeds.directory
    assert [path.suffix for path in directory.iterdir() if path.suffix in SCRAPS] == [".wrong"]
    bench.server.offer(made)
    bench.server.validator = ("ETag", '"2"')
    bench.asked()
    bench.mirror.poke()
    bench.run(FIRST_RETRY - 1)
    assert not any("/nar/" in path for path in bench.asked())
    bench.mirror.poke()
    bench.run(1)
    assert len(bench.seeds.seeds) == 1
    assert bench.mirror.status()["failures"] == []
    assert [path for path in directory.iterdir() if path.suffix in SCRAPS] == []


def test_what_is_known_of_wrong_files_goes(bench: Bench, world: World) -> None:
    """When nothing follows them any more."""
    made = world.make()
    bench.server.offer(made, gzip.compress(b"another NAR"))
    bench.follow(made.path)
    bench.run()
    bench.follow(made.path, forget=True)
    bench.run()
    assert [path for path in bench.seeds.directory.iterdir() if path.suffix in SCRAPS] == []


def test_a_server_without_any_good_file(bench: Bench, world: World) -> None:
    """It isn't asked for all that it has before it is left alone; what it has is tried later."""
    items = [world.make(content=b"%d" % number) for number in range(MAX_MISSES + 2)]
    for made in items:
        bench.server.offer(made, b"damaged")
    bench.follow(*(made.path for made in items))
    assert bench.run() == f"{bench.server.url}: gives no file that is of use"
    assert len([path for path in bench.asked() if "/nar/" in path]) == MAX_MISSES
    bench.server.offer(items[-1])
    # Those that failed are tried again first, but less and less often.
    tries = 0
    while not bench.seeds.seeds.has(items[-1].item.nar_hash):
        bench.run(RETRY)
        tries += 1
        assert tries < 10
    assert len([path for path in bench.asked() if "/nar/" in path]) <= tries * (MAX_MISSES + 1)


def test_narinfos_that_nobody_vouches_for(bench: Bench, world: World) -> None:
    """They are as if the server had none."""
    world.signer = gcrypt.generate_key()
    made = world.make()
    bench.server.offer(made)
    bench.follow(made.path)
    assert bench.run() == ""
    assert bench.asked() == [f"/{name(made)[:32]}.narinfo"]
    assert bench.mirror.status()["missing"] == 1


def test_a_full_quota(world: World) -> None:
    """What is followed stays; the rest waits, and the operator sees it."""
    bench = Bench(world, quota=400)
    items = [world.make(content=bytes([number]) * 10) for number in range(9)]
    for made in items:
        bench.server.offer(made)
    bench.follow(*(made.path for made in items))
    bench.run()
    state = bench.mirror.status()
    assert 0 < state["files"] < 9
    assert state["bytes"] <= 400
    assert state["full"].startswith("no room for /gnu/store/")
    assert state["missing"] == 9 - state["files"]
    bench.close()


def test_a_full_disk(bench: Bench, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told like a full quota; another error of the disk is an error."""
    made = world.make()
    bench.server.offer(made)
    bench.follow(made.path)

    def fail(*_: object) -> Path:
        raise OSError(number, "text")

    monkeypatch.setattr(Downloader, "fetch", fail)
    number = errno.ENOSPC
    assert bench.run() == ""
    assert bench.mirror.status()["full"] == f"no room for {made.path}"
    number = errno.EIO
    bench.mirror.poke()
    with pytest.raises(OSError, match="text"):
        bench.run()


def test_rules(world: World) -> None:
    """Those of the settings stay; others come and go, and last."""
    one, two = world.make(), world.make(content=b"2")
    bench = Bench(world, [one.path])
    url = bench.server.url
    bench.follow(two.path)
    assert bench.mirror.rules() == [parse(f"{url} {one.path}"), parse(f"{url} {two.path}")]
    assert bench.mirror.change({"rule": f"{url} {two.path}"}) == {
        "rule": f"{url} {two.path}",
        "changed": False,
    }
    bench.follow(two.path, forget=True)
    assert [str(rule) for rule in bench.mirror.rules()] == [f"{url} {one.path}"]
    with pytest.raises(InvalidInputError) as fixed:
        bench.follow(one.path, forget=True)
    assert str(fixed.value) == f"{url} {one.path}: is in the settings"
    with pytest.raises(SettingsError):
        bench.follow("nonsense")
    assert isinstance(bench.mirror.rules()[0], Rule)
    bench.close()


def test_a_manifest_that_is_gone(bench: Bench) -> None:
    """It is told, and keeps nothing from being done."""
    bench.follow("manifest", "/nonexistent/list")
    assert bench.run() == "/nonexistent/list: No such file or directory"


def test_a_seeder_that_ends(bench: Bench, world: World) -> None:
    """It stops between two steps, with nothing half done, and goes on the next time."""
    made = world.make()
    bench.server.offer(made)
    bench.follow(made.path)
    bench.stopping = True
    assert bench.run() == ""
    assert bench.asked() == []
    bake(bench.cache, world.make(content=b"baked"))
    assert bench.run() == ""
    assert len(bench.seeds.seeds) == 0


def test_the_cache_of_guix_publish(bench: Bench, world: World) -> None:
    """What is vouched for is seeded where it is, each NAR once, and what came later, too."""
    made = world.make()
    path = bake(bench.cache, made, "none")
    before = path.stat()
    bench.run()
    assert list(bench.seeds.swarm.seeded.values()) == [path]
    assert bench.seeds.published == [made.item.nar_hash]
    row = bench.seeds.table.find(made.item.nar_hash)
    assert row is not None
    assert b"URL" not in row.narinfo
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    later = world.make(content=b"later")
    bake(bench.cache, later, "none")
    bench.run()
    assert len(bench.seeds.seeds) == 2
    path.unlink()
    bench.seeds.seeds.check()
    bench.run()
    assert list(bench.seeds.swarm.seeded.values()) == [bench.cache / "none" / f"{name(later)}.nar"]
    assert bench.asked() == []


def test_what_of_a_cache_is_not_used(bench: Bench, world: World, signer: Any) -> None:
    """What nobody vouches for, and what is damaged, which isn't looked at twice."""
    good = world.make(content=b"good")
    damaged = bake(bench.cache, good, "none")
    damaged.write_bytes(good.nar[:-1])
    twin = world.make(content=b"twin")
    bake(bench.cache, twin, "none")
    world.signer = gcrypt.generate_key()
    bake(bench.cache, world.make(content=b"private"), "none")
    world.signer = signer
    assert bench.run() == ""
    assert bench.seeds.published == [twin.item.nar_hash]
    assert len(bench.mirror._refused) == 2
    damaged.write_bytes(good.nar)
    bench.run()
    assert good.item.nar_hash in bench.seeds.published
    bench.mirror.rejudge(Acl.load(world.acl))
    assert bench.mirror._refused == {}


def test_a_cache_that_is_gone(bench: Bench) -> None:
    """The operator is told, and the rules are followed all the same."""
    bench.cache.rmdir()
    assert bench.run() == f"{bench.cache}: No such file or directory"
    assert bench.followed() == set()


SERVER = "https://server.example.org"


@pytest.mark.parametrize(
    ("sources", "chosen"),
    [
        ([("nar/gzip/NAME", "gzip"), ("nar/lzip/NAME", "lzip"), ("nar/zstd/NAME", "zstd")], "zstd"),
        ([("nar/gzip/NAME", "gzip"), ("nar/lzip/NAME", "lzip")], "lzip"),
        ([("nar/NAME", "none")], "none"),
        ([("nar/xz/NAME", "xz")], None),
        ([("nar/zstd/other", "zstd")], None),
        ([("nar/zstd/NAME?x", "zstd")], None),
        ([], None),
    ],
)
def test_choice(world: World, sources: list[tuple[str, str]], chosen: str | None) -> None:
    """Of several files the one that decompresses fastest, if it is called like the item."""
    made = world.make("a+b")
    encoded = name(made).replace("+", "%2B")
    known = [Source(url.replace("NAME", encoded), kind, 9) for url, kind in sources]
    source = choose(_with(made, known))
    assert (source and source.compression) == chosen


@pytest.mark.parametrize(("excess", "fits"), [(0, True), (1, False)])
def test_choice_by_size(world: World, excess: int, fits: bool) -> None:
    """A file that is longer than it can be isn't asked for."""
    made = world.make()
    size = max_length(made.item.nar_size) + excess
    source = choose(_with(made, [Source(f"nar/{name(made)}", "zstd", size)]))
    assert (source is not None) is fits


def _with(made: Made, sources: list[Source]) -> Narinfo:
    return narinfo.parse(narinfo.with_sources(made.narinfo, sources), SERVER)


def test_nothing_is_asked_of_what_is_not_mirrored(bench: Bench) -> None:
    """A seeder without rules and without a file answers like that."""
    assert bench.seeds.seeds.local(bytes(32)) is None
    with pytest.raises(NotFoundError):
        bench.seeds.table.get(bytes(32))
