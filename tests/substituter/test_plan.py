# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.plan."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from substituter import plan
from substituter.plan import PlanWriter, prune, read


def test_what_was_asked_first_is_substituted_last(tmp_path: Path) -> None:
    """References are asked about after what refers to them, and substituted before it."""
    writer = PlanWriter(tmp_path / "plans", 7)
    writer.add(["a", "b", "a"])
    writer.add(["b", "c"])
    assert read(tmp_path / "plans", 7) == ["c", "b", "a"]
    assert read(tmp_path / "plans", 8) == []


def test_helpers_of_one_session_share_it(tmp_path: Path) -> None:
    """Both are children of the same process, which tells sessions apart."""
    PlanWriter(tmp_path).add(["a"])
    assert read(tmp_path) == ["a"]
    assert (tmp_path / str(os.getppid())).exists()


def test_an_older_session_of_the_same_number_is_forgotten(tmp_path: Path) -> None:
    """Process numbers are used again."""
    PlanWriter(tmp_path, 7).add(["old"])
    PlanWriter(tmp_path, 7).add(["new"])
    assert read(tmp_path, 7) == ["new"]


def test_a_plan_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond is fetched when its time comes."""
    monkeypatch.setattr(plan, "MAX_ITEMS", 3)
    writer = PlanWriter(tmp_path, 7)
    writer.add(["a", "b"])
    writer.add(["c", "d"])
    writer.add(["e"])
    assert read(tmp_path, 7) == ["c", "b", "a"]


def test_without_a_place_there_is_no_plan(tmp_path: Path) -> None:
    """Only speed is lost; names that no store path has are passed over as well."""
    (tmp_path / "file").touch()
    PlanWriter(tmp_path / "file", 7).add(["a"])
    PlanWriter(tmp_path, 7).add(["\udcff"])
    assert read(tmp_path / "file", 7) == []
    assert read(tmp_path, 7) == []


def test_plans_of_ended_sessions_are_removed(tmp_path: Path) -> None:
    """As are those that nobody has touched for a day."""
    now = 1e9
    for name in (str(os.getpid()), "4194305", "other"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now, now))
    prune(tmp_path, now)
    assert {file.name for file in tmp_path.iterdir()} == {str(os.getpid()), "other"}
    prune(tmp_path, now + 86401)
    assert list(tmp_path.iterdir()) == []
    prune(tmp_path / "none", now)
