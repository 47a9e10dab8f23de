# SPDX-License-Identifier: GPL-3.0-or-later
"""Wheels of the checkout in several versions, and of everything it needs."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.rig.rootfs import RigError

CHECKOUT = Path(__file__).resolve().parents[2]

#: Versions of Python that the machines have and wheels are made for, Debian 12's and 13's.
PYTHONS = ("3.11", "3.13")
_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
#: pip judges conditions by the Python that it runs on, which is later than Debian 12's 3.11.2.
_BEFORE_3_11_3 = ("async-timeout>=4.0.3",)
_PACKAGES = ("narswarm", "mkmeta", "tracker", "seeder", "substituter")


def wheelhouse(cache: Path) -> Path:
    """A directory of wheels with all that narswarm needs, kept until that changes.

    Raises:
        RigError: pip can't get them.
    """
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["scale"]]
    wanted = sorted([*needed, *_BEFORE_3_11_3])
    name = hashlib.sha256(repr((wanted, PYTHONS, _PLATFORMS)).encode()).hexdigest()[:16]
    path = cache / f"wheels-{name}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_dir():
            _download(wanted, path)
    return path


def _download(wanted: list[str], path: Path) -> None:
    new = path.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    for python in PYTHONS:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
        command += [f"--dest={new}", f"--python-version={python}"]
        command += [f"--platform={each}" for each in _PLATFORMS]
        done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RigError(f"{' '.join(command)}: {done.stderr.strip()}")
    new.rename(path)


def build(target: Path, version: str, changes: Mapping[str, tuple[str, str]]) -> Path:
    """A wheel of the checkout.

    Args:
        target: where it is made.
        version: what it calls itself.
        changes: by file, what is to be found in it, and what to put there instead.
    """
    source = target / f"source-{version}"
    source.mkdir(parents=True)
    for package in _PACKAGES:
        shutil.copytree(
            CHECKOUT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(CHECKOUT / file, source / file)
    for folder in ("man", "completions"):
        shutil.copytree(CHECKOUT / folder, source / folder)
    project = source / "pyproject.toml"
    project.write_text(
        re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text())
    )
    for name, (old, new) in changes.items():
        changed = source / name
        text = changed.read_text()
        assert old in text, f"{name} has no {old!r}"
        changed.write_text(text.replace(old, new))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"-w{target}"]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(f"{' '.join(command)}: {done.stderr.strip()}")
    (wheel,) = target.glob(f"narswarm-{version}-*.whl")
    return wheel
