# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `seeder`."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import click

from narswarm import settings as narswarm_settings
from narswarm.cli import (
    config_option,
    format_size,
    json_option,
    print_json,
    printable,
    run,
    version_option,
)
from narswarm.errors import ExitCode
from seeder import control
from seeder.outside import forwarded
from seeder.settings import Settings

LONG = 3600.0
"""Seconds that making a payload may take."""


def _state_option(function: Any) -> Any:
    return click.option(
        "--state",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Keep payloads and torrents in DIR instead of /var/lib/narswarm/seeder.",
    )(function)


@click.group()
@version_option
def seeder() -> None:
    """Offer the items of this machine's store to everybody who wants them."""


@seeder.command(name="run")
@_state_option
@click.option(
    "--store-db",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Read which items are valid from FILE instead of /var/guix/db/db.sqlite.",
)
@click.option(
    "--nars",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Offer the NARs in DIR, which their narinfos are beside, instead of a store.",
)
@click.option(
    "--acl",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Offer what keys in FILE vouch for, instead of /etc/guix/acl.",
)
@click.option(
    "--tracker",
    "trackers",
    multiple=True,
    metavar="URL",
    help="Announce and publish to the tracker with this announce URL. Repeatable.",
)
@click.option(
    "--substitute-url",
    "substitute_urls",
    multiple=True,
    metavar="URL",
    help="Look narinfos up at this substitute server. Repeatable.",
)
@click.option("--listen", multiple=True, metavar="HOST:PORT", help="Listen here. Repeatable.")
@click.option("--dht/--no-dht", default=None, help="Announce in the DHT, or don't.")
@click.option(
    "--dht-node",
    "dht_nodes",
    multiple=True,
    metavar="HOST:PORT",
    help="Join the DHT here. Repeatable.",
)
@config_option
def run_command(config: Path | None, **flags: object) -> None:
    """Seed until a signal comes; SIGHUP asks trackers again that refused something."""
    settings = narswarm_settings.load(Settings, "seeder", file=config, flags=flags)
    settings.check()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="seeder: %(message)s", force=True
    )
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    # Not at the top: scheduler, HTTP and cryptography take longer to import than `--help` takes.
    from seeder.daemon import Seeder  # noqa: PLC0415

    stop = threading.Event()
    made = Seeder(settings, stop)

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # the second one ends it at once
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGHUP, lambda *_: made.reload())

    def ready(items: int, port: int) -> None:
        logging.getLogger("seeder").info("ready: %d items, port %d", items, port)

    if not made.run(ready):
        # Threads are left that wait for a server; the interpreter would wait for them.
        logging.shutdown()
        os._exit(ExitCode.OK)


@seeder.command()
@_state_option
@json_option
@config_option
def status(config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show what the running seeder does."""
    settings = narswarm_settings.load(Settings, "seeder", file=config, flags={"state": state})
    answer = control.ask(settings.state, "status")
    if as_json:
        print_json(answer)
    else:
        click.echo(describe(answer))


@seeder.command(name="list")
@_state_option
@json_option
@config_option
def list_command(config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show each item, and why it is offered or isn't."""
    settings = narswarm_settings.load(Settings, "seeder", file=config, flags={"state": state})
    listed = control.items(settings.state)
    if as_json:
        print_json(list(listed))
        return
    for item in listed:
        mark = "+" if item["offered"] else "-"
        size = format_size(item["length"]) if item["offered"] else ""
        sent = format_size(item["uploaded"]) if item["offered"] else ""
        name = item["store_path"].rpartition("/")[2]
        click.echo(printable(f"{mark} {size:>10} {sent:>10}  {name}: {item['reason']}"))


def _asking(op: str, text: str, done: str) -> None:
    """Add a command without arguments that asks the running seeder for something."""

    @seeder.command(name=op, help=text)
    @_state_option
    @json_option
    @config_option
    def command(config: Path | None, state: Path | None, as_json: bool) -> None:
        settings = narswarm_settings.load(Settings, "seeder", file=config, flags={"state": state})
        _say(control.ask(settings.state, op), done, as_json)


def _changing(op: str, text: str, done: str) -> None:
    """Add a command for store items that asks the running seeder to change something."""

    @seeder.command(name=op, help=text)
    @click.argument("paths", metavar="PATH...", nargs=-1, required=True)
    @_state_option
    @json_option
    @config_option
    def command(
        paths: tuple[str, ...], config: Path | None, state: Path | None, as_json: bool
    ) -> None:
        settings = narswarm_settings.load(Settings, "seeder", file=config, flags={"state": state})
        for path in paths:
            answer = control.ask(settings.state, op, timeout=LONG, store_path=path)
            _say(answer, f"{answer['store_path']} {done}", as_json)


def _say(answer: dict[str, Any], done: str, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        click.echo(printable(done))


_asking("pause", "Stop seeding until `resume`, also after a restart.", "nothing is seeded now")
_asking("resume", "Seed again.", "everything is seeded again")
_changing("add", "Offer store items now, that were removed or failed before.", "is offered")
_changing("remove", "Offer store items no more, until they are added.", "is no longer offered")


@seeder.command()
@click.argument("url", metavar="URL")
@click.argument("paths", metavar="[PATH...]", nargs=-1)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, exists=True),
    metavar="FILE",
    help="Mirror the closure of all items in FILE: the manifest of a profile, or a list.",
)
@click.option("--closure", is_flag=True, help="Mirror the PATHs and all that they refer to.")
@click.option("--forget", is_flag=True, help="Follow this no more; files go when room is needed.")
@_state_option
@json_option
@config_option
def mirror(
    url: str,
    paths: tuple[str, ...],
    manifest: Path | None,
    closure: bool,
    forget: bool,
    config: Path | None,
    state: Path | None,
    as_json: bool,
) -> None:
    """Keep and seed the files that the substitute server at URL has of store items.

    The running seeder fetches them, follows the server, and remembers to do so. `seeder status`
    says how far it is.
    """
    if bool(paths) == (manifest is not None) or (closure and not paths):
        raise click.UsageError("give either PATHs, with or without --closure, or --manifest FILE")
    words = ["manifest", str(manifest.absolute())] if manifest is not None else list(paths)
    rule = shlex.join([url, *(["closure"] if closure else []), *words])
    settings = narswarm_settings.load(Settings, "seeder", file=config, flags={"state": state})
    answer = control.ask(settings.state, "mirror", rule=rule, forget=forget)
    done = "is followed no more" if forget else "is followed"
    _say(answer, f"{answer['rule']} {done}", as_json)


