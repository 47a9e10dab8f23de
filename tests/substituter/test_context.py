# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.context."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from narswarm import acl, gcrypt, narinfo, sexp
from narswarm.errors import InvalidInputError, NotFoundError, SettingsError
from narswarm.gcrypt import GcryptMissingError, KeyPair
from substituter import context as module
from substituter import options
from substituter.context import Context, tracker_base
from substituter.settings import SubstituterSettings
from tests.substituter.conftest import Item, Site, World
from tests.substituter.trackers import mirror

Enter = Callable[..., World]
Make = Callable[..., Item]


@pytest.fixture
def second() -> Iterator[Site]:
    """Another server."""
    made = Site()
    yield made
    made.close()


def find(world: World, *items: Item, timeout: float = 120.0) -> list[str]:
    """The paths of which a narinfo was found."""
    return list(world.context.narinfos([item.path for item in items], timeout))


@pytest.mark.parametrize(
    ("announce", "base"),
    [
        ("http://h:6969/announce", "http://h:6969"),
        ("https://h/tracker/announce", "https://h/tracker"),
        ("http://[::1]:6969/announce", "http://[::1]:6969"),
        ("http://h//announce", "http://h"),
    ],
)
def test_the_index_is_beside_the_announce_url(announce: str, base: str) -> None:
    """It is found by taking the last part away."""
    assert tracker_base(announce) == base


@pytest.mark.parametrize(
    "announce",
    [
        "",
        "h:6969",
        "udp://h:6969/announce",
        "http://h:6969",
        "http://h/announce/",
        "http://h/announce?key=1",
        "http://h/?x=/announce",
        "http:///announce",
        "http://[::1/announce",
        "http://h/#/announce",
    ],
)
def test_other_urls_are_refused(announce: str, settings: SubstituterSettings) -> None:
    """A tracker without an index is of no use here, and the message shows what is expected."""
    message = f"{announce}: expected an announce URL such as http://HOST:PORT/announce"
    with pytest.raises(SettingsError) as caught:
        tracker_base(announce)
    assert str(caught.value) == message
    with pytest.raises(SettingsError, match=re.escape(message)):
        Context(dataclasses.replace(settings, trackers=(announce,)), {})


def test_a_missing_acl_is_an_error(settings: SubstituterSettings, enter: Enter) -> None:
    """At the start as later; the message says which file."""
    world = enter()
    settings.acl.unlink()
    for call in (world.context.reload_acl, enter):
        with pytest.raises(NotFoundError) as caught:
            call()
        assert str(caught.value) == f"{settings.acl}: no such file or directory"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"(acl", "is not an s-expression at byte 4"),
        (b"()", "is not an access control list"),
        (b" " * ((1 << 20) + 1), f"is longer than {1 << 20} bytes"),
    ],
)
def test_a_broken_acl_is_an_error(
    settings: SubstituterSettings, enter: Enter, text: bytes, reason: str
) -> None:
    """It doesn't count as an empty one, and the one that counted before stays."""
    world = enter()
    settings.acl.write_bytes(text)
    for _ in range(2):
        with pytest.raises(InvalidInputError) as caught:
            world.context.reload_acl()
        assert str(caught.value) == f"{settings.acl}: {reason}"


def test_a_changed_acl_is_noticed(
    settings: SubstituterSettings, enter: Enter, make_item: Make, site: Site, key: KeyPair
) -> None:
    """A key that is taken away no longer counts from the next item on; given back, it does."""
    item = make_item("a")
    site.offer(item, "none")
    world = enter(site.url)
    assert find(world, item) == [item.path]
    settings.acl.write_bytes(acl.render([sexp.parse(gcrypt.generate_key().public)]))
    world.context.reload_acl()
    assert find(world, item) == []
    settings.acl.write_bytes(acl.render([sexp.parse(key.public)]))
    world.context.reload_acl()
    assert find(world, item) == [item.path]


def test_an_unchanged_acl_keeps_what_is_known_of_servers(
    settings: SubstituterSettings, enter: Enter
) -> None:
    """Reading it before each item doesn't make the look-up forget which servers are down."""
    world = enter("http://127.0.0.1:9")
    before = world.context._servers
    world.context.reload_acl()
    assert world.context._servers is before
    settings.acl.write_bytes(settings.acl.read_bytes() + b"\n")
    world.context.reload_acl()
    assert world.context._servers is not before


