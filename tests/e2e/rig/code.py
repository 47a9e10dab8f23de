# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs under test, as the nodes have them.

They are in /opt/narswarm, compiled by the nodes' own Python as an installed package would be: a
substituter that had to be compiled at each start would be another program.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[2]

LIBRARY = "narswarm"
PROGRAMS = ("mkmeta", "tracker", "seeder", "substituter")

LAUNCHER = """\
#!/usr/bin/python3 -P
import sys
sys.path.insert(0, "/opt/narswarm")
from {program}.cli import main
main()
"""

_COMPILE = """
mount --bind "$1/opt" "$2/opt" && mount --bind "$1/usr/local" "$2/usr/local" &&
chroot "$2" python3 -m compileall -q /opt /usr/local/lib
"""


def install(template: Path, rootfs: Path, writable: Sequence[str]) -> None:
    """Make a template of the directories that each node has for itself, with the code in them."""
    for directory in writable:
        target = template / directory
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", rootfs / directory, target], check=True)
    opt = template / "opt"
    ignore = shutil.ignore_patterns("__pycache__")
    for package in (LIBRARY, *PROGRAMS):
        shutil.copytree(CHECKOUT / package, opt / "narswarm" / package, ignore=ignore)
    shutil.copytree(HERE, opt / "rig", ignore=ignore)
    # The checkout may be readable for its owner only; the daemon's user is somebody else.
    subprocess.run(["chmod", "-R", "a+rX,go-w", opt], check=True)
    subprocess.run(["chown", "-R", "0:0", opt], check=True)
    for program in PROGRAMS:
        launcher = template / "usr/local/bin" / program
        launcher.write_text(LAUNCHER.format(program=program))
        launcher.chmod(0o755)
    command = ["unshare", "--mount", "sh", "-c", _COMPILE, "sh", str(template), str(rootfs)]
    subprocess.run(command, check=True)
