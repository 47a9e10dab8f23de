# SPDX-License-Identifier: GPL-3.0-or-later
"""Payloads: made when they are wanted, seeded, and thrown away."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from narswarm import gcrypt, sexp
from narswarm.acl import Acl, render
from narswarm.errors import BusyError, NotFoundError
from narswarm.files import atomic_file
from narswarm.payload import file_name
from narswarm.swarm_events import TorrentStatus
from seeder import payloads
from seeder.eviction import HOT
from seeder.inventory import Item, StoreInventory
from seeder.items import NOT_VOUCHED, OFFERED, UNREADABLE, WITHDRAWN
from seeder.offering import RATIO_REACHED, RETRY, Offering
from seeder.payloads import PayloadMaker
from seeder.state import State
from tests.seeder.conftest import Made, World

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
        self.published: list[tuple[bytes, set[str]]] = []
        self.now = 1000.0
        self.stopping = False
        self.quota = 1 << 30
        self.premake = 0
        self.ratio = 0.0
        self.gone: bool | BusyError = False
        self.acl = Acl.load(world.acl)
        self.state = State(world.root / "state", lambda: self.now)
        self.start()

    def start(self, *, can_make: bool = True) -> None:
        """Start anew with the same state."""
        self.swarm = Swarm()
        self.maker = PayloadMaker(self.state.payloads, lambda: self.stopping, 1)
        self.offering = Offering(
            state=self.state,
            inventory=StoreInventory(self.world.database, self.world.store),
            maker=self.maker if can_make else None,
            quota=self.quota,
            premake=self.premake,
            ratio=self.ratio,
            swarm=self.swarm,
            trackers=[TRACKER],
            publish=self._publish,
            gone=self._gone,
            acl=self.acl,
            clock=lambda: self.now,
            stopping=lambda: self.stopping,
        )

    def _publish(self, nar_hash: bytes, trackers: Collection[str]) -> None:
        self.published.append((nar_hash, set(trackers)))

    def _gone(self, item: Item) -> bool:
        if isinstance(self.gone, BusyError):
            raise self.gone
        if self.gone:
            self.state.items.remove(item.store_path)
        return self.gone

    def add(self, name: str = "item", content: bytes = b"content") -> Made:
        """Have a new item that is vouched for."""
        made = self.world.make(name, content)
        self.world.register(made)
        self.state.items.add([(made.item, "")])
        self.state.items.vouched([(made.item, made.narinfo)])
        return made

    def make(self, *wanted: Made) -> None:
        """Have payloads made, a second after each other."""
        for made in wanted:
            self.now += 1
            self.offering.make(made.item.nar_hash)

    def there(self) -> list[str]:
        """Paths of items that have a payload, as files and as rows."""
        offers = {offer.payload: offer.store_path for offer in self.state.offers()}
        assert set(offers) == {path.name for path in self.state.payloads.iterdir()}
        return sorted(offers.values())

    def status(self, made: Made, **values: object) -> None:
        """Have the session say something of a torrent."""
        infohash = self.offering.infohash(made.item.nar_hash) or ""
        fields: dict[str, object] = {"state": "seeding"}
        self.swarm.torrents[infohash] = TorrentStatus(infohash, "x", **(fields | values))  # type: ignore[arg-type]  # by name


@pytest.fixture
def bench(world: World) -> Iterator[Bench]:
    """A new one."""
    made = Bench(world)
    yield made
    made.state.close()


def noise(size: int) -> bytes:
    """Bytes that don't compress."""
    return random.Random(size).randbytes(size)  # noqa: S311


