# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.outside: what trackers answer, and what routers have said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import pytest

from narswarm.errors import NetworkError, NotFoundError
from narswarm.httpclient import HttpClient, Response
from seeder.outside import Outside, ask, forwarded

URL = "http://t"
GOOD = {"address": "192.0.2.1", "port": 6881, "tcp": "open", "utp": "no answer"}


class Client:
    """Answers once."""

    def __init__(self, status: int, body: bytes) -> None:
        self.response = Response(status, {}, body, URL)
        self.asked: list[tuple[str, str]] = []

    def request(self, method: str, url: str, *, max_bytes: int, timeout: float) -> Response:
        """As `HttpClient.request` does."""
        assert (max_bytes, timeout) == (4096, 15.0)
        self.asked.append((method, url))
        return self.response


def told(status: int, answer: object) -> Outside:
    """What is made of an answer."""
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    client = Client(status, body)
    outside = ask(cast("HttpClient", client), URL, 6881)
    assert client.asked == [("GET", "http://t/v1/reachable?port=6881")]
    return outside


def test_what_a_tracker_saw() -> None:
    """The address at which it looked, and each protocol."""
    assert told(200, GOOD) == Outside("192.0.2.1", "open", "no answer")
    assert told(200, GOOD | {"address": "2001:DB8::1"}).address == "2001:db8::1"


@pytest.mark.parametrize(
    ("status", "answer", "kind", "error"),
    [
        (404, {"error": "/v1/reachable: not found"}, NotFoundError, "doesn't look at ports"),
        (404, b"<html>", NotFoundError, "doesn't look at ports"),
        (403, {"error": "address: is private"}, NetworkError, "answers 403: address: is private"),
        (503, b"", NetworkError, "answers 503"),
        (503, {"error": 5}, NetworkError, "answers 503"),
        (503, {"error": "x" * 300}, NetworkError, f"answers 503: {'x' * 200}"),
        (200, b"", NetworkError, "answers something else than what it saw"),
        (200, b"[" * 4000, NetworkError, "answers something else than what it saw"),
        (200, [], NetworkError, "answers something else than what it saw"),
        (200, {}, NetworkError, "answers something else than what it saw"),
        (200, GOOD | {"tcp": "fine"}, NetworkError, "answers something else than what it saw"),
        (200, GOOD | {"utp": None}, NetworkError, "answers something else than what it saw"),
        (200, GOOD | {"address": "x"}, NetworkError, "answers something else than what it saw"),
        (
            200,
            GOOD | {"tcp": "not tried"},
            NetworkError,
            "can't connect to others by its own network",
        ),
    ],
)
def test_trackers_that_do_not_tell(
    status: int, answer: object, kind: type[Exception], error: str
) -> None:
    """What they say instead is for people; a stranger's answer is never more than that."""
    with pytest.raises(kind) as caught:
        told(status, answer)
    assert str(caught.value) == f"http://t: {error}"


def mapping(by: str, protocol: str, port: int, error: str = "") -> Mapping[str, Any]:
    """As a seeder's status has it."""
    return {"by": by, "protocol": protocol, "port": port, "error": error}


@pytest.mark.parametrize(
    ("mappings", "mapped", "said"),
    [
        ([], False, "has not answered"),
        (
            [mapping("UPnP", "UDP", 6881), mapping("UPnP", "TCP", 6881)],
            True,
            "forwards TCP 6881 and UDP 6881 by UPnP",
        ),
        (
            [
                mapping("UPnP", "TCP", 7000),
                mapping("NAT-PMP", "TCP", 6881),
                mapping("NAT-PMP", "", 0, "no"),
                mapping("UPnP", "TCP", 7000),
            ],
            True,
            "forwards TCP 6881 by NAT-PMP, TCP 7000 by UPnP",
        ),
        (
            [mapping("UPnP", "", 0, "no router"), mapping("NAT-PMP", "", 0, "refused")],
            False,
            "forwards nothing; NAT-PMP: refused; UPnP: no router",
        ),
    ],
)
def test_what_routers_said(mappings: list[Mapping[str, Any]], mapped: bool, said: str) -> None:
    """In one sentence: what they forward, or why they don't."""
    assert forwarded(mappings) == (mapped, said)
