# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator's commands beside `tracker serve`.

What they change is written into the database, and the running tracker is told, so that it holds at
once; when none runs, it holds for the next one. None of them needs a restart.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import click

from narswarm import settings as narswarm_settings
from narswarm.cli import config_option, format_duration, format_size, json_option, print_json
from narswarm.errors import NotFoundError
from narswarm.files import atomic_file
from tracker.blocks import Block, Kind
from tracker.settings import Settings

if TYPE_CHECKING:
    from narswarm.control import Control
    from tracker.database import Connection
    from tracker.export import Ask, Counts

_Decorated = TypeVar("_Decorated", bound=Callable[..., object])


def data_option(function: _Decorated) -> _Decorated:
    """Add `--data DIR`, given to the command as `data`."""
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="The tracker's data directory, instead of that of the settings.",
    )(function)


def _reason_option(function: _Decorated) -> _Decorated:
    return click.option("--reason", default="", metavar="TEXT", help="Why, for operators.")(
        function
    )


def _kind_options(function: _Decorated) -> _Decorated:
    for name, text in (
        ("--address", "Who sends from an address or a network (CIDR)."),
        ("--publisher", "Whatever a publisher's key claims, in base64."),
        ("--infohash", "A torrent, by its v1 or v2 infohash."),
        ("--nar", "A NAR, by its hash or a store item."),
    ):
        function = click.option(name, "kind", flag_value=name[2:], help=text)(function)
    return function


@click.command()
@data_option
@json_option
@config_option
def stats(config: Path | None, data: Path | None, as_json: bool) -> None:
    """Show what the running tracker does."""
    from narswarm.control import Control  # noqa: PLC0415 - see below

    with Control(_settings(config, data).data, "tracker") as control:
        answer = control.ask("stats")
    if as_json:
        print_json(answer)
        return
    index = answer["index"]
    peers = {
        family: f"{answer[f'seeders_{family}']} seeders, {answer[f'leechers_{family}']} leechers"
        for family in ("ipv4", "ipv6")
    }
    rows = [
        ("tracker", f"{'open' if answer['open'] else 'closed'}, process {answer['pid']}"),
        ("up", format_duration(answer["uptime_seconds"])),
        ("swarms", str(answer["swarms"])),
        ("IPv4", peers["ipv4"]),
        ("IPv6", peers["ipv6"]),
        ("NARs", f"{index['nars']} with {index['torrents']} torrents"),
        ("infohashes", str(index["info_hashes"])),
        ("holders", f"{answer['holders']} with {answer['held']} items"),
        ("wanted", f"{answer['wanted']}, and {answer['polls']} seeders wait for more"),
        ("preparing", f"answered {answer['preparing']} times"),
        ("blocks", str(index["blocks"])),
        ("database", format_size(index["size"])),
    ]
    rows += [
        (
            "requests" if number == 0 else "",
            f"{row['count']} {row['protocol']} {row['family']} {row['action']} {row['outcome']}",
        )
        for number, row in enumerate(answer["requests"])
    ]
    _print_rows(rows)


@click.command()
@click.argument("nar", metavar="NARHASH|STORE-PATH")
@_reason_option
@data_option
@config_option
def withdraw(config: Path | None, data: Path | None, nar: str, reason: str) -> None:
    """Delete all about a NAR, and refuse it until it is unblocked."""
    from tracker import blocks  # noqa: PLC0415 - see below

    with _changed(_settings(config, data)) as connection:
        hashes = blocks.resolve(connection, nar)
        for nar_hash in hashes:
            blocks.withdraw(connection, nar_hash, reason, int(time.time()))
    for nar_hash in hashes:
        click.echo(f"withdrawn: {Block(Kind.NAR, nar_hash, '', 0).text}")


@click.command()
@_kind_options
@click.argument("value")
@_reason_option
@data_option
@config_option
def block(
    config: Path | None, data: Path | None, kind: str | None, value: str, reason: str
) -> None:
    """Hide and refuse a NAR, a torrent, a publisher or addresses."""
    from tracker import blocks  # noqa: PLC0415 - see below

    with _changed(_settings(config, data)) as connection:
        chosen = _chosen(connection, kind, value)
        for kind_, found in chosen:
            blocks.add(connection, Block(kind_, found, reason, int(time.time())))
    _say("blocked", chosen)


