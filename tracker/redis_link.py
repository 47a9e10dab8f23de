# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection to Redis that answers soon or says that it can't.

Announces come all the time and must not wait for a Redis that isn't there: after a failure nothing
is sent for a moment, and then one request finds out for all whether it is back.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

from narswarm.errors import SettingsError
from tracker.swarmstore import StoreDownError

if TYPE_CHECKING:
    import redis

CONNECT_SECONDS = 0.5
REPLY_SECONDS = 1.0
PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds for which nothing is sent after so many failures in a row."""

SCHEMES = frozenset({"redis", "rediss", "unix"})
_PREFIX = "narswarm"
_INSTALL = "needs Redis' Python package: apt install python3-redis, or pip install narswarm[scale]"

Command = Sequence[str | bytes | int]


def parse_url(url: str) -> tuple[str, str]:
    """Split the parameter `prefix` off a URL.

    Returns:
        The URL for Redis, and what names of keys begin with.

    Raises:
        SettingsError: it isn't a URL of Redis.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # is looked at when it is asked for
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in SCHEMES or not (parts.path if parts.scheme == "unix" else parts.netloc):
        raise SettingsError("swarms", "is neither memory nor redis://HOST:PORT/DATABASE")
    query = parse_qsl(parts.query)
    prefix = dict(query).get("prefix", _PREFIX)
    if not prefix.isascii() or not prefix.replace("-", "").replace("_", "").isalnum():
        raise SettingsError("swarms", "has a prefix of other than letters, digits, - and _")
    others = urlencode([pair for pair in query if pair[0] != "prefix"])
    address = url.partition("?")[0]
    return f"{address}?{others}" if others else address, prefix


class Link:
    """Sends commands to one Redis, and scripts that it may have forgotten.

    Args:
        url: where it is, as `parse_url` returns it.
        script: Lua that commands may run.
        clock: seconds that only go forward.

    Raises:
        SettingsError: Redis' Python package isn't installed, or doesn't take the URL.
    """

    def __init__(
        self, url: str, script: str = "return 0", clock: Callable[[], float] = time.monotonic
    ) -> None:
        try:
            import redis  # noqa: PLC0415 - only who wants it needs it
            from redis.backoff import NoBackoff  # noqa: PLC0415
            from redis.retry import Retry  # noqa: PLC0415
        except ImportError:
            raise SettingsError("swarms", _INSTALL) from None
        try:
            self._client: redis.Redis = redis.Redis.from_url(
                url,
                socket_connect_timeout=CONNECT_SECONDS,
                socket_timeout=REPLY_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        except (ValueError, TypeError):
            raise SettingsError("swarms", "is not a URL that Redis' Python package takes") from None
        # Replies as Redis sends them, whatever version of the package this is.
        self._client.response_callbacks.clear()
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._lost = (redis.ConnectionError, OSError)
        self._too_slow = redis.TimeoutError
        self._forgotten = redis.exceptions.NoScriptError
        self._script = script
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._again = 0.0
        self.digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        """The name by which EVALSHA knows the script."""

    def close(self) -> None:
        """End all connections."""
        self._client.close()

    def run(self, commands: Sequence[Command]) -> list[object]:
        """Send commands together, and return what each brought; an exception where one failed.

        Raises:
            StoreDownError: Redis doesn't answer, or not just now.
        """
        with self._lock:
            if self._failures and self._clock() < self._again:
                raise StoreDownError("Redis", "does not answer")
            # Until this one knows, others go by the last failure.
            self._again = self._clock() + CONNECT_SECONDS + REPLY_SECONDS
        try:
            results = self._send(commands)
            missing = [at for at, each in enumerate(results) if isinstance(each, self._forgotten)]
            if missing:
                resent = self._send(
                    [("SCRIPT", "LOAD", self._script), *(commands[at] for at in missing)]
                )
                for at, result in zip(missing, resent[1:], strict=True):
                    results[at] = result
        except self._errors as error:
            with self._lock:
                pause = PAUSES[min(self._failures, len(PAUSES) - 1)]
                self._failures += 1
                self._again = self._clock() + pause
            raise StoreDownError("Redis", f"does not answer: {error}") from error
        with self._lock:
            self._failures = 0
        return results

    def ask(self, *command: str | bytes | int) -> object:
        """Send one command.

        Raises:
            StoreDownError: it brought nothing.
        """
        (result,) = self.run([command])
        if isinstance(result, Exception):
            raise StoreDownError("Redis", str(result))
        return result

    def _send(self, commands: Sequence[Command]) -> list[object]:
        try:
            return self._pipeline(commands)
        except self._lost as error:
            if isinstance(error, self._too_slow):
                raise
            # A connection from before a restart; a new one may do.
            return self._pipeline(commands)

    def _pipeline(self, commands: Sequence[Command]) -> list[object]:
        with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            return list(pipeline.execute(raise_on_error=False))
