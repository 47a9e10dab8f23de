# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker as a process: sockets, gunicorn around the application, and what keeps it tidy.

The swarms are in the memory of one process, so gunicorn has one worker, with threads, and is kept
from ever starting a second one. Sockets are made here before gunicorn starts: a port that is taken
or an address that isn't ours is then an error of this program, said at once.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from narswarm.errors import BusyError, SettingsError
from narswarm.sdnotify import Notifier
from tracker.aclfile import AclFile
from tracker.admin import Admin
from tracker.announcer import Announcer
from tracker.app import TrackerApp
from tracker.front import Front, FrontWorker
from tracker.index import Index
from tracker.native import NativeAnnouncer, NativeSwarms, NativeUdpServer
from tracker.policy import Policy
from tracker.settings import Settings, parse_listen
from tracker.stores import open_swarms
from tracker.swarmstore import SwarmStore
from tracker.udp import UdpResponder, UdpServer, UdpSockets, dropped_datagrams, load_key
from tracker.wire_udp import ConnectionIds

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

REQUEST_SECONDS = 30
"""How long a request may take from its first byte to the end of its answer."""

TIDY_SECONDS = 60
"""How often silent peers are looked for and the ACL's file is looked at."""

_STOP_SECONDS = 5
_BACKLOG = 1024
_FIRST_BYTE_SECONDS = 5


def serve(settings: Settings, reload: Callable[[], Settings] | None = None) -> None:
    """Run the tracker until it is told to stop.

    Args:
        settings: what it begins with.
        reload: reads them again when it is asked to; without it, they stay.

    Raises:
        SettingsError: a setting can't be used on this machine.
        InvalidInputError: the index is none, or of a later version.
        BusyError: an address is in use, or another tracker has the directory.
    """
    # What would fail later in the worker fails here, where it can be said in one line.
    settings.policy()
    settings.publisher_keys()
    settings.metrics_networks()
    open_swarms(settings, random.Random()).close()  # noqa: S311 - nothing is chosen
    Index(settings.place, max_bytes=settings.index_size).close()
    with (
        _Lock(settings.data),
        _Sockets(settings.listen) as sockets,
        UdpSockets(sockets if settings.udp else ()) as udp_sockets,
    ):
        if udp_sockets:
            load_key(settings.data)
        _Server(settings, sockets, udp_sockets, reload).run()


class _Lock:
    """Keeps a second tracker from the same directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / "lock").open("w")
        except OSError as error:
            raise SettingsError(directory, error.strerror or str(error)) from error

    def __enter__(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise BusyError(self._directory, "is in use by another tracker") from None

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Sockets:
    """Listening sockets."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._addresses = addresses
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> list[socket.socket]:
        try:
            for address in self._addresses:
                self._sockets.append(_listen(address))
        except BaseException:
            self.__exit__()
            raise
        return self._sockets

    def __exit__(self, *_: object) -> None:
        for listener in self._sockets:
            listener.close()


def _listen(address: str) -> socket.socket:
    """Make a listening socket; one for `[::]` takes IPv4 connections as well."""
    host, port = parse_listen(address)
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
        family, kind, protocol, _, bound = found[0]
        listener = socket.socket(family, kind, protocol)
    except UnicodeError:
        raise SettingsError(address, "has no host name") from None
    except OSError as error:
        raise SettingsError(address, error.strerror or str(error)) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        # A connection that says nothing doesn't get as far as a thread.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _FIRST_BYTE_SECONDS)
        listener.bind(bound)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise BusyError(address, "is in use") from error
        raise SettingsError(address, error.strerror or str(error)) from error
    return listener


