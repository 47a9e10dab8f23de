# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.challenge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from narswarm import base32, gcrypt, narinfo
from narswarm.guixdb import DbItem
from narswarm.narinfo import Verdict
from substituter import challenge
from substituter.challenge import Outcome
from substituter.survey import Said
from tests.substituter.conftest import Item

Make = Callable[..., Item]
KEYS = [gcrypt.generate_key() for _ in range(2)]


def said(item: Item, size: int, key: int, verdict: Verdict = Verdict.VALID_SIGNATURE) -> Said:
    """A narinfo with another size, by one of two keys."""
    unsigned = narinfo.compose(item.path, item.nar_hash, size, ())
    parsed = narinfo.parse(narinfo.sign(unsigned, KEYS[key], "test"))
    return Said(f"http://{key}", bool(key), parsed, verdict)


def here(item: Item, size: int) -> DbItem:
    """The item in this store."""
    return DbItem(1, item.path, item.nar_hash, size, None, 0)


OK, STRANGER = Verdict.VALID_SIGNATURE, Verdict.UNAUTHORIZED_KEY


@pytest.mark.parametrize(
    ("answers", "local", "outcome"),
    [
        ([], None, Outcome.UNKNOWN),
        ([], 1, Outcome.ALONE),
        ([(1, 0, OK)], None, Outcome.ALONE),
        ([(1, 0, OK), (1, 0, OK)], None, Outcome.ALONE),  # the same key at two servers
        ([(1, 0, OK), (1, 1, OK)], None, Outcome.AGREEMENT),
        ([(1, 0, OK)], 1, Outcome.AGREEMENT),
        ([(1, 0, OK)], 2, Outcome.DISAGREEMENT),
        ([(1, 0, OK), (2, 1, OK)], None, Outcome.DISAGREEMENT),
        ([(1, 0, OK), (2, 1, STRANGER)], 1, Outcome.AGREEMENT),
        ([(2, 1, STRANGER)], None, Outcome.UNKNOWN),
    ],
)
def test_outcomes(
    make_item: Make,
    answers: list[tuple[int, int, Verdict]],
    local: int | None,
    outcome: Outcome,
) -> None:
    """Authorised keys and this store count, a key once; strangers raise no alarm."""
    item = make_item("a")
    store = {item.path: here(item, local) if local else None}
    given = {item.path: [said(item, *each) for each in answers]}
    (found,) = challenge.challenge(given, store)
    assert found.outcome is outcome


def test_what_people_see(make_item: Make) -> None:
    """The outcome, then who says what; strangers are marked."""
    item = make_item("a")
    given = {item.path: [said(item, 1, 0), said(item, 2, 1, STRANGER)]}
    (found,) = challenge.challenge(given, {item.path: here(item, 2)})
    digest = base32.format_hash(item.nar_hash)
    assert challenge.lines(found) == [
        f"DISAGREEMENT: {item.path}",
        f"  {digest}  this store",
        f"  {digest}  http://0",
        f"  {digest}  http://1 (tracker) (unauthorized-key, doesn't count)",
        "  the hashes are the same: sizes or references differ",
    ]
    assert challenge.summary([found]) == "1 items: 0 agree, 1 DISAGREE, 0 with one voice, 0 unknown"
    shown = challenge.describe(found)
    assert (shown["outcome"], shown["keys"], shown["local"]) == ("disagreement", 1, digest)
    assert [each["nar_size"] for each in shown["said"]] == [1, 2]
