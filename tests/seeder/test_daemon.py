# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole seeder: real session, real sockets, on loopback."""

from __future__ import annotations

import resource
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest
import zstandard
from apscheduler.schedulers.background import BackgroundScheduler

from narswarm import base32, bencoding, gcrypt, metainfo, narinfo, sexp
from narswarm.acl import render
from narswarm.control import NAME
from narswarm.errors import (
    BusyError,
    CodecError,
    InvalidInputError,
    NarswarmError,
    NotFoundError,
)
from narswarm.fetchclient import SeederClient, Wanted
from narswarm.swarm import Swarm
from narswarm.swarm_settings import SwarmSettings
from seeder import control, daemon, holdings, parts
from seeder.daemon import Seeder, raise_file_limit
from seeder.items import ItemTable
from seeder.scan import Scanner
from seeder.settings import Settings
from seeder.state import State
from tests.seeder.conftest import Made, Server, World


class Running:
    """A seeder in a thread of the test."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.items = self.port = -1
        self.ended = False
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(120)
        self._raise()

    def _raise(self) -> None:
        if self.failure is not None:
            self._thread.join()
            raise self.failure

    def _run(self) -> None:
        try:
            self.seeder = Seeder(self.settings, self._stop)
            self.ended = self.seeder.run(self._is_ready)
        except BaseException as error:  # noqa: BLE001  raised again by the test's thread
            self.failure = error
            self._ready.set()

    def _is_ready(self, items: int, port: int) -> None:
        self.items, self.port = items, port
        self._ready.set()

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        return control.ask(self.settings.state, "status")

    def stop(self) -> None:
        """End it, and make sure that nothing is left."""
        self._stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive()
        assert self.ended


Start = Callable[..., Running]


@pytest.fixture
def start(world: World) -> Iterator[Start]:
    """Start seeders; they are ended at the end."""
    started: list[Running] = []

    def run(**values: Any) -> Running:
        fields: dict[str, Any] = {
            "state": world.root / "state",
            "acl": world.acl,
            "nars": world.nars,
            "substitute_urls": (),
            "listen": ("127.0.0.1:0",),
            "dht": False,
            "lsd": False,
            "upnp": False,
            "private_network": True,
            "web": "",
            "socket": world.root / "no-directory" / "seeder.sock",
        }
        started.append(Running(Settings(**(fields | values))))
        return started[-1]

    yield run
    for each in started:
        each.stop()


def until(ready: Callable[[], bool]) -> None:
    """Wait until something is so."""
    pause = threading.Event()
    for _ in range(2400):
        if ready():
            return
        pause.wait(0.05)
    raise AssertionError("it never was")


def fetch(seeder: Running, torrent: bytes, directory: Path) -> bytes:
    """Get a payload from a seeder, and decompress it."""
    settings = SwarmSettings(
        listen=("127.0.0.1:0",), dht=False, lsd=False, upnp=False, private_network=True
    )
    with Swarm(settings) as swarm:
        download = swarm.fetch(torrent, directory, peers=[("127.0.0.1", seeder.port)])
        payload = b"".join(download.chunks(stall=lambda progress: progress.idle > 120))
    return zstandard.ZstdDecompressor().stream_reader(payload, read_across_frames=True).read()


def publication(server: Server, made: Made) -> bytes:
    """The torrent that was published for an item."""
    for body in server.published:
        content = bencoding.decode(body, "body")
        assert isinstance(content, dict)
        info = content[b"narinfo"]
        assert isinstance(info, bytes)
        if made.path.encode() in info:
            torrent = content[b"torrent"]
            assert isinstance(torrent, bytes)
            return torrent
    raise AssertionError(f"{made.path} was not published")


def test_nars_of_a_directory(world: World, server: Server, start: Start) -> None:
    """What lies in a directory is published, announced, and can be fetched."""
    made = world.make("hello", b"hello" * 50_000)
    world.put_nar(made)
    seeder = start(trackers=(f"{server.url}/announce",))
    assert seeder.items == 0
    server.wait(lambda: server.published and server.announced)
    assert f"port={seeder.port}" in server.announced[0]
    torrent = publication(server, made)
    assert fetch(seeder, torrent, world.root) == made.nar
    # It counts what its system has sent, which may be later than it came.
    until(lambda: seeder.status()["uploaded"] >= seeder.status()["payload_bytes"] > 0)
    until(lambda: seeder.status()["trackers"][0]["published"] == 1)
    status = seeder.status()
    assert status["uploaded"] == status["payload_bytes"]
    assert (status["items"], status["listen_port"]) == (1, seeder.port)
    (tracker,) = status["trackers"]
    assert tracker["pending"] == 0
    seeder.stop()
    again = start(trackers=(f"{server.url}/announce",))
    assert again.items == 1
    assert len(server.published) == 1
    assert fetch(again, torrent, world.root / "again") == made.nar


def test_another_key_publishes_anew(world: World, server: Server, start: Start) -> None:
    """A seeder that was given another key publishes at once what trackers have by the old one."""
    made = world.make("hello", b"hello" * 50_000)
    world.put_nar(made)
    first = start(trackers=(f"{server.url}/announce",))
    server.wait(lambda: len(server.published) == 1)
    old = first.status()["publisher"]
    first.stop()
    (world.root / "state/publisher.key").unlink()
    second = start(trackers=(f"{server.url}/announce",))
    server.wait(lambda: len(server.published) == 2)
    assert second.status()["publisher"] != old
    assert server.published[0] == server.published[1]


def test_items_of_a_store(world: World, server: Server, start: Start) -> None:
    """Of the store's items those are offered for which a substitute server's narinfo vouches."""
    public, private = world.make("public", b"1"), world.make("private", b"2")
    for made in (public, private):
        world.register(made)
    server.files[f"/{public.path.rpartition('/')[2][:32]}.narinfo"] = public.narinfo
    seeder = start(
        nars=None,
        store_db=world.database,
        store=world.store,
        substitute_urls=(server.url,),
        trackers=(f"{server.url}/announce",),
    )
    server.wait(lambda: server.holdings)
    assert server.holdings[0][b"added"] == public.item.nar_hash
    assert server.holdings[0][b"port"] == seeder.port
    assert not list((world.root / "state").rglob("*.zst"))
    server.want(private.item.nar_hash)
    server.want(public.item.nar_hash)
    server.wait(lambda: server.published and server.announced)
    assert fetch(seeder, publication(server, public), world.root) == public.nar
    status = seeder.status()
    assert status["not_offered"] == {"not vouched for": 1}
    assert (status["items"], status["held"], status["payloads"]) == (1, 1, 1)
    seeder.stop()
    assert server.holdings[-1][b"base"] == 0
    assert server.holdings[-1][b"added"] == b""
    assert len(server.published) == 1
    assert len(list((world.root / "state").rglob("*.zst"))) == 1


def test_an_item_is_fetched_and_offered_on(world: World, server: Server, start: Start) -> None:
    """By another seeder, which knows the torrent and who has it; it is asked by its socket."""
    made = world.make("hello", b"hello" * 50_000)
    world.put_nar(made)
    first = start(trackers=(f"{server.url}/announce",))
    server.wait(lambda: server.published)
    meta = metainfo.decode(publication(server, made), "torrent")
    state = world.root / "other"
    known = state / "torrents" / base32.encode(made.item.nar_hash)
    known.mkdir(parents=True)
    server.files[f"/{made.path[11:43]}.narinfo"] = made.narinfo
    infohash = meta.infohash_v2.hex()
    (known / f"{infohash}.torrent").write_bytes(meta.encode())
    (known / f"{infohash}.peers").write_text(f'[["127.0.0.1", {first.port}]]', encoding="utf-8")
    second = start(
        state=state,
        nars=None,
        store_db=world.database,
        store=world.store,
        substitute_urls=(server.url,),
    )
    wanted = Wanted(made.item.nar_hash, made.item.nar_size, made.path)
    with SeederClient(state / NAME, timeout=120) as client, client.fetch(wanted) as fetching:
        payload = b"".join(fetching.chunks(stall=lambda progress: progress.idle > 120))
        assert fetching.source(120).infohash == infohash
    assert zstandard.ZstdDecompressor().stream_reader(payload).read() == made.nar
    until(lambda: second.status()["payloads"] == 1)
    assert (state / "payloads" / meta.name).read_bytes() == payload
    assert fetch(second, meta.encode(), world.root / "again") == made.nar


def test_one_seeder_for_a_state(start: Start) -> None:
    """The second one ends at once and says who is first; the first one is not disturbed."""
    first = start()
    with pytest.raises(BusyError, match="is in use by the seeder with process id"):
        start()
    assert first.status()["items"] == 0


def test_what_has_to_be_there(world: World, start: Start) -> None:
    """Errors of the start are raised, and leave the state to the next seeder."""
    with pytest.raises(NotFoundError) as caught:
        start(acl=world.root / "none")
    assert str(caught.value) == f"{world.root / 'none'}: No such file or directory"
    first = start()
    with pytest.raises(BusyError) as busy:
        start(state=world.root / "other", listen=("127.0.0.1:0", f"127.0.0.1:{first.port}"))
    assert str(busy.value) == f"127.0.0.1:{first.port}: Address already in use"
    start(state=world.root / "other")


def test_a_damaged_database_is_an_error(world: World, start: Start) -> None:
    """One line names the file, so that an operator can move it away."""
    start().stop()
    file = world.root / "state" / "state.sqlite"
    with closing(sqlite3.connect(file)) as db:
        db.execute("DROP TABLE publications")
    with pytest.raises(InvalidInputError) as caught:
        start()
    assert str(caught.value) == f"{file}: no such table: publications"


def test_a_database_that_breaks_ends_nothing(
    world: World, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that can't read the state is a line in the log; what is offered stays offered."""
    said = threading.Event()
    told: list[tuple[object, ...]] = []

    def warning(*words: object) -> None:
        told.append(words)
        said.set()

    def damaged(_self: ItemTable) -> int:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(daemon.log, "warning", warning)
    monkeypatch.setattr(ItemTable, "last", damaged)
    seeder = start()
    assert said.wait(120)
    assert seeder.status()["items"] == 0
    file = world.root / "state" / "state.sqlite"
    assert told[0] == ("%s: %s", "scan", f"{file}: database disk image is malformed")


