# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.doctor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from narswarm.control import ControlServer
from narswarm.errors import CodecError
from narswarm.httpclient import HttpClient
from seeder import doctor
from seeder.doctor import Finding, Verdict, examine
from seeder.settings import Settings
from seeder.state import State
from tests.seeder.conftest import World
from tests.seeder.test_publish_cache import bake

NOW = 1_700_000_000.0
CLOCK = "the tracker's, which refuses what is published so; set it by NTP"


ADVICE = (
    "let TCP and UDP port 6881 through the firewall, and have the router forward it, "
    "if there is one"
)


class FakeTracker:
    """Says that it is well, at a time of its own."""

    def __init__(self) -> None:
        self.now = NOW
        self.status = 200
        self.sees = (404, b"")
        tracker = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                """Answer."""
                status, body = tracker.status, b""
                if self.path == "/v1/reachable?port=6881":
                    status, body = tracker.sees
                else:
                    assert self.path == "/healthz"
                self.send_response_only(status)
                self.send_header("Date", formatdate(tracker.now, usegmt=True))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Requests are nothing to show."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/announce"
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        """Be down."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def tracker() -> Iterator[FakeTracker]:
    """A tracker."""
    made = FakeTracker()
    yield made
    made.close()


def settings(world: World, **changes: Any) -> Settings:
    """Of a seeder that could run."""
    values: dict[str, Any] = {
        "state": world.root / "state",
        "acl": world.acl,
        "store_db": world.database,
        "store": world.store,
    }
    return Settings(**(values | changes))


def findings(settings: Settings) -> dict[str, Finding]:
    """What is found, by check."""
    with HttpClient(10.0) as client:
        found = list(examine(settings, client, lambda: NOW))
    return {finding.check: finding for finding in found}


def test_nothing_is_wrong(world: World, tracker: FakeTracker) -> None:
    """With a running seeder, a store and a tracker."""
    made = world.make("hello")
    world.register(made)
    status = {
        "items": 1,
        "listen_port": 6881,
        "incoming": 3,
        "trackers": [
            {
                "url": tracker.url,
                "announces": 2,
                "published": 1,
                "announce_message": "",
                "publish_message": "",
            }
        ],
    }
    with State(world.root / "state"):
        server = ControlServer(world.root / "state", {"status": lambda _request: status})
        found = findings(settings(world, trackers=(tracker.url,)))
        status["incoming"] = 0
        status["trackers"][0]["announce_message"] = "not listed"  # type: ignore[index]
        worse = findings(settings(world, trackers=(tracker.url,)))
        server.close()
    assert {finding.verdict for finding in found.values()} == {Verdict.OK}
    assert [finding.message for finding in found.values()] == [
        "runs, offering 1 items",
        f"libtorrent takes all of them; state in {world.root}/state",
        f"{world.acl} has 1 keys",
        "makes the payloads of profile 1",
        f"can be listed and read, such as {made.path}",
        found["disk"].message,
        "2 announces, 1 published",
        "peers have connected from outside",
    ]
    assert found["disk"].message == "0 B of 20.0 GiB are used"
    base = tracker.url.removesuffix("/announce")
    assert worse["port 6881"] == Finding(
        "port 6881",
        Verdict.WARNING,
        "nobody has connected yet, and whether it is open is not known "
        f"({base}: doesn't look at ports); {ADVICE}",
    )
    assert worse[f"tracker {tracker.url}"] == Finding(
        f"tracker {tracker.url}",
        Verdict.WARNING,
        "2 announces, 1 published; last error: not listed",
    )


def looked(tcp: str, utp: str) -> tuple[int, bytes]:
    """What a tracker answers that has looked."""
    seen = {"address": "192.0.2.1", "port": 6881, "tcp": tcp, "utp": utp}
    return 200, json.dumps(seen).encode()


@pytest.mark.parametrize(
    ("sees", "changes", "verdict", "message"),
    [
        (looked("open", "open"), {}, Verdict.OK, "is open from outside: {}"),
        (
            looked("open", "no answer"),
            {},
            Verdict.WARNING,
            "is open for TCP alone: {}; let UDP through",
        ),
        (
            looked("open", "refused"),
            {"libtorrent": {"enable_incoming_utp": False}},
            Verdict.OK,
            "is open from outside: {}",
        ),
        (
            looked("refused", "open"),
            {},
            Verdict.WARNING,
            f"is closed from outside: {{}}; {ADVICE}",
        ),
        (
            looked("no answer", "no answer"),
            {},
            Verdict.WARNING,
            f"is closed from outside: {{}}; {ADVICE}",
        ),
        (
            looked("open", "open"),
            {"proxy": "socks5://127.0.0.1:9"},
            Verdict.WARNING,
            (
                "nobody has connected yet, and whether it is open is not known "
                f"(peers are reached by a proxy); {ADVICE}"
            ),
        ),
    ],
)
def test_a_port_as_seen_from_outside(
    world: World,
    tracker: FakeTracker,
    sees: tuple[int, bytes],
    changes: dict[str, Any],
    verdict: Verdict,
    message: str,
) -> None:
    """The first tracker that can tell is believed; programs are told what it saw."""
    tracker.sees = sees
    base = tracker.url.removesuffix("/announce")
    seen = json.loads(sees[1])
    status: dict[str, Any] = {"items": 1, "listen_port": 6881, "incoming": 0, "trackers": []}
    closed = "http://127.0.0.1:1/announce"
    with State(world.root / "state"):
        server = ControlServer(world.root / "state", {"status": lambda _request: status})
        found = findings(settings(world, trackers=(closed, tracker.url), **changes))
        server.close()
    where = f"{base} sees TCP {seen['tcp']}, uTP {seen['utp']} at 192.0.2.1"
    finding = found["port 6881"]
    assert finding[:3] == ("port 6881", verdict, message.format(where))
    told = {name: seen[name] for name in ("address", "tcp", "utp")} | {"tracker": base}
    assert finding.facts().get("seen") == (None if changes.get("proxy") else told)
    assert set(found["items"].facts()) == {"check", "verdict", "message"}


@pytest.mark.parametrize(
    ("sees", "port", "verdict"),
    [
        (looked("open", "open"), 0, Verdict.OK),
        (looked("refused", "refused"), 0, Verdict.WARNING),
        (looked("refused", "refused"), 6881, Verdict.OK),
    ],
)
def test_a_router(
    world: World, tracker: FakeTracker, sees: tuple[int, bytes], port: int, verdict: Verdict
) -> None:
    """It is told what it has said; that it forwards nothing matters if the port is closed."""
    tracker.sees = sees
    answer = {"by": "UPnP", "protocol": "TCP" if port else "", "port": port, "error": "none found"}
    status: dict[str, Any] = {
        "items": 1,
        "listen_port": 6881,
        "incoming": 0,
        "trackers": [],
        "port_mappings": [answer],
    }
    with State(world.root / "state"):
        server = ControlServer(world.root / "state", {"status": lambda _request: status})
        found = findings(settings(world, trackers=(tracker.url,)))
        others = [
            findings(settings(world, **{name: value}))
            for name, value in (("upnp", False), ("lan_only", True))
        ]
        server.close()
    message = "forwards TCP 6881 by UPnP" if port else "forwards nothing; UPnP: none found"
    assert found["router"] == Finding("router", verdict, message)
    assert ["router" in each for each in others] == [False, False]


def test_everything_is_wrong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing is said, and none hides the others."""

    def check_codec() -> None:
        raise CodecError("zstd", "is another one")

    monkeypatch.setattr(doctor, "check_codec", check_codec)
    state = world.root / "state"
    found = findings(
        settings(
            world,
            acl=world.root / "none",
            store_db=world.root / "none.sqlite",
            libtorrent={"nonsense": 1},
        )
    )
    assert found["seeder"] == Finding(
        "seeder", Verdict.FAILED, f"{state}: no seeder runs with this directory"
    )
    assert found["settings"].verdict is Verdict.FAILED
    assert "nonsense" in found["settings"].message
    assert found["ACL"] == Finding(
        "ACL", Verdict.FAILED, f"{world.root}/none: No such file or directory"
    )
    assert found["codec"] == Finding(
        "codec",
        Verdict.WARNING,
        "zstd: is another one; what is here is seeded, but nothing new is made",
    )
    assert found["items"].verdict is Verdict.FAILED
    assert found["disk"] == Finding("disk", Verdict.WARNING, f"{state} can't be read by this user")
    assert found["trackers"] == Finding(
        "trackers",
        Verdict.WARNING,
        "none is set: only the DHT and the local network find you",
    )


