# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the next `guix build` will use the substituter, and if not, why.

What counts is what guix-daemon and its user will find, not what the person who asks would: their
environment, their permissions, their settings.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple

from narswarm import base32, fetchclient, gcrypt, lt_compat
from narswarm import settings as narswarm_settings
from narswarm.acl import Acl
from narswarm.control import near
from narswarm.errors import CodecError, NarswarmError
from narswarm.httpclient import HttpClient, Response
from narswarm.payload import check_codec
from substituter import access, daemonprocess, launcher
from substituter.access import EXECUTE, READ, WRITE, User
from substituter.context import tracker_base
from substituter.daemonprocess import Daemon
from substituter.settings import SubstituterSettings

MAX_SKEW: Final = 120.0
"""Seconds that clocks may differ: certificates and the lives of narinfos go by them."""

TIMEOUT: Final = 10.0
DEFAULT_PROGRAM: Final = Path("/usr/local/bin/substituter")
EXTENSION: Final = Path(__file__).parent / "guix" / "extensions" / "substitute.scm"

_START: Final = 30.0
_MAX_ANSWER: Final = 64 * 1024
_NOBODYS_NAR: Final = bytes(32)
_HIDDEN: Final = (Path("/home"), Path("/root"))


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
        message: what was seen.
        hint: what to do, where something is wrong.
    """

    check: str
    verdict: Verdict
    message: str
    hint: str = ""


def examine(
    client: HttpClient,
    environ: Mapping[str, str],
    config: Path | None = None,
    proc: Path = daemonprocess.PROC,
    now: Callable[[], float] = time.time,
) -> Iterator[Finding]:
    """Look at everything, one thing after another.

    Args:
        client: makes requests.
        environ: of this process, used where the daemon's can't be seen.
        config: a settings file to use instead of the daemon's.
        proc: where the kernel shows processes.
        now: seconds since 1970.
    """
    daemons = daemonprocess.find(proc)
    if not daemons:
        yield Finding(
            "guix-daemon",
            Verdict.FAILED,
            "none runs",
            "start it (`systemctl start guix-daemon`, `herd start guix-daemon`) and look again",
        )
    for daemon in daemons:
        gateway = None if _is_told(daemon) else _gateway(client, daemon.substitute_urls)
        if gateway is not None and daemon.substitutes:
            yield Finding(
                f"guix-daemon {daemon.pid}", Verdict.OK, f"asks the gateway {gateway} by HTTP"
            )
            return  # what the daemon's user may do here doesn't matter then
        yield from _daemon(daemon)
    first = daemons[0] if daemons else None
    user = User(first.uid, first.groups) if first else User(os.geteuid(), tuple(os.getgroups()))
    seen = first.environ if first and first.environ is not None else environ
    yield from _libraries()
    try:
        settings = narswarm_settings.load(
            SubstituterSettings, "substituter", file=config, environ=seen
        )
    except NarswarmError as error:
        yield Finding(
            "settings", Verdict.FAILED, str(error), "guix's own substituter is used until then"
        )
        return
    yield Finding("settings", Verdict.OK, f"policy {settings.policy}, quorum {settings.quorum}")
    yield _acl(settings.acl, user)
    yield _state(settings.state, user)
    seeder = _seeder(settings.seeder, user)
    yield seeder
    yield from _servers(client, first.substitute_urls if first else daemonprocess.DEFAULT_URLS)
    has_seeder = seeder.verdict is Verdict.OK and fetchclient.find(settings.seeder) is not None
    yield from _trackers(client, settings, now, has_seeder=has_seeder)


def conclusion(findings: Sequence[Finding]) -> str:
    """The answer, in a sentence."""
    failed = [each for each in findings if each.verdict is Verdict.FAILED]
    if failed:
        return f"The next `guix build` will not get anything from a swarm: {failed[0].message}."
    if any(each.verdict is Verdict.WARNING for each in findings):
        return (
            "As far as can be seen, the next `guix build` uses the substituter; see the warnings."
        )
    return "The next `guix build` asks the swarm."


def _daemon(daemon: Daemon) -> Iterator[Finding]:
    check = f"guix-daemon {daemon.pid}"
    if not daemon.substitutes:
        yield Finding(
            check, Verdict.FAILED, "it runs with --no-substitutes", "start it without that option"
        )
    if daemon.environ is None:
        yield Finding(
            check,
            Verdict.WARNING,
            f"runs as user {daemon.uid}; its environment can't be seen by you",
            "run `substituter doctor` as root to see whether it knows of the substituter",
        )
        return
    user = User(daemon.uid, daemon.groups)
    program = Path(daemon.environ.get("NARSWARM_SUBSTITUTER") or DEFAULT_PROGRAM)
    extension = _extension(daemon.environ)
    direct = Path(daemon.environ.get("GUIX", ""))
    if launcher.is_one(str(direct)):
        yield _direct(check, direct, user)
        program = direct if direct.name == "substituter" else program
    if extension is not None:
        yield _extension_file(extension, user)
    if _is_told(daemon):
        yield _program(program, user, daemon.environ)
    else:
        yield Finding(
            check,
            Verdict.FAILED,
            "it has not been told of the substituter: neither GUIX_EXTENSIONS_PATH nor GUIX of "
            "its environment lead to it",
            "run `substituter install`; when that was done already, restart guix-daemon",
        )


def _is_told(daemon: Daemon) -> bool:
    """Whether the daemon's environment leads to the substituter, as far as it can be seen."""
    environ = daemon.environ
    return environ is not None and (
        _extension(environ) is not None or launcher.is_one(environ.get("GUIX", ""))
    )


