# SPDX-License-Identifier: GPL-3.0-or-later
"""What a seeder of a whole store costs: start, memory, idling, and how fast it makes an item.

Usage: python bench/seeder_store.py [ITEMS]

The items are rows of a database as guix-daemon's, already vouched for in the seeder's state; only
one of them exists, of 50 MiB, half of which doesn't compress. A tracker is told of all of them, and
somebody asks it for that one. Everything is on loopback, and gone afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from narswarm import acl, base32, gcrypt, metainfo, nar, narinfo, sexp
from narswarm.cli import format_size
from narswarm.errors import NotFoundError
from narswarm.httpclient import HttpClient
from narswarm.trackerclient import PreparingError, TrackerIndex
from seeder.inventory import Item
from seeder.items import NEW
from seeder.state import State

SIZE = 50 << 20
IDLE = 30.0
DEADLINE = 120.0


def main() -> None:
    """Measure, and print a table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory(prefix="narswarm-bench-") as folder:
        root = Path(folder)
        wanted = make_store(root, count)
        with running(root, "tracker", tracker_arguments(root), "listening on http://") as tracker:
            address = tracker.line.partition("http://")[2].split()[0].rstrip("/")
            url = f"http://{address}"
            arguments = seeder_arguments(root, url)
            row("items", f"{count:,}")
            with running(root, "seeder", arguments, "ready: ") as seeder:
                row("first start: ready after", f"{seeder.seconds:.2f} s")
                wait_for_holdings(url, wanted)
                row("told to the tracker after", f"{time.monotonic() - seeder.begin:.2f} s")
            with running(root, "seeder", arguments, "ready: ") as seeder:
                row("next start: ready after", f"{seeder.seconds:.2f} s")
                wait_for_holdings(url, wanted)
                row("told to the tracker after", f"{time.monotonic() - seeder.begin:.2f} s")
                time.sleep(10)  # until what follows the start is over
                used = seeder.cpu()
                time.sleep(IDLE)
                row("idle", f"{100 * (seeder.cpu() - used) / IDLE:.2f} % of a core")
                row("resident", format_size(seeder.memory()))
                row("a cold item of 50 MiB", f"{ask(url, wanted):.2f} s until it has a seed")
                row("resident", format_size(seeder.memory()))
        row("state", format_size((root / "state" / "state.sqlite").stat().st_size))


def row(label: str, value: str) -> None:
    """Print a line of the table."""
    print(f"{label:<28}{value}", flush=True)


