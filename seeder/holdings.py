# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells a tracker what this seeder could serve, and hears from it what somebody wants.

A hundred thousand items are told once, as a list of hashes, and then by what changed; a tracker
that still knows them is sent a few hundred bytes at half of its lease. What it wants it answers to
a request that waits there, so that a payload is begun within milliseconds.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from narswarm.errors import NetworkError
from narswarm.httpsig import PublisherKey
from narswarm.trackeranswers import HoldingsReply, WantedReply
from narswarm.trackerclient import LONGEST_WAIT, LaterError, RefusedError, StaleHoldingsError
from seeder.items import Change

log = logging.getLogger(__name__)

FIRST_PAUSE = 5.0
LONGEST_PAUSE = 600.0
REFUSED_PAUSE = 3600.0
"""Seconds that a tracker isn't asked again which doesn't know of holdings."""

FIRST_FORBIDDEN = 60.0
"""Seconds until one is asked again that doesn't allow them, as it may learn of this seeder's key
any time; they double up to `REFUSED_PAUSE`."""

_FORBIDDEN = frozenset({401, 403})

IDLE = 60.0
"""Seconds after which a seeder that has nothing to tell looks again, unless it is woken."""

GAP = 5.0
"""Seconds between two changes that are told: many items come one after the other."""


class Index(Protocol):
    """What speaks to a tracker: a `narswarm.trackerclient.TrackerIndex`."""

    def holdings(
        self,
        key: PublisherKey,
        *,
        base: int,
        generation: int,
        added: bytes,
        removed: bytes,
        port: int,
        now: float,
    ) -> HoldingsReply:
        """Say what could be served."""

    def wanted(self, key: PublisherKey, since: int, wait: int, now: float) -> WantedReply:
        """Ask what somebody wants."""


class Holdings(Protocol):
    """What there is: a `seeder.items.ItemTable`."""

    def generation(self) -> int:
        """The generation of the holdings."""

    def change(self, base: int) -> Change:
        """How they differ from those of a generation."""


class Patience:
    """How long to leave a tracker alone that fails.

    Args:
        name: its announce URL.
        rng: spreads what many seeders would otherwise do at the same time.
    """

    def __init__(self, name: str, rng: random.Random) -> None:
        self._name = name
        self._rng = rng
        self._failures = 0
        self._refusals = 0
        self.message = ""

    def hurry(self) -> None:
        """Begin with short pauses again."""
        self._failures = self._refusals = 0

    def succeeded(self) -> None:
        """It answered as it should."""
        if self.message:
            log.info("%s: answers again", self._name)
        self.hurry()
        self.message = ""

    def failed(self, error: NetworkError) -> float:
        """It didn't; returns the seconds to wait. One line for each new reason is logged."""
        if error.reason != self.message:
            log.warning("%s: %s", self._name, error.reason)
            self.message = error.reason
        if isinstance(error, LaterError):
            seconds = max(1.0, float(error.retry_after))
        elif isinstance(error, RefusedError) and not isinstance(error, StaleHoldingsError):
            seconds = REFUSED_PAUSE
            if error.status in _FORBIDDEN:
                seconds = min(seconds, FIRST_FORBIDDEN * 2 ** min(self._refusals, 20))
                self._refusals += 1
        else:
            seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures, 20))
            self._failures += 1
        return seconds * self._rng.uniform(0.8, 1.2)


