# SPDX-License-Identifier: GPL-3.0-or-later
"""A reverse proxy in front of `guix publish` that logs every request and makes faults.

    proxy.py HOST:PORT UPSTREAM-URL RULES LOG

RULES is a JSON file, read anew for each request: an object whose keys are regular expressions on
the path and whose values say what happens to a request that matches (the first one counts):

    pass            as if there were no rule
    404, 403, 500   that status
    hang            no answer until the client goes
    cut:N           the connection ends after N bytes of the body
    corrupt         one byte in the middle of the body is changed
    slow:N          N bytes of the body a second

LOG gets one JSON object a request: client, path, status, and the bytes of body that were sent.
"""

from __future__ import annotations

import http.client
import json
import re
import sys
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

CHUNK = 64 * 1024


class Handler(BaseHTTPRequestHandler):
    """One request."""

    upstream: ClassVar[urllib.parse.SplitResult]
    rules: ClassVar[Path]
    log: ClassVar[Path]

    def do_GET(self) -> None:
        """Pass it on, as the rules say."""
        rule = self._rule()
        status, sent = 0, 0
        try:
            if rule.isdecimal():
                status = int(rule)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif rule == "hang":
                self.rfile.read(1)
            else:
                status, sent = self._pass_on(rule)
        finally:
            record = {"client": self.client_address[0], "path": self.path, "rule": rule}
            line = json.dumps({**record, "status": status, "bytes": sent})
            with self.log.open("a") as out:
                out.write(line + "\n")

    def _rule(self) -> str:
        for pattern, action in json.loads(self.rules.read_text()).items():
            if re.search(pattern, self.path):
                return str(action)
        return "pass"

    def _pass_on(self, rule: str) -> tuple[int, int]:
        connection = http.client.HTTPConnection(
            self.upstream.hostname or "", self.upstream.port, timeout=60
        )
        # guix publish may give a NAR without any length: then only closing ends it.
        connection.request("GET", self.path, headers={"Connection": "close"})
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "date", "server", "transfer-encoding"}:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        action, _, number = rule.partition(":")
        sent = 0
        try:
            while chunk := answer.read(min(CHUNK, int(number)) if action == "slow" else CHUNK):
                if action == "cut":
                    chunk = chunk[: int(number) - sent]
                elif action == "corrupt" and sent == 0:
                    middle = len(chunk) // 2
                    changed = chunk[middle] ^ 0xFF
                    chunk = chunk[:middle] + bytes([changed]) + chunk[middle + 1 :]
                self.wfile.write(chunk)
                sent += len(chunk)
                if action == "cut" and sent >= int(number):
                    break
                if action == "slow":
                    time.sleep(len(chunk) / int(number))
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            connection.close()
        return answer.status, sent

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: the log has what tests ask for."""


def main(listen: str, upstream: str, rules: str, log: str) -> None:
    """Serve until killed."""
    Handler.upstream = urllib.parse.urlsplit(upstream)
    Handler.rules, Handler.log = Path(rules), Path(log)
    host, _, port = listen.rpartition(":")
    ThreadingHTTPServer((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
