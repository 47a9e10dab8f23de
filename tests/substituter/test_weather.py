# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.weather."""

from __future__ import annotations

from collections.abc import Callable

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


def test_the_table(make_item: Make) -> None:
    """Columns are aligned, with the keys where more than one is needed."""
    item, other = make_item("a"), make_item("b")
    found = [
        forecast(item, Swarm(1, 0, 0, 500), said(item)),
        forecast(other, NOBODY, said(other, verdict=Verdict.UNSIGNED)),
        forecast(item, Swarm(0, 0, 12, None)),
    ]
    assert weather.table(found, 1) == [
        "SWARM     HTTP          NAR    DOWNLOAD  ITEM",
        f"1 seed    s             560 B  500 B     {item.path[11:]}".replace(
            "560", str(len(item.nar))
        ),
        f"-         unauthorised  -      -         {other.path[11:]}",
        f"12 would  -             -      -         {item.path[11:]}",
    ]
    assert weather.table(found[:1], 2)[1].split()[-4:-1] == ["1", "of", "2"]
    assert (
        weather.summary(found) == "1 of 3 from the swarm, 1 over HTTP, 2 missing; 500 B to download"
    )


def test_for_programs(make_item: Make) -> None:
    """Everything that is known, with hashes as Guix writes them."""
    item = make_item("a")
    shown = weather.describe(forecast(item, Swarm(2, 1, 3, 500), said(item)), 1)
    assert shown["available"] == ["swarm", "http"]
    assert shown["swarm"] == {"seeds": 2, "peers": 1, "holders": 3, "length": 500}
    assert shown["quorum"] == {"needed": 1, "agree": 1, "disagreement": None}
    assert shown["nar_hash"] == shown["servers"][0]["nar_hash"]
    assert shown["servers"][0]["verdict"] == "valid-signature"
