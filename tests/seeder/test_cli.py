# SPDX-License-Identifier: GPL-3.0-or-later
"""The command as users and service managers start it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from narswarm import base32
from narswarm.control import ControlServer, Conversation
from narswarm.errors import ExitCode
from narswarm.fetchclient import SeederClient, Wanted
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import Kind, file_name
from narswarm.swarm import Swarm
from narswarm.swarm_settings import SwarmSettings
from seeder import cli
from tests.seeder.conftest import Server, World

PASSED = ("PATH", "PYTHONPATH")
"""Variables for processes of the test; settings of the one who runs it are none of theirs."""

ANSWER: dict[str, Any] = {
    "items": 3,
    "paused": False,
    "fetching": 1,
    "planned": 2,
    "not_offered": {"not vouched for": 2},
    "scan_message": "",
    "payloads": 1,
    "payload_bytes": 2048,
    "max_disk": 1 << 30,
    "full": "",
    "codec": "",
    "peers": 1,
    "uploaded": 1536,
    "downloaded": 0,
    "mirror": {
        "rules": [],
        "files": 0,
        "in_place": 0,
        "bytes": 0,
        "max_disk": 1 << 30,
        "missing": 0,
        "full": "",
        "failures": [],
    },
    "mirror_message": "",
    "dht_nodes": 7,
    "listen_port": 6881,
    "port_mappings": [],
    "publisher": "abc=",
    "started": 1,
    "trackers": [
        {
            "url": "http://t/announce",
            "announces": 4,
            "announce_errors": 0,
            "announce_message": "",
            "published": 2,
            "pending": 1,
            "publish_message": "refused\x1b",
            "held": 3,
            "holdings_message": "",
        }
    ],
}


def test_a_status_for_people() -> None:
    """One fact a line; what strangers said can't steer the terminal."""
    assert cli.describe(ANSWER).splitlines() == [
        "items       3 offered",
        "            2 not vouched for",
        "payloads    1 made, 2.0 KiB of 1.0 GiB",
        "peers       1",
        "uploaded    1.5 KiB",
        "downloaded  0 B",
        "fetching    1 items, 2 more are planned",
        "DHT nodes   7",
        "port        6881",
        "publisher   abc=",
        "tracker     http://t/announce",
        "            3 held",
        "            2 published, last error: refused\\x1b",
        "            1 to be published",
        "            4 announces, of two infohashes an item",
    ]


def test_a_status_shows_what_the_router_said() -> None:
    """Below the port, if one was asked and has answered."""
    mappings = [{"by": "UPnP", "protocol": "TCP", "port": 6881, "error": ""}]
    lines = cli.describe(ANSWER | {"port_mappings": mappings}).splitlines()
    after = lines[lines.index("port        6881") + 1]
    assert after == "            the router forwards TCP 6881 by UPnP"


def test_a_status_shows_the_mirror() -> None:
    """What is followed, what is here of it, and what isn't, and why."""
    mirror = ANSWER["mirror"] | {
        "rules": ["http://s closure x"],
        "files": 3,
        "in_place": 1,
        "bytes": 2048,
        "missing": 2,
        "full": "no room for y",
        "failures": ["http://s/a\x1b: broken", "b", "c", "d"],
    }
    text = cli.describe(ANSWER | {"mirror": mirror, "mirror_message": "m: bad"})
    lines = text.splitlines()
    start = lines.index("mirror      2 files, 2.0 KiB, and 1 in place")
    assert [line.strip() for line in lines[start + 1 : start + 8]] == [
        "http://s closure x",
        "2 items aren't here",
        "no room for y",
        "m: bad",
        "http://s/a\\x1b: broken",
        "b",
        "c",
    ]
    assert lines[start + 8].startswith("tracker ")


def test_a_status_says_why_nothing_is_made() -> None:
    """The codec and a full disk are what an operator has to know."""
    text = cli.describe(ANSWER | {"codec": "libzstd 1: other", "full": "dir: full"})
    assert "no payloads libzstd 1: other\nno payloads dir: full\n" in text


def test_a_status_says_why_nothing_is_found() -> None:
    """A database that isn't there, beside the items that aren't offered because of it."""
    text = cli.describe(ANSWER | {"items": 0, "not_offered": {}, "scan_message": "db: is missing"})
    assert text.startswith("items       0 offered\nnot scanned db: is missing\npayloads ")


