# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of the documents, as somebody follows them who does what they say."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_DOCS = Path(__file__).resolve().parents[2] / "docs"
DISASTERS = _DOCS / "disasters.md"
OPERATOR = _DOCS / "operator.md"
#: What the documents call the machine that Ansible runs on.
HERE = "here"
#: The fleet's machines, as docs/disasters.md calls them.
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


def blocks(document: Path, title: str, names: Mapping[str, str] = NAMES) -> list[Block]:
    """All commands under a heading, in their order.

    Args:
        document: what is followed.
        title: of the section.
        names: what to put in the place of a machine's name.
    """
    _, _, rest = document.read_text().partition(f"\n## {title}\n")
    section = rest.partition("\n## ")[0]
    found = []
    for _, text in _BLOCK.findall(section):
        for long, short in names.items():
            text = text.replace(long, short)  # noqa: PLW2901  one after the other
        first, _, script = textwrap.dedent(text).partition("\n")
        found.append(Block(first.removeprefix("# "), script))
    return found
