# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.worker."""

from __future__ import annotations

import threading

import pytest

from narswarm.worker import Worker

WAIT = 120.0


def test_jobs_are_done_in_order_in_another_thread() -> None:
    """After `drain` all of them are done."""
    done: list[tuple[int, str]] = []
    worker = Worker("w")
    for number in range(100):
        worker.put(lambda n=number: done.append((n, threading.current_thread().name)))  # type: ignore[misc]
    worker.drain()
    assert done == [(number, "w") for number in range(100)]
    assert worker.idle
    worker.close()


def test_without_jobs_there_is_no_thread() -> None:
    """Small things don't pay for it."""
    worker = Worker("narswarm-test-unused")
    worker.drain()
    worker.close()
    assert "narswarm-test-unused" not in [thread.name for thread in threading.enumerate()]


def _hand_over_for_ever(worker: Worker) -> None:
    while True:
        worker.put(int)


@pytest.mark.parametrize("waits", [False, True])
def test_what_a_job_raises_reaches_whoever_hands_over(waits: bool) -> None:
    """The jobs after it are not done."""
    done: list[int] = []
    begin = threading.Event()
    worker = Worker("w")

    def fail() -> None:
        assert begin.wait(WAIT)
        raise OSError("full")

    worker.put(fail)
    worker.put(lambda: done.append(1))
    begin.set()
    if not waits:
        with pytest.raises(OSError, match="full"):
            worker.drain()
    with pytest.raises(OSError, match="full"):
        _hand_over_for_ever(worker)
    worker.close()
    assert done == []


def test_no_more_waits_than_the_limit() -> None:
    """Whoever is faster waits, so that memory stays the same."""
    go = threading.Semaphore(0)
    handed: list[int] = []
    worker = Worker("w", limit=10)

    def hand_over() -> None:
        for number in range(5):
            worker.put(lambda: go.acquire(timeout=WAIT), 6)
            handed.append(number)

    other = threading.Thread(target=hand_over)
    other.start()
    for released in range(5):
        assert len(handed) <= released + 2
        go.release()
    other.join(WAIT)
    worker.drain()
    assert handed == [0, 1, 2, 3, 4]
    worker.close()


def test_what_waits_is_dropped_at_the_end() -> None:
    """The job that runs is finished; `close` returns when the thread is gone."""
    begun, go = threading.Event(), threading.Event()
    done: list[int] = []
    worker = Worker("w")

    def first() -> None:
        begun.set()
        assert go.wait(WAIT)
        done.append(1)

    worker.put(first)
    worker.put(lambda: done.append(2))
    assert begun.wait(WAIT)
    threading.Timer(0.0, go.set).start()
    closing = threading.Thread(target=worker.close)
    closing.start()
    closing.join(WAIT)
    assert done in ([1], [1, 2])