@click.command()
@_kind_options
@click.argument("value")
@data_option
@config_option
def unblock(config: Path | None, data: Path | None, kind: str | None, value: str) -> None:
    """Lift a block, or let a withdrawn NAR be published again."""
    from tracker import blocks  # noqa: PLC0415 - see below

    with _changed(_settings(config, data)) as connection:
        chosen = _chosen(connection, kind, value)
        for kind_, found in chosen:
            blocks.remove(connection, kind_, found)
    _say("unblocked", chosen)


@click.command(name="blocks")
@data_option
@json_option
@config_option
def list_blocks(config: Path | None, data: Path | None, as_json: bool) -> None:
    """List what is blocked."""
    from tracker import blocks, database  # noqa: PLC0415 - see below

    with database.opened(_settings(config, data).place) as connection:
        found = blocks.listed(connection)
    if as_json:
        print_json(
            [
                {
                    "kind": str(each.kind),
                    "value": each.text,
                    "reason": each.reason,
                    "added": each.added,
                    "withdrawn": each.withdrawn is not None,
                }
                for each in found
            ]
        )
        return
    for each in found:
        day = time.strftime("%Y-%m-%d", time.gmtime(each.added))
        state = "withdrawn" if each.withdrawn is not None else "blocked"
        click.echo(f"{day}  {state:9}  {each.kind:9}  {each.text}  {each.reason}".rstrip())


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write FILE, whole or not at all, instead of to standard output.",
)
@data_option
@config_option
def export(config: Path | None, data: Path | None, output: Path | None) -> None:
    """Write the index as lines of JSON, with the numbers of peers if a tracker runs."""
    from narswarm.control import Control  # noqa: PLC0415 - see below
    from tracker import database  # noqa: PLC0415 - see below
    from tracker.export import entries  # noqa: PLC0415 - see below

    settings = _settings(config, data)
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(database.opened(settings.place))
        ask: Ask | None = None
        with contextlib.suppress(NotFoundError):
            ask = _counts(stack.enter_context(Control(settings.data, "tracker")))
        file: BinaryIO = (
            sys.stdout.buffer if output is None else stack.enter_context(atomic_file(output))
        )
        for entry in entries(connection, ask):
            line = json.dumps(entry, separators=(",", ":"))
            file.write(f"{line}\n".encode())


COMMANDS = (stats, withdraw, block, unblock, list_blocks, export)


# Imports inside the functions are of what takes longer to import than `--help` may take.
def _settings(config: Path | None, data: Path | None) -> Settings:
    return narswarm_settings.load(Settings, "tracker", file=config, flags={"data": data})


@contextmanager
def _changed(settings: Settings) -> Iterator[Connection]:
    """A transaction of the database, of which the running tracker is told when it ended well.

    Raises:
        BusyError: it is written, but the tracker doesn't answer; it will see for itself.
    """
    from narswarm.control import Control  # noqa: PLC0415 - see above
    from tracker import database  # noqa: PLC0415 - see above

    with database.opened(settings.place) as connection, connection.transaction():
        yield connection
    with contextlib.suppress(NotFoundError), Control(settings.data, "tracker") as control:
        control.ask("apply")


def _counts(control: Control) -> Ask:
    """What asks the running tracker for numbers of peers."""

    def ask(torrents: list[list[bytes]]) -> list[Counts]:
        asked = [[info_hash.hex() for info_hash in torrent] for torrent in torrents]
        answer = control.ask("counts", torrents=asked)
        return [(row[0], row[1], row[2]) for row in answer["counts"]]

    return ask


def _chosen(connection: Connection, kind: str | None, value: str) -> list[tuple[Kind, bytes]]:
    """What a command names: one thing, or all NARs of a store item."""
    from tracker import blocks  # noqa: PLC0415 - see above

    if kind is None:
        raise click.UsageError("Say what it is: --nar, --infohash, --publisher or --address.")
    if kind == Kind.NAR:
        return [(Kind.NAR, nar_hash) for nar_hash in blocks.resolve(connection, value)]
    return [(Kind(kind), blocks.parse(Kind(kind), value))]


def _say(what: str, chosen: list[tuple[Kind, bytes]]) -> None:
    for kind, value in chosen:
        click.echo(f"{what}: {kind} {Block(kind, value, '', 0).text}")


def _print_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:{width}}  {value}")
