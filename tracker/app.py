# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker over WSGI: announces and scrapes, the index, and the mirror of narinfos.

Announces don't go through Flask: they are nearly all requests, and its routing and request objects
cost about as much as their answers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_ntop
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException, LengthRequired, RequestEntityTooLarge

from narswarm import base32, httpsig, narinfo
from narswarm.errors import InvalidInputError, NarswarmError
from narswarm.narinfo import Source
from tracker import publication
from tracker.aclfile import AclFile
from tracker.announcer import Announcer, RefusedAddressError
from tracker.bulk import RETRY_SECONDS, Bulk, Prepared, has_seed
from tracker.claims import IndexedTorrent
from tracker.exposition import CONTENT_TYPE, exposition
from tracker.failures import error_response, http_error, narswarm_error
from tracker.index import Index
from tracker.metrics import Action, Outcome, family_of
from tracker.page import Page
from tracker.parking import ParkingMiddleware, Reply
from tracker.policy import Policy
from tracker.publication import RefusedError
from tracker.reachable import Reachable
from tracker.settings import Settings
from tracker.wire_http import WireError, failure

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

MAX_PEERS = 50
"""Peers that the index names for one torrent."""

_HOST_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]{1,255}/")
_PUBLISHING = frozenset({"publish", "bulk.holdings"})
_OUTCOMES: dict[int, Outcome] = {
    HTTPStatus.UNAUTHORIZED: "refused",
    HTTPStatus.FORBIDDEN: "refused",
    HTTPStatus.CONFLICT: "refused",
    HTTPStatus.NOT_FOUND: "unlisted",
}


