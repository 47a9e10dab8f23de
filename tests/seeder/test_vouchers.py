# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing is offered unless an authorised narinfo says the same as this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from narswarm import gcrypt
from narswarm.acl import Acl
from narswarm.narinfo import Narinfo
from seeder import vouchers
from seeder.inventory import NarDirectory
from seeder.vouchers import LocalVouchers, ServerVouchers
from tests.seeder.conftest import World


class Servers:
    """Substitute servers that have some narinfos, already judged."""

    def __init__(self, *infos: Narinfo) -> None:
        self.infos = {info.store_path: info for info in infos}
        self.asked: list[list[str]] = []

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


def test_a_narinfo_that_says_the_same_vouches(world: World) -> None:
    """Path, hash and size are those that this machine has."""
    known, unknown = world.make(), world.make()
    found = ServerVouchers(Servers(known.parsed)).find([unknown.item, known.item])
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
    assert list(ServerVouchers(servers).find([made.item])) == [(made.item, None)]
    assert caplog.messages == [
        f"{made.path}: differs from what its substitute server signed, so it is not offered"
    ]


def test_servers_are_asked_in_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is asked when its turn comes, so that a seeder can stop between two."""
    monkeypatch.setattr(vouchers, "BATCH", 2)
    items = [world.make().item for _ in range(5)]
    servers = Servers()
    found = ServerVouchers(servers).find(items)
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
