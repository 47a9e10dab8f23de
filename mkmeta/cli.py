# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `mkmeta`: canonical BitTorrent metadata of store items, for people and programs.

What a command finds is one mapping of facts, written as an aligned block for people or as one line
of JSON for programs; what goes on meanwhile is on standard error, if that is a terminal.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

import click

from mkmeta.create import Made, Plan, create
from mkmeta.inputs import NarInput, open_file, open_nar
from mkmeta.verify import Report, verify
from narswarm import base32, cli
from narswarm.errors import InvalidInputError, MismatchError
from narswarm.merkle import piece_count
from narswarm.metainfo import MAX_BYTES, Metainfo, Outside, decode, decode_outside

Facts = Mapping[str, object]
_Decorated = TypeVar("_Decorated", bound=Callable[..., object])

_ANNOUNCE_URL = re.compile(r"(https?|udp|wss?)://[!-~]+")
_SHOWN_PIECES = 20
"""Bad pieces that are listed for people; JSON has them all."""


def main() -> None:
    """Run the command as a program."""
    # What is half-written is removed as on ^C when a service manager or a closed terminal asks.
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    cli.run(group, program="mkmeta")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _announce_urls(
    _context: click.Context, _option: click.Parameter, urls: Sequence[str]
) -> Sequence[str]:
    """Refuse what no client could announce to: a magnet link lives longer than a typing error."""
    for url in urls:
        if not _ANNOUNCE_URL.fullmatch(url):
            raise click.BadParameter(f"{cli.printable(url)!r} is not an announce URL")
    return urls


