# SPDX-License-Identifier: GPL-3.0-or-later
"""How items come to be offered, and how they cease to be."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest

from narswarm import gcrypt, narinfo, sexp
from narswarm.acl import Acl, render
from narswarm.errors import BusyError, NarswarmError, NetworkError
from narswarm.guixdb import GuixDb
from narswarm.narinfo import Narinfo
from seeder import scan
from seeder.inventory import Item, StoreInventory
from seeder.items import NEW, NOT_VOUCHED, OFFERED, WITHDRAWN, ItemTable, Scope
from seeder.rules import Rules
from seeder.scan import FIRST_RETRY, Scanner
from seeder.state import State
from tests.seeder.conftest import SERVER, Made, World


class Bench:
    """A scanner with everything around it in the test's hands."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.vouched: dict[str, Narinfo] = {}
        self.now = 1000.0
        self.stopping = False
        self.down = False
        self.asked: list[str] = []
        self.changes = 0
        self.state = State(world.root / "state", lambda: self.now)
        self.inventory = StoreInventory(world.database, world.store)
        self.start()

    def start(self, rules: Rules | None = None) -> None:
        """Start anew with the same state."""
        self.scanner = Scanner(
            items=self.state.items,
            inventory=self.inventory,
            vouchers=self,
            rules=rules or Rules(),
            scope=Scope.ALL,
            changed=self._changed,
            stopping=lambda: self.stopping,
            clock=lambda: self.now,
        )

    def _changed(self) -> None:
        self.changes += 1

    def find(self, items: Sequence[Item]) -> Iterator[tuple[Item, Narinfo | None]]:
        """The test's vouchers."""
        if self.down:
            raise NetworkError("substitute servers", "none can be reached")
        for item in items:
            self.asked.append(item.store_path)
            yield item, self.vouched.get(item.store_path)

    def add(self, name: str = "item", content: bytes = b"content", *, vouch: bool = True) -> Made:
        """Have a new item in the store."""
        made = self.world.make(name, content)
        self.world.register(made)
        if vouch:
            self.vouched[made.path] = made.parsed
        return made

    def scan(self, later: float = 0.0) -> list[str]:
        """Scan after some seconds; what was looked up."""
        self.now += later
        self.asked.clear()
        self.scanner.scan()
        return list(self.asked)


@pytest.fixture
def bench(world: World) -> Iterator[Bench]:
    """A new one."""
    made = Bench(world)
    yield made
    made.state.close()


def test_only_what_is_vouched_for_is_offered(bench: Bench) -> None:
    """The other item leaves no trace but a note to look again."""
    good, secret = bench.add("good"), bench.add("secret", b"2", vouch=False)
    bench.scan()
    assert bench.state.items.statuses() == {OFFERED: 1, NOT_VOUCHED: 1}
    assert bench.state.items.change(0).added == good.item.nar_hash
    assert bench.changes == 1
    known = bench.state.items.find(good.path)
    assert known is not None
    assert known.narinfo == narinfo.with_sources(good.narinfo, good.parsed.sources)
    assert f"URL: {SERVER}/nar/".encode() in known.narinfo
    assert bench.scan(FIRST_RETRY - 1) == []
    assert bench.scan(1) == [secret.path]


