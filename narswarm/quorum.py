# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether several keys agree on what a store item is.

One key that is stolen, or one build farm that is broken into, can sign anything. Who authorises
several may want a number of them to have built the same, bit by bit, before it is believed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from narswarm import base32, sexp
from narswarm.narinfo import Narinfo


class Opinion(NamedTuple):
    """A NAR, and the keys that signed that it is the item's.

    Attributes:
        narinfo: the first that says so.
        keys: canonical public keys.
    """

    narinfo: Narinfo
    keys: frozenset[bytes]


def opinions(narinfos: Iterable[Narinfo]) -> list[Opinion]:
    """Sort narinfos of one item, all signed by authorised keys, by what they say.

    Those that say the same name the same hash, size and references. The opinion that most keys
    share comes first; of equal ones that which came first.
    """
    grouped: dict[tuple[bytes, int, frozenset[str]], Opinion] = {}
    for narinfo in narinfos:
        said = (narinfo.nar_hash, narinfo.nar_size, frozenset(narinfo.references))
        key = _key(narinfo)
        if key is None:
            continue
        before = grouped.get(said, Opinion(narinfo, frozenset()))
        grouped[said] = before._replace(keys=before.keys | {key})
    return sorted(grouped.values(), key=lambda opinion: -len(opinion.keys))


def agreed(found: list[Opinion], quorum: int) -> Narinfo | None:
    """What enough keys say; None if too few do, or as many say something else.

    Args:
        found: from `opinions`.
        quorum: number of different keys.
    """
    if not found or len(found[0].keys) < quorum:
        return None
    if len(found) > 1 and len(found[1].keys) >= quorum:
        return None
    return found[0].narinfo


def disagreement(found: list[Opinion]) -> str | None:
    """What to tell the user of keys that don't agree; None when they do."""
    if len(found) < 2:
        return None
    said = "; ".join(
        f"{base32.format_hash(opinion.narinfo.nar_hash)} by {', '.join(sorted(_names(opinion)))}"
        for opinion in found
    )
    return f"{found[0].narinfo.store_path}: KEYS DISAGREE: {said}"


def _key(narinfo: Narinfo) -> bytes | None:
    tree = sexp.parse(narinfo.signature, "signature") if narinfo.signature else None
    key = sexp.find(tree, b"public-key") if tree is not None else None
    return sexp.canonical(key) if key is not None else None


def _names(opinion: Opinion) -> list[str]:
    """The beginning of each key's number, as the ACL shows it."""
    names = []
    for key in opinion.keys:
        found = sexp.find(sexp.parse(key, "key"), b"q") or sexp.find(sexp.parse(key, "key"), b"n")
        value = found[1] if found and len(found) > 1 else b""
        names.append(f"#{value.hex().upper()[:16]}…#" if isinstance(value, bytes) else "?")
    return names
