# SPDX-License-Identifier: GPL-3.0-or-later
"""Adversaries against the substituter as guix-daemon starts it; the table is `adversary_cases`."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from narswarm import acl, base32, gcrypt, nar, sexp
from narswarm.gcrypt import KeyPair
from narswarm.swarm import Swarm
from narswarm.swarm_settings import SwarmSettings
from substituter.settings import SubstituterSettings
from tests.conformance import adversary_cases
from tests.conformance.adversary_cases import CASES
from tests.conformance.adversary_stage import Sentinel, Stage
from tests.conformance.adversary_table import Case
from tests.e2e.rig.nodes import peak_memory
from tests.substituter.conftest import Item
from tests.substituter.daemon import Helper, config

pytestmark = pytest.mark.conformance

PAGE = Path(__file__).resolve().parents[2] / "docs/adversaries.md"

MEMORY = 200 * 10**6
"""Bytes that the program may have at most."""

BY_NAME = {case.name: case for case in CASES}
PLANNED = [
    BY_NAME[f"A server of NARs: {attack}"]
    for attack in (
        "sends another NAR",
        "sends 1 GiB of zeros as zstd",
        "sends a NAR with an entry ..",
        "drips, and a swarm has the item",
        "closes in the middle",
    )
]
"""What a plan is made of; these cases need no settings of their own."""

LINES = 4
"""Lines that a user may have to read about one item, or one for each source that lied."""


@pytest.fixture(scope="module", name="key")
def key_fixture() -> KeyPair:
    """The key that is authorised."""
    return gcrypt.generate_key()


@pytest.fixture(scope="module", name="swarm")
def swarm_fixture() -> Iterator[Swarm]:
    """A session that seeds what is to be had."""
    settings = SwarmSettings(listen=("127.0.0.1:0",), dht=False, lsd=False, upnp=False, role="seed")
    with Swarm(settings) as swarm:
        yield swarm


@pytest.mark.parametrize("case", CASES, ids=[each.name for each in CASES])
def test_adversary(case: Case, tmp_path: Path, key: KeyPair, swarm: Swarm) -> None:
    """The item comes from elsewhere or fails with a line, and nothing else happens."""
    sentinel = Sentinel(tmp_path)
    stage = Stage(tmp_path, key, swarm, case.name)
    try:
        case.prepare(stage)
        _play(case, stage, stage.offer_good(), sentinel)
    finally:
        stage.close()


def test_a_plan_of_hostile_items(tmp_path: Path, key: KeyPair, swarm: Swarm) -> None:
    """What is fetched ahead is as hostile as the rest, and harms the items between no more."""
    sentinel = Sentinel(tmp_path)
    stage = Stage(tmp_path, key, swarm, "a plan")
    try:
        items = []
        for index, case in enumerate(PLANNED):
            stage.item = stage.make(f"planned-{index}", stage.noise(f"planned-{index}"))
            case.prepare(stage)
            items.append(stage.item)
        items.append(stage.offer_good())
        environ = _environ(stage)
        with Helper(["substitute", "--query"], environ) as helper:
            helper.send(f"info {' '.join(item.path for item in items)} ")
            answer = helper.receive()
            while not answer.endswith("\n\n"):
                answer += helper.receive()
            assert all(f"{item.path}\n" in answer for item in items)
            assert helper.end() == 0
        with Helper(["substitute", "--substitute"], environ) as helper:
            for item in items:
                status = _get(helper, item, sentinel.store / item.path[44:])
                assert status == _success(item), item.path
            memory = peak_memory(helper.pid)
            assert helper.end() == 0
        assert memory < MEMORY
        assert "internal error" not in helper.shown
    finally:
        stage.close()


def test_a_query_is_answered_whoever_hangs(tmp_path: Path, key: KeyPair, swarm: Swarm) -> None:
    """Neither servers nor trackers that take connections and say nothing hold a query up."""
    stage = Stage(tmp_path, key, swarm, "a query")
    try:
        for site in (stage.server, stage.second):
            stage.answer(site, stage.raw(pause=1))
        path = f"/v1/narinfo/{stage.item.hash_part}.narinfo"
        stage.tracker.bodies[path] = stage.raw(pause=1)
        with Helper(["substitute", "--query"], _environ(stage)) as helper:
            # `receive` fails when nothing comes; the limit is 5 seconds.
            helper.send(f"info {stage.item.path} ")
            assert helper.receive() == "\n"
            helper.send(f"have {stage.item.path} ")
            assert helper.receive() == "\n"
            assert helper.end() == 0
    finally:
        stage.close()


def _play(case: Case, stage: Stage, good: Item, sentinel: Sentinel) -> None:
    environ = _environ(stage)
    before = sentinel.look()
    with Helper(["substitute", "--substitute"], environ) as helper:
        begin = time.monotonic()
        status = _get(helper, stage.item, sentinel.store / "attacked")
        elapsed = time.monotonic() - begin
        assert _get(helper, good, sentinel.store / "good") == _success(good)
        memory = peak_memory(helper.pid)
        assert helper.end() == 0
    shown = [line for line in helper.shown.splitlines() if line.startswith("substituter: ")]
    print(f"{case.name}: {elapsed:.1f} s, {memory >> 20} MiB", *shown, sep="\n")
    destination = sentinel.store / "attacked"
    if case.arrives:
        assert status == _success(stage.item)
        assert b"".join(nar.dump(destination)) == stage.item.nar
    else:
        assert status == "not-found\n" or status.startswith("hash-mismatch "), status
        assert not destination.exists()
        assert not destination.is_symlink()
    text = "\n".join(shown)
    started = rf"(?m)^@ download-started {re.escape(str(destination))} (\S+)"
    sources = re.findall(started, helper.shown)
    # Servers race: on a busy machine an honest one may be first, and nobody reads the other's NAR.
    overtaken = (
        case.who == "A server of NARs"
        and len(sources) == 1
        and not sources[0].startswith(stage.server.url)
    )
    assert not case.says or re.search(case.says, text) or overtaken, helper.shown
    assert "internal error" not in helper.shown
    assert "Traceback" not in helper.shown
    assert max(Counter(shown).values(), default=0) <= 1, "a line is said twice"
    assert len(shown) <= max(LINES, 1 + text.count("expected sha256:"))
    after = sentinel.look()
    expected = {"neighbour", "good"} | ({"attacked"} if case.arrives else set())
    assert set(after.pop("items")) == expected
    del before["items"]
    assert after == before
    downloads = stage.directory / "state" / "downloads"
    assert not downloads.exists() or not list(downloads.iterdir())
    assert memory < MEMORY


def _environ(stage: Stage) -> dict[str, str]:
    (stage.directory / "acl").write_bytes(acl.render([sexp.parse(stage.key.public)]))
    state = stage.directory / "state"
    settings = SubstituterSettings(
        state=state, acl=stage.directory / "acl", guix=Path("/bin/false")
    )
    state.mkdir()
    file = config(settings, stage.directory / "narswarm.toml", *stage.lines)
    return {
        "PATH": "/nonexistent",
        "NARSWARM_CONFIG": str(file),
        "_NIX_OPTIONS": f"substitute-urls={' '.join(stage.urls)}\nprint-extended-build-trace=1\n",
    }


def _get(helper: Helper, item: Item, destination: Path) -> str:
    helper.send(f"substitute {item.path} {destination}")
    return helper.receive()


def _success(item: Item) -> str:
    return f"success {base32.format_hash(item.nar_hash)} {len(item.nar)}\n"


def test_the_table_is_documented() -> None:
    """docs/adversaries.md is what the table makes, and no case has two lines."""
    assert PAGE.read_text() == "\n".join(adversary_cases.render()) + "\n"
    assert len({case.name for case in CASES}) == len(CASES)
