# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts builds and interrupts each of them at a random moment, as ^C does.

    interrupt.py TIMES SEED ITEM...

First one build is left alone, to learn how long it takes; what got finished is deleted, so that
the next one has something to do. Prints how many were finished, and interrupted.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time


def delete(items: list[str]) -> None:
    """Have the items not be there."""
    subprocess.run(["guix", "gc", "-D", *items], capture_output=True, check=False)


def main(times: str, seed: str, *items: str) -> None:
    """Do it."""
    moments = random.Random(seed)  # noqa: S311 -- no secret
    begin = time.monotonic()
    subprocess.run(["guix", "build", *items], check=True, capture_output=True)
    usual = time.monotonic() - begin
    delete(list(items))
    finished = interrupted = 0
    for _ in range(int(times)):
        build = subprocess.Popen(
            ["guix", "build", *items], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            build.wait(moments.uniform(0.4, 1.0) * usual)
        except subprocess.TimeoutExpired:
            build.send_signal(signal.SIGINT)
            build.wait()
            interrupted += 1
        else:
            finished += 1
            delete(list(items))
    print(finished, interrupted)


if __name__ == "__main__":
    main(*sys.argv[1:])
