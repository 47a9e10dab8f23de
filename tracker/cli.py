# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `tracker`."""

from __future__ import annotations

from pathlib import Path

import click

from narswarm import settings as narswarm_settings
from narswarm.cli import config_option, run, version_option
from tracker.settings import Settings


@click.group()
@version_option
def tracker() -> None:
    """Help machines find each other's NARs: a BitTorrent tracker with an index by NarHash."""


@tracker.command()
@click.option("--listen", multiple=True, metavar="HOST:PORT", help="Listen here. Repeatable.")
@click.option(
    "--udp/--no-udp",
    default=None,
    help="Answer announces over UDP at the same addresses and ports (the default), or not.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep the index in DIR.",
)
@click.option(
    "--open/--closed",
    "open_",
    default=None,
    help="Track any infohash, or just those of the index (the default).",
)
@click.option(
    "--acl",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Publish what keys in FILE vouch for, instead of /etc/guix/acl.",
)
@click.option(
    "--publisher",
    "publishers",
    multiple=True,
    metavar="KEY",
    help="Let the publisher with this key publish, in base64, and no other. Repeatable.",
)
@click.option("--url", metavar="URL", help="Public URL of this tracker.")
@config_option
def serve(config: Path | None, open_: bool | None, **flags: object) -> None:
    """Serve announces, scrapes and the index until a signal comes."""
    settings = narswarm_settings.load(
        Settings, "tracker", file=config, flags={"open": open_, **flags}
    )
    # Not at the top: gunicorn and Flask take longer to import than `--help` takes otherwise.
    from tracker.server import serve as serve_forever  # noqa: PLC0415

    serve_forever(settings)


def main() -> None:
    """Run the command as a program."""
    run(tracker)
