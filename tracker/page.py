# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker's page for people: what it is and how to use it, what is there, and a search.

It shows what any client may ask for and changes nothing. Programs come first: only so many
requests are served for people at a time, what costs something is kept for some seconds, and the
database is read on a connection of its own.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple

from flask import Blueprint, Response, abort, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from narswarm import base32, storepath
from narswarm.cli import format_size
from narswarm.errors import BusyError, InvalidInputError
from tracker import pagedata, search
from tracker.announcer import Announcer, UnavailableError
from tracker.bulk import Bulk
from tracker.failures import error_response
from tracker.index import Index, Totals
from tracker.pagedata import Addresses, Health, Kept, Kind, Question
from tracker.search import Details, Listed, NamePage
from tracker.settings import Settings, parse_listen
from tracker.swarmstore import SwarmTotals
from tracker.wire_http import Counts

POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

RESULTS: Final = 25
"""Items on a page of results."""

LISTED: Final = 10
"""Items in each list of the first page."""

EXAMINED: Final = 10_000
"""Torrents, the newest ones, whose seeds are counted."""

AT_A_TIME: Final = 4
"""Requests that are served for people at a time."""

_KEEP_SECONDS = 5
_EXAMINE_SECONDS = 60
_SEARCH_SECONDS = 0.5
_AT_ONCE = 500
_YEAR = 31_536_000
_STATIC = {
    "tracker.css": "text/css;charset=utf-8",
    "tracker.js": "text/javascript;charset=utf-8",
    "favicon.svg": "image/svg+xml",
}
_NOT_FOR_ROBOTS = ("/announce", "/scrape", "/search", "/v1/")
_LINK = re.compile(r"https?://\S+")


class Row(NamedTuple):
    """A store item in a list, the best torrent's seeds and leechers, and how often it was asked."""

    item: Listed
    counts: Counts
    requests: int = 0

    @property
    def score(self) -> int:
        """How much it is wanted."""
        return self.requests + self.counts.incomplete


class Examined(NamedTuple):
    """What a look at the newest torrents brought.

    Attributes:
        health: how many have how many seeds.
        demanded: rows of NARs with the most leechers.
    """

    health: Health
    demanded: list[int]


class Overview(NamedTuple):
    """What the first page shows besides addresses."""

    totals: Totals
    swarms: SwarmTotals
    holders: int
    held: int
    health: Health
    recent: list[Row]
    wanted: list[Row]


