# SPDX-License-Identifier: GPL-3.0-or-later
"""A seeder's socket that says what a test wants, for those who ask it to fetch."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from narswarm import base32
from narswarm.control import ControlServer, Conversation, GoneError
from narswarm.errors import NarswarmError
from narswarm.fetchclient import Wanted

WANTED = Wanted(b"\1" * 32, 1000, f"/gnu/store/{'0' * 32}-item")
DESCRIBED = {
    "nar_hash": base32.format_hash(b"\1" * 32),
    "nar_size": 1000,
    "store_path": WANTED.store_path,
}
DONE = {"event": "done"}


def source(name: str = "aa", length: int = 7) -> dict[str, Any]:
    """What is said of a torrent."""
    return {"event": "source", "infohash": name, "kind": "nar.zst", "length": length}


def progress(contiguous: int) -> dict[str, Any]:
    """What is said of the progress."""
    return {
        "event": "progress",
        "contiguous": contiguous,
        "done": contiguous,
        "peers": 2,
        "rate": 100,
        "idle": 0.0,
        "received": contiguous,
    }


class FakeSeeder:
    """Answers a fetch with what it was told to say, and with files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "control.sock"
        self.script: list[Any] = []
        self.requests: SimpleQueue[Mapping[str, Any]] = SimpleQueue()
        self.more = threading.Event()
        self.gone = threading.Event()
        self.server = ControlServer(
            directory,
            {"refuse": self._note},
            streams={"fetch": self._fetch, "prefetch": self._prefetch},
        )

    def say(self, *script: Any) -> None:
        """Lines, files' contents for the sources among them, or events to wait for."""
        self.script = list(script)

    def file(self, content: bytes) -> Path:
        """A payload's file."""
        path = self.directory / f"payload-{len(list(self.directory.iterdir()))}"
        path.write_bytes(content)
        return path

    def _note(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.requests.put(request)
        return {}

    def _prefetch(self, request: Mapping[str, Any], conversation: Conversation) -> None:
        self.requests.put(request)
        conversation.at_end(self.gone.set)
        conversation.send({"accepted": len(request["items"])})

    def _fetch(self, request: Mapping[str, Any], conversation: Conversation) -> None:
        self.requests.put(request)
        try:
            self._play(conversation)
        except GoneError:
            self.gone.set()

    def _play(self, conversation: Conversation) -> None:
        for each in self.script:
            if isinstance(each, tuple):
                line, path = each
                with path.open("rb") as file:
                    conversation.send(line, file.fileno())
            elif isinstance(each, NarswarmError):
                raise each
            elif isinstance(each, threading.Event):
                assert each.wait(120)
            else:
                conversation.send(each)
        conversation.wait(120)


def open_files() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def wait_for_files(count: int) -> None:
    """Wait until no more are open: the fake seeder's end closes when its thread gets to it."""
    give_up = time.monotonic() + 120
    while open_files() > count:
        assert time.monotonic() < give_up, "files stay open"
        time.sleep(0.01)
