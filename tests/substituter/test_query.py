# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.query."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from substituter.query import Query, download_size
from substituter.settings import SubstituterSettings
from tests.substituter.conftest import Item, Site, World, torrent_of
from tests.substituter.trackers import mirror, serve

Enter = Callable[..., World]
Make = Callable[..., Item]


def ask(world: World, *lines: str, ahead: bool = False) -> str:
    """The replies to some lines."""
    replies: list[bytes] = []
    query = Query(world.context, replies.append, ahead=ahead)
    query.run(io.BytesIO("".join(f"{line}\n" for line in lines).encode()))
    return b"".join(replies).decode()


def test_have_names_what_is_available(enter: Enter, make_item: Make, site: Site) -> None:
    """Items with an authorised narinfo are named, in the order of the question."""
    a, b, c = (make_item(name) for name in "abc")
    site.offer(a, "zstd")
    site.offer(c, "gzip")
    assert ask(enter(site.url), f"have {c.path} {b.path} {a.path} ") == f"{c.path}\n{a.path}\n\n"


def test_info_tells_sizes_and_references(enter: Enter, make_item: Make, site: Site) -> None:
    """The reply has deriver, references, transfer size and NarSize of the available."""
    a = make_item("a")
    b = make_item("b", references=(a.path,))
    site.offer(b, "none")
    assert ask(enter(site.url), f"info {b.path} {a.path} ") == (
        f"{b.path}\n\n1\n{a.path}\n{len(b.nar)}\n{len(b.nar)}\n\n"
    )


@pytest.mark.parametrize("line", ["frobnicate x", "have", "info /etc/passwd ", "info ../x "])
def test_a_question_that_makes_no_sense_is_answered_all_the_same(
    enter: Enter, site: Site, line: str
) -> None:
    """Every line gets the end of a reply: the daemon would wait for it for ever."""
    assert ask(enter(site.url), line) == "\n"


def test_an_internal_error_is_an_empty_answer(
    enter: Enter, monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    """Whatever goes wrong, the helper answers, says so in one line, and lives on."""
    world = enter(site.url)

    def broken(*_: Any) -> None:
        raise RuntimeError("oops")

    monkeypatch.setattr(world.context, "narinfos", broken)
    assert ask(world, "info /gnu/store/x ", "have /gnu/store/x ") == "\n\n"
    assert world.warnings == [
        "info: internal error: RuntimeError('oops')",
        "have: internal error: RuntimeError('oops')",
    ]


def test_no_server_means_nothing_is_available(enter: Enter, make_item: Make) -> None:
    """A server that is down makes one warning and an empty answer."""
    world = enter("http://127.0.0.1:9")
    assert ask(world, f"info {make_item('a').path} ") == "\n"
    assert len(world.warnings) == 1
    assert world.warnings[0].startswith("http://127.0.0.1:9: ")


def test_references_are_looked_up_ahead(enter: Enter, make_item: Make, site: Site) -> None:
    """Narinfos of the whole closure are fetched before the daemon asks for them."""
    items = [make_item("leaf")]
    for name in ("middle", "top"):
        items.append(make_item(name, references=(items[-1].path,)))
    done = Signal(site, items[0])
    for item in items:
        site.offer(item, "none")
    done.arm()
    ask(enter(site.url), f"info {items[-1].path} ", ahead=True)
    done.wait()
    assert {request for request in site.requests if request.endswith(".narinfo")} == {
        f"/{item.hash_part}.narinfo" for item in items
    }


class Signal:
    """Tells when the narinfo of an item was asked for."""

    def __init__(self, site: Site, item: Item) -> None:
        import threading

        self._event = threading.Event()
        self._site, self._item = site, item

    def arm(self) -> None:
        """Watch the item's narinfo."""
        name = f"/{self._item.hash_part}.narinfo"
        body = self._site.bodies[name]
        assert isinstance(body, bytes)

        def answer(handler: Any) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
            self._event.set()

        self._site.bodies[name] = answer

    def wait(self) -> None:
        """Wait for it."""
        assert self._event.wait(120)


def test_the_download_size_is_that_of_the_preferred_source(make_item: Make) -> None:
    """Zstd is preferred to gzip and plain; without a size it is 0, as with Guix."""
    from narswarm import narinfo

    item = make_item("a")
    sources = [narinfo.Source("u", "none", 900), narinfo.Source("v", "zstd", 300)]
    assert download_size(narinfo.parse(narinfo.with_sources(item.narinfo, sources))) == 300
    assert download_size(narinfo.parse(item.narinfo)) == 0


@pytest.mark.parametrize(
    ("peers", "urls", "available"),
    [
        (None, [], False),
        ([], [], False),
        (["127.0.0.1:6881"], [], True),
        (None, ["http://127.0.0.1:9/nar"], True),
    ],
)
def test_an_item_that_nobody_has_is_not_available(
    enter: Enter,
    make_item: Make,
    site: Site,
    settings: SubstituterSettings,
    tmp_path: Path,
    peers: list[str] | None,
    urls: list[str],
    available: bool,
) -> None:
    """A narinfo that only a tracker mirrors counts if a server or somebody in a swarm has the NAR.

    The user's guix would otherwise fail to fetch what it could have built.
    """
    item = make_item("a")
    mirror(site, item, *urls)
    if peers is not None:
        serve(site, item, torrent_of(item, tmp_path)[0], peers=peers)
    changed = dataclasses.replace(settings, trackers=(f"{site.url}/announce",))
    assert ask(enter(changed=changed), f"have {item.path} ") == (
        f"{item.path}\n\n" if available else "\n"
    )


def test_without_its_tracker_a_torrent_that_is_known_counts(
    enter: Enter, make_item: Make, site: Site, settings: SubstituterSettings, tmp_path: Path
) -> None:
    """Its peers may be in the DHT; when the tracker says that there are none, there are none."""
    item = make_item("a")
    mirror(site, item)
    torrent = torrent_of(item, tmp_path)[0]
    serve(site, item, torrent)
    changed = dataclasses.replace(settings, trackers=(f"{site.url}/announce",))
    world = enter(changed=changed)
    assert ask(world, f"have {item.path} ") == f"{item.path}\n\n"
    serve(site, item, torrent, peers=[])
    assert ask(world, f"have {item.path} ") == "\n"
    site.bodies.clear()
    assert ask(world, f"have {item.path} ") == f"{item.path}\n\n"


def test_torrents_are_learned_ahead_once(
    enter: Enter, make_item: Make, site: Site, settings: SubstituterSettings, tmp_path: Path
) -> None:
    """What was answered is looked up at the trackers, however often the daemon asks for it."""
    item = make_item("a")
    site.offer(item, "none")
    serve(site, item, torrent_of(item, tmp_path)[0])
    changed = dataclasses.replace(settings, trackers=(f"{site.url}/announce",))
    world = enter(site.url, changed=changed)
    ask(world, *[f"info {item.path} "] * 5, ahead=True)
    deadline = time.monotonic() + 120
    while not world.context.torrents.known(item.nar_hash, len(item.nar)):
        assert time.monotonic() < deadline, "no torrent was learned"
    world.context.torrents.close()
    assert len([request for request in site.requests if request.startswith("/v1/nar/")]) == 2
