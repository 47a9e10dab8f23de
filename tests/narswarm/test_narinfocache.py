# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.narinfocache`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import narinfo, narinfocache
from narswarm.httpmessage import Validator
from narswarm.narinfocache import Cached, NarinfoCache

SERVER = "https://a.example"
HASH = "5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f"
OTHER = "2g00k9rk4f49769ps7bblcbvy1byaz19"
DAY = 86400
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
DATED = Validator("", DATE)


@pytest.fixture
def cache(tmp_path: Path) -> NarinfoCache:
    """A cache in a directory that doesn't exist yet."""
    return NarinfoCache(tmp_path / "deep/cache")


def files(directory: Path) -> list[Path]:
    """Give the entries and whatever else is in the directories of servers."""
    return sorted(directory.glob("*/*"))


def test_hit(cache: NarinfoCache) -> None:
    """What was put is given back as fresh for its time and as old afterwards."""
    cache.put(SERVER, HASH, b"StorePath: x\n", 1000.5, 60)
    for now, fresh in ((999, False), (1000, True), (1059.9, True), (1060, False), (9e9, False)):
        assert cache.get(SERVER, HASH, now) == Cached(b"StorePath: x\n", fresh)


def test_miss(cache: NarinfoCache) -> None:
    """That a server has nothing is known for its time and forgotten afterwards."""
    assert cache.get(SERVER, HASH, 1000) is None
    cache.put(SERVER, HASH, None, 1000, 60)
    assert cache.get(SERVER, HASH, 1059) == Cached(None, fresh=True)
    assert cache.get(SERVER, HASH, 1060) is None
    assert cache.get(SERVER, HASH, 999) is None


def test_replacement(cache: NarinfoCache) -> None:
    """The last answer counts."""
    cache.put(SERVER, HASH, b"a", 1000, 60)
    cache.put(SERVER, HASH, None, 1001, 60)
    assert cache.get(SERVER, HASH, 1002) == Cached(None, fresh=True)
    cache.put(SERVER, HASH, b"b", 1003, 60)
    assert cache.get(SERVER, HASH, 1004) == Cached(b"b", fresh=True)


def test_servers_and_items_are_apart(cache: NarinfoCache) -> None:
    """An answer is one of one server, whether or not its URL ends in a slash, about one item."""
    cache.put(SERVER, HASH, b"a", 1000, 60)
    assert cache.get(f"{SERVER}/", HASH, 1000) == Cached(b"a", fresh=True)
    assert cache.get("https://b.example", HASH, 1000) is None
    assert cache.get(SERVER, OTHER, 1000) is None


def test_what_is_kept(cache: NarinfoCache, tmp_path: Path) -> None:
    """Items of all servers, once; no other files."""
    assert cache.hash_parts() == set()
    for server, hash_part in ((SERVER, HASH), ("https://b.example", HASH), (SERVER, OTHER)):
        cache.put(server, hash_part, b"a", 1000, 60)
    (files(tmp_path / "deep/cache")[0].parent / ".left.1.2").touch()
    assert cache.hash_parts() == {HASH, OTHER}


def test_files(cache: NarinfoCache, tmp_path: Path) -> None:
    """Entries are complete files under the hash of the server, and nothing is left besides."""
    cache.put(SERVER, HASH, b"raw", 1000, 60)
    (file,) = files(tmp_path / "deep/cache")
    assert file.name == HASH
    assert len(file.parent.name) == 32
    assert file.read_bytes() == b"narswarm-narinfo 1 hit 1000 60\nraw"


@pytest.mark.parametrize(
    ("validator", "kept"),
    [
        (Validator('"1"'), b'\t"1"\t'),
        (Validator("", DATE), b"\t\t" + DATE.encode()),
        (Validator('W/"a b"', DATE), None),
        (Validator('"' + "x" * 200 + '"', DATE), b'\t"' + b"x" * 200 + b'"\t' + DATE.encode()),
    ],
)
def test_versions(
    cache: NarinfoCache, tmp_path: Path, validator: Validator, kept: bytes | None
) -> None:
    """What the server calls a narinfo is kept with it; what is no such name doesn't count."""
    cache.put(SERVER, HASH, b"raw", 1000, 60, validator)
    if kept is None:
        assert cache.get(SERVER, HASH, 1000) == Cached(b"raw", fresh=True, validator=DATED)
        return
    assert cache.get(SERVER, HASH, 1060) == Cached(b"raw", fresh=False, validator=validator)
    (file,) = files(tmp_path / "deep/cache")
    assert file.read_bytes() == b"narswarm-narinfo 1 hit 1000 60" + kept + b"\nraw"
    cache.put(SERVER, HASH, None, 1000, 60, validator)
    assert file.read_bytes() == b"narswarm-narinfo 1 miss 1000 60\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"narswarm-narinfo 1 hit 1000 60\t\nraw",
        b"narswarm-narinfo 1 hit 1000 60\t\t" + b"x" * 400 + b"\nraw",
        b"narswarm-narinfo 1 hit 1000 60",
        b"narswarm-narinfo 2 hit 1000 60\nraw",
        b"narswarm-narinfo 1 miss 1000 60\nraw",
        b"narswarm-narinfo 1 hit 1000 60\n",
        b"narswarm-narinfo 1 hit -5 60\nraw",
        b"narswarm-narinfo 1 hit 1000 6e9\nraw",
        b"\0" * 100,
        b"narswarm-narinfo 1 hit 1000 60\n" + b"x" * (narinfo.MAX_BYTES + 1),
    ],
)
def test_damaged_files(cache: NarinfoCache, tmp_path: Path, content: bytes) -> None:
    """A file that is damaged or of another version is no entry, and is replaced by the next."""
    cache.put(SERVER, HASH, b"raw", 1000, 60)
    files(tmp_path / "deep/cache")[0].write_bytes(content)
    assert cache.get(SERVER, HASH, 1000) is None
    cache.put(SERVER, HASH, b"raw", 1000, 60)
    assert cache.get(SERVER, HASH, 1000) == Cached(b"raw", fresh=True)


