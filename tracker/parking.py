# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections whose answer has time: thousands wait in one thread and hold none of gunicorn's.

A view says that its request may wait by putting a `Poll` into the environment. The descriptor is
then taken out of gunicorn's socket object, which is left as one that is closed already, and the
request ends for gunicorn as if the client had gone. From there on the connection belongs to the
thread here, which answers it once and closes it. Where there is no such socket (another server, a
test), the answer that the view made beside it is sent: the request doesn't wait.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import logging
import resource
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ENVIRON: Final = "tracker.poll"
"""Where in the environment a view puts its `Poll`."""

SEND_SECONDS: Final = 5
"""How long a client may take to receive its answer."""

_SOCKET = "gunicorn.socket"
_MAX_INPUT = 4096
_MAX_DESCRIPTORS = 65_536
_STOP_SECONDS = 2

_log = logging.getLogger(__name__)


class Poll(NamedTuple):
    """A request that may wait.

    Attributes:
        key: whose it is, or what for; who waits is woken by it.
        since: the cursor that it came with.
        wait: seconds until it is answered in any case.
        own: what answers it instead of what answers all others. Any number of these with one key
            wait side by side; of others a second one ends the first.
    """

    key: bytes
    since: int
    wait: float
    own: Callable[[bool], Answered] | None = None


class Reply(NamedTuple):
    """A whole answer.

    Attributes:
        body: what it is.
        content_type: of the body.
        status: code and phrase.
        retry_after: seconds until it makes sense to ask again.
    """

    body: bytes
    content_type: str = "application/json"
    status: str = "200 OK"
    retry_after: int | None = None


Answered = Reply | float | None
"""The reply; or nothing if the poll is to wait on, until it is woken or for so many seconds."""

Answer = Callable[[Poll, bool], Answered]
"""Answers a poll; true: it can't wait on."""


@dataclass(slots=True, eq=False)
class _Parked:
    """A connection, in the thread's hands."""

    poll: Poll
    sock: socket.socket
    deadline: float
    received: int = 0
    answer: memoryview | None = None
    """What is left to be sent."""


class _Lot:
    """The thread, and what it waits with; made when the first connection comes."""

    def __init__(self, run: Callable[[_Lot], None]) -> None:
        self.selector = selectors.DefaultSelector()
        self._alarm, self._bell = socket.socketpair()
        for end in (self._alarm, self._bell):
            end.setblocking(False)
        self.selector.register(self._alarm, selectors.EVENT_READ)
        self.thread = threading.Thread(target=run, args=(self,), name="parking", daemon=True)
        self.thread.start()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.selector.close()
        self._alarm.close()
        self._bell.close()

    def parked(self) -> list[_Parked]:
        """The connections that are here."""
        keys = list(self.selector.get_map().values())
        return [key.data for key in keys if key.data is not None]

    def ring(self) -> None:
        """Have the thread look around; from any thread."""
        # It may ring already, or nobody may be there any more.
        with contextlib.suppress(OSError):
            self._bell.send(b"\0")

    def hear(self) -> None:
        """Take note of the bell."""
        with contextlib.suppress(BlockingIOError):
            while self._alarm.recv(4096):
                pass


