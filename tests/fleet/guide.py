# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of docs/disasters.md, as somebody follows them who does what it says."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

GUIDE = Path(__file__).resolve().parents[2] / "docs/disasters.md"
#: What the guide calls the machine that Ansible runs on.
HERE = "here"
#: The guide's machines.
NAMES = {
    "tracker1.example.org": "t1",
    "tracker2.example.org": "t2",
    "box1.example.org": "s1",
    "box2.example.org": "s2",
}

_BLOCK = re.compile(r"^( *)```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """Commands that belong together.

    Attributes:
        where: `HERE`, or the name of a machine.
        script: the commands, with the machines' names.
    """

    where: str
    script: str


def blocks(title: str) -> list[Block]:
    """All commands under a heading, in their order."""
    _, _, rest = GUIDE.read_text().partition(f"\n## {title}\n")
    section = rest.partition("\n## ")[0]
    found = []
    for _, text in _BLOCK.findall(section):
        for long, short in NAMES.items():
            text = text.replace(long, short)  # noqa: PLW2901  one after the other
        first, _, script = textwrap.dedent(text).partition("\n")
        found.append(Block(first.removeprefix("# "), script))
    return found
