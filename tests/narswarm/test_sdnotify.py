# SPDX-License-Identifier: GPL-3.0-or-later
"""narswarm.sdnotify."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from narswarm.sdnotify import Notifier

PID = 4711


class Manager:
    """systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """All that was said so far; a datagram on a Unix socket has arrived when it is sent."""
        said = []
        while True:
            try:
                said.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return said


@pytest.fixture
def address() -> Iterator[str]:
    """A path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield str(Path(directory, "notify"))


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    """systemd, listening."""
    manager = Manager(address)
    yield manager
    manager.socket.close()


def test_everything_is_said_as_systemd_expects_it(manager: Manager, address: str) -> None:
    """READY, STATUS, WATCHDOG and STOPPING are variables of datagrams."""
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"}, PID)
    notifier.ready("3 items")
    notifier.status("4 items")
    notifier.alive()
    notifier.stopping()
    assert manager.heard() == [
        "READY=1\nSTATUS=3 items",
        "STATUS=4 items",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_a_status_is_one_line(manager: Manager, address: str) -> None:
    """A status can't set further variables."""
    Notifier({"NOTIFY_SOCKET": address}, PID).status("a\nMAINPID=1\r\n b \udcff")
    assert manager.heard() == ["STATUS=a MAINPID=1 b \\udcff"]


def test_an_abstract_socket_is_written_with_an_at_sign() -> None:
    """The @ of the variable stands for the null byte of the address."""
    name = f"narswarm-test-{os.getpid()}"
    manager = Manager(f"\0{name}")
    try:
        Notifier({"NOTIFY_SOCKET": f"@{name}"}, PID).stopping()
        assert manager.heard() == ["STOPPING=1"]
    finally:
        manager.socket.close()


@pytest.mark.parametrize(
    ("more", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "1"}, 1 / 3e6),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(PID)}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(PID + 1)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_signs_of_life_are_given_three_times_as_often_as_needed(
    more: dict[str, str], interval: float | None, manager: Manager, address: str
) -> None:
    """A watchdog that isn't there, or is for another process, gets none."""
    notifier = Notifier({"NOTIFY_SOCKET": address, **more}, PID)
    assert notifier.interval == (interval if interval is None else pytest.approx(interval))
    notifier.alive()
    assert manager.heard() == ([] if interval is None else ["WATCHDOG=1"])


def test_the_variables_are_taken_out_of_the_environment(address: str) -> None:
    """Neither children nor libraries speak in the program's name."""
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Notifier(environ, PID)
    assert environ == {"HOME": "/"}


def test_the_process_itself_is_asked_once(
    manager: Manager, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`of_process` reads the real environment and process id."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert Notifier.of_process().interval == 1.0
    Notifier.of_process().ready("nobody is told")
    assert manager.heard() == []


def test_without_systemd_nothing_is_said() -> None:
    """No variable, no word; a watchdog without a socket is none."""
    notifier = Notifier({"WATCHDOG_USEC": "1000000"}, PID)
    notifier.ready("ready")
    notifier.alive()
    notifier.stopping()
    assert notifier.interval is None


def test_a_manager_that_is_gone_is_no_error(manager: Manager, address: str) -> None:
    """The service runs on."""
    notifier = Notifier({"NOTIFY_SOCKET": address}, PID)
    manager.socket.close()
    notifier.stopping()
    Path(address).unlink()
    notifier.stopping()


def test_a_manager_that_does_not_read_is_not_waited_for(manager: Manager, address: str) -> None:
    """A full queue loses words instead of stopping the service."""
    notifier = Notifier({"NOTIFY_SOCKET": address}, PID)
    for _ in range(2000):
        notifier.stopping()
    assert set(manager.heard()) == {"STOPPING=1"}
