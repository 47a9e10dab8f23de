# SPDX-License-Identifier: GPL-3.0-or-later
"""One look-up of many narinfos on several servers at the same time.

The servers have an order: a later one is asked when all before it have said no, or when they take
long, and of several answers the first in that order counts. `narswarm.narinfos` asks a server and
judges what it says; here is who asks which of them for what, and when that is over.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from narswarm.errors import NetworkError
from narswarm.narinfo import Narinfo

PER_CONNECTION: Final = 8
"""Narinfos for which one connection is enough; there are more connections for more."""

BATCH: Final = 64
"""Narinfos that are asked for by one connection without waiting for answers."""


class Asks(Protocol):
    """What asks servers: a `narswarm.narinfos.NarinfoLookup`."""

    servers: tuple[str, ...]
    workers: int
    hedge: float

    def ask_many(
        self, server: str, paths: Sequence[str], timeout: float
    ) -> Iterator[Narinfo | None]:
        """Give what a server has for each of some paths."""

    def is_down(self, server: str) -> bool:
        """Whether a server is left alone for now."""

    def succeeded(self, server: str) -> None:
        """Note that a server answered."""

    def failed(self, server: str, error: NetworkError, *, in_time: bool) -> None:
        """Note that it didn't."""

    def stale(self, path: str) -> Narinfo | None:
        """Give what was known before."""


class Search:
    """One `find`: threads for each server that take paths as it becomes their turn.

    The servers are numbered in their order. For each path there is an answer of each server:
    missing while it isn't known, None if the server has nothing that counts.

    Args:
        lookup: asks the servers.
        asked: store paths, each with the number of the first server that is to be asked.
    """

    def __init__(self, lookup: Asks, asked: Sequence[tuple[str, int]]) -> None:
        count = len(lookup.servers)
        self._lookup = lookup
        self._paths = [path for path, _ in asked]
        self._answers: list[dict[int, Narinfo | None]] = [
            dict.fromkeys(range(rank)) for _, rank in asked
        ]
        self._changed = threading.Condition()
        self._open = set(range(len(asked)))
        self._unasked: set[int] = set()
        self._taken: list[set[int]] = [set() for _ in range(count)]
        self._ready: list[deque[int]] = [deque() for _ in range(count)]
        for index, (_, rank) in enumerate(asked):
            self._ready[rank].append(index)
        self._late: list[deque[int]] = [deque(range(len(asked))) for _ in range(count)]
        self._failure: BaseException | None = None
        self._begin = time.monotonic()
        self._end = self._begin

    def run(self, timeout: float) -> dict[str, Narinfo | None]:
        """Search for at most `timeout` seconds and give what was found."""
        self._end = self._begin + timeout
        for rank in range(len(self._lookup.servers)):
            needed = -(-len(self._paths) // PER_CONNECTION)
            for _ in range(min(self._lookup.workers, needed)):
                # A thread may hang in the resolver: it must not keep the process from ending.
                threading.Thread(target=self._work, args=(rank,), daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: not self._open or self._failure, timeout)
            pending, self._open = self._open, set()
            self._changed.notify_all()
            answers = [dict(answer) for answer in self._answers]
            failure, unasked = self._failure, self._unasked | pending
        if failure is not None:
            raise failure
        found: dict[str, Narinfo | None] = {}
        for index, path in enumerate(self._paths):
            in_order = (answers[index].get(rank) for rank in range(len(self._lookup.servers)))
            answer = next(filter(None, in_order), None)
            if answer is None and index in unasked:
                answer = self._lookup.stale(path)
            found[path] = answer
        return found

    def _work(self, rank: int) -> None:
        """Ask one server for one path after another."""
        server = self._lookup.servers[rank]
        try:
            while batch := self._next(rank):
                self._ask(rank, server, batch)
        except BaseException as error:  # noqa: BLE001 - raised again by run()
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _ask(self, rank: int, server: str, batch: Sequence[int]) -> None:
        """Ask for some paths, and settle each as its answer comes."""
        lookup = self._lookup
        answers = lookup.ask_many(
            server, [self._paths[index] for index in batch], self._end - time.monotonic()
        )
        for number, index in enumerate(batch):
            try:
                answer = next(answers)
                lookup.succeeded(server)
            except NetworkError as error:
                lookup.failed(server, error, in_time=time.monotonic() < self._end)
                with self._changed:
                    # Of those behind it nothing is known: another connection may ask for them.
                    self._settle(rank, index, None, was_asked=False)
                    for other in reversed(batch[number + 1 :]):
                        self._taken[rank].discard(other)
                        self._ready[rank].appendleft(other)
                    self._changed.notify_all()
                return
            with self._changed:
                self._settle(rank, index, answer, was_asked=True)

    def _next(self, rank: int) -> list[int]:
        """Wait for paths for which it is this server's turn; none when there will be no more."""
        turn = self._begin + rank * self._lookup.hedge
        taken, ready, late = self._taken[rank], self._ready[rank], self._late[rank]
        with self._changed:
            while self._open and self._failure is None:
                is_turn = time.monotonic() >= turn
                if self._lookup.is_down(self._lookup.servers[rank]):
                    for index in self._open - taken:
                        taken.add(index)
                        self._settle(rank, index, None, was_asked=False)
                    return []
                batch: list[int] = []
                while len(batch) < self._share(rank) and (ready or (is_turn and late)):
                    index = (ready or late).popleft()
                    if index in self._open and index not in taken:
                        taken.add(index)
                        # What the cache has said no to need not be asked again.
                        if rank not in self._answers[index]:
                            batch.append(index)
                if batch or is_turn:
                    return batch
                self._changed.wait(turn - time.monotonic())
        return []

    def _share(self, rank: int) -> int:
        """How many paths one connection asks for at a time."""
        waiting = max(len(self._ready[rank]), len(self._late[rank]))
        return max(PER_CONNECTION, min(BATCH, waiting // self._lookup.workers))

    def _settle(self, rank: int, index: int, answer: Narinfo | None, *, was_asked: bool) -> None:
        """Note an answer; pass the path on to the next server or be done with it."""
        answers = self._answers[index]
        answers[rank] = answer
        if not was_asked:
            self._unasked.add(index)
        remaining = [other for other in range(len(self._ready)) if other not in answers]
        if answer is not None or not remaining:
            self._open.discard(index)
        else:
            self._ready[remaining[0]].append(index)
        self._changed.notify_all()
