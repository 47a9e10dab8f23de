# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes room: what is wanted least, and never what is in use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seeder.eviction import HOT, Payload, choose, worth

NOW = 1e9
MIB = 1 << 20
PLAIN = Payload(b"p", 10 * MIB, 1, 0, NOW - 86_400, 2)


@pytest.mark.parametrize(
    ("change", "better"),
    [
        ({"requests": 5}, True),
        ({"uploaded": 100 * MIB}, True),
        ({"used": NOW - 3600}, True),
        ({"used": NOW - 30 * 86_400}, False),
        ({"others": 0}, True),
        ({"others": 50}, False),
        ({"length": 1000 * MIB}, False),
        ({"length": MIB}, True),
    ],
)
def test_worth(change: dict[str, float], better: bool) -> None:
    """Demand, recency, rarity and a small size are for a payload."""
    other = PLAIN._replace(**change)  # type: ignore[arg-type]  # names and values of a table
    assert (worth(other, NOW) > worth(PLAIN, NOW)) is better


def test_unknown_seeds_are_few() -> None:
    """Trackers that don't count say nothing for or against a payload."""
    assert worth(PLAIN._replace(others=-1), NOW) == worth(PLAIN._replace(others=1), NOW)


def test_the_least_worth_goes_first() -> None:
    """As many as are needed, and no more."""
    old = PLAIN._replace(nar_hash=b"old", used=0.0)
    common = PLAIN._replace(nar_hash=b"common", others=99)
    rare = PLAIN._replace(nar_hash=b"rare", others=0)
    payloads = [rare, common, old]
    assert choose(payloads, 0, NOW) == []
    assert choose(payloads, 10 * MIB, NOW) == [b"old"]
    assert choose(payloads, 10 * MIB + 1, NOW) == [b"old", b"common"]
    assert choose(payloads, 30 * MIB, NOW) == [b"old", b"common", b"rare"]
    assert choose(payloads, 30 * MIB + 1, NOW) is None


def test_what_is_in_use_stays() -> None:
    """Neither what is being sent goes, nor what was wanted just now."""
    assert choose([PLAIN], 1, NOW, {b"p"}) is None
    assert choose([PLAIN._replace(used=NOW - HOT + 1)], 1, NOW) is None
    assert choose([PLAIN._replace(used=NOW - HOT)], 1, NOW) == [b"p"]
    assert choose([PLAIN._replace(used=NOW)], 1, NOW) is None
    assert choose([PLAIN._replace(used=NOW + 1)], 1, NOW) == [b"p"]


@given(
    st.lists(
        st.builds(
            Payload,
            st.binary(min_size=1, max_size=4),
            st.integers(0, 2**45),
            st.integers(0, 2**40),
            st.integers(0, 2**60),
            st.floats(0, 1e11),
            st.integers(-1, 2**31),
        ),
        unique_by=lambda payload: payload.nar_hash,
    ),
    st.integers(0, 2**46),
)
def test_what_is_chosen_is_enough(payloads: list[Payload], needed: int) -> None:
    """Whatever the figures: enough, of what there is, and without the last one not enough."""
    chosen = choose(payloads, needed, NOW)
    lengths = {payload.nar_hash: payload.length for payload in payloads}
    if chosen is not None:
        assert sum(lengths[each] for each in chosen) >= needed
        assert len(set(chosen)) == len(chosen)
        assert not chosen or sum(lengths[each] for each in chosen[:-1]) < needed