class Teller:
    """Tells one tracker.

    Args:
        announce: its announce URL.
        index: speaks to it.
        key: whose holdings they are.
        holdings: what there is.
        port: that peers connect to.
        told: the generation that it was told in an earlier run, 0 if none.
        clock: seconds from any start, never going back.
        wall_clock: seconds since the epoch.
        rng: spreads what many seeders would otherwise do at the same time.
    """

    def __init__(
        self,
        announce: str,
        index: Index,
        key: PublisherKey,
        holdings: Holdings,
        *,
        port: int,
        told: int,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.announce = announce
        self.told = told
        self.held = 0
        self.known = threading.Event()
        """Set while the tracker has a list of ours."""
        self.patience = Patience(announce, rng)
        self._index = index
        self._key = key
        self._holdings = holdings
        self._port = port
        self._clock = clock
        self._wall_clock = wall_clock
        self._rng = rng
        self._refresh_at = self._next = clock()

    def step(self) -> float:
        """Tell what is to be told now; returns the seconds until the next step."""
        now = self._clock()
        if now < self._next:
            return self._next - now
        news = not self.known.is_set() or self._holdings.generation() != self.told
        if not news and now < self._refresh_at:
            return self._refresh_at - now
        change = self._holdings.change(self.told)
        if not change.base and not change.added:
            return IDLE  # a seeder that has just begun
        try:
            reply = self._send(change)
        except StaleHoldingsError as error:
            self.forget()
            # Once more at once, with everything; if even that is stale, it is a failure.
            pause = 0.0 if change.base else self.patience.failed(error)
        except NetworkError as error:
            self.known.clear()
            pause = self.patience.failed(error)
        else:
            self.patience.succeeded()
            self.told, self.held = change.generation, reply.held
            self.known.set()
            lease = max(GAP, reply.lease / 2) * self._rng.uniform(0.8, 1.0)
            self._refresh_at = self._clock() + lease
            pause = GAP
        self._next = self._clock() + pause
        return pause

    def forget(self) -> None:
        """The tracker has lost the list; it is sent all of it."""
        self.told = 0
        self.known.clear()

    def hurry(self) -> None:
        """Have the next step ask the tracker although it is left alone."""
        self.patience.hurry()
        self._next = self._clock()

    def farewell(self) -> None:
        """Say that nothing is offered any more, so that nobody waits for it; fails in silence."""
        if not self.known.is_set():
            return
        with suppress(NetworkError):
            self._send(Change(0, self.told + 1, b"", b""))
        self.forget()

    def _send(self, change: Change) -> HoldingsReply:
        return self._index.holdings(
            self._key,
            base=change.base,
            generation=change.generation,
            added=change.added,
            removed=change.removed,
            port=self._port,
            now=self._wall_clock(),
        )


class Listener:
    """Hears from one tracker what is wanted.

    Args:
        teller: tells it what there is.
        index: speaks to it, and may wait.
        key: whose holdings they are.
        want: told of each NAR that is wanted, with the announce URL of the tracker.
        clock: seconds from any start, never going back.
        wall_clock: seconds since the epoch.
        rng: spreads what many seeders would otherwise do at the same time.
    """

    def __init__(
        self,
        teller: Teller,
        index: Index,
        key: PublisherKey,
        want: Callable[[bytes, str], None],
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._teller = teller
        self._index = index
        self._key = key
        self._want = want
        self._clock = clock
        self._wall_clock = wall_clock
        self._patience = Patience(teller.announce, rng)
        self._cursor = 0

    def step(self) -> float:
        """Ask once; returns the seconds until it is to be asked again."""
        begin = self._clock()
        try:
            reply = self._index.wanted(self._key, self._cursor, LONGEST_WAIT, self._wall_clock())
        except StaleHoldingsError:
            self._cursor = 0
            self._teller.forget()
            return 1.0
        except NetworkError as error:
            return self._patience.failed(error)
        self._patience.succeeded()
        self._cursor = reply.cursor
        for nar_hash, _ in reply.wanted:
            self._want(nar_hash, self._teller.announce)
        # A tracker that doesn't let us wait isn't asked thousands of times a second.
        return 0.0 if reply.wanted or self._clock() - begin >= 1.0 else 1.0


def _guarded(step: Callable[[], float]) -> float:
    """Take a step; one that breaks is noted, and taken again later."""
    try:
        return step()
    except Exception:
        # Such as a state whose disk is full: nobody else would begin a thread again.
        log.exception("a tracker could not be told or heard")
        return LONGEST_PAUSE


class Correspondence:
    """The threads that speak with trackers.

    Args:
        pairs: a teller and a listener for each of them.
        stopping: set when the seeder ends.
        told: keeps what a tracker, named by its announce URL, was told.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Teller, Listener]],
        stopping: threading.Event,
        told: Callable[[str, int], None],
    ) -> None:
        self._pairs = list(pairs)
        self._stopping = stopping
        self._told = told
        self._wakes = [threading.Event() for _ in self._pairs]
        self._threads: list[threading.Thread] = []

    @property
    def tellers(self) -> list[Teller]:
        """One for each tracker."""
        return [teller for teller, _ in self._pairs]

    def start(self) -> None:
        """Begin."""
        for (teller, listener), wake in zip(self._pairs, self._wakes, strict=True):
            tell = threading.Thread(target=self._tell, args=(teller, wake), daemon=True)
            # Ended by nobody: it waits for a tracker's answer, which may take a minute.
            hear = threading.Thread(target=self._hear, args=(teller, listener, wake), daemon=True)
            tell.start()
            hear.start()
            self._threads.append(tell)

    def wake(self) -> None:
        """There is something to tell, or to end."""
        for wake in self._wakes:
            wake.set()

    def retry(self) -> None:
        """Ask trackers again that are left alone."""
        for teller in self.tellers:
            teller.hurry()
        self.wake()

    def join(self, patience: float) -> bool:
        """Wait until trackers were told that this is the end; whether they were.

        Args:
            patience: seconds for all of them.
        """
        self.wake()
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _tell(self, teller: Teller, wake: threading.Event) -> None:
        while not self._stopping.is_set():
            before = teller.told
            pause = _guarded(teller.step)
            if teller.told != before:
                self._told(teller.announce, teller.told)
            if pause > 0:
                wake.wait(pause)
            wake.clear()
        teller.farewell()

    def _hear(self, teller: Teller, listener: Listener, wake: threading.Event) -> None:
        while not self._stopping.is_set():
            if not teller.known.wait(1.0):
                continue
            pause = _guarded(listener.step)
            if not teller.known.is_set():
                wake.set()
            if self._stopping.wait(pause):
                return
