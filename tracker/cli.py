# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `tracker`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from narswarm import settings as narswarm_settings
from narswarm.cli import config_option, json_option, print_json, printable, run, version_option
from tracker.commands import COMMANDS
from tracker.settings import Settings

_Decorated = TypeVar("_Decorated", bound=Callable[..., object])


@click.group()
@version_option
def tracker() -> None:
    """Help machines find each other's NARs: a BitTorrent tracker with an index by NarHash."""


def _serve_options(function: _Decorated) -> _Decorated:
    """Add all that `serve` takes."""
    for option in (
        config_option,
        click.option("--url", metavar="URL", help="Public URL of this tracker."),
        click.option(
            "--publisher",
            "publishers",
            multiple=True,
            metavar="KEY",
            help="Let the publisher with this key publish, in base64, and no other. Repeatable.",
        ),
        click.option(
            "--acl",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Publish what keys in FILE vouch for, instead of /etc/guix/acl.",
        ),
        click.option(
            "--open/--closed",
            "open_",
            default=None,
            help="Track any infohash, or just those of the index (the default).",
        ),
        click.option(
            "--data",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="Keep the index in DIR.",
        ),
        click.option(
            "--udp/--no-udp",
            default=None,
            help="Answer announces over UDP as well, at the same ports (the default), or not.",
        ),
        click.option(
            "--listen", multiple=True, metavar="HOST:PORT", help="Listen here. Repeatable."
        ),
    ):
        function = option(function)
    return function


def _load(config: Path | None, open_: bool | None, flags: dict[str, object]) -> Settings:
    return narswarm_settings.load(Settings, "tracker", file=config, flags={"open": open_, **flags})


@tracker.command()
@_serve_options
def serve(config: Path | None, open_: bool | None, **flags: object) -> None:
    """Serve announces, scrapes and the index until a signal comes; SIGHUP reads settings again."""
    settings = _load(config, open_, flags)
    # Not at the top: gunicorn and Flask take longer to import than `--help` takes otherwise.
    from tracker.server import serve as serve_forever  # noqa: PLC0415

    serve_forever(settings, lambda: _load(config, open_, flags))


@tracker.command(name="check-config")
@_serve_options
@json_option
def check_config(config: Path | None, open_: bool | None, as_json: bool, **flags: object) -> None:
    """Say what `serve` would use, with the same flags, or why it would not start."""
    settings = _load(config, open_, flags)
    # Not at the top, for the same reason.
    from tracker import checks  # noqa: PLC0415

    remarks, values = checks.check(settings), checks.described(settings)
    if as_json:
        print_json({"settings": values, "remarks": remarks})
        return
    click.echo("[tracker]")
    for name, value in values.items():
        shown = f"# {name} is not set" if value is None else f"{name} = {json.dumps(value)}"
        click.echo(shown)
    for remark in remarks:
        click.echo(f"tracker: {printable(remark)}", err=True)


for _command in COMMANDS:
    tracker.add_command(_command)


def main() -> None:
    """Run the command as a program."""
    run(tracker)
