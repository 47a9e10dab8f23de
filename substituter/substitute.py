# SPDX-License-Identifier: GPL-3.0-or-later
"""`guix substitute --substitute`: puts items in place, from whichever source can.

The order: the swarm as long as it keeps moving, HTTP, the swarm with more patience, guix's own
helper. A wrong or broken copy from one source never ends the search.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from narswarm.candidates import flatten
from narswarm.errors import InvalidInputError, NarswarmError
from narswarm.narinfo import Narinfo
from narswarm.restore import Deduplicator, RestoreError, delete
from narswarm.storepath import STORE
from substituter import protocol, realguix
from substituter.context import Context
from substituter.nargate import Gate, WrongNarError
from substituter.preference import by_preference
from substituter.report import Report
from substituter.session import Session
from substituter.sources import HttpSource, NarSource, Patience, SwarmSource

_NARINFO_TIMEOUT = 30.0

_MAX_QUICK = 3
"""Torrents that are tried before HTTP: strangers may name many, each without a peer."""

_MAX_PATIENT = 16
"""Torrents that are tried when there is no other source."""


class Substitute:
    """Substitutes the items of one session, one after another.

    Args:
        context: the machine and the network.
        session: gives the swarm.
        reply: gets each status line, whole.
    """

    def __init__(self, context: Context, session: Session, reply: Callable[[bytes], None]) -> None:
        self._context = context
        self._session = session
        self._reply = reply

    def run(self, commands: BinaryIO) -> None:
        """Serve each line until the end of the input.

        Never ends before: guix-daemon would keep the dead helper, and the next item would break
        the connection of its client.
        """
        while line := commands.readline():
            command = protocol.parse_command(line)
            if command is None:
                continue
            try:
                status = self._serve(command)
            except NarswarmError as error:
                self._context.warn(str(error))
                status = protocol.NOT_FOUND
            except Exception as error:  # noqa: BLE001 -- see the docstring
                self._context.warn(f"{' '.join(command.words[:1])}: internal error: {error!r}")
                status = protocol.NOT_FOUND
            self._reply(status)
            self._session.save()

    def _serve(self, command: protocol.Command) -> bytes:
        if command.verb != "substitute" or len(command.words) != 2:
            self._context.warn(f"{command.verb}: unknown command")
            return protocol.NOT_FOUND
        path, destination = command.words
        if self._context.trackers:
            self._session.start()
        options = self._context.options
        name = path.rpartition("/")[2]
        with Report(destination, name, trace=options.trace, columns=options.columns) as report:
            item = Item(self._context, self._session, path, destination, report)
            try:
                item.substitute()
            except _NoSourceError as error:
                report.note(str(error))
            else:
                return protocol.success(*item.digest)
        status = self._by_guix(path, destination)
        if not status and item.mismatch is not None:
            return protocol.hash_mismatch(item.digest[0], item.mismatch)
        return status or protocol.NOT_FOUND

    def _by_guix(self, path: str, destination: str) -> bytes:
        """The status line of guix's own helper; b"" if it, or guix itself, is missing."""
        try:
            guix = realguix.find(self._context.settings.guix, self._context.environ)
        except NarswarmError as error:
            self._context.warn(str(error))
            return b""
        status = realguix.substitute(guix, path, destination, self._context.environ)
        if not status.startswith(b"success "):
            # When it crashes, on a damaged NAR for example, it leaves what it has written.
            delete(destination)
        return status


class _NoSourceError(NarswarmError):
    """All of our own ways have failed; guix's own helper is next."""


