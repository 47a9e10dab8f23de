# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetches NARs for the programs of this machine, in the seeder's own session.

Each NAR is fetched once, however many want it. What somebody waits for begins at once; what is
only planned is begun in the background, within limits, and is fetched at full speed from the moment
that somebody waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

from narswarm.errors import BusyError, NarswarmError
from narswarm.fetchclient import Wanted
from narswarm.pace import Pace
from narswarm.payload import Kind
from narswarm.plans import LARGE
from seeder.fetching_job import LOOK, Fetches, Finds, Job, View
from seeder.fetching_plan import Plans, share
from seeder.fetching_store import FetchStore

log = logging.getLogger(__name__)

MAX_JOBS = 256
"""NARs that are fetched at a time."""

MOMENT = 1.0
"""Seconds after which an item that somebody waits for is one that takes longer."""

STOP_PATIENCE = 2.0
"""Seconds that jobs get to leave their swarms when the seeder ends."""


class Local(NamedTuple):
    """A payload that this seeder has.

    Attributes:
        path: its file, complete.
        infohash: hexadecimal, of version 2.
        kind: what it is.
        length: bytes.
    """

    path: Path
    infohash: str
    kind: Kind
    length: int


class Fetched(NamedTuple):
    """A payload that was fetched.

    Attributes:
        wanted: the NAR that it should be.
        torrent: metainfo.
        payload: the file and what it is.
    """

    wanted: Wanted
    torrent: bytes
    payload: Local


class Finisher(Protocol):
    """What becomes of payloads."""

    def local(self, nar_hash: bytes) -> Local | None:
        """The payload of a NAR, if it is offered here."""

    def finish(self, fetched: Fetched, leave: Callable[[], None]) -> Path | None:
        """Offer a payload if that may be; returns where its file is then, None if it isn't.

        May take long.

        Args:
            fetched: what it is.
            leave: takes the torrent out of the swarm in which it was fetched, and which goes on
                until then; to be called before the file gets another name.

        Raises:
            NarswarmError: it isn't, and why.
        """

    def withdraw(self, nar_hash: bytes, infohash: str) -> None:
        """A payload was found to be another NAR."""