@seeder.command()
@_state_option
@json_option
@config_option
def doctor(config: Path | None, state: Path | None, as_json: bool) -> None:
    """Look for what keeps this seeder from being of use.

    Exit code 1: something is broken. Warnings don't change the exit code.
    """
    # Not at the top: HTTP and cryptography take longer to import than `--help` takes.
    from narswarm.httpclient import HttpClient  # noqa: PLC0415
    from seeder.doctor import Verdict, examine  # noqa: PLC0415

    settings = narswarm_settings.load(Settings, "seeder", file=config, flags={"state": state})
    findings = []
    with HttpClient() as client:
        for finding in examine(settings, client):
            findings.append(finding)
            if not as_json:
                click.echo(printable(f"{finding.verdict:<8} {finding.check}: {finding.message}"))
    if as_json:
        print_json([finding.facts() for finding in findings])
    if any(finding.verdict is Verdict.FAILED for finding in findings):
        sys.exit(int(ExitCode.FAILED))


def describe(answer: dict[str, Any]) -> str:
    """Return what `seeder status` shows people."""
    _, said = forwarded(answer["port_mappings"])
    room = f"{format_size(answer['payload_bytes'])} of {format_size(answer['max_disk'])}"
    rows = [
        ("items", f"{answer['items']} offered{', but paused' if answer['paused'] else ''}"),
        *(("", f"{count} {reason}") for reason, count in sorted(answer["not_offered"].items())),
        *([("not scanned", answer["scan_message"])] if answer["scan_message"] else []),
        ("payloads", f"{answer['payloads']} made, {room}"),
        ("peers", f"{answer['peers']}"),
        ("uploaded", format_size(answer["uploaded"])),
        ("downloaded", format_size(answer["downloaded"])),
        ("fetching", f"{answer['fetching']} items, {answer['planned']} more are planned"),
        ("DHT nodes", f"{answer['dht_nodes']}"),
        ("port", f"{answer['listen_port']}"),
        *([("", f"the router {said}")] if answer["port_mappings"] else []),
        ("publisher", answer["publisher"]),
    ]
    rows += [("no payloads", answer[name]) for name in ("codec", "full") if answer[name]]
    rows += _mirror_rows(answer["mirror"], answer["mirror_message"])
    for tracker in answer["trackers"]:
        rows.append(("tracker", tracker["url"]))
        rows.append(("", _said("held", tracker["held"], tracker["holdings_message"])))
        rows.append(("", _said("published", tracker["published"], tracker["publish_message"])))
        if tracker["pending"]:
            rows.append(("", f"{tracker['pending']} to be published"))
        announces = "announces, of two infohashes an item"
        rows.append(("", _said(announces, tracker["announces"], tracker["announce_message"])))
    return "\n".join(f"{label:<12}{printable(value)}" for label, value in rows)


def _mirror_rows(mirror: dict[str, Any], message: str) -> list[tuple[str, str]]:
    if not (mirror["rules"] or mirror["files"] or message):
        return []
    own = mirror["files"] - mirror["in_place"]
    rows = [
        (
            "mirror",
            f"{own} files, {format_size(mirror['bytes'])}, and {mirror['in_place']} in place",
        )
    ]
    rows += [("", rule) for rule in mirror["rules"]]
    if mirror["missing"]:
        rows.append(("", f"{mirror['missing']} items aren't here"))
    texts = (mirror["full"], message, *mirror["failures"][:3])
    return rows + [("", text) for text in texts if text]


def _said(what: str, count: int, message: str) -> str:
    return f"{count} {what}, last error: {message}" if message else f"{count} {what}"


def main() -> None:
    """Run the command as a program."""
    run(seeder)