def make_store(root: Path, count: int, small: int = 0) -> Item:
    """A store with a database of many items, one of which exists, of 50 MiB; returns that.

    Args:
        root: where everything goes.
        count: of items in the database.
        small: how many of the others exist as well, of a few kilobytes.
    """
    key = gcrypt.generate_key()
    (root / "acl").write_bytes(acl.render([sexp.parse(key.public)]))
    store = root / "store"
    store.mkdir()
    rng = random.Random(1)  # noqa: S311  the same bytes each time
    items, narinfos = [], []
    for number in range(1, count + 1):
        name = f"{number:032}-item-{number}"
        # As long as real ones are; only those of items that exist are ever read.
        item, info = Item(number, f"/gnu/store/{name}", rng.randbytes(32), 1_000_000), b""
        if number <= 1 + small:
            if number == 1:
                content = rng.randbytes(SIZE // 2) + b"text that compresses " * (SIZE // 42)
            else:
                content = rng.randbytes(rng.randrange(500, 3000)).hex().encode()
            (store / name).write_bytes(content)
            chunks = list(nar.dump(store / name))
            digest = hashlib.sha256(b"".join(chunks)).digest()
            item = item._replace(nar_hash=digest, nar_size=sum(map(len, chunks)))
            info = narinfo.compose(item.store_path, item.nar_hash, item.nar_size, [])
            info = narinfo.sign(info, key, "bench")
        items.append(item)
        narinfos.append(info or rng.randbytes(700))
    with contextlib.closing(sqlite3.connect(root / "db.sqlite")) as db, db:
        db.execute(
            "CREATE TABLE ValidPaths (id integer primary key autoincrement not null,"
            " path text unique not null, hash text not null,"
            " registrationTime integer not null, deriver text, narSize integer)"
        )
        db.executemany(
            "INSERT INTO ValidPaths VALUES (?, ?, ?, 1, '', ?)",
            [(i.order, i.store_path, f"sha256:{i.nar_hash.hex()}", i.nar_size) for i in items],
        )
    with State(root / "state") as state:
        state.items.add((item, NEW) for item in items)
        state.items.vouched(zip(items, narinfos, strict=True))
        state.set_note("acl", hashlib.sha256((root / "acl").read_bytes()).hexdigest())
    return items[0]


def tracker_arguments(root: Path) -> list[str]:
    """Of a tracker that indexes what the key of the bench vouches for."""
    return ["serve", "--listen", "127.0.0.1:0", "--data", f"{root}/tracker", "--acl", f"{root}/acl"]


def seeder_arguments(root: Path, url: str) -> list[str]:
    """Of a seeder of the store."""
    return [
        *("run", "--state", f"{root}/state", "--acl", f"{root}/acl", "--no-dht"),
        *("--store-db", f"{root}/db.sqlite", "--tracker", f"{url}/announce"),
        *("--listen", "127.0.0.1:0", "--substitute-url", "http://127.0.0.1:9"),
    ]


class Process:
    """A program that runs.

    Attributes:
        begin: when it was started.
        seconds: until it said that it is ready.
        line: with which it did.
    """

    def __init__(self, process: subprocess.Popen[str], sign: str) -> None:
        self.begin = time.monotonic()
        self._process = process
        assert process.stdout is not None
        self.line = self._read(process.stdout, sign)
        self.seconds = time.monotonic() - self.begin
        threading.Thread(target=process.stdout.read, daemon=True).start()

    def _read(self, stream: IO[str], sign: str) -> str:
        seen = []
        for line in stream:
            seen.append(line)
            if sign in line:
                return line
        sys.exit("".join(seen))

    def memory(self) -> int:
        """Bytes that are resident."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        text = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii")
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(root: Path, program: str, arguments: list[str], sign: str) -> Iterator[Process]:
    """Run a program until the block ends; it has begun when it says SIGN."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NARSWARM_")}
    (root / "narswarm.toml").write_text(f'[seeder]\nstore = "{root}/store"\nweb = ""\n')
    environment |= {"NARSWARM_CONFIG": f"{root}/narswarm.toml"}
    environment |= {"NARSWARM_SEEDER_LSD": "false", "NARSWARM_SEEDER_UPNP": "false"}
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name(program)), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        yield Process(process, sign)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def wait_for_holdings(url: str, wanted: Item) -> None:
    """Wait until the tracker knows that somebody holds an item."""
    index = TrackerIndex(HttpClient(environ={}), url)
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        entry = index.lookup(wanted.nar_hash)
        if entry is not None and entry.holders:
            return
        time.sleep(0.02)
    sys.exit("the tracker was not told")


def ask(url: str, wanted: Item) -> float:
    """Seconds from the first request for a torrent until it has a seed."""
    index = TrackerIndex(HttpClient(environ={}), url)
    begin = time.monotonic()
    while time.monotonic() - begin < DEADLINE:
        with contextlib.suppress(PreparingError, NotFoundError):
            torrent = index.torrent(wanted.nar_hash)
            if torrent is not None:
                break
        time.sleep(0.01)
    else:
        sys.exit(f"{base32.encode(wanted.nar_hash)} was not made")
    metainfo.require_for(metainfo.decode(torrent, url), wanted.nar_hash, wanted.nar_size)
    while time.monotonic() - begin < DEADLINE:
        entry = index.lookup(wanted.nar_hash)
        if entry is not None and entry.torrents and entry.torrents[0].seeders:
            return time.monotonic() - begin
        time.sleep(0.01)
    sys.exit("nobody seeds it")


if __name__ == "__main__":
    main()
