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

#: Versions of Python that wheels are made for: of Debian 12, Ubuntu 24.04 and Debian 13.
PYTHONS = ("3.11", "3.12", "3.13")
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
    options = [
        [f"--python-version={python}", *(f"--platform={each}" for each in _PLATFORMS)]
        for python in PYTHONS
    ]
    return _kept(cache, sorted([*needed, *_BEFORE_3_11_3]), options)


def operators(cache: Path) -> Path:
    """A directory of wheels with what an operator's machine needs to make a wheel and deploy it.

    Raises:
        RigError: pip can't get them.
    """
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    return _kept(cache, ["ansible-core", "wheel", *project["build-system"]["requires"]], [[]])


def _kept(cache: Path, wanted: list[str], options: list[list[str]]) -> Path:
    """A directory that pip was asked to fill, once with each of these options."""
    name = hashlib.sha256(repr((wanted, options)).encode()).hexdigest()[:16]
    path = cache / f"wheels-{name}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_dir():
            new = path.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            for each in options:
                command = [sys.executable, "-m", "pip", "download", "--quiet"]
                command += ["--only-binary=:all:", f"--dest={new}", *each, *wanted]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RigError(f"{' '.join(command)}: {done.stderr.strip()}")
            new.rename(path)
    return path


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