class Process:
    """`seeder run` in a process of its own."""

    def __init__(self, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "seeder", "run", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={name: os.environ[name] for name in PASSED if name in os.environ},
        )
        self.lines: list[str] = []

    def read_until(self, start: str) -> str:
        """Read its messages until one begins so."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(start):
                return self.lines[-1]
        raise AssertionError(f"it ended without saying {start!r}: {self.lines}")

    def end(self, number: signal.Signals | None = signal.SIGTERM) -> int:
        """Send a signal, or none, and wait."""
        if number is not None:
            self.process.send_signal(number)
        assert self.process.stderr is not None
        with self.process.stderr:
            self.lines += self.process.stderr.read().splitlines()
        return self.process.wait(120)


Run = Callable[..., Process]


@pytest.fixture
def run(world: World) -> Iterator[Run]:
    """Run seeders; those that are left are killed."""
    processes: list[Process] = []
    file = world.root / "narswarm.toml"
    file.write_text(
        "[seeder]\nlsd = false\nupnp = false\nprivate_network = true\n"
        'workers = 1\nscan_interval = 1\nweb = ""\n',
        encoding="utf-8",
    )

    def start(*arguments: str) -> Process:
        common = ["--config", str(file), "--state", str(world.root / "state")]
        common += ["--nars", str(world.nars), "--acl", str(world.acl)]
        common += ["--listen", "127.0.0.1:0", "--no-dht", *arguments]
        processes.append(Process(common))
        return processes[-1]

    yield start
    for each in processes:
        if each.process.poll() is None:
            each.end(signal.SIGKILL)


def status(world: World, *arguments: str) -> tuple[int, str]:
    """Run `seeder status`."""
    done = subprocess.run(
        [sys.executable, "-m", "seeder", "status", "--state", world.root / "state", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_life(world: World, server: Server, run: Run) -> None:
    """Ready, seeding, asked, refused a second time, killed, started again, ended."""
    made = world.make()
    world.put_nar(made)
    first = run("--tracker", f"{server.url}/announce")
    assert first.read_until("seeder: ready").startswith("seeder: ready: 0 items, port ")
    first.read_until(f"seeder: seeding {made.path}: ")
    code, text = status(world, "--json")
    assert (code, json.loads(text)["items"]) == (ExitCode.OK, 1)
    second = run()
    assert second.read_until("seeder: ") == (
        f"seeder: {world.root / 'state'}: is in use by the seeder "
        f"with process id {first.process.pid}"
    )
    assert second.end(None) == ExitCode.BUSY
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    third = run("--tracker", f"{server.url}/announce")
    third.read_until("seeder: ready: 1 items, port ")
    assert status(world)[0] == ExitCode.OK
    assert third.end() == ExitCode.OK
    assert third.lines == third.lines[:1]
    assert status(world) == (
        ExitCode.NOT_FOUND,
        f"seeder: {world.root / 'state'}: no seeder runs with this directory\n",
    )


def test_killed_while_a_payload_is_made(world: World, server: Server, run: Run) -> None:
    """What was half made is gone after the restart, and made again; nothing else is lost."""
    done = world.make("done", b"1")
    world.put_nar(done)
    payloads = world.root / "state" / "payloads"
    first = run("--tracker", f"{server.url}/announce")
    first.read_until(f"seeder: seeding {done.path}: ")
    for number in range(2, 10):
        large = world.make("large", random.Random(number).randbytes(24 << 20))  # noqa: S311
        world.put_nar(large)
        while len(list(payloads.iterdir())) < number:  # until it has begun
            assert first.process.poll() is None
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        if f"seeder: seeding {large.path}: " not in " ".join(first.lines):
            break
        # It was made before this test got the processor again.
        first = run("--tracker", f"{server.url}/announce")
        first.read_until("seeder: ready: ")
    else:
        pytest.fail("it was never killed in the middle")
    second = run("--tracker", f"{server.url}/announce")
    second.read_until("seeder: ready: ")
    assert status(world)[0] == ExitCode.OK
    second.read_until(f"seeder: seeding {large.path}: ")
    assert len(list(payloads.iterdir())) == number
    assert not any(f"seeding {done.path}" in line for line in second.lines)
    assert second.end() == ExitCode.OK


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_fetched_in_part_is_gone_on_with(
    world: World, tmp_path: Path, run: Run, number: signal.Signals, damaged: bool
) -> None:
    """After the seeder was killed or ended; what isn't right any more is fetched anew."""
    data = random.Random(1).randbytes(8 << 20)  # noqa: S311
    wanted = Wanted(hashlib.sha256(data).digest(), len(data), f"/gnu/store/{'0' * 32}-item")
    payload = tmp_path / file_name(wanted.nar_hash, Kind.NAR)
    payload.write_bytes(data)
    hasher = PieceHasher()
    hasher.update(data)
    meta = Metainfo.of(payload.name, hasher.finish())
    infohash = meta.infohash_v2.hex()
    torrents = world.root / "state" / "torrents" / base32.encode(wanted.nar_hash)
    torrents.mkdir(parents=True)
    (torrents / f"{infohash}.torrent").write_bytes(meta.encode())
    settings = world.root / "narswarm.toml"
    quick = settings.read_text()
    part = world.root / "state" / "fetching" / infohash / payload.name
    loopback = SwarmSettings(
        listen=("127.0.0.1:0",), dht=False, lsd=False, upnp=False, private_network=True
    )
    with Swarm(loopback) as source:
        source.seed(meta.encode(), payload, [])
        peers = [["127.0.0.1", source.listen_port]]
        (torrents / f"{infohash}.peers").write_text(json.dumps(peers))
        settings.write_text(f"{quick}download_rate = 4000000\n")
        first = run()
        first.read_until("seeder: ready")
        with (
            SeederClient(world.root / "state" / "control.sock", timeout=120) as client,
            client.fetch(wanted) as fetching,
        ):
            size, chunks = 0, fetching.chunks()
            while size < 2 << 20:
                size += len(next(chunks))
            first.end(number)
        assert size < len(data)
        if damaged:
            with part.open("r+b") as file:
                file.write(b"damaged")
        before = source.counters()["uploaded"]
        settings.write_text(quick)
        second = run()
        second.read_until("seeder: ready")
        with (
            SeederClient(world.root / "state" / "control.sock", timeout=120) as client,
            client.fetch(wanted) as fetching,
        ):
            assert b"".join(fetching.chunks()) == data
        sent = source.counters()["uploaded"] - before
        assert second.end() == ExitCode.OK
    piece = meta.piece_length
    assert sent <= len(data) - size + (2 if damaged else 1) * piece + (1 << 18)
    # One that ends in order may have got all of it on its way.
    assert sent >= (piece if damaged else 0)


