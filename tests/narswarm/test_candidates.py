# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.candidates, with honest, hostile and hanging trackers on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest

from narswarm import base32, metainfo
from narswarm import candidates as module
from narswarm.candidates import Candidate, Torrents, flatten
from narswarm.httpclient import HttpClient
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import file_name, max_length
from narswarm.trackerclient import TrackerIndex
from tests.substituter import conftest as world
from tests.substituter.conftest import Item, Site, torrent_of
from tests.substituter.trackers import infohash, serve

Make = Callable[..., Item]
ROOT = Path(__file__).parents[2]

# The fixtures of the substituter's world.
site, key, make_item = world.site, world.key, world.make_item


@pytest.fixture
def client() -> Iterator[HttpClient]:
    """What asks the trackers."""
    with HttpClient(120.0) as made:
        yield made


@pytest.fixture
def opened() -> Iterator[list[Torrents]]:
    """Torrents that are closed after the test."""
    made: list[Torrents] = []
    yield made
    for each in made:
        each.close()


@pytest.fixture
def of(tmp_path: Path, client: HttpClient, opened: list[Torrents]) -> Callable[..., Torrents]:
    """Makes the torrents of a process: in a common directory, with these trackers."""

    def make(*sites: Site | str, directory: Path | None = None) -> Torrents:
        urls = [site if isinstance(site, str) else site.url for site in sites]
        indexes = [TrackerIndex(client, url) for url in urls]
        opened.append(Torrents(directory or tmp_path / "torrents", indexes))
        return opened[-1]

    return make


@pytest.fixture
def item(make_item: Make) -> Item:
    """The item that is looked for."""
    return make_item("a", b"text" * 1000)


@pytest.fixture
def second() -> Iterator[Site]:
    """Another tracker."""
    made = Site()
    yield made
    made.close()


def torrent(item: Item, directory: Path, nar: bytes | None = None) -> bytes:
    """A torrent of an item."""
    return torrent_of(item, directory, nar)[0]


def padded(item: Item, length: int) -> bytes:
    """A torrent that claims to carry an item in a payload of so many bytes."""
    hasher = PieceHasher()
    hasher.update(bytes(length))
    return Metainfo.of(file_name(item.nar_hash), hasher.finish()).encode()


def hanging(site: Site, item: Item, until: threading.Event) -> None:
    """Be a tracker that says nothing before an event, and then what it said before."""
    path = f"/v1/nar/{base32.encode(item.nar_hash)}"
    body = site.bodies.get(path, b"")
    assert isinstance(body, bytes)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        until.wait(120)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    site.bodies[path] = answer


def ask(torrents: Torrents, item: Item, timeout: float = 120.0) -> list[Candidate]:
    """All that trackers name, none of which may be at fault."""
    warnings: list[str] = []
    found = list(torrents.ask(item.nar_hash, len(item.nar), timeout, warnings.append))
    assert warnings == []
    return found


def known(torrents: Torrents, item: Item) -> list[Candidate]:
    """All that is on disk."""
    return torrents.known(item.nar_hash, len(item.nar))


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be nobody for a while: root may do everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_what_a_tracker_names_is_given_and_kept(
    of: Callable[..., Torrents], site: Site, item: Item, tmp_path: Path
) -> None:
    """A torrent comes with the peers of the tracker, and the next process has it without asking."""
    data = torrent(item, tmp_path)
    serve(site, item, data)
    expected = Candidate(
        data,
        infohash(data),
        metainfo.decode(data, "x").length,
        metainfo.decode(data, "x").kind,
        (("127.0.0.1", 6881), ("::1", 7)),
    )
    assert known(of(), item) == []
    assert ask(of(site), item) == [expected]
    assert known(of(), item) == [expected]


def test_a_torrent_that_is_on_disk_is_not_fetched_again(
    of: Callable[..., Torrents], site: Site, item: Item, tmp_path: Path
) -> None:
    """Only its peers are asked for a second time."""
    serve(site, item, torrent(item, tmp_path))
    assert len(ask(of(site), item)) == len(ask(of(site), item)) == 1
    assert [".torrent" in request for request in site.requests] == [False, True, False]


