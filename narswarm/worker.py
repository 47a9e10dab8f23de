# SPDX-License-Identifier: GPL-3.0-or-later
"""A thread that does work in order, beside the one that hands it over.

Hashing, decompressing and writing release the interpreter's lock for large buffers, so that a
stream which goes through all of them takes as long as the slowest, not as all together.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

LIMIT: Final = 8 << 20
"""Bytes that may wait for the thread."""

Job = Callable[[], object]


class Worker:
    """Does jobs one after another in a thread of its own, which the first job starts.

    One thread hands jobs over. After a job has failed the others are passed over, and whoever hands
    the next one over, or waits, gets the error.

    Args:
        name: of the thread.
        limit: weight of the jobs that may wait.
    """

    def __init__(self, name: str, limit: int = LIMIT) -> None:
        self._name = name
        self._limit = limit
        self._changed = threading.Condition()
        self._jobs: deque[tuple[Job, int]] = deque()
        self._waiting = 0
        self._open = 0
        self._ended = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    @property
    def idle(self) -> bool:
        """Whether all jobs are done."""
        return not self._open

    def put(self, job: Job, weight: int = 0) -> None:
        """Hand a job over; waits while too much is waiting.

        Args:
            job: what to do.
            weight: bytes that it keeps in memory.

        Raises:
            BaseException: what an earlier job raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting < self._limit or self._error)
            self._raise()
            self._jobs.append((job, weight))
            self._waiting += weight
            self._open += 1
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()

    def drain(self) -> None:
        """Wait until all jobs are done.

        Raises:
            BaseException: what one of them raised.
        """
        if self._thread is None:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._open)
            self._raise()

    def close(self) -> None:
        """End the thread after the job that it is at; those that wait are dropped."""
        with self._changed:
            self._ended = True
            self._open -= len(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._ended)
                if self._ended:
                    return
                job, weight = self._jobs.popleft()
                failed = self._error is not None
            try:
                if not failed:
                    job()
            except BaseException as error:  # noqa: BLE001 -- raised again where it is waited for
                self._error = error
            del job
            with self._changed:
                self._waiting -= weight
                self._open -= 1
                self._changed.notify_all()
