# SPDX-License-Identifier: GPL-3.0-or-later
"""A share of a core for processes, by the kernel's control groups (version 1 or 2); needs root.

A server that answers faster than its load generator asks is measured as fast as the generator.
With a share of its core it is the one that is busy, and what it answers is what it can do.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

PERIOD_US = 10_000
ROOT = Path("/sys/fs/cgroup")
PATIENCE = 10.0


@contextlib.contextmanager
def limited(pids: list[int], share: float) -> Iterator[None]:
    """Give processes a share of one core, until the block ends.

    Raises:
        OSError: control groups can't be written here.
    """
    one = ROOT / "cpu"
    top = one if one.is_dir() else ROOT
    group = top / f"narswarm-bench-{os.getpid()}"
    if top is ROOT:
        (ROOT / "cgroup.subtree_control").write_text("+cpu")
    group.mkdir()
    try:
        quota = int(PERIOD_US * share)
        if top is one:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        move(pids, group)
        yield
        move(pids, top)
    finally:
        remove(group)


def move(pids: list[int], group: Path) -> None:
    """Put processes, with their threads, into a group."""
    for pid in pids:
        (group / "cgroup.procs").write_text(str(pid))


def remove(group: Path) -> None:
    """Remove a group as soon as what was in it has left or ended."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return
