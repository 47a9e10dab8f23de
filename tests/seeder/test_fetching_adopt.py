# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.fetching_adopt: what may be offered of what was fetched."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from narswarm.errors import InvalidInputError, MismatchError, NarswarmError
from narswarm.fetchclient import Wanted
from narswarm.narinfo import Narinfo
from narswarm.payload import FrameCompressor, Kind, file_name
from seeder.fetching import Fetched, Local
from seeder.fetching_adopt import Adopter
from seeder.inventory import Item
from seeder.state import Nar, State
from tests.seeder.conftest import Made, World


def leave() -> None:
    """No swarm is to be left."""


class Offers:
    """Remembers."""

    def __init__(self) -> None:
        self.adopted: list[Nar] = []
        self.withdrawn: list[tuple[bytes, str]] = []

    def adopt(self, nar: Nar) -> None:
        """Remember it."""
        self.adopted.append(nar)

    def withdraw(self, nar_hash: bytes, infohash: str) -> None:
        """Remember it."""
        self.withdrawn.append((nar_hash, infohash))


class Bench:
    """An adopter with everything around it in the test's hands."""

    def __init__(self, world: World, state: State) -> None:
        self.world = world
        self.state = state
        self.offers = Offers()
        self.vouched: dict[str, Narinfo] = {}
        self.asked: list[Item] = []
        self.refused: list[tuple[bytes, str]] = []
        self.room = 1 << 20
        self.stopping = False
        self.adopter = Adopter(
            state,
            self.offers,
            self,
            lambda nar_hash, infohash: self.refused.append((nar_hash, infohash)),
            lambda: self.room,
            lambda: self.stopping,
        )

    def find(self, items: Sequence[Item]) -> Iterator[tuple[Item, Narinfo | None]]:
        """Vouch for what the test says."""
        for item in items:
            self.asked.append(item)
            yield item, self.vouched.get(item.store_path)

    def fetched(self, made: Made, nar: bytes | None = None) -> Fetched:
        """The payload of an item, or of another NAR under its name."""
        path = self.world.root / "fetched" / file_name(made.item.nar_hash)
        path.parent.mkdir(exist_ok=True)
        with FrameCompressor([made.nar if nar is None else nar]) as frames:
            path.write_bytes(b"".join(frames))
        _, store_path, nar_hash, nar_size = made.item
        payload = Local(path, "ab" * 32, Kind.ZSTD, path.stat().st_size)
        return Fetched(Wanted(nar_hash, nar_size, store_path), b"torrent", payload)


@pytest.fixture
def bench(world: World, tmp_path: Path) -> Iterator[Bench]:
    """An adopter."""
    with State(tmp_path / "state") as state:
        yield Bench(world, state)


def test_what_is_vouched_for_is_offered(bench: Bench, world: World) -> None:
    """From the directory of payloads, with the narinfo of a substitute server."""
    made = world.make()
    bench.vouched[made.path] = made.parsed
    fetched = bench.fetched(made)
    payload = fetched.payload.path.read_bytes()
    left: list[bool] = []
    path = bench.adopter.finish(fetched, lambda: left.append(fetched.payload.path.exists()))
    assert left == [True]
    assert path == bench.state.payloads / file_name(made.item.nar_hash)
    assert path.read_bytes() == payload
    (nar,) = bench.offers.adopted
    assert nar[:-1] == (
        made.item.nar_hash,
        made.path,
        made.item.nar_size,
        path.name,
        len(payload),
        "ab" * 32,
        b"torrent",
    )
    assert b"https://server.example.org/nar/" in nar.narinfo
    bench.state.add(nar, [], 0)
    assert bench.adopter.local(made.item.nar_hash) == Local(
        path, "ab" * 32, Kind.ZSTD, len(payload)
    )
    assert bench.adopter.finish(bench.fetched(made), leave) is None
    path.write_bytes(b"")
    assert bench.adopter.local(made.item.nar_hash) is None
    path.unlink()
    assert bench.adopter.local(made.item.nar_hash) is None


def test_what_nobody_vouches_for_is_not(bench: Bench, world: World) -> None:
    """That it was asked for is no reason."""
    fetched = bench.fetched(world.make())
    assert bench.adopter.finish(fetched, leave) is None
    assert fetched.payload.path.exists()
    assert (bench.offers.adopted, bench.refused) == ([], [])
    assert bench.adopter.local(fetched.wanted.nar_hash) is None


