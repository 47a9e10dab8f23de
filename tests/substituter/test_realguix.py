# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.realguix, with scripts in guix's place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from narswarm.errors import NotFoundError
from substituter import realguix

ITEM = "/gnu/store/5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f-lab-app"


def script(path: Path, text: str) -> str:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_configured_guix_comes_first(tmp_path: Path) -> None:
    """What the settings name is taken, if it can be run."""
    guix = script(tmp_path / "guix", "true")
    assert realguix.find(Path(guix), {"PATH": ""}) == guix


def test_a_guix_on_the_path_is_found(tmp_path: Path) -> None:
    """Without a setting, PATH is searched."""
    guix = script(tmp_path / "guix", "true")
    assert realguix.find(None, {"PATH": str(tmp_path)}) == guix
    assert realguix.find(tmp_path / "missing", {"PATH": str(tmp_path)}) == guix


def test_this_program_is_never_taken_for_guix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When `guix` on PATH is a link to this program, it would run itself for ever."""
    ourselves = script(tmp_path / "substituter", "true")
    (tmp_path / "guix").symlink_to("substituter")
    monkeypatch.setattr(sys, "argv", [ourselves])
    monkeypatch.setattr(realguix, "_USUAL", ())
    with pytest.raises(NotFoundError) as caught:
        realguix.find(None, {"PATH": str(tmp_path)})
    assert str(caught.value) == "guix: the real one is neither configured nor in a usual place"


def test_the_real_guix_is_not_led_back_here() -> None:
    """What makes guix or its daemon run this program is taken out of the environment."""
    environ = {"GUIX_EXTENSIONS_PATH": "/x", "GUIX": "/y", "_NIX_OPTIONS": "z", "HOME": "/root"}
    assert realguix.environment(environ) == {"_NIX_OPTIONS": "z", "HOME": "/root"}


def test_its_status_is_read_from_descriptor_4(tmp_path: Path) -> None:
    """The helper gets the daemon's line on 0 and answers on 4."""
    guix = script(
        tmp_path / "guix", 'test "$1 $2" = "substitute --substitute"; read l; echo "$l" >&4'
    )
    assert realguix.substitute(guix, ITEM, f"{ITEM}.tmp", os.environ) == (
        f"substitute {ITEM} {ITEM}.tmp\n".encode()
    )


@pytest.mark.parametrize("text", ["exit 1", "read l", "read l; printf partial >&4"])
def test_a_helper_that_dies_has_no_status(tmp_path: Path, text: str) -> None:
    """Ending before, after or within its answer gives none."""
    assert realguix.substitute(script(tmp_path / "guix", text), ITEM, ITEM, os.environ) == b""


def test_a_guix_that_cannot_run_has_no_status(tmp_path: Path) -> None:
    """Nor has one that isn't there."""
    assert realguix.substitute(str(tmp_path / "none"), ITEM, ITEM, os.environ) == b""


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """A session of thousands of items doesn't run out of them."""
    guix = script(tmp_path / "guix", "read l; echo not-found >&4")
    before = os.listdir("/proc/self/fd")
    for name in (guix, str(tmp_path / "none")):
        realguix.substitute(name, ITEM, ITEM, os.environ)
    assert os.listdir("/proc/self/fd") == before


def test_handing_over_replaces_the_process(tmp_path: Path) -> None:
    """The real one gets the arguments, and the caller is gone."""
    guix = script(tmp_path / "guix", 'echo "$@"; exit 3')
    code = f"from substituter import realguix; realguix.hand_over({guix!r}, ['gc', '-x'], {{}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "gc -x\n")
