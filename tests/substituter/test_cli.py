# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.cli: what is ours, and what is guix's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from substituter.settings import SubstituterSettings
from tests.substituter.daemon import PROGRAM, config, script

OTHERS = [
    ["gc", "--list-busy"],
    ["authenticate"],
    ["offload", "x86_64-linux", "3600", "true", "86400"],
    ["perform-download", "/gnu/store/x.drv", "/gnu/store/x"],
    ["discover"],
    ["no-such-command", "--help", "", "with space", "ü"],
]


def run(
    arguments: list[str], environ: dict[str, str], stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run the program as if it were installed."""
    command = [sys.executable, "-I", "-c", PROGRAM, *arguments]
    return subprocess.run(
        command, env=environ, cwd="/", input=stdin, capture_output=True, check=False, timeout=300
    )


@pytest.fixture
def guix(tmp_path: Path) -> Path:
    """A guix that shows how it was run: arguments, environment and input."""
    return script(
        tmp_path / "real-guix",
        "tr '\\0' '\\n' < /proc/$$/cmdline | tail -n +3; echo --; "
        "tr '\\0' '\\n' < /proc/$$/environ; echo --; cat; exit 7",
    )


@pytest.mark.parametrize("arguments", OTHERS)
def test_other_commands_are_guixs(guix: Path, arguments: list[str]) -> None:
    """Arguments, environment, input, output and exit code pass unchanged."""
    environ = {
        "PATH": "/usr/bin:/bin",
        "NARSWARM_SUBSTITUTER_GUIX": str(guix),
        "NARSWARM_CONFIG": os.devnull,
        "GUIX": "/opt/narswarm/bin/substituter",
        "GUIX_EXTENSIONS_PATH": "/home/user/guix/extensions",
        "LANG": "C",
    }
    done = run(arguments, environ, b"verify 3:abc\n")
    shown = [*arguments, "--", *(f"{name}={value}" for name, value in environ.items())]
    shown += ["--", "verify 3:abc"]
    assert done.stdout.decode() == "".join(f"{line}\n" for line in shown)
    assert (done.returncode, done.stderr) == (7, b"")


@pytest.mark.parametrize("arguments", [[], ["--version"], ["--help"], ["frob", "--query"]])
def test_what_people_ask_substitute_is_guixs(guix: Path, arguments: list[str]) -> None:
    """Only the two modes of guix-daemon are ours; the real one isn't led back here."""
    environ = {
        "PATH": "/usr/bin:/bin",
        "NARSWARM_SUBSTITUTER_GUIX": str(guix),
        "NARSWARM_CONFIG": os.devnull,
        "GUIX": "/x",
        "GUIX_EXTENSIONS_PATH": "/y",
    }
    done = run(["substitute", *arguments], environ)
    kept = [f"{name}={value}" for name, value in environ.items() if name[:4] != "GUIX"]
    shown = ["substitute", *arguments, "--", *kept, "--"]
    assert done.stdout.decode() == "".join(f"{line}\n" for line in shown)
    assert (done.returncode, done.stderr) == (7, b"")


def test_the_guix_of_the_settings_is_taken_for_all_commands(
    guix: Path, settings: SubstituterSettings, tmp_path: Path
) -> None:
    """The file names it for every command that is handed over."""
    file = config(settings, tmp_path / "narswarm.toml")
    file.write_text(file.read_text().replace(f'"{settings.guix}"', f'"{guix}"'))
    done = run(["gc"], {"PATH": "/usr/bin:/bin", "NARSWARM_CONFIG": str(file)})
    assert done.stdout.startswith(b"gc\n--\n")
    assert done.returncode == 7


@pytest.mark.parametrize("text", ["[substituter]\nno_such = 1\n", "[", None])
def test_broken_settings_do_not_stop_guix(guix: Path, tmp_path: Path, text: str | None) -> None:
    """Nor settings that this user may not read: build users run some of the commands."""
    file = tmp_path / "narswarm.toml"
    if text is not None:
        file.write_text(text)
    (tmp_path / "guix").symlink_to(guix)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "NARSWARM_CONFIG": str(file)}
    assert run(["gc"], environ).stdout.startswith(b"gc\n")


@pytest.mark.parametrize("what", ["directory", "not executable", "no program"])
def test_a_guix_that_cannot_be_run_is_told(tmp_path: Path, what: str) -> None:
    """One line, and the exit code of what wasn't found."""
    guix = tmp_path / "guix"
    if what == "directory":
        guix.mkdir()
    else:
        guix.write_bytes(b"\0")
        guix.chmod(0o755 if what == "no program" else 0o644)
    program = PROGRAM.replace(
        "from substituter.cli",
        "from substituter import realguix; realguix._USUAL = (); from substituter.cli",
    )
    environ = {"PATH": "/nonexistent", "NARSWARM_SUBSTITUTER_GUIX": str(guix)}
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, "gc"], env=environ, capture_output=True, check=False
    )
    reason = {
        "no program": f"{guix}: Exec format error",
    }.get(what, "guix: the real one is neither configured nor in a usual place")
    assert done.stderr.decode() == f"substituter: {reason}\n"
    assert (done.returncode, done.stdout) == (5, b"")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["narinfo", "--help"]])
def test_people_get_help(arguments: list[str]) -> None:
    """The program's own commands are explained by itself."""
    done = run(arguments, {"NARSWARM_SUBSTITUTER_GUIX": "/bin/false"})
    assert done.stdout.startswith(b"Usage: substituter ")
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_arguments_help_is_shown() -> None:
    """An empty command line is wrong usage, not a command of guix."""
    done = run([], {"NARSWARM_SUBSTITUTER_GUIX": "/bin/false"})
    assert b"Usage: substituter " in done.stdout + done.stderr
    assert done.returncode == 2


def test_an_unknown_option_is_wrong_usage() -> None:
    """An option before any command is ours."""
    done = run(["--frob"], {"NARSWARM_SUBSTITUTER_GUIX": "/bin/false"})
    assert b"--frob" in done.stderr
    assert done.returncode == 2