def test_a_missing_libgcrypt_is_known_at_the_start(
    settings: SubstituterSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the first narinfo, when it is too late for guix to take over."""

    def fail() -> None:
        raise GcryptMissingError

    monkeypatch.setattr(gcrypt, "_load", fail)
    with pytest.raises(GcryptMissingError):
        Context(settings, {})


def test_trackers_are_asked_for_what_servers_do_not_have(
    settings: SubstituterSettings, enter: Enter, make_item: Make, site: Site, second: Site
) -> None:
    """They mirror narinfos; one that a server has is not asked of them."""
    a, b, c = (make_item(name) for name in "abc")
    site.offer(a, "none")
    for each in (a, b):
        mirror(second, each)
    changed = dataclasses.replace(settings, trackers=(f"{second.url}/announce",))
    world = enter(site.url, changed=changed)
    assert find(world, a, b, c) == [a.path, b.path]
    assert sorted(second.requests) == sorted(
        f"/v1/narinfo/{each.hash_part}.narinfo" for each in (b, c)
    )


def test_trackers_are_asked_when_servers_are_down(
    settings: SubstituterSettings, enter: Enter, make_item: Make, second: Site
) -> None:
    """A server that can't be reached is one warning, and the mirror serves."""
    item = make_item("a")
    mirror(second, item)
    changed = dataclasses.replace(settings, trackers=(f"{second.url}/announce",))
    world = enter("http://127.0.0.1:9", changed=changed)
    for _ in range(2):
        assert find(world, item) == [item.path]
    assert world.warnings == ["http://127.0.0.1:9: connection refused"]


def test_a_server_that_hangs_leaves_time_to_the_trackers(
    settings: SubstituterSettings, enter: Enter, make_item: Make, site: Site, second: Site
) -> None:
    """Half of a query's time is theirs."""
    item = make_item("a")
    mirror(second, item)
    over = threading.Event()

    def hang(_: BaseHTTPRequestHandler) -> None:
        over.wait(300)

    site.bodies[f"/{item.hash_part}.narinfo"] = hang
    changed = dataclasses.replace(settings, trackers=(f"{second.url}/announce",))
    try:
        assert find(enter(site.url, changed=changed), item, timeout=60.0) == [item.path]
    finally:
        over.set()


def test_a_mirror_needs_the_same_signature(
    settings: SubstituterSettings, enter: Enter, make_item: Make, second: Site
) -> None:
    """What a tracker mirrors counts only if an authorised key signed it for that path."""
    item, other = make_item("a"), make_item("b")
    unsigned = item.narinfo.partition(b"Signature:")[0]
    mirror(second, item._replace(narinfo=narinfo.sign(unsigned, gcrypt.generate_key(), "x")))
    mirror(second, other._replace(path=item.path.replace("-a", "-b")))
    changed = dataclasses.replace(settings, trackers=(f"{second.url}/announce",))
    assert find(enter(changed=changed), item, other) == []


def test_equivalents_are_of_the_same_nar(
    enter: Enter, make_item: Make, site: Site, second: Site, key: KeyPair
) -> None:
    """Other servers count if they are authorised and say the same hash and size."""
    item = make_item("a")
    site.offer(item, "zstd")
    second.offer(item, "gzip")
    third = Site()
    try:
        other = narinfo.compose(item.path, bytes(32), len(item.nar), [])
        third.offer(item._replace(narinfo=narinfo.sign(other, key, "x")), "none")
        world = enter(third.url, "http://127.0.0.1:9", second.url, site.url)
        vouched = narinfo.parse(item.narinfo)
        found = world.context.equivalents(vouched, 10.0)
        assert {each.sources[0].url for each in found} == {
            f"{second.url}/nar/gzip/{item.path[11:]}",
            f"{site.url}/nar/zstd/{item.path[11:]}",
        }
        body = site.bodies[f"/{item.hash_part}.narinfo"]
        assert isinstance(body, bytes)
        site.requests.clear()
        found = world.context.equivalents(narinfo.parse(body, site.url), 10.0)
        assert [each.sources[0].compression for each in found] == ["gzip"]
        assert site.requests == []
    finally:
        third.close()


def test_a_line_is_shown_once(enter: Enter) -> None:
    """What goes wrong for every item is told for the first."""
    world = enter()
    for message in ("a: x", "b: x", "a: x"):
        world.context.warn_once(message)
    assert world.warnings == ["a: x", "b: x"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, ()),
        (b"", ()),
        (b"\xff", ()),
        (b"http://lan1\n\n http://lan2 \n", ("http://lan1", "http://lan2")),
        (b"".join(b"http://%d\n" % n for n in range(60)), [f"http://{n}" for n in range(50)]),
        (b"x" * (1 << 20), ("x" * (64 << 10),)),
    ],
)
def test_discovered_servers_are_read(
    settings: SubstituterSettings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    text: bytes | None,
    found: Any,
) -> None:
    """The list that `guix discover` writes is read within bounds; without one there are none."""
    file = tmp_path / "publish"
    if text is not None:
        file.write_bytes(text)
    monkeypatch.setattr(module, "_DISCOVERED", file)
    context = Context(settings, {"_NIX_OPTIONS": "discover=true"})
    assert context.options.urls == tuple(found)
    assert options.MAX_DISCOVERED == 50
    context.close()


