# SPDX-License-Identifier: GPL-3.0-or-later
"""`guix substitute --query`: which items are available, and how large they are.

guix-daemon walks references depth first with one `info` each, so whatever an answer refers to is
looked up ahead, in the background; and the torrents of items are learned before they are wanted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from narswarm.errors import NarswarmError
from narswarm.narinfo import Narinfo
from narswarm.storepath import STORE
from substituter import plan, protocol
from substituter.context import Context
from substituter.plan import PlanWriter
from substituter.preference import by_preference

_MAX_AHEAD = 10_000
"""Items that are looked up ahead in one session."""
_BATCH = 64


class Query:
    """Answers queries of one session.

    Args:
        context: the machine and the network.
        reply: gets the bytes of the answers.
        ahead: whether to look up what the answers refer to.
    """

    def __init__(
        self, context: Context, reply: Callable[[bytes], None], *, ahead: bool = True
    ) -> None:
        self._context = context
        self._reply = reply
        self._ahead = Ahead(context) if ahead else None
        self._plan = PlanWriter(context.plans)
        self._answered: list[Narinfo] = []

    def run(self, commands: BinaryIO) -> None:
        """Answer each line until the end of the input.

        Never fails: an unanswered query would hang the user's build for good, and an ended
        helper would break it.
        """
        # A line may name thousands of paths; guix-daemon is trusted with its length.
        while line := commands.readline():
            command = protocol.parse_command(line)
            if command is None:
                continue
            try:
                answer = self._answer(command)
            except NarswarmError as error:
                self._context.warn(str(error))
                answer = b""
            except Exception as error:  # noqa: BLE001 -- see the docstring
                self._context.warn(f"{command.verb}: internal error: {error!r}")
                answer = b""
            self._reply(answer + protocol.END)
            if self._ahead:
                # What it loads and looks up doesn't hold the answer up.
                self._ahead.add(self._answered)
                self._answered = []

    def _answer(self, command: protocol.Command) -> bytes:
        if command.verb not in ("have", "info"):
            self._context.warn(f"{command.verb}: unknown query")
            return b""
        deadline = time.monotonic() + self._context.settings.query_timeout
        found = self._context.narinfos(command.words, deadline - time.monotonic())
        # Whoever is told that an item is available doesn't build it, and fails without it.
        unsure = [path for path in found if not by_preference(found[path].sources)]
        somewhere = self._context.executor.map(
            lambda path: self._is_in_a_swarm(found[path], deadline), unsure
        )
        for path, is_there in zip(unsure, somewhere, strict=True):
            if not is_there:
                del found[path]
        available = {path: found[path] for path in command.words if path in found}
        self._answered = list(available.values())
        if command.verb == "info":
            # Clients ask `have` of what they only want to know about.
            self._plan.add(available)
        else:
            return b"".join(protocol.have(path) for path in available)
        return b"".join(
            protocol.info(narinfo, download_size(narinfo)) for narinfo in available.values()
        )

    def _is_in_a_swarm(self, narinfo: Narinfo, deadline: float) -> bool:
        """Whether an item that no server has can be fetched: trackers mirror such narinfos, too.

        What is known of a torrent counts unless a tracker says that nobody has it: peers may be
        in the DHT.
        """
        torrents, warn = self._context.torrents, self._context.warn_once
        left = max(0.0, deadline - time.monotonic())
        deserted = set()
        for candidate in torrents.ask(narinfo.nar_hash, narinfo.nar_size, left, warn):
            if candidate.peers:
                return True
            deserted.add(candidate.infohash)
        known = torrents.known(narinfo.nar_hash, narinfo.nar_size)
        return any(candidate.infohash not in deserted for candidate in known)


class Ahead:
    """Looks up what will be asked next: narinfos of references, then torrents.

    Args:
        context: the machine and the network.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._seen: set[str] = set()
        self._learned: set[bytes] = set()
        self._paths: deque[str] = deque()
        self._narinfos: deque[Narinfo] = deque()
        self._wake = threading.Condition()
        threading.Thread(target=self._work, name="ahead", daemon=True).start()

    def add(self, narinfos: Iterable[Narinfo]) -> None:
        """Take note of answered narinfos."""
        with self._wake:
            for narinfo in narinfos:
                self._seen.add(narinfo.store_path)
                self._narinfos.append(narinfo)
                for reference in narinfo.references:
                    path = f"{STORE}/{reference}"
                    if path not in self._seen and len(self._seen) < _MAX_AHEAD:
                        self._seen.add(path)
                        self._paths.append(path)
            self._wake.notify()

    def _work(self) -> None:
        pruned = False
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._paths or self._narinfos)
                paths = [self._paths.popleft() for _ in range(min(_BATCH, len(self._paths)))]
                narinfos = list(self._narinfos)
                self._narinfos.clear()
            try:
                if not pruned:
                    pruned = True
                    plan.prune(self._context.plans)
                    self._context.torrents.prune_if_due(time.time())
                missing = [path for path in paths if not Path(path).exists()]
                if missing:
                    found = self._context.narinfos(missing, self._context.settings.query_timeout)
                    self.add(found.values())
                self._learn(narinfos)
            except Exception as error:  # noqa: BLE001 -- only speed is lost
                self._context.warn_once(f"looking ahead: {error}")

    def _learn(self, narinfos: Iterable[Narinfo]) -> None:
        context = self._context
        for narinfo in narinfos:
            if narinfo.nar_hash not in self._learned and not Path(narinfo.store_path).exists():
                self._learned.add(narinfo.nar_hash)
                context.torrents.learn(narinfo.nar_hash, narinfo.nar_size, context.warn_once)


def download_size(narinfo: Narinfo) -> int:
    """Bytes of the source that HTTP would use, 0 when the narinfo doesn't say."""
    for source in by_preference(narinfo.sources):
        if source.file_size is not None:
            return source.file_size
    return 0
