# SPDX-License-Identifier: GPL-3.0-or-later
"""What a test needs of its machine: skipped with a reason where it is missing, but not in CI.

CI has everything, so there a missing program is a failure; with one exception, a package that the
distribution's archive doesn't offer that day, which `.ci/run` names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from tracker.native import AVAILABLE


def program(name: str, package: str | None = None, *, folders: Sequence[str] = ()) -> str:
    """Where a program is.

    Args:
        name: of its file.
        package: Debian's package that has it, when that is called otherwise.
        folders: where to look besides PATH; patterns such as `/usr/lib/postgresql/*/bin`.
    """
    found = shutil.which(name)
    for pattern in folders:
        paths = sorted(str(path) for path in Path("/").glob(f"{pattern.lstrip('/')}/{name}"))
        found = found or (paths[-1] if paths else None)
    if found is None:
        missing(f"{name} is not installed", package or name)
    return found


def native() -> None:
    """A test of the tracker's native engine, which is built with gcc and Python's headers."""
    if not AVAILABLE:
        missing("the native engine of the tracker is not built")


def root() -> None:
    """A test that makes namespaces, mounts or users."""
    if os.geteuid() != 0:
        missing("needs root")


def missing(reason: str, package: str | None = None) -> NoReturn:
    """Skip the test for this reason, or fail it in CI.

    Args:
        reason: what a person reads.
        package: Debian's package that would help.
    """
    lacks = os.environ.get("NARSWARM_ARCHIVE_LACKS", "").split()
    if os.environ.get("CI") == "true" and package not in lacks:
        pytest.fail(f"CI must have this: {reason}")
    pytest.skip(reason)
