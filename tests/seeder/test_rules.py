# SPDX-License-Identifier: GPL-3.0-or-later
"""Which items their owner wants to offer."""

from __future__ import annotations

import pytest

from seeder.inventory import Item
from seeder.items import EXCLUDED
from seeder.rules import TOO_LARGE, TOO_SMALL, Rules


def item(name: str, size: int = 100) -> Item:
    """An item of the store."""
    return Item(1, f"/gnu/store/{'0' * 32}-{name}", bytes(32), size)


@pytest.mark.parametrize(
    ("rules", "name", "reason"),
    [
        (Rules(), "hello-2.12", None),
        (Rules(include=["hello-*"]), "hello-2.12", None),
        (Rules(include=["hello-*"]), "hallo-2.12", EXCLUDED),
        (Rules(include=["hello"]), "hello-2.12", EXCLUDED),
        (Rules(include=["emacs-*", "h*"]), "hello-2.12", None),
        (Rules(exclude=["*-2.12"]), "hello-2.12", EXCLUDED),
        (Rules(include=["hello*"], exclude=["*2.12"]), "hello-2.12", EXCLUDED),
        (Rules(exclude=["HELLO*"]), "hello-2.12", None),
        (Rules(exclude=["[a-z]ello?2.12"]), "hello-2.12", EXCLUDED),
        (Rules(exclude=["0*"]), "hello-2.12", None),
        (Rules(min_size=100), "x", None),
        (Rules(min_size=101), "x", TOO_SMALL),
        (Rules(max_size=100), "x", None),
        (Rules(max_size=99), "x", TOO_LARGE),
    ],
)
def test_rules(rules: Rules, name: str, reason: str | None) -> None:
    """Globs are about the whole name without the hash part; what is excluded stays excluded."""
    assert rules.against(item(name)) == reason


def test_changed_rules_are_noticed() -> None:
    """The text is the same for the same rules, and another one for others."""
    texts = {
        Rules().text,
        Rules(include=["a"]).text,
        Rules(exclude=["a"]).text,
        Rules(min_size=1).text,
        Rules(max_size=1).text,
    }
    assert len(texts) == 5
    assert Rules(include=["a"]).text in texts
