# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.installing: `install` and `uninstall` as people run them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from substituter.install import DROP_IN
from tests.substituter.test_commands import Run
from tests.substituter.test_install import contents

SHEPHERD = (
    "shepherd: add the lines above to the make-forkexec-constructor of guix-daemon, and restart it"
)
OTHER = (
    "guix-daemon: is not a service of systemd here; "
    "start it with the variables above in its environment"
)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program."""
    return Run(capsys)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image with systemd, guix-daemon and the program."""
    made = tmp_path / "image"
    for name in ("etc/systemd/system/guix-daemon.service", "opt/substituter"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).touch()
    return made


def test_there_and_back(run: Run, root: Path) -> None:
    """Shown first, done, nothing to do, undone, nothing to undo."""
    before = contents(root)
    install = ("install", "--root", root, "--program", "/opt/substituter")
    code, out, err = run(*install, "--dry-run")
    assert (code, err) == (0, "")
    assert "+Environment=NARSWARM_SUBSTITUTER=/opt/substituter" in out.splitlines()
    assert contents(root) == before
    code, out, err = run(*install, "--yes")
    assert (code, err) == (0, "")
    assert (root / DROP_IN).is_file()
    assert run(*install, "--yes") == (0, "Everything is in place already.\n", "")
    code, out, _ = run("uninstall", "--root", root, "--dry-run")
    assert (code, out.splitlines()[1]) == (0, f"remove  /{DROP_IN}")
    assert (root / DROP_IN).is_file()
    assert run("uninstall", "--root", root, "--yes")[0] == 0
    assert contents(root) == before
    shown = "Nothing was installed by `substituter install`.\n"
    assert run("uninstall", "--root", root) == (0, shown, "")


def test_a_policy_is_shown_before_it_is_written(run: Run, root: Path) -> None:
    """As a line of the daemon's environment."""
    install = ("install", "--root", root, "--program", "/opt/substituter", "--dry-run")
    code, out, _ = run(*install, "--policy", "http-first")
    assert code == 0
    assert "+Environment=NARSWARM_SUBSTITUTER_POLICY=http-first" in out.splitlines()


def test_no_answer_is_no(run: Run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever says nothing gets nothing written."""
    before = contents(root)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run("install", "--root", root, "--program", "/opt/substituter")[0] == 130
    assert contents(root) == before


def test_a_changed_file_is_exit_code_6(run: Run, root: Path) -> None:
    """Until it is forced."""
    run("install", "--root", root, "--program", "/opt/substituter", "--yes")
    (root / DROP_IN).write_text("# mine\n")
    code, _, err = run("uninstall", "--root", root, "--yes")
    assert code == 6
    assert err == f"substituter: /{DROP_IN}: was changed since, and is left there\n"
    assert run("uninstall", "--root", root, "--yes", "--force")[0] == 0
    assert not (root / DROP_IN).exists()


def test_a_program_that_is_not_in_the_image(run: Run, root: Path) -> None:
    """It would not be found there."""
    code, _, err = run("install", "--root", root, "--program", "/opt/none", "--yes")
    assert code == 3
    assert err == (
        f"substituter: --program: /opt/none is not in {root}; name the installed program\n"
    )


@pytest.mark.parametrize(
    ("made", "shown", "error"),
    [
        (
            "run/current-system",
            "(guix-service-type config =>",
            "Guix System: is made from its operating-system; add the lines above and reconfigure",
        ),
        (
            "run/shepherd",
            "(default-environment-variables)",
            SHEPHERD,
        ),
        (
            "run/init",
            "NARSWARM_SUBSTITUTER=/opt/substituter",
            OTHER,
        ),
    ],
)
def test_systems_that_are_not_edited(
    run: Run, root: Path, made: str, shown: str, error: str
) -> None:
    """They are told what to write, and nothing is written."""
    if made != "run/current-system":
        (root / "etc/systemd/system/guix-daemon.service").unlink()
    (root / made).mkdir(parents=True)
    before = contents(root)
    code, out, err = run("install", "--root", root, "--program", "/opt/substituter", "--yes")
    assert (code, err) == (1, f"substituter: {error}\n")
    assert shown in out
    assert contents(root) == before
