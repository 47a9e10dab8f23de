# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing is offered unless an authorised narinfo says the same as this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from narswarm import gcrypt
from narswarm.acl import Acl
from narswarm.errors import NetworkError
from narswarm.httpclient import HttpClient
from narswarm.narinfo import Narinfo
from narswarm.narinfocache import NarinfoCache
from narswarm.narinfos import NarinfoLookup
from seeder import vouchers
from seeder.inventory import NarDirectory
from seeder.vouchers import Disagreements, LocalVouchers, ServerVouchers
from tests.seeder.conftest import World
from tests.seeder.mirrorworld import FileServer


class Servers:
    """Substitute servers that have some narinfos, already judged."""

    def __init__(self, *infos: Narinfo) -> None:
        self.infos = {info.store_path: info for info in infos}
        self.asked: list[list[str]] = []
        self.servers = ("http://a", "http://b")
        self.down: set[str] = set()

    def is_down(self, server: str) -> bool:
        """As `NarinfoLookup.is_down` does."""
        return server in self.down

    def find(
        self,
        paths: Sequence[str],
        timeout: float = 0,
        warn: Callable[[str], None] | None = None,
    ) -> dict[str, Narinfo]:
        """As `NarinfoLookup.find` does."""
        assert timeout > 0
        assert warn is not None
        self.asked.append(list(paths))
        return {path: self.infos[path] for path in paths if path in self.infos}


def vouching(servers: Servers) -> ServerVouchers:
    """Vouchers without a limit."""
    return ServerVouchers(servers, 1e9, lambda _: False, lambda: 0.0)


def test_a_narinfo_that_says_the_same_vouches(world: World) -> None:
    """Path, hash and size are those that this machine has."""
    known, unknown = world.make(), world.make()
    found = vouching(Servers(known.parsed)).find([unknown.item, known.item])
    assert list(found) == [(unknown.item, None), (known.item, known.parsed)]


@pytest.mark.parametrize("field", ["store_path", "nar_hash", "nar_size"])
def test_a_narinfo_that_differs_does_not(
    world: World, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An item that was built here with other bytes isn't what the server gives to anybody."""
    made = world.make()
    other: Any = {"store_path": world.make().path, "nar_hash": bytes(32), "nar_size": 1}[field]
    changes: Any = {field: other}
    info = dataclasses.replace(made.parsed, **changes)
    servers = Servers()
    servers.infos[made.path] = info
    assert list(vouching(servers).find([made.item])) == [(made.item, None)]
    assert caplog.messages == [
        f"{made.path}: differs from what its substitute server signed, so it is not offered"
    ]


def test_servers_are_asked_in_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is asked when its turn comes, so that a seeder can stop between two."""
    monkeypatch.setattr(vouchers, "BATCH", 2)
    items = [world.make().item for _ in range(5)]
    servers = Servers()
    found = vouching(servers).find(items)
    next(found)
    assert len(servers.asked) == 1
    assert len(list(found)) == 4
    assert servers.asked == [[i.store_path for i in items[n : n + 2]] for n in (0, 2, 4)]


def test_narinfos_beside_nars_need_a_signature_too(
    world: World, acl: Acl, caplog: pytest.LogCaptureFixture
) -> None:
    """Only an authorised key's word counts, though the file is on this machine."""
    good = world.make("good")
    world.signer = gcrypt.generate_key()
    bad, gone = world.make("bad"), world.make("gone")
    world.put_nar(good)
    world.put_nar(bad)
    local = LocalVouchers(NarDirectory(world.nars), acl)
    found = dict(local.find([good.item, bad.item, gone.item]))
    info = found[good.item]
    assert info is not None
    assert info.raw == good.narinfo
    assert found[bad.item] is None
    assert found[gone.item] is None
    assert caplog.messages == [f"{bad.path}: narinfo with the verdict unauthorized-key"]


def test_servers_are_asked_politely(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two batches there is as much time as the rate says; the end interrupts it."""
    monkeypatch.setattr(vouchers, "BATCH", 10)
    items = [world.make().item for _ in range(30)]
    servers = Servers()
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == 2

    found = ServerVouchers(servers, 5.0, pause, lambda: 100.0).find(items)
    assert len(list(found)) == 20
    assert pauses == [2.0, 2.0]


def test_servers_that_can_t_be_reached_say_nothing_about_items(world: World) -> None:
    """It isn't noted that nobody vouches for an item when nobody could be asked."""
    made = world.make()
    servers = Servers()
    servers.down = {"http://a"}
    assert list(vouching(servers).find([made.item])) == [(made.item, None)]
    servers.down = {"http://a", "http://b"}
    with pytest.raises(NetworkError) as caught:
        list(vouching(servers).find([made.item]))
    assert str(caught.value) == "substitute servers: none can be reached"


def test_what_was_not_asked_when_the_last_server_went_away(world: World) -> None:
    """Only that is said of a batch what was found before."""
    known, unknown = world.make(), world.make()
    servers = Servers(known.parsed)
    servers.down = {"http://a", "http://b"}
    assert list(vouching(servers).find([unknown.item, known.item])) == [(known.item, known.parsed)]


def test_what_differs_is_kept_with_its_version(
    world: World, tmp_path: Path, acl: Acl, caplog: pytest.LogCaptureFixture
) -> None:
    """A server only says that it has not changed; of what vouches nothing is on disk."""
    same, other, unknown = world.make(), world.make(), world.make()
    differs = other.item._replace(nar_hash=bytes(32))
    server, directory = FileServer(), tmp_path / "narinfo"
    now = [0.0]
    with HttpClient(20.0) as client:
        server.offer(same)
        server.offer(other)
        server.fields = {"Cache-Control": "max-age=10"}
        kept = Disagreements(NarinfoCache(directory))
        lookup = NarinfoLookup(client, [server.url], acl, kept, clock=lambda: now[-1])
        asks = ServerVouchers(lookup, 1e9, lambda _: False, lambda: 0.0, kept)
        for then, statuses in ((0.0, [200, 200, 404]), (9.0, [200, 404]), (10.0, [200, 304, 404])):
            now.append(then)
            server.statuses.clear()
            found = dict(asks.find([same.item, differs, unknown.item]))
            assert [bool(found[each]) for each in (same.item, differs, unknown.item)] == [1, 0, 0]
            assert sorted(server.statuses) == statuses
        assert [file.name for file in directory.glob("*/*")] == [other.path[11:43]]
        later = Disagreements(NarinfoCache(directory))
        assert later.get(server.url, other.path[11:43], 10.0) is not None
        assert later.get(server.url, same.path[11:43], 10.0) is None
    server.close()
    assert len(caplog.messages) == 3
