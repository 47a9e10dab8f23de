# SPDX-License-Identifier: GPL-3.0-or-later
"""A substitute server with files, for the tests of the mirror."""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from narswarm import narinfo
from narswarm.narinfo import Narinfo, Source
from tests.seeder.conftest import Made

_RANGE = re.compile(r"bytes=([0-9]+)-")


class FileServer:
    """A substitute server whose answers a test can break.

    Attributes:
        files: bodies by path.
        asked: path, Range and If-Range of each request.
        cut: bytes after which a connection is closed.
        validator: the field that says which version of a file it is, and its value.
        status: of all answers, 0 for what they should be.
        fields: further fields of answers.
        shift: bytes by which it continues somewhere else.
        statuses: of all answers.
        lengthless: whether it doesn't say how long its answers are.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.cut: int | None = None
        self.validator: tuple[str, str] | None = ("ETag", '"1"')
        self.status = 0
        self.fields: Mapping[str, str] = {}
        self.shift = 0
        self.statuses: list[int] = []
        self.lengthless = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                span, condition = self.headers.get("Range"), self.headers.get("If-Range")
                outer.asked.append((self.path, span, condition))
                body = outer.files.get(self.path)
                status = outer.status or (404 if body is None else 200)
                start = 0
                match = _RANGE.fullmatch(span or "")
                same = outer.validator is not None and condition == outer.validator[1]
                if status == 200 and body is not None and match and same:
                    start, status = int(match[1]) + outer.shift, 206
                    if start >= len(body):
                        status, start = 416, 0
                if status == 200 and outer.validator is not None:
                    known = (self.headers["If-None-Match"], self.headers["If-Modified-Since"])
                    if outer.validator[1] in known:
                        status = 304
                rest = (body or b"")[start:] if status in (200, 206) else b""
                outer.statuses.append(status)
                self.send_response(status)
                if not outer.lengthless:
                    self.send_header("Content-Length", str(len(rest)))
                if outer.validator:
                    self.send_header(*outer.validator)
                if status == 416:
                    self.send_header("Content-Range", f"bytes */{len(body or b'')}")
                if status == 206:
                    total = len(body or b"")
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                for field in outer.fields.items():
                    self.send_header(*field)
                self.end_headers()
                self.wfile.write(rest[: outer.cut])
                self.close_connection = outer.cut is not None or outer.lengthless

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def offer(self, made: Made, data: bytes | None = None) -> tuple[Source, Narinfo]:
        """Have an item, with gzip or as other bytes; where it is, and its narinfo from here."""
        name = made.path.rpartition("/")[2]
        body = gzip.compress(made.nar) if data is None else data
        self.files[f"/nar/gzip/{name}"] = body
        source = Source(f"nar/gzip/{name}", "gzip", len(body))
        raw = narinfo.with_sources(made.narinfo, [source])
        self.files[f"/{name[:32]}.narinfo"] = raw
        info = narinfo.parse(raw, self.url)
        return info.sources[0], info
