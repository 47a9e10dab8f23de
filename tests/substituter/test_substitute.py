# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.substitute: real sessions, a real tracker, a real HTTP server."""

from __future__ import annotations

import dataclasses
import io
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self

import pytest

from narswarm import base32, gcrypt, metainfo, nar, narinfo
from narswarm.errors import NotFoundError
from narswarm.httpsig import PublisherKey
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.restore import RestoreError
from narswarm.trackerclient import TrackerIndex
from substituter import realguix, substitute
from substituter.contest import Contest
from substituter.lane import Runner
from substituter.nargate import Gate
from substituter.plan import PlanWriter
from substituter.race import SMALL, Way
from substituter.session import Session
from substituter.settings import SubstituterSettings
from substituter.sources import Patience, SwarmSource
from substituter.substitute import Substitute
from tests.substituter.conftest import COMPRESS, Item, Net, Site, World, torrent_of
from tests.substituter.trackers import serve

Enter = Callable[..., World]
Make = Callable[..., Item]


class Helper:
    """A substituting helper, and what the daemon and the user see of it."""

    def __init__(self, world: World, capfd: pytest.CaptureFixture[str]) -> None:
        self.session = Session(world.context.settings, world.context.warn)
        self.warnings = world.warnings
        self._replies: list[bytes] = []
        self._substitute = Substitute(world.context, self.session, self._replies.append)
        self._capfd = capfd
        self.shown = ""

    def __call__(self, item: Item, destination: Path) -> str:
        """The status for an item."""
        self._replies.clear()
        self._substitute.run(io.BytesIO(f"substitute {item.path} {destination}\n".encode()))
        self.shown = self._capfd.readouterr().err
        assert len(self._replies) == 1
        return self._replies[0].decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()


def success(item: Item) -> str:
    """The status for an item that is in place."""
    return f"success {base32.format_hash(item.nar_hash)} {len(item.nar)}\n"


def restored(destination: Path) -> bytes:
    """The NAR of what is at the destination."""
    return b"".join(nar.dump(destination))


def with_tracker(settings: SubstituterSettings, net: Net) -> SubstituterSettings:
    """Settings that name the tracker, for small items that are to come from the swarm."""
    return dataclasses.replace(
        settings, trackers=(f"{net.tracker.url}/announce",), policy="swarm-first"
    )