def test_an_empty_acl_and_no_items(world: World) -> None:
    """Nothing is broken, but nothing is offered."""
    world.acl.write_bytes(b"(acl)")
    found = findings(settings(world, nars=world.nars))
    assert found["ACL"].message == (
        f"{world.acl} has no key, so nothing is offered; see `guix archive --authorize`"
    )
    assert found["items"] == Finding("items", Verdict.WARNING, "there are none")


def test_the_cache_of_guix_publish(world: World) -> None:
    """It can be read or it can't, and may have nothing that is of use."""
    cache = world.root / "cache"

    def found() -> tuple[Verdict, str]:
        finding = findings(settings(world, publish_cache=cache))["cache of guix publish"]
        return finding.verdict, finding.message

    assert "cache of guix publish" not in findings(settings(world))
    assert found() == (Verdict.FAILED, f"{cache}: No such file or directory")
    cache.mkdir()
    empty = f"{cache} has no files that `guix publish --cache` makes"
    assert found() == (Verdict.WARNING, empty)
    bake(cache, world.make())
    assert found() == (Verdict.OK, f"{cache} can be read")


def test_files_that_were_changed(world: World) -> None:
    """Are found before a payload is made of them."""
    made = world.make("hello")
    world.register(made)
    (world.store / made.path[11:]).write_bytes(b"x" * 100)
    finding = findings(settings(world))["items"]
    assert finding.verdict is Verdict.FAILED
    assert finding.message == f"{made.path} has 216 bytes instead of {made.item.nar_size}"


