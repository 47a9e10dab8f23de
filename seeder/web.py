# SPDX-License-Identifier: GPL-3.0-or-later
"""The seeder's page for people, and its metrics, over HTTP on this machine.

It shows and changes nothing. Whoever can reach the address may read it, so by default that is this
machine alone; a browser that was led here under another name (DNS rebinding) gets nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from flask import Flask, Response, abort, render_template, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from narswarm.cli import format_duration, format_size
from narswarm.errors import BusyError
from narswarm.swarm_settings import split_address
from seeder.metrics import CONTENT_TYPE
from seeder.web_data import HEIGHT, WIDTH, Bar

POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

REQUEST_TIMEOUT: Final = 10
"""Seconds that a client may take for its request."""

REFRESH: Final = 5
"""Seconds between two updates of the page."""


@dataclass(frozen=True, slots=True)
class Page:
    """What the page shows.

    Attributes:
        status: as `seeder status --json` shows it.
        items: some of what is offered or isn't, as `seeder list --json` shows it.
        upload_rate: bytes a second.
        download_rate: bytes a second.
        day: bytes that were sent in the last day.
        highest: most bytes in one bar.
        bars: the same as a plot.
        peers: numbers of peers by class of their addresses.
        fetches: what is fetched: name, percent, peers, rate, whether somebody waits for it.
        now: seconds since the epoch.
    """

    status: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    upload_rate: float
    download_rate: float
    day: int
    highest: int
    bars: Sequence[Bar]
    peers: Mapping[str, int]
    fetches: Sequence[tuple[str, int, int, int, bool]]
    now: float


def create_app(
    page: Callable[[], Page], metrics: Callable[[], bytes], hosts: Sequence[str] = ()
) -> Flask:
    """The application.

    Args:
        page: what the page shows now.
        metrics: what Prometheus reads now.
        hosts: names under which a browser may ask, besides addresses and `localhost`.
    """
    app = Flask(__name__)
    app.jinja_env.filters["size"] = format_size
    app.jinja_env.filters["duration"] = format_duration
    app.jinja_env.filters["name"] = lambda path: str(path).rpartition("/")[2].partition("-")[2]
    names = {"localhost", *hosts}

    @app.before_request
    def check_host() -> None:
        if not is_our_name(request.host, names):
            abort(HTTPStatus.MISDIRECTED_REQUEST)

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        if request.endpoint not in {"static", "favicon"}:
            response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/")
    def index() -> str:
        return render_template(
            "seeder.html", page=page(), width=WIDTH, height=HEIGHT, every=REFRESH
        )

    @app.get("/favicon.svg")
    def favicon() -> Response:
        return app.send_static_file("favicon.svg")

    @app.get("/metrics")
    def show_metrics() -> Response:
        return Response(metrics(), content_type=CONTENT_TYPE)

    return app


def is_our_name(host: str, names: set[str]) -> bool:
    """Whether a Host header is an address or one of these names, with any port.

    A page of a stranger can have its own name resolve to this machine, but not an address.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in names:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT

    def log_request(self, *_: object) -> None:
        """Requests are nothing to log."""

    def log_error(self, *_: object) -> None:
        """A client that is too slow is nothing to log either."""


class WebServer:
    """Serves the application in threads of its own.

    Args:
        app: the application.
        address: HOST:PORT.

    Raises:
        SettingsError: it isn't one.
        BusyError: another process listens there.
    """

    def __init__(self, app: Flask, address: str) -> None:
        host, port = split_address(address)
        try:
            self._server: BaseWSGIServer = make_server(
                host, port, app, threaded=True, request_handler=_Handler
            )
        except (OSError, SystemExit):  # which is what werkzeug does with a port that is taken
            raise BusyError(address, "can't be listened on for the web page") from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="web", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
