# SPDX-License-Identifier: GPL-3.0-or-later
"""`guix substitute --substitute`: puts items in place, from whichever source can.

A swarm and substitute servers race for each item (`substituter.race`); guix's own helper is the
last resort. A wrong or broken copy from one source never ends the search.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from narswarm.errors import (
    BusyError,
    InvalidInputError,
    NarswarmError,
    NetworkError,
    NotFoundError,
)
from narswarm.narinfo import Narinfo
from narswarm.restore import Deduplicator, RestoreError, delete
from narswarm.storepath import STORE
from substituter import protocol, realguix
from substituter.ahead import Ahead
from substituter.contest import Contest, NobodyLeftError
from substituter.context import Context
from substituter.finding import MAX_QUICK, NARINFO_TIMEOUT, Finder
from substituter.lane import Lane, NarSource, Sources
from substituter.nargate import Gate, WrongNarError
from substituter.planner import Planner
from substituter.race import SMALL, Policy, Way
from substituter.report import Report
from substituter.session import Session
from substituter.sources import HttpSource

if TYPE_CHECKING:
    from narswarm.fetchclient import SeederClient

_MAX_PATIENT = 16
"""Torrents that are tried when there is no other source."""

_MAX_RACES = 20
"""Races for one item; each that is lost to a wrong NAR has one source fewer in the next."""

_TIDYING = 0.2
"""Seconds for which a swarm that has delivered an item may delete what it has fetched."""

_FAREWELL = 2.0
"""Seconds that sources have to close before they are tried anew."""


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
        self._finder = Finder(context, session)
        self._planner = Planner(context, session, self._finder)

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
        self._planner.look(path)
        options = self._context.options
        name = path.rpartition("/")[2]
        with Report(destination, name, trace=options.trace, columns=options.columns) as report:
            item = Item(self._context, self._finder, path, destination, report, self._planner)
            try:
                item.substitute()
            except _NoSourceError as error:
                report.note(str(error))
            else:
                return protocol.success(*item.digest)
        # Guix would ask servers, and believe one key: not for those who said that they don't.
        settings = self._context.settings
        strict = settings.policy == Policy.SWARM_ONLY or settings.quorum > 1
        status = b"" if strict else self._by_guix(path, destination)
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
        finder: finds sources.
        path: the store path.
        destination: where it goes.
        report: what the user sees.
        planner: may have had it fetched already.

    Attributes:
        digest: the NarHash and NarSize that an authorised key vouches for, once they are known.
        mismatch: the SHA-256 of the last wrong copy that a source delivered.
    """

    def __init__(
        self,
        context: Context,
        finder: Finder,
        path: str,
        destination: str,
        report: Report,
        planner: Planner,
    ) -> None:
        self.digest = (b"", 0)
        self.mismatch: bytes | None = None
        self._context = context
        self._finder = finder
        self._planner = planner
        self._ahead: Ahead | None = None
        self._path = path
        self._destination = destination
        self._report = report
        self._refused: set[str] = set()
        self._notes: list[str] = []

    def substitute(self) -> None:
        """Put the item in place.

        Raises:
            _NoSourceError: no source delivered it; nothing is at the destination.
            RestoreError: the store can't take it, wherever it comes from.
        """
        self._context.reload_acl()
        narinfo = self._context.narinfos([self._path], NARINFO_TIMEOUT).get(self._path)
        if narinfo is None:
            raise _NoSourceError(self._path, "no authorised narinfo")
        self.digest = (narinfo.nar_hash, narinfo.nar_size)
        gate = Gate(narinfo, self._destination, self._deduplicator())
        if self._restore_ahead(narinfo, gate):
            self._report.succeeded()
            return
        for _ in range(_MAX_RACES):
            if self._race(narinfo, gate):
                self._report.succeeded()
                return
        for note in self._notes:
            self._report.note(note)
        raise _NoSourceError(self._path, "no source delivered it, leaving it to guix itself")

    def _restore_ahead(self, narinfo: Narinfo, gate: Gate) -> bool:
        """Restore what was fetched before it was asked for; whether the item is in place.

        Raises:
            RestoreError: the store can't take it.
        """
        ahead = self._planner.prefetcher.take(narinfo, begin=self._planner.is_more)
        if ahead is None or ahead.used is None or not ahead.file.complete:
            self._ahead = ahead  # what is on its way runs in the race
            return False
        try:
            if ahead.found is not None:
                self._report.source(ahead.found)
            gate.restore(ahead.file.chunks())
        except RestoreError:
            raise
        except Exception as error:  # noqa: BLE001 -- what was read was wrong, whatever it was
            self._judge(ahead.used, narinfo, error, seen=True)
            return False
        finally:
            self._planner.prefetcher.give_back(ahead)
        return True

    def _race(self, narinfo: Narinfo, gate: Gate) -> bool:
        """Race once; whether the item is in place. Sources that lied are out of the next race.

        Raises:
            _NoSourceError: no source is left.
            RestoreError: the store can't take it.
        """
        settings = self._context.settings
        contest = Contest(
            narinfo.nar_size,
            Policy(settings.policy),
            self._ways(narinfo),
            self._report,
            lambda source, error, seen: self._judge(source, narinfo, error, seen=seen),
            self._context.rates,
            ahead=self._path in self._context.ahead,
            begun=self._begun(narinfo),
        )
        try:
            gate.restore(contest.chunks())
        except RestoreError:
            raise
        except NobodyLeftError:
            for note in self._notes:
                self._report.note(note)
            raise _NoSourceError(
                self._path, "no source delivered it, leaving it to guix itself"
            ) from None
        except Exception as error:  # noqa: BLE001 -- what was read was wrong, whatever it was
            contest.close()
            contest.join(_FAREWELL)
            if len(contest.used) == 1:
                self._judge(contest.used[0], narinfo, error, seen=True)
                return False
            self._report.note(str(_known(self._path, error)))
            # Which of them was it? Each is taken alone, those first that have overtaken others.
            for source in reversed(contest.used):
                if self._alone(source, narinfo, gate):
                    others = [other for other in contest.used if other is not source]
                    if len(others) == 1:
                        self._judge(others[0], narinfo, error, seen=True)
                    return True
            return False
        finally:
            contest.close()
            ahead, self._ahead = self._ahead, None
            if ahead is not None:
                self._planner.prefetcher.give_back(ahead)
        self._context.rates.update(contest.rates())
        contest.settle(_TIDYING)
        return True

    def _begun(self, narinfo: Narinfo) -> Way | None:
        """The way by which the item is fetched already, beside others: here, or by the seeder."""
        if self._ahead is not None:
            return self._ahead.way
        context = self._context
        told = self._path in context.ahead or (context.seeder and self._planner.is_more)
        return Way.SWARM if told and narinfo.nar_size > SMALL else None

    def _alone(self, source: NarSource, narinfo: Narinfo, gate: Gate) -> bool:
        """Restore from one source; whether the item is in place."""
        way = Way.HTTP if isinstance(source, HttpSource) else Way.SWARM
        contest = Contest(
            narinfo.nar_size,
            Policy.RACE,
            {way: lambda _: iter([source])},
            self._report,
            lambda source, error, seen: self._judge(source, narinfo, error, seen=seen),
        )
        try:
            gate.restore(contest.chunks())
        except RestoreError:
            raise
        except NobodyLeftError:
            self._refused.add(source.key)
        except Exception as error:  # noqa: BLE001 -- as above
            self._judge(source, narinfo, error, seen=True)
        else:
            return True
        finally:
            contest.close()
            contest.join(_FAREWELL)
        return False

    def _deduplicator(self) -> Deduplicator | None:
        """What shares files; not for a repair, where the shared file may be the broken one."""
        repair = self._destination.endswith(".tmp")
        if not self._context.options.deduplicate or repair:
            return None
        return Deduplicator(STORE) if self._destination.startswith(f"{STORE}/") else None

    def _judge(self, source: NarSource, narinfo: Narinfo, error: Exception, *, seen: bool) -> None:
        """Draw the consequences of a source's failure, and tell the user if it matters to him."""
        known = _known(self._path, error)
        wrong = isinstance(known, WrongNarError | InvalidInputError)
        if isinstance(known, WrongNarError):
            self.mismatch = known.actual
        if wrong or not isinstance(known, NetworkError | BusyError | NotFoundError):
            self._refused.add(source.key)
        infohash = getattr(source, "infohash", "")
        if wrong and infohash:
            self._refused.add(infohash)
            self._context.refuse(narinfo.nar_hash, infohash)
        if seen or not isinstance(known, NetworkError | BusyError | NotFoundError):
            self._report.note(str(known))
        else:
            # Of one that another one has made up for nobody needs to know.
            self._notes.append(str(known))

    def _ways(self, narinfo: Narinfo) -> dict[Way, Sources]:
        ways: dict[Way, Sources] = {Way.SWARM: lambda lane: self._swarms(narinfo, lane)}
        if narinfo.sources and self._context.settings.policy != Policy.SWARM_ONLY:
            ways[Way.HTTP] = lambda _: self._finder.servers(narinfo, self._refused)
        ahead = self._ahead
        if ahead is not None and (usual := ways.get(ahead.way)) is not None:
            ways[ahead.way] = lambda lane: itertools.chain(
                [self._planner.prefetcher.source(ahead)], usual(lane)
            )
        return ways

    def _swarms(self, narinfo: Narinfo, lane: Lane) -> Iterator[NarSource]:
        """Torrents: a few, and when there is no other way, with more patience, many.

        The seeder of this machine is asked first; a session of our own takes time to begin.
        """
        settings = self._context.settings
        seeder = self._context.seeder
        if seeder is not None:
            yield from self._from_seeder(seeder, narinfo)
        if not self._context.may_have_torrents(narinfo):
            return
        dropped = threading.Event()
        lane.on_drop(dropped.set)
        if not lane.alone:
            if seeder is None:
                timeout = settings.first_byte_timeout
                quick = self._finder.torrents(narinfo, timeout, dropped, self._refused)
                yield from itertools.islice(quick, MAX_QUICK)
            if not lane.rest():
                return
        # Those that were tried may have got peers meanwhile.
        patient = self._finder.torrents(narinfo, settings.patience, dropped, self._refused)
        yield from itertools.islice(patient, _MAX_PATIENT)

    def _from_seeder(self, seeder: SeederClient, narinfo: Narinfo) -> Iterator[NarSource]:
        from narswarm.fetchclient import Wanted  # noqa: PLC0415 -- where there is one
        from substituter.seedersource import SeederSource  # noqa: PLC0415

        wanted = Wanted(narinfo.nar_hash, narinfo.nar_size, narinfo.store_path)
        name = self._path.rpartition("/")[2]
        for _ in range(_MAX_PATIENT):
            source = SeederSource(
                seeder,
                wanted,
                self._finder.patience,
                name,
                self._refused,
                more=self._planner.is_more,
            )
            yield source
            if not source.changed:
                return


def _known(path: str, error: Exception) -> NarswarmError:
    if isinstance(error, NarswarmError):
        return error
    return NarswarmError(path, f"internal error: {error!r}")
