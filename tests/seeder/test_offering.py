# SPDX-License-Identifier: GPL-3.0-or-later
"""How items come to be offered, and how they cease to be."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from narswarm import gcrypt, narinfo
from narswarm.acl import Acl
from narswarm.errors import NarswarmError, NotFoundError
from narswarm.narinfo import Narinfo
from narswarm.swarm import TorrentStatus
from seeder import offering
from seeder.inventory import Item, StoreInventory
from seeder.offering import FIRST_RETRY, FULL_PAUSE, Offering
from seeder.payloads import PayloadMaker
from seeder.state import State
from tests.seeder.conftest import SERVER, Made, World

TRACKER = "http://t/announce"


class Swarm:
    """Seeds nothing, but knows what it should."""

    def __init__(self) -> None:
        self.torrents: dict[str, TorrentStatus] = {}
        self.seeded: list[tuple[str, tuple[str, ...]]] = []

    def seed(self, torrent: bytes, payload: Path, trackers: Sequence[str]) -> str:
        """As `narswarm.swarm.Swarm` does; the infohash is looked up by the payload."""
        assert torrent.startswith(b"d4:info")
        assert payload.is_file()
        self.seeded.append((payload.name, tuple(trackers)))
        return ""

    def remove(self, infohash: str) -> None:
        """As `narswarm.swarm.Swarm` does."""
        if self.torrents.pop(infohash, None) is None:
            raise NotFoundError(infohash, "is not in this session")

    def status(self) -> list[TorrentStatus]:
        """What the test says."""
        return list(self.torrents.values())


class Bench:
    """An offering with everything around it in the test's hands."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.vouched: dict[str, Narinfo] = {}
        self.swarm = Swarm()
        self.published: list[bytes] = []
        self.now = 1000.0
        self.stopping = False
        self.quota = 1 << 30
        self.state = State(world.root / "state")
        self.made: list[str] = []
        self.start()

    def start(self, *, can_make: bool = True) -> None:
        """Start anew with the same state."""
        self.swarm = Swarm()
        self.maker: PayloadMaker | None = PayloadMaker(
            self.state.payloads, self.quota, self.state.used, lambda: self.stopping, 1
        )
        self.offering = Offering(
            state=self.state,
            inventory=StoreInventory(self.world.database, self.world.store),
            vouchers=self,
            maker=self.maker if can_make else None,
            swarm=self.swarm,
            trackers=[TRACKER],
            publish=self._publish,
            clock=lambda: self.now,
            stopping=lambda: self.stopping,
        )

    def find(self, items: Sequence[Item]) -> Iterator[tuple[Item, Narinfo | None]]:
        """The test's vouchers."""
        for item in items:
            self.made.append(item.store_path)
            yield item, self.vouched.get(item.store_path)

    def _publish(self, nar_hash: bytes) -> None:
        assert not self.offering.infohash(nar_hash), "it was seeded before it was published"
        self.published.append(nar_hash)

    def add(self, name: str = "item", content: bytes = b"content", *, vouch: bool = True) -> Made:
        """Have a new item in the store."""
        made = self.world.make(name, content)
        self.world.register(made)
        if vouch:
            self.vouched[made.path] = made.parsed
        return made

    def scan(self, later: float = 0.0) -> list[str]:
        """Scan after some seconds; what was looked at."""
        self.now += later
        self.made.clear()
        self.offering.scan()
        return list(self.made)

    def payloads(self) -> int:
        """How many payloads there are."""
        return len(list(self.state.payloads.iterdir()))


@pytest.fixture
def bench(world: World) -> Iterator[Bench]:
    """A new one."""
    made = Bench(world)
    yield made
    made.state.close()


