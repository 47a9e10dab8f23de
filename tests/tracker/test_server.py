# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker as a process: what can fail before it serves, and what watches it serve."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.workers.gthread import ThreadWorker

from narswarm.errors import BusyError, SettingsError
from tracker import server
from tracker.index import Index
from tracker.server import REQUEST_SECONDS, DeadlineWorker, serve
from tracker.settings import Settings


@pytest.fixture(name="taken")
def taken_fixture() -> Iterator[int]:
    """A port of 127.0.0.1 that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_port_that_is_taken(tmp_path: Path, taken: int) -> None:
    """It is said at once, and sockets that were already made are let go."""
    address = f"127.0.0.1:{taken}"
    with pytest.raises(BusyError) as caught:
        serve(Settings(listen=("127.0.0.1:0", address), data=tmp_path))
    assert str(caught.value) == f"{address}: is in use"


@pytest.mark.parametrize(
    ("address", "reason"),
    [("192.0.2.1:0", "Cannot assign requested address"), ("a..b:0", "has no host name")],
)
def test_address_of_somebody_else(tmp_path: Path, address: str, reason: str) -> None:
    """An address must be one of this machine."""
    with pytest.raises(SettingsError) as caught:
        serve(Settings(listen=(address,), data=tmp_path))
    assert str(caught.value) == f"{address}: {reason}"


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    """An unusable directory is said before anything listens."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(SettingsError) as caught:
        serve(Settings(data=path))
    assert str(caught.value) == f"{path}: File exists"


def test_two_trackers_in_one_directory(tmp_path: Path, taken: int) -> None:
    """The swarms and the list of infohashes have one owner."""
    Index(tmp_path).close()
    with server._Lock(tmp_path), pytest.raises(BusyError) as caught:
        serve(Settings(listen=(f"127.0.0.1:{taken}",), data=tmp_path))
    assert str(caught.value) == f"{tmp_path}: is in use by another tracker"


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"trusted_proxies": ("x",)}, "trusted_proxies"),
        ({"publishers": ("x",)}, "publishers"),
        ({"metrics_from": ("x",)}, "metrics_from"),
    ],
)
def test_settings_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], subject: str
) -> None:
    """Settings are checked before a worker would fail on them."""
    with pytest.raises(SettingsError) as caught:
        serve(replace(Settings(data=tmp_path), **changes))
    assert caught.value.subject == subject


@pytest.mark.parametrize(
    ("address", "only_ipv6"), [("[::]:0", 0), ("[::1]:0", 1), ("127.0.0.1:0", None)]
)
def test_sockets(address: str, only_ipv6: int | None) -> None:
    """The socket of all IPv6 addresses takes IPv4 too, whatever the system's default is."""
    with server._Sockets([address]) as (listener,):
        if only_ipv6 is not None:
            assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == only_ipv6
        host = "127.0.0.1" if only_ipv6 != 1 else "::1"
        socket.create_connection((host, listener.getsockname()[1]), timeout=5).close()
    assert listener.fileno() == -1


class Connection:
    """As much of gunicorn's connections as a worker's watch needs."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock


@pytest.fixture(name="watched")
def watched_fixture(monkeypatch: pytest.MonkeyPatch) -> DeadlineWorker:
    """A worker whose requests read a byte, after the watch looked at them."""

    def handle(worker: DeadlineWorker, conn: Connection) -> bytes:
        worker.notify()
        return conn.sock.recv(1, socket.MSG_DONTWAIT)

    monkeypatch.setattr(ThreadWorker, "__init__", lambda _: None)
    monkeypatch.setattr(ThreadWorker, "notify", lambda _: None)
    monkeypatch.setattr(ThreadWorker, "handle", handle)
    return DeadlineWorker()


@pytest.mark.parametrize(("seconds", "read"), [(REQUEST_SECONDS, b"x"), (REQUEST_SECONDS + 1, b"")])
def test_slow_clients_are_cut_off(
    watched: DeadlineWorker, monkeypatch: pytest.MonkeyPatch, seconds: int, read: bytes
) -> None:
    """A connection whose request takes too long is shut, so that its thread can go on."""
    clock = iter([0, seconds])
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if read:
            theirs.send(read)
        assert watched.handle(Connection(ours)) == read
    assert watched._deadlines == {}


def test_slow_client_that_left(watched: DeadlineWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch doesn't stumble over a connection that closed meanwhile."""
    clock = iter([0, REQUEST_SECONDS + 1])
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        watched.handle(Connection(ours))
    assert watched._deadlines == {}


def test_gunicorn_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker, room for long scrapes, no log of requests; the environment has no say."""
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--workers 4 --access-logfile -")
    cfg = server._Server(Settings(data=tmp_path, threads=3), []).cfg
    assert (cfg.workers, cfg.threads, cfg.worker_class) == (1, 3, DeadlineWorker)
    assert (cfg.limit_request_line, cfg.accesslog, cfg.forwarded_allow_ips) == (8190, None, [])


def test_tidying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent peers and the ACL's file are looked at again and again."""
    calls: list[object] = []
    pauses = iter([None, None])

    def sleep(seconds: int) -> None:
        calls.append(seconds)
        if next(pauses, StopIteration) is StopIteration:
            raise KeyboardInterrupt

    monkeypatch.setattr(server, "time", SimpleNamespace(sleep=sleep, time=lambda: 7.5))
    announcer: Any = SimpleNamespace(expire=calls.append)
    acl_file: Any = SimpleNamespace(refresh=lambda: calls.append("acl"))
    with pytest.raises(KeyboardInterrupt):
        server._tidy(announcer, acl_file)
    assert calls == [60, 7, "acl", 60, 7, "acl", 60]


def test_hangup_reaches_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The master hands SIGHUP on, and the worker has everything read again."""
    sent: list[tuple[int, int]] = []
    master: Any = object.__new__(server._OneWorkerArbiter)
    master.WORKERS = {7: None}
    monkeypatch.setattr(master, "kill_worker", lambda *what: sent.append(what))
    master.handle_hup()
    assert sent == [(7, signal.SIGHUP)]

    application = server._Server(Settings(data=tmp_path), [])
    application.request_reload()  # before there is anything to reload
    requests: list[str] = []
    admin: Any = SimpleNamespace(
        request_reload=lambda: requests.append("reload"), stop=lambda: requests.append("stop")
    )
    worker: Any = object.__new__(DeadlineWorker)
    worker.app = application
    monkeypatch.setattr(ThreadWorker, "init_signals", lambda _: None)
    before = signal.getsignal(signal.SIGHUP)
    try:
        worker.init_signals()
        application._admin = admin
        signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    application.cfg.worker_exit(master, worker)
    assert requests == ["reload", "stop"]


def test_numbers_are_kept_last(tmp_path: Path) -> None:
    """When it ends, nothing is counted over UDP any more after numbers were written down."""
    ended: list[str] = []
    application = server._Server(Settings(data=tmp_path), [])
    udp: Any = SimpleNamespace(stop=lambda: ended.append("udp"))
    admin: Any = SimpleNamespace(stop=lambda: ended.append("admin"))
    application._udp, application._admin = udp, admin
    application.cfg.worker_exit(None, None)
    assert ended == ["udp", "admin"]


def test_worker_that_never_began(tmp_path: Path) -> None:
    """Its end has nothing to write down."""
    application = server._Server(Settings(data=tmp_path), [])
    application.cfg.worker_exit(None, None)
    assert list(tmp_path.iterdir()) == []
