# SPDX-License-Identifier: GPL-3.0-or-later
"""What pip installs from a wheel and from a source distribution of this tree."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.conformance

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("mkmeta", "tracker", "seeder", "substituter")


def run(command: Sequence[str | Path], cwd: Path) -> str:
    """Run a command; its output, which a failure shows."""
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env=environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git has, as a build leaves files in the tree that it builds."""
    copy = tmp_path_factory.mktemp("source")
    listed = run(["git", "ls-files", "-z", "--cached"], ROOT).split("\0")
    for name in listed:
        if name and (ROOT / name).is_file():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
            target.chmod((ROOT / name).stat().st_mode)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """The wheel, made as pip makes it."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    run([*pip, "--wheel-dir", source / "dist", source], source)
    (found,) = (source / "dist").glob("narswarm-*.whl")
    return found


def test_a_wheel_has_all_that_the_commands_need(wheel: Path) -> None:
    """Manual pages, completions and the Guix extension are in it, and tests are not."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    ends = [f"share/man/man1/{name}.1" for name in COMMANDS]
    ends += ["share/man/man5/narswarm.toml.5"]
    ends += [f"share/bash-completion/completions/{name}" for name in COMMANDS]
    ends += [f"share/zsh/site-functions/_{name}" for name in COMMANDS]
    ends += [f"share/fish/vendor_completions.d/{name}.fish" for name in COMMANDS]
    ends += ["substituter/guix/extensions/substitute.scm", "tracker/redis_swarms.lua"]
    ends += ["tracker/templates/home.html", "tracker/static/tracker.css"]
    missing = [end for end in ends if not any(name.endswith(end) for name in names)]
    assert missing == []
    assert not [name for name in names if name.startswith(("tests/", "bench/", "scripts/"))]


def test_commands_of_a_wheel_run_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    """With the wheel alone in a directory of its own, each command says its version."""
    environment = tmp_path / "env"
    # The packages that it needs are those of this environment; the wheel comes first.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    run([*pip, "--prefix", environment, "--ignore-installed", wheel], tmp_path)
    (packages,) = environment.glob("lib*/python*/site-packages")
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); name = sys.argv[0] = sys.argv.pop(1);"
        "module = __import__(f'{name}.cli').cli; assert module.__file__.startswith(sys.path[0]);"
        "module.main()"
    )
    for name in COMMANDS:
        command = [sys.executable, "-c", script, str(packages), name, "--version"]
        assert run(command, tmp_path).startswith(f"{name} (narswarm) ")
    assert sorted(path.name for path in (environment / "bin").iterdir()) == sorted(COMMANDS)


def test_a_source_distribution_builds_the_same_wheel(source: Path, wheel: Path) -> None:
    """A wheel of the source distribution has the files that a wheel of the tree has."""
    build = "import sys; from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    have = subprocess.run(
        [sys.executable, "-c", "import setuptools"], capture_output=True, check=False
    )
    if have.returncode:
        run([sys.executable, "-m", "pip", "install", "--quiet", "setuptools"], source)
    name = run([sys.executable, "-c", build], source).splitlines()[-1]
    with tarfile.open(source / "dist" / name) as archive:
        archive.extractall(source / "unpacked", filter="data")
    (tree,) = (source / "unpacked").iterdir()
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    run([*pip, "--wheel-dir", tree / "dist", tree], tree)
    (again,) = (tree / "dist").glob("narswarm-*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())