def _url(sock: socket.socket, scheme: str) -> str:
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class _OneWorkerArbiter(Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """A master that ignores the signals which would make a second owner of the swarms."""

    def _ignore(self) -> None:
        self.log.warning("ignored a signal: the swarms are in the memory of one worker")

    def handle_hup(self) -> None:
        """Have the worker reload, instead of replacing it."""
        for pid in list(self.WORKERS):
            self.kill_worker(pid, signal.SIGHUP)

    handle_ttin = handle_ttou = handle_usr2 = _ignore


class DeadlineWorker(FrontWorker):
    """A worker whose threads can't be held for ever by clients that send, or read, slowly."""

    notifier = Notifier({}, 0)
    """Tells systemd of this worker; as the class has it, nobody."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._deadlines: dict[Any, float] = {}

    def init_signals(self) -> None:
        """Reload when told; gunicorn's workers end themselves."""
        super().init_signals()
        signal.signal(signal.SIGHUP, lambda *_: self.app.request_reload())

    def handle(self, conn: Any) -> Any:
        """Serve one request in a thread of the pool."""
        self._deadlines[conn] = time.monotonic() + REQUEST_SECONDS
        try:
            return super().handle(conn)
        finally:
            del self._deadlines[conn]

    def notify(self) -> None:
        """Say that the worker lives, once a second, and end what took too long."""
        super().notify()
        self.notifier.alive()
        now = time.monotonic()
        for conn, deadline in list(self._deadlines.items()):
            if deadline < now:
                try:
                    conn.sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # the client left by itself


class _Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn with settings that come from nowhere but here."""

    def __init__(
        self,
        settings: Settings,
        sockets: Sequence[socket.socket],
        udp_sockets: Sequence[socket.socket] = (),
        reload: Callable[[], Settings] | None = None,
    ) -> None:
        self._settings = settings
        self._reload = reload or (lambda: settings)
        self._admin: Admin | None = None
        self._announcer: Announcer | None = None
        self._udp: UdpServer | NativeUdpServer | None = None
        self.front: Front | None = None
        """What accepts connections of HTTP, where it isn't gunicorn."""
        self._sockets = sockets
        self._udp_sockets = udp_sockets
        # Taken before gunicorn could say that it is ready when its worker isn't.
        self._notifier = Notifier.of_process()
        super().__init__()

    def load_config(self) -> None:
        """Set what differs from gunicorn's defaults."""
        options: dict[str, object] = {
            # gunicorn takes over, and closes, the descriptors that it is given.
            "bind": [f"fd://{os.dup(listener.fileno())}" for listener in self._sockets],
            "workers": 1,
            # A name: gunicorn 20 can't say a class in its log.
            "worker_class": f"{__name__}.{DeadlineWorker.__name__}",
            "threads": self._settings.threads,
            "preload_app": False,
            "keepalive": 5,
            "graceful_timeout": _STOP_SECONDS,
            # A scrape of 74 infohashes takes 5,300 bytes; this is gunicorn's maximum.
            "limit_request_line": 8190,
            "limit_request_fields": 50,
            "limit_request_field_size": 2048,
            # No log of requests: addresses are nobody's business. Its warnings name some, too.
            "accesslog": None,
            "loglevel": "error",
            "forwarded_allow_ips": "",
            "proc_name": "tracker",
            "post_worker_init": self._announce_ready,
            "worker_exit": self._end,
            "control_socket_disable": True,
        }
        for name, value in options.items():
            if name in self.cfg.settings:  # older versions know less
                self.cfg.set(name, value)

    def load(self) -> WSGIApplication:
        """Build the application in the worker process, where its threads and locks belong."""
        settings = self._settings
        logging.basicConfig(level=logging.INFO, format="tracker: %(message)s", stream=sys.stderr)
        index = Index(settings.place, max_bytes=settings.index_size)
        rng = random.Random()  # noqa: S311 - it chooses peers, and keeps no secret
        swarms = open_swarms(settings, rng)
        is_listed = _anything if settings.open else index.is_listed
        self._announcer = announcer = _make_announcer(settings.policy(), swarms, is_listed, rng)
        if isinstance(swarms, NativeSwarms) and not settings.open:
            index.watch(swarms)
        if isinstance(announcer, NativeAnnouncer):
            self.front = announcer.open_front(self._sockets)
        acl_file = AclFile(settings.acl, index)
        acl_file.refresh()
        app = TrackerApp(settings, index, announcer, acl_file)
        self._admin = Admin(settings, self._reload, index, announcer, acl_file, app)
        self._admin.start()
        tidying = threading.Thread(
            target=_tidy, args=(announcer, acl_file), name="tidy", daemon=True
        )
        tidying.start()
        if self._udp_sockets:
            announcer.metrics.udp_drops = lambda: dropped_datagrams(self._udp_sockets)
            key = load_key(settings.data)
            if isinstance(swarms, NativeSwarms):
                self._udp = NativeUdpServer(self._udp_sockets, swarms, key)
            else:
                responder = UdpResponder(announcer, ConnectionIds(key))
                self._udp = UdpServer(self._udp_sockets, responder)
            self._udp.start()
        return app.wsgi()

    def request_reload(self) -> None:
        """Have settings, ACL and blocks read again; in the worker."""
        if self._admin is not None:
            self._admin.request_reload()

    def _end(self, _arbiter: Arbiter, _worker: DeadlineWorker) -> None:
        """Write down what should last; in the worker, when it ends."""
        if self._udp is not None:
            # A download that is answered after numbers were written down would be lost.
            self._udp.stop()
        if self._admin is not None:
            self._admin.stop()

    def run(self) -> None:
        """Serve until a signal comes."""
        _OneWorkerArbiter(self).run()

    def _announce_ready(self, worker: DeadlineWorker) -> None:
        worker.notifier = self._notifier
        self._notifier.ready("serving")
        if worker.age == 1:  # and not one that replaces a worker that crashed
            for listener in self._sockets:
                sys.stdout.write(f"tracker: listening on {_url(listener, 'http')}\n")
            for sock in self._udp_sockets:
                sys.stdout.write(f"tracker: listening on {_url(sock, 'udp')}\n")
            if self._announcer is not None:
                sys.stdout.write(f"tracker: engine: {self._announcer.metrics.engine}\n")
            sys.stdout.flush()


def _make_announcer(
    policy: Policy, swarms: SwarmStore, is_listed: Callable[[bytes], bool], rng: random.Random
) -> Announcer:
    """The announcer that goes with a store."""
    if isinstance(swarms, NativeSwarms):
        return NativeAnnouncer(policy, swarms, is_listed, rng)
    return Announcer(policy, swarms, is_listed, rng)


def _anything(_info_hash: bytes) -> bool:
    return True


def _tidy(announcer: Announcer, acl_file: AclFile) -> None:
    """Do regularly what requests would otherwise do by chance."""
    while True:
        time.sleep(TIDY_SECONDS)
        announcer.expire(int(time.time()))
        acl_file.refresh()
