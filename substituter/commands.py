# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that people type; guix-daemon's are in `helper`."""

from __future__ import annotations

from pathlib import Path

import click

from narswarm import base32, cli, narinfo, sexp
from narswarm.acl import Acl
from narswarm.errors import InvalidInputError, NotFoundError
from narswarm.httpclient import HttpClient
from substituter import inquiries, installing, serving

_TIMEOUT = 30.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@cli.version_option
def group() -> None:
    """Take the place of `guix substitute`: substitutes over BitTorrent.

    guix-daemon runs it; see the manual for how to make it do so. Commands that aren't listed here
    are guix's own and are handed over to it.
    """


@group.command("narinfo")
@click.argument("source", metavar="FILE|URL")
@click.option(
    "--acl",
    "acl_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/guix/acl"),
    show_default=True,
    help="The keys that count as authorised.",
)
@cli.json_option
def show_narinfo(source: str, acl_file: Path, as_json: bool) -> None:
    """Show a narinfo's fields and whether its signature counts.

    The verdict is in Guix's words: valid-signature, unauthorized-key, hash-mismatch,
    invalid-signature, corrupt-signature or unsigned.
    """
    raw = _read(source)
    acl = Acl.load(acl_file)
    try:
        verdict = narinfo.verdict(raw, acl)
    except InvalidInputError as error:
        raise InvalidInputError(source, error.reason) from error
    facts = {"verdict": str(verdict), **_facts(raw, _base(source))}
    if as_json:
        cli.print_json(facts)
        return
    for key, value in facts.items():
        label = key.replace("_", " ")
        for line in _lines(value):
            click.echo(f"{label:<12} {cli.printable(line)}".rstrip())
            label = ""


def _facts(raw: bytes, base_url: str) -> dict[str, object]:
    try:
        parsed = narinfo.parse(raw, base_url=base_url)
    except InvalidInputError as error:
        # The verdict stands all the same; there is just nothing more to believe.
        return {"error": error.reason}
    return {
        "store_path": parsed.store_path,
        "nar_hash": base32.format_hash(parsed.nar_hash),
        "nar_size": parsed.nar_size,
        "references": list(parsed.references),
        "deriver": parsed.deriver,
        "sources": [
            {"url": s.url, "compression": s.compression, "file_size": s.file_size}
            for s in parsed.sources
        ],
        "key": _key(parsed.signature),
    }


def _key(signature: bytes | None) -> str | None:
    """The `q` of the key that a signature names, as Guix's ACL shows keys."""
    found = sexp.find(sexp.parse(signature), b"q") if signature else None
    value = found[1] if found and len(found) > 1 else None
    return value.hex().upper() if isinstance(value, bytes) else None


def _lines(value: object) -> list[str]:
    if isinstance(value, list):
        return [" ".join(_lines(v)) for v in value] or [""]
    if isinstance(value, dict):
        return [" ".join(str(v) for v in value.values() if v is not None)]
    return ["" if value is None else str(value)]


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _base(source: str) -> str:
    return source.partition("?")[0].rpartition("/")[0] if _is_url(source) else ""


def _read(source: str) -> bytes:
    if _is_url(source):
        with HttpClient(_TIMEOUT) as client:
            response = client.request("GET", source, max_bytes=narinfo.MAX_BYTES)
        if response.status != 200:
            raise NotFoundError(source, f"the server answered {response.status}")
        return response.body
    try:
        with open(source, "rb") as file:
            return file.read(narinfo.MAX_BYTES + 1)
    except OSError as error:
        raise NotFoundError(source, error.strerror or str(error)) from error


for _command in (
    inquiries.show_weather,
    inquiries.show_challenge,
    inquiries.show_doctor,
    installing.install_command,
    installing.uninstall_command,
    serving.gateway_command,
):
    group.add_command(_command)


def main() -> None:
    """Run the command line of people."""
    cli.run(group, program="substituter")