@pytest.mark.parametrize("how", ["reload", "restart"])
def test_a_tracker_that_learns_of_the_key(world: World, server: Server, run: Run, how: str) -> None:
    """It is told at once by a seeder that is told to reload, or that is started again."""
    world.put_nar(world.make())
    server.forbids = True
    arguments = ("--tracker", f"{server.url}/announce")
    seeder = run(*arguments)
    seeder.read_until(f"seeder: {server.url}/announce: refuses items: answers 403: publisher: is ")
    with server.changed:
        server.forbids = False
    if how == "reload":
        seeder.process.send_signal(signal.SIGHUP)
        seeder.read_until("seeder: trackers that refused something are asked again")
    else:
        assert seeder.end() == ExitCode.OK
        seeder = run(*arguments)
    server.wait(lambda: server.published)
    assert seeder.end() == ExitCode.OK


def test_interrupted(run: Run) -> None:
    """Ctrl-C ends it like a service manager does."""
    seeder = run()
    seeder.read_until("seeder: ready")
    assert seeder.end(signal.SIGINT) == ExitCode.OK


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["run", "--tracker", "nonsense"],
            ExitCode.SETTINGS,
            "--tracker: 'nonsense' is not an announce URL such as http://HOST:PORT/announce",
        ),
        (["run", "--dht-node", "x"], ExitCode.SETTINGS, "--dht-node: 'x' is not HOST:PORT"),
        (["run", "--config", "/nonexistent"], ExitCode.SETTINGS, "/nonexistent: No such file"),
        (["status", "--state", "/nonexistent"], ExitCode.NOT_FOUND, "/nonexistent: no seeder runs"),
    ],
)
def test_errors(
    arguments: list[str],
    code: ExitCode,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, and the exit code of the table."""
    monkeypatch.setattr(sys, "argv", ["seeder", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith(f"seeder: {message}")


def test_help() -> None:
    """Every option says what it does."""
    text = CliRunner().invoke(cli.seeder, ["run", "--help"]).output
    for option in ("--state", "--store-db", "--nars", "--acl", "--tracker", "--substitute-url"):
        assert option in text


def ask(*arguments: str) -> tuple[int, str]:
    """Run a command in this process; its exit code and output."""
    done = CliRunner().invoke(cli.seeder, [*arguments], standalone_mode=True)
    return done.exit_code, done.output


def test_mirroring(tmp_path: Path) -> None:
    """The command makes a rule of its arguments, and the running seeder follows it."""
    item = "/gnu/store/00000000000000000000000000000001-hello"
    asked: list[Mapping[str, Any]] = []

    def note(request: Mapping[str, Any]) -> Mapping[str, Any]:
        asked.append(request)
        return {"rule": request["rule"], "changed": True}

    directory = tmp_path / "state"
    directory.mkdir()
    server = ControlServer(directory, {"mirror": note})
    state = ("--state", str(directory))
    manifest = tmp_path / "a list"
    manifest.write_text(item)
    url = "http://s"
    try:
        assert ask("mirror", url, item, item, *state) == (0, f"{url} {item} {item} is followed\n")
        forgotten = ask("mirror", "--closure", "--forget", url, item, *state)
        assert forgotten == (0, f"{url} closure {item} is followed no more\n")
        assert ask("mirror", url, "--manifest", str(manifest), *state)[0] == 0
        assert [(request["rule"], request["forget"]) for request in asked] == [
            (f"{url} {item} {item}", False),
            (f"{url} closure {item}", True),
            (f"{url} manifest '{manifest}'", False),
        ]
        for wrong in ([], ["--closure"], [item, "--manifest", str(manifest)]):
            code, text = ask("mirror", url, *wrong, *state)
            assert code == 2
            assert "give either PATHs, with or without --closure, or --manifest FILE" in text
        assert len(asked) == 3
    finally:
        server.close()


def test_commands_that_ask_a_seeder(tmp_path: Path) -> None:
    """Each says what was done, to people and to programs."""
    item = "/gnu/store/00000000000000000000000000000001-hello"
    asked: list[Mapping[str, Any]] = []

    def note(request: Mapping[str, Any]) -> Mapping[str, Any]:
        asked.append(request)
        return {"store_path": item} if "store_path" in request else {"paused": True}

    def listed(_request: Mapping[str, Any], conversation: Conversation) -> None:
        offered = {"store_path": item, "offered": True, "reason": "vouched for"}
        conversation.send({"items": [offered | {"length": 2048, "uploaded": 10}], "more": True})
        other = {"store_path": f"{item}\x1b", "offered": False, "reason": "not vouched for"}
        conversation.send({"items": [other], "more": False})

    operations = dict.fromkeys(("pause", "resume", "add", "remove"), note)
    server = ControlServer(tmp_path, operations, streams={"list": listed})
    state = ("--state", str(tmp_path))
    assert ask("pause", *state) == (0, "nothing is seeded now\n")
    assert ask("resume", *state) == (0, "everything is seeded again\n")
    assert ask("remove", item, *state) == (0, f"{item} is no longer offered\n")
    assert ask("add", item, item, *state) == (0, f"{item} is offered\n" * 2)
    code, text = ask("pause", "--json", *state)
    assert (code, json.loads(text)) == (0, {"paused": True})
    assert [request["op"] for request in asked] == [
        "pause",
        "resume",
        "remove",
        "add",
        "add",
        "pause",
    ]
    code, text = ask("list", *state)
    lines = text.splitlines()
    assert code == 0
    name = "00000000000000000000000000000001-hello"
    assert lines[0] == f"+    2.0 KiB       10 B  {name}: vouched for"
    assert lines[1].startswith(f"-                        {name}")
    assert "\x1b" not in text
    code, text = ask("list", "--json", *state)
    assert [each["offered"] for each in json.loads(text)] == [True, False]
    server.close()


def test_a_doctor_says_what_is_broken(world: World) -> None:
    """By its exit code, too; warnings are none."""
    file = world.root / "narswarm.toml"
    file.write_text(f'[seeder]\nacl = "{world.acl}"\nnars = "{world.nars}"\n', encoding="utf-8")
    arguments = ("doctor", "--config", str(file), "--state", str(world.root / "state"))
    code, text = ask(*arguments)
    assert code == ExitCode.FAILED
    assert "failed   seeder: " in text
    assert f"ok       ACL: {world.acl} has 1 keys\n" in text
    assert "warning  items: there are none\n" in text
    (world.root / "state").mkdir()
    server = ControlServer(world.root / "state", {"status": lambda _request: ANSWER})
    code, text = ask(*arguments, "--json")
    server.close()
    assert code == 0
    findings = {finding["check"]: finding["verdict"] for finding in json.loads(text)}
    assert findings["seeder"] == "ok"
    assert findings["trackers"] == "warning"