@pytest.mark.parametrize("directory", [None, Path("/proc/narswarm")])
def test_a_refused_torrent_is_never_used_again(
    of: Callable[..., Torrents], site: Site, item: Item, tmp_path: Path, directory: Path | None
) -> None:
    """Neither from disk nor from a tracker; by this process even if it can't be written down."""
    data = torrent(item, tmp_path)
    serve(site, item, data)
    torrents = of(site, directory=directory)
    assert len(ask(torrents, item)) == 1
    torrents.refuse(item.nar_hash, infohash(data))
    assert known(torrents, item) == ask(torrents, item) == []
    if directory is None:
        assert known(of(), item) == ask(of(site), item) == []


def test_a_refusal_is_of_one_torrent(
    of: Callable[..., Torrents], site: Site, item: Item, make_item: Make, tmp_path: Path
) -> None:
    """The others of the same NAR stay in use."""
    liar = torrent(item, tmp_path, make_item("b").nar)
    honest = torrent(item, tmp_path)
    serve(site, item, liar, honest)
    torrents = of(site)
    torrents.refuse(item.nar_hash, infohash(liar))
    assert [each.torrent for each in ask(torrents, item)] == [honest]


@pytest.mark.parametrize("what", ["another NAR", "too long", "no torrent", "not as listed"])
def test_a_hostile_index_gets_nothing_on_disk(
    of: Callable[..., Torrents],
    site: Site,
    item: Item,
    make_item: Make,
    tmp_path: Path,
    what: str,
) -> None:
    """A torrent that can't carry the NAR, or isn't the one that was listed, is passed over."""
    honest = torrent(item, tmp_path)
    longest = max_length(len(item.nar))
    assert len(ask_of(of, site, item, padded(item, longest))) == 1
    hostile = {
        "another NAR": (torrent(make_item("b"), tmp_path), None),
        "too long": (padded(item, longest + 1), None),
        "no torrent": (honest, b"d4:infod6:lengthi1eee"),
        "not as listed": (honest, padded(item, 1000)),
    }[what]
    directory = tmp_path / "hostile"
    serve(site, item, hostile[0], given=hostile[1])
    assert ask(of(site, directory=directory), item) == []
    assert not directory.exists()


def ask_of(of: Callable[..., Torrents], site: Site, item: Item, data: bytes) -> list[Candidate]:
    """What comes of a tracker that lists this one torrent."""
    serve(site, item, data)
    return ask(of(site), item)


