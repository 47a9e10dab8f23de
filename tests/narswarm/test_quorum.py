# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.quorum."""

from __future__ import annotations

import pytest

from narswarm import gcrypt, narinfo, quorum
from narswarm.narinfo import Narinfo

PATH = f"/gnu/store/{'0' * 32}-item"
KEYS = [gcrypt.generate_key() for _ in range(3)]


def signed(key: int, what: int = 0, references: tuple[str, ...] = ()) -> Narinfo:
    """What a key says of the item."""
    unsigned = narinfo.compose(PATH, bytes([what]) * 32, 100, references)
    return narinfo.parse(narinfo.sign(unsigned, KEYS[key], "host"))


@pytest.mark.parametrize(
    ("said", "needed", "result"),
    [
        ([], 1, None),
        ([(0, 0)], 1, 0),
        ([(0, 0)], 2, None),
        ([(0, 0), (0, 0)], 2, None),
        ([(0, 0), (1, 0)], 2, 0),
        ([(0, 0), (1, 1)], 2, None),
        ([(0, 1), (1, 0), (2, 0)], 2, 0),
        ([(0, 1), (1, 0), (2, 0)], 1, None),
        ([(0, 0), (1, 0), (2, 0)], 3, 0),
        ([(0, 0), (1, 0), (2, 1)], 3, None),
    ],
)
def test_enough_different_keys_have_to_agree(
    said: list[tuple[int, int]], needed: int, result: int | None
) -> None:
    """A key counts once, and one opinion only wins when no other has a quorum, too."""
    found = quorum.opinions([signed(*each) for each in said])
    agreed = quorum.agreed(found, needed)
    assert (agreed.nar_hash[0] if agreed else None) == result


def test_references_count() -> None:
    """The same NAR with other references is another opinion; their order is none."""
    a, b = f"{'1' * 32}-a", f"{'2' * 32}-b"
    same = quorum.opinions([signed(0, references=(a, b)), signed(1, references=(b, a))])
    assert [len(opinion.keys) for opinion in same] == [2]
    other = quorum.opinions([signed(0, references=(a,)), signed(1, references=(b,))])
    assert [len(opinion.keys) for opinion in other] == [1, 1]


def test_those_who_disagree_are_named() -> None:
    """The line says which keys say what, as the access control list shows keys."""
    assert quorum.disagreement(quorum.opinions([signed(0), signed(1)])) is None
    message = quorum.disagreement(quorum.opinions([signed(0, 1), signed(1), signed(2)]))
    assert message is not None
    assert message.startswith(f"{PATH}: KEYS DISAGREE: sha256:{'0' * 52} by #")
    assert message.count("…#") == 3
    for key in KEYS:
        number = key.public.decode().partition("(q #")[2][:16]
        assert f"#{number}…#" in message


def test_without_a_signature_there_is_no_opinion() -> None:
    """Only keys have one."""
    unsigned = narinfo.parse(narinfo.compose(PATH, bytes(32), 100, ()))
    assert quorum.opinions([unsigned]) == []
