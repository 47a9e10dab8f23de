# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.launcher: what it runs, and where it may stand in guix's place."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from substituter import launcher
from tests.substituter import daemon
from tests.substituter.test_install import make_daemon

UNIT = "[Service]\nExecStart=/usr/bin/guix-daemon --discover=no\n"
GUIX = Path("/usr/bin/guix")


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A launcher of a program and a guix that say who they are."""
    program = daemon.script(tmp_path / "program", 'echo "program $@"; exit 9')
    guix = daemon.script(tmp_path / "real", 'echo "guix $@"; exit 4')
    made = tmp_path / "guix"
    made.write_bytes(launcher.text(program, guix))
    made.chmod(launcher.MODE)
    return made


def run(start: Path, *arguments: str) -> tuple[str, int]:
    """What is run, and what it exits with."""
    done = subprocess.run([start, *arguments], capture_output=True, text=True, check=False)
    return done.stdout, done.returncode


def test_substitutes_are_for_the_program_and_all_else_for_guix(start: Path) -> None:
    """Arguments and exit codes come through as they are."""
    assert run(start, "substitute", "--query") == ("program substitute --query\n", 9)
    assert run(start, "gc", "--list-busy", "a b") == ("guix gc --list-busy a b\n", 4)
    assert run(start) == ("guix \n", 4)


def test_it_becomes_what_it_runs(start: Path) -> None:
    """Signals that guix-daemon sends to its helper reach the program itself."""
    for name, verb in (("program", "substitute"), ("real", "gc")):
        daemon.script(start.with_name(name), "echo $$")
        process = subprocess.Popen([start, verb], stdout=subprocess.PIPE, text=True)
        out, _ = process.communicate(timeout=60)
        assert int(out) == process.pid


def test_a_program_without_an_interpreter(start: Path) -> None:
    """It needs none that could be missing."""
    program = start.with_name("program")
    program.unlink()
    program.symlink_to(shutil.which("echo") or "/bin/echo")
    assert run(start, "substitute", "--query") == ("substitute --query\n", 0)


@pytest.mark.parametrize("broken", ["gone", "no interpreter", "not executable"])
def test_a_program_that_can_not_be_started_is_made_up_for(start: Path, broken: str) -> None:
    """Its upgrade, or the end of its Python, doesn't end substitution."""
    program = start.with_name("program")
    if broken == "gone":
        program.unlink()
    elif broken == "no interpreter":
        program.write_text("#!/nonexistent/python3\n")
    else:
        program.chmod(0o644)
    assert run(start, "substitute", "--query") == ("guix substitute --query\n", 4)


def test_the_guix_beside_a_daemon_of_a_package(tmp_path: Path) -> None:
    """It is named as the unit names the daemon."""
    make_daemon(tmp_path)
    assert launcher.real_guix(tmp_path, [UNIT]) == GUIX


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([], None),
        (["[Service]\n"], None),
        ([UNIT, "ExecStart=\n"], GUIX),  # as if it weren't there: there is no other
        ([UNIT, "ExecStart=\nExecStart=@/usr/bin/guix-daemon guix-daemon\n"], GUIX),
        ([UNIT, "ExecStart=\nExecStart=/usr/bin/guix\n"], None),
        ([UNIT, "ExecStart=/usr/bin/none\n"], None),
        ([UNIT, 'ExecStart="/usr/bin/guix-daemon"\n'], None),
        ([UNIT, "Environment=GUIX=/usr/bin/guix\n"], None),
        ([UNIT, 'Environment="A=1" "GUIX=/usr/bin/guix"\n'], None),
        ([UNIT, "Environment=NO_GUIX=1\n"], GUIX),
    ],
)
def test_units_that_say_something_else(
    tmp_path: Path, texts: list[str], found: Path | None
) -> None:
    """The last program counts, and no other GUIX may be set."""
    make_daemon(tmp_path)
    assert launcher.real_guix(tmp_path, texts) == found


def test_daemons_that_set_GUIX_themselves(tmp_path: Path) -> None:  # noqa: N802
    """One from `guix pull` is a script."""
    make_daemon(tmp_path)
    (tmp_path / "usr/bin/guix-daemon").write_text("#!/gnu/store/guile -ds\n")
    assert launcher.real_guix(tmp_path, [UNIT]) is None


def test_daemons_of_the_store(tmp_path: Path) -> None:
    """Profiles of AppArmor that come with Guix let them run nothing outside."""
    make_daemon(tmp_path)
    store = tmp_path / "gnu/store/x-guix/bin"
    store.mkdir(parents=True)
    (tmp_path / "usr/bin/guix-daemon").rename(store / "guix-daemon")
    (tmp_path / "usr/bin/guix-daemon").symlink_to(store / "guix-daemon")
    assert launcher.real_guix(tmp_path, [UNIT]) is None


def test_daemons_that_are_confined(tmp_path: Path) -> None:
    """A profile for this daemon may forbid it to run the launcher; others don't matter."""
    make_daemon(tmp_path)
    profiles = tmp_path / "etc/apparmor.d"
    (profiles / "local").mkdir(parents=True)
    (profiles / "other").write_text("/usr/bin/man {\n}\n")
    assert launcher.real_guix(tmp_path, [UNIT]) == GUIX
    (profiles / "guix").write_text("profile guix-daemon /usr/bin/guix-daemon {\n}\n")
    assert launcher.real_guix(tmp_path, [UNIT]) is None


def test_a_guix_that_is_not_there(tmp_path: Path) -> None:
    """Without it nothing could be handed over."""
    make_daemon(tmp_path)
    (tmp_path / "usr/bin/guix").chmod(0o644)
    assert launcher.real_guix(tmp_path, [UNIT]) is None
    (tmp_path / "usr/bin/guix").unlink()
    assert launcher.real_guix(tmp_path, [UNIT]) is None


def test_links_out_of_an_image(tmp_path: Path) -> None:
    """What they lead to isn't what would run there."""
    root = tmp_path / "root"
    make_daemon(root)
    (root / "usr/bin/guix-daemon").rename(tmp_path / "guix-daemon")
    (root / "usr/bin/guix-daemon").symlink_to(tmp_path / "guix-daemon")
    assert launcher.real_guix(root, [UNIT]) is None


@pytest.mark.parametrize(
    ("guix", "ours"),
    [
        (f"/{launcher.LAUNCHER}", True),
        ("/opt/narswarm/bin/substituter", True),
        ("/usr/bin/guix", False),
        ("", False),
    ],
)
def test_what_leads_to_the_substituter(guix: str, ours: bool) -> None:
    """The launcher, or the program."""
    assert launcher.is_one(guix) is ours
