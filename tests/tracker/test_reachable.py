# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of tracker.reachable: who is looked at, how often, and what they are told."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from random import Random
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import Client, EnvironBuilder, TestResponse

from narswarm.errors import InvalidInputError, NarswarmError
from tests.ports import free_port
from tracker import probes, reachable
from tracker.announcer import Announcer
from tracker.failures import narswarm_error
from tracker.parking import Answered, Parking, ParkingMiddleware, Poll
from tracker.policy import Policy, parse_networks
from tracker.reachable import (
    INTERVAL,
    MAX_TURNS,
    Reachable,
    Turns,
    may_be_tried,
    parse_port,
)
from tracker.swarms import Limits
from tracker.swarmstore import MemorySwarms

PROXY = "198.51.100.1"


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("192.0.2.7", True),
        ("10.0.0.1", True),
        ("192.168.1.1", True),
        ("100.64.0.1", True),
        ("2001:db8::1", True),
        ("fd00::1", True),
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("::1", False),
        ("0.0.0.0", False),  # noqa: S104 - it is refused
        ("::", False),
        ("224.0.0.1", False),
        ("ff02::1", False),
        ("169.254.169.254", False),
        ("fe80::1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("64:ff9b::7f00:1", False),
    ],
)
def test_addresses(address: str, may: bool) -> None:
    """Those of machines, also private ones; none of the tracker itself, and none of many."""
    assert may_be_tried(ip_address(address).packed) is may


@pytest.mark.parametrize("text", ["1024", "06881", "65535"])
def test_ports(text: str) -> None:
    """Those that programs of users have."""
    assert parse_port(text) == int(text)


@pytest.mark.parametrize(
    "text", ["", "0", "22", "1023", "65536", "99999", "006881", "-6881", "6881 ", "x", "٦٨٨١"]
)
def test_what_is_no_port(text: str) -> None:
    """Those of other services aren't looked at."""
    with pytest.raises(InvalidInputError) as caught:
        parse_port(text)
    assert str(caught.value) == "port: is not a number from 1024 to 65535"


def test_turns() -> None:
    """Each IPv4 address and each /64 has one in a while; who comes too early loses nothing."""
    turns = Turns()
    one, other = ip_address("2001:db8::1").packed, ip_address("2001:db8::ffff:2").packed
    next_net = ip_address("2001:db8:0:1::1").packed
    four = ip_address("192.0.2.1").packed
    assert [turns.wait(each, 100.0) for each in (one, other, next_net, four)] == [0, INTERVAL, 0, 0]
    assert turns.wait(one, 101.0) == INTERVAL - 1
    assert turns.wait(one, 100.0 + INTERVAL - 0.5) == 0.5
    assert turns.wait(other, 100.0 + INTERVAL) == 0
    assert turns.wait(one, 101.0 + INTERVAL) == INTERVAL - 1


def test_turns_are_bounded() -> None:
    """Who comes when too many are remembered has to wait; they are forgotten in time."""
    turns = Turns()
    for number in range(MAX_TURNS):
        assert turns.wait(number.to_bytes(4), number / MAX_TURNS) == 0
    assert turns.wait(b"\xff" * 4, 1.0) == INTERVAL
    assert turns.wait(b"\xff" * 4, INTERVAL) == 0


class Bench:
    """The call, with a parking lot, where the client is the test's end of a connection."""

    def __init__(self, *, room: int = 10) -> None:
        self.now = 1000.0
        policy = Policy(trusted_proxies=parse_networks([PROXY]))
        announcer = Announcer(
            policy,
            MemorySwarms(Limits(), keep_downloads=True),
            lambda _: True,
            Random(1),  # noqa: S311 - the same at each run
        )
        self.parking = Parking(self._nothing, room)
        # Loopback is what a test has.
        self.call = Reachable(announcer, self.parking, lambda _: True, lambda: self.now)
        self.strict = Reachable(announcer, self.parking, clock=lambda: self.now)
        self.app = Flask(__name__)
        self.app.register_error_handler(NarswarmError, narswarm_error)
        self.app.register_blueprint(self.call.blueprint())

    def _nothing(self, _poll: Poll, _final: bool) -> Answered:
        raise AssertionError

    def close(self) -> None:
        """End its threads."""
        self.call.close()
        self.strict.close()
        self.parking.close()

    def get(
        self,
        port: object = 6881,
        remote: str = "127.0.0.1",
        forwarded: str | None = None,
        method: str = "GET",
    ) -> TestResponse:
        """Ask where nobody can wait."""
        headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
        return Client(self.app).open(
            f"/v1/reachable?port={port}",
            method=method,
            headers=headers,
            environ_overrides={"REMOTE_ADDR": remote},
        )

    def wait(self, port: int, remote: str = "127.0.0.1", forwarded: str = "") -> tuple[str, Any]:
        """Ask by a connection of gunicorn's; the status and what comes."""
        ours, theirs = socket.socketpair()
        environ = EnvironBuilder(path="/v1/reachable", query_string=f"port={port}").get_environ()
        environ |= {"REMOTE_ADDR": remote, "gunicorn.socket": theirs}
        if forwarded:
            environ["HTTP_X_FORWARDED_FOR"] = forwarded
        app = ParkingMiddleware(self.app, self.parking)
        with pytest.raises(BrokenPipeError):
            list(app(environ, lambda *_: lambda _: None))
        answer = b""
        with ours:
            ours.settimeout(120)
            while data := ours.recv(4096):
                answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        return head.decode().splitlines()[0], json.loads(body)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """The call."""
    made = Bench()
    yield made
    made.close()