class Item:
    """The substitution of one item.

    Args:
        context: the machine and the network.
        session: gives the swarm.
        path: the store path.
        destination: where it goes.
        report: what the user sees.

    Attributes:
        digest: the NarHash and NarSize that an authorised key vouches for, once they are known.
        mismatch: the SHA-256 of the last wrong copy that a source delivered.
    """

    def __init__(
        self, context: Context, session: Session, path: str, destination: str, report: Report
    ) -> None:
        self.digest = (b"", 0)
        self.mismatch: bytes | None = None
        self._context = context
        self._session = session
        self._path = path
        self._destination = destination
        self._report = report

    def substitute(self) -> None:
        """Put the item in place.

        Raises:
            _NoSourceError: no source delivered it; nothing is at the destination.
            RestoreError: the store can't take it, wherever it comes from.
        """
        self._context.reload_acl()
        narinfo = self._context.narinfos([self._path], _NARINFO_TIMEOUT).get(self._path)
        if narinfo is None:
            raise _NoSourceError(self._path, "no authorised narinfo")
        self.digest = (narinfo.nar_hash, narinfo.nar_size)
        gate = Gate(narinfo, self._destination, self._deduplicator())
        for source in self._sources(narinfo):
            try:
                with source.nar(self._report) as nar:
                    gate.restore(nar)
            except RestoreError:
                raise
            except Exception as error:  # noqa: BLE001 -- one source never ends the search
                if not isinstance(error, NarswarmError):
                    error = NarswarmError(self._path, f"internal error: {error!r}")
                self._report.note(str(error))
                self._judge(source, narinfo, error)
            else:
                self._report.succeeded()
                return
        raise _NoSourceError(self._path, "no source delivered it, leaving it to guix itself")

    def _deduplicator(self) -> Deduplicator | None:
        """What shares files; not for a repair, where the shared file may be the broken one."""
        repair = self._destination.endswith(".tmp")
        if not self._context.options.deduplicate or repair:
            return None
        return Deduplicator(STORE) if self._destination.startswith(f"{STORE}/") else None

    def _judge(self, source: NarSource, narinfo: Narinfo, error: NarswarmError) -> None:
        if isinstance(error, WrongNarError):
            self.mismatch = error.actual
        wrong = isinstance(error, WrongNarError | InvalidInputError)
        if wrong and isinstance(source, SwarmSource):
            self._context.torrents.refuse(narinfo.nar_hash, source.candidate.infohash)

    def _sources(self, narinfo: Narinfo) -> Iterator[NarSource]:
        settings = self._context.settings
        quick = Patience(settings.first_byte_timeout, settings.stall_timeout)
        patient = Patience(settings.patience, settings.patience)
        if narinfo.sources:
            swarms = self._swarms(narinfo, settings.lookup_timeout, quick)
            yield from itertools.islice(swarms, _MAX_QUICK)
            yield from self._servers(narinfo)
        swarms = self._swarms(narinfo, settings.patience, patient)
        yield from itertools.islice(swarms, _MAX_PATIENT)

    def _swarms(self, narinfo: Narinfo, timeout: float, patience: Patience) -> Iterator[NarSource]:
        torrents = self._context.torrents
        known = torrents.known(narinfo.nar_hash, narinfo.nar_size)
        asked = torrents.ask(narinfo.nar_hash, narinfo.nar_size, timeout, self._context.warn_once)
        for candidate in flatten((known, asked)):
            try:
                swarm = self._session.swarm()
            except NarswarmError:
                return  # the session has said why; there are other ways
            yield SwarmSource(
                swarm,
                candidate,
                narinfo.nar_size,
                self._session.downloads,
                self._context.settings.trackers,
                patience,
                self._path.rpartition("/")[2],
            )

    def _servers(self, narinfo: Narinfo) -> Iterator[NarSource]:
        tried: set[str] = set()
        narinfos = itertools.chain(
            [narinfo], _lazily(lambda: self._context.equivalents(narinfo, _NARINFO_TIMEOUT))
        )
        for each in narinfos:
            for source in by_preference(each.sources):
                if source.url not in tried:
                    tried.add(source.url)
                    yield HttpSource(self._context.client, source, narinfo.nar_size)


def _lazily(make: Callable[[], Iterable[Narinfo]]) -> Iterator[Narinfo]:
    """The values of `make`, which isn't called before the first of them is wanted."""
    yield from make()
