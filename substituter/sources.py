# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the NAR of an item can come from: a swarm, by a session of our own, or a server."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from narswarm import compression, narinfo
from narswarm.errors import NetworkError
from narswarm.httpclient import HttpClient
from narswarm.httpwire import split
from substituter.lane import Runner
from substituter.nargate import exactly
from substituter.report import Transfer
from substituter.resume import Resuming

if TYPE_CHECKING:
    from narswarm.candidates import Candidate
    from narswarm.download import Download, Progress
    from narswarm.swarm import Swarm


THREADS = max(0, min(4, (os.cpu_count() or 1) - 2))
"""Threads that decompress frames: what two processors do, reading and restoring keep busy."""

MIN_RATE = 8192
"""Bytes per second that a swarm has to bring on average, or a peer that drips could hold an item
for ever; HTTP servers have such a limit, too."""


class Patience:
    """How long a swarm may keep quiet.

    Args:
        first_byte: seconds until the first byte.
        stall: seconds between two bytes.
        alone: seconds for either when there is no other source.
    """

    def __init__(self, first_byte: float, stall: float, alone: float) -> None:
        self._first_byte = first_byte
        self._stall = stall
        self._alone = alone

    def is_over(self, progress: Progress, elapsed: float, *, alone: bool) -> bool:
        """Whether to give up, `elapsed` seconds after the beginning."""
        limit = self._stall if progress.received else self._first_byte
        if alone:
            limit = self._alone
        return progress.idle > limit or elapsed > limit + progress.done / MIN_RATE


class SwarmSource:
    """A torrent whose payload is the compressed NAR.

    Args:
        swarm: the session.
        candidate: the torrent.
        nar_size: bytes at which decompression stops.
        directory: where the payload is put together.
        trackers: announce URLs from this machine's settings.
        patience: when to give up.
        name: the item's base name, shown to the user.
        web_seeds: URLs of directories that have the payload, see `narswarm.webseeds`.
        keep: takes over a download that is complete, so that it is uploaded to others; nobody
            reads it in order meanwhile.
    """

    def __init__(
        self,
        swarm: Swarm,
        candidate: Candidate,
        nar_size: int,
        directory: Path,
        trackers: Sequence[str],
        patience: Patience,
        name: str,
        web_seeds: Sequence[str] = (),
        keep: Callable[[Download], None] | None = None,
    ) -> None:
        self.candidate = candidate
        self.key = candidate.infohash
        self.infohash = candidate.infohash
        self._swarm = swarm
        self._nar_size = nar_size
        self._directory = directory
        self._trackers = trackers
        self._patience = patience
        self._name = name
        self._web_seeds = web_seeds
        self._keep = keep
        self._download: Download | None = None

    @property
    def peers(self) -> int:
        """How many are connected now, and of a crowd also those that fetch other items now."""
        if self._download is None:
            return 0
        return _progress(self._download).peers + self.members

    @property
    def members(self) -> int:
        """How many fetch the same as this machine, as far as they were met lately."""
        return self._swarm.members()

    def _is_crowded(self) -> bool:
        """Whether others are likely to bring it: nobody waits for it, and a crowd is there."""
        return self._keep is not None and self.members > 0

    @contextlib.contextmanager
    def nar(self, runner: Runner) -> Iterator[Iterator[bytes]]:
        """Fetch, decompressing what has arrived while the rest is on its way."""
        download = self._swarm.fetch(
            self.candidate.torrent,
            self._directory,
            trackers=self._trackers,
            peers=self.candidate.peers,
            web_seeds=self._web_seeds,
            in_order=self._keep is None,
        )
        self._download = download
        complete = False
        begin = time.monotonic()
        try:
            url = f"bittorrent://{self.candidate.infohash}/{self._name}"
            runner.source(
                Transfer(
                    url,
                    self.candidate.length,
                    lambda: _progress(download).done,
                    lambda: swarm_label(_progress(download).peers),
                )
            )
            chunks = download.chunks(
                stall=lambda progress: (
                    runner.dropped
                    or self._patience.is_over(
                        progress,
                        time.monotonic() - begin,
                        alone=runner.alone or self._is_crowded(),
                    )
                )
            )
            yield compression.decompress(
                chunks,
                self.candidate.kind.compression,
                limit=self._nar_size,
                subject=url,
                threads=THREADS,
            )
            complete = self._keep is not None and download.complete
        finally:
            # A leftover file must not make a failure of an item that is in place.
            with contextlib.suppress(OSError):
                if complete and self._keep is not None:
                    self._keep(download)
                else:
                    download.cancel(keep=False)


class HttpSource:
    """One URL of a narinfo.

    Args:
        client: the connections.
        source: URL and compression, not under any signature.
        nar_size: bytes at which decompression stops.
    """

    def __init__(self, client: HttpClient, source: narinfo.Source, nar_size: int) -> None:
        self.key = source.url
        self._client = client
        self._source = source
        self._nar_size = nar_size

    @property
    def host(self) -> str:
        """The server's name and port."""
        with contextlib.suppress(NetworkError):
            return split(self._source.url).authority
        return ""

    @contextlib.contextmanager
    def nar(self, runner: Runner) -> Iterator[Iterator[bytes]]:
        """Fetch, decompressing on the way."""
        url, kind = self._source.url, self._source.compression
        # What is longer than it says isn't read to its end, so that its connection isn't kept.
        with self._client.stream(url, keep=True) as response:
            body = Resuming(self._client, url, response)
            runner.on_drop(body.abort)
            if response.status != 200:
                raise NetworkError(url, f"the server answered {response.status}")
            size = response.length or self._source.file_size
            if size is None and kind == "none":
                size = self._nar_size
            runner.source(Transfer(url, size, lambda: body.done, lambda: split(url).host))
            chunks = iter(body)
            if kind == "none":
                yield exactly(chunks, self._nar_size)
            else:
                yield compression.decompress(chunks, kind, limit=self._nar_size, subject=url)


def swarm_label(peers: int) -> str:
    """What people call a swarm; peers that have gone when all is here aren't counted."""
    return f"swarm, {peers} peer{'' if peers == 1 else 's'}" if peers else "swarm"


def _progress(download: Download) -> Progress:
    from narswarm.download import Progress  # noqa: PLC0415 -- loaded by then

    try:
        return download.progress()
    except NetworkError:
        return Progress(0, 0, 0, 0, 0.0, 0)  # it is over; the reader says why
