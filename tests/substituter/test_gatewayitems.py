# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.gatewayitems."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from narswarm import narinfo
from narswarm.errors import NetworkError
from substituter.gatewayitems import Items
from substituter.settings import SubstituterSettings
from tests.substituter import trackers
from tests.substituter.conftest import Item, Site, World, torrent_of

Make = Callable[..., Item]
Enter = Callable[..., World]


@pytest.fixture
def tracked(settings: SubstituterSettings, site: Site) -> SubstituterSettings:
    """Settings with the site as a tracker."""
    return dataclasses.replace(settings, trackers=(f"{site.url}/announce",))


def test_servers_are_asked_once(enter: Enter, site: Site, make_item: Make) -> None:
    """A name is remembered, and a narinfo kept; so is that there is none."""
    item = make_item("a")
    site.offer(item, "zstd")
    items = Items(enter(f"{site.url}/").context)
    for _ in range(2):
        found = items.by_hash_part(item.hash_part)
        assert found is not None
        assert found.raw.startswith(item.narinfo)
        assert items.by_hash_part("0" * 32) is None
    assert sorted(site.requests) == sorted([f"/{item.hash_part}.narinfo", f"/{'0' * 32}.narinfo"])


def test_a_server_that_names_another_item(enter: Enter, site: Site, make_item: Make) -> None:
    """It isn't believed."""
    a, b = make_item("a"), make_item("b")
    site.offer(b, "zstd")
    site.bodies[f"/{a.hash_part}.narinfo"] = site.bodies[f"/{b.hash_part}.narinfo"]
    assert Items(enter(site.url).context).by_hash_part(a.hash_part) is None


def test_nobody_can_be_asked(enter: Enter) -> None:
    """That isn't a no."""
    items = Items(enter("http://127.0.0.1:9").context)
    with pytest.raises(NetworkError) as caught:
        items.by_hash_part("0" * 32)
    assert str(caught.value) == f"{'0' * 32}: no server answers"


def test_what_only_a_swarm_has(
    enter: Enter, tracked: SubstituterSettings, site: Site, make_item: Make, tmp_path: Path
) -> None:
    """A narinfo without URLs counts if somebody seeds it; the length of the payload is told."""
    item, gone = make_item("a"), make_item("b", b"b")
    trackers.mirror(site, item)
    trackers.mirror(site, gone)
    torrent, payload = torrent_of(item, tmp_path)
    trackers.serve(site, item, torrent)
    items = Items(enter(changed=tracked).context)
    assert items.by_hash_part(gone.hash_part) is None
    found = items.by_hash_part(item.hash_part)
    assert found is not None
    name = item.path[11:]
    assert narinfo.parse(items.render(found), "http://g").sources == (
        narinfo.Source(f"http://g/nar/zstd/{name}", "zstd", payload.stat().st_size),
        narinfo.Source(f"http://g/nar/{name}", "none", len(item.nar)),
    )


def test_names_with_odd_letters(enter: Enter, make_item: Make) -> None:
    """They are quoted in URLs, as they must be there."""
    item = make_item("a?b=c+d")
    rendered = Items(enter("http://127.0.0.1:9").context).render(narinfo.parse(item.narinfo))
    assert b"\nURL: nar/" + item.path[11:43].encode() + b"-a%3Fb%3Dc+d\n" in rendered