class Page:
    """The page, with what it shows.

    Args:
        settings: how it is reached, and called.
        index: what there is.
        announcer: who has it.
        bulk: who could make it, and what is asked for.
        announce_url: how the request at hand would announce, or nothing.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        index: Index,
        announcer: Announcer,
        bulk: Bulk,
        announce_url: Callable[[], str | None],
        clock: Callable[[], float],
    ) -> None:
        self._index = index
        self._announcer = announcer
        self._bulk = bulk
        self._announce_url = announce_url
        self._clock = clock
        self._turns = threading.BoundedSemaphore(AT_A_TIME)
        self._examined = Kept(self._examine, _EXAMINE_SECONDS, clock)
        self._overview = Kept(self._look, _KEEP_SECONDS, clock)
        here = Path(__file__).with_name("static")
        self._files = {name: (here / name).read_bytes() for name in _STATIC}
        self.reconfigure(settings)

    def reconfigure(self, settings: Settings) -> None:
        """Go on with other settings."""
        self._settings = settings

    def blueprint(self) -> Blueprint:
        """The pages, and how errors look to a browser."""
        blueprint = Blueprint("page", __name__, template_folder="templates")
        for rule, name, view in (
            ("/", "home", self._home),
            ("/search", "search", self._search),
            ("/item/<string(length=52):nar_hash>", "item", self._item),
            ("/static/<name>", "static", self._static),
            ("/favicon.svg", "favicon", lambda: self._static("favicon.svg")),
            ("/robots.txt", "robots", _robots),
        ):
            blueprint.add_url_rule(rule, name, view, methods=["GET"])
        for function in (
            format_size,
            pagedata.ago,
            pagedata.counted,
            pagedata.day,
            pagedata.key,
            pagedata.machine_time,
            base32.encode,
            storepath.parse,
        ):
            blueprint.add_app_template_filter(function)
        blueprint.before_request(self._check_wanted)
        blueprint.app_context_processor(self._context)
        blueprint.after_app_request(self._dress)
        return blueprint

    def _check_wanted(self) -> None:
        """Without a page there is nothing at its paths."""
        if not self._settings.page:
            abort(HTTPStatus.NOT_FOUND)

    def _context(self) -> dict[str, Any]:
        """What all templates know."""
        contact = self._settings.contact
        link = contact if _LINK.fullmatch(contact) else f"mailto:{contact}"
        return {
            "title": self._settings.title,
            "contact": contact,
            "contact_link": link if "@" in contact or link == contact else None,
            "now": self._clock(),
            "asset": self._asset,
            "health_width": pagedata.WIDTH,
        }

    def _asset(self, name: str) -> str:
        """The path of a file, with what its content is, so that browsers may keep it."""
        version = hashlib.sha256(self._files[name]).hexdigest()[:12]
        return url_for("page.static", name=name, v=version)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Leave threads to programs."""
        if not self._turns.acquire(blocking=False):
            raise BusyError("tracker", "has too many readers just now; try again")
        try:
            yield
        finally:
            self._turns.release()

    def _home(self) -> Response:
        addresses = self._addresses()
        with self._turn():
            overview = self._overview.get()
        text = render_template(
            "home.html",
            addresses=addresses,
            overview=overview,
            examined=EXAMINED,
            open=self._settings.open,
            engine=self._announcer.metrics.engine,
        )
        return _kept(Response(text), _KEEP_SECONDS)

    def _addresses(self) -> Addresses:
        announce = self._announce_url()
        if announce is None:
            raise InvalidInputError("Host", "is not the name of a host")
        _, port = parse_listen(self._settings.listen[0])
        return pagedata.addresses(announce, port, udp=self._settings.udp)

    def _look(self) -> Overview:
        """Put together what the first page shows."""
        examined = self._examined.get()
        totals, bulk = self._index.totals(), self._bulk.totals()
        asked = {item.nar_hash: item.requests for item in self._bulk.most_wanted(5 * LISTED)}
        with self._index.reading() as connection, connection.snapshot():
            recent = search.recent(connection, LISTED)
            wanted = search.describe(connection, examined.demanded)
            there = {item.nar_hash for item in wanted}
            for nar_hash in asked.keys() - there:
                wanted += search.find_nar(connection, nar_hash)
        rows = [
            row._replace(requests=asked.get(row.item.nar_hash, 0)) for row in self._rows(wanted)
        ]
        rows = [row for row in rows if row.score]
        rows.sort(key=lambda row: -row.score)
        return Overview(
            totals=totals,
            swarms=self._announcer.totals(),
            holders=bulk.holders,
            held=bulk.held,
            health=examined.health,
            recent=self._rows(recent),
            wanted=rows[:LISTED],
        )

    def _examine(self) -> Examined:
        """Count the seeds of the newest torrents, some at once, so that announces have turns."""
        with self._index.reading() as connection:
            swarms = search.newest_swarms(connection, EXAMINED)
        counts: list[Counts] = []
        for start in range(0, len(swarms), _AT_ONCE):
            counts += self._counts(
                [swarm.info_hashes for swarm in swarms[start : start + _AT_ONCE]]
            )
        leechers: dict[int, int] = {}
        for swarm, count in zip(swarms, counts, strict=True):
            if count.incomplete:
                leechers[swarm.nar] = leechers.get(swarm.nar, 0) + count.incomplete
        most = sorted(leechers, key=lambda nar: -leechers[nar])[:LISTED]
        return Examined(pagedata.health(count.complete for count in counts), most)

    def _counts(self, swarms: Sequence[Sequence[bytes]]) -> list[Counts]:
        """The numbers of hybrid torrents, by their two infohashes; none while swarms are away."""
        try:
            found = self._announcer.counts([each for pair in swarms for each in pair])
        except UnavailableError:
            return [Counts(0, 0, 0, 0)] * len(swarms)
        return [pagedata.joined(*pair) for pair in zip(found[::2], found[1::2], strict=True)]

    def _rows(self, items: Sequence[Listed], asked: Mapping[bytes, int] | None = None) -> list[Row]:
        counts = self._counts([item.torrents[0].wire_hashes for item in items])
        requests = [(asked or {}).get(item.nar_hash, 0) for item in items]
        return [Row(*row) for row in zip(items, counts, requests, strict=True)]

    def _search(self) -> AnyResponse:
        text = request.args.get("q", "")
        question = pagedata.parse_question(text)
        with self._turn():
            page = self._find(question)
        if question.kind not in {Kind.NAME, Kind.NOTHING} and len(page.items) == 1:
            return redirect(url_for("page.item", nar_hash=base32.encode(page.items[0].nar_hash)))
        body = render_template(
            "search.html",
            text=text[: pagedata.MAX_QUESTION].strip(),
            question=question,
            rows=self._rows(page.items),
            following=str(page.following or ""),
            in_time=page.in_time,
            first="after" not in request.args,
        )
        return _kept(Response(body), _KEEP_SECONDS)

    def _find(self, question: Question) -> NamePage:
        """Answer a question with one page of items."""
        until = time.monotonic() + _SEARCH_SECONDS
        items: list[Listed] = []
        with self._index.reading() as connection, connection.snapshot():
            match question.kind:
                case Kind.NAME:
                    return search.find_names(
                        connection,
                        question.words,
                        search.parse_cursor(request.args.get("after", "")),
                        RESULTS,
                        lambda: time.monotonic() >= until,
                    )
                case Kind.NAR:
                    items = search.find_nar(connection, question.digest)
                case Kind.INFOHASH:
                    items = search.find_infohash(connection, question.digest)
                case Kind.DIGEST:
                    items = search.find_nar(connection, question.digest)
                    items = items or search.find_infohash(connection, question.digest)
                case Kind.HASH_PART:
                    items = search.find_hash_part(connection, question.words[0])
        return NamePage(items, None, in_time=True)

    def _item(self, nar_hash: str) -> Response:
        wanted, addresses = base32.decode(nar_hash), self._addresses()
        with self._turn(), self._index.reading() as connection, connection.snapshot():
            found = search.details(connection, wanted)
        if found is None:
            return error_response(HTTPStatus.NOT_FOUND, f"{nar_hash}: is not in the index")
        torrents = [
            {
                "claimed": claimed,
                "torrent": claimed.torrent,
                "counts": self._announcer.sample(claimed.torrent.wire_hashes, 0)[0],
                "magnet": pagedata.magnet(claimed.torrent, addresses.all),
            }
            for claimed in found.torrents
        ]
        text = render_template(
            "item.html",
            nar_hash=nar_hash,
            found=found,
            items=list(dict.fromkeys(each.store_path for each in found.narinfos)),
            narinfos=[
                (each, pagedata.signer_name(each.signer), each.raw.decode(errors="replace"))
                for each in found.narinfos
            ],
            references=[
                name
                for name in dict.fromkeys(
                    name for each in found.narinfos for name in each.references
                )
                if f"{storepath.STORE}/{name}" not in {each.store_path for each in found.narinfos}
            ],
            torrents=torrents,
            holders=self._bulk.holders(wanted),
        )
        return _kept(Response(text), _KEEP_SECONDS)

    def _static(self, name: str) -> Response:
        if name not in self._files:
            abort(HTTPStatus.NOT_FOUND)
        response = Response(self._files[name], content_type=_STATIC[name])
        return _kept(response, _YEAR if "v" in request.args else 3600)

    def _dress(self, response: Response) -> Response:
        """Have errors look like a page in a browser, and pages be nothing but themselves."""
        is_ours = request.blueprint == "page" and self._settings.page
        if response.status_code >= HTTPStatus.BAD_REQUEST and self._is_for_people():
            reason = response.get_data(as_text=True).strip()
            status = HTTPStatus(response.status_code)
            response.set_data(render_template("error.html", status=status, reason=reason))
            response.content_type = "text/html; charset=utf-8"
            response.headers["Cache-Control"] = "no-store"
            response.vary.add("Accept")
            is_ours = True
        if is_ours:
            response.headers["Content-Security-Policy"] = POLICY
            response.headers["X-Content-Type-Options"] = "nosniff"
            response.headers["Referrer-Policy"] = "no-referrer"
        return response

    def _is_for_people(self) -> bool:
        """Whether a browser asked for a page; programs don't say that they take HTML."""
        return (
            self._settings.page
            and request.method in {"GET", "HEAD"}
            and not request.path.startswith("/v1/")
            and any(kind == "text/html" and quality for kind, quality in request.accept_mimetypes)
        )


def _kept(response: Response, seconds: int) -> Response:
    """Let who asks keep an answer, and ask later only whether it is still the same."""
    response.cache_control.public = True
    response.cache_control.max_age = seconds
    response.add_etag()
    response.make_conditional(request)
    return response


def _references(found: Details) -> list[str]:
    """Base names of what a NAR's items refer to, but not themselves."""
    own = {each.store_path for each in found.narinfos}
    names = dict.fromkeys(name for each in found.narinfos for name in each.references)
    return [name for name in names if f"{storepath.STORE}/{name}" not in own]


def _robots() -> Response:
    lines = ["User-agent: *", *(f"Disallow: {path}" for path in _NOT_FOR_ROBOTS), ""]
    return _kept(Response("\n".join(lines), content_type="text/plain;charset=utf-8"), 3600)
