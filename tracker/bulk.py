# SPDX-License-Identifier: GPL-3.0-or-later
"""What seeders could serve and what is wanted of it: `POST /v1/holdings`, `GET /v1/wanted`.

A seeder says in one request which NARs it could make a torrent of, and then waits. Who asks for the
torrent of a NAR that nobody seeds has it marked as wanted, and those who hold it and wait are told
within milliseconds. What they make comes in by `PUT`, like everything else: neither a list nor a
mark vouches for anything.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from flask import Blueprint, Response, json, jsonify, request
from werkzeug.exceptions import LengthRequired, RequestEntityTooLarge

from narswarm import base32
from narswarm.errors import BusyError, InvalidInputError
from narswarm.trackeranswers import MAX_WANTED
from narswarm.trackerclient import LONGEST_WAIT
from tracker import publication
from tracker.announcer import Announcer, UnavailableError
from tracker.holdings import LEASE, MAX_BODY, Holdings, StaleHoldingsError, parse_update
from tracker.parking import ENVIRON, Answered, Parking, Poll, Reply, room_for_descriptors
from tracker.redis_bulk import RedisBulk
from tracker.settings import IN_MEMORY, Settings
from tracker.wanted import Page, Wanted, WantedItem

RETRY_SECONDS: Final = 2
"""When to ask again for a torrent that is being made."""

LOOK: Final = 0.05
"""Seconds between two looks whether a torrent that was published has a seed by now."""

SEED_SECONDS: Final = 2.0
"""How long a torrent may be without one before it is given to who waits for it all the same."""

_LARGE_BODY = 1 << 20
_LARGE_AT_A_TIME = 2
_NUMBER = re.compile(r"[0-9]{1,16}")


class BulkTotals(NamedTuple):
    """Holdings and what is wanted, in numbers.

    Attributes:
        holders: seeders with a list.
        held: items in their lists.
        wanted: NARs that are wanted.
        polls: seeders that wait for something to be wanted.
        preparing: answers so far which said that a torrent is being made.
    """

    holders: int
    held: int
    wanted: int
    polls: int
    preparing: int


class Prepared(NamedTuple):
    """A torrent that somebody waited for, and the infohashes under which it is announced."""

    torrent: bytes
    info_hashes: Sequence[bytes]


class Bulk:
    """The views of holdings and what is wanted, with what they work on.

    Args:
        settings: limits.
        announcer: the swarms, and the operator's blocks.
        authenticate: who sent a request with this body; it raises a NarswarmError for who may
            not publish.
        is_allowed: whether a key may publish.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        announcer: Announcer,
        authenticate: Callable[[bytes], bytes],
        is_allowed: Callable[[bytes], bool],
        clock: Callable[[], float],
    ) -> None:
        self._announcer = announcer
        self._authenticate = authenticate
        self._is_allowed = is_allowed
        self._clock = clock
        self._holdings = Holdings(*settings.holdings_limits())
        self._wanted = Wanted(clock())
        self._others: RedisBulk | None = None
        if settings.swarms != IN_MEMORY:
            self._others = RedisBulk(settings.swarms, self._holdings, self._hear, clock)
            self._others.start()
        self._large = threading.BoundedSemaphore(_LARGE_AT_A_TIME)
        self._counting = threading.Lock()
        self._preparing = 0
        self.parking = Parking(self._answer, room_for_descriptors())

    def reconfigure(self, settings: Settings) -> None:
        """Go on with other limits."""
        self._holdings.limit(*settings.holdings_limits())

    def close(self) -> None:
        """Answer all who wait."""
        self.parking.close()
        if self._others is not None:
            self._others.close()

    def blueprint(self) -> Blueprint:
        """The two calls."""
        blueprint = Blueprint("bulk", __name__)
        blueprint.add_url_rule("/v1/holdings", "holdings", self._take_holdings, methods=["POST"])
        blueprint.add_url_rule("/v1/wanted", "wanted", self._tell_wanted, methods=["GET"])
        return blueprint

    def totals(self) -> BulkTotals:
        """All in numbers."""
        now = self._clock()
        holders, held = self._holdings.totals(now)
        return BulkTotals(
            holders, held, self._wanted.total(now), len(self.parking), self._preparing
        )

    def holders(self, nar_hash: bytes) -> list[bytes]:
        """The keys of who could serve a NAR, unless the operator blocked them or it."""
        if nar_hash in self._announcer.blocks.nars:
            return []
        found = self._holdings.holders(nar_hash, self._clock())
        return [key for key in found if self._is_allowed(key)]

    def most_wanted(self, limit: int) -> list[WantedItem]:
        """So many NARs that are wanted, those that were asked for most often first."""
        return self._wanted.most(limit, self._clock())

    def want(self, nar_hash: bytes, info_hashes: Sequence[bytes] = ()) -> int:
        """Somebody wants a NAR that nobody seeds.

        Args:
            nar_hash: 32 bytes.
            info_hashes: under which its torrents are announced, if there are any.

        Returns:
            How many seeders could serve it. If none could, it isn't marked.
        """
        keys = self.holders(nar_hash)
        if keys and self._wanted.mark(nar_hash, info_hashes, self._clock()):
            self.parking.wake(keys)
            if self._others is not None:
                self._others.wanted(nar_hash, info_hashes, is_new=True)
        if keys and not info_hashes:
            with self._counting:
                self._preparing += 1
        return len(keys)

    def published(self, nar_hash: bytes, info_hashes: Sequence[bytes]) -> None:
        """Note under which infohashes a NAR is seeded from now on."""
        self._wanted.prepared(nar_hash, info_hashes)
        self.parking.wake([_waiting_for(nar_hash)])
        if self._others is not None:
            self._others.wanted(nar_hash, info_hashes, is_new=False)

    def wait_for(self, nar_hash: bytes, find: Callable[[], Prepared | None], later: Reply) -> None:
        """Let the request that is being served wait for a torrent, if it said for how long.

        Args:
            nar_hash: 32 bytes.
            find: gives the torrent, if there is one by now; called in another thread.
            later: what is said if there is none in time.
        """
        wait = min(_number("wait"), LONGEST_WAIT)
        # Who finds no room asks again later, as if it hadn't said that it would wait.
        if not wait or request.method != "GET" or not self.parking.has_room(own=True):
            return
        end: float | None = None

        def answer(final: bool) -> Answered:
            nonlocal end
            prepared = find()
            if prepared is None:
                return later if final else None
            now = self._clock()
            end = now + SEED_SECONDS if end is None else end
            if not final and now < end and not has_seed(self._announcer, prepared.info_hashes):
                return LOOK
            return Reply(prepared.torrent, "application/x-bittorrent")

        request.environ[ENVIRON] = Poll(_waiting_for(nar_hash), 0, wait, answer)

    def _hear(self, nar_hash: bytes, info_hashes: Sequence[bytes], is_new: bool) -> None:
        """Take in what another tracker was asked for, or was given."""
        if not is_new:
            self._wanted.prepared(nar_hash, info_hashes)
            self.parking.wake([_waiting_for(nar_hash)])
            return
        keys = self.holders(nar_hash)
        if not keys and self._others is not None:
            self._others.sync()  # somebody holds it who isn't known here yet
            keys = self.holders(nar_hash)
        if keys and self._wanted.mark(nar_hash, info_hashes, self._clock()):
            self.parking.wake(keys)

    def _take_holdings(self) -> Response:
        if request.content_length is None:
            raise LengthRequired
        if request.content_length > MAX_BODY:
            raise RequestEntityTooLarge
        with self._room(request.content_length):
            body = request.get_data(cache=False)
            key = self._authenticate(body)
            if request.mimetype != publication.CONTENT_TYPE:
                raise InvalidInputError("Content-Type", f"is not {publication.CONTENT_TYPE}")
            update = parse_update(body)
            if self._others is not None:
                self._others.refresh(key)
            held = self._holdings.apply(key, update, self._clock())
            if self._others is not None:
                self._others.held(key)
        return jsonify(generation=held.generation, held=held.items, lease=LEASE)

    @contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """Keep many large bodies from being in memory at a time."""
        if size <= _LARGE_BODY:
            yield
            return
        if not self._large.acquire(blocking=False):
            raise BusyError("holdings", "are being sent by others; try again")
        try:
            yield
        finally:
            self._large.release()

    def _tell_wanted(self) -> Response:
        key = self._authenticate(b"")
        since, wait = _number("since"), min(_number("wait"), LONGEST_WAIT)
        if not self._holdings.has(key, self._clock()):
            if self._others is not None:
                self._others.refresh(key)
            if not self._holdings.has(key, self._clock()):
                raise StaleHoldingsError(0)
        poll = Poll(key, since, wait)
        page = self._page(poll)
        if wait and not page.items and request.method == "GET":
            if not self.parking.has_room():
                raise BusyError("wanted", "is what too many wait for; try again")
            request.environ[ENVIRON] = poll
        return Response(_render(page), content_type="application/json")

    def _answer(self, poll: Poll, final: bool) -> Answered:
        """What a seeder that waits is told, if there is anything."""
        page = self._page(poll)
        return Reply(_render(page)) if page.items or final else None

    def _page(self, poll: Poll) -> Page:
        """What a seeder holds that came to be wanted, and that nobody seeds by now."""
        now = self._clock()

        def holds(nar_hash: bytes) -> bool:
            return (
                nar_hash not in self._announcer.blocks.nars
                and self._holdings.holds(poll.key, nar_hash, now)
                and not self._is_seeded(nar_hash)
            )

        if not self._is_allowed(poll.key):
            return Page(poll.since, [])
        return self._wanted.page(poll.since, MAX_WANTED, holds, now)

    def _is_seeded(self, nar_hash: bytes) -> bool:
        """Whether a wanted NAR has a seed; it isn't wanted any more then."""
        info_hashes = self._wanted.info_hashes(nar_hash)
        if not info_hashes or not has_seed(self._announcer, info_hashes):
            return False
        self._wanted.clear([nar_hash])
        return True


def has_seed(announcer: Announcer, info_hashes: Sequence[bytes]) -> bool:
    """Whether anybody seeds a torrent of these infohashes, as far as can be told."""
    try:
        return any(counts.complete for counts in announcer.counts(info_hashes))
    except UnavailableError:
        return False  # the swarms are elsewhere and don't answer: better made once too often


def _waiting_for(nar_hash: bytes) -> bytes:
    """What wakes those who wait for a torrent; no key is so long."""
    return b"nar " + nar_hash


def _number(name: str) -> int:
    """Read a number of the query; 0 if it isn't there."""
    text = request.args.get(name, "0")
    if not _NUMBER.fullmatch(text):
        raise InvalidInputError(name, "is not a number")
    return int(text)


def _render(page: Page) -> bytes:
    """Write what is wanted as JSON."""
    wanted = [
        {"nar_hash": base32.format_hash(item.nar_hash), "requests": item.requests}
        for item in page.items
    ]
    return json.dumps({"cursor": page.cursor, "wanted": wanted}).encode()