class AnnounceMiddleware:
    """Answers `/announce` and `/scrape`, and leaves everything else to another application."""

    def __init__(
        self, announcer: Announcer, other: WSGIApplication, clock: Callable[[], float]
    ) -> None:
        self._announcer = announcer
        self._other = other
        self._clock = clock

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request (PEP 3333)."""
        path = environ["PATH_INFO"]
        if path not in {"/announce", "/scrape"}:
            return self._other(environ, start_response)
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            headers = [("Allow", "GET, HEAD"), ("Content-Length", "0")]
            start_response("405 METHOD NOT ALLOWED", headers)
            return []
        # The server hands over bytes as if they were Latin-1.
        query = environ.get("QUERY_STRING", "").encode("latin-1")
        try:
            forwarded = environ.get("HTTP_X_FORWARDED_FOR")
            remote = environ["REMOTE_ADDR"]
            if path == "/announce":
                body = self._announcer.announce_http(query, remote, forwarded, int(self._clock()))
            else:
                body = self._announcer.scrape_http(query, remote, forwarded)
        except RefusedAddressError as error:
            body = failure(str(error), retry_in="never")
        except WireError as error:
            body = failure(str(error))
        headers = [
            ("Content-Type", "text/plain"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        start_response("200 OK", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


class TrackerApp:
    """The views of the index and those for operators, with what they work on."""

    def __init__(
        self,
        settings: Settings,
        index: Index,
        announcer: Announcer,
        acl_file: AclFile,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._index = index
        self._announcer = announcer
        self._acl_file = acl_file
        self._clock = clock
        self.bulk = Bulk(settings, announcer, self._authenticate, self._may_publish, clock)
        self.reachable = Reachable(announcer, self.bulk.parking)
        self.page = Page(settings, index, announcer, self.bulk, self._announce_url, clock)
        self.reconfigure(settings)
        self._exposition = exposition(
            announcer.metrics, announcer.totals, index.totals, self.bulk.totals
        )

    def reconfigure(self, settings: Settings) -> None:
        """Go on with other settings."""
        publishers, metrics_from = settings.publisher_keys(), settings.metrics_networks()
        self._settings = settings
        self._publishers = publishers
        self._metrics_from = metrics_from
        self.bulk.reconfigure(settings)
        self.page.reconfigure(settings)

    def close(self) -> None:
        """Answer requests that wait."""
        self.reachable.close()
        self.bulk.close()

    def wsgi(self) -> WSGIApplication:
        """Everything as one WSGI application."""
        app = Flask("tracker", static_folder=None)
        nar = "/v1/nar/<string(length=52):nar_hash>"
        app.add_url_rule(nar, "nar", self._nar, methods=["GET"])
        app.add_url_rule(nar, "publish", self._publish, methods=["PUT"])
        app.add_url_rule(f"{nar}.torrent", "torrent", self._torrent, methods=["GET"])
        name = "<string(length=32):hash_part>.narinfo"
        app.add_url_rule(f"/v1/narinfo/{name}", "narinfo", self._narinfo, methods=["GET"])
        app.add_url_rule(
            f"/{name}",
            "substitute_narinfo",
            self._narinfo,
            methods=["GET"],
            defaults={"with_sources": True},
        )
        app.add_url_rule("/nix-cache-info", "cache_info", _cache_info, methods=["GET"])
        app.add_url_rule("/healthz", "healthz", self._healthz, methods=["GET"])
        app.add_url_rule("/metrics", "metrics", self._metrics, methods=["GET"])
        app.register_blueprint(self.bulk.blueprint())
        app.register_blueprint(self.reachable.blueprint())
        app.register_blueprint(self.page.blueprint())
        app.before_request(self._admit)
        app.after_request(self._count)
        app.register_error_handler(HTTPException, http_error)
        app.register_error_handler(NarswarmError, narswarm_error)
        parking = ParkingMiddleware(app, self.bulk.parking)
        return AnnounceMiddleware(self._announcer, parking, self._clock)

    def _admit(self) -> None:
        """Note who asks, and refuse who is blocked."""
        g.began = perf_counter()
        g.family = "unknown"
        try:
            address = self._announcer.client_address(
                request.remote_addr or "", request.headers.get("X-Forwarded-For")
            )
        except ValueError:
            return  # the address isn't known; that is for announces only
        g.family = family_of(address)
        if self._announcer.refuses(address):
            raise RefusedError("address", "is blocked by this tracker's operator")

    def _count(self, response: Response) -> Response:
        """Count a request of the index."""
        if request.endpoint not in {"healthz", "metrics"}:
            action: Action = "publish" if request.endpoint in _PUBLISHING else "index"
            metrics = self._announcer.metrics
            metrics.requests.inc("http", g.family, action, _outcome(response.status_code))
            metrics.latency.observe("http", action, perf_counter() - g.began)
        return response

    def _healthz(self) -> Response:
        """Whether this process answers, and so do its database and its store of swarms."""
        try:
            self._index.check()
            self._announcer.check()
        except NarswarmError as error:
            return error_response(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        return Response("ok\n", content_type="text/plain;charset=utf-8")

    def _metrics(self) -> Response:
        """The numbers for Prometheus, if it is who may read them."""
        if not self._may_read_metrics():
            return error_response(
                HTTPStatus.FORBIDDEN, "/metrics: is not for this address (metrics_from)"
            )
        return Response(self._exposition(), content_type=CONTENT_TYPE)

    def _may_read_metrics(self) -> bool:
        remote, forwarded = request.remote_addr or "", request.headers.get("X-Forwarded-For")
        try:
            direct = Policy().client_address(remote, None)
            # A machine of a trusted proxy may ask for itself.
            address = self._announcer.client_address(remote, forwarded) if forwarded else direct
        except ValueError:
            return False
        if forwarded and address == direct:
            return False  # somebody else's question, handed over by a proxy that isn't trusted
        return any(ip_address(address) in network for network in self._metrics_from)

    def _nar(self, nar_hash: str) -> Response:
        wanted = base32.decode(nar_hash)
        found, holders = self._index.nar(wanted), len(self.bulk.holders(wanted))
        if found is None and not holders:
            return error_response(HTTPStatus.NOT_FOUND, f"{nar_hash}: is not in the index")
        response = jsonify(
            nar_hash=f"sha256:{nar_hash}",
            nar_size=found.nar_size if found else None,
            torrents=[self._describe(torrent) for torrent in found.torrents] if found else [],
            holders=holders,
        )
        return response if found else _accepted(response)

    def _describe(self, torrent: IndexedTorrent) -> dict[str, Any]:
        counts, peers = self._announcer.sample(torrent.wire_hashes, MAX_PEERS)
        return {
            "kind": torrent.kind,
            "name": torrent.name,
            "length": torrent.length,
            "piece_length": torrent.piece_length,
            "infohash_v1": torrent.infohash_v1.hex(),
            "infohash_v2": torrent.infohash_v2.hex(),
            "seeders": counts.complete,
            "leechers": counts.incomplete,
            "publishers": torrent.publishers,
            "peers": [_peer(peer) for peer in peers],
        }

    def _torrent(self, nar_hash: str) -> Response:
        wanted = base32.decode(nar_hash)
        found = self._index.nar(wanted)
        infohash = request.args.get("infohash")
        chosen = (
            torrent.row
            for torrent in (found.torrents if found else ())
            if infohash in {None, torrent.infohash_v2.hex()}
        )
        kept = self._index.metainfo(next(chosen, 0))
        if kept is not None and found is not None:
            info_hashes = found.wire_hashes
            if not has_seed(self._announcer, info_hashes):
                self.bulk.want(wanted, info_hashes)
            return Response(
                with_announce(kept, self._announce_url()), content_type="application/x-bittorrent"
            )
        if infohash is None and (holders := self.bulk.want(wanted)):
            response = _accepted(jsonify(nar_hash=f"sha256:{nar_hash}", holders=holders))
            later = Reply(response.data, status="202 ACCEPTED", retry_after=RETRY_SECONDS)
            self.bulk.wait_for(wanted, self._finder(wanted), later)
            return response
        return error_response(HTTPStatus.NOT_FOUND, f"{nar_hash}: is not in the index")

    def _finder(self, wanted: bytes) -> Callable[[], Prepared | None]:
        """Looks for a torrent as this request would be given it, outside of the request."""
        url = self._announce_url()

        def find() -> Prepared | None:
            found = self._index.nar(wanted)
            kept = self._index.metainfo(found.torrents[0].row) if found else None
            if found is None or kept is None:
                return None
            return Prepared(with_announce(kept, url), found.wire_hashes)

        return find

    def _announce_url(self) -> str | None:
        """Where clients announce: as set, or as this request was addressed."""
        base = self._settings.url or request.host_url
        if self._settings.url is None and not _HOST_URL.fullmatch(base):
            return None
        return f"{base.rstrip('/')}/announce"

    def _publish(self, nar_hash: str) -> tuple[Response, HTTPStatus]:
        wanted = base32.decode(nar_hash)
        if request.content_length is None:
            raise LengthRequired
        # Not MAX_CONTENT_LENGTH: older versions of Werkzeug apply it to forms only.
        if request.content_length > publication.MAX_BODY:
            raise RequestEntityTooLarge
        body = request.get_data(cache=False)
        publisher = self._authenticate(body)
        if request.mimetype != publication.CONTENT_TYPE:
            raise InvalidInputError("Content-Type", f"is not {publication.CONTENT_TYPE}")
        acl = self._acl_file.refresh()
        if acl is None:
            raise RefusedError(self._settings.acl, "can't be read, so nothing can be published")
        checked = publication.check(wanted, body, acl, self._settings.nar_servers)
        new = self._index.publish(checked, publisher, int(self._clock()))
        if found := self._index.nar(wanted):
            self.bulk.published(wanted, found.wire_hashes)
        answer = jsonify(
            nar_hash=f"sha256:{nar_hash}", infohash_v2=checked.meta.infohash_v2.hex(), new=new
        )
        return answer, HTTPStatus.CREATED if new else HTTPStatus.OK

    def _authenticate(self, body: bytes) -> bytes:
        """The key that signed this request with this body, if it may publish."""
        publisher = httpsig.verify_request(
            request.method, request.path, request.headers, body, self._clock()
        )
        if publisher in self._announcer.blocks.publishers:
            raise RefusedError("publisher", "is blocked by this tracker's operator")
        if not self._may_publish(publisher):
            raise RefusedError("publisher", "is not among those that may publish here")
        return publisher

    def _may_publish(self, publisher: bytes) -> bool:
        """Whether a key is among those that may, and not blocked."""
        return publisher not in self._announcer.blocks.publishers and (
            not self._publishers or publisher in self._publishers
        )

    def _narinfo(self, hash_part: str, *, with_sources: bool = False) -> Response:
        raw = self._index.narinfo(hash_part, with_sources=with_sources)
        if raw is None and with_sources:
            raw = _for_guix(self._index.narinfo(hash_part, with_sources=False))
        if raw is None:
            return error_response(HTTPStatus.NOT_FOUND, f"{hash_part}: has no narinfo here")
        return Response(raw, content_type="application/x-nix-narinfo;charset=utf-8")


def _accepted(response: Response) -> Response:
    """Say that there may be more soon."""
    response.status_code = HTTPStatus.ACCEPTED
    response.headers["Retry-After"] = str(RETRY_SECONDS)
    return response


def with_announce(torrent: bytes, url: str | None) -> bytes:
    """Put a tracker into a torrent that was kept without one.

    The key `announce` sorts before all others (BEP 3), so this is no more than an insertion and
    doesn't touch a byte of the info dictionary.
    """
    if url is None:
        return torrent
    encoded = url.encode()
    return b"d8:announce%d:%b%b" % (len(encoded), encoded, torrent[1:])


def _outcome(status: int) -> Outcome:
    """What a status says of a request of the index."""
    if status < HTTPStatus.BAD_REQUEST:
        return "ok"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "failed"
    return _OUTCOMES.get(status, "malformed")


def _peer(packed: bytes) -> str:
    """Write a packed peer as `address:port`."""
    port = int.from_bytes(packed[-2:])
    if len(packed) == 6:
        return f"{inet_ntop(AF_INET, packed[:4])}:{port}"
    return f"[{inet_ntop(AF_INET6, packed[:16])}]:{port}"


def _for_guix(raw: bytes | None) -> bytes | None:
    """Give a narinfo without sources one that answers 404: stock Guix fails on one without URL."""
    if raw is None:
        return None
    base_name = narinfo.parse(raw).store_path.rpartition("/")[2]
    return narinfo.with_sources(raw, [Source(f"nar/{quote(base_name)}", "none")])


def _cache_info() -> Response:
    """Say what kind of substitute server this is; a low priority, as it serves no NARs."""
    text = "StoreDir: /gnu/store\nWantMassQuery: 0\nPriority: 100\n"
    return Response(text, content_type="text/x-nix-cache-info")
