# SPDX-License-Identifier: GPL-3.0-or-later
"""The same questions to our tracker, opentracker and bittorrent-tracker, over HTTP and UDP.

All must say the same, or stand in the table of differences, which must be up to date.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conformance import wire_differences, wire_trackers
from tests.conformance.wire_cases import CASES
from tests.conformance.wire_clients import Endpoint, observe
from tests.conformance.wire_steps import Case
from tests.conformance.wire_trackers import npm_version

pytestmark = pytest.mark.conformance

ASKED = [(case, over) for case in CASES for over in case.over]
PAGE = Path(__file__).resolve().parents[2] / "docs/tracker-differences.md"
MOST_INFOHASHES = 75
"""How many the case with most of them has."""


def infohashes() -> set[bytes]:
    """All that is tracked in some case."""
    return {
        case.infohash(over, number)
        for case, over in ASKED
        for number in range(MOST_INFOHASHES)
        if not case.closed
    }


@contextmanager
def _started(name: str, directory: Path) -> Iterator[tuple[Endpoint, Endpoint]]:
    """A tracker that is open, or knows all infohashes, and one that doesn't track any."""
    with ExitStack() as stack:
        if name == wire_differences.OPEN:
            both = stack.enter_context(wire_trackers.opentracker(directory, infohashes()))
            yield both, both
        elif name == wire_differences.NPM:
            both = stack.enter_context(wire_trackers.npm(directory))
            yield both, both
        else:
            for part in ("open", "closed"):
                (directory / part).mkdir()
            yield (
                stack.enter_context(wire_trackers.ours(directory / "open", name, "--open")),
                stack.enter_context(wire_trackers.ours(directory / "closed", name)),
            )


@pytest.fixture(scope="module", params=["native", "python", *wire_differences.ORACLES])
def tracker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Endpoint, Endpoint]]:
    """One of the trackers: its name, and where it is open and closed."""
    name = str(request.param)
    with _started(name, tmp_path_factory.mktemp(name)) as (opened, closed):
        yield name, opened, closed


@pytest.mark.parametrize(
    ("case", "over"), ASKED, ids=[f"{over}: {case.name}" for case, over in ASKED]
)
def test_case(tracker: tuple[str, Endpoint, Endpoint], case: Case, over: str) -> None:
    """It says what ours says, or what the table says that it does."""
    name, opened, closed = tracker
    listed = wire_differences.differences().get((case.name, name, over))
    expected = case.ours(over) if listed is None else listed
    assert observe(case, over, closed if case.closed else opened) == expected


def test_names_are_unique() -> None:
    """A case is named once, as the table goes by names."""
    names = [case.name for case in CASES]
    assert sorted(set(names)) == sorted(names)


def test_page() -> None:
    """The page shows the table as it is."""
    assert PAGE.read_text() == wire_differences.render(npm_version())