def _text(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    """Refuse bytes that are no text: torrents are read as UTF-8."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise click.BadParameter("is not UTF-8") from None
    return text


def _tracker_option(function: _Decorated) -> _Decorated:
    return click.option(
        "--tracker",
        "trackers",
        multiple=True,
        callback=_announce_urls,
        metavar="URL",
        help="Name a tracker in the torrent and the magnet link. May be repeated.",
    )(function)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@cli.version_option
def group() -> None:
    """Make and check the canonical torrents of Guix store items.

    Everybody who holds a store item makes the same payload and the same infohashes of it.
    """


@group.command("create")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "-o",
    "--output",
    "directory",
    default=".",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write to DIR instead of the current directory.",
)
@_tracker_option
@click.option(
    "--comment",
    callback=_text,
    metavar="TEXT",
    help="A comment in the torrent; a store path by default.",
)
@click.option("--torrent-only", is_flag=True, help="Don't keep the payload.")
@click.option("--dry-run", is_flag=True, help="Compute everything, write nothing.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@cli.json_option
def create_command(
    paths: Sequence[str],
    directory: Path,
    trackers: Sequence[str],
    comment: str | None,
    torrent_only: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Make payload and torrent of each PATH.

    PATH is a store item or any other file or directory, of which the NAR is made; a NAR, if it is a
    file whose name ends in .nar; or - for a NAR on standard input. Two files named after the hash
    of the NAR are written, HASH.nar.zst and HASH.nar.zst.torrent, both whole or neither.

    With --json, each PATH gives one line with one object: nar_hash, nar_size, payload,
    payload_length, piece_length, infohash_v1, infohash_v2, magnet, torrent.
    """
    for path in paths:
        with open_nar(path) as source:
            plan = None
            if not dry_run:
                said = source.store_path if comment is None else comment
                plan = Plan(directory, force, torrent_only, trackers, said)
            made = _create(source, plan)
        _write(_made_facts(made, trackers), source.label, as_json=as_json)


@group.command("show")
@click.argument("files", nargs=-1, required=True, metavar="FILE.torrent...")
@cli.json_option
def show_command(files: Sequence[str], as_json: bool) -> None:
    """Say what is in a torrent, after checking that its parts agree with each other."""
    for file in files:
        meta, outside = _read(file)
        _write(_torrent_facts(meta, outside), file, as_json=as_json)


@group.command("verify")
@click.argument("path")
@click.argument("file", metavar="FILE.torrent")
@cli.json_option
def verify_command(path: str, file: str, as_json: bool) -> None:
    """Compare PATH with a torrent, piece by piece.

    PATH is a payload, or anything that create takes. The NAR in the payload must also have the hash
    that is the name of the torrent.
    """
    meta, _ = _read(file)
    with cli.Progress("verify", meta.length) as progress:
        report = verify(path, meta, progress.update)
    _write(_report_facts(report, as_json=as_json), path, as_json=as_json)
    if report.fault is not None:
        raise MismatchError(path, report.fault)


@group.command("magnet")
@click.argument("paths", nargs=-1, required=True, metavar="FILE.torrent|PATH...")
@_tracker_option
def magnet_command(paths: Sequence[str], trackers: Sequence[str]) -> None:
    """Write the magnet link of each torrent, or of anything that create takes."""
    for path in paths:
        if path.endswith(".torrent"):
            meta, outside = _read(path)
            click.echo(meta.magnet([*outside.trackers, *trackers]))
        else:
            with open_nar(path) as source:
                click.echo(_create(source, None).meta.magnet(trackers))


def _create(source: NarInput, plan: Plan | None) -> Made:
    """Make what is asked for, with a progress line."""
    with cli.Progress(Path(source.label).name[:40], source.size) as progress:
        return create(source, plan, progress.update)


def _read(file: str) -> tuple[Metainfo, Outside]:
    """Read a torrent, and no more of a file that is none than a torrent can have."""
    with open_file(file) as opened:
        try:
            data = opened.read(MAX_BYTES + 1) or b""
        except OSError as error:
            raise InvalidInputError(file, error.strerror or str(error)) from None
    return decode(data, file), decode_outside(data, file)


def _made_facts(made: Made, trackers: Sequence[str]) -> Facts:
    meta = made.meta
    return {
        "nar_hash": base32.encode(meta.nar_hash),
        "nar_size": made.nar_size,
        "payload": None if made.payload is None else str(made.payload),
        "payload_length": meta.length,
        "piece_length": meta.piece_length,
        "infohash_v1": meta.infohash_v1.hex(),
        "infohash_v2": meta.infohash_v2.hex(),
        "magnet": meta.magnet(trackers),
        "torrent": None if made.torrent is None else str(made.torrent),
    }


def _torrent_facts(meta: Metainfo, outside: Outside) -> Facts:
    return {
        "nar_hash": base32.encode(meta.nar_hash),
        "kind": str(meta.kind),
        "name": meta.name,
        "payload_length": meta.length,
        "piece_length": meta.piece_length,
        "pieces": piece_count(meta.length, meta.piece_length),
        "infohash_v1": meta.infohash_v1.hex(),
        "infohash_v2": meta.infohash_v2.hex(),
        "magnet": meta.magnet(outside.trackers),
        "trackers": list(outside.trackers),
        "web_seeds": list(outside.web_seeds),
        "comment": outside.comment,
    }


def _report_facts(report: Report, *, as_json: bool) -> Facts:
    meta = report.meta
    bad: object = list(report.bad_pieces)
    if not as_json:
        bad = _shown_pieces(report.bad_pieces, meta)
    return {
        "ok": report.fault is None,
        "nar_hash": base32.encode(meta.nar_hash),
        "nar_hash_found": None if report.nar_hash is None else base32.encode(report.nar_hash),
        "payload_length": meta.length,
        "payload_length_found": report.length,
        "piece_length": meta.piece_length,
        "pieces": piece_count(meta.length, meta.piece_length),
        "bad_pieces": bad,
    }


def _shown_pieces(bad: Sequence[int], meta: Metainfo) -> list[str]:
    """Name pieces with the bytes that they are, the first ones if there are many."""
    size = meta.piece_length
    lines = [
        f"{index} (bytes {index * size} to {min((index + 1) * size, meta.length) - 1})"
        for index in bad[:_SHOWN_PIECES]
    ]
    if len(bad) > _SHOWN_PIECES:
        lines.append(f"and {len(bad) - _SHOWN_PIECES} more")
    return lines


def _write(facts: Facts, title: str, *, as_json: bool) -> None:
    """Write facts to standard output: one line of JSON, or a block under a title."""
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(cli.printable(title))
    width = max(map(len, facts)) + 2
    for key, value in facts.items():
        for index, line in enumerate(_lines(key, value)):
            label = key.replace("_", " ") if index == 0 else ""
            click.echo(f"  {label:{width}}{cli.printable(line)}")


def _lines(key: str, value: object) -> list[str]:
    """Return a fact for people; what isn't there has no line."""
    if value is None or value == []:
        return []
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, int) and key != "pieces":
        return [f"{value} ({cli.format_size(value)})" if value >= 1024 else f"{value} B"]
    if isinstance(value, list):
        return [str(entry) for entry in value]
    return [str(value)]
