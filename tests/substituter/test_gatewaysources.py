# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.gatewaysources: payloads by a seeder, a swarm and servers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import zstandard

from narswarm import narinfo
from narswarm.errors import NarswarmError, NetworkError
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.narinfo import Narinfo
from substituter.gatewaysources import Attempt, Finding, known_length
from substituter.session import Session
from substituter.settings import SubstituterSettings
from tests.narswarm.fakeseeder import DONE, FakeSeeder, progress, source
from tests.substituter.conftest import COMPRESS, Item, Net, Site, World, torrent_of
from tests.substituter.test_seedersource import offered
from tests.substituter.test_substitute import publish, ranged
from tests.substituter.trackers import infohash

Make = Callable[..., Item]
Enter = Callable[..., World]
Taken = list[tuple[str, int | None, bytes]]


@pytest.fixture
def seeder(tmp_path: Path) -> Iterator[FakeSeeder]:
    """A seeder."""
    (tmp_path / "seeder").mkdir()
    made = FakeSeeder(tmp_path / "seeder")
    yield made
    made.more.set()
    made.server.close()


def signed(site: Site, item: Item) -> Narinfo:
    """An item's narinfo as the server has it."""
    raw = site.bodies[f"/{item.hash_part}.narinfo"]
    assert isinstance(raw, bytes)
    return narinfo.parse(raw, site.url)


def read(attempt: Attempt, seeder: FakeSeeder | None = None) -> bytes:
    """All of a payload."""
    data = b""
    for chunk in attempt.chunks:
        data += chunk
        if seeder is not None:
            seeder.more.set()
    return data


def take(
    world: World, wanted: Narinfo, count: int = 99, seeder: FakeSeeder | None = None
) -> tuple[Taken, list[str]]:
    """What the first attempts give, and why others give nothing."""
    session = Session(world.context.settings, world.warnings.append)
    taken: Taken = []
    errors: list[str] = []
    for context in Finding(world.context, session).attempts(wanted, lambda: True):
        try:
            with context as attempt:
                taken.append((attempt.compression, attempt.length, read(attempt, seeder)))
        except NarswarmError as error:
            errors.append(error.reason)
        if len(taken) == count:
            break
    session.close()
    return taken, errors


def test_servers_give_their_bytes(enter: Enter, site: Site, make_item: Make) -> None:
    """As they are, the compression that restores fastest first; other servers come after."""
    item = make_item("a")
    site.offer(item, "none", "gzip")
    other = Site()
    try:
        other.offer(item, "zstd")
        taken, errors = take(enter(site.url, other.url), signed(site, item))
    finally:
        other.close()
    data = {kind: compress(item.nar) for kind, compress in COMPRESS.items()}
    assert taken == [(kind, len(data[kind]), data[kind]) for kind in ("gzip", "none", "zstd")]
    assert errors == []


def test_a_server_that_fails(enter: Enter, site: Site, make_item: Make) -> None:
    """The others are tried; a plain NAR of which no end can be seen ends where it must."""
    item = make_item("a")
    site.offer(item, "gzip", "none")
    site.bodies.pop(f"/nar/gzip/{item.path[11:]}")

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(item.nar + b"more")

    site.bodies[f"/nar/none/{item.path[11:]}"] = endless
    taken, errors = take(enter(site.url), signed(site, item), 1)
    assert taken == [("none", None, item.nar)]
    assert errors == ["the server answered 404"]


@pytest.mark.parametrize(
    ("policy", "kinds"),
    [("race", ["swarm", "http"]), ("http-first", ["http", "swarm"]), ("swarm-only", ["swarm"])],
)
def test_policies(
    enter: Enter,
    site: Site,
    make_item: Make,
    settings: SubstituterSettings,
    seeder: FakeSeeder,
    policy: str,
    kinds: list[str],
) -> None:
    """Swarms first, unless servers are to be; with swarm-only servers give no NARs."""
    item = make_item("a", os.urandom(1000))
    site.offer(item, "gzip")
    seeder.say(offered(seeder, item), DONE)
    changed = dataclasses.replace(settings, policy=policy, seeder=str(seeder.path))
    taken, errors = take(enter(site.url, changed=changed), signed(site, item))
    names = {"zstd": "swarm", "gzip": "http"}
    assert [names[kind] for kind, _, _ in taken] == kinds
    assert errors == []


