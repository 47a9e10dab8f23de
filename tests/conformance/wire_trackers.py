# SPDX-License-Identifier: GPL-3.0-or-later
"""The trackers that wire cases are put to: ours with either engine, and two others as oracles."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests import needs
from tests.conformance.wire_clients import Endpoint
from tests.ports import free_port
from tests.processes import end, start_tracker

HERE = Path(__file__).resolve().parent
PACKAGE = HERE / "npm"
DEADLINE = 120
USER = "nobody"
READY = b"l" * 20
"""An infohash that is listed, and in no case."""


@contextlib.contextmanager
def ours(directory: Path, engine: str, *flags: str) -> Iterator[Endpoint]:
    """Our tracker, with an engine."""
    if engine == "native":
        needs.native()
    process, (port,) = start_tracker(directory, ["[::]:0"], *flags, NARSWARM_TRACKER_ENGINE=engine)
    try:
        yield Endpoint(port, port, port)
    finally:
        end(process)


@contextlib.contextmanager
def opentracker(directory: Path, infohashes: Iterable[bytes]) -> Iterator[Endpoint]:
    """Debian's opentracker, which tracks only what it is told and only over IPv4."""
    program = needs.program("opentracker", folders=["/usr/sbin"])
    port = free_port()
    listed = directory / "whitelist"
    listed.write_text("".join(f"{each.hex()}\n" for each in (*infohashes, READY)))
    config = directory / "opentracker.conf"
    config.write_text(
        f"listen.tcp_udp 127.0.0.1:{port}\naccess.whitelist {listed}\ntracker.user {USER}\n"
    )
    for folder in (directory, *directory.parents):
        # It reads the list as that user; pytest's directories are their owner's.
        if folder.stat().st_uid == os.geteuid() and folder.parent != folder:
            folder.chmod(folder.stat().st_mode | 0o011)
    listed.chmod(0o644)
    process = subprocess.Popen(
        [program, "-f", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        _wait_listed(port)
        yield Endpoint(port, port, port, six=False)
    finally:
        end(process)


def _wait_listed(port: int) -> None:
    """It listens before it has read the list: ask until it tracks one of it."""
    target = f"/announce?info_hash={READY.decode()}&peer_id={'p' * 20}&port=1&left=1"
    pause = threading.Event()
    for _ in range(DEADLINE * 20):
        with contextlib.suppress(ConnectionRefusedError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
            try:
                connection.request("GET", target)
                if b"failure" not in connection.getresponse().read():
                    return
            finally:
                connection.close()
        pause.wait(0.05)
    raise TimeoutError("opentracker does not answer")


@contextlib.contextmanager
def npm(directory: Path) -> Iterator[Endpoint]:
    """The tracker of the package bittorrent-tracker."""
    program = node_script(directory, "server.mjs")
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "the tracker of npm ended at once"
        yield Endpoint(**json.loads(line))
    finally:
        end(process)


def node_script(directory: Path, name: str) -> list[str]:
    """The command of a script of `npm/`, beside the package that it imports.

    Args:
        directory: the script is copied into it.
        name: of the script.
    """
    modules = node_modules()
    (directory / "node_modules").symlink_to(modules)
    shutil.copy(PACKAGE / name, directory / name)
    return [needs.program("node", "nodejs"), str(directory / name)]


def node_modules() -> Path:
    """The package as npm installs it, kept in a cache until another version is asked for.

    The machine's configured registry is asked, once. No script of the packages is run.
    """
    needs.program("node", "nodejs")
    program = needs.program("npm")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "narswarm" / "npm"
    base.mkdir(parents=True, exist_ok=True)
    stamp = base / "stamp"
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        want = (PACKAGE / "package.json").read_text()
        if not stamp.exists() or stamp.read_text() != want:
            stamp.unlink(missing_ok=True)
            shutil.rmtree(base / "node_modules", ignore_errors=True)
            shutil.copytree(PACKAGE, base, dirs_exist_ok=True)
            command = [program, "install", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(
                command, cwd=base, capture_output=True, text=True, check=False, timeout=300
            )
            if done.returncode:
                needs.missing(f"npm can't install bittorrent-tracker: {done.stderr.strip()}")
            stamp.write_text(want)
    return base / "node_modules"


def npm_version() -> str:
    """The version of bittorrent-tracker that is asked for."""
    wanted: dict[str, str] = json.loads((PACKAGE / "package.json").read_text())["dependencies"]
    return wanted["bittorrent-tracker"]