@pytest.mark.parametrize("other", [b"x", b"y" * 100_000])
def test_another_nar_is_refused(bench: Bench, world: World, other: bytes) -> None:
    """Nobody is asked about it."""
    made = world.make()
    bench.vouched[made.path] = made.parsed
    with pytest.raises((MismatchError, InvalidInputError)):
        bench.adopter.finish(bench.fetched(made, other), leave)
    assert bench.refused == [(made.item.nar_hash, "ab" * 32)]
    assert (bench.asked, bench.offers.adopted) == ([], [])


def test_what_has_no_room_or_another_kind(bench: Bench, world: World) -> None:
    """Isn't offered, nor looked at; at the end of the seeder neither."""
    made = world.make()
    bench.vouched[made.path] = made.parsed
    fetched = bench.fetched(made)
    kind = fetched._replace(payload=fetched.payload._replace(kind=Kind.NAR))
    assert bench.adopter.finish(kind, leave) is None
    bench.room = fetched.payload.length - 1
    assert bench.adopter.finish(fetched, leave) is None
    bench.room += 1
    bench.stopping = True
    assert bench.adopter.finish(fetched, leave) is None
    assert bench.asked == []
    bench.stopping = False
    assert bench.adopter.finish(fetched, leave) is not None


def test_a_file_that_cannot_be_moved(bench: Bench, world: World) -> None:
    """Is an error."""
    made = world.make()
    bench.vouched[made.path] = made.parsed
    path = bench.state.payloads / file_name(made.item.nar_hash)
    path.mkdir()
    with pytest.raises(NarswarmError) as caught:
        bench.adopter.finish(bench.fetched(made), leave)
    assert str(caught.value) == f"{path}: Is a directory"


def test_a_refusal_is_passed_on(bench: Bench) -> None:
    """To what offers."""
    bench.adopter.withdraw(b"\1" * 32, "ab" * 32)
    assert bench.offers.withdrawn == [(b"\1" * 32, "ab" * 32)]


class Mirrors:
    """The files of servers that are seeded."""

    def __init__(self) -> None:
        self.files: dict[bytes, Local] = {}
        self.taken: list[tuple[Path, bytes, str]] = []
        self.withdrawn: list[tuple[bytes, str]] = []

    def local(self, nar_hash: bytes) -> Local | None:
        """What the test says."""
        return self.files.get(nar_hash)

    def has(self, nar_hash: bytes) -> bool:
        """What the test says."""
        return nar_hash in self.files

    def take(self, path: Path, torrent: bytes, info: Narinfo) -> Path | None:
        """Remember it."""
        self.taken.append((path, torrent, info.store_path))
        return path

    def withdraw(self, nar_hash: bytes, infohash: str) -> None:
        """Remember it."""
        self.withdrawn.append((nar_hash, infohash))


def test_a_server_file(bench: Bench, world: World) -> None:
    """It goes to those of servers, under the same conditions, and comes from there."""
    made = world.make()
    mirrors = Mirrors()
    adopter = Adopter(
        bench.state, bench.offers, bench, bench.adopter._refuse, lambda: 0, lambda: False, mirrors
    )

    def fetched(nar: bytes) -> Fetched:
        before = bench.fetched(made)
        before.payload.path.write_bytes(gzip.compress(nar))
        return before._replace(payload=before.payload._replace(kind=Kind.SERVER))

    assert adopter.finish(fetched(made.nar), leave) is None
    bench.vouched[made.path] = made.parsed
    good = fetched(made.nar)
    assert adopter.finish(good, leave) == good.payload.path
    assert mirrors.taken == [(good.payload.path, b"torrent", made.path)]
    with pytest.raises(NarswarmError):
        adopter.finish(fetched(b"another"), leave)
    assert bench.refused == [(made.item.nar_hash, "ab" * 32)]
    local = mirrors.files[made.item.nar_hash] = good.payload
    assert adopter.local(made.item.nar_hash) == local
    assert adopter.finish(good, leave) is None
    assert len(mirrors.taken) == 1
    adopter.withdraw(made.item.nar_hash, "ab" * 32)
    assert mirrors.withdrawn == bench.offers.withdrawn == [(made.item.nar_hash, "ab" * 32)]
    assert bench.adopter.finish(good, leave) is None
    assert bench.adopter.local(made.item.nar_hash) is None