def test_a_disk_that_is_smaller_than_the_quota(world: World) -> None:
    """Is told before it is full."""
    payloads = world.root / "state" / "payloads"
    payloads.mkdir(parents=True)
    (payloads / "x").write_bytes(b"x" * 1024)
    finding = findings(settings(world, max_disk=1 << 60))["disk"]
    assert finding.verdict is Verdict.WARNING
    assert finding.message.startswith("1.0 KiB of 1024.0 PiB are used, but only ")


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (0, "answers"),
        (60, "answers"),
        (-60, "answers"),
        (
            61,
            f"this clock is 61 s behind {CLOCK}",
        ),
        (
            -61,
            f"this clock is 61 s ahead of {CLOCK}",
        ),
    ],
)
def test_clocks(world: World, tracker: FakeTracker, seconds: float, message: str) -> None:
    """They may differ by a minute."""
    tracker.now += seconds
    finding = findings(settings(world, trackers=(tracker.url,)))[f"tracker {tracker.url}"]
    assert finding.message == message
    assert finding.verdict is (Verdict.OK if message == "answers" else Verdict.FAILED)


def test_trackers_that_are_ill(world: World, tracker: FakeTracker) -> None:
    """Or that can't be asked by HTTP."""
    tracker.status = 503
    udp = "udp://127.0.0.1:1/announce"
    closed = "http://127.0.0.1:1/announce"
    found = findings(settings(world, trackers=(tracker.url, udp, closed)))
    assert found[f"tracker {tracker.url}"].message == "answers 503 to /healthz"
    assert found[f"tracker {udp}"] == Finding(
        f"tracker {udp}", Verdict.WARNING, "speaks UDP: only a running seeder can tell"
    )
    assert found[f"tracker {closed}"].verdict is Verdict.FAILED


@pytest.mark.parametrize("date", ["", "x", "Mon, 99 Jan 2024 00:00:00 GMT"])
def test_a_tracker_without_a_clock(date: str) -> None:
    """Says nothing about this one's."""
    assert doctor._skew(date, NOW) is None


def test_no_directory_of_state(tmp_path: Path, world: World) -> None:
    """A seeder that never ran is examined all the same."""
    found = findings(settings(world, state=tmp_path / "none"))
    assert found["seeder"].verdict is Verdict.FAILED
