# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.mirror_files: fetching from a server that breaks off, lies, or has enough."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from narswarm.errors import InvalidInputError, MismatchError, NetworkError
from narswarm.httpclient import HttpClient
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.narinfo import Source
from narswarm.payload import max_length
from seeder.mirror_files import (
    Downloader,
    EndedError,
    OverloadedError,
    discard,
    read,
    reject,
    torrent_of,
)
from tests.seeder.conftest import World
from tests.seeder.mirrorworld import FileServer

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A substitute server."""
    made = FileServer()
    yield made
    made.close()


class Bench:
    """A downloader whose time is the test's."""

    def __init__(self, directory: Path, client: HttpClient, rate: int = 0) -> None:
        self.now = 0.0
        self.stopping = False
        self.pauses: list[float] = []
        self.downloader = Downloader(client, directory, rate, self.pause, lambda: self.now)

    def pause(self, seconds: float) -> bool:
        """Take time."""
        self.now += seconds
        self.pauses.append(seconds)
        return self.stopping


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A downloader."""
    (tmp_path / "mirror").mkdir()
    with HttpClient(10.0) as client:
        yield Bench(tmp_path / "mirror", client)


def test_a_file(bench: Bench, server: FileServer, world: World) -> None:
    """It comes in one request; nothing is left of it when it is discarded."""
    source, info = server.offer(world.make())
    part = bench.downloader.fetch(source, info)
    assert part.read_bytes() == server.files[source.url.removeprefix(server.url)]
    assert [ranges for _, *ranges in server.asked] == [[None, None]]
    # Complete, but the seeder was killed before it was checked.
    assert bench.downloader.fetch(source, info) == part
    assert len(server.asked) == 1
    discard(part)
    discard(part)
    assert list(part.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("validator", "continued"),
    [
        (("ETag", '"1"'), True),
        (("Last-Modified", DATE), True),
        (("ETag", 'W/"1"'), False),
        (None, False),
    ],
)
def test_what_broke_off_is_continued(
    bench: Bench,
    server: FileServer,
    world: World,
    validator: tuple[str, str] | None,
    continued: bool,
) -> None:
    """If the server can say that it is the same file; else it begins anew."""
    source, info = server.offer(world.make(content=bytes(range(256)) * 100))
    body = server.files[source.url.removeprefix(server.url)]
    server.validator, server.cut = validator, 100
    with pytest.raises(NetworkError) as caught:
        bench.downloader.fetch(source, info)
    assert str(caught.value) == f"{source.url}: ended after 100 of {len(body)} bytes"
    server.cut = None
    part = bench.downloader.fetch(source, info)
    assert part.read_bytes() == body
    span = ["bytes=100-", validator[1]] if continued and validator else [None, None]
    assert [ranges for _, *ranges in server.asked] == [[None, None], span]


def test_another_file_begins_anew(bench: Bench, server: FileServer, world: World) -> None:
    """What changed at the server isn't put together from two files."""
    made = world.make(content=bytes(range(256)) * 100)
    source, info = server.offer(made)
    server.cut = 100
    with pytest.raises(NetworkError):
        bench.downloader.fetch(source, info)
    server.cut, server.validator = None, ("ETag", '"2"')
    changed = gzip.compress(made.nar, 1)
    server.files[source.url.removeprefix(server.url)] = changed
    part = bench.downloader.fetch(Source(source.url, "gzip"), info)
    assert part.read_bytes() == changed


def test_a_server_that_continues_elsewhere(bench: Bench, server: FileServer, world: World) -> None:
    """What it sends then is of no use."""
    source, info = server.offer(world.make(content=bytes(range(256)) * 100))
    server.cut = 100
    with pytest.raises(NetworkError):
        bench.downloader.fetch(source, info)
    server.cut, server.shift = None, 1
    with pytest.raises(NetworkError) as caught:
        bench.downloader.fetch(source, info)
    assert str(caught.value) == f"{source.url}: continues somewhere else"
    server.shift = 1 << 20
    with pytest.raises(NetworkError) as over:
        bench.downloader.fetch(source, info)
    assert str(over.value) == f"{source.url}: the server answered 416"
    server.shift = 0
    part = bench.downloader.fetch(source, info)
    assert part.read_bytes() == server.files[source.url.removeprefix(server.url)]
    assert server.asked[-1][1:] == (None, None)


def test_what_was_complete_is_not_fetched_again(
    bench: Bench, server: FileServer, world: World
) -> None:
    """Also if the narinfo doesn't say how long the file is: the server says that no more comes."""
    source, info = server.offer(world.make())
    part = bench.downloader.fetch(Source(source.url, "gzip"), info)
    assert bench.downloader.fetch(Source(source.url, "gzip"), info) == part
    assert part.read_bytes() == server.files[source.url.removeprefix(server.url)]
    assert server.statuses == [200, 416]


