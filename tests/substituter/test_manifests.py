# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.manifests."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from narswarm.errors import InvalidInputError, NarswarmError, NotFoundError
from substituter import manifests

A = "/gnu/store/" + "a" * 32 + "-one-1.0"
B = "/gnu/store/" + "b" * 32 + "-two"

PROFILE = f'''
;; This file was automatically generated; "not a text
(manifest
  (version 4)
  (packages
    (("one" "1.0" "out" "{A}"
      (search-paths (("PATH" ("bin") ":" directory #f)))
      (x "{A}/bin" "say \\"{B}\\""))
     ("two" "2" "out" (item "{B}")) ; "{A}x"
     ("one" "1.0" "lib" "{A}"))))
'''


def test_the_manifest_of_a_profile() -> None:
    """Every text that is a store item counts, once; files of items and comments don't."""
    assert manifests.parse(PROFILE, "manifest") == [A, B]


def test_lists_and_arguments(tmp_path: Path) -> None:
    """Arguments, standard input and a list are put together in their order, each item once."""
    listed = tmp_path / "list"
    listed.write_text(f"# mine\n\n  {B}\n{A}\n")
    (tmp_path / "profile").symlink_to(f"{A}/bin/one")
    wanted = manifests.items(
        [f"{B}/share/x", "-", str(tmp_path / "profile")], listed, io.StringIO(f"{B}\n")
    )
    assert wanted == [B, A]


def test_a_profile_is_a_directory(tmp_path: Path) -> None:
    """A profile has its manifest inside."""
    (tmp_path / "manifest").write_text(PROFILE)
    assert manifests.items([], tmp_path) == [A, B]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            '(specifications->manifest (list "hello"))',
            (
                "f: names packages, not store items; take the manifest of a profile, such as "
                "~/.guix-profile/manifest"
            ),
        ),
        ("(manifest (version 4) (packages ()))", "f: names no store items"),
        ("/etc/hostname\n", "/etc/hostname: is not in the store"),
        ("/gnu/store/x\n", "x: is not the name of a store item"),
        ("x" * (manifests.MAX_BYTES + 1), "f: is longer than 67108864 bytes"),
    ],
)
def test_what_names_no_items(text: str, error: str) -> None:
    """The error says what to take instead."""
    with pytest.raises(InvalidInputError) as caught:
        manifests.parse(text, "f")
    assert str(caught.value) == error


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """It is named."""
    with pytest.raises(NotFoundError) as caught:
        manifests.items([], tmp_path / "x")
    assert str(caught.value) == f"{tmp_path / 'x'}: No such file or directory"


def test_too_many_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a limit to what is asked about."""
    monkeypatch.setattr(manifests, "MAX_ITEMS", 1)
    assert manifests.items([A]) == [A]
    with pytest.raises(NarswarmError, match=r"^items: are more than 1$"):
        manifests.items([A, B])