def test_a_quorum_of_keys_has_to_agree(
    settings: SubstituterSettings,
    enter: Enter,
    make_item: Make,
    site: Site,
    second: Site,
    key: KeyPair,
) -> None:
    """One server's key is not enough; two that agree are; two that don't are shown."""
    other_key = gcrypt.generate_key()
    keys = [sexp.parse(each.public) for each in (key, other_key)]
    settings.acl.write_bytes(acl.render(keys))
    lone, shared, disputed = (make_item(name) for name in "abc")
    for item in (lone, shared, disputed):
        site.offer(item, "none")

    def again(item: Item, text: bytes) -> Item:
        unsigned = text.partition(b"Signature:")[0]
        return item._replace(narinfo=narinfo.sign(unsigned, other_key, "other"))

    second.offer(again(shared, shared.narinfo), "none")
    changed = narinfo.compose(disputed.path, bytes(32), len(disputed.nar), ())
    second.offer(again(disputed, changed), "none")
    world = enter(site.url, second.url, changed=dataclasses.replace(settings, quorum=2))
    assert find(world, lone, shared, disputed) == [shared.path]
    assert world.warnings[0] == f"{lone.path}: 1 of 2 keys that have to agree on it do"
    assert world.warnings[2].startswith(f"{disputed.path}: KEYS DISAGREE: sha256:")
    # What was said once still counts when a server is gone.
    second.close()
    again_world = enter(site.url, second.url, changed=dataclasses.replace(settings, quorum=2))
    assert find(again_world, shared) == [shared.path]


def test_a_narinfo_without_a_place_does_not_hide_others(
    enter: Enter, make_item: Make, site: Site, second: Site
) -> None:
    """The first server's true narinfo, from which the URLs were taken, gives way to the next's."""
    item = make_item("a")
    site.offer(item)
    second.offer(item, "none")
    world = enter(site.url, second.url)
    found = world.context.narinfos([item.path], 120.0)[item.path]
    assert [source.url for source in found.sources] == [f"{second.url}/nar/none/{item.path[11:]}"]


def test_mirrors_are_asked_while_servers_are_silent(
    settings: SubstituterSettings,
    enter: Enter,
    make_item: Make,
    site: Site,
    second: Site,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a tracker mirrors is taken although a server hasn't answered by then."""
    monkeypatch.setattr(module, "_SILENCE", 0.1)
    monkeypatch.setattr(module, "_READ_TIMEOUT", 300.0)
    item = make_item("a")
    mirror(second, item)
    over = threading.Event()

    def hang(_: BaseHTTPRequestHandler) -> None:
        over.wait(300)

    site.bodies[f"/{item.hash_part}.narinfo"] = hang
    changed = dataclasses.replace(settings, trackers=(f"{second.url}/announce",))
    world = enter(site.url, changed=changed)
    answers: list[list[str]] = []
    asking = threading.Thread(target=lambda: answers.append(find(world, item, timeout=600.0)))
    asking.start()
    # The client would give the server up in the end, and ask the tracker then.
    asking.join(120.0)
    found = list(answers)
    over.set()
    asking.join()
    assert found == [[item.path]]
