# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions without torrents on loopback: everything here is real libtorrent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from narswarm.errors import BusyError, NetworkError, SettingsError
from narswarm.swarm_session import Session
from tests.narswarm.sessions import alone, wait_until
from tests.ports import free_port

Open = Callable[..., Session]


@pytest.fixture
def open_session() -> Iterator[Open]:
    """Open sessions on loopback that talk to nobody else; closed at the end."""
    opened: list[Session] = []

    def make(**settings: Any) -> Session:
        opened.append(Session(alone(**settings)))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_nothing_runs_before_the_first_use(open_session: Open) -> None:
    """A session doesn't survive fork(), so that making the object must not start one."""
    idle = open_session()
    assert idle._session is None
    threads = {thread.name for thread in threading.enumerate()}
    assert "alerts" not in threads
    with idle:
        assert idle.listen_port
    idle.close()


def test_a_forked_child_leaves_the_session_alone(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ending a child process must not wait for threads that only its parent has."""
    session = open_session()
    port = session.listen_port
    with monkeypatch.context() as child:
        child.setattr("os.getpid", lambda: -1)
        session.close()
    assert session.listen_port == port


def test_an_unknown_setting_is_named(open_session: Open) -> None:
    """A typing error in the settings file is told before anything starts."""
    with pytest.raises(SettingsError) as caught:
        open_session(extra={"conections_limit": 5})
    assert str(caught.value).startswith("libtorrent.conections_limit: libtorrent 2.")
    assert str(caught.value).endswith(" has no such setting")


def test_a_port_in_use_is_an_error(open_session: Open) -> None:
    """Another port is never taken in silence: firewalls name the one that was asked for."""
    first = open_session()
    second = open_session(listen=(f"127.0.0.1:{first.listen_port}",))
    with pytest.raises(BusyError) as caught:
        assert second.listen_port
    assert str(caught.value) == f"127.0.0.1:{first.listen_port}: Address already in use"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_every_port_has_to_be_free(open_session: Open, host: str, kind: socket.SocketKind) -> None:
    """One address in use is an error though the session could listen on the other one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as other:
        other.bind((host, 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        port = other.getsockname()[1]
        taken = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        session = open_session(listen=("127.0.0.1:0", taken))
        with pytest.raises(BusyError) as caught:
            assert session.listen_port
    assert str(caught.value) == f"{taken}: Address already in use"


def test_an_address_may_be_named_twice(open_session: Open) -> None:
    """What this session itself listens on isn't in use by another process."""
    port = free_port("127.0.0.77")
    assert open_session(listen=(f"127.0.0.77:{port}",) * 2).listen_port == port


def test_an_address_of_another_machine_is_an_error(open_session: Open) -> None:
    """It is no matter of who is first, so that waiting won't help; a device may still get it."""
    session = open_session(listen=("192.0.2.77:6881",))
    with pytest.raises(NetworkError) as caught:
        assert session.listen_port
    assert str(caught.value) == "192.0.2.77:6881: Cannot assign requested address"
    assert open_session(listen=("192.0.2.77:6881", "127.0.0.1:0")).listen_port


def test_the_dht_state_spares_the_bootstrap(open_session: Open) -> None:
    """A session that starts with saved nodes needs no other address."""
    hub = open_session(dht=True, role="seed")
    first = open_session(dht=True, dht_nodes=(f"127.0.0.1:{hub.listen_port}",))
    wait_until(lambda: first.counters()["dht_nodes"] >= 1)
    state = first.dht_state()
    first.close()
    second = open_session(dht=True, dht_state=state)
    wait_until(lambda: second.counters()["dht_nodes"] >= 1)


def test_dht_state_is_empty_without_a_dht(open_session: Open) -> None:
    """A session that takes no part in the DHT has nothing to keep, and garbage does no harm."""
    assert open_session().dht_state() == b""
    assert open_session(dht=True, dht_state=b"garbage").listen_port


def test_a_closed_session_stays_closed(open_session: Open) -> None:
    """Nothing starts it again; to close it twice is no error, nor to close one that never ran."""
    session = open_session()
    session.close()
    session.close()
    with pytest.raises(NetworkError) as caught:
        session.mappings()
    assert str(caught.value) == "BitTorrent session: is closed"


def test_a_node_can_be_named_later(open_session: Open) -> None:
    """`add_dht_node` brings a session into the DHT that knew nobody there."""
    hub = open_session(dht=True, role="seed")
    late = open_session(dht=True)
    assert late.counters()["dht_nodes"] == 0
    late.add_dht_node("127.0.0.1", hub.listen_port)
    wait_until(lambda: late.counters()["dht_nodes"] >= 1)


def test_a_session_alone_has_moved_nothing(open_session: Open) -> None:
    """All counters are there from the beginning; routers that weren't asked said nothing."""
    session = open_session()
    assert session.counters() == dict.fromkeys(
        ("uploaded", "downloaded", "peers", "incoming", "dht_nodes"), 0
    )
    assert session.mappings() == []


def test_limits_can_be_changed(open_session: Open) -> None:
    """Limits of the settings hold until others are given."""
    session = open_session()
    session.limit_rates(1000, 2000)
    settings = session._start()[0].get_settings()
    assert (settings["upload_rate_limit"], settings["download_rate_limit"]) == (1000, 2000)


def test_a_session_for_the_local_network_filters(open_session: Open) -> None:
    """Private addresses pass the filter, others don't."""
    session, _ = open_session(lan_only=True)._start()
    rules = session.get_ip_filter()
    for ip, blocked in {
        "9.255.255.255": 1,
        "10.0.0.0": 0,
        "172.16.0.1": 0,
        "172.32.0.0": 1,
        "192.168.255.255": 0,
        "192.169.0.0": 1,
        "fd00::1": 0,
        "2001:db8::1": 1,
    }.items():
        assert rules.access(ip) == blocked, ip
