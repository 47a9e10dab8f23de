# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the NAR of an item can come from: a swarm or a substitute server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from narswarm import compression, narinfo
from narswarm.candidates import Candidate
from narswarm.errors import NetworkError
from narswarm.httpclient import HttpClient
from narswarm.payload import Kind
from narswarm.swarm import Download, Progress, Swarm
from substituter.nargate import exactly
from substituter.report import Report


class NarSource(Protocol):
    """Something that can deliver the NAR of an item."""

    def nar(self, report: Report) -> contextlib.AbstractContextManager[Iterator[bytes]]:
        """The NAR in chunks; raises a NarswarmError when it can't go on."""
        ...


MIN_RATE = 8192
"""Bytes per second that a swarm has to bring on average, or a peer that drips could hold an item
for ever; HTTP servers have such a limit, too."""


class Patience:
    """How long a swarm may keep quiet.

    Args:
        first_byte: seconds until the first byte.
        stall: seconds between two bytes.
    """

    def __init__(self, first_byte: float, stall: float) -> None:
        self._first_byte = first_byte
        self._stall = stall

    def __call__(self, progress: Progress, elapsed: float) -> bool:
        """Whether to give up, `elapsed` seconds after the beginning."""
        limit = self._stall if progress.received else self._first_byte
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
    ) -> None:
        self.candidate = candidate
        self._swarm = swarm
        self._nar_size = nar_size
        self._directory = directory
        self._trackers = trackers
        self._patience = patience
        self._name = name

    @contextlib.contextmanager
    def nar(self, report: Report) -> Iterator[Iterator[bytes]]:
        """Fetch, decompressing what has arrived while the rest is on its way."""
        download = self._swarm.fetch(
            self.candidate.torrent,
            self._directory,
            trackers=self._trackers,
            peers=self.candidate.peers,
        )
        begin = time.monotonic()
        try:
            url = f"bittorrent://{self.candidate.infohash}/{self._name}"
            report.source(url, self.candidate.length, lambda: _done(download))
            chunks = download.chunks(
                stall=lambda progress: self._patience(progress, time.monotonic() - begin)
            )
            yield compression.decompress(
                chunks,
                "zstd" if self.candidate.kind is Kind.ZSTD else "none",
                limit=self._nar_size,
                subject=url,
            )
        finally:
            # A leftover file must not make a failure of an item that is in place.
            with contextlib.suppress(OSError):
                download.cancel(keep=False)


class HttpSource:
    """One URL of a narinfo.

    Args:
        client: the connections.
        source: URL and compression, not under any signature.
        nar_size: bytes at which decompression stops.
    """

    def __init__(self, client: HttpClient, source: narinfo.Source, nar_size: int) -> None:
        self._client = client
        self._source = source
        self._nar_size = nar_size

    @contextlib.contextmanager
    def nar(self, report: Report) -> Iterator[Iterator[bytes]]:
        """Fetch, decompressing on the way."""
        url, kind = self._source.url, self._source.compression
        done = 0

        def counted(chunks: Iterator[bytes]) -> Iterator[bytes]:
            nonlocal done
            for chunk in chunks:
                done += len(chunk)
                yield chunk

        with self._client.stream(url) as response:
            if response.status != 200:
                raise NetworkError(url, f"the server answered {response.status}")
            size = response.length or self._source.file_size
            if size is None and kind == "none":
                size = self._nar_size
            report.source(url, size, lambda: done)
            chunks = counted(iter(response))
            if kind == "none":
                yield exactly(chunks, self._nar_size)
            else:
                yield compression.decompress(chunks, kind, limit=self._nar_size, subject=url)


def _done(download: Download) -> int:
    try:
        return download.progress().done
    except NetworkError:
        return 0  # it is over; the reader says why
