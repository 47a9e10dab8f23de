# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.weather."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from narswarm import narinfo
from narswarm.narinfo import Source, Verdict
from narswarm.quorum import opinions
from substituter import weather
from substituter.survey import NOBODY, Said, Swarm
from substituter.weather import Forecast
from tests.substituter.conftest import Item

Make = Callable[..., Item]


def said(item: Item, *, mirror: bool = False, verdict: Verdict = Verdict.VALID_SIGNATURE) -> Said:
    """What a server with the item as zstd says."""
    raw = narinfo.with_sources(item.narinfo, [Source("nar/zstd/x", "zstd", 1000)])
    return Said("http://s", mirror, narinfo.parse(raw, "http://s"), verdict)


def forecast(item: Item, swarm: Swarm, *answers: Said) -> Forecast:
    """What follows from answers, where one key suffices."""
    views = opinions(each.narinfo for each in answers if each.is_authorised)
    return Forecast(item.path, views[0].narinfo if views else None, answers, views, swarm)


def test_who_can_serve(make_item: Make) -> None:
    """Servers with an authorised narinfo, and swarms where one vouches for the item."""
    item = make_item("a")
    both = forecast(item, Swarm(2, 0, 0, 500), said(item))
    assert (both.from_swarm, len(both.servers), both.download) == (True, 1, 500)
    http = forecast(item, NOBODY, said(item))
    assert (http.from_swarm, len(http.servers), http.download) == (False, 1, 1000)
    waiting = forecast(item, Swarm(0, 0, 1, None), said(item, mirror=True))
    assert (waiting.from_swarm, waiting.servers, waiting.is_missing) == (True, [], False)
    stranger = forecast(item, NOBODY, said(item, verdict=Verdict.UNAUTHORIZED_KEY))
    assert stranger.is_missing
    assert stranger.download is None


@pytest.mark.parametrize(
    ("policy", "swarm", "available", "download"),
    [
        ("race", Swarm(2, 0, 0, 500), ["swarm", "http"], 500),
        ("swarm-first", Swarm(2, 0, 0, 500), ["swarm", "http"], 500),
        ("http-first", Swarm(2, 0, 0, 500), ["swarm", "http"], 1000),
        ("swarm-only", Swarm(2, 0, 0, 500), ["swarm"], 500),
        ("swarm-only", Swarm(0, 1, 0, 500), [], None),
        ("http-first", NOBODY, ["http"], 1000),
    ],
)
def test_policies(
    make_item: Make, policy: str, swarm: Swarm, available: list[str], download: int | None
) -> None:
    """What isn't used isn't there, and what is used first is what will be downloaded."""
    item = make_item("a")
    each = forecast(item, swarm, said(item))._replace(policy=policy)
    assert weather.describe(each, 1)["available"] == available
    assert each.is_missing is not bool(available)
    assert each.download == download


def test_what_the_DHT_may_know(make_item: Make) -> None:  # noqa: N802
    """Items of which there is a narinfo, and no seed that trackers know."""
    item = make_item("a")
    assert forecast(item, NOBODY, said(item)).is_unseeded
    assert not forecast(item, Swarm(0, 0, 0, 500, 1), said(item)).is_unseeded
    assert not forecast(item, NOBODY).is_unseeded


def test_the_table(make_item: Make) -> None:
    """Columns are aligned, with the keys where more than one is needed."""
    item, other = make_item("a"), make_item("b")
    found = [
        forecast(item, Swarm(1, 0, 0, 500), said(item)),
        forecast(other, NOBODY, said(other, verdict=Verdict.UNSIGNED)),
        forecast(item, Swarm(0, 0, 12, None)),
        forecast(item, Swarm(2, 0, 3, 500, 1)),
    ]
    assert weather.table(found, 1) == [
        "SWARM                HTTP          NAR    DOWNLOAD  ITEM",
        f"1 seed               s             560 B  500 B     {item.path[11:]}".replace(
            "560", str(len(item.nar))
        ),
        f"-                    unauthorised  -      -         {other.path[11:]}",
        f"12 would             -             -      -         {item.path[11:]}",
        f"2 seeds, 1 web seed  -             -      -         {item.path[11:]}",
    ]
    assert weather.table(found[:1], 2)[1].split()[-4:-1] == ["1", "of", "2"]
    assert (
        weather.summary(found[:3])
        == "1 of 3 from the swarm, 1 over HTTP, 2 missing; 500 B to download"
    )


def test_for_programs(make_item: Make) -> None:
    """Everything that is known, with hashes as Guix writes them."""
    item = make_item("a")
    shown = weather.describe(forecast(item, Swarm(2, 1, 3, 500), said(item)), 1)
    assert shown["available"] == ["swarm", "http"]
    assert shown["swarm"] == {
        "seeds": 2,
        "peers": 1,
        "holders": 3,
        "length": 500,
        "web_seeds": 0,
    }
    assert shown["quorum"] == {"needed": 1, "agree": 1, "disagreement": None}
    assert shown["nar_hash"] == shown["servers"][0]["nar_hash"]
    assert shown["servers"][0]["verdict"] == "valid-signature"
