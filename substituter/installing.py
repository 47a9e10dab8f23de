# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands `substituter install` and `substituter uninstall`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click

from narswarm import cli
from narswarm.errors import ExitCode, NarswarmError, SettingsError
from substituter import install
from substituter.flags import policy_option

_HOST = Path("/")

_root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=_HOST,
    show_default=True,
    help="The system to change, such as an image that is being built.",
)
_yes_option = click.option("--yes", is_flag=True, help="Ask nothing.")
_dry_option = click.option("--dry-run", is_flag=True, help="Show what would be done, and end.")
_restart_option = click.option(
    "--restart/--no-restart", default=True, help="Whether guix-daemon is started anew at the end."
)

_ADVICE = {
    "guix-system": (
        "Guix System",
        "is made from its operating-system; add the lines above and reconfigure",
    ),
    "shepherd": (
        "shepherd",
        "add the lines above to the make-forkexec-constructor of guix-daemon, and restart it",
    ),
    "other": (
        "guix-daemon",
        "is not a service of systemd here; start it with the variables above in its environment",
    ),
}


@click.command("install")
@click.option(
    "--program",
    type=click.Path(path_type=Path),
    help="The substituter as guix-daemon will find it; by default, this one.",
)
@_root_option
@_dry_option
@_yes_option
@_restart_option
@click.option(
    "--extension-only", is_flag=True, help="Use Guix's extension also where GUIX would be faster."
)
@policy_option
def install_command(
    program: Path | None,
    root: Path,
    dry_run: bool,
    yes: bool,
    restart: bool,
    extension_only: bool,
    policy: str | None,
) -> None:
    """Have guix-daemon use the substituter, under systemd.

    Shows what is written before it is: Guix's extension and, for a daemon of a distribution's
    package, a launcher, both in /usr/local/lib/narswarm; and the daemon's environment in a
    drop-in, with the policy if one is named. Elsewhere it shows what to write, and writes nothing.
    """
    named = _program(program, root)
    system = install.kind(root)
    if system != "systemd":
        click.echo(install.snippet(system, named, policy), nl=False)
        raise NarswarmError(*_ADVICE[system])
    changes, notes = install.plan(root, named, extension_only=extension_only, policy=policy)
    for line in install.diff(changes):
        click.echo(cli.printable(line))
    for note in notes:
        click.echo(f"substituter: {cli.printable(note)}", err=True)
    if not changes:
        click.echo("Everything is in place already.")
        return
    if dry_run:
        return
    if not yes:
        click.confirm("Write this?", abort=True)
    install.apply(root, changes)
    _reload(root, yes=yes, restart=restart)
    click.echo("Done. `substituter doctor` says whether it works.")


@click.command("uninstall")
@_root_option
@_dry_option
@_yes_option
@_restart_option
@click.option("--force", is_flag=True, help="Remove what somebody has changed since, too.")
def uninstall_command(root: Path, dry_run: bool, yes: bool, restart: bool, force: bool) -> ExitCode:
    """Undo `substituter install`, exactly.

    What was there before comes back. Exit code 6: somebody has changed a file since, and it was
    left there.
    """
    record = install.load(root)
    if not record.files:
        click.echo("Nothing was installed by `substituter install`.")
        return ExitCode.OK
    for each in record.files:
        click.echo(f"{'restore' if each.before else 'remove '} /{each.path}")
    if dry_run:
        return ExitCode.OK
    if not yes:
        click.confirm("Do this?", abort=True)
    notes = install.undo(root, record, force=force)
    for note in notes:
        click.echo(f"substituter: {cli.printable(note)}", err=True)
    _reload(root, yes=yes, restart=restart)
    return ExitCode.EXISTS if install.load(root).files else ExitCode.OK


def _program(named: Path | None, root: Path) -> Path:
    """What guix-daemon will be told to run.

    Raises:
        SettingsError: it isn't in that system.
    """
    program = named or Path(shutil.which(sys.argv[0]) or sys.argv[0]).absolute()
    if not (root / str(program).lstrip("/")).exists():
        raise SettingsError("--program", f"{program} is not in {root}; name the installed program")
    return program


def _reload(root: Path, *, yes: bool, restart: bool) -> None:
    """Have systemd take note; an image has none that runs."""
    if (
        root != _HOST
        or shutil.which("systemctl") is None
        or not Path("/run/systemd/system").exists()
    ):
        return
    _systemctl("daemon-reload")
    if restart and (yes or click.confirm("Restart guix-daemon? Builds that run are interrupted")):
        _systemctl("try-restart", install.UNIT)
    else:
        click.echo("It counts when guix-daemon is started anew: systemctl restart guix-daemon")


def _systemctl(*words: str) -> None:
    done = subprocess.run(["systemctl", *words], check=False)
    if done.returncode:
        raise NarswarmError(f"systemctl {' '.join(words)}", f"exit code {done.returncode}")