def test_what_is_wanted_is_made(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Published to those who want it, before it is seeded; others that are offered are not made."""
    caplog.set_level("INFO")
    made, _ = bench.add("wanted", b"1" * 5000), bench.add("other", b"2")
    bench.offering.make(made.item.nar_hash, {TRACKER})
    (offer,) = bench.state.offers()
    assert (offer.nar_hash, offer.store_path) == (made.item.nar_hash, made.path)
    assert bench.published == [(made.item.nar_hash, {TRACKER})]
    assert bench.swarm.seeded == [(offer.payload, (TRACKER,))]
    assert bench.offering.infohash(made.item.nar_hash) == offer.infohash
    assert bench.offering.infohashes() == [offer.infohash]
    assert len(bench.offering) == 1
    assert bench.there() == [made.path]
    (line,) = caplog.messages
    assert line.startswith(f"seeding {made.path}: ")


def test_what_is_here_is_only_published(bench: Bench) -> None:
    """A tracker that asks for it has forgotten it."""
    made = bench.add()
    bench.make(made, made)
    assert len(bench.swarm.seeded) == 1
    assert len(bench.published) == 2
    assert bench.state.payload_list()[0].requests == 2


@pytest.mark.parametrize("status", [WITHDRAWN, "excluded", NOT_VOUCHED])
def test_what_isn_t_offered_isn_t_made(bench: Bench, status: str) -> None:
    """Whoever asks, and whatever the tracker was told once."""
    made = bench.add()
    bench.state.items.mark([made.path], status)
    bench.offering.make(made.item.nar_hash)
    bench.offering.make(bytes(32))
    bench.offering.paused = True
    bench.state.items.mark([made.path], OFFERED)
    bench.offering.make(made.item.nar_hash)
    assert (bench.there(), bench.published) == ([], [])


def test_a_signature_is_checked_once_more(bench: Bench) -> None:
    """The ACL may have been changed since an item was looked up."""
    made = bench.add()
    bench.acl = Acl.parse(render([sexp.parse(gcrypt.generate_key().public)]), "acl")
    bench.start()
    bench.offering.make(made.item.nar_hash)
    assert bench.there() == []
    assert bench.state.items.statuses() == {NOT_VOUCHED: 1}


def test_a_machine_that_can_t_make_payloads(bench: Bench) -> None:
    """Another zstd: what is there is seeded, nothing is made."""
    old, new = bench.add("old", b"1"), bench.add("new", b"2")
    bench.make(old)
    bench.start(can_make=False)
    bench.offering.restore()
    bench.make(new)
    assert bench.there() == [old.path]
    assert not bench.offering.make_spare()


# What is kept


def test_a_restart_hashes_nothing(bench: Bench) -> None:
    """What was complete is seeded again, and not published once more."""
    made = bench.add()
    bench.make(made)
    bench.world.store.rename(bench.world.root / "elsewhere")
    bench.start()
    bench.offering.restore()
    assert len(bench.offering) == 1
    assert len(bench.swarm.seeded) == 1
    assert len(bench.published) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.unlink(), "its payload is lost: No such file or directory"),
        (lambda path: path.write_bytes(b"x"), "its payload has 1 bytes instead of 85"),
    ],
)
def test_payloads_that_are_lost_are_made_again(
    bench: Bench,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Path], object],
    reason: str,
) -> None:
    """When they are wanted; the torrent is the same."""
    made = bench.add("item", b"content")
    bench.make(made)
    (before,) = bench.state.offers()
    change(bench.state.payloads / before.payload)
    bench.start()
    bench.offering.restore()
    assert caplog.messages == [f"{made.path}: {reason}"]
    assert (len(bench.offering), bench.there()) == (0, [])
    bench.make(made)
    assert bench.state.offers() == [before]


def test_files_of_a_killed_seeder_are_removed(bench: Bench) -> None:
    """They were never complete."""
    (bench.state.payloads / ".x.nar.zst.abc").write_bytes(b"half")
    bench.offering.restore()
    assert bench.there() == []


def test_an_acl_that_revokes_a_key(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Payloads that only it vouched for are dropped at once."""
    old = bench.add("old", b"1")
    bench.world.signer = gcrypt.generate_key()
    new = bench.add("new", b"2")
    bench.make(old)
    caplog.clear()
    bench.offering.rejudge(Acl.parse(render([sexp.parse(bench.world.signer.public)]), "acl"))
    assert caplog.messages == [f"{old.path}: no longer vouched for"]
    assert bench.there() == []
    bench.make(new)
    assert bench.there() == [new.path]


def test_what_is_no_longer_offered_is_dropped(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """What `guix gc` deleted isn't kept."""
    caplog.set_level("INFO")
    gone, kept = bench.add("gone", b"1"), bench.add("kept", b"2")
    bench.make(gone, kept)
    bench.status(gone)
    bench.state.items.remove(gone.path)
    caplog.clear()
    bench.offering.reconcile()
    assert caplog.messages == [f"dropping {gone.path}, which is no longer offered"]
    assert bench.there() == [kept.path]
    assert bench.swarm.torrents == {}
    assert bench.offering.infohash(gone.item.nar_hash) is None


def test_what_was_fetched_is_seeded(bench: Bench) -> None:
    """And stays until an item has its NAR; a payload that was another NAR goes."""
    made = bench.add()
    bench.make(made)
    nar = bench.state.get(made.item.nar_hash)
    bench.state.drop(made.item.nar_hash)
    bench.start()
    bench.state.items.remove(made.path)
    (bench.state.payloads / nar.payload).write_bytes(bytes(nar.length))
    bench.offering.adopt(nar)
    bench.offering.reconcile()
    assert len(bench.offering) == 1
    assert bench.published[-1] == (nar.nar_hash, set())
    bench.offering.withdraw(nar.nar_hash, "another")
    bench.offering.withdraw(bytes(32), nar.infohash)
    assert len(bench.offering) == 1
    bench.offering.withdraw(nar.nar_hash, nar.infohash)
    assert (len(bench.offering), bench.there()) == (0, [])


# What fails


def test_an_item_that_can_t_be_read(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """It isn't offered for a while; others are."""
    bad, good = bench.add("bad", b"1"), bench.add("good", b"2")
    (bench.world.store / bad.path.rpartition("/")[2]).write_bytes(b"3")
    bench.make(bad, good)
    assert bench.there() == [good.path]
    assert caplog.messages == [f"{bad.path}: has another NAR than the database says"]
    assert bench.state.items.statuses() == {UNREADABLE: 1, OFFERED: 1}
    bench.now += RETRY
    assert bench.state.items.pending(9) == [bad.item]


def test_an_item_that_is_deleted_while_it_is_read(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves nothing behind, and is no error; if that can't be found out now, it is retried."""
    caplog.set_level("INFO")
    made = bench.add("tree", noise(9 << 20))
    chunks = StoreInventory.open

    def vanishing(inventory: StoreInventory, item: Item) -> Iterator[bytes]:
        for number, chunk in enumerate(chunks(inventory, item)):
            if number == 1:
                file = bench.world.store / item.store_path.rpartition("/")[2]
                file.write_bytes(b"")
                file.unlink()
            yield chunk

    monkeypatch.setattr(StoreInventory, "open", vanishing)
    bench.gone = True
    bench.make(made)
    assert bench.there() == []
    assert caplog.messages == [f"{made.path} was deleted before its payload was made"]
    assert len(bench.state.items) == 0
    again = bench.add("again", noise(9 << 20))
    bench.gone = BusyError("db", "is locked")
    bench.make(again)
    assert bench.state.items.statuses() == {UNREADABLE: 1}


def test_another_payload_than_before(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Made again, a payload has to have the infohash that trackers know."""
    made = bench.add()
    bench.make(made)
    nar = bench.state.get(made.item.nar_hash)
    bench.offering.withdraw(nar.nar_hash, nar.infohash)
    bench.state.add(nar._replace(infohash="00" * 32), [], 0)
    bench.state.evict(nar.nar_hash)
    bench.make(made)
    assert caplog.messages[-1] == f"{made.path}: has another payload than when it was made"
    assert bench.there() == []
    bench.state.items.vouched([(made.item, made.narinfo)])
    bench.make(made)
    assert bench.there() == [made.path]


def test_stopping_is_noticed(bench: Bench) -> None:
    """Nothing is half done, and nothing is noted."""
    made = bench.add()
    bench.stopping = True
    bench.make(made)
    assert bench.there() == []
    assert bench.state.items.statuses() == {OFFERED: 1}
    bench.stopping = False
    bench.make(made)
    bench.start()
    bench.stopping = True
    bench.offering.restore()
    assert bench.swarm.seeded == []


# Room


def test_room_is_made_for_what_is_wanted(bench: Bench) -> None:
    """By what was wanted longest ago; its torrent is kept, and is the same when it comes back."""
    made = [bench.add(f"{n}", noise(100_000 + n)) for n in range(3)]
    bench.quota = 250_000
    bench.start()
    bench.make(made[0], made[1])
    first = bench.state.get(made[0].item.nar_hash)
    bench.now += HOT
    bench.make(made[2])
    assert bench.there() == [made[1].path, made[2].path]
    bench.now += HOT
    bench.status(made[1], upload_rate=5)
    bench.make(made[0])
    assert bench.there() == [made[0].path, made[1].path]
    assert bench.state.get(made[0].item.nar_hash) == first
    assert bench.offering.full == ""


def test_hot_payloads_stay(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What is wanted then is refused, which is said once, until there is room again."""
    made = [bench.add(f"{n}", noise(100_000 + n)) for n in range(4)]
    bench.quota = 250_000
    bench.start()
    bench.make(*made)
    assert bench.there() == [made[0].path, made[1].path]
    reason = f"{bench.state.payloads}: may hold 250000 bytes and is full"
    assert bench.offering.full == reason
    assert caplog.messages == [reason]
    assert bench.state.items.statuses() == {OFFERED: 4}
    bench.now += HOT
    bench.make(made[3])
    assert bench.offering.full == ""


def test_a_full_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left behind, and the next time may go well."""
    made = bench.add("item", noise(100_000))
    real = atomic_file

    class Full:
        def __init__(self, path: Path) -> None:
            self._real = real(path)

        def __enter__(self) -> Self:
            self._file = self._real.__enter__()
            return self

        def write(self, data: bytes) -> int:
            self._file.write(data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

        def __exit__(self, *error: object) -> bool | None:
            return self._real.__exit__(*error)  # type: ignore[arg-type]  # as it was given

    monkeypatch.setattr(payloads, "atomic_file", Full)
    bench.make(made)
    assert bench.there() == []
    assert bench.offering.full == f"{bench.state.payloads}: No space left on device"
    monkeypatch.undo()
    bench.make(made)
    assert bench.there() == [made.path]


def test_quiet_times(bench: Bench) -> None:
    """The newest items are made before somebody asks, as far as the setting goes."""
    made = [bench.add(f"{n}", noise(100_000 + n)) for n in range(4)]
    assert not bench.offering.make_spare()
    bench.premake = 150_000
    bench.quota = 1 << 20
    bench.start()
    assert bench.offering.make_spare()
    assert bench.there() == [made[3].path]
    assert bench.published == [(made[3].item.nar_hash, set())]
    assert bench.offering.make_spare()
    assert bench.there() == [made[2].path, made[3].path]
    assert not bench.offering.make_spare()


def test_quiet_times_throw_nothing_away(bench: Bench) -> None:
    """What doesn't fit is passed over until there is room, and that is said."""
    large, small = bench.add("large", noise(200_000)), bench.add("small", noise(90_000))
    bench.quota = bench.premake = 250_000
    bench.start()
    assert [bench.offering.make_spare() for _ in range(3)] == [True, True, False]
    assert bench.there() == [small.path]
    assert bench.offering.full == f"{bench.state.payloads}: may hold 250000 bytes and is full"
    bench.state.items.remove(small.path)
    bench.offering.reconcile()
    assert bench.offering.make_spare()
    assert bench.there() == [large.path]
    assert bench.offering.full == ""


# What is sent


def test_what_was_sent_is_kept(bench: Bench) -> None:
    """Added up over runs, with the seeds besides this one."""
    made = bench.add()
    bench.make(made)
    bench.status(made, uploaded=100, complete=3)
    bench.swarm.torrents["other"] = TorrentStatus("other", "y", uploaded=7)
    bench.offering.count()
    bench.status(made, uploaded=150, complete=-1)
    bench.now += 50
    bench.offering.count()
    (payload,) = bench.state.payload_list()
    assert (payload.uploaded, payload.others, payload.used) == (150, -1, bench.now)
    bench.start()
    bench.offering.restore()
    bench.status(made, uploaded=10, complete=3)
    bench.offering.count()
    (payload,) = bench.state.payload_list()
    assert (payload.uploaded, payload.others) == (160, 2)


def test_the_ratio(bench: Bench) -> None:
    """What was sent often enough is offered no more, also after a restart."""
    made, other = bench.add("made", b"1"), bench.add("other", b"2")
    bench.ratio = 2.0
    bench.start()
    bench.make(made, other)
    length = bench.state.get(made.item.nar_hash).length
    bench.status(made, uploaded=2 * length - 1)
    bench.status(other, uploaded=1)
    assert not bench.offering.count()
    assert bench.state.items.statuses() == {OFFERED: 2}
    bench.status(made, uploaded=2 * length)
    assert bench.offering.count()
    bench.offering.reconcile()
    assert bench.state.items.statuses() == {OFFERED: 1, RATIO_REACHED: 1}
    assert bench.there() == [other.path]
    bench.make(made)
    assert bench.there() == [other.path]


def test_a_damaged_payload_is_taken_out(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What libtorrent found damaged isn't seeded, and is made again when it is wanted."""
    bad, fine = bench.add("bad", b"1"), bench.add("fine", b"2")
    bench.make(bad, fine)
    bench.status(bad, state="error", error="I/O error")
    bench.status(fine)
    bench.swarm.torrents["other"] = TorrentStatus("other", "y", "error")
    bench.offering.check()
    assert caplog.messages == [f"{bad.path}: its payload is damaged: I/O error"]
    assert bench.there() == [fine.path]
    bench.make(bad)
    assert bench.there() == [bad.path, fine.path]
    assert (bench.state.payloads / file_name(bad.item.nar_hash)).is_file()
