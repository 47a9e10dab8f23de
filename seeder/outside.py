# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether peers from outside can connect: what a tracker sees, and what a router has said.

A tracker that can looks at this machine's port when it is asked to (docs/tracker-wire.md), at the
address from which it is asked. Its answer is a stranger's, and only shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from narswarm.errors import NetworkError, NotFoundError
from narswarm.httpclient import HttpClient

TIMEOUT: Final = 15.0
"""Seconds for an answer, which takes four if the port is silent."""

OPEN: Final = "open"
NOT_TRIED: Final = "not tried"
_SEEN: Final = frozenset({OPEN, "refused", "no answer", NOT_TRIED})
_MAX_ANSWER: Final = 4096


class Outside(NamedTuple):
    """What a tracker saw of a port.

    Attributes:
        address: at which it looked.
        tcp: "open", "refused", "no answer" or "not tried".
        utp: the same.
    """

    address: str
    tcp: str
    utp: str


def ask(client: HttpClient, base: str, port: int) -> Outside:
    """Have a tracker look whether a port is open.

    Args:
        client: makes the request; the tracker looks at where that comes from.
        base: URL of the tracker's index.
        port: of TCP and UDP.

    Raises:
        NotFoundError: the tracker doesn't know how to.
        NetworkError: it doesn't tell; the reason is for people.
    """
    url = f"{base}/v1/reachable?port={port}"
    response = client.request("GET", url, max_bytes=_MAX_ANSWER, timeout=TIMEOUT)
    try:
        answer = json.loads(response.body)
    except (ValueError, RecursionError):
        answer = None
    told: dict[str, Any] = answer if isinstance(answer, dict) else {}
    if response.status == HTTPStatus.NOT_FOUND:
        raise NotFoundError(base, "doesn't look at ports")
    if response.status != HTTPStatus.OK:
        error = told.get("error")
        reason = f": {error[:200]}" if isinstance(error, str) else ""
        raise NetworkError(base, f"answers {response.status}{reason}")
    try:
        address = str(ip_address(str(told.get("address"))))
    except ValueError:
        address = ""
    outside = Outside(address, str(told.get("tcp")), str(told.get("utp")))
    if not address or not {outside.tcp, outside.utp} <= _SEEN:
        raise NetworkError(base, "answers something else than what it saw")
    if NOT_TRIED in outside[1:]:
        raise NetworkError(base, "can't connect to others by its own network")
    return outside


def forwarded(mappings: Iterable[Mapping[str, Any]]) -> tuple[bool, str]:
    """What routers have said when they were asked for the port.

    Args:
        mappings: as in `seeder status --json`.

    Returns:
        Whether one forwards it, and a sentence.
    """
    granted: dict[str, set[str]] = {}
    failed: dict[str, str] = {}
    for each in mappings:
        if each["port"]:
            granted.setdefault(each["by"], set()).add(f"{each['protocol']} {each['port']}")
        else:
            failed.setdefault(each["by"], each["error"])
    if granted:
        parts = [f"{' and '.join(sorted(ports))} by {by}" for by, ports in sorted(granted.items())]
        return True, f"forwards {', '.join(parts)}"
    if failed:
        reasons = [f"{by}: {reason}" for by, reason in sorted(failed.items())]
        return False, f"forwards nothing; {'; '.join(reasons)}"
    return False, "has not answered"
