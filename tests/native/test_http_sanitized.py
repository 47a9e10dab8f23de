# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP front under the compiler's sanitizers: no request touches memory that isn't its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests import needs

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tracker/native"
ROUNDS = 2000
DEADLINE = 600
_NEEDS_PYTHON = '#include "binding.h"'


def test_random_requests(tmp_path: Path) -> None:
    """Requests by chance, whole and broken, over many connections, are served without a report."""
    driver = tmp_path / "driver"
    files = [path for path in sorted(SOURCES.glob("*.c")) if _NEEDS_PYTHON not in path.read_text()]
    flags = ["-std=c11", "-g", "-O1", "-pthread", "-fno-sanitize-recover=all"]
    flags += ["-fsanitize=address,undefined", f"-I{SOURCES}"]
    subprocess.run(
        [needs.program("gcc"), *flags, "-o", driver, ROOT / "tests/native/http_driver.c", *files],
        check=True,
    )
    finished = subprocess.run(
        [driver, "7", str(ROUNDS)], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert int(finished.stdout) > ROUNDS // 4
