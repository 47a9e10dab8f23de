# SPDX-License-Identifier: GPL-3.0-or-later
"""One HTTP connection, every step of which obeys a deadline.

A socket's own time-out starts anew with each byte, and bounds neither an exchange as a whole nor
the size of a header. So answers are read from something that has those limits.
"""

from __future__ import annotations

import io
import re
import select
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from narswarm import httpmessage
from narswarm.errors import NetworkError
from narswarm.httpmessage import Answer, MalformedError

if TYPE_CHECKING:
    import ssl

    from _typeshed import WriteableBuffer

MAX_HEADER: Final = 256 << 10
"""Bytes that may arrive until the header is complete, a read-ahead of the body included."""

MAX_TUNNEL_HEADER: Final = 16 << 10
"""Longest answer of a proxy that is asked for a tunnel, in bytes."""

PORTS: Final = {"http": 80, "https": 443}

_PLAIN: Final = re.compile(
    r"(https?)://([a-z0-9][a-z0-9.-]*)(?::([1-9][0-9]{0,3}|[1-5][0-9]{4}))?((?:/[!-\"$->@-\[\]-~]*)?)"
)

_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)

BLOCK: Final = 128 << 10
"""Bytes that are read at once."""


class Target(NamedTuple):
    """A URL in the parts that a connection and a request line need."""

    scheme: str
    host: str
    port: int
    path: str
    authorization: str | None

    @property
    def authority(self) -> str:
        """What the Host field says: the host, and the port if it is an uncommon one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL that a proxy is asked for."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def name(self) -> str:
        """The URL for messages, without a query, which may hold a secret."""
        return self.url.partition("?")[0]


class Deadline:
    """How long things may still take."""

    def __init__(self, clock: Callable[[], float], silence: float, total: float) -> None:
        self._clock = clock
        self._silence = silence
        self._end = clock() + total
        self.min_rate = 0

    def left(self) -> float:
        """Give the seconds that the next step may take.

        Raises:
            TimeoutError: none are left.
        """
        left = self._end - self._clock()
        if left <= 0:
            raise TimeoutError
        return min(left, self._silence)

    def received(self, size: int) -> None:
        """Allow more time for bytes that came, so that a long stream may take long."""
        if self.min_rate:
            self._end += size / self.min_rate


class Wire:
    """A socket whose every step obeys a deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.sock = sock
        self.deadline = deadline
        self.proxy: Target | None = None
        """The proxy to which requests go in full, not through a tunnel."""
        self.header_left: int | None = None
        """Bytes that may still come before the header has to be complete."""

    def encrypt(self, context: ssl.SSLContext, host: str) -> None:
        """Begin TLS, maybe inside TLS; the certificate has to be that of `host`."""
        self.sock.settimeout(self.deadline.left())
        self.sock = context.wrap_socket(self.sock, server_hostname=host)

    def sendall(self, data: bytes) -> None:
        """Send everything or raise."""
        self.sock.settimeout(self.deadline.left())
        self.sock.sendall(data)
        if _QUICKACK is not None:
            # Many servers send the header and the body in two writes under Nagle's algorithm. The
            # second waits for an acknowledgement of the first, which would come after 40 ms.
            self.sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def reader(self) -> io.BufferedReader:
        """Give what an answer is read from."""
        return io.BufferedReader(_Reader(self), BLOCK)

    def close(self) -> None:
        """Close the socket, once nothing reads from it any more."""
        self.sock.close()


