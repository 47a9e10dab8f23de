# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job on this machine alone: `make demo`. No Guix, no root, nothing outside loopback.

Makes sample items and a signing key as Guix's, starts a tracker and two seeders, and speaks to the
substituter as guix-daemon would. Then shows that a torrent with another payload, and a narinfo by
an unknown key, get nobody anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from narswarm import acl, base32, gcrypt, nar, narinfo, sexp
from narswarm.cli import format_size
from narswarm.httpclient import HttpClient
from narswarm.httpsig import PublisherKey
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import FrameCompressor, file_name
from narswarm.swarm import Swarm
from narswarm.swarm_settings import SwarmSettings
from narswarm.trackerclient import TrackerIndex
from scripts.guixdaemon import Substituter

BIN = Path(sys.prefix) / "bin"
DEADLINE = 60.0
"""Seconds that any single step may take."""

SEEDERS = 2


class Item(NamedTuple):
    """A sample store item.

    Attributes:
        path: its store path (nothing is ever written there).
        nar_hash: SHA-256 of its NAR.
        nar_size: bytes.
        narinfo: signed.
    """

    path: str
    nar_hash: bytes
    nar_size: int
    narinfo: bytes


class Outcome(NamedTuple):
    """What the substituter said of an item: the status line, payload bytes and seconds."""

    status: str
    from_peers: int
    seconds: float