def error(response: TestResponse) -> tuple[int, str]:
    """The status and what is said."""
    return response.status_code, json.loads(response.data)["error"]


def test_what_is_told(bench: Bench) -> None:
    """The address as the tracker sees it, the port, and what was seen by TCP and by uTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        status, told = bench.wait(port)
    assert status == "HTTP/1.1 200 OK"
    assert told == {"address": "127.0.0.1", "port": port, "tcp": "open", "utp": "refused"}
    status, told = bench.wait(port, PROXY, "127.0.0.2")
    assert told == {"address": "127.0.0.2", "port": port, "tcp": "refused", "utp": "refused"}
    assert len(bench.parking) == 0


def test_not_again_at_once(bench: Bench) -> None:
    """Not for the same address, whatever the port; it is said when."""
    bench.wait(free_port())
    response = bench.get(free_port())
    assert error(response) == (429, "address: was looked at just now; wait 11 s")
    assert response.headers["Retry-After"] == "11"
    bench.now += INTERVAL
    assert bench.wait(free_port())[1]["tcp"] == "refused"


@pytest.mark.parametrize(
    ("remote", "forwarded", "said"),
    [
        (PROXY, None, "address: isn't known: the proxy did not name the client"),
        (PROXY, "nonsense", "address: isn't known: the proxy did not name the client"),
        ("", None, "address: isn't known: the proxy did not name the client"),
        ("10.0.0.1", "192.0.2.1", "address: isn't known: the proxy isn't trusted"),
        ("127.0.0.1", "192.0.2.1", "address: isn't known: the proxy isn't trusted"),
        ("127.0.0.1", "", "address: isn't known: the proxy isn't trusted"),
    ],
)
def test_who_is_not_known(bench: Bench, remote: str, forwarded: str | None, said: str) -> None:
    """A proxy's own ports are nobody's business."""
    assert error(bench.get(remote=remote, forwarded=forwarded)) == (403, said)


def test_who_is_not_looked_at(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracker's own machine, for which somebody else may ask without saying so."""
    monkeypatch.setattr(bench.call, "_allowed", bench.strict._allowed)
    said = "address: is not one that others could connect to"
    assert error(bench.get()) == (403, said)
    assert error(bench.get(remote=PROXY, forwarded="127.0.0.1")) == (403, said)
    assert error(bench.get(remote="::ffff:127.0.0.1")) == (403, said)


def test_nothing_is_tried_of_what_is_asked_wrongly(bench: Bench) -> None:
    """A port that isn't one; the head alone; a body that is sent."""
    assert error(bench.get("22")) == (400, "port: is not a number from 1024 to 65535")
    assert bench.get("22", method="HEAD").status_code == 400
    assert bench.get(method="HEAD").status_code == 200
    assert bench.get(method="POST").status_code == 405
    assert bench.call._turns.wait(b"\x7f\0\0\1", bench.now) == 0


def test_a_server_whose_connections_can_not_wait(bench: Bench) -> None:
    """Is told so at once."""
    assert error(bench.get(free_port())) == (202, "reachable: can't be told by this server")


def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds no room, to wait or to be tried, comes again later."""
    full = Bench(room=0)
    assert error(full.get()) == (429, "reachable: is what too many wait for; try again")
    full.close()
    monkeypatch.setattr(probes, "MAX_ATTEMPTS", 0)
    busy = Bench()
    response = busy.get()
    assert error(response) == (429, "reachable: is what too many ask for; try again")
    assert response.headers["Retry-After"] == "5"
    busy.close()


def test_an_attempt_that_is_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends with the time for which a connection waits."""
    monkeypatch.setattr(reachable, "_PARKED", 0.01)
    monkeypatch.setattr(bench.call._attempts, "begin", lambda *_: True)
    status, told = bench.wait(6881)
    assert status == "HTTP/1.1 503 SERVICE UNAVAILABLE"
    assert told == {"error": "reachable: was not looked at in time"}