def test_only_what_is_vouched_for_is_offered(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The other item leaves no trace but a note to look again."""
    caplog.set_level("INFO")
    good = bench.add("good", b"public" * 1000)
    secret = bench.add("secret", vouch=False)
    bench.scan()
    (offer,) = bench.state.offers()
    assert (offer.nar_hash, offer.store_path) == (good.item.nar_hash, good.path)
    assert bench.published == [good.item.nar_hash]
    assert bench.swarm.seeded == [(offer.payload, (TRACKER,))]
    assert bench.offering.infohash(good.item.nar_hash) == offer.infohash
    assert bench.offering.infohashes() == [offer.infohash]
    assert (len(bench.offering), bench.payloads()) == (1, 1)
    assert bench.state.misses() == {"not vouched for": 1}
    assert bench.state.missed() == {secret.path}
    (line,) = caplog.messages
    assert line.startswith(f"seeding {good.path}: ")
    assert line.endswith(" B, of a NAR of 6.0 KiB")


def test_the_published_narinfo_has_absolute_urls(bench: Bench) -> None:
    """A relative URL means nothing at a tracker; the signature stays good."""
    made = bench.add()
    bench.scan()
    kept = bench.state.get(made.item.nar_hash).narinfo
    (source,) = narinfo.parse(kept).sources
    assert source.url == f"{SERVER}/nar/{made.path.rpartition('/')[2]}"
    acl = Acl.load(bench.world.acl)
    assert narinfo.verdict(kept, acl) is narinfo.Verdict.VALID_SIGNATURE


def test_the_newest_come_first(bench: Bench) -> None:
    """When there isn't room for all, the newest are wanted most."""
    made = [bench.add(f"item{number}") for number in range(3)]
    assert bench.scan() == [each.path for each in reversed(made)]


def test_a_scan_looks_at_what_is_new(bench: Bench) -> None:
    """What was offered or missed isn't looked at again until its time comes."""
    bench.add("offered", b"1")
    missed = bench.add("missed", b"2", vouch=False)
    assert len(bench.scan()) == 2
    assert bench.scan() == []
    new = bench.add("new", b"3")
    assert bench.scan() == [new.path]
    assert bench.scan(FIRST_RETRY - 1) == []
    assert bench.scan(1) == [missed.path]
    assert bench.scan(2 * FIRST_RETRY - 1) == []
    bench.vouched[missed.path] = missed.parsed
    assert bench.scan(1) == [missed.path]
    assert len(bench.offering) == 3
    assert bench.state.misses() == {}


def test_a_restart_needs_nobody(bench: Bench, acl: Acl) -> None:
    """What was offered is offered again; what was missed waits for its time."""
    bench.add("offered", b"1")
    bench.add("missed", b"2", vouch=False)
    bench.scan()
    (bench.state.payloads / "leftover").write_bytes(b"")
    bench.start()
    bench.offering.restore(acl, "acl")
    assert len(bench.swarm.seeded) == len(bench.offering) == bench.payloads() == 1
    assert bench.scan() == []


def test_equal_contents_are_one_nar(bench: Bench) -> None:
    """A second item with the same NAR costs nothing, in whatever order they come."""
    bench.add("a", b"same")
    bench.add("b", b"same")
    bench.scan()
    bench.add("c", b"same")
    assert bench.scan() == []
    assert (len(bench.offering), bench.payloads()) == (1, 1)


def test_a_lost_payload_is_made_again(
    bench: Bench, acl: Acl, caplog: pytest.LogCaptureFixture
) -> None:
    """Files that somebody deleted or cut off aren't offered after a restart."""
    lost, cut = bench.add("lost", b"1"), bench.add("cut", b"2")
    bench.scan()
    payloads = {offer.store_path: offer for offer in bench.state.offers()}
    (bench.state.payloads / payloads[lost.path].payload).unlink()
    (bench.state.payloads / payloads[cut.path].payload).write_bytes(b"x")
    bench.start()
    bench.offering.restore(acl, "acl")
    assert bench.swarm.seeded == []
    assert sorted(caplog.messages) == [
        f"{lost.path}: its payload is lost: No such file or directory",
        f"{cut.path}: its payload has 1 bytes instead of {payloads[cut.path].length}",
    ]
    bench.scan()
    assert len(bench.offering) == 2


def test_a_key_that_lost_its_authority(
    bench: Bench, acl: Acl, caplog: pytest.LogCaptureFixture
) -> None:
    """After a change of the ACL only what its keys vouch for is offered."""
    kept = bench.add("kept", b"1")
    bench.world.signer = gcrypt.generate_key()
    other = bench.add("other", b"2")
    bench.scan()
    bench.start()
    bench.state.set_note("acl", "old")
    bench.offering.restore(acl, "old")
    assert len(bench.offering) == 2
    bench.start()
    bench.offering.restore(acl, "new")
    assert [offer.store_path for offer in bench.state.offers()] == [kept.path]
    assert caplog.messages == [f"{other.path}: no longer vouched for: unauthorized-key"]
    assert bench.state.note("acl") == "new"


def test_a_bad_item_does_not_hold_up_others(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A store whose files were changed: a warning, nothing announced, the rest goes on."""
    good, bad = bench.add("good", b"1"), bench.add("bad", b"2")
    file = bench.world.store / bad.path.rpartition("/")[2]
    file.write_bytes(b"3")
    bench.scan()
    assert [offer.store_path for offer in bench.state.offers()] == [good.path]
    assert bench.published == [good.item.nar_hash]
    assert caplog.messages == [f"{bad.path}: has another NAR than the database says"]
    assert bench.state.misses() == {"unreadable": 1}
    file.write_bytes(b"2")
    bench.scan(FIRST_RETRY)
    assert len(bench.offering) == 2


def test_no_room(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full quota is said once and looked at again later; nothing dies of it."""
    monkeypatch.setattr(offering, "FEW", 2)
    bench.quota = 10
    bench.start()
    made = [bench.add(f"item{number}", b"%d" % number * 50) for number in range(4)]
    assert bench.scan() == [made[3].path, made[2].path]
    assert caplog.messages == [f"{bench.state.payloads}: would hold more than 10 bytes"]
    assert bench.offering.full == caplog.messages[0]
    assert bench.state.misses() == {"no room": 2}
    assert bench.scan(FULL_PAUSE - 1) == []
    bench.quota = 1 << 30
    bench.start()
    bench.scan(1)
    assert len(bench.offering) == 4
    assert bench.offering.full == ""


def test_full_as_long_as_an_item_has_no_room(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a smaller item that fits nor a restart hides that another one doesn't."""
    bench.quota = 1000
    bench.start()
    large = bench.add("large", random.Random(1).randbytes(2000))  # noqa: S311
    bench.add("small", b"1")
    bench.scan()
    assert len(bench.offering) == 1
    reason = f"{bench.state.payloads}: would hold more than 1000 bytes"
    assert bench.offering.full == reason
    bench.add("new", b"2")
    bench.scan(1)
    assert len(bench.offering) == 2
    assert bench.offering.full == reason
    bench.start()
    assert bench.offering.full == f"{bench.state.payloads}: had no room for everything"
    bench.scan(1)
    assert caplog.messages == [reason]
    bench.scan(FULL_PAUSE)
    assert caplog.messages == [reason, reason]
    bench.world.delete(large)
    bench.offering.expire()
    assert bench.offering.full == ""


def test_room_that_expiry_makes_is_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping an item ends the pause."""
    monkeypatch.setattr(offering, "FEW", 1)
    old = bench.add("old", b"1")
    bench.scan()
    bench.quota = bench.state.used()
    bench.start()
    bench.offering.restore(Acl.load(bench.world.acl), "acl")
    new = bench.add("new", b"2")
    bench.scan()
    assert bench.offering.full
    bench.world.delete(old)
    bench.offering.expire()
    bench.scan(FULL_PAUSE)
    assert [offer.store_path for offer in bench.state.offers()] == [new.path]


def test_a_machine_that_can_t_make_payloads(bench: Bench, acl: Acl) -> None:
    """Another zstd: what is there is seeded, nothing is made or even asked for."""
    bench.add("old", b"1")
    bench.scan()
    bench.add("new", b"2")
    bench.start(can_make=False)
    bench.offering.restore(acl, "acl")
    assert bench.scan() == []
    assert len(bench.offering) == 1


def test_stopping_is_noticed(bench: Bench, acl: Acl) -> None:
    """Nothing is begun when the seeder ends, and nothing is forgotten."""
    bench.add()
    bench.stopping = True
    bench.scan()
    assert (len(bench.offering), bench.state.misses()) == (0, {})
    bench.stopping = False
    bench.scan()
    assert len(bench.offering) == 1
    bench.start()
    bench.stopping = True
    bench.offering.restore(acl, "acl")
    assert bench.swarm.seeded == []


def test_deleted_items_are_dropped(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What `guix gc` deleted isn't kept, and neither are notes about it."""
    caplog.set_level("INFO")
    gone, kept = bench.add("gone", b"1"), bench.add("kept", b"2")
    note = bench.add("note", b"3", vouch=False)
    bench.scan()
    infohash = bench.offering.infohash(gone.item.nar_hash)
    assert infohash
    bench.swarm.torrents[infohash] = TorrentStatus(infohash, "x", "seeding")
    bench.world.delete(gone)
    bench.world.delete(note)
    caplog.clear()
    bench.offering.expire()
    assert caplog.messages == [f"dropping {gone.path}, which is no longer here"]
    assert [offer.store_path for offer in bench.state.offers()] == [kept.path]
    assert bench.swarm.torrents == {}
    assert (bench.payloads(), bench.state.missed()) == (1, set())
    assert bench.offering.infohash(gone.item.nar_hash) is None


def test_an_item_deleted_before_its_retry_is_forgotten(bench: Bench) -> None:
    """Also when there are so many that the inventory is read as a whole."""
    notes = [bench.add(f"{number}", b"%d" % number, vouch=False) for number in range(3)]
    bench.scan()
    bench.world.delete(notes[0])
    assert set(bench.scan(FIRST_RETRY)) == {notes[1].path, notes[2].path}
    assert bench.state.missed() == {notes[1].path, notes[2].path}


def test_many_retries_read_the_inventory_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of single questions would take longer."""
    monkeypatch.setattr(offering, "FEW", 1)
    notes = [bench.add(f"{number}", b"%d" % number, vouch=False) for number in range(3)]
    bench.scan()
    bench.world.delete(notes[0])
    assert set(bench.scan(FIRST_RETRY)) == {notes[1].path, notes[2].path}
    assert bench.state.missed() == {notes[1].path, notes[2].path}


def test_a_retry_of_what_is_offered_by_now(bench: Bench) -> None:
    """An item whose twin was vouched for meanwhile needs no more tries."""
    missed = bench.add("missed", b"same", vouch=False)
    bench.scan()
    bench.add("twin", b"same")
    bench.scan()
    assert bench.scan(FIRST_RETRY) == []
    assert missed.path not in bench.state.missed()


def test_an_inventory_that_is_empty_all_of_a_sudden(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that was replaced by an empty one isn't a reason to drop everything."""
    made = bench.add()
    bench.scan()
    bench.world.delete(made)
    bench.offering.expire()
    assert len(bench.offering) == 1
    assert caplog.messages == ["the inventory is empty all of a sudden; nothing is dropped"]


def test_an_inventory_that_can_t_be_read(bench: Bench) -> None:
    """Nothing is dropped, and the error says why."""
    bench.add()
    bench.scan()
    bench.world.database.unlink()
    calls: list[Callable[[], None]] = [bench.offering.expire, bench.offering.scan]
    for call in calls:
        with pytest.raises(NarswarmError):
            call()
    assert len(bench.offering) == 1


def test_a_damaged_payload_is_made_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What libtorrent found damaged is taken out at once and tried again a second later."""
    made, fine = bench.add("bad", b"1"), bench.add("fine", b"2")
    bench.scan()
    for each, state in ((made, "error"), (fine, "seeding")):
        infohash = bench.offering.infohash(each.item.nar_hash) or ""
        status = TorrentStatus(infohash, "x", state, error="I/O error" * (state == "error"))
        bench.swarm.torrents[infohash] = status
    bench.swarm.torrents["other"] = TorrentStatus("other", "y", "error")
    bench.offering.check()
    assert caplog.messages == [f"{made.path}: its payload is damaged: I/O error"]
    assert [offer.store_path for offer in bench.state.offers()] == [fine.path]
    assert bench.scan() == []
    assert bench.scan(1) == [made.path]
    assert len(bench.offering) == 2