class Parking:
    """Holds connections until there is an answer, in a thread of its own.

    Args:
        answer: what to say. It is called in the thread of this.
        limit: how many connections may wait.
        clock: seconds from any start, never going back.
    """

    def __init__(
        self, answer: Answer, limit: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._answer = answer
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._arrived: deque[_Parked] = deque()
        self._woken: set[bytes] = set()
        self._closing = False
        self._by_key: dict[bytes, list[_Parked]] = {}
        self._waiting = 0
        self._own = 0
        self._deadlines: list[tuple[float, int, _Parked]] = []
        self._number = count()
        self._lot: _Lot | None = None

    def __len__(self) -> int:
        """How many connections wait."""
        return self._waiting + len(self._arrived)

    def has_room(self, *, own: bool = False) -> bool:
        """Whether another connection may wait; those with an answer of their own get half."""
        free = not self._closing and len(self) < self._limit
        return free and (not own or self._own < self._limit // 2)

    def park(self, poll: Poll, sock: socket.socket) -> None:
        """Take over a connection; from any thread."""
        sock.setblocking(False)
        with self._lock:
            if self._closing:
                sock.close()
                return
            self._arrived.append(_Parked(poll, sock, self._clock() + poll.wait))
            lot = self._lot
            if lot is None:
                lot = self._lot = _Lot(self._run)
        lot.ring()

    def wake(self, keys: Iterable[bytes]) -> None:
        """Look whether there is an answer now for who has these keys; from any thread."""
        with self._lock:
            lot = self._lot
            if lot is None:
                return
            self._woken.update(keys)
        lot.ring()

    def close(self) -> None:
        """Answer all that wait, and end."""
        with self._lock:
            self._closing = True
            lot, self._lot = self._lot, None
        if lot is not None:
            lot.ring()
            lot.thread.join()

    def _run(self, lot: _Lot) -> None:
        with lot:
            while not self._closing:
                self._step(lot, self._until_next())
            waiting = [parked for each in self._by_key.values() for parked in each]
            for parked in [*self._take_arrived(), *waiting]:
                self._say(lot, parked, final=True)
            end = self._clock() + _STOP_SECONDS
            while lot.parked() and self._clock() < end:
                self._step(lot, end - self._clock())
            for parked in lot.parked():
                self._drop(lot, parked)

    def _until_next(self) -> float | None:
        """Seconds until something has to be done in any case."""
        if not self._deadlines:
            return None
        return max(self._deadlines[0][0] - self._clock(), 0)

    def _step(self, lot: _Lot, timeout: float | None) -> None:
        """Wait for something, and do what has to be done."""
        for key, events in lot.selector.select(timeout):
            if key.data is None:
                lot.hear()
            elif events & selectors.EVENT_WRITE:
                self._send(lot, key.data)
            else:
                self._listen(lot, key.data)
        for parked in self._take_arrived():
            self._admit(lot, parked)
        with self._lock:
            woken, self._woken = self._woken, set()
        for name in woken:
            for found in list(self._by_key.get(name, ())):
                self._say(lot, found, final=False)
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            parked = heapq.heappop(self._deadlines)[2]
            if parked.sock.fileno() < 0:
                continue  # long answered
            if parked.answer is None:
                self._say(lot, parked, final=parked.deadline <= now)
            elif parked.deadline <= now:
                self._drop(lot, parked)

    def _take_arrived(self) -> list[_Parked]:
        with self._lock:
            arrived = list(self._arrived)
            self._arrived.clear()
        return arrived

    def _admit(self, lot: _Lot, parked: _Parked) -> None:
        """Begin to wait, instead of an older connection with the same key."""
        for older in list(self._by_key.get(parked.poll.key, ())):
            if older.poll.own is None:
                self._say(lot, older, final=True)
        self._by_key.setdefault(parked.poll.key, []).append(parked)
        self._count(parked, 1)
        lot.selector.register(parked.sock, selectors.EVENT_READ, parked)
        self._remind(parked, parked.deadline)
        # What came between the view's look and now rang for nobody.
        self._say(lot, parked, final=False)

    def _count(self, parked: _Parked, change: int) -> None:
        self._waiting += change
        if parked.poll.own is not None:
            self._own += change

    def _forget(self, parked: _Parked) -> None:
        """It doesn't wait any more."""
        same = self._by_key.get(parked.poll.key, [])
        if parked in same:
            same.remove(parked)
            self._count(parked, -1)
        if not same:
            self._by_key.pop(parked.poll.key, None)

    def _remind(self, parked: _Parked, when: float) -> None:
        heapq.heappush(self._deadlines, (when, next(self._number), parked))

    def _listen(self, lot: _Lot, parked: _Parked) -> None:
        """See whether a client left; what it says otherwise doesn't matter."""
        try:
            data = parked.sock.recv(_MAX_INPUT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        parked.received += len(data)
        if not data or parked.received > _MAX_INPUT:
            self._drop(lot, parked)

    def _say(self, lot: _Lot, parked: _Parked, *, final: bool) -> None:
        """Answer a connection, if there is something to say or it can't wait on."""
        own = parked.poll.own
        try:
            reply = self._answer(parked.poll, final) if own is None else own(final)
        except Exception:  # noqa: BLE001 - whatever it is, the other connections wait on
            _log.exception("a poll could not be answered")
            reply = Reply(b"{}")
        if reply is None:
            return
        if not isinstance(reply, Reply):
            self._remind(parked, self._clock() + reply)
            return
        self._forget(parked)
        parked.answer = memoryview(_response(reply))
        parked.deadline = self._clock() + SEND_SECONDS
        if parked.sock not in lot.selector.get_map():  # it came while this stops
            lot.selector.register(parked.sock, selectors.EVENT_READ, parked)
        self._send(lot, parked)

    def _send(self, lot: _Lot, parked: _Parked) -> None:
        """Send as much of an answer as the kernel takes."""
        assert parked.answer is not None  # noqa: S101 - only then it is asked about writing
        try:
            sent = parked.sock.send(parked.answer)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(lot, parked)
            return
        parked.answer = parked.answer[sent:]
        if not parked.answer:
            self._drop(lot, parked)
            return
        if lot.selector.get_key(parked.sock).events != selectors.EVENT_WRITE:
            lot.selector.modify(parked.sock, selectors.EVENT_WRITE, parked)
            self._remind(parked, parked.deadline)

    def _drop(self, lot: _Lot, parked: _Parked) -> None:
        """Close a connection."""
        self._forget(parked)
        lot.selector.unregister(parked.sock)
        parked.sock.close()


class ParkingMiddleware:
    """Takes connections out of gunicorn's hands when a view says so.

    Args:
        app: the application with the views.
        parking: where they wait.
    """

    def __init__(self, app: WSGIApplication, parking: Parking) -> None:
        self._app = app
        self._parking = parking

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request (PEP 3333).

        Raises:
            BrokenPipeError: to gunicorn, as which the connection is gone.
        """
        body = self._app(environ, start_response)
        poll = environ.get(ENVIRON)
        sock = environ.get(_SOCKET)
        if poll is None or sock is None:
            return body
        close = getattr(body, "close", None)
        if close is not None:
            close()
        # Not a duplicate: gunicorn may shut the connection down before it closes its socket.
        self._parking.park(poll, socket.socket(fileno=sock.detach()))
        # gunicorn, of all versions, takes this for a client that left, and logs nothing.
        raise BrokenPipeError(errno.EPIPE, "the connection waits elsewhere")


def room_for_descriptors() -> int:
    """How many connections may wait: half of what this process may have open, at most 32768.

    A process is started with few, as `select` can't have more; nobody uses that here.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most // 2


def _response(reply: Reply) -> bytes:
    """Write a complete answer."""
    head = [
        f"HTTP/1.1 {reply.status}",
        f"Date: {formatdate(usegmt=True)}",
        "Connection: close",
        f"Content-Type: {reply.content_type}",
        f"Content-Length: {len(reply.body)}",
        "Cache-Control: no-store",
    ]
    if reply.retry_after is not None:
        head.append(f"Retry-After: {reply.retry_after}")
    return "\r\n".join([*head, "", ""]).encode() + reply.body
