# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the items of a session's plan fetched ahead, here or by the seeder of this machine.

What a session is going to ask for is noted by the helper that answers its queries, while the one
that substitutes is at work already; so the notes are read again and again.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from narswarm.narinfo import Narinfo
from substituter import plan
from substituter.context import Context
from substituter.finding import Finder
from substituter.prefetch import Prefetcher
from substituter.race import Policy, Way
from substituter.schedule import order, preferred
from substituter.session import Session
from substituter.spool import Spool

_BATCH: Final = 64
"""Items whose narinfos are looked at together, at first: those are begun before the last ones are
known. Later batches are larger, as each is put in order with all others."""


class Planner:
    """Follows the plan of one session.

    Args:
        context: the machine and the network.
        session: its directory is where the disk is.
        finder: finds sources.

    Attributes:
        prefetcher: has what was fetched.
    """

    def __init__(self, context: Context, session: Session, finder: Finder) -> None:
        self._context = context
        self._policy = Policy(context.settings.policy)
        spool = Spool(session.downloads, context.settings.prefetch_disk)
        self.prefetcher = Prefetcher(
            spool, self._policy, finder.ahead, finder.ways, rates=context.rates
        )
        self._asked: set[str] = set()
        self._seen: set[str] = set()
        self._open: set[str] = set()
        self._news = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def is_more(self) -> bool:
        """Whether anything of the plan hasn't been asked for."""
        if not self._context.settings.prefetch_disk:
            return False
        if self._seen:
            return bool(self._open)
        noted = plan.read(self._context.plans)
        return any(path not in self._asked and not os.path.lexists(path) for path in noted)

    def look(self, path: str) -> None:
        """Look whether there is more to do, now that an item is asked for."""
        self._asked.add(path)
        self._open.discard(path)
        self._news.set()
        if self._thread is None and self._context.settings.prefetch_disk:
            self._thread = threading.Thread(target=self._follow, name="plan", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End it; a helper that is killed needs no such thing."""
        self._closed = True
        self._news.set()
        if self._thread is not None:
            self._thread.join()
            plan.release()
        self.prefetcher.close()

    def _follow(self) -> None:
        mine = plan.claim(self._context.plans)
        while mine:
            self._news.wait()
            self._news.clear()
            if self._closed:
                return
            try:
                self._read()
            except Exception as error:  # noqa: BLE001 -- only speed is lost
                self._context.warn_once(f"fetching ahead: {error}")

    def _read(self) -> None:
        noted = plan.read(self._context.plans)
        new = [path for path in noted if path not in self._seen and path not in self._asked]
        self._seen.update(new)
        new = [path for path in new if not os.path.lexists(path)]
        self._open.update(path for path in new if path not in self._asked)
        start, size = 0, _BATCH
        while start < len(new):
            self._add(new[start : start + size])
            start, size = start + size, size * 2

    def _add(self, paths: list[str]) -> None:
        context = self._context
        narinfos = context.narinfos(paths, context.settings.query_timeout)
        others = {p: n for p, n in narinfos.items() if context.seeder and self._is_for_seeder(n)}
        self.prefetcher.add({p: n for p, n in narinfos.items() if p not in others})
        if others and context.seeder is not None:
            from narswarm.fetchclient import Wanted  # noqa: PLC0415 -- where there is a seeder

            context.ahead.update(others)
            references = {
                path: [f"{path.rpartition('/')[0]}/{name}" for name in found.references]
                for path, found in others.items()
            }
            ordered = [others[path] for path in order(references)]
            context.seeder.prefetch([Wanted(n.nar_hash, n.nar_size, n.store_path) for n in ordered])

    def _is_for_seeder(self, narinfo: Narinfo) -> bool:
        return preferred(self._policy, narinfo.nar_size) is Way.SWARM or not narinfo.sources
