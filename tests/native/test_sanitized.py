# SPDX-License-Identifier: GPL-3.0-or-later
"""Swarms and UDP in C under the sanitizers, fed with whatever may come from the network."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import needs
from tests.processes import ROOT

SOURCES = ("connection_id", "decisions", "hashset", "pool", "survey", "swarms", "udp")
DEADLINE = 600


@pytest.fixture(scope="module", name="fuzz")
def fuzz_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, which the compiler has nothing to say about."""
    program = tmp_path_factory.mktemp("fuzz") / "udp_fuzz"
    native = ROOT / "tracker/native"
    command = [
        *(needs.program("gcc"), "-std=c11", "-g", "-O1", "-pthread"),
        *("-Wall", "-Wextra", "-Wconversion", "-Werror"),
        *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        *(f"-I{native}", "-o", str(program), str(ROOT / "tests/native/udp_fuzz.c")),
        *(str(native / f"{name}.c") for name in SOURCES),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize("seed", range(4))
def test_random_datagrams(fuzz: Path, seed: int) -> None:
    """Nothing is read or written that isn't its own, nothing is lost, and the counts add up."""
    done = subprocess.run(
        [str(fuzz), str(seed), "30000"],
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)