class Fetcher:
    """Fetches NARs.

    Args:
        swarm: the seeder's session.
        torrents: finds torrents.
        store: the disk that fetching may take.
        finisher: what becomes of payloads.
        trackers: announce URLs.
        rate: bytes a second that fetching may take, 0 without limit.
        web_seeds: URLs of directories that have payloads.
    """

    def __init__(
        self,
        *,
        swarm: Fetches,
        torrents: Finds,
        store: FetchStore,
        finisher: Finisher,
        trackers: Sequence[str] = (),
        rate: int = 0,
        web_seeds: Sequence[str] = (),
    ) -> None:
        self._swarm = swarm
        self._torrents = torrents
        self._store = store
        self._finisher = finisher
        self._trackers = tuple(trackers)
        self._web_seeds = tuple(web_seeds)
        self._lock = threading.RLock()
        self._jobs: dict[bytes, Job] = {}
        self._plans = Plans(Random())  # noqa: S311 -- nobody gains by guessing it
        self._rate = rate
        self._brought = 0
        self._pace = Pace(self._position)
        self._news = threading.Event()
        self._closed = False
        self._threads: dict[Job, threading.Thread] = {}
        self._ending: dict[bytes, threading.Thread] = {}
        self._finishing = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self._planner = threading.Thread(target=self._plan, name="prefetch", daemon=True)
        self._planner.start()

    def close(self) -> None:
        """End all fetches."""
        with self._lock:
            self._closed = True
            jobs = list(self._jobs.values())
            threads = list(self._threads.values())
        for job in jobs:
            job.cancel()
        self._news.set()
        self._planner.join(STOP_PATIENCE)
        for thread in threads:
            thread.join(STOP_PATIENCE)
        self._finishing.shutdown(wait=False, cancel_futures=True)

    # For those who wait

    @contextlib.contextmanager
    def use(
        self, wanted: Wanted, listener: Callable[[], None], *, more: bool = False
    ) -> Iterator[Callable[[], View]]:
        """Have a NAR fetched as long as this context lasts.

        Args:
            wanted: the NAR.
            listener: called when something has changed; it must not wait.
            more: it is one of a plan, which others may have as well: see `Swarm.fetch`.

        Yields:
            What says how far it is.

        Raises:
            BusyError: too much is fetched already, or the seeder is about to end.
        """
        local = self._finisher.local(wanted.nar_hash)
        if local is not None:
            view = _complete(local)
            yield lambda: view
            return
        with self._lock:
            job = self._job(wanted, more=more)
            if not job.users:
                job.waited = time.monotonic()
            job.users += 1
            job.listen(listener)
            if job.download is not None:
                job.download.limit(0)
        self._news.set()  # those who are fetched ahead get less
        try:
            yield lambda: job.view
        finally:
            with self._lock:
                job.ignore(listener)
                job.users -= 1
                self._settle(job)

    def refuse(self, nar_hash: bytes, infohash: str) -> None:
        """Never use a torrent for a NAR again."""
        self._torrents.refuse(nar_hash, infohash)
        with self._lock:
            job = self._jobs.get(nar_hash)
            if job is not None and job.view.infohash == infohash:
                self._jobs.pop(nar_hash)
                job.cancel()
                self._drop(job)
        self._finisher.withdraw(nar_hash, infohash)

    # For those who plan

    def plan(self, owner: Hashable, items: Iterable[Wanted]) -> int:
        """Fetch items ahead until `forget`; returns how many were taken."""
        with self._lock:
            accepted = self._plans.add(owner, items)
        self._news.set()
        return accepted

    def forget(self, owner: Hashable) -> None:
        """Cancel what isn't complete of a plan, unless somebody else wants it."""
        with self._lock:
            self._plans.drop(owner)
            for job in list(self._jobs.values()):
                if owner in job.plans:
                    job.plans.discard(owner)
                    self._settle(job)
        self._news.set()

    # For those who look

    def views(self) -> list[tuple[Wanted, View, bool]]:
        """What is fetched now, and whether somebody waits for it."""
        with self._lock:
            return [(job.wanted, job.view, job.users > 0) for job in self._jobs.values()]

    def pace(self) -> tuple[float, float]:
        """Of all that is fetched: bytes of NARs a second, and seconds since the last byte came.

        The rate is that of a moment or of `narswarm.pace.STEADY` seconds, whichever is more.
        """
        _, steady = self._pace.look(time.monotonic())
        with self._lock:
            running = [(job.wanted.nar_size, job.view) for job in self._jobs.values()]
        rate, idle = 0.0, math.inf
        for nar_size, view in running:
            if not view.over and view.progress.received:
                rate += view.progress.rate * nar_size / view.length
                idle = min(idle, view.progress.idle)
        return max(rate, steady or 0.0), idle

    @property
    def members(self) -> int:
        """How many others fetch the same, as far as they were met lately."""
        return self._swarm.members()

    @property
    def planned(self) -> int:
        """Items that will be fetched ahead."""
        with self._lock:
            return len(self._plans)

    def _position(self) -> int:
        """Bytes of NARs that have come."""
        with self._lock:
            return self._brought + sum(job.brought for job in self._threads)

    # Jobs; the lock is held

    def _job(self, wanted: Wanted, *, more: bool = False) -> Job:
        """The job of a NAR, begun now if there is none."""
        self._forget_evicted()
        job = self._jobs.get(wanted.nar_hash)
        if job is None or job.view.error is not None:
            running = sum(not each.view.over for each in self._jobs.values())
            if self._closed or running >= MAX_JOBS:
                raise BusyError("seeder", "fetches as much as it can")
            job = Job(
                wanted,
                self._swarm,
                self._torrents,
                self._store,
                self._trackers,
                self._web_seeds,
            )
            job.more = more
            self._jobs[wanted.nar_hash] = job
            thread = threading.Thread(
                target=self._run,
                args=(job, self._ending.get(wanted.nar_hash)),
                name="fetch",
                daemon=True,
            )
            self._threads[job] = thread
            thread.start()
        job.plans |= self._plans.owners(wanted.nar_hash)
        self._plans.done(wanted.nar_hash)
        return job

    def _forget_evicted(self) -> None:
        """Let go of payloads whose room was needed."""
        for nar_hash, job in list(self._jobs.items()):
            if job.view.complete and not job.users and not self._store.has(job.view.infohash):
                del self._jobs[nar_hash]

    def _settle(self, job: Job) -> None:
        """End a job that nobody wants any more."""
        if job.users or job.plans:
            return
        nar_hash = job.wanted.nar_hash
        if not job.view.complete and self._jobs.get(nar_hash) is job:
            job.cancel()
            del self._jobs[nar_hash]
            if job in self._threads:
                self._ending[nar_hash] = self._threads[job]

    def _drop(self, job: Job) -> None:
        """Remove the payload of a job."""
        if job.view.complete:
            job.leave()
            self._store.give_back(job.view.infohash, keep=False)

    # Threads

    def _run(self, job: Job, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()  # it may still be in the swarm of the same torrent
        try:
            job.run()
            if job.view.complete:
                # Others may have it from here until it is checked and offered, which may be long if
                # many wait for that: then its room is there for others.
                stays = self._store.is_roomy
                if not stays:
                    job.leave()
                    self._store.give_back(job.view.infohash, keep=True)
                self._finishing.submit(self._finish, job, stays=stays)
        except RuntimeError:
            pass  # the seeder ends
        finally:
            nar_hash = job.wanted.nar_hash
            with self._lock:
                thread = self._threads.pop(job)
                self._brought += job.brought
                if self._ending.get(nar_hash) is thread:
                    del self._ending[nar_hash]
                if job.view.error is not None and self._jobs.get(nar_hash) is job:
                    del self._jobs[nar_hash]
            self._news.set()

    def _finish(self, job: Job, *, stays: bool) -> None:
        """Offer what was fetched, or keep it as long as its room isn't needed."""
        view = job.view
        if not stays and not self._store.take_again(view.infohash):
            return
        moved = None
        try:
            if not self._closed and not job.cancelled and view.path is not None:
                payload = Local(view.path, view.infohash, view.kind, view.length)
                fetched = Fetched(job.wanted, job.torrent, payload)
                moved = self._finisher.finish(fetched, job.leave)
        except NarswarmError as error:
            log.warning("%s", error)
        except Exception:
            log.exception("%s", job.wanted.store_path)
        job.leave()
        with self._lock:
            if moved is not None:
                job.moved(moved)
                if self._jobs.get(job.wanted.nar_hash) is job:
                    del self._jobs[job.wanted.nar_hash]
            self._store.give_back(view.infohash, keep=moved is None)

    def _plan(self) -> None:
        while not self._closed:
            self._news.wait(LOOK if self._limit() else None)
            self._news.clear()
            while self._begin():
                pass

    def _begin(self) -> bool:
        """Begin to fetch one item ahead, if there is one and it may be."""
        with self._lock:
            if self._closed:
                return False
            self._forget_evicted()
            running = {
                job.wanted.nar_hash: job.wanted.nar_size
                for job in self._jobs.values()
                if (job.plans or job.more) and not job.view.over
            }
            moment = time.monotonic() - MOMENT
            waiting = any(
                job.users and not job.view.over and job.waited < moment
                for job in self._jobs.values()
            )
            room, rate = self._store.room, self._pace.rate
            wanted = self._plans.next(running, room, waiting=waiting, rate=rate)
            if wanted is None:
                return False
            if self._finisher.local(wanted.nar_hash) is not None:
                self._plans.done(wanted.nar_hash)
                return True
            with contextlib.suppress(BusyError):
                self._job(wanted)
                return True
            return False

    def _limit(self) -> bool:
        """Leave half of what the operator allows to whoever waits; says whether any is fetched."""
        self._pace.look(time.monotonic())
        with self._lock:
            jobs = [job for job in self._jobs.values() if not job.view.over]
            ahead = [job for job in jobs if not job.users and job.wanted.nar_size >= LARGE]
            each = share(self._rate, len(ahead))
            for job in ahead:
                if job.download is not None:
                    job.download.limit(each)
            return bool(jobs)


def _complete(local: Local) -> View:
    return View(
        serial=1,
        infohash=local.infohash,
        kind=local.kind,
        length=local.length,
        path=local.path,
        contiguous=local.length,
        complete=True,
    )