@pytest.mark.parametrize("validator", [("ETag", '"1"'), ("ETag", 'W/"1"'), ("Last-Modified", DATE)])
def test_a_rejected_file_is_not_sent_twice(
    bench: Bench, server: FileServer, world: World, validator: tuple[str, str]
) -> None:
    """The server is asked whether it has another one by now."""
    server.validator = validator
    made = world.make()
    source, info = server.offer(made, b"another NAR")
    reject(bench.downloader.fetch(source, info))
    for _ in range(2):
        with pytest.raises(MismatchError) as caught:
            bench.downloader.fetch(source, info)
        assert str(caught.value) == f"{source.url}: is still not what is signed"
    server.offer(made)
    server.validator = (validator[0], validator[1].replace("1", "2"))
    part = bench.downloader.fetch(Source(source.url, "gzip"), info)
    assert part.read_bytes() == server.files[source.url.removeprefix(server.url)]
    assert server.statuses == [200, 304, 304, 200]
    discard(part)
    assert list(part.parent.iterdir()) == []


def test_a_file_that_was_cut_off_is_sent_again(
    bench: Bench, server: FileServer, world: World
) -> None:
    """Where the server doesn't say how long a file is, what it calls it says nothing of it."""
    server.lengthless = True
    source, info = server.offer(world.make())
    reject(bench.downloader.fetch(source, info))
    bench.downloader.fetch(source, info)
    assert server.statuses == [200, 200]


@pytest.mark.parametrize(
    ("status", "after", "seconds"),
    [(429, "7", 7), (503, "", 0), (503, "soon", 0), (503, "99999999", 86400)],
)
def test_a_server_that_has_enough(
    bench: Bench, server: FileServer, world: World, status: int, after: str, seconds: int
) -> None:
    """It says for how long, within reason."""
    source, info = server.offer(world.make())
    server.status, server.fields = status, {"Retry-After": after}
    with pytest.raises(OverloadedError) as caught:
        bench.downloader.fetch(source, info)
    assert str(caught.value) == f"{source.url}: the server answered {status}"
    assert caught.value.seconds == seconds


def test_sizes(bench: Bench, server: FileServer, world: World) -> None:
    """A file of another size than is said, or longer than it can be, isn't kept."""
    made = world.make()
    source, info = server.offer(made, b"x" * 10)
    with pytest.raises(NetworkError) as other:
        bench.downloader.fetch(Source(source.url, "gzip", 9), info)
    assert str(other.value) == f"{source.url}: has 10 bytes instead of 9"
    bound = max_length(info.nar_size)
    source, info = server.offer(made, bytes(bound))
    assert bench.downloader.fetch(source, info).stat().st_size == bound
    discard(bench.downloader.fetch(source, info))
    source, info = server.offer(made, bytes(bound + 1))
    with pytest.raises(MismatchError) as long:
        bench.downloader.fetch(source, info)
    assert str(long.value) == f"{source.url}: is longer than {bound} bytes"


def test_rates(tmp_path: Path, server: FileServer, world: World) -> None:
    """In the mean no more than the rate is asked of a server."""
    source, info = server.offer(world.make(), bytes(50_000))
    with HttpClient(10.0) as client:
        bench = Bench(tmp_path, client, rate=10_000)
        bench.downloader.fetch(source, info)
        assert sum(bench.pauses) == pytest.approx(5.0)
        bench.stopping = True
        source, info = server.offer(world.make(), bytes(50_000))
        with pytest.raises(EndedError):
            bench.downloader.fetch(source, info)


def test_reading(tmp_path: Path) -> None:
    """It ends when the seeder does."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10)
    assert b"".join(read(file, lambda: False)) == b"x" * 10
    with pytest.raises(EndedError) as caught:
        list(read(file, lambda: True))
    assert str(caught.value) == "mirror: the seeder is about to end"


def test_a_torrent(world: World) -> None:
    """It is that of the file, under the item's name."""
    made = world.make()
    data = gzip.compress(made.nar)
    hasher = PieceHasher()
    hasher.update(data)
    meta = torrent_of(iter([data[:5], data[5:]]), made.parsed)
    assert meta == Metainfo.of(made.path.rpartition("/")[2], hasher.finish())


def test_what_is_not_the_nar(world: World) -> None:
    """Another NAR, a damaged file, one with an appendix or too long a one: no torrent."""
    made, other = world.make(content=b"1"), world.make(content=b"2")
    data = gzip.compress(made.nar)
    with pytest.raises(MismatchError) as wrong:
        torrent_of(iter([gzip.compress(other.nar)]), made.parsed)
    assert str(wrong.value) == f"{made.path}: has another NAR at the server than is signed"
    with pytest.raises(MismatchError):
        torrent_of(iter([gzip.compress(made.nar[:-1])]), made.parsed)
    with pytest.raises(InvalidInputError) as cut:
        torrent_of(iter([data[:-1]]), made.parsed)
    assert str(cut.value) == f"{made.path}: is cut off"
    with pytest.raises(InvalidInputError):
        torrent_of(iter([data, b"appendix"]), made.parsed)
    with pytest.raises(InvalidInputError) as bomb:
        torrent_of(iter([gzip.compress(bytes(1 << 20))]), made.parsed)
    size = made.item.nar_size
    assert str(bomb.value) == f"{made.path}: decompresses to more than {size} bytes"
    with pytest.raises(MismatchError) as long:
        torrent_of(iter([bytes(max_length(size) + 1)]), made.parsed)
    assert str(long.value) == f"{made.path}: is longer than {max_length(size)} bytes"