@given(st.binary(max_size=80))
def test_any_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """No content of a file makes a look-up fail."""
    directory = tmp_path_factory.getbasetemp() / "any-cache"
    cache = NarinfoCache(directory)
    cache.put(SERVER, HASH, b"raw", 1000, 60)
    files(directory)[0].write_bytes(b"narswarm-narinfo 1 " + content)
    entry = cache.get(SERVER, HASH, 1000)
    assert entry is None or entry.raw is not None or entry.fresh


def test_no_directory(tmp_path: Path) -> None:
    """Where nothing can be written there is no cache, and no error."""
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    cache = NarinfoCache(blocked)
    cache.put(SERVER, HASH, b"raw", 1000, 60)
    assert cache.get(SERVER, HASH, 1000) is None
    cache.prune_if_due(1000)
    cache.prune(1000)
    assert blocked.read_text() == "not a directory"


def test_entry_that_cannot_be_replaced(cache: NarinfoCache, tmp_path: Path) -> None:
    """If an entry can't be put in its place, the temporary file goes away."""
    cache.put(SERVER, HASH, b"raw", 1000, 60)
    (file,) = files(tmp_path / "deep/cache")
    file.unlink()
    (file / "full").mkdir(parents=True)
    cache.put(SERVER, HASH, b"raw", 1000, 60)
    assert files(tmp_path / "deep/cache") == [file]
    assert cache.get(SERVER, HASH, 1000) is None


def test_many_writers(cache: NarinfoCache, tmp_path: Path) -> None:
    """Processes and threads may write one entry at once: readers see one of the answers whole."""
    code = (
        "import sys; from pathlib import Path; from narswarm.narinfocache import NarinfoCache\n"
        "for _ in range(100):\n"
        f" NarinfoCache(Path(sys.argv[1])).put({SERVER!r}, {HASH!r}, b'p' * 9000, 1000, 60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "deep/cache")])
    seen: set[bytes | None] = set()

    def write(letter: bytes) -> None:
        for _ in range(100):
            cache.put(SERVER, HASH, letter * 9000, 1000, 60)
            entry = cache.get(SERVER, HASH, 1000)
            seen.add(entry.raw if entry else None)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process.wait(120) == 0
    assert seen <= {b"a" * 9000, b"b" * 9000, b"p" * 9000}
    assert len(files(tmp_path / "deep/cache")) == 1


def test_prune(cache: NarinfoCache, tmp_path: Path) -> None:
    """Entries go some time after they are old, and temporary files of killed processes at once."""
    cache.put(SERVER, HASH, b"raw", 1000, 60)
    cache.put(SERVER, OTHER, b"raw", 2000, 60)
    directory = files(tmp_path / "deep/cache")[0].parent
    left = directory / f".{HASH}.1.2"
    left.write_bytes(b"half")
    os.utime(left, (1000, 1000))
    cache.prune(1060 + narinfocache.KEEP)
    assert files(tmp_path / "deep/cache") == sorted([directory / HASH, directory / OTHER])
    cache.prune(1061 + narinfocache.KEEP)
    assert files(tmp_path / "deep/cache") == [directory / OTHER]


def test_prune_too_many(cache: NarinfoCache, tmp_path: Path) -> None:
    """Of too many entries those go that expire first, whichever server they are from."""
    for number in range(5):
        server = f"http://{number % 2}"
        cache.put(server, f"{number}{HASH[1:]}", b"raw", 1000, 100 - number)
    cache.prune(1000, most=2)
    assert {file.name[0] for file in files(tmp_path / "deep/cache")} == {"0", "1"}


def test_prune_if_due(cache: NarinfoCache, tmp_path: Path) -> None:
    """The clean-up runs once a day, in the background."""
    cache.prune_if_due(1000)
    assert not (tmp_path / "deep").exists()
    cache.put(SERVER, HASH, b"raw", 1000, 60)
    start = 2000 + narinfocache.KEEP

    def run(now: float) -> bool:
        before = set(threading.enumerate())
        cache.prune_if_due(now)
        new = set(threading.enumerate()) - before
        for thread in new:
            thread.join()
        return not files(tmp_path / "deep/cache")

    assert run(start)
    cache.put(SERVER, HASH, b"raw", 1000, 60)
    assert not run(start + DAY - 1)
    assert run(start + DAY)
