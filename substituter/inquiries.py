# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that look and change nothing: `weather`, `challenge` and `doctor`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from narswarm import cli
from narswarm import settings as narswarm_settings
from narswarm.acl import Acl
from narswarm.errors import ExitCode, NarswarmError, NetworkError, NotFoundError
from narswarm.guixdb import DEFAULT_DATABASE, DbItem, GuixDb
from narswarm.httpclient import HttpClient
from substituter import challenge, daemonprocess, doctor, manifests, weather
from substituter.challenge import Outcome
from substituter.context import tracker_base
from substituter.flags import policy_option
from substituter.settings import SubstituterSettings
from substituter.survey import Survey

_TIMEOUT = 10.0

_urls_option = click.option(
    "--substitute-urls",
    metavar="URLS",
    help="Ask these servers instead of those that guix-daemon asks.",
)
_manifest_option = click.option(
    "-m",
    "--manifest",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A profile, its manifest, or a list with one store path a line.",
)


@click.command("weather")
@click.argument("paths", nargs=-1, metavar="[PATH|-]...")
@_manifest_option
@_urls_option
@policy_option
@cli.config_option
@cli.json_option
def show_weather(
    paths: tuple[str, ...],
    manifest: Path | None,
    substitute_urls: str | None,
    policy: str | None,
    config: Path | None,
    as_json: bool,
) -> ExitCode:
    """Show who can serve store items: how many seeds, and which servers.

    `N would` is the number of seeders that have the item and begin to seed it as soon as somebody
    wants it. The DHT is not asked, which may know more seeds. Exit code 5: some items are missing.
    Exit code 8: nobody answers.
    """
    settings = narswarm_settings.load(
        SubstituterSettings, "substituter", file=config, flags={"policy": policy}
    )
    wanted = _wanted(paths, manifest)
    with _survey(settings, substitute_urls) as survey:
        found = weather.forecast(survey, wanted, settings.quorum, settings.policy)
        _complain(survey)
        silent = dict(survey.silent)
    if as_json:
        cli.print_json(
            {
                "items": [weather.describe(each, settings.quorum) for each in found],
                "summary": {
                    "items": len(found),
                    "swarm": sum(each.from_swarm for each in found),
                    "http": sum(each.from_http for each in found),
                    "missing": sum(each.is_missing for each in found),
                },
                "policy": settings.policy,
                "dht": "not asked" if settings.dht else "off",
                "silent": silent,
            }
        )
    else:
        for line in weather.table(found, settings.quorum):
            click.echo(cli.printable(line))
        click.echo(weather.summary(found))
        if settings.dht and any(each.is_unseeded for each in found):
            click.echo("The DHT was not asked; it may know seeds that no tracker knows.")
    return ExitCode.NOT_FOUND if any(each.is_missing for each in found) else ExitCode.OK


@click.command("challenge")
@click.argument("paths", nargs=-1, metavar="[PATH|-]...")
@_manifest_option
@_urls_option
@click.option(
    "--database",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_DATABASE,
    show_default=True,
    help="guix-daemon's, for what this store has.",
)
@cli.config_option
@cli.json_option
def show_challenge(
    paths: tuple[str, ...],
    manifest: Path | None,
    substitute_urls: str | None,
    database: Path,
    config: Path | None,
    as_json: bool,
) -> ExitCode:
    """Show who signed what for store items, and whether they and this store agree.

    Exit code 7: some don't. Those whose keys aren't authorised are shown and don't count.
    """
    settings = narswarm_settings.load(SubstituterSettings, "substituter", file=config)
    wanted = _wanted(paths, manifest)
    local = _local(database, wanted)
    with _survey(settings, substitute_urls) as survey:
        found = challenge.challenge(survey.narinfos(wanted), local)
        _complain(survey)
        silent = dict(survey.silent)
    if as_json:
        cli.print_json({"items": [challenge.describe(each) for each in found], "silent": silent})
    else:
        for each in found:
            for line in challenge.lines(each):
                click.echo(cli.printable(line))
        click.echo(challenge.summary(found))
    differ = any(each.outcome is Outcome.DISAGREEMENT for each in found)
    return ExitCode.MISMATCH if differ else ExitCode.OK


@click.command("doctor")
@cli.config_option
@cli.json_option
def show_doctor(config: Path | None, as_json: bool) -> ExitCode:
    """Say whether the next `guix build` will use the substituter, and if not, why.

    Run it as root: guix-daemon's environment is for its own user and for root. Exit code 1:
    something is broken. Warnings don't change the exit code.
    """
    findings = []
    with HttpClient(_TIMEOUT) as client:
        for finding in doctor.examine(client, os.environ, config):
            findings.append(finding)
            if not as_json:
                line = f"{finding.verdict:<8} {finding.check}: {finding.message}"
                click.echo(cli.printable(line))
                if finding.hint and finding.verdict is not doctor.Verdict.OK:
                    click.echo(cli.printable(f"{'':<8} {finding.hint}"))
    conclusion = doctor.conclusion(findings)
    if as_json:
        shown = [finding._asdict() for finding in findings]
        cli.print_json({"findings": shown, "conclusion": conclusion})
    else:
        click.echo(cli.printable(conclusion))
    failed = any(finding.verdict is doctor.Verdict.FAILED for finding in findings)
    return ExitCode.FAILED if failed else ExitCode.OK


def _wanted(paths: tuple[str, ...], manifest: Path | None) -> list[str]:
    wanted = manifests.items(paths, manifest)
    if not wanted:
        raise click.UsageError("name a store path, - or --manifest")
    return wanted


@contextmanager
def _survey(settings: SubstituterSettings, urls: str | None) -> Iterator[Survey]:
    servers = daemonprocess.substitute_urls() if urls is None else tuple(urls.split())
    trackers = [tracker_base(announce) for announce in settings.trackers]
    with HttpClient(_TIMEOUT) as client:
        acl = Acl.load(settings.acl)
        yield Survey(client, servers, trackers, acl, web_seeds=settings.web_seeds)


def _complain(survey: Survey) -> None:
    """Say who gave no answer.

    Raises:
        NetworkError: nobody did, so that nothing is known.
    """
    for source, reason in sorted(survey.silent.items()):
        click.echo(f"substituter: {cli.printable(f'{source}: {reason}')}", err=True)
    if not survey.heard:
        raise NetworkError("servers and trackers", "none of them answers")


def _local(database: Path, paths: list[str]) -> dict[str, DbItem | None]:
    """What this store has; a machine without one can ask as well."""
    db = GuixDb(database)
    try:
        return {path: db.item(path) for path in paths}
    except NotFoundError as error:
        click.echo(f"substituter: {cli.printable(str(error))}", err=True)
    except NarswarmError as error:
        click.echo(f"substituter: {cli.printable(str(error))}; this store is left out", err=True)
    return {}
