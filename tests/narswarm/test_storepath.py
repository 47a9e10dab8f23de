# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.storepath`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import storepath
from narswarm.errors import InvalidInputError

HASH = "5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f"


@pytest.mark.parametrize("name", ["lab-app", "a", "+-_?=.", "?query=", "gcc-13.3.0-lib", "x" * 211])
def test_good_names(name: str) -> None:
    """A path and its base name give the same item."""
    item = storepath.parse(f"/gnu/store/{HASH}-{name}")
    assert item == storepath.parse(f"{HASH}-{name}") == (HASH, name)
    assert item.base_name == f"{HASH}-{name}"
    assert item.path == str(item) == f"/gnu/store/{HASH}-{name}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/gnu/store",
        "/gnu/store/",
        "/gnu/store/.links",
        HASH,
        f"{HASH}-",
        f"{HASH}-.",
        f"{HASH}-..",
        f"{HASH}-.hidden",
        f"{HASH[1:]}-short",
        f"0{HASH}-long",
        f"e{HASH[1:]}-letter",
        f"{HASH.upper()}-case",
        f"{HASH}_underscore",
        f"{HASH}-a/b",
        f"{HASH}-a/",
        f"{HASH}-a\n",
        f"{HASH}-a b",
        f"{HASH}-a\0",
        f"{HASH}-é",
        f"{HASH}-a,b",
        f"{HASH}-" + "x" * 212,
        f"/nix/store/{HASH}-other-store",
        f"/gnu/store//{HASH}-slashes",
        f"/gnu/store/../{HASH}-dots",
        f" {HASH}-blank",
    ],
)
def test_bad_names(text: str) -> None:
    """Whatever the daemon would not have named an item is refused."""
    with pytest.raises(InvalidInputError) as error:
        storepath.parse(text)
    assert str(error.value) == f"{text}: is not the name of a store item"


@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    """An accepted text is the path or the base name that the result gives back."""
    for candidate in (text, f"{HASH}-{text}", f"/gnu/store/{HASH}-{text}"):
        try:
            item = storepath.parse(candidate)
        except InvalidInputError:
            continue
        assert candidate in (item.path, item.base_name)
        assert "/" not in item.base_name


@pytest.mark.parametrize(
    ("text", "good"),
    [(HASH, True), (HASH[1:], False), (HASH + "0", False), (HASH + "\n", False), ("e" * 32, False)],
)
def test_hash_parts(text: str, good: bool) -> None:
    """A hash part is exactly 32 digits."""
    assert storepath.is_hash_part(text) is good
