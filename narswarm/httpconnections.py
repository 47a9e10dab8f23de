# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections to HTTP servers: those that wait for further requests, and the way to new ones.

Many small requests go to a few servers, so connections are kept and shared between threads. A new
one leads to the server itself or to a proxy, as the environment says; through a proxy to `https`
servers by a tunnel.

`ssl` is loaded with the first `https` connection: a run which needs none doesn't pay for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from narswarm.httpwire import (
    PORTS,
    Connection,
    Deadline,
    Target,
    UnreachableError,
    Wire,
    dial,
    reasons,
    split,
    tunnel,
)

if TYPE_CHECKING:
    import ssl

MAX_IDLE_AGE: Final = 50.0
"""Seconds that an unused connection is kept: servers commonly close it after 60 or more."""


class Connections:
    """The connections of a client; one instance serves any number of threads.

    Args:
        max_idle: number of unused connections to keep, over all servers.
        environ: where `http_proxy`, `https_proxy` and `no_proxy` are looked up.
        clock: seconds from any start, never going back.
    """

    def __init__(
        self, max_idle: int, environ: Mapping[str, str], clock: Callable[[], float]
    ) -> None:
        self._max_idle = max_idle
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._tls: ssl.SSLContext | None = None
        self._proxies = {
            scheme: environ.get(f"{scheme}_proxy")
            # Not HTTP_PROXY: in a CGI program a request header would set that.
            or (environ.get("HTTPS_PROXY") if scheme == "https" else None)
            for scheme in PORTS
        }
        direct = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
        self._direct = [name.strip().lower().lstrip(".") for name in direct.split(",")]

    def close(self) -> None:
        """Close those that are kept, and keep none from now on."""
        with self._lock:
            idle, self._idle, self._max_idle = self._idle, [], 0
        for connection in idle:
            connection.close()

    def open(self, target: Target, deadline: Deadline) -> Connection:
        """Make a new one.

        Raises:
            UnreachableError: the server can't be connected to.
        """
        key = self._key(target)
        with reasons(target.name, UnreachableError):
            return Connection(key, self._connect(target, key[-1], deadline))

    def take(self, target: Target) -> Connection | None:
        """The kept connection for a target that was used last, None where none looks alive."""
        key = self._key(target)
        now, stale, found = self._clock(), [], None
        with self._lock:
            for connection in [*reversed(self._idle)]:
                if now - connection.idle_since > MAX_IDLE_AGE:
                    self._idle.remove(connection)
                    stale.append(connection)
                elif connection.key == key:
                    self._idle.remove(connection)
                    if connection.is_quiet():
                        found = connection
                        break
                    stale.append(connection)
        for connection in stale:
            connection.close()
        return found

    def put(self, connection: Connection) -> None:
        """Keep a connection that waits for nothing."""
        connection.idle_since = self._clock()
        with self._lock:
            self._idle.append(connection)
            surplus = self._idle[: -self._max_idle] if self._max_idle else self._idle[:]
            del self._idle[: len(surplus)]
        for unwanted in surplus:
            unwanted.close()

    def _key(self, target: Target) -> tuple[str, str, int, Target | None]:
        """What connections have in common that can take each other's place."""
        return target.scheme, target.host, target.port, self._proxy(target)

    def _proxy(self, target: Target) -> Target | None:
        proxy = self._proxies[target.scheme]
        host = target.host.lower()
        if not proxy or any(
            name and (name in ("*", host) or host.endswith(f".{name}")) for name in self._direct
        ):
            return None
        return split(proxy if "://" in proxy else f"http://{proxy}", credentials=True)

    def _connect(self, target: Target, proxy: Target | None, deadline: Deadline) -> Wire:
        """Open a connection to the server, or to the proxy and through it."""
        first = proxy or target
        wire = Wire(dial(first, deadline), deadline)
        try:
            if first.scheme == "https":
                wire.encrypt(self._context(), first.host)
            if proxy is not None and target.scheme == "https":
                tunnel(wire, proxy, target)
                wire.encrypt(self._context(), target.host)
        except BaseException:
            wire.close()
            raise
        if proxy is not None and target.scheme == "http":
            wire.proxy = proxy
        return wire

    def _context(self) -> ssl.SSLContext:
        import ssl  # noqa: PLC0415 - many runs need no TLS

        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context()
            return self._tls
