# SPDX-License-Identifier: GPL-3.0-or-later
"""The manual pages and completions in the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("mkmeta", "tracker", "seeder", "substituter")


def test_the_pages_say_what_the_commands_say() -> None:
    """man/ and completions/ are what `make manual` makes of this version's help texts."""
    command = [sys.executable, str(ROOT / "scripts/manual.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", sorted((ROOT / "man").iterdir()), ids=lambda page: page.name)
def test_a_page_is_set_without_a_warning(page: Path) -> None:
    """Groff finds nothing to warn of, and the page has a name and a description."""
    groff = needs.program("groff")
    command = [groff, "-man", "-Tutf8", "-ww", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    # Some terminals have letters struck twice for bold ones.
    shown = re.sub(".\b", "", done.stdout)
    assert "NAME" in shown
    assert "DESCRIPTION" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_bash_completes_options(name: str) -> None:
    """After `COMMAND --v`, bash offers `--version`, which the command itself names."""
    script = (
        f"source {ROOT}/completions/bash/{name}; COMP_WORDS=({name} --v); COMP_CWORD=1; "
        f'_narswarm_{name} {name}; echo "${{COMPREPLY[@]}}"'
    )
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    bash = needs.program("bash")
    done = subprocess.run(
        [bash, "-c", script], capture_output=True, text=True, check=True, env={"PATH": path}
    )
    assert done.stdout == "--version\n"
