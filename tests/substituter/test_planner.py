# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.planner: a real plan, a real substitute server."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from narswarm import narinfo
from substituter import plan
from substituter.finding import Finder
from substituter.plan import PlanWriter
from substituter.planner import Planner
from substituter.schedule import TINY
from substituter.session import Session
from substituter.settings import SubstituterSettings
from tests.substituter.conftest import Item, Site, World

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

Enter = Callable[..., World]
Make = Callable[..., Item]
PATIENCE = 120.0


class FakeSeeder:
    """Takes a plan."""

    def __init__(self) -> None:
        self.plans: list[list[str]] = []
        self.told = threading.Event()

    def prefetch(self, items: list[Any]) -> int:
        """Note it."""
        self.plans.append([item.store_path for item in items])
        self.told.set()
        return len(items)

    def close(self) -> None:
        """Nothing to close."""


@contextmanager
def planner(world: World) -> Iterator[Planner]:
    """A planner as a helper has it."""
    context = world.context
    session = Session(context.settings, context.warn)
    made = Planner(context, session, Finder(context, session))
    try:
        yield made
    finally:
        made.close()
        session.close()


def asked(site: Site, item: Item) -> threading.Event:
    """Offers an item; set when its NAR is asked for."""
    site.offer(item, "none")
    path = f"/nar/none/{item.path[11:]}"
    body, event = site.bodies[path], threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        assert isinstance(body, bytes)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        event.set()

    site.bodies[path] = answer
    return event


def test_the_rest_of_a_plan_is_fetched(enter: Enter, site: Site, make_item: Make) -> None:
    """All but the item that is asked for, and also what is noted later."""
    first, second, third = (make_item(name) for name in ("a", "b", "c"))
    events = [asked(site, item) for item in (first, second, third)]
    world = enter(site.url)
    writer = PlanWriter(world.context.plans)
    writer.add([second.path, first.path])
    with planner(world) as made:
        made.look(first.path)
        assert events[1].wait(PATIENCE)
        writer.add([third.path])
        made.look(second.path)
        assert events[2].wait(PATIENCE)
        ahead = made.prefetcher.take(narinfo.parse(second.narinfo))
        assert ahead is not None
        assert b"".join(ahead.file.follow(0.01)) == second.nar
        made.prefetcher.give_back(ahead)
    assert not events[0].is_set()
    assert world.warnings == []


def test_a_plan_is_one_helpers(enter: Enter, site: Site, make_item: Make) -> None:
    """Helpers of one session don't fetch the same."""
    world = enter(site.url)
    PlanWriter(world.context.plans).add([make_item("a").path])
    assert plan.claim(world.context.plans)
    assert not plan.claim(world.context.plans)
    plan.release()
    assert plan.claim(world.context.plans)
    plan.release()
    assert not plan.claim(world.context.plans, 0)


def test_the_seeder_fetches_all_but_the_smallest(
    enter: Enter, site: Site, make_item: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session is warm, but a server is as quick for what is a round trip."""
    small, large = make_item("small"), make_item("large", bytes(TINY))
    here = asked(site, small)
    site.offer(large, "none")
    world, seeder = enter(site.url), FakeSeeder()
    monkeypatch.setattr(type(world.context), "seeder", seeder)
    PlanWriter(world.context.plans).add([large.path, small.path])
    with planner(world) as made:
        made.look("/gnu/store/another")
        assert here.wait(PATIENCE)
        assert seeder.told.wait(PATIENCE)
    assert seeder.plans == [[large.path]]
    assert world.context.ahead == {large.path}


def test_no_disk_no_plan(
    enter: Enter, settings: SubstituterSettings, make_item: Make, site: Site
) -> None:
    """The setting turns it off."""
    world = enter(site.url, changed=dataclasses.replace(settings, prefetch_disk=0))
    PlanWriter(world.context.plans).add([make_item("a").path])
    before = set(threading.enumerate())
    with planner(world) as made:
        made.look("/gnu/store/another")
        begun = [thread.name for thread in threading.enumerate() if thread not in before]
        assert "plan" not in begun


def test_what_goes_wrong_is_told_once(
    enter: Enter, site: Site, make_item: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only speed is lost."""
    world = enter(site.url)
    PlanWriter(world.context.plans).add([make_item("a").path])
    told = threading.Event()

    def fail(_: Path) -> list[str]:
        raise RuntimeError("oops")

    def warn(message: str) -> None:
        world.warnings.append(message)
        told.set()

    monkeypatch.setattr(plan, "read", fail)
    monkeypatch.setattr(world.context, "warn", warn)
    with planner(world) as made:
        made.look("/gnu/store/another")
        assert told.wait(PATIENCE)
    assert world.warnings == ["fetching ahead: oops"]