def _gateway(client: HttpClient, urls: Sequence[str]) -> str | None:
    """The first of the servers that says that it is a gateway."""
    for url in urls:
        with contextlib.suppress(NarswarmError):
            answer = _cache_info(client, url)
            if answer.headers.get("server", "").startswith("narswarm-gateway"):
                return url
    return None


def _cache_info(client: HttpClient, server: str) -> Response:
    url = f"{server.rstrip('/')}/nix-cache-info"
    return client.request("GET", url, max_bytes=_MAX_ANSWER, timeout=TIMEOUT)


def _extension(environ: Mapping[str, str]) -> Path | None:
    """The extension that guix will find first."""
    for directory in environ.get("GUIX_EXTENSIONS_PATH", "").split(":"):
        file = Path(directory) / "substitute.scm"
        if directory and os.path.lexists(file):
            return file
    return None


def _direct(check: str, guix: Path, user: User) -> Finding:
    """What GUIX names: a daemon that can't run it can do nothing at all."""
    if barred := access.obstacle(guix, user, READ | EXECUTE):
        hint = "let everybody read and run it, or run `substituter install` again"
        reason = f"can't run {guix}, which GUIX names: {barred.path}: {barred.reason}"
        return Finding(check, Verdict.FAILED, reason, hint)
    return Finding(check, Verdict.OK, f"runs {guix} by GUIX, as user {user.uid}")


def _extension_file(file: Path, user: User) -> Finding:
    barred = access.obstacle(file, user, READ)
    if barred is not None:
        hint = "let guix-daemon's user read it"
        return Finding("extension", Verdict.FAILED, f"{barred.path}: {barred.reason}", hint)
    try:
        same = file.read_bytes() == EXTENSION.read_bytes()
    except OSError as error:
        return Finding("extension", Verdict.WARNING, f"{file}: {error.strerror or error}")
    if not same:
        hint = f"copy {EXTENSION} over it, unless it was changed on purpose"
        return Finding("extension", Verdict.WARNING, f"{file} is not this version's", hint)
    return Finding("extension", Verdict.OK, str(file))