def test_a_database_that_breaks_is_said(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks how it is doing hears what is wrong, not that nobody answers."""
    seeder = start()

    def damaged(_self: State) -> int:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(State, "used", damaged)
    with pytest.raises(NarswarmError) as caught:
        seeder.status()
    file = seeder.settings.state / "state.sqlite"
    assert str(caught.value) == f"{file}: database disk image is malformed"
    assert not isinstance(caught.value, BusyError)


def test_a_job_that_fails_is_tried_again(
    world: World, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing directory of NARs is a line in the log; the seeder goes on."""
    said, worked, again = threading.Event(), threading.Event(), threading.Event()
    scan = Scanner.scan

    def watched(scanner: Scanner) -> None:
        if worked.is_set():
            again.set()
        scan(scanner)
        worked.set()

    monkeypatch.setattr(Scanner, "scan", watched)
    monkeypatch.setattr(daemon.log, "warning", lambda *_: said.set())
    seeder = start(nars=world.root / "later", scan_interval=1.0)
    assert said.wait(120)
    until(lambda: seeder.status()["scan_message"] != "")
    status = seeder.status()
    assert status["items"] == 0
    assert status["scan_message"] == f"{world.root / 'later'}: No such file or directory"
    (world.root / "later").mkdir()
    assert again.wait(120)  # so that the one before is over
    assert seeder.status()["scan_message"] == ""


def test_another_zstd_still_seeds(
    world: World,
    server: Server,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without the codec of profile 1 nothing new is made, and everybody is told why."""
    made = world.make()
    world.put_nar(made)
    first = start(trackers=(f"{server.url}/announce",))
    server.wait(lambda: server.published)
    first.stop()

    def other() -> None:
        raise CodecError("libzstd 1.5.8", "payloads of profile 1 are made by libzstd 1.5.7 only")

    monkeypatch.setattr(parts, "check_codec", other)
    second = start(trackers=(f"{server.url}/announce",))
    reason = "libzstd 1.5.8: payloads of profile 1 are made by libzstd 1.5.7 only"
    assert second.items == 1
    assert second.status()["codec"] == reason
    assert f"{reason}; what is here already is seeded all the same" in caplog.messages
    assert fetch(second, publication(server, made), world.root) == made.nar


def test_a_mirror(
    world: World, server: Server, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server's file is fetched as told, published, seeded, and so is it after a restart."""
    monkeypatch.setattr(daemon, "MIRROR_INTERVAL", 0.05)
    made = world.make("hello", b"hello" * 50_000)
    data = zstandard.compress(made.nar)
    name = made.path.rpartition("/")[2]
    source = narinfo.Source(f"nar/zstd/{name}", "zstd", len(data))
    server.files[f"/nar/zstd/{name}"] = data
    server.files[f"/{name[:32]}.narinfo"] = narinfo.with_sources(made.narinfo, [source])
    nothing = world.root / "nothing"
    nothing.mkdir()
    seeder = start(nars=nothing, trackers=(f"{server.url}/announce",))
    state = seeder.settings.state
    rule = f"{server.url} {made.path}"
    with pytest.raises(NarswarmError) as wrong:
        control.ask(state, "mirror", rule="nonsense")
    assert str(wrong.value) == "nonsense: is not URL (PATH... | closure PATH... | manifest FILE)"
    assert control.ask(state, "mirror", rule=rule)["rule"] == rule
    server.wait(lambda: server.published)
    torrent = publication(server, made)
    assert metainfo.decode(torrent, "x").name == name
    until(lambda: seeder.status()["mirror"]["files"] == 1)
    assert fetch(seeder, torrent, world.root) == made.nar
    seeder.stop()
    server.files.clear()
    second = start(nars=nothing, trackers=(f"{server.url}/announce",))
    assert second.status()["mirror"]["rules"] == [rule]
    (world.root / name).unlink()
    assert fetch(second, torrent, world.root) == made.nar


def test_a_mirror_sends_nothing_if_it_may_not(start: Start, world: World) -> None:
    """With leech_only nothing is seeded, so nothing is mirrored."""
    seeder = start(leech_only=True)
    with pytest.raises(NarswarmError) as caught:
        control.ask(seeder.settings.state, "mirror", rule=f"http://s {world.make().path}")
    assert str(caught.value) == "mirror: is nothing for a seeder with leech_only"


def test_the_dht_s_nodes_are_kept(world: World, start: Start) -> None:
    """A seeder that ends leaves what it knows of the DHT to the next."""
    seeder = start(dht=True)
    assert seeder.status()["dht_nodes"] == 0
    seeder.stop()
    assert b"dht state" in (world.root / "state" / "dht.state").read_bytes()
    start(dht=True)


def test_the_limit_of_open_files_is_raised() -> None:
    """A session refuses peers beyond the number of files that it may open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        raise_file_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == (daemon.MAX_FILES if hard < 0 else min(hard, daemon.MAX_FILES))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def ask_for(seeder: Running, name: str, **more: Any) -> dict[str, Any]:
    """Ask for an operation."""
    return control.ask(seeder.settings.state, name, **more)


def test_its_owner_decides(
    world: World, server: Server, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause is told to trackers; what is removed goes, and comes back when it is added."""
    monkeypatch.setattr(holdings, "GAP", 0.0)
    made, other = world.make("made", b"1"), world.make("other", b"2")
    world.put_nar(made)
    world.put_nar(other)
    seeder = start(trackers=(f"{server.url}/announce",), exclude=("other",), scan_interval=1.0)
    until(lambda: seeder.status()["payloads"] == 1)
    assert seeder.status()["not_offered"] == {"excluded": 1}
    assert ask_for(seeder, "pause") == {"paused": True}
    status = seeder.status()
    assert (status["paused"], status["items"], status["held"]) == (True, 1, 0)
    server.wait(lambda: made.item.nar_hash in [told[b"removed"] for told in server.holdings])
    ask_for(seeder, "resume")
    assert seeder.status()["held"] == 1
    ask_for(seeder, "remove", store_path=made.path)
    status = seeder.status()
    assert (status["items"], status["payloads"], status["payload_bytes"]) == (0, 0, 0)
    with pytest.raises(NarswarmError) as caught:
        ask_for(seeder, "add", store_path=other.path)
    assert str(caught.value) == f"{other.path}: is excluded by the settings"
    with pytest.raises(NarswarmError) as caught:
        ask_for(seeder, "remove", store_path=world.make("gone").path)
    assert str(caught.value).endswith("-gone: is not an item of this machine")
    ask_for(seeder, "add", store_path=made.path)
    until(lambda: seeder.status()["payloads"] == 1)


def test_a_changed_acl_is_noticed(world: World, start: Start) -> None:
    """What no authorised key vouches for any more goes without a restart."""
    made = world.make()
    world.put_nar(made)
    seeder = start(scan_interval=1.0)
    until(lambda: seeder.status()["payloads"] == 1)
    world.acl.write_bytes(render([sexp.parse(gcrypt.generate_key().public)]))
    until(lambda: seeder.status()["not_offered"] == {"not vouched for": 1})
    until(lambda: seeder.status()["payloads"] == 0)


def test_a_seeder_that_only_fetches(world: World, server: Server, start: Start) -> None:
    """It looks at nothing, and tells nobody anything."""
    world.put_nar(world.make())
    seeder = start(trackers=(f"{server.url}/announce",), leech_only=True)
    assert seeder.status()["items"] == 0
    seeder.stop()
    assert (server.holdings, server.published, server.announced) == ([], [], [])


def test_a_schedule_of_rates(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are set when they change."""
    rates: list[tuple[int, int]] = []
    told = threading.Event()

    def limit(_swarm: Swarm, upload: int, download: int) -> None:
        rates.append((upload, download))
        told.set()

    monkeypatch.setattr(Swarm, "limit_rates", limit)
    start(schedule=("00:00-24:00 up=5kB/s",), download_rate=7)
    assert told.wait(120)
    assert rates == [(5000, 7)]


def test_a_clock_that_is_put(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs whose time has become far away run now; a small difference is nothing."""
    modified: list[datetime] = []

    class Job:
        def modify(self, next_run_time: datetime) -> None:
            modified.append(next_run_time)

    class Scheduler:
        def get_jobs(self) -> list[Job]:
            return [Job()]

    class Stop(threading.Event):
        turns = iter([False, False, True])

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout == daemon.CLOCK_INTERVAL
            return next(self.turns)

    seeder = Seeder(Settings(state=world.root / "state"), Stop())
    offsets = iter([0.0, 1.0, -7200.0, -7200.0])
    monkeypatch.setattr("time.time", lambda: 1e9 + next(offsets))
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    seeder._wait(cast("BackgroundScheduler", Scheduler()))
    assert len(modified) == 1
