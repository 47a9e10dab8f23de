# SPDX-License-Identifier: GPL-3.0-or-later
"""Does what is wanted before anything else, in two threads.

A payload is compressed on all cores, so that one at a time is fastest, if it weren't for those
that take minutes: somebody who wants a small item mustn't wait for them. So one thread takes
everything in order, and in quiet times makes payloads that nobody asked for yet; the other one
takes small items, and large ones only while the first is at something that nobody waits for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

QUICK = 256 << 20
"""Bytes of the largest NAR that counts as small: some seconds of compressing."""

MAX_WANTED = 1000
"""Items that may wait; a tracker says again what it still misses."""

EXPIRY = 600.0
"""Seconds after which nobody waits for an item any more."""

IDLE_LOOK = 30.0


@dataclass(slots=True)
class _Wanted:
    size: int
    since: float
    trackers: set[str] = field(default_factory=set)


class Workshop:
    """A queue of wanted NARs and the threads that make them.

    Args:
        make: makes one, and has it published to trackers with these announce URLs; all without any.
        spare: makes something that nobody waits for; false if there is nothing. It is called in
            quiet times.
        clock: seconds from any start, never going back.
    """

    def __init__(
        self,
        make: Callable[[bytes, Collection[str]], None],
        spare: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._make = make
        self._spare = spare
        self._clock = clock
        self._changed = threading.Condition()
        self._wanted: dict[bytes, _Wanted] = {}
        self._making: set[bytes] = set()
        self._sparing = False
        self._poked = False
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, args=(quick,), name=name, daemon=True)
            for name, quick in (("make", False), ("make-small", True))
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self, patience: float) -> bool:
        """End; whether the threads have.

        Args:
            patience: seconds to wait for each of them.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(patience)
        return not any(thread.is_alive() for thread in self._threads)

    def want(self, nar_hash: bytes, size: int, trackers: Collection[str] = ()) -> bool:
        """Have a NAR made; false if too many wait.

        Args:
            nar_hash: which.
            size: bytes of the NAR.
            trackers: announce URLs of those that want it.
        """
        with self._changed:
            now = self._clock()
            if nar_hash not in self._wanted and len(self._wanted) >= MAX_WANTED:
                return False
            self._wanted.setdefault(nar_hash, _Wanted(size, now)).trackers.update(trackers)
            self._changed.notify_all()
        return True

    def poke(self) -> None:
        """There may be something to do in quiet times."""
        with self._changed:
            self._poked = True
            self._changed.notify_all()

    def waiting(self) -> int:
        """How many NARs are wanted and not made yet."""
        with self._changed:
            return len(self._wanted) + len(self._making)

    def _work(self, quick: bool) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
                job = self._take(quick)
                if job is None:
                    if quick:
                        self._changed.wait(IDLE_LOOK)
                        continue
                    self._sparing, self._poked = True, False
                    self._changed.notify_all()
            if job is not None:
                self._do(*job)
                continue
            try:
                done = self._spare()
            except Exception:
                log.exception("a payload in quiet times")
                done = False
            with self._changed:
                self._sparing = False
                if not done and not (self._stopping or self._poked or self._is_wanted()):
                    self._changed.wait(IDLE_LOOK)

    def _is_wanted(self) -> bool:
        return any(nar_hash not in self._making for nar_hash in self._wanted)

    def _take(self, quick: bool) -> tuple[bytes, set[str]] | None:
        """The next one for a thread, which is then being made."""
        now = self._clock()
        for nar_hash in [h for h, wanted in self._wanted.items() if now - wanted.since > EXPIRY]:
            del self._wanted[nar_hash]
        for nar_hash, wanted in self._wanted.items():
            if nar_hash in self._making:
                continue
            if not quick or wanted.size <= QUICK or self._sparing:
                del self._wanted[nar_hash]
                self._making.add(nar_hash)
                return nar_hash, wanted.trackers
        return None

    def _do(self, nar_hash: bytes, trackers: set[str]) -> None:
        try:
            self._make(nar_hash, trackers)
        except Exception:
            # Such as a database that is damaged: the next one may go well.
            log.exception("a wanted payload")
        finally:
            with self._changed:
                self._making.discard(nar_hash)
                self._changed.notify_all()
