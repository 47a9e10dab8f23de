# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.serving: the gateway as a process, and where it listens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from narswarm.errors import SettingsError
from narswarm.httpclient import HttpClient
from substituter.serving import MAX_WARNINGS, LongContext, parse_listen
from substituter.settings import SubstituterSettings
from tests.ports import free_port
from tests.substituter import daemon
from tests.substituter.conftest import Item, Net, Site
from tests.substituter.daemon import PROGRAM
from tests.substituter.test_gatewaypool import packed

Make = Callable[..., Item]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8182", ("127.0.0.1", 8182)),
        ("[::]:0", ("::", 0)),
        ("host:65535", ("host", 65535)),
    ],
)
def test_where_to_listen(text: str, address: tuple[str, int]) -> None:
    """An address of either family, and a port."""
    assert parse_listen(text) == address


@pytest.mark.parametrize("text", ["", "8182", ":8182", "host:", "host:65536", "host:x"])
def test_where_nobody_can_listen(text: str) -> None:
    """The error shows what was given."""
    with pytest.raises(SettingsError) as caught:
        parse_listen(text)
    assert str(caught.value) == f"--listen: expected HOST:PORT, got {text!r}"


def test_warnings_are_forgotten_in_the_end(settings: SubstituterSettings) -> None:
    """A line isn't shown again while it is among the last, and doesn't take memory for ever."""
    shown: list[str] = []
    context = LongContext(settings, {}, shown.append)
    for message in ("a\n", "a\n", *map(str, range(MAX_WARNINGS)), "a\n"):
        context.warn_once(message)
    context.close()
    assert shown == ["a\\n", *map(str, range(MAX_WARNINGS)), "a\\n"]


def test_no_place_for_its_state(settings: SubstituterSettings, tmp_path: Path) -> None:
    """It says so at once, and not when the first item is wanted."""
    config = daemon.config(settings, tmp_path / "config")
    gateway = Gateway(config, "--state", str(config / "x"))
    assert gateway.process.wait(120) == 5
    assert gateway.first == f"substituter: {config / 'x'}: Not a directory\n"
    gateway.end()


def test_another_policy(
    settings: SubstituterSettings, site: Site, make_item: Make, tmp_path: Path
) -> None:
    """With swarm-only what only a server has can't be had."""
    item = make_item("a")
    site.offer(item, "gzip")
    config = daemon.config(settings, tmp_path / "config")
    for arguments, status in (([], 200), (["--policy", "swarm-only"], 404)):
        gateway = Gateway(config, "--substitute-urls", site.url, *arguments)
        try:
            with HttpClient(120.0) as client:
                url = f"{gateway.url}/{item.hash_part}.narinfo"
                assert client.request("GET", url).status == status
        finally:
            assert gateway.end() == 0


def test_it_does_not_ask_itself(
    settings: SubstituterSettings, site: Site, make_item: Make, tmp_path: Path
) -> None:
    """An address of this machine with the gateway's port is left out of the servers."""
    item = make_item("a")
    site.offer(item, "gzip")
    port = free_port()
    config = daemon.config(settings, tmp_path / "config")
    urls = f"http://localhost:{port} http://127.0.0.1:{port}/ {site.url}"
    gateway = Gateway(config, "--substitute-urls", urls, listen=f"127.0.0.1:{port}")
    try:
        assert gateway.first.endswith(f"in front of {site.url}\n")
        with HttpClient(120.0) as client:
            url = f"{gateway.url}/{item.hash_part}.narinfo"
            assert client.request("GET", url).body.startswith(item.narinfo)
        second = Gateway(config, "--substitute-urls", urls, listen=f"127.0.0.1:{port}")
        assert second.process.wait(120) == 9
        assert second.first == f"substituter: 127.0.0.1:{port}: Address already in use\n"
        second.end()
    finally:
        gateway.end()


class Gateway:
    """The command in a process of its own."""

    def __init__(
        self,
        config: Path,
        *arguments: str,
        listen: str = "127.0.0.1:0",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        state = str(config.parent / "gateway-state")
        command = ["gateway", "--config", str(config), "--listen", listen, "--state", state]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", PROGRAM, *command, *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], **(environ or {})},
        )
        assert self.process.stderr is not None
        self.first = self.process.stderr.readline()
        self.url = self.first.split()[2].removesuffix(",")

    def end(self) -> int:
        """Have it end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        _, _ = self.process.communicate(timeout=120)
        return self.process.returncode


def test_what_systemd_hears(settings: SubstituterSettings, site: Site, tmp_path: Path) -> None:
    """That it is ready, alive again and again, and about to end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(120)
        config = daemon.config(settings, tmp_path / "config")
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"}
        gateway = Gateway(config, "--substitute-urls", site.url, environ=environ)
        heard = [channel.recv(1000).decode() for _ in range(3)]
        assert gateway.end() == 0
        while heard[-1] == "WATCHDOG=1" and heard.count("WATCHDOG=1") < 1000:
            heard.append(channel.recv(1000).decode())
    assert heard[0].split("\n")[0] == "READY=1"
    assert heard[1:3] == ["WATCHDOG=1"] * 2
    assert heard[-1] == "STOPPING=1"


def test_the_swarm_and_servers(
    settings: SubstituterSettings, net: Net, site: Site, make_item: Make, tmp_path: Path
) -> None:
    """What is seeded comes from the swarm, with the torrent's length; the rest from a server."""
    seeded, other = make_item("a", b"a" * 9000), make_item("b")
    site.offer(seeded, "zstd")
    del site.bodies[f"/nar/zstd/{seeded.path[11:]}"]
    site.offer(other, "gzip")
    net.seed(seeded)
    lines = (f'trackers = ["{net.tracker.url}/announce"]', "private_network = true")
    config = daemon.config(settings, tmp_path / "config", *lines)
    gateway = Gateway(config, "--substitute-urls", site.url)
    try:
        with HttpClient(120.0) as client:
            for item in (seeded, other):
                url = f"{gateway.url}/{item.hash_part}.narinfo"
                assert client.request("GET", url).body.startswith(item.narinfo)
                answer = client.request("GET", f"{gateway.url}/nar/{item.path[11:]}")
                assert answer.body == item.nar
            head = client.request("HEAD", f"{gateway.url}/nar/zstd/{seeded.path[11:]}")
            assert int(head.headers["content-length"]) < len(packed(seeded)) + 1000
    finally:
        code = gateway.end()
    assert code == 0
    assert list((tmp_path / "gateway-state" / "gateway").iterdir()) == []
