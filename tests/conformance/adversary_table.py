# SPDX-License-Identifier: GPL-3.0-or-later
"""What a case of the table is, and how one is entered into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from tests.conformance.adversary_stage import Stage


class Case(NamedTuple):
    """One attack.

    Attributes:
        who: does it.
        attack: what is done.
        outcome: what happens, in words.
        bound: what limits the harm, in words.
        arrives: whether the item comes all the same.
        says: what the user reads, a regular expression; empty where nothing has to be said, as
            when another source makes up for one that broke off.
        prepare: sets the stage.
    """

    who: str
    attack: str
    outcome: str
    bound: str
    arrives: bool
    says: str
    prepare: Callable[[Stage], None]

    @property
    def name(self) -> str:
        """Tells it from others."""
        return f"{self.who}: {self.attack}"


NARINFO: Final = "A server of narinfos"
SERVER: Final = "A server of NARs"
TRACKER: Final = "A tracker"
PEER: Final = "A peer"
PUBLISHER: Final = "Who publishes a torrent"
SIGNER: Final = "Who has an authorised key"

FROM_NEXT: Final = "comes from the next server"
FROM_SERVER: Final = "comes from a server"
FROM_SWARM: Final = "comes from honest peers"
ALL_FAIL: Final = "fails with a line that says why"


class Table:
    """Cases as they are entered.

    Attributes:
        cases: in the order of the documentation.
    """

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def case(
        self, who: str, attack: str, outcome: str, bound: str, *, says: str = ""
    ) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
        """Enter a case; the function sets its stage."""

        def enter(prepare: Callable[[Stage], None]) -> Callable[[Stage], None]:
            arrives = outcome != ALL_FAIL
            self.cases.append(Case(who, attack, outcome, bound, arrives, says, prepare))
            return prepare

        return enter
