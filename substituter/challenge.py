# SPDX-License-Identifier: GPL-3.0-or-later
"""`substituter challenge`: who signed what, and whether they and this store agree.

A build that comes out alike for several who built it by themselves is one that nobody has tampered
with. Only those whose keys are authorised, and the store of this machine, can disagree: what
strangers say is shown, but must not raise an alarm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from narswarm import base32, quorum
from narswarm.guixdb import DbItem
from narswarm.quorum import Opinion
from substituter.survey import Said

LOCAL = "this store"


class Outcome(StrEnum):
    """What came out."""

    AGREEMENT = "agreement"
    """Two or more, this store among them maybe, say the same."""
    ALONE = "alone"
    """Only one says anything."""
    DISAGREEMENT = "DISAGREEMENT"
    UNKNOWN = "unknown"
    """Nobody whose word counts has the item."""


class Challenged(NamedTuple):
    """An item.

    Attributes:
        path: of it.
        local: what this machine's database says, None where the item isn't there.
        said: what servers say.
        opinions: what authorised keys say, the most common first.
    """

    path: str
    local: DbItem | None
    said: Sequence[Said]
    opinions: Sequence[Opinion]

    @property
    def outcome(self) -> Outcome:
        """Whether those whose word counts agree."""
        claims = {(each.narinfo.nar_hash, each.narinfo.nar_size) for each in self.opinions}
        if self.local is not None:
            claims.add((self.local.nar_hash, self.local.nar_size))
        if len(claims) > 1 or len(self.opinions) > 1:
            return Outcome.DISAGREEMENT
        voices = len(self.opinions[0].keys) if self.opinions else 0
        voices += self.local is not None
        if not voices:
            return Outcome.UNKNOWN
        return Outcome.ALONE if voices == 1 else Outcome.AGREEMENT


def challenge(
    said: Mapping[str, Sequence[Said]], local: Mapping[str, DbItem | None]
) -> list[Challenged]:
    """Compare what servers say of items with each other and with this store."""
    return [
        Challenged(
            path,
            local.get(path),
            each,
            quorum.opinions(one.narinfo for one in each if one.is_authorised),
        )
        for path, each in said.items()
    ]


def describe(each: Challenged) -> dict[str, Any]:
    """An item for programs."""
    return {
        "path": each.path,
        "outcome": str(each.outcome).lower(),
        "local": base32.format_hash(each.local.nar_hash) if each.local else None,
        "keys": len(each.opinions[0].keys) if each.opinions else 0,
        "said": [
            {
                "server": said.source,
                "mirror": said.is_mirror,
                "verdict": str(said.verdict),
                "nar_hash": base32.format_hash(said.narinfo.nar_hash),
                "nar_size": said.narinfo.nar_size,
                "references": list(said.narinfo.references),
            }
            for said in each.said
        ],
    }


def lines(each: Challenged) -> list[str]:
    """An item for people: the outcome, then who says what."""
    shown = [f"{each.outcome}: {each.path}"]
    rows = [] if each.local is None else [(base32.format_hash(each.local.nar_hash), LOCAL)]
    for said in each.said:
        source = f"{said.source}{' (tracker)' if said.is_mirror else ''}"
        if not said.is_authorised:
            source += f" ({said.verdict}, doesn't count)"
        rows.append((base32.format_hash(said.narinfo.nar_hash), source))
    shown += [f"  {nar_hash}  {source}" for nar_hash, source in rows]
    if each.outcome is Outcome.DISAGREEMENT and len({nar_hash for nar_hash, _ in rows}) == 1:
        shown.append("  the hashes are the same: sizes or references differ")
    return shown


def summary(found: Sequence[Challenged]) -> str:
    """The line at the end."""
    counts = {outcome: sum(each.outcome is outcome for each in found) for outcome in Outcome}
    return (
        f"{len(found)} items: {counts[Outcome.AGREEMENT]} agree, "
        f"{counts[Outcome.DISAGREEMENT]} DISAGREE, {counts[Outcome.ALONE]} with one voice, "
        f"{counts[Outcome.UNKNOWN]} unknown"
    )
