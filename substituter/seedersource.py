# SPDX-License-Identifier: GPL-3.0-or-later
"""The NAR of an item from the seeder of this machine, which has a session that is warm."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Container, Iterator
from dataclasses import replace
from typing import Final

from narswarm import compression
from narswarm.candidates import MAKING_RATE
from narswarm.download import Progress, SwarmStalledError
from narswarm.errors import NetworkError
from narswarm.fetchclient import Fetching, SeederClient, Source, SourceChangedError, Wanted
from substituter.ahead import GRACE
from substituter.lane import Runner
from substituter.race import Standing
from substituter.report import Transfer
from substituter.sources import THREADS, Patience, swarm_label

_LOOK: Final = 0.1
"""Seconds between two looks whether the item is still wanted."""


class SeederSource:
    """What the seeder fetches for us.

    Args:
        client: of the seeder.
        wanted: the NAR.
        patience: when to give up.
        name: the item's base name, shown to the user.
        refused: infohashes of torrents that were wrong.
        more: others of a plan will be asked for.

    Attributes:
        infohash: of the torrent that is used, "" before there is one.
        changed: the seeder has begun anew with another torrent; asking again gives that one.
    """

    def __init__(
        self,
        client: SeederClient,
        wanted: Wanted,
        patience: Patience,
        name: str,
        refused: Container[str],
        *,
        more: bool = False,
    ) -> None:
        self.key = f"the seeder's {name}"
        self.infohash = ""
        self.changed = False
        self._client = client
        self._wanted = wanted
        self._patience = patience
        self._name = name
        self._refused = refused
        self._more = more
        self._fetching: Fetching | None = None
        self._before = (0, -math.inf)

    def standing(self, one: Standing, now: float) -> Standing:
        """How far it is, which isn't seen by what can be read in order; see `AheadSource`.

        What the seeder fetches beside it shares the line, and is wanted, too.
        """
        fetching = self._fetching
        if fetching is None:
            return one
        source, progress, pace = fetching.source_now, fetching.progress(), fetching.pace()
        position, members = one.position, fetching.members
        if source is not None and source.length:
            size = self._wanted.nar_size
            position = max(position, min(size, size * progress.done // source.length))
        if position != self._before[0] or self._before[1] == -math.inf:
            self._before = position, now
        last, rate = max(one.last, self._before[1]), one.rate
        if pace is not None:
            last = max(last, min(now - pace[1], last + GRACE))
            if rate is not None:  # what others bring says nothing of one that was just begun
                rate = max(pace[0], rate)
        lonely = bool(position) and progress.peers + members == 1
        return one._replace(position=position, last=last, rate=rate, lonely=lonely, members=members)

    @contextlib.contextmanager
    def nar(self, runner: Runner) -> Iterator[Iterator[bytes]]:
        """Have it fetched, decompressing what has arrived while the rest is on its way."""
        wait = Wait(self._patience, self._wanted.nar_size, time.monotonic())
        self.changed = False
        with self._client.fetch(self._wanted, more=self._more) as fetching:
            self._fetching = fetching
            source = self._found(fetching, runner, wait)
            self.infohash = source.infohash
            if source.infohash in self._refused:
                raise NetworkError(self.key, "was wrong before")
            url = f"bittorrent://{source.infohash}/{self._name}"
            runner.source(
                Transfer(
                    url,
                    source.length,
                    lambda: fetching.progress().done,
                    lambda: swarm_label(fetching.progress().peers),
                )
            )
            chunks = fetching.chunks(
                stall=lambda progress: (
                    runner.dropped
                    or wait.is_over(
                        progress,
                        time.monotonic(),
                        preparing=fetching.preparing,
                        alone=_alone(runner, fetching),
                    )
                )
            )
            try:
                yield compression.decompress(
                    chunks,
                    source.kind.compression,
                    limit=self._wanted.nar_size,
                    subject=url,
                    threads=THREADS,
                )
            except SourceChangedError:
                self.changed = True
                raise

    def _found(self, fetching: Fetching, runner: Runner, wait: Wait) -> Source:
        begin = time.monotonic()
        while True:
            try:
                return fetching.source(_LOOK)
            except SwarmStalledError:
                now = time.monotonic()
                nothing = Progress(0, 0, 0, 0, now - begin, 0)
                over = wait.is_over(
                    nothing, now, preparing=fetching.preparing, alone=_alone(runner, fetching)
                )
                if runner.dropped or over:
                    raise


def _alone(runner: Runner, fetching: Fetching) -> bool:
    """Whether patience makes sense: a crowd's members listen before they ask seeds."""
    return runner.alone or fetching.members > 0


class Wait:
    """How long an item is waited for, of which the payload may have to be made.

    Args:
        patience: with a swarm.
        nar_size: bytes of the NAR.
        now: seconds from any start.
    """

    def __init__(self, patience: Patience, nar_size: int, now: float) -> None:
        self._patience = patience
        self._until = now + nar_size / MAKING_RATE
        self._begin = now

    def is_over(self, progress: Progress, now: float, *, preparing: bool, alone: bool) -> bool:
        """Whether to give up.

        Args:
            progress: of the swarm.
            now: on the same clock as before.
            preparing: whether somebody makes the payload now.
            alone: whether there is no other source.
        """
        if preparing and now < self._until:
            self._begin = now  # what that takes isn't the swarm's slowness
            return False
        elapsed = now - self._begin
        return self._patience.is_over(
            replace(progress, idle=min(progress.idle, elapsed)), elapsed, alone=alone
        )