def _program(program: Path, user: User, environ: Mapping[str, str]) -> Finding:
    barred = access.obstacle(program, user, READ | EXECUTE)
    if barred is not None:
        return Finding(
            "program",
            Verdict.FAILED,
            f"{program} can't be run by guix-daemon: {barred.path}: {barred.reason}",
            "NARSWARM_SUBSTITUTER of guix-daemon's environment names the program; install it "
            "where everybody may run it",
        )
    shown = f"{program}, as user {user.uid}"
    if os.geteuid() == 0:
        failure = _start(program, user, environ)
        if failure:
            return Finding(
                "program",
                Verdict.FAILED,
                f"{program} doesn't start for user {user.uid}: {failure}",
                "run it by hand as that user; its Python packages may not be readable for it",
            )
        shown += ", starts"
    if any(hidden in program.resolve().parents for hidden in _HIDDEN):
        shown += "; it is in somebody's home, which services may not see"
        return Finding("program", Verdict.WARNING, shown, "install it in /opt or /usr/local")
    return Finding("program", Verdict.OK, shown)


def _start(program: Path, user: User, environ: Mapping[str, str]) -> str:
    """Run `PROGRAM --version` as the daemon would; what went wrong."""
    try:
        done = subprocess.run(
            [program, "--version"],
            user=user.uid,
            group=user.groups[0],
            extra_groups=user.groups[1:],
            env=dict(environ),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_START,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"nothing happens for {_START:.0f} s"
    except (OSError, ValueError) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    lines = done.stderr.decode(errors="replace").strip().split("\n")
    return lines[-1] or f"exit code {done.returncode}"


def _libraries() -> Iterator[Finding]:
    try:
        gcrypt.verify([b"", [b"sig-val"], [b"data"], [b"public-key"]])
        yield Finding("libgcrypt", Verdict.OK, ctypes.util.find_library("gcrypt") or "loaded")
    except NarswarmError as error:
        yield Finding("libgcrypt", Verdict.FAILED, str(error), "signatures can't be checked")
    try:
        version = lt_compat.library().__version__
        yield Finding("libtorrent", Verdict.OK, str(version))
    except NarswarmError as error:
        yield Finding(
            "libtorrent", Verdict.FAILED, str(error), "without it only a seeder can fetch"
        )
    try:
        check_codec()
        yield Finding("codec", Verdict.OK, "makes the payloads of profile 1")
    except CodecError as error:
        yield Finding(
            "codec", Verdict.WARNING, str(error), "fetching works; making payloads doesn't"
        )


def _acl(file: Path, user: User) -> Finding:
    barred = access.obstacle(file, user, READ)
    if barred is not None:
        return Finding(
            "ACL",
            Verdict.FAILED,
            f"{barred.path}: {barred.reason}",
            "authorise a key by `guix archive --authorize`; guix-daemon's user must read the file",
        )
    try:
        keys = len(Acl.load(file))
    except NarswarmError as error:
        return Finding("ACL", Verdict.FAILED, str(error), "Guix refuses such a file, too")
    if not keys:
        message = f"{file} has no key: nothing is believed"
        return Finding("ACL", Verdict.FAILED, message, "see `guix archive --authorize`")
    return Finding("ACL", Verdict.OK, f"{file} has {keys} keys")


def _state(directory: Path, user: User) -> Finding:
    """Whether the daemon's user can write its state, or make the directory for it."""
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    barred = access.obstacle(existing, user, READ | WRITE | EXECUTE)
    if barred is not None:
        return Finding(
            "state",
            Verdict.WARNING,
            f"{barred.path}: {barred.reason}; nothing is remembered, and each build looks all up "
            "again",
            f"make {directory} a directory of user {user.uid}",
        )
    return Finding("state", Verdict.OK, f"{directory} can be written by user {user.uid}")


def _seeder(configured: str | None, user: User) -> Finding:
    path = fetchclient.find(configured)
    if path is None:
        return Finding("seeder", Verdict.OK, "none here; the substituter fetches by itself")
    barred = access.obstacle(path, user, READ | WRITE)
    if barred is not None:
        return Finding(
            "seeder",
            Verdict.WARNING,
            f"{barred.path}: {barred.reason}; the substituter fetches by itself",
            "let guix-daemon's user use the socket and enter its directory",
        )
    try:
        with socket.socket(socket.AF_UNIX) as made, near(path.parent) as directory:
            made.settimeout(TIMEOUT)
            made.connect(str(directory / path.name))
    except OSError as error:
        return Finding(
            "seeder",
            Verdict.WARNING,
            f"{path}: {error.strerror or error}; the substituter fetches by itself",
            "start the seeder, or look at `seeder doctor`",
        )
    return Finding("seeder", Verdict.OK, f"{path} fetches for the substituter")


def _servers(client: HttpClient, urls: Sequence[str]) -> Iterator[Finding]:
    answering = 0
    for url in urls:
        check = f"server {url}"
        try:
            answer = _cache_info(client, url)
        except NarswarmError as error:
            yield Finding(check, Verdict.WARNING, error.reason, "others and the swarm make up")
            continue
        if answer.status != HTTPStatus.OK or not answer.body.startswith(b"StoreDir: /gnu/store\n"):
            yield Finding(
                check, Verdict.WARNING, f"answers {answer.status}, and not as a substitute server"
            )
            continue
        answering += 1
        yield Finding(check, Verdict.OK, "answers")
    if not answering:
        yield Finding(
            "servers",
            Verdict.WARNING,
            "no substitute server answers",
            "items come only from swarms whose trackers mirror narinfos",
        )


def _trackers(
    client: HttpClient,
    settings: SubstituterSettings,
    now: Callable[[], float],
    *,
    has_seeder: bool,
) -> Iterator[Finding]:
    verdicts = []
    for announce in settings.trackers:
        finding = _tracker(client, announce, now)
        verdicts.append(finding.verdict)
        yield finding
    if settings.trackers and Verdict.OK in verdicts:
        return
    hint = "name one in /etc/narswarm/narswarm.toml: trackers of the table [substituter]"
    reason = "no tracker answers" if settings.trackers else "no tracker is set"
    if has_seeder:
        yield Finding("trackers", Verdict.WARNING, f"{reason}; the seeder's are asked", hint)
    else:
        yield Finding("trackers", Verdict.FAILED, f"{reason}, so no torrents are found", hint)


def _tracker(client: HttpClient, announce: str, now: Callable[[], float]) -> Finding:
    check = f"tracker {announce}"
    try:
        # Of the NAR with the hash zero nobody knows: to say so is what an index does.
        url = f"{tracker_base(announce)}/v1/nar/{base32.encode(_NOBODYS_NAR)}"
        before = now()
        answer = client.request("GET", url, max_bytes=_MAX_ANSWER, timeout=TIMEOUT)
        took = now() - before
    except NarswarmError as error:
        return Finding(check, Verdict.WARNING, error.reason, "is it up, and reachable from here?")
    if answer.status not in {HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NOT_FOUND}:
        return Finding(
            check,
            Verdict.WARNING,
            f"its index answers {answer.status}",
            "an announce URL alone doesn't suffice: it must be a narswarm tracker",
        )
    skew = _skew(answer.headers.get("date", ""), now())
    if skew is not None and abs(skew) > MAX_SKEW + took:
        direction = "ahead of" if skew > 0 else "behind"
        return Finding(
            check,
            Verdict.WARNING,
            f"this clock is {abs(skew):.0f} s {direction} the tracker's",
            "set it by NTP",
        )
    return Finding(check, Verdict.OK, "its index answers")


def _skew(date: str, now: float) -> float | None:
    """Seconds that this clock is ahead of the one of a Date header (RFC 9110, section 6.6.1)."""
    try:
        return now - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
