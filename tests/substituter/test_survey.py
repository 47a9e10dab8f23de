# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.survey, with a server and trackers on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from narswarm import base32
from narswarm.acl import Acl
from narswarm.httpclient import HttpClient
from narswarm.narinfo import Verdict
from narswarm.payload import file_name
from substituter.settings import SubstituterSettings
from substituter.survey import BATCH, NOBODY, Survey, Swarm
from tests.substituter import trackers
from tests.substituter.conftest import Item, Site, torrent_of

Make = Callable[..., Item]


@pytest.fixture
def survey(settings: SubstituterSettings) -> Iterator[Callable[..., Survey]]:
    """Makes surveys of servers and trackers."""
    with HttpClient(5.0) as client:
        yield lambda servers, trackers=(), web_seeds=(): Survey(
            client, servers, trackers, Acl.load(settings.acl), 10.0, web_seeds
        )


def test_everything_that_is_said(
    survey: Callable[..., Survey], site: Site, make_item: Make
) -> None:
    """Servers come first; what isn't authorised is there with its verdict."""
    a, b = make_item("a"), make_item("b", b"b")
    site.offer(a, "zstd")
    trackers.mirror(site, a)
    unsigned = b.narinfo.replace(b"Signature", b"Remark")
    site.bodies[f"/{b.hash_part}.narinfo"] = unsigned
    made = survey([f"{site.url}/"], [site.url])
    said = made.narinfos([a.path, b.path])
    assert [(each.source, each.verdict) for each in said[b.path]] == [(site.url, Verdict.UNSIGNED)]
    # The same machine may be both, and is asked for both.
    assert [(each.source, each.is_mirror) for each in said[a.path]] == [
        (site.url, False),
        (f"{site.url}/announce", True),
    ]
    assert all(each.verdict is Verdict.VALID_SIGNATURE for each in said[a.path])
    assert made.silent == {}


def test_many_items_are_asked_in_batches(
    survey: Callable[..., Survey], site: Site, make_item: Make
) -> None:
    """One more than fits into a batch is asked for, too, and each answer is its own item's."""
    items = [make_item(f"i{number}") for number in range(BATCH + 1)]
    for item in items:
        site.offer(item, "none")
    said = survey([site.url]).narinfos(item.path for item in items)
    assert [each[0].narinfo.store_path for each in said.values()] == [i.path for i in items]
    assert len(site.requests) == BATCH + 1


def test_another_items_narinfo_is_not_an_answer(
    survey: Callable[..., Survey], site: Site, make_item: Make
) -> None:
    """A signature is one for its own path."""
    a, b = make_item("a"), make_item("b", b"b")
    site.bodies[f"/{a.hash_part}.narinfo"] = b.narinfo
    assert survey([site.url]).narinfos([a.path]) == {a.path: []}


def test_who_does_not_answer_is_named(survey: Callable[..., Survey], make_item: Make) -> None:
    """The others' answers aren't waited for in vain."""
    made = survey(["http://127.0.0.1:9"])
    assert made.narinfos([make_item("a").path]) == {make_item("a").path: []}
    assert made.silent == {"http://127.0.0.1:9": "connection refused"}
    assert made.heard == set()


def test_swarms_and_who_would_seed(
    survey: Callable[..., Survey], site: Site, make_item: Make, tmp_path: Path
) -> None:
    """Seeds of the best torrent, and how many have the item without seeding it yet."""
    a, b, c = make_item("a"), make_item("b", b"b"), make_item("c", b"c")
    torrent, payload = torrent_of(a, tmp_path)
    trackers.serve(site, a, torrent)
    site.bodies[f"/v1/nar/{base32.encode(b.nar_hash)}"] = json.dumps(
        {
            "nar_hash": base32.format_hash(b.nar_hash),
            "nar_size": None,
            "torrents": [],
            "holders": 3,
        }
    ).encode()
    made = survey([], [site.url])
    assert made.swarms([a.nar_hash, b.nar_hash, c.nar_hash]) == {
        a.nar_hash: Swarm(2, 0, 0, payload.stat().st_size),
        b.nar_hash: Swarm(0, 0, 3, None),
        c.nar_hash: NOBODY,
    }
    assert [swarm.can_serve for swarm in (Swarm(1, 0, 0, 1), Swarm(0, 9, 0, 1), NOBODY)] == [
        True,
        False,
        False,
    ]


def test_web_seeds(
    survey: Callable[..., Survey], site: Site, make_item: Make, tmp_path: Path
) -> None:
    """Those of the settings that have the payload in its length; a server's file isn't theirs."""
    a, b, c, d = (make_item(name, name.encode()) for name in "abcd")
    for item in (a, b, c):
        trackers.serve(site, item, torrent_of(item, tmp_path)[0], peers=())
    theirs = json.loads(site.bodies[f"/v1/nar/{base32.encode(c.nar_hash)}"])  # type: ignore[arg-type]  # bytes
    theirs["torrents"][0] |= {"kind": "server", "name": c.path[11:]}
    site.bodies[f"/v1/nar/{base32.encode(c.nar_hash)}"] = json.dumps(theirs).encode()
    name = {item.path: file_name(item.nar_hash) for item in (a, b)}
    site.bodies[f"/payloads/{name[a.path]}"] = (tmp_path / name[a.path]).read_bytes()
    site.bodies[f"/payloads/{name[b.path]}"] = b"another length"
    site.bodies[f"/payloads/{c.path[11:]}"] = bytes(theirs["torrents"][0]["length"])
    urls = [f"{site.url}/payloads/", f"{site.url}/none/", f"{site.url}/payloads/"]
    found = survey([], [site.url], urls).swarms([each.nar_hash for each in (a, b, c, d)])
    assert [found[each.nar_hash].web_seeds for each in (a, b, c, d)] == [1, 0, 0, 0]
    assert [found[each.nar_hash].can_serve for each in (a, b, c, d)] == [True, False, False, False]
    asked = sorted(each for each in site.requests if each.startswith("HEAD"))
    assert asked == sorted(f"HEAD /{d}/{n}" for d in ("payloads", "none") for n in name.values())


def test_a_tracker_that_says_nonsense(
    survey: Callable[..., Survey], site: Site, make_item: Make
) -> None:
    """It is as if it had said nothing, and named."""
    a = make_item("a")
    site.bodies[f"/v1/nar/{base32.encode(a.nar_hash)}"] = b"{}"
    made = survey([], [site.url])
    assert made.swarms([a.nar_hash]) == {a.nar_hash: NOBODY}
    assert list(made.silent) == [f"{site.url}/announce"]
