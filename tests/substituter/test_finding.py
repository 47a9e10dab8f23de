# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.finding; what it finds of torrents is tested with what substitutes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from narswarm import base32, narinfo
from substituter.ahead import Ahead
from substituter.finding import Finder
from substituter.race import Way
from substituter.session import Session
from substituter.settings import SubstituterSettings
from substituter.spool import Spool
from tests.substituter.conftest import Item, Net, Site, World

Enter = Callable[..., World]
Make = Callable[..., Item]

TRACKER = ("http://127.0.0.1:9/announce",)


@contextmanager
def finder(world: World) -> Iterator[tuple[Finder, Session]]:
    """One as a helper has it, and its session."""
    session = Session(world.context.settings, world.context.warn)
    try:
        yield Finder(world.context, session), session
    finally:
        session.close()


@pytest.mark.parametrize(
    ("changes", "served", "ways"),
    [
        ({}, True, {Way.HTTP}),
        ({"trackers": TRACKER}, True, {Way.HTTP, Way.SWARM}),
        ({"trackers": TRACKER}, False, {Way.SWARM}),
        ({"trackers": TRACKER, "policy": "swarm-only"}, True, {Way.SWARM}),
        ({"trackers": TRACKER, "seeder": "/nowhere"}, True, {Way.HTTP}),
        ({}, False, set()),
    ],
)
def test_ways_of_an_item(
    enter: Enter,
    settings: SubstituterSettings,
    site: Site,
    make_item: Make,
    changes: dict[str, object],
    ways: set[Way],
    *,
    served: bool,
) -> None:
    """A server that has it, somebody who may know a torrent; swarms are a seeder's if there is."""
    item = make_item("a")
    site.offer(item, *(["none"] if served else []))
    body = site.bodies[f"/{item.hash_part}.narinfo"]
    assert isinstance(body, bytes)
    world = enter(changed=dataclasses.replace(settings, **changes))  # type: ignore[arg-type]
    with finder(world) as (found, _):
        assert found.ways(narinfo.parse(body, site.url)) == ways


def test_servers_are_asked_in_the_order_of_compressions(
    enter: Enter, site: Site, make_item: Make
) -> None:
    """Ahead as in a race."""
    item = make_item("a")
    site.offer(item, "none", "gzip", "zstd")
    body = site.bodies[f"/{item.hash_part}.narinfo"]
    assert isinstance(body, bytes)
    with finder(enter()) as (found, _):
        keys = [source.key for source in found.ahead(narinfo.parse(body, site.url), Way.HTTP)]
    assert [key.split("/")[-2] for key in keys] == ["zstd", "gzip", "none"]


def test_a_payload_that_was_fetched_ahead_is_seeded(
    enter: Enter, settings: SubstituterSettings, net: Net, make_item: Make
) -> None:
    """Others get it from here until this process ends, and nothing is left afterwards."""
    item = make_item("a", bytes(range(256)) * 4096)
    infohash = net.seed(item)
    world = enter(changed=dataclasses.replace(settings, trackers=(f"{net.tracker.url}/announce",)))
    parsed = narinfo.parse(item.narinfo)
    with finder(world) as (found, session):
        file = Spool(session.downloads, 1 << 30).open("a", len(item.nar))
        assert file is not None
        ahead = Ahead(parsed, Way.SWARM, file)
        ahead.fetch(found.ahead(parsed, Way.SWARM))
        assert b"".join(file.chunks()) == item.nar
        file.close()
        assert [each.infohash for each in session.swarm().status()] == [infohash]
        payloads = [path.name for path in session.ahead.iterdir()]
        assert payloads == [f"{base32.encode(item.nar_hash)}.nar.zst"]
        directory = session.ahead
    assert not directory.exists()