class _Reader(io.RawIOBase):
    """Reads from a wire; like the file of a socket it keeps the socket open until it is closed."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._raw = wire.sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        wire = self._wire
        wire.sock.settimeout(wire.deadline.left())
        view = memoryview(buffer)
        if wire.header_left is not None:
            if wire.header_left <= 0:
                raise MalformedError("has a header that is too long")
            # Small steps, so that the limit is on the header and not on a body behind it.
            view = view[: min(8192, wire.header_left)]
        size = self._raw.readinto(view) or 0
        if wire.header_left is not None:
            wire.header_left -= size
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class UnreachableError(NetworkError):
    """No connection to the server can be made, so that further requests would fail as well."""


class Connection:
    """A connection and the answer that comes on it."""

    def __init__(self, key: object, wire: Wire) -> None:
        self.key = key
        self.idle_since = 0.0
        self.response: Answer | None = None
        self._wire = wire
        self._open = True

    def send(
        self,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: Deadline,
    ) -> Answer:
        """Send a request and read the header of the answer.

        Raises:
            EOFError: the server closed the connection instead.
            OSError: the connection broke, or time is up.
            MalformedError: the header is none, or too long.
        """
        return next(self.pipeline(method, [(target, headers)], body, deadline))

    def pipeline(
        self,
        method: str,
        requests: Sequence[tuple[Target, Mapping[str, str]]],
        body: bytes | None,
        deadline: Deadline,
    ) -> Iterator[Answer]:
        """Send several requests at once (RFC 9112, section 9.3.2) and give the answers in order.

        The body of each has to be read to its end before the next is asked for. The server may
        close the connection after any answer; there are fewer then.

        Raises:
            EOFError: the server closed the connection without any answer.
            OSError: the connection broke, or time is up.
            MalformedError: a header is none, or too long.
        """
        wire = self._wire
        wire.deadline = deadline
        message = b""
        for target, headers in requests:
            path, sent = target.path, dict(headers)
            if wire.proxy is not None:
                path = target.url
                if wire.proxy.authorization:
                    sent["Proxy-Authorization"] = wire.proxy.authorization
            message += httpmessage.request(method, path, sent, body)
        wire.header_left = MAX_HEADER
        wire.sendall(message)
        reader = wire.reader()
        for number in range(len(requests)):
            wire.header_left = MAX_HEADER
            try:
                self.response = Answer(reader, method)
            except EOFError:
                reader.close()
                self._open = False
                if number:
                    return
                raise
            except BaseException:
                reader.close()
                raise
            wire.header_left = None
            last = number + 1 == len(requests)
            self._open = self.response.keeps and last
            yield self.response
            if not self.response.keeps:
                return

    def is_open(self) -> bool:
        """Whether both sides mean to use it again."""
        return self._open

    def is_quiet(self) -> bool:
        """Whether nothing came meanwhile; an end of the connection would show as something."""
        poll = select.poll()
        poll.register(self._wire.sock, select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        """Let whoever waits for bytes see an end."""
        with suppress(OSError):
            self._wire.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the connection up."""
        if self.response is not None:
            self.response.close()
        self._wire.close()


def dial(target: Target, deadline: Deadline) -> socket.socket:
    """Connect to the first address of a host that answers.

    Looking up the name is the one step that can't be bounded from here; the resolver bounds it.
    """
    addresses = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    refusal: OSError = OSError("has no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            # A dead address of several must not use up the time for the others.
            sock.settimeout(deadline.left() / (2 if number + 1 < len(addresses) else 1))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            refusal = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise refusal


def tunnel(wire: Wire, proxy: Target, target: Target) -> None:
    """Ask a proxy for a tunnel (RFC 9110, section 9.3.6)."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    lines = [f"CONNECT {host}:{target.port} HTTP/1.1", f"Host: {host}:{target.port}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    wire.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        # One byte at a time: what follows the header belongs to the tunnel.
        wire.sock.settimeout(wire.deadline.left())
        byte = wire.sock.recv(1)
        answer += byte
        if not byte or len(answer) > MAX_TUNNEL_HEADER:
            raise MalformedError("is behind a proxy that gives no tunnel")
    status = answer.split(b" ", 2)[1:2]
    if status != [b"200"]:
        said = status[0].decode("ascii", "replace") if status else "nothing"
        raise MalformedError(f"is behind a proxy that answers {said}")


def split(url: str, *, credentials: bool = False) -> Target:
    """Take a URL apart.

    Raises:
        NetworkError: it is not one that can be fetched.
    """
    if plain := _PLAIN.fullmatch(url):
        # As nearly all URLs are, without loading the library for the others.
        scheme, host, digits, path = plain.groups()
        return Target(scheme, host, int(digits or PORTS[scheme]), path or "/", None)
    from urllib.parse import unquote, urlsplit  # noqa: PLC0415

    name = url.partition("?")[0][:300]
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise NetworkError(name.encode("unicode_escape").decode(), "is not a URL")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise NetworkError(name, "is not a URL") from error
    if parts.scheme not in PORTS or not host:
        raise NetworkError(name, "is not an http or https URL")
    authorization = None
    if "@" in parts.netloc:
        if not credentials:
            raise NetworkError(f"{parts.scheme}://{host}", "has a user name in its URL")
        import base64  # noqa: PLC0415 - for few

        pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or PORTS[parts.scheme], path, authorization)


@contextmanager
def reasons(url: str, kind: type[NetworkError] = NetworkError) -> Iterator[None]:
    """Turn whatever goes wrong with a server into one error with a plain reason."""
    try:
        yield
    except NetworkError:
        raise
    except TimeoutError as error:
        raise kind(url, "timed out") from error
    except EOFError as error:
        raise kind(url, "closed the connection without an answer") from error
    except (OSError, MalformedError) as error:
        reason = str(getattr(error, "verify_message", "") or getattr(error, "strerror", "") or "")
        reason = reason or str(error) or "failed"
        raise kind(url, reason[0].lower() + reason[1:]) from error
    except ValueError as error:
        raise kind(url, "did not answer in HTTP") from error
