# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether peers from outside can connect to who asks: `GET /v1/reachable?port=N`.

A seeder can't see by itself whether a firewall or a router lets peers in. So the tracker tries it,
once by TCP and once by uTP, at the address that the request came from and at no other: nobody can
have it connect to somebody else. That address has completed a TCP connection, so that it isn't
forged either, and it can't ask again at once. The request waits in `tracker.parking`, and holds no
thread.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from ipaddress import ip_address
from itertools import count
from typing import Final

from flask import Blueprint, Response, json, request

from narswarm.errors import InvalidInputError
from tracker.announcer import Announcer
from tracker.failures import BUSY_SECONDS, error_response
from tracker.parking import ENVIRON, Answered, Parking, Poll, Reply
from tracker.policy import Policy
from tracker.probes import SECONDS, Attempts, Found
from tracker.publication import RefusedError

INTERVAL: Final = 10.0
"""Seconds between two attempts for one IPv4 address, or one /64 of IPv6."""

MAX_TURNS: Final = 10_000
"""Addresses of which the last attempt is remembered; none is made for further ones."""

MIN_PORT: Final = 1024
"""Below are those of other services: a seeder that has one of these can't be looked at."""

_PORT = re.compile(r"[0-9]{4,5}")
_PARKED = SECONDS + 1


def may_be_tried(address: bytes) -> bool:
    """Whether an address that asks may be connected to: one of a machine, and not of this one.

    Private ones may, as the one who asks is there too.

    Args:
        address: 4 or 16 bytes.
    """
    parsed = ip_address(address)
    return not (
        parsed.is_loopback
        or parsed.is_unspecified
        or parsed.is_multicast
        or parsed.is_link_local
        or parsed.is_reserved
    )


def parse_port(text: str) -> int:
    """Read a port.

    Raises:
        InvalidInputError: it isn't one that is looked at.
    """
    port = int(text) if _PORT.fullmatch(text) else 0
    if not MIN_PORT <= port < 1 << 16:
        raise InvalidInputError("port", f"is not a number from {MIN_PORT} to 65535")
    return port


class Turns:
    """When who may have an attempt made. Not thread-safe: its owner has a lock."""

    def __init__(self) -> None:
        self._last: OrderedDict[bytes, float] = OrderedDict()

    def wait(self, address: bytes, now: float) -> float:
        """Seconds until an address may; if it may now, this was its turn.

        Args:
            address: 4 or 16 bytes.
            now: seconds from any start, never going back.
        """
        while self._last and next(iter(self._last.values())) + INTERVAL <= now:
            self._last.popitem(last=False)
        key = address if len(address) == 4 else address[:8]
        last = self._last.get(key)
        if last is not None:
            return last + INTERVAL - now
        if len(self._last) >= MAX_TURNS:
            return INTERVAL
        self._last[key] = now
        return 0.0


class Reachable:
    """The view.

    Args:
        announcer: knows from which address somebody speaks.
        parking: where requests wait.
        allowed: says which addresses, of 4 or 16 bytes, may be tried.
        clock: seconds from any start, never going back.
    """

    def __init__(
        self,
        announcer: Announcer,
        parking: Parking,
        allowed: Callable[[bytes], bool] = may_be_tried,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._announcer = announcer
        self._parking = parking
        self._allowed = allowed
        self._clock = clock
        self._attempts = Attempts(clock)
        self._lock = threading.Lock()
        self._turns = Turns()
        self._number = count()

    def close(self) -> None:
        """Try nothing any more."""
        self._attempts.close()

    def blueprint(self) -> Blueprint:
        """The call."""
        blueprint = Blueprint("reachable", __name__)
        blueprint.add_url_rule("/v1/reachable", "reachable", self._look, methods=["GET"])
        return blueprint

    def _look(self) -> Response:
        port = parse_port(request.args.get("port", ""))
        address = self._address()
        if request.method != "GET":
            return Response(content_type="application/json")
        if not self._parking.has_room(own=True):
            return _later("reachable: is what too many wait for; try again", BUSY_SECONDS)
        with self._lock:
            wait = self._turns.wait(address, self._clock())
        if wait > 0:
            seconds = int(wait) + 1
            return _later(f"address: was looked at just now; wait {seconds} s", seconds)
        found: list[Found] = []
        key = b"reachable %d" % next(self._number)
        text = json.dumps({"error": "reachable: was not looked at in time"}).encode()
        late = Reply(text, status="503 SERVICE UNAVAILABLE", retry_after=BUSY_SECONDS)

        def done(seen: Found) -> None:
            found.append(seen)
            self._parking.wake([key])

        def answer(final: bool) -> Answered:
            if not found:
                return late if final else None
            facts = {"address": str(ip_address(address)), "port": port, **found[0]._asdict()}
            return Reply(json.dumps(facts).encode())

        if not self._attempts.begin(address, port, done):
            return _later("reachable: is what too many ask for; try again", BUSY_SECONDS)
        request.environ[ENVIRON] = Poll(key, 0, _PARKED, answer)
        # For a server whose connections can't wait; and no failure, as which it would be counted.
        return error_response(HTTPStatus.ACCEPTED, "reachable: can't be told by this server")

    def _address(self) -> bytes:
        """Who asks.

        Raises:
            RefusedError: that isn't known, or it isn't one to be tried.
        """
        remote, forwarded = request.remote_addr or "", request.headers.get("X-Forwarded-For")
        try:
            address = self._announcer.client_address(remote, forwarded)
            direct = Policy().client_address(remote, None)
        except ValueError:
            raise RefusedError(
                "address", "isn't known: the proxy did not name the client"
            ) from None
        if forwarded is not None and address == direct:
            # It would be the proxy's own ports that anybody could look at.
            raise RefusedError("address", "isn't known: the proxy isn't trusted")
        if not self._allowed(address):
            raise RefusedError("address", "is not one that others could connect to")
        return address


def _later(text: str, seconds: int) -> Response:
    """Have who asks come again; nothing is wrong with the tracker."""
    response = error_response(HTTPStatus.TOO_MANY_REQUESTS, text)
    response.headers["Retry-After"] = str(seconds)
    return response