def test_a_tracker_that_hangs_hides_no_other(
    of: Callable[..., Torrents],
    site: Site,
    second: Site,
    item: Item,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When time is up, what the others said has been given, however often it happens."""
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    serve(second, item, torrent(item, tmp_path))
    over = threading.Event()
    hanging(site, item, over)
    torrents = of(site, second)
    try:
        # More often than there are threads: those that hang are not waited for.
        for _ in range(module.WORKERS + 1):
            answers = torrents.ask(item.nar_hash, len(item.nar), 0.5, pytest.fail)
            assert next(answers).infohash
            now[0] += 0.5
            assert list(answers) == []
        assert len(site.requests) <= module.WORKERS
    finally:
        over.set()


def test_what_came_while_the_caller_was_busy_is_given(
    of: Callable[..., Torrents],
    site: Site,
    second: Site,
    item: Item,
    make_item: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trying the first torrent takes longer than the time for trackers; the next isn't lost."""
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    first, late = torrent(item, tmp_path), torrent(item, tmp_path, make_item("b").nar)
    serve(site, item, first)
    serve(second, item, late)
    released = threading.Event()
    hanging(second, item, released)
    torrents = of(site, second)
    answers = torrents.ask(item.nar_hash, len(item.nar), 10.0, pytest.fail)
    assert next(answers).torrent == first
    released.set()
    torrents.close()  # waits for what runs
    now[0] += 60.0
    assert [each.torrent for each in answers] == [late]


def test_the_same_torrent_of_two_trackers_is_given_once(
    of: Callable[..., Torrents], site: Site, second: Site, item: Item, tmp_path: Path
) -> None:
    """An infohash that several trackers name is one candidate."""
    data = torrent(item, tmp_path)
    for each in (site, second):
        serve(each, item, data)
    assert [each.torrent for each in ask(of(site, second), item)] == [data]


def test_an_unreachable_tracker_is_told_once_and_left_alone(
    of: Callable[..., Torrents], item: Item
) -> None:
    """The line names the tracker, not the item: a session of many items has one line."""
    warnings: list[str] = []
    torrents = of("http://127.0.0.1:9")
    for _ in range(2):
        assert list(torrents.ask(item.nar_hash, 1000, 10.0, warnings.append)) == []
    assert warnings == ["http://127.0.0.1:9/announce: connection refused"]


def test_a_tracker_that_answers_nonsense_is_left_alone_for_a_time(
    of: Callable[..., Torrents], site: Site, item: Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some failures in a row it is not asked for some seconds, and then again."""
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    site.bodies[f"/v1/nar/{base32.encode(item.nar_hash)}"] = b"<html>"
    warnings: list[str] = []
    torrents = of(site)

    def asked() -> int:
        list(torrents.ask(item.nar_hash, len(item.nar), 10.0, warnings.append))
        return len(site.requests)

    assert [asked() for _ in range(module.MAX_FAILURES + 2)] == [1, 2, 3, 3, 3]
    assert set(warnings) == {f"{site.url}/announce: answers something that is not JSON"}
    now[0] = module.BREAK
    assert asked() == 4


def test_a_tracker_that_breaks_off_has_said_what_it_has_said(
    of: Callable[..., Torrents], site: Site, item: Item, make_item: Make, tmp_path: Path
) -> None:
    """A torrent that came before the failure is used."""
    good, broken = torrent(item, tmp_path), torrent(item, tmp_path, make_item("b").nar)
    serve(site, item, good, broken)

    def fail(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(500)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    path = f"/v1/nar/{base32.encode(item.nar_hash)}.torrent?infohash={infohash(broken)}"
    site.bodies[path] = fail
    assert [each.torrent for each in ask(of(site), item)] == [good]


def test_damaged_files_are_passed_over_and_replaced(
    of: Callable[..., Torrents], site: Site, item: Item, make_item: Make, tmp_path: Path
) -> None:
    """Garbage, another torrent's name, a huge file and a directory are as if they weren't there."""
    data = torrent(item, tmp_path)
    directory = tmp_path / "torrents" / base32.encode(item.nar_hash)
    directory.mkdir(parents=True)
    file = directory / f"{infohash(data)}.torrent"
    file.write_bytes(b"garbage")
    (directory / f"{'0' * 64}.torrent").write_bytes(data)
    (directory / f"{'1' * 64}.torrent").mkdir()
    (directory / f"{'2' * 64}.torrent").write_bytes(torrent(make_item("b"), tmp_path))
    with (directory / f"{'3' * 64}.torrent").open("wb") as huge:
        huge.truncate(1 << 40)
    assert known(of(), item) == []
    serve(site, item, data)
    assert [each.torrent for each in ask(of(site), item)] == [data]
    assert file.read_bytes() == data


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"{}",
        b'{"a": 1}',
        b"5",
        b"null",
        b"[[1, 2, 3]]",
        b'[["localhost", 1]]',
        b'[["127.0.0.1", 0]]',
        b'[["127.0.0.1", 65536]]',
        b'[["127.0.0.1", -1]]',
        b'[["127.0.0.1", true]]',
        b'[["127.0.0.1", "80"]]',
        b'[["127.0.0.1", 1e999]]',
        b"[" * 100_000,
    ],
)
def test_damaged_peers_are_no_peers(
    of: Callable[..., Torrents], site: Site, item: Item, tmp_path: Path, text: bytes
) -> None:
    """What libtorrent couldn't take, or isn't a list of addresses and ports, is dropped."""
    serve(site, item, torrent(item, tmp_path))
    torrents = of(site)
    (found,) = ask(torrents, item)
    (file,) = (tmp_path / "torrents").glob("*/*.peers")
    file.write_bytes(text)
    assert known(torrents, item) == [found._replace(peers=())]


@pytest.mark.parametrize(("port", "kept"), [(1, 1), (65535, 1)])
def test_the_bounds_of_a_port_are_ports(
    of: Callable[..., Torrents], site: Site, item: Item, tmp_path: Path, port: int, kept: int
) -> None:
    """All ports but 0 can be kept, and no more than 50 of them are read."""
    serve(site, item, torrent(item, tmp_path))
    torrents = of(site)
    ask(torrents, item)
    (file,) = (tmp_path / "torrents").glob("*/*.peers")
    file.write_text(json.dumps([["127.0.0.1", port]] * 51))
    (found,) = known(torrents, item)
    assert found.peers == (("127.0.0.1", port),) * 50 * kept


def test_a_directory_that_cannot_be_entered_only_costs_time(
    of: Callable[..., Torrents], site: Site, item: Item, tmp_path: Path
) -> None:
    """Under a daemon that may not even look into the state directory, trackers still serve."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    data = torrent(item, tmp_path)
    serve(site, item, data)
    torrents = of(site, directory=closed / "torrents")
    with unprivileged():
        assert known(torrents, item) == []
        assert [each.torrent for each in ask(torrents, item)] == [data]
        torrents.prune_if_due(1e12)


def test_looking_ahead_does_not_wait(
    of: Callable[..., Torrents], site: Site, second: Site, item: Item, tmp_path: Path
) -> None:
    """What is learned in the background is on disk for the next process, and failures are told."""
    serve(site, item, torrent(item, tmp_path))
    second.bodies[f"/v1/nar/{base32.encode(item.nar_hash)}"] = b"[]"
    warnings: list[str] = []
    torrents = of(site, second)
    torrents.learn(item.nar_hash, len(item.nar), warnings.append)
    for tracker in torrents._trackers:
        tracker.executor.shutdown()
    assert len(known(of(), item)) == 1
    assert warnings == [
        f"{second.url}/announce: answers with another structure than an index",
    ]


def test_any_number_of_claims_is_bounded(
    of: Callable[..., Torrents], site: Site, item: Item, tmp_path: Path
) -> None:
    """Of what strangers have claimed over time, only the newest torrents are read."""
    torrents = of(site)
    for number in range(2):
        serve(site, item, *(padded(item, 1000 + 16 * number + n) for n in range(16)))
        ask(torrents, item)
        for file in (tmp_path / "torrents").glob("*/*.torrent"):
            os.utime(file, (file.stat().st_mtime - 100,) * 2)
    found = known(torrents, item)
    assert sorted(each.length for each in found) == list(range(1016, 1032))


def test_two_processes_share_a_directory(
    site: Site, item: Item, make_item: Make, tmp_path: Path, of: Callable[..., Torrents]
) -> None:
    """Asking and refusing at once, both find whole files, and nothing half-written stays."""
    good, bad = torrent(item, tmp_path), torrent(item, tmp_path, make_item("b").nar)
    serve(site, item, good, bad)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from narswarm.httpclient import HttpClient\n"
        "from narswarm.trackerclient import TrackerIndex\n"
        "from narswarm.candidates import Torrents\n"
        "_, _, url, directory, nar_hash, size, bad = sys.argv\n"
        "torrents = Torrents(Path(directory), [TrackerIndex(HttpClient(120.0), url)])\n"
        "key, size = bytes.fromhex(nar_hash), int(size)\n"
        "for _ in range(10):\n"
        "    found = {c.infohash for c in torrents.ask(key, size, 120.0, sys.exit)} - {bad}\n"
        "    assert found == {c.infohash for c in torrents.known(key, size)} - {bad}, found\n"
        "torrents.refuse(key, bad)\n"
    )
    arguments = [str(tmp_path / "torrents"), item.nar_hash.hex(), str(len(item.nar)), infohash(bad)]
    command = [sys.executable, "-I", "-c", code, str(ROOT), site.url, *arguments]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert [each.torrent for each in known(of(), item)] == [good]
    assert sorted(
        path.name.removeprefix(infohash(good)).removeprefix(infohash(bad))
        for path in (tmp_path / "torrents").glob("*/*")
    ) == [".bad", ".peers", ".peers", ".torrent", ".torrent"]


def test_what_nobody_names_any_more_is_removed(
    of: Callable[..., Torrents], site: Site, item: Item, make_item: Make, tmp_path: Path
) -> None:
    """Torrents go after a time, directories when they are empty; refusals stay."""
    other, third = make_item("b", b"b"), make_item("c", b"c")
    torrents = of(site)
    for each in (item, other, third):
        serve(site, each, torrent(each, tmp_path))
        ask(torrents, each)
    torrents.refuse(third.nar_hash, "0" * 64)
    now = 2e9
    for each, age in ((item, 0.0), (other, 1.0), (third, 1.0)):
        directory = tmp_path / "torrents" / base32.encode(each.nar_hash)
        for file in directory.iterdir():
            os.utime(file, (now - module.KEEP - age,) * 2)
    torrents.prune_if_due(now)
    left = {path.parent.name: path.suffix for path in (tmp_path / "torrents").glob("*/*")}
    assert left[base32.encode(third.nar_hash)] == ".bad"
    assert len(known(torrents, item)) == 1
    assert not (tmp_path / "torrents" / base32.encode(other.nar_hash)).exists()


@pytest.mark.parametrize(
    ("later", "left"), [(-1, 1), (0, 0), (module.PRUNE_INTERVAL - 1, 1), (module.PRUNE_INTERVAL, 0)]
)
def test_one_process_a_day_cleans_up(
    of: Callable[..., Torrents], site: Site, item: Item, tmp_path: Path, later: float, left: int
) -> None:
    """A clean-up is due a day after the last one, also if that was at a time to come."""
    torrents = of(site)
    serve(site, item, torrent(item, tmp_path))
    if later:
        (tmp_path / "torrents").mkdir()
        torrents.prune_if_due(2e9 if later > 0 else 2e9 - 1)
    ask(torrents, item)
    for file in (tmp_path / "torrents").glob("*/*"):
        os.utime(file, (0, 0))
    torrents.prune_if_due(2e9 + max(0, later))
    assert len(known(torrents, item)) == left


def test_groups_are_taken_one_after_another(item: Item, tmp_path: Path) -> None:
    """A later group isn't looked at before the earlier ones are exhausted; repetitions go."""
    data = torrent(item, tmp_path)
    one = Candidate(data, "1", 1, metainfo.decode(data, "x").kind)
    two = one._replace(infohash="2")

    def late() -> Iterator[Candidate]:
        seen.append("asked")
        yield from (one, two)

    seen: list[str] = []
    candidates = flatten(([one], late()))
    assert (next(candidates), seen) == (one, [])
    assert (list(candidates), seen) == ([two], ["asked"])


def held(item: Item) -> bytes:
    """The answer of an index about a NAR that somebody holds, and no torrent has."""
    return json.dumps(
        {
            "nar_hash": base32.format_hash(item.nar_hash),
            "nar_size": len(item.nar),
            "holders": 1,
            "torrents": [],
        }
    ).encode()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers that want to be asked again want it at once."""
    monkeypatch.setattr("narswarm.trackerclient._retry_after", lambda _response: 0)


def preparing(site: Site, item: Item, until: int, then: Callable[[], None]) -> None:
    """Have a tracker say that a torrent is being prepared, and do THEN at the UNTILth time."""
    base = f"/v1/nar/{base32.encode(item.nar_hash)}"
    asked: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        if len(asked) == until:
            then()
        handler.send_response(202)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"{}")

    site.bodies[base] = held(item)
    site.bodies[f"{base}.torrent?wait={module.WAIT}"] = answer


@pytest.mark.usefixtures("at_once")
def test_a_torrent_that_is_prepared_is_waited_for(
    of: Callable[..., Torrents], site: Site, item: Item, tmp_path: Path
) -> None:
    """A tracker is asked again until it names one, by a request that has a holder make it."""
    good = torrent(item, tmp_path)
    preparing(site, item, 2, lambda: serve(site, item, good))
    assert [each.torrent for each in ask(of(site), item)] == [good]
    base = f"/v1/nar/{base32.encode(item.nar_hash)}"
    assert site.requests[:4] == [base, f"{base}.torrent?wait={module.WAIT}"] * 2


@pytest.mark.usefixtures("at_once")
def test_who_waits_is_told_that_it_is_prepared(
    of: Callable[..., Torrents], site: Site, second: Site, item: Item, tmp_path: Path
) -> None:
    """Once, and at once: while the first tracker that has somebody prepare it still waits."""
    good = torrent(item, tmp_path)
    told = threading.Event()
    notices: list[None] = []

    def serve_when_told() -> None:
        assert told.wait(120)
        serve(site, item, good)

    def notice() -> None:
        notices.append(None)
        told.set()

    for each in (site, second):
        preparing(each, item, 1, serve_when_told)
    torrents = of(site, second)
    found = torrents.ask(item.nar_hash, len(item.nar), 120.0, print, preparing=notice)
    assert next(found).torrent == good
    assert len(notices) == 1


def test_nobody_is_told_of_what_is_seeded(
    of: Callable[..., Torrents], site: Site, item: Item, tmp_path: Path
) -> None:
    """There is nothing to wait for where there is a torrent with seeds, or nothing at all."""
    notices: list[str] = []
    torrents = of(site)

    def look() -> int:
        found = torrents.ask(
            item.nar_hash, len(item.nar), 120.0, print, preparing=lambda: notices.append("told")
        )
        return len(list(found))

    assert look() == 0
    serve(site, item, torrent(item, tmp_path))
    assert look() == 1
    assert notices == []


def test_a_search_is_cancelled(of: Callable[..., Torrents], site: Site, item: Item) -> None:
    """Nothing is asked any more, however long somebody prepares it."""
    cancelled = threading.Event()
    preparing(site, item, 1, cancelled.set)
    found = of(site).ask(item.nar_hash, len(item.nar), 120.0, print, cancelled)
    assert list(found) == []
    assert cancelled.is_set()


@pytest.mark.usefixtures("at_once")
def test_a_search_ends_with_its_time(of: Callable[..., Torrents], site: Site, item: Item) -> None:
    """Whoever prepares a torrent for longer than that does it for somebody else."""
    warnings: list[str] = []
    preparing(site, item, 0, lambda: None)
    assert list(of(site).ask(item.nar_hash, len(item.nar), 0.3, warnings.append)) == []
    assert warnings == []


@pytest.mark.usefixtures("at_once")
def test_a_torrent_that_came_while_it_was_waited_for(
    of: Callable[..., Torrents], site: Site, item: Item, tmp_path: Path
) -> None:
    """When a tracker gives a torrent at last, it is asked once more who seeds it."""
    good = torrent(item, tmp_path)
    base = f"/v1/nar/{base32.encode(item.nar_hash)}"

    def made(handler: BaseHTTPRequestHandler) -> None:
        serve(site, item, good)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(good)))
        handler.end_headers()
        handler.wfile.write(good)

    site.bodies[base] = held(item)
    site.bodies[f"{base}.torrent?wait={module.WAIT}"] = made
    (found,) = ask(of(site), item)
    assert found.torrent == good
    assert site.requests[:3] == [base, f"{base}.torrent?wait={module.WAIT}", base]


def test_few_wait(of: Callable[..., Torrents], site: Site, item: Item) -> None:
    """Half of the requests to a tracker may wait; others ask whether there is a torrent."""
    base = f"/v1/nar/{base32.encode(item.nar_hash)}"
    asked: list[str] = []
    waiting, end = threading.Semaphore(0), threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        if "wait" in handler.path:
            waiting.release()
            end.wait(120)
        else:
            end.set()
        handler.send_response(404)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"{}")

    site.bodies[base] = held(item)
    site.bodies[f"{base}.torrent"] = site.bodies[f"{base}.torrent?wait={module.WAIT}"] = answer
    torrents = of(site)
    threads = [threading.Thread(target=ask, args=(torrents, item)) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert waiting.acquire(timeout=120)
    assert ask(torrents, item) == []
    for thread in threads:
        thread.join()
    names = [path.removeprefix(f"{base}.torrent") for path in asked]
    assert names == [f"?wait={module.WAIT}", f"?wait={module.WAIT}", ""]


@pytest.mark.usefixtures("at_once")
def test_large_ones_take_longer(
    of: Callable[..., Torrents], site: Site, item: Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is patient gives whoever makes a torrent the time that so large a NAR takes."""
    monkeypatch.setattr(module, "MAKING_RATE", len(item.nar) / 60)
    now, timeout = [0.0], 0.3
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    cancelled = threading.Event()
    base = f"/v1/nar/{base32.encode(item.nar_hash)}"

    def answer(handler: BaseHTTPRequestHandler) -> None:
        now[0] += timeout / 3
        if now[0] > 2 * timeout:
            cancelled.set()
        handler.send_response(202)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"{}")

    site.bodies[base] = held(item)
    site.bodies[f"{base}.torrent?wait={module.WAIT}"] = answer
    found = of(site).ask(item.nar_hash, len(item.nar), timeout, print, cancelled, patient=True)
    assert list(found) == []
    assert cancelled.is_set()


@pytest.mark.parametrize("busy", [True, False])
def test_on_a_busy_line_trackers_get_more_time(
    of: Callable[..., Torrents], site: Site, item: Item, tmp_path: Path, *, busy: bool
) -> None:
    """Once: what is wanted comes meanwhile, and is why they are slow."""
    serve(site, item, torrent(item, tmp_path))
    gate = threading.Event()
    hanging(site, item, gate)
    asked = 0

    def is_busy() -> bool:
        nonlocal asked
        asked += 1
        if busy:
            gate.set()
        return busy

    found = list(of(site).ask(item.nar_hash, len(item.nar), 0.01, print, busy=is_busy))
    gate.set()
    assert (len(found), asked) == (busy, 1)
