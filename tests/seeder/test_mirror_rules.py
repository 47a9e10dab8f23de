# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.mirror_rules: what rules say, and the items that they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import narinfo
from narswarm.errors import InvalidInputError, NotFoundError, SettingsError
from narswarm.narinfo import Narinfo
from seeder import mirror_rules
from seeder.mirror_rules import BATCH, Rule, What, items, manifest_items, parse

URL = "https://server.example.org"


def path(number: int) -> str:
    """A store path."""
    return f"/gnu/store/{number:032}-item"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (f"{URL} {path(1)}", Rule(URL, What.PATHS, (path(1),))),
        (f"{URL}/ {path(1)} {path(2)} {path(1)}", Rule(URL, What.PATHS, (path(1), path(2)))),
        (f"{URL}/sub closure {path(1)[11:]}", Rule(f"{URL}/sub", What.CLOSURE, (path(1),))),
        (f"{URL} manifest '/a b/manifest'", Rule(URL, What.MANIFEST, ("/a b/manifest",))),
    ],
)
def test_rules(text: str, rule: Rule) -> None:
    """A server, and paths, or a word and what it is about; written down it is the same rule."""
    assert parse(text) == rule
    assert parse(str(rule)) == rule


FORM = "is not URL (PATH... | closure PATH... | manifest FILE)"


@pytest.mark.parametrize(
    ("text", "subject", "reason"),
    [
        ("", "", FORM),
        (URL, URL, FORM),
        (f"{URL} closure", f"{URL} closure", FORM),
        (f"ftp://h {path(1)}", f"ftp://h {path(1)}", FORM),
        (f"https://u@h {path(1)}", f"https://u@h {path(1)}", FORM),
        (f"{URL}?x {path(1)}", f"{URL}?x {path(1)}", FORM),
        (f"https://[h {path(1)}", f"https://[h {path(1)}", FORM),
        (f"{URL} '{path(1)}", f"{URL} '{path(1)}", FORM),
        (f"{URL} hello", "hello", "is not the name of a store item"),
        (
            f"{URL} manifest list",
            f"{URL} manifest list",
            "names no manifest by its absolute path",
        ),
        (
            f"{URL} manifest /a /b",
            f"{URL} manifest /a /b",
            "names no manifest by its absolute path",
        ),
    ],
)
def test_what_is_no_rule(text: str, subject: str, reason: str) -> None:
    """It is a mistake of whoever wrote it."""
    with pytest.raises(SettingsError) as caught:
        parse(text)
    assert (caught.value.subject, caught.value.reason) == (subject, reason)


WORDS = st.lists(
    st.sampled_from(
        [URL, "http://h", "closure", "manifest", path(1), path(1)[11:], "/a b", "'", "?"]
    )
    | st.text(max_size=5)
)


@given(WORDS)
def test_any_rule(words: list[str]) -> None:
    """Whatever is written is a rule that reads back, or a mistake in the settings."""
    try:
        rule = parse(" ".join(words))
    except SettingsError:
        return
    assert parse(str(rule)) == rule
    assert rule.names


def test_manifests(tmp_path: Path) -> None:
    """A profile, its manifest or a list names items; files below items are none."""
    text = f'(manifest (packages (("a" "1" "out" "{path(1)}")))\n("{path(2)}/share" "{path(1)}"))'
    file = tmp_path / "manifest"
    file.write_text(text)
    assert manifest_items(tmp_path) == manifest_items(file) == [path(1)]
    file.write_text(f"{path(3)}\n# x\n{path(2)}\n")
    assert Rule(URL, What.MANIFEST, (str(file),)).roots() == [path(3), path(2)]


@pytest.mark.parametrize("text", ["", '(specifications->manifest (list "hello"))', "/gnu/store/x"])
def test_manifests_without_items(tmp_path: Path, text: str) -> None:
    """What names packages says nothing of store items."""
    file = tmp_path / "manifest"
    file.write_text(text)
    with pytest.raises(InvalidInputError) as caught:
        manifest_items(file)
    assert str(caught.value) == (
        f"{file}: names no store items; take the manifest of a profile, or a list of store paths"
    )


def test_bounds_of_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that isn't there, or is too long, is an error."""
    file = tmp_path / "list"
    with pytest.raises(NotFoundError) as missing:
        manifest_items(file)
    assert str(missing.value) == f"{file}: No such file or directory"
    monkeypatch.setattr(mirror_rules, "MAX_MANIFEST", len(path(1)))
    file.write_text(path(1))
    assert manifest_items(file) == [path(1)]
    file.write_text(f"{path(1)}\n")
    with pytest.raises(InvalidInputError) as long:
        manifest_items(file)
    assert str(long.value) == f"{file}: is longer than {len(path(1))} bytes"


class Server:
    """Has narinfos of a graph of references."""

    def __init__(self, graph: Mapping[int, Sequence[int]]) -> None:
        self.graph = graph
        self.asked: list[int] = []

    def find(self, paths: Sequence[str]) -> Mapping[str, Narinfo]:
        """Those that it has."""
        found = {}
        self.asked.append(len(paths))
        for each in paths:
            number = int(each[11:43])
            if number in self.graph:
                references = [path(other) for other in self.graph[number]]
                unsigned = narinfo.compose(each, bytes(32), 1, references)
                found[each] = narinfo.parse(unsigned)
        return found


def walk(server: Server, what: What, *numbers: int) -> list[int | str]:
    """The numbers of the items of a rule, and the paths of those that weren't found."""
    found = items(Rule(URL, what, tuple(map(path, numbers))), server.find)
    return [each if isinstance(each, str) else int(each.hash_part) for each in found]


def test_a_closure() -> None:
    """Everything that is referred to comes once, whoever refers to it, itself included."""
    server = Server({1: [1, 2, 3], 2: [3], 3: [4, 5], 5: [1]})
    assert walk(server, What.CLOSURE, 1) == [1, 2, 3, path(4), 5]
    assert walk(server, What.PATHS, 1, 4) == [1, path(4)]


def test_a_large_closure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narinfos are looked up some at a time, and a closure has an end whatever servers say."""
    graph = {0: range(1, BATCH + 3)}
    server = Server(graph | {number: [] for number in range(1, BATCH + 3)})
    assert walk(server, What.CLOSURE, 0) == list(range(BATCH + 3))
    assert server.asked == [1, BATCH, 2]
    monkeypatch.setattr(mirror_rules, "MAX_ITEMS", 3)
    assert walk(server, What.CLOSURE, 0) == [0, 1, 2]
