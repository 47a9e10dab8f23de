# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.query."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from substituter.query import Query, download_size
from tests.substituter.conftest import Item, Site, World

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
        assert self._event.wait(10)


def test_the_download_size_is_that_of_the_preferred_source(make_item: Make) -> None:
    """Zstd is preferred to gzip and plain; without a size it is 0, as with Guix."""
    from narswarm import narinfo

    item = make_item("a")
    sources = [narinfo.Source("u", "none", 900), narinfo.Source("v", "zstd", 300)]
    assert download_size(narinfo.parse(narinfo.with_sources(item.narinfo, sources))) == 300
    assert download_size(narinfo.parse(item.narinfo)) == 0
