# SPDX-License-Identifier: GPL-3.0-or-later
"""What adversaries do to the substituter, and what becomes of it, case by case.

`test_adversaries.py` plays each case against the program. `docs/adversaries.md` is made of this:

    python3 -m tests.conformance.adversary_cases > docs/adversaries.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.conformance import adversary_servers, adversary_swarm, adversary_trackers
from tests.conformance.adversary_table import Case

CASES: tuple[Case, ...] = (
    *adversary_servers.CASES,
    *adversary_trackers.CASES,
    *adversary_swarm.CASES,
)
"""All of them, in the order of the documentation."""


def render() -> Iterator[str]:
    """The lines of docs/adversaries.md."""
    yield "# Adversaries"
    yield ""
    yield "<!-- Made by python3 -m tests.conformance.adversary_cases; not to be edited. -->"
    yield ""
    yield "Each line is a test against the program as guix-daemon starts it. In all of them nothing"
    yield "outside of the item's own place is touched, nothing is left behind there or among the"
    yield "downloads, memory stays below 200 MB, and the same session substitutes the next item."
    yield ""
    yield f"There are {len(CASES)}; where an item fails, the real guix is asked at the end."
    who = ""
    for each in CASES:
        if each.who != who:
            who = each.who
            yield ""
            yield f"## {who}"
            yield ""
            yield "| what it does | the item | what bounds it |"
            yield "|---|---|---|"
        yield f"| {each.attack} | {each.outcome} | {each.bound} |"


def main() -> None:
    """Write the page."""
    sys.stdout.write("\n".join(render()) + "\n")


if __name__ == "__main__":
    main()
