# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user of `guix build` sees while an item is fetched.

With an extended build trace the client draws its own bar from `@ download-…` lines; otherwise
text for people is written. Either way something is written at least every two seconds, since
guix-daemon kills a helper that is silent for `--max-silent-time`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

HEARTBEAT = 2.0
"""Seconds after which something is written although nothing moved."""

_INTERVAL = 0.2
"""Seconds between two progress lines, as Guix's own."""


def write_stderr(text: str) -> None:
    """Write to file descriptor 2, which may be gone already."""
    data = text.encode("utf-8", "surrogateescape")
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        pass


def warn(message: str) -> None:
    """Show one line to the user."""
    write_stderr(f"substituter: {plain(message)}\n")


def plain(text: str) -> str:
    r"""Return `text` on one line, with control characters as `\x1b`.

    Messages quote strangers: file names of a NAR, answers of servers. A line break could forge
    a line that the client believes to be guix-daemon's. (`narswarm.cli` has the same, with click.)
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Transfer(NamedTuple):
    """Where an item comes from, and how far it is.

    Attributes:
        url: shown to the user; without spaces, and without `/nar/` unless it is HTTP
            (the client's terminal code fails on such a URL).
        total: bytes to transfer, None when unknown.
        done: gives the bytes transferred so far.
        label: gives what people call it by now, such as `swarm, 7 peers`; empty for nothing.
    """

    url: str
    total: int | None
    done: Callable[[], int]
    label: Callable[[], str] = str


class Report:
    """The progress of one item; a context manager that keeps the line alive.

    Args:
        destination: where the item is restored; Guix names it in its trace lines.
        name: the item's base name.
        trace: whether the client wants `@ download-…` lines.
        columns: the width of its terminal.
        write: where text goes.
        clock: seconds from any start.
    """

    def __init__(
        self,
        destination: str,
        name: str,
        *,
        trace: bool,
        columns: int,
        write: Callable[[str], None] = write_stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._destination = destination
        self._name = name
        self._trace = trace
        self._columns = columns
        self._write = write
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._transfer = Transfer(f"bittorrent://search/{name}", None, int)
        self._last = -1
        self._clock = clock
        self._started = (clock(), 0)
        self._noted: set[str] = set()
        self._thread = threading.Thread(target=self._beat, name="report", daemon=True)

    def __enter__(self) -> Self:
        """Start the heartbeat."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it; nothing is written any more."""
        self._closed.set()
        self._thread.join()

    def source(self, transfer: Transfer) -> None:
        """Say where the item comes from now."""
        url = transfer.url
        if not url.startswith("http") and (label := transfer.label()):
            # Clients show what is behind the last slash, and can't have spaces.
            url = f"{url},{label.replace(', ', ',').replace(' ', '-')}"
        with self._lock:
            self._started = (self._clock(), transfer.done())
            self._transfer, self._last = transfer._replace(url=url), -1
            if self._trace:
                self._write(f"@ download-started {self._destination} {url} {self._size()}\n")
            else:
                self._write(f"Downloading {url}...\n")

    def succeeded(self) -> None:
        """Say that the item is in place."""
        with self._lock:
            url, total = self._transfer.url, self._transfer.total
            done = total if total is not None else self._transfer.done()
            if self._trace:
                self._write(
                    f"@ download-progress {self._destination} {url} {done} {done}\n"
                    f"@ download-succeeded {self._destination} {url} {done}\n\n"
                )
            else:
                self._write(f"\r\x1b[K{self._line(done)}\n\n")

    def note(self, message: str) -> None:
        """Show one line beside the progress, unless it was shown already."""
        with self._lock:
            if message in self._noted:
                return
            self._noted.add(message)
            self._write(
                f"{'' if self._trace else chr(13) + chr(27) + '[K'}substituter: {plain(message)}\n"
            )

    def _beat(self) -> None:
        idle = 0.0
        while not self._closed.wait(_INTERVAL):
            with self._lock:
                done = self._transfer.done()
                idle = 0.0 if done != self._last else idle + _INTERVAL
                if idle == 0.0 or idle >= HEARTBEAT:
                    idle = 0.0
                    self._last = done
                    self._show(done)

    def _show(self, done: int) -> None:
        if self._trace:
            # The client takes the total for a number as soon as it draws a bar.
            what = f"{self._destination} {self._transfer.url} {self._size()}"
            self._write(f"@ download-progress {what} {done}\n")
        else:
            self._write(f"\r\x1b[K{self._line(done)}")

    def _size(self) -> int | str:
        return "-" if self._transfer.total is None else self._transfer.total

    def _line(self, done: int) -> str:
        """The bar as Guix draws it, with the source's name where there is room for it."""
        begin, at_first = self._started
        seconds = max(self._clock() - begin, 0.001)
        rate = max(0, done - at_first) / seconds
        size = f"{done / 2**20:.1f}MiB"
        speed = f"{rate / 2**20:.1f}MiB/s {int(seconds) // 60:02}:{int(seconds) % 60:02}"
        label, total = self._transfer.label(), self._transfer.total
        source = f"  {label}" if label else ""
        if not total:
            return f" {self._name}  {size}  {speed}{source}"[: self._columns]
        share = min(1.0, done / total)
        end = f"{share:6.1%}"
        for left in (f" {self._name}{source}", f" {self._name}"):
            right = f"  {size}  {speed} "
            room = self._columns - len(left) - len(right) - len(end) - 2
            if room >= 5:
                filled = int(share * room)
                return f"{left}{right}[{'#' * filled}{' ' * (room - filled)}]{end}"
        return f" {self._name}  {size} {end}"[: self._columns]