def test_nothing_is_read_while_nothing_changes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking often is cheap: the database isn't even opened."""
    bench.add()
    bench.scan()

    def broken(*_: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(GuixDb, "_fetch", broken)
    monkeypatch.setattr(ItemTable, "sync", broken)
    assert bench.scan(30) == []
    with pytest.raises(AssertionError):
        bench.scanner.look(thoroughly=True)


def test_new_items_are_noticed(bench: Bench) -> None:
    """The next look finds them, and takes up where the last one ended, also after a restart."""
    first = bench.add("first", b"1")
    assert bench.scan() == [first.path]
    second = bench.add("second", b"2")
    assert bench.scan(30) == [second.path]
    bench.start()
    third = bench.add("third", b"3")
    assert bench.scan(30) == [third.path]
    assert bench.state.items.held() == 3


def test_deleted_items_are_noticed(bench: Bench) -> None:
    """At the next look; also if as many came as went."""
    gone, kept = bench.add("gone", b"1"), bench.add("kept", b"2")
    bench.scan()
    bench.world.delete(gone)
    new = bench.add("new", b"3")
    bench.scan(30)
    assert bench.state.items.find(gone.path) is None
    assert bench.state.items.held() == 2
    bench.world.delete(kept)
    bench.scan(30)
    assert bench.state.items.change(0).added == new.item.nar_hash


def test_an_inventory_that_is_empty_all_of_a_sudden(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that was replaced by an empty one isn't a reason to drop everything."""
    made = bench.add()
    bench.scan()
    bench.world.delete(made)
    bench.scan(30)
    assert bench.state.items.held() == 1
    assert caplog.messages == ["the inventory is empty all of a sudden; nothing is dropped"]


def test_a_database_that_guix_daemon_has_locked(bench: Bench) -> None:
    """A busy daemon is waited for a while; then the next look is for that. Nothing is dropped."""
    bench.add()
    bench.scan()
    bench.add("other", b"2")
    bench.inventory._database._timeout = 0.05
    with closing(sqlite3.connect(bench.world.database, isolation_level=None)) as daemon:
        daemon.execute("BEGIN EXCLUSIVE")
        daemon.execute("UPDATE ValidPaths SET deriver = 'x'")
        with pytest.raises(BusyError) as caught:
            bench.scan(30)
        assert str(caught.value) == f"{bench.world.database}: is locked by another process"
        assert bench.state.items.held() == 1
        daemon.execute("COMMIT")
    bench.scan(30)
    assert bench.state.items.held() == 2


def test_an_inventory_that_can_t_be_read(bench: Bench) -> None:
    """Nothing is dropped, and the error says why."""
    bench.add()
    bench.scan()
    bench.world.database.unlink()
    with pytest.raises(NarswarmError):
        bench.scan()
    assert bench.state.items.held() == 1


def test_servers_that_are_down_are_left_alone(bench: Bench) -> None:
    """Longer each time; what isn't known of an item isn't held against it."""
    bench.add()
    bench.down = True
    pauses = []
    for _ in range(9):
        with pytest.raises(NetworkError):
            bench.scan()
        begin = bench.now
        while True:
            bench.now += 5
            try:
                bench.scan()
            except NetworkError:
                break
            if bench.now - begin > 1000:
                break
        pauses.append(bench.now - begin)
        bench.now += scan.LONGEST_PAUSE
    assert pauses[:3] == [10.0, 40.0, 160.0]
    assert max(pauses) == scan.LONGEST_PAUSE
    assert bench.state.items.statuses() == {NEW: 1}
    bench.down = False
    bench.scan(scan.LONGEST_PAUSE)
    assert bench.state.items.held() == 1


def test_stopping_is_noticed(bench: Bench) -> None:
    """Nothing is begun when the seeder ends, and nothing is forgotten."""
    bench.add()
    bench.stopping = True
    assert bench.scan() == []
    bench.stopping = False
    assert len(bench.scan()) == 1


def test_many_items_are_told_of_bit_by_bit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first look at a large store takes long; trackers hear of items meanwhile."""
    monkeypatch.setattr(scan, "BATCH", 1)
    bench.add("a", b"1")
    bench.add("b", b"2")
    bench.scan()
    assert bench.changes == 1
    monkeypatch.setattr(scan, "SYNC_INTERVAL", 0.0)
    bench.add("c", b"3")
    bench.add("d", b"4")
    bench.scan(30)
    assert bench.changes == 3


def test_an_acl_that_revokes_a_key(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What only that key vouched for isn't offered, and everything is looked up again at once."""
    old = bench.add("old", b"1")
    signer, bench.world.signer = bench.world.signer, gcrypt.generate_key()
    new = bench.add("new", b"2")
    unknown = bench.add("unknown", b"3", vouch=False)
    bench.scan()
    acl = Acl.parse(render([sexp.parse(bench.world.signer.public)]), "acl")
    del bench.vouched[old.path]
    assert bench.scanner.rejudge(acl, bench)
    assert caplog.messages == [f"{old.path}: no longer vouched for"]
    assert bench.state.items.change(0).added == new.item.nar_hash
    assert sorted(bench.scan()) == sorted([old.path, unknown.path])
    bench.stopping = True
    assert not bench.scanner.rejudge(Acl.parse(render([sexp.parse(signer.public)]), "acl"), bench)


def test_rules(bench: Bench) -> None:
    """What they exclude isn't even looked up; what other rules allow is."""
    big, small = bench.add("big", b"1" * 9000), bench.add("small", b"2")
    secret = bench.add("secret", b"3")
    bench.start(Rules(exclude=["secret"]))
    assert bench.scan() == [small.path, big.path]
    assert bench.state.items.statuses() == {OFFERED: 2, "excluded": 1}
    bench.start(Rules(min_size=9000))
    bench.scanner.apply_rules()
    assert bench.state.items.statuses() == {OFFERED: 1, "too small": 2}
    assert bench.state.items.change(0).added == big.item.nar_hash
    bench.state.items.mark([big.path], WITHDRAWN)
    bench.start()
    bench.scanner.apply_rules()
    assert bench.scan() == [secret.path, small.path]
    assert bench.state.items.statuses() == {OFFERED: 2, WITHDRAWN: 1}


def test_who_vouches_for_what_was_fetched(bench: Bench) -> None:
    """The same as for anything else, within the rules, and unless its owner withdrew it."""
    good, other, gone = bench.add("good", b"1"), bench.add("x", b"2"), bench.add("gone", b"3")
    bench.start(Rules(exclude=["x"]))
    bench.scanner.look()
    bench.state.items.mark([gone.path], WITHDRAWN)
    found = dict(bench.scanner.find([good.item, other.item, gone.item]))
    assert found == {good.item: good.parsed, other.item: None, gone.item: None}


def test_what_can_t_be_read_may_be_gone(bench: Bench) -> None:
    """Only the inventory knows; what is gone is forgotten at once."""
    made = bench.add()
    bench.scan()
    assert not bench.scanner.gone(made.item)
    assert bench.state.items.held() == 1
    assert bench.scanner.gone(made.item._replace(nar_hash=bytes(32)))
    bench.scanner.look(thoroughly=True)
    bench.scan()
    bench.world.delete(made)
    assert bench.scanner.gone(made.item)
    assert bench.state.items.held() == 0


def test_holding_nothing_for_a_while(bench: Bench) -> None:
    """Items are told away and back; deletions are noticed all the same."""
    made = bench.add()
    bench.add("other", b"2")
    bench.scan()
    bench.scanner.hold(Scope.NONE)
    assert bench.state.items.held() == 0
    changes = bench.changes
    bench.world.delete(made)
    bench.scan(30)
    assert bench.changes == changes + 1
    bench.scanner.hold(Scope.ALL)
    assert bench.state.items.held() == 1