@pytest.mark.parametrize("kind", ["none", "gzip", "zstd"])
def test_without_a_swarm_http_delivers(
    enter: Enter,
    make_item: Make,
    site: Site,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """Each compression of a substitute server is restored, and the URL is what the user sees."""
    item = make_item("a", os.urandom(300_000))
    site.offer(item, kind)
    with Helper(enter(site.url), capfd) as helper:
        assert helper(item, tmp_path / "out") == success(item)
    assert restored(tmp_path / "out") == item.nar
    url = f"{site.url}/nar/{kind}/{item.path[11:]}"
    assert f"@ download-started {tmp_path / 'out'} {url} " in helper.shown
    assert f"@ download-succeeded {tmp_path / 'out'} {url} " in helper.shown


def test_the_swarm_comes_before_http(
    enter: Enter,
    make_item: Make,
    site: Site,
    net: Net,
    settings: SubstituterSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With a seed in the swarm no NAR is asked of a server."""
    item = make_item("a", os.urandom(3 << 20))
    site.offer(item, "zstd")
    infohash = net.seed(item)
    world = enter(site.url, changed=dataclasses.replace(with_tracker(settings, net)))
    with Helper(world, capfd) as helper:
        assert helper(item, tmp_path / "out") == success(item)
    assert restored(tmp_path / "out") == item.nar
    assert f"@ download-succeeded {tmp_path / 'out'} bittorrent://{infohash}/a,swarm" in (
        helper.shown.replace(item.path[11:], "a")
    )
    assert not [request for request in site.requests if "/nar/" in request]
    assert list((settings.state / "downloads").iterdir()) == []


def ranged(data: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """A file of a web server that sends what is asked for of it."""

    def handle(handler: BaseHTTPRequestHandler) -> None:
        first, _, last = handler.headers["Range"].removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        handler.send_header("Content-Length", str(len(part)))
        handler.end_headers()
        handler.wfile.write(part)

    return handle


def publish(net: Net, item: Item, torrent: bytes) -> str:
    """Have the tracker know a torrent that nobody seeds; its infohash."""
    key = PublisherKey.load_or_create(net.directory / "publisher.key")
    index = TrackerIndex(net.client, net.tracker.url)
    index.publish(key, item.nar_hash, torrent, item.narinfo, time.time())
    return metainfo.decode(torrent, "torrent").infohash_v2.hex()


@pytest.mark.parametrize("policy", ["swarm-first", "swarm-only"])
def test_a_server_is_a_web_seed_of_its_own_file(
    enter: Enter,
    make_item: Make,
    site: Site,
    net: Net,
    settings: SubstituterSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    policy: str,
) -> None:
    """The torrent of a server's file comes from that server, too, unless none shall be used."""
    item = make_item("a+b", os.urandom(200_000))
    site.offer(item, "zstd")
    data = COMPRESS["zstd"](item.nar)
    path = f"/nar/zstd/{item.path[11:]}"
    # libtorrent writes "+" otherwise.
    site.bodies[path.replace("+", "%2b")] = ranged(data)
    del site.bodies[path]
    hasher = PieceHasher()
    hasher.update(data)
    infohash = publish(net, item, Metainfo.of(item.path[11:], hasher.finish()).encode())
    changed = dataclasses.replace(with_tracker(settings, net), policy=policy)
    if policy == "swarm-only":
        changed = dataclasses.replace(changed, patience=1.0)
    with Helper(enter(site.url, changed=changed), capfd) as helper:
        status = helper(item, tmp_path / "out")
    asked = [request for request in site.requests if "/nar/" in request]
    if policy == "swarm-only":
        assert (status, asked) == ("not-found\n", [])
        return
    assert status == success(item)
    assert restored(tmp_path / "out") == item.nar
    assert f"bittorrent://{infohash}/" in helper.shown
    assert set(asked) == {path.replace("+", "%2b")}


def test_web_seeds_of_the_settings(
    enter: Enter,
    make_item: Make,
    site: Site,
    net: Net,
    settings: SubstituterSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A directory with payloads does without any peer."""
    item = make_item("a", os.urandom(200_000))
    site.offer(item)
    torrent, payload = torrent_of(item, tmp_path)
    site.bodies[f"/payloads/{payload.name}"] = ranged(payload.read_bytes())
    infohash = publish(net, item, torrent)
    changed = dataclasses.replace(
        with_tracker(settings, net), policy="swarm-only", web_seeds=(f"{site.url}/payloads/",)
    )
    with Helper(enter(site.url, changed=changed), capfd) as helper:
        assert helper(item, tmp_path / "out") == success(item)
    assert restored(tmp_path / "out") == item.nar
    assert f"bittorrent://{infohash}/" in helper.shown


def test_without_servers_the_trackers_mirror_is_enough(
    enter: Enter,
    make_item: Make,
    net: Net,
    settings: SubstituterSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With no substitute server, a tracker mirrors the narinfo; learned once, it works without."""
    items = [make_item("a", b"1" * 100), make_item("b", os.urandom(100_000))]
    for item in items:
        net.seed(item)
    with Helper(enter(changed=with_tracker(settings, net)), capfd) as helper:
        for item in items:
            destination = tmp_path / item.path[44:]
            assert helper(item, destination) == success(item)
            assert restored(destination) == item.nar
    net.tracker.close()
    # What was learned before still works: narinfo, torrent and peers are on disk.
    with Helper(enter(changed=with_tracker(settings, net)), capfd) as helper:
        assert helper(items[1], tmp_path / "again") == success(items[1])
    assert restored(tmp_path / "again") == items[1].nar


def test_a_lying_torrent_is_refused_and_the_next_source_tried(
    enter: Enter,
    make_item: Make,
    site: Site,
    net: Net,
    settings: SubstituterSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Another NAR behind a torrent costs a line and some bytes; it is not used a second time."""
    item, other = make_item("a", b"good"), make_item("b", b"evil")
    liar = net.seed(item, other.nar)
    site.offer(item, "zstd")
    changed = with_tracker(settings, net)
    with Helper(enter(site.url, changed=changed), capfd) as helper:
        assert helper(item, tmp_path / "out") == success(item)
        expected, actual = map(base32.format_hash, (item.nar_hash, other.nar_hash))
        assert f"{item.path}: expected {expected}, got {actual}\n" in helper.shown
        assert helper(item, tmp_path / "again") == success(item)
        assert liar not in helper.shown
    assert restored(tmp_path / "again") == item.nar


def test_of_several_torrents_an_honest_one_is_found(
    enter: Enter,
    make_item: Make,
    net: Net,
    settings: SubstituterSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The first claim being false doesn't keep the second from serving."""
    item = make_item("a", b"good")
    net.seed(item, make_item("b", b"evil").nar)
    honest = net.seed(item)
    with Helper(enter(changed=with_tracker(settings, net)), capfd) as helper:
        assert helper(item, tmp_path / "out") == success(item)
    assert f"bittorrent://{honest}/" in helper.shown


def test_only_wrong_copies_are_a_hash_mismatch(
    enter: Enter,
    make_item: Make,
    net: Net,
    settings: SubstituterSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """When nobody has the right bytes, guix included, the daemon learns both hashes."""
    item, other = make_item("a", b"good"), make_item("b", b"evil")
    net.seed(item, other.nar)
    with Helper(enter(changed=with_tracker(settings, net)), capfd) as helper:
        assert helper(item, tmp_path / "out") == (
            f"hash-mismatch sha256 {base32.encode(item.nar_hash)} {base32.encode(other.nar_hash)}\n"
        )
    assert not (tmp_path / "out").exists()


def test_without_any_guix_a_wrong_copy_is_still_told(
    enter: Enter,
    make_item: Make,
    net: Net,
    settings: SubstituterSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine where guix can't be found says so, and reports the mismatch all the same."""
    item, other = make_item("a", b"good"), make_item("b", b"evil")
    net.seed(item, other.nar)

    def nowhere(*_: object) -> str:
        raise NotFoundError("guix", "is nowhere")

    monkeypatch.setattr(realguix, "find", nowhere)
    with Helper(enter(changed=with_tracker(settings, net)), capfd) as helper:
        assert helper(item, tmp_path / "out").startswith("hash-mismatch sha256 ")
        assert "guix: is nowhere" in helper.warnings


@pytest.mark.parametrize(
    ("size", "told", "more", "begun"),
    [
        (SMALL + 8, True, False, Way.SWARM),
        (SMALL, True, True, None),
        (SMALL + 8, False, False, None),
        (SMALL + 8, False, True, Way.SWARM),
    ],
)
def test_what_the_seeder_fetches_ahead_is_begun(
    enter: Enter,
    make_item: Make,
    site: Site,
    settings: SubstituterSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    begun: Way | None,
    *,
    told: bool,
    more: bool,
) -> None:
    """Large items that it was told of, or is going to hear more beside, come with others."""
    empty = len(make_item("e", b"").nar)
    item = make_item("a", bytes(size - empty))
    assert len(item.nar) == size
    seen: list[Way | None] = []

    class Watched(Contest):
        def __init__(self, *arguments: Any, begun: Way | None = None, **more: Any) -> None:
            seen.append(begun)
            super().__init__(*arguments, begun=begun, **more)

    monkeypatch.setattr(substitute, "Contest", Watched)
    site.offer(item, "zstd")
    nowhere = str(tmp_path / "nowhere")
    world = enter(site.url, changed=dataclasses.replace(settings, seeder=nowhere if more else ""))
    if told:
        world.context.ahead.add(item.path)
    if more:
        PlanWriter(world.context.plans).add([make_item("later").path])
    with Helper(world, capfd) as helper:
        assert helper(item, tmp_path / "out") == success(item)
    assert seen == [begun]


def test_an_unknown_item_is_left_to_guix(
    enter: Enter, make_item: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a narinfo the real guix is asked; if it fails, the item isn't found."""
    with Helper(enter(), capfd) as helper:
        item = make_item("a")
        assert helper(item, tmp_path / "out") == "not-found\n"
        assert f"substituter: {item.path}: no authorised narinfo\n" in helper.shown


def test_guix_itself_is_the_last_way(
    enter: Enter,
    make_item: Make,
    settings: SubstituterSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What the real helper answers is passed on."""
    guix = tmp_path / "guix"
    guix.write_text('#!/bin/sh\nread verb item dest; echo "success sha256:x 7" >&4\n')
    guix.chmod(0o755)
    world = enter(changed=dataclasses.replace(settings, guix=guix))
    with Helper(world, capfd) as helper:
        assert helper(make_item("a"), tmp_path / "out") == "success sha256:x 7\n"


def test_what_guix_leaves_behind_is_removed(
    enter: Enter,
    make_item: Make,
    settings: SubstituterSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A real helper that crashes in the middle of an item leaves nothing at its place."""
    guix = tmp_path / "guix"
    guix.write_text(
        '#!/bin/sh\nread verb item dest; mkdir "$dest"; echo x > "$dest/part"; exit 1\n'
    )
    guix.chmod(0o755)
    world = enter(changed=dataclasses.replace(settings, guix=guix))
    with Helper(world, capfd) as helper:
        assert helper(make_item("a"), tmp_path / "out") == "not-found\n"
    assert not (tmp_path / "out").exists()


def test_a_narinfo_by_an_unknown_key_counts_for_nothing(
    enter: Enter, make_item: Make, site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a stranger signed is neither fetched nor restored."""
    item = make_item("a")
    unsigned = item.narinfo.partition(b"Signature:")[0]
    stranger = item._replace(narinfo=narinfo.sign(unsigned, gcrypt.generate_key(), "x"))
    site.offer(stranger, "zstd")
    with Helper(enter(site.url), capfd) as helper:
        assert helper(stranger, tmp_path / "out") == "not-found\n"
    assert not (tmp_path / "out").exists()
    assert not [request for request in site.requests if "/nar/" in request]


def test_a_server_that_breaks_off_is_followed_by_the_next(
    enter: Enter, make_item: Make, site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A connection that is cut in the middle, and a corrupt body, both lead to another source."""
    item = make_item("a", os.urandom(1 << 20))
    site.offer(item, "zstd", "gzip", "none")
    whole = site.bodies[f"/nar/zstd/{item.path[11:]}"]
    assert isinstance(whole, bytes)

    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(whole)))
        handler.end_headers()
        handler.wfile.write(whole[: len(whole) // 2])
        handler.connection.shutdown(socket.SHUT_RDWR)

    site.bodies[f"/nar/zstd/{item.path[11:]}"] = cut
    site.bodies[f"/nar/gzip/{item.path[11:]}"] = b"\x1f\x8b garbage"
    with Helper(enter(site.url), capfd) as helper:
        assert helper(item, tmp_path / "out") == success(item)
    assert restored(tmp_path / "out") == item.nar
    # What somebody else made up for isn't told; damage is.
    assert "nar/zstd" not in helper.shown
    assert f"{site.url}/nar/gzip/{item.path[11:]}: is not gzip, or is damaged\n" in helper.shown
    assert helper.shown.count("@ download-started") == 1


def test_other_servers_serve_the_same_nar(
    enter: Enter, make_item: Make, site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """When the server whose narinfo was taken has no NAR, those of the others are tried."""
    item = make_item("a")
    other = Site()
    try:
        site.offer(item, "zstd")
        del site.bodies[f"/nar/zstd/{item.path[11:]}"]
        other.offer(item, "gzip")
        with Helper(enter(site.url, other.url), capfd) as helper:
            assert helper(item, tmp_path / "out") == success(item)
        assert f"/nar/zstd/{item.path[11:]}" in site.requests
    finally:
        other.close()


def test_a_full_store_fails_the_item_at_once(
    enter: Enter,
    make_item: Make,
    site: Site,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No other source is tried for what the store can't take, and the next item is served."""
    item, second = make_item("a"), make_item("b")
    for each in (item, second):
        site.offer(each, "zstd", "gzip")
    whole = Gate.restore

    def full(gate: Gate, _chunks: object) -> None:
        raise RestoreError(gate.destination, "No space left on device")

    with Helper(enter(site.url), capfd) as helper:
        monkeypatch.setattr(Gate, "restore", full)
        assert helper(item, tmp_path / "out") == "not-found\n"
        assert helper.warnings == [f"{tmp_path / 'out'}: No space left on device"]
        monkeypatch.setattr(Gate, "restore", whole)
        assert helper(second, tmp_path / "second") == success(second)
    assert len([request for request in site.requests if "/nar/" in request]) <= 2


def test_an_internal_error_fails_one_item(
    enter: Enter,
    make_item: Make,
    site: Site,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever goes wrong, the helper answers and lives on."""
    item = make_item("a")
    site.offer(item, "zstd")

    def broken(*_: object) -> None:
        raise RuntimeError("oops")

    with Helper(enter(site.url), capfd) as helper:
        with monkeypatch.context() as patch:
            patch.setattr(substitute.Item, "substitute", broken)
            assert helper(item, tmp_path / "out") == "not-found\n"
        assert helper.warnings == [f"{item.path}: internal error: RuntimeError('oops')"]
        assert helper(item, tmp_path / "out") == success(item)


@pytest.mark.parametrize("line", ["substitute", "substitute /gnu/store/x", "frob a b"])
def test_a_command_that_makes_no_sense_is_not_found(
    enter: Enter, settings: SubstituterSettings, line: str
) -> None:
    """Every line gets exactly one status."""
    replies: list[bytes] = []
    world = enter()
    session = Session(settings, world.context.warn)
    Substitute(world.context, session, replies.append).run(io.BytesIO(f"{line}\n".encode()))
    assert replies == [b"not-found\n"]


def test_few_torrents_are_tried_before_http(
    enter: Enter,
    make_item: Make,
    site: Site,
    settings: SubstituterSettings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Strangers may claim any number of torrents; those without peers don't keep HTTP waiting."""
    item = make_item("a")
    site.offer(item, "zstd")
    directory = tmp_path / "torrents"
    directory.mkdir()
    torrents = [torrent_of(item, directory, bytes(size))[0] for size in range(1000, 1006)]
    serve(site, item, *torrents, peers=[])
    changed = dataclasses.replace(
        settings,
        trackers=(f"{site.url}/announce",),
        policy="swarm-first",
    )
    monkeypatch.setattr(Patience, "is_over", lambda *_, **__: True)
    tried: list[str] = []

    def counted(source: SwarmSource, runner: Runner) -> AbstractContextManager[Iterator[bytes]]:
        tried.append(source.key)
        return whole(source, runner)

    whole = SwarmSource.nar
    monkeypatch.setattr(SwarmSource, "nar", counted)
    with Helper(enter(site.url, changed=changed), capfd) as helper:
        assert helper(item, tmp_path / "out") == success(item)
    assert helper.shown.count("@ download-started") == 1
    assert len(tried) == 3


def test_whatever_a_source_does_the_next_is_tried(
    enter: Enter,
    make_item: Make,
    site: Site,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error that nobody thought of is one source's."""
    item = make_item("a")
    site.offer(item, "zstd", "gzip")
    whole, calls = Gate.restore, []

    def restore(gate: Gate, chunks: Iterable[bytes]) -> None:
        calls.append(gate)
        if len(calls) == 1:
            raise RuntimeError("oops")
        whole(gate, chunks)

    monkeypatch.setattr(Gate, "restore", restore)
    with Helper(enter(site.url), capfd) as helper:
        assert helper(item, tmp_path / "out") == success(item)
    assert f"substituter: {item.path}: internal error: RuntimeError('oops')\n" in helper.shown


@pytest.mark.parametrize(
    ("options", "suffix", "links"),
    [("deduplicate=yes", "", 1), ("deduplicate=no", "", 0), ("deduplicate=yes", ".tmp", 0)],
)
def test_files_of_the_store_are_shared(
    enter: Enter,
    make_item: Make,
    site: Site,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    suffix: str,
    links: int,
) -> None:
    """As the daemon wants it; never in a repair, where the link may be to the damaged file."""
    store = tmp_path / "store"
    (store / ".links").mkdir(parents=True)
    monkeypatch.setattr(substitute, "STORE", str(store))
    item = make_item("a", bytes(10_000))
    site.offer(item, "zstd")
    destination = store / f"{item.path[11:]}{suffix}"
    with Helper(enter(site.url, options=options), capfd) as helper:
        assert helper(item, destination) == success(item)
    assert len(list((store / ".links").iterdir())) == links
    assert restored(destination) == item.nar