def main() -> int:
    """Run it all in a folder that is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="narswarm-demo-") as folder,
        contextlib.ExitStack() as s,
    ):
        return Demo(Path(folder), s).run()


class Demo:
    """The cast and the scenes.

    Args:
        folder: where everything is kept.
        stack: ends what was started.
    """

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._nars = folder / "nars"
        self._store = folder / "restored"
        self._nars.mkdir()
        self._store.mkdir()
        self._key = gcrypt.generate_key()
        (folder / "acl").write_bytes(acl.render([sexp.parse(self._key.public)]))
        self._tracker = ""

    def run(self) -> int:
        """Play all scenes; 0 if everything went as it should."""
        items = [self._publishable(name) for name in make_samples(self._folder / "samples")]
        address = self._start_tracker()
        self._tracker = f"http://{address}"
        print(f"tracker     {self._tracker}/announce")
        for number in range(1, SEEDERS + 1):
            print(f"seeder {number}    127.0.0.1:{self._start_seeder(number)}")
        self._await_swarms(items, SEEDERS)
        print(f"{len(items)} items in the index, each with {SEEDERS} seeds\n")
        return self._report(items)

    def _await_swarms(self, items: list[Item], seeders: int) -> None:
        """Wait until the tracker knows all items and where each seeder has them."""
        index = TrackerIndex(HttpClient(environ={}), self._tracker)
        deadline = time.monotonic() + DEADLINE
        missing = list(items)
        while missing:
            entry = index.lookup(missing[-1].nar_hash)
            if entry and entry.torrents and len(entry.torrents[0].peers) == seeders:
                missing.pop()
            elif time.monotonic() > deadline:
                sys.exit(f"demo: {missing[-1].path}: was not published")
            else:
                time.sleep(0.05)

    def _report(self, items: list[Item]) -> int:
        heading = ("item", "NAR size", "from peers", "seconds", "verdict")
        row = "{:<22} {:>10} {:>12} {:>8}  {}".format
        print(row(*heading))
        restored = refused = 0
        with self._substituter() as substituter:
            for item in items:
                outcome, good = self._substitute(substituter, item)
                restored += good
                print(
                    row(
                        item.path[44:],
                        format_size(item.nar_size),
                        format_size(outcome.from_peers),
                        f"{outcome.seconds:.2f}",
                        "restored, hash as signed" if good else f"FAILED: {outcome.status}",
                    )
                )
        print()
        for what, good in (
            ("payload of a lying torrent", self._lying_torrent()),
            ("narinfo by an unknown key", self._unknown_key()),
        ):
            refused += good
            print(f"{what:<34} {'refused' if good else 'NOT REFUSED'}")
        self._stack.close()
        print(f"\n{restored} restored, {refused} refused as they should be")
        return 0 if restored == len(items) and refused == 2 else 1

    def _substituter(self, url: str = "") -> Substituter:
        """The substituter, with a substitute server if there is an URL."""
        environment = quiet_environment(self._folder) | {
            "_NIX_OPTIONS": f"print-extended-build-trace=1\nsubstitute-urls={url}\n",
            "NARSWARM_SUBSTITUTER_STATE": str(self._folder / "substituter"),
            "NARSWARM_SUBSTITUTER_ACL": str(self._folder / "acl"),
            "NARSWARM_SUBSTITUTER_TRACKERS": f"{self._tracker}/announce",
            "NARSWARM_SUBSTITUTER_DHT": "false",
            "NARSWARM_SUBSTITUTER_LSD": "false",
            "NARSWARM_SUBSTITUTER_LISTEN": "127.0.0.1:0",
            # There is no guix to hand over to in this demonstration.
            "NARSWARM_SUBSTITUTER_GUIX": shutil.which("false") or "/bin/false",
            "NARSWARM_SUBSTITUTER_PATIENCE": "5 s",
        }
        return Substituter([str(BIN / "substituter")], environment)

    def _substitute(self, substituter: Substituter, item: Item) -> tuple[Outcome, bool]:
        destination = self._store / item.path.rpartition("/")[2]
        begun = time.monotonic()
        status, from_peers = substituter.substitute(item.path, destination)
        seconds = time.monotonic() - begun
        good = status == f"success {base32.format_hash(item.nar_hash)} {item.nar_size}"
        return Outcome(status, from_peers, seconds), good and same_nar(destination, item.nar_hash)

    def _publishable(self, sample: Path) -> Item:
        """Put the NAR of a sample, and a narinfo by our key, where the seeders look."""
        item = describe(sample, self._key)
        base = item.path.rpartition("/")[2]
        with (self._nars / f"{base}.nar").open("wb") as file:
            file.writelines(nar.dump(sample))
        (self._nars / f"{base[:32]}.narinfo").write_bytes(item.narinfo)
        return item

    def _start_tracker(self) -> str:
        line = self._start(
            "tracker",
            "listening on http://",
            *("serve", "--listen", "127.0.0.1:0", "--data", str(self._folder / "tracker")),
            *("--acl", str(self._folder / "acl")),
        )
        return line.partition("http://")[2].split()[0].rstrip("/")

    def _start_seeder(self, number: int) -> str:
        state = self._folder / f"seeder-{number}"
        line = self._start(
            "seeder",
            "seeder: ready: ",
            *("run", "--state", str(state), "--nars", str(self._nars), "--no-dht"),
            *("--acl", str(self._folder / "acl"), "--tracker", f"{self._tracker}/announce"),
            *("--listen", "127.0.0.1:0"),
        )
        return line.rpartition("port ")[2].strip()

    def _start(self, program: str, sign: str, *arguments: str) -> str:
        """Start a program and wait for the line that says it is ready."""
        process = subprocess.Popen(
            [str(BIN / program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=quiet_environment(self._folder),
            text=True,
        )
        self._stack.callback(stop, process)
        assert process.stdout is not None
        watchdog = threading.Timer(DEADLINE, process.kill)
        watchdog.start()
        seen = []
        try:
            for line in process.stdout:
                seen.append(line)
                if sign in line:
                    threading.Thread(target=process.stdout.read, daemon=True).start()
                    return line
        finally:
            watchdog.cancel()
        sys.exit(f"demo: {program} did not start:\n{''.join(seen)}")

    def _lying_torrent(self) -> bool:
        """Somebody seeds, under the name of a vouched NAR, something else."""
        victim = describe(write(self._folder / "victim", b"what was signed\n" * 5000), self._key)
        fake = write(self._folder / "fake", b"what was forged\n" * 5000)
        payload = self._folder / file_name(victim.nar_hash)
        hasher = PieceHasher()
        with payload.open("wb") as file, FrameCompressor(nar.dump(fake)) as frames:
            for frame in frames:
                hasher.update(frame)
                file.write(frame)
        torrent = Metainfo.of(payload.name, hasher.finish()).encode()
        client = HttpClient(timeout=10, environ={})
        liar = PublisherKey.load_or_create(self._folder / "liar.key")
        TrackerIndex(client, self._tracker).publish(
            liar, victim.nar_hash, torrent, victim.narinfo, time.time()
        )
        settings = SwarmSettings(
            listen=("127.0.0.1:0",), dht=False, lsd=False, upnp=False, role="seed"
        )
        with Swarm(settings) as swarm:
            swarm.seed(torrent, payload, [f"{self._tracker}/announce"])
            self._await_swarms([victim], 1)
            with self._substituter() as substituter:
                outcome, good = self._substitute(substituter, victim)
        gone = not (self._store / victim.path.rpartition("/")[2]).exists()
        return not good and gone and outcome.status.startswith("hash-mismatch sha256 ")

    def _unknown_key(self) -> bool:
        """A substitute server offers an item whose narinfo no key in the ACL has signed."""
        stranger = gcrypt.generate_key()
        item = describe(write(self._folder / "stranger", b"not vouched for\n"), stranger)
        with (
            narinfo_server({item.path[11:43]: item.narinfo}) as url,
            self._substituter(url) as substituter,
        ):
            unavailable = not substituter.available(item.path)
            outcome, good = self._substitute(substituter, item)
        return unavailable and not good and outcome.status == "not-found"


def describe(sample: Path, key: gcrypt.KeyPair) -> Item:
    """The item that a sample would be in the store, vouched for by a key."""
    digest, size = hashlib.sha256(), 0
    for chunk in nar.dump(sample):
        digest.update(chunk)
        size += len(chunk)
    # Any 32 digits will do: what Guix hashes to get them needs a build.
    path = f"/gnu/store/{base32.encode(digest.digest())[:32]}-{sample.name}"
    unsigned = narinfo.compose(path, digest.digest(), size, [], None)
    return Item(path, digest.digest(), size, narinfo.sign(unsigned, key, "demo"))


def make_samples(folder: Path) -> Iterator[Path]:
    """Sample items: what stores are full of, and what breaks programs."""
    yield write(folder / "hello.txt", b"hello, substitutes\n")
    tree = folder / "tree"
    write(tree / "bin" / "tool", b"#!/bin/sh\necho hi\n").chmod(0o755)
    (tree / "empty").mkdir()
    (tree / "link").symlink_to("bin/tool")
    (tree / "dangling").symlink_to("/nowhere")
    write(tree / "share" / "naïve 日本語", b"x")
    write(tree / "share" / "with space", b"")
    yield tree
    many = folder / "many-files"
    for number in range(3000):
        write(many / f"f{number}", b"file %d\n" % number)
    yield many
    yield write(folder / "random-8M", os.urandom(8 << 20))
    large = folder / "mixed-48M"
    write(large / "text", b"".join(b"%d bottles of beer\n" % n for n in range(1 << 20)))
    write(large / "random", os.urandom(24 << 20))
    yield large


def write(path: Path, data: bytes) -> Path:
    """Make a file and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def same_nar(path: Path, nar_hash: bytes) -> bool:
    """Whether what was restored has this NAR hash, read from its files."""
    digest = hashlib.sha256()
    for chunk in nar.dump(path):
        digest.update(chunk)
    return digest.digest() == nar_hash


def quiet_environment(folder: Path) -> dict[str, str]:
    """This process's environment without settings, and off the net."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NARSWARM_")}
    environment["NARSWARM_CONFIG"] = str(write(folder / "narswarm.toml", b""))
    environment |= {"NARSWARM_SEEDER_LSD": "false", "NARSWARM_SEEDER_UPNP": "false"}
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        environment.pop(proxy, None)
    return environment


@contextlib.contextmanager
def narinfo_server(narinfos: dict[str, bytes]) -> Iterator[str]:
    """A substitute server on loopback that has nothing but these narinfos."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = narinfos.get(self.path.strip("/").removesuffix(".narinfo"))
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def stop(process: subprocess.Popen[str]) -> None:
    """End a program that this demonstration started, and wait for it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """End as on ^C, so that nothing is left running."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ndemo: interrupted")
