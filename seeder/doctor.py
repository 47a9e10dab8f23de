# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks for what keeps a seeder from being of use, and says what to do about it.

It looks by itself at what can be looked at, and asks the running seeder for the rest, so that it
also helps where no seeder starts.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple

from narswarm.acl import Acl
from narswarm.cli import format_size
from narswarm.errors import CodecError, NarswarmError
from narswarm.httpclient import HttpClient
from narswarm.payload import check_codec
from seeder import control
from seeder.inventory import NarDirectory, StoreInventory
from seeder.outside import OPEN, ask, forwarded
from seeder.publish_cache import baked, open_file
from seeder.settings import Settings, Tracker

MAX_SKEW: Final = 60.0
"""Seconds that this clock may differ from a tracker's, which refuses requests signed long ago."""

TIMEOUT: Final = 10.0

_MAX_ANSWER: Final = 64 * 1024


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        check: what was looked at.
        verdict: how it is.
        message: what was seen, and what to do where something is wrong.
        seen: the same for programs, where there is more.
    """

    check: str
    verdict: Verdict
    message: str
    seen: Mapping[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def examine(
    settings: Settings, client: HttpClient, now: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """Look at everything, one thing after another.

    Args:
        settings: of the seeder.
        client: makes requests.
        now: seconds since the epoch.
    """
    status: dict[str, Any] | None = None
    try:
        status = control.ask(settings.state, "status")
        yield Finding("seeder", Verdict.OK, f"runs, offering {status['items']} items")
    except NarswarmError as error:
        yield Finding("seeder", Verdict.FAILED, str(error))
    for check, function in (
        ("settings", _settings),
        ("ACL", _acl),
        ("codec", _codec),
        ("items", _items),
        ("disk", _disk),
    ):
        yield _guarded(check, function, settings)
    if settings.publish_cache is not None:
        yield _guarded("cache of guix publish", _publish_cache, settings)
    for tracker in settings.tracker_list():
        yield _tracker(tracker, client, now, status)
    if not settings.trackers:
        yield Finding(
            "trackers", Verdict.WARNING, "none is set: only the DHT and the local network find you"
        )
    if status is not None:
        port = _port(settings, client, status)
        yield port
        if settings.upnp and not settings.lan_only and "port_mappings" in status:
            yield _router(status, port)


def _guarded(
    check: str, function: Callable[[Settings], tuple[Verdict, str]], settings: Settings
) -> Finding:
    try:
        return Finding(check, *function(settings))
    except NarswarmError as error:
        return Finding(check, Verdict.FAILED, str(error))
    except OSError as error:
        return Finding(
            check, Verdict.FAILED, f"{error.filename or 'system'}: {error.strerror or error}"
        )


def _settings(settings: Settings) -> tuple[Verdict, str]:
    settings.check()
    return Verdict.OK, f"libtorrent takes all of them; state in {settings.state}"


def _acl(settings: Settings) -> tuple[Verdict, str]:
    acl = Acl.parse(settings.acl.read_bytes(), settings.acl)
    if not len(acl):
        return (
            Verdict.FAILED,
            f"{settings.acl} has no key, so nothing is offered; see `guix archive --authorize`",
        )
    return Verdict.OK, f"{settings.acl} has {len(acl)} keys"


def _codec(_settings: Settings) -> tuple[Verdict, str]:
    try:
        check_codec()
    except CodecError as error:
        return Verdict.WARNING, f"{error}; what is here is seeded, but nothing new is made"
    return Verdict.OK, "makes the payloads of profile 1"


def _items(settings: Settings) -> tuple[Verdict, str]:
    """Read one item, as making its payload would."""
    inventory = (
        NarDirectory(settings.nars)
        if settings.nars is not None
        else StoreInventory(settings.store_db, settings.store)
    )
    items = list(itertools.islice(inventory.items(), 1000))
    if not items:
        return Verdict.WARNING, "there are none"
    # The smallest is enough to see whether files can be read.
    item = min(items, key=lambda item: item.nar_size)
    size = sum(len(chunk) for chunk in inventory.open(item))
    if size != item.nar_size:
        return Verdict.FAILED, f"{item.store_path} has {size} bytes instead of {item.nar_size}"
    return Verdict.OK, f"can be listed and read, such as {item.store_path}"


def _disk(settings: Settings) -> tuple[Verdict, str]:
    if not os.access(settings.state, os.R_OK | os.X_OK):
        return Verdict.WARNING, f"{settings.state} can't be read by this user"
    payloads = settings.state / "payloads"
    used = sum(file.stat().st_size for file in payloads.iterdir()) if payloads.is_dir() else 0
    free = shutil.disk_usage(settings.state).free
    quota = f"{format_size(used)} of {format_size(settings.max_disk)} are used"
    if settings.max_disk - used > free:
        return Verdict.WARNING, f"{quota}, but only {format_size(free)} are free"
    return Verdict.OK, quota


def _publish_cache(settings: Settings) -> tuple[Verdict, str]:
    """Read the beginning of one file, as making its torrent would."""
    directory = settings.publish_cache or Path()
    item = next(baked(directory), None)
    if item is None:
        return Verdict.WARNING, f"{directory} has no files that `guix publish --cache` makes"
    with open_file(item.path) as file:
        file.read(1)
    return Verdict.OK, f"{directory} can be read"


def _tracker(
    tracker: Tracker,
    client: HttpClient,
    now: Callable[[], float],
    status: Mapping[str, Any] | None,
) -> Finding:
    check = f"tracker {tracker.announce}"
    if tracker.base is not None:
        try:
            before = now()
            answer = client.request(
                "GET", f"{tracker.base}/healthz", max_bytes=_MAX_ANSWER, timeout=TIMEOUT
            )
            took = now() - before
        except NarswarmError as error:
            return Finding(check, Verdict.FAILED, str(error))
        if answer.status != HTTPStatus.OK:
            return Finding(check, Verdict.FAILED, f"answers {answer.status} to /healthz")
        skew = _skew(answer.headers.get("date", ""), now())
        if skew is not None and abs(skew) > MAX_SKEW + took:
            direction = "ahead of" if skew > 0 else "behind"
            return Finding(
                check,
                Verdict.FAILED,
                f"this clock is {abs(skew):.0f} s {direction} the tracker's, which refuses what "
                "is published so; set it by NTP",
            )
    for each in (status or {}).get("trackers", ()):
        if each["url"] == tracker.announce:
            message = each["announce_message"] or each["publish_message"]
            said = f"{each['announces']} announces, {each['published']} published"
            if message:
                return Finding(check, Verdict.WARNING, f"{said}; last error: {message}")
            return Finding(check, Verdict.OK, said)
    if tracker.base is None:
        return Finding(check, Verdict.WARNING, "speaks UDP: only a running seeder can tell")
    return Finding(check, Verdict.OK, "answers")


def _skew(date: str, now: float) -> float | None:
    """Seconds that this clock is ahead of the one of a Date header (RFC 9110, section 6.6.1)."""
    try:
        return now - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _port(settings: Settings, client: HttpClient, status: Mapping[str, Any]) -> Finding:
    """Whether peers can connect, as the first tracker says that can tell."""
    port = status["listen_port"]
    check = f"port {port}"
    advice = (
        f"let TCP and UDP port {port} through the firewall, and have the router forward it, "
        "if there is one"
    )
    reasons = []
    bases = [tracker.base for tracker in settings.tracker_list() if tracker.base is not None]
    for base in [] if settings.proxy else bases:
        try:
            outside = ask(client, base, port)
        except NarswarmError as error:
            reasons.append(str(error))
            continue
        seen = {"tracker": base, **outside._asdict()}
        where = f"{base} sees TCP {outside.tcp}, uTP {outside.utp} at {outside.address}"
        needs_utp = settings.libtorrent.get("enable_incoming_utp", True)
        if outside.tcp == OPEN and (outside.utp == OPEN or not needs_utp):
            return Finding(check, Verdict.OK, f"is open from outside: {where}", seen)
        if outside.tcp == OPEN:
            return Finding(
                check, Verdict.WARNING, f"is open for TCP alone: {where}; let UDP through", seen
            )
        return Finding(check, Verdict.WARNING, f"is closed from outside: {where}; {advice}", seen)
    if status.get("incoming"):
        return Finding(check, Verdict.OK, "peers have connected from outside")
    if settings.proxy:
        reasons.append("peers are reached by a proxy")
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return Finding(
        check,
        Verdict.WARNING,
        f"nobody has connected yet, and whether it is open is not known{why}; {advice}",
    )


def _router(status: Mapping[str, Any], port: Finding) -> Finding:
    """What the router has said; it doesn't matter if it isn't needed."""
    mapped, said = forwarded(status["port_mappings"])
    needed = port.verdict is not Verdict.OK
    verdict = Verdict.WARNING if needed and not mapped else Verdict.OK
    return Finding("router", verdict, said)