def test_a_seeder_that_begins_anew_is_asked_again(
    enter: Enter, site: Site, make_item: Make, settings: SubstituterSettings, seeder: FakeSeeder
) -> None:
    """Another torrent has other bytes: that is another attempt."""
    item = make_item("a", os.urandom(3 << 20))
    site.offer(item, "gzip")
    payload = zstandard.compress(item.nar)
    first = (source("aa", len(payload)), seeder.file(payload))
    second = (source("bb", len(payload)), first[1])
    seeder.say(first, progress(2 << 20), seeder.more, second, DONE)
    changed = dataclasses.replace(settings, seeder=str(seeder.path))
    taken, errors = take(enter(site.url, changed=changed), signed(site, item), 1, seeder)
    assert errors[0] == "another torrent is tried"
    assert len(errors) + len(taken) >= 2


def test_a_swarm(
    enter: Enter, site: Site, make_item: Make, settings: SubstituterSettings, net: Net
) -> None:
    """The payload comes by a session of our own, with the length that the torrent has."""
    item = make_item("a", b"swarm" * 5000)
    site.offer(item, "gzip")
    net.seed(item)
    trackers = (f"{net.tracker.url}/announce",)
    changed = dataclasses.replace(settings, trackers=trackers, private_network=True)
    world = enter(site.url, changed=changed)
    ((kind, length, data),), errors = take(world, signed(site, item), 1)
    assert (kind, length, errors) == ("zstd", len(data), [])
    plain = zstandard.ZstdDecompressor().decompressobj()
    assert plain.decompress(data) == item.nar
    assert known_length(world.context, signed(site, item)) == length


@pytest.mark.parametrize("policy", ["swarm-first", "swarm-only"])
def test_web_seeds(
    enter: Enter,
    site: Site,
    make_item: Make,
    settings: SubstituterSettings,
    net: Net,
    tmp_path: Path,
    policy: str,
) -> None:
    """A directory of the settings, and a server that has its file's torrent: no peer is needed."""
    item, theirs = make_item("a", os.urandom(200_000)), make_item("b", os.urandom(200_000))
    site.offer(item)
    site.offer(theirs, "zstd")
    torrent, payload = torrent_of(item, tmp_path)
    publish(net, item, torrent)
    site.bodies[f"/payloads/{payload.name}"] = ranged(payload.read_bytes())
    data = COMPRESS["zstd"](theirs.nar)
    site.bodies[f"/nar/zstd/{theirs.path[11:]}"] = ranged(data)
    hasher = PieceHasher()
    hasher.update(data)
    publish(net, theirs, Metainfo.of(theirs.path[11:], hasher.finish()).encode())
    changed = dataclasses.replace(
        settings,
        trackers=(f"{net.tracker.url}/announce",),
        web_seeds=(f"{site.url}/payloads/",),
        policy=policy,
        private_network=True,
    )
    world = enter(site.url, changed=changed)
    assert take(world, signed(site, item), 1) == (
        [("zstd", payload.stat().st_size, payload.read_bytes())],
        [],
    )
    if policy == "swarm-only":
        world = enter(site.url, changed=dataclasses.replace(changed, patience=1.0))
    taken, _ = take(world, signed(site, theirs), 1)
    # A server as a web seed is a server all the same.
    assert taken == ([] if policy == "swarm-only" else [("any", len(data), data)])


def test_what_nobody_wants_any_more(
    enter: Enter, site: Site, make_item: Make, settings: SubstituterSettings, seeder: FakeSeeder
) -> None:
    """The seeder isn't waited for."""
    item = make_item("a")
    site.offer(item, "gzip")
    seeder.say()
    changed = dataclasses.replace(settings, seeder=str(seeder.path), first_byte_timeout=99.0)
    world = enter(site.url, changed=changed)
    finding = Finding(world.context, Session(changed, world.warnings.append))
    attempts = finding.attempts(signed(site, item), lambda: False)
    with pytest.raises(NetworkError, match="has found no torrent yet"), next(attempts):
        pass


def test_a_refused_torrent(
    enter: Enter, site: Site, make_item: Make, settings: SubstituterSettings, tmp_path: Path
) -> None:
    """It isn't known any more."""
    item = make_item("a")
    site.offer(item, "gzip")
    world = enter(site.url)
    torrent, payload = torrent_of(item, tmp_path)
    found = signed(site, item)
    assert known_length(world.context, found) is None
    directory = settings.state / "torrents" / payload.name.partition(".")[0]
    directory.mkdir(parents=True)

    (directory / f"{infohash(torrent)}.torrent").write_bytes(torrent)
    assert known_length(world.context, found) == payload.stat().st_size
    Finding(world.context, Session(settings, world.warnings.append)).refuse(
        found, infohash(torrent)
    )
    assert known_length(world.context, found) is None
