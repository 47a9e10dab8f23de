# SPDX-License-Identifier: GPL-3.0-or-later
"""A Redis that is there, that isn't, and that was another one a moment ago."""

from __future__ import annotations

import builtins
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from narswarm.errors import SettingsError
from tests import engines
from tests.engines import Engine
from tracker import redis_link
from tracker.redis_link import PAUSES, Link, parse_url
from tracker.swarmstore import StoreDownError


@pytest.fixture(name="own")
def own_fixture() -> Iterator[Engine]:
    """A Redis that the test may end."""
    with engines.redis_server() as engine:
        yield engine


class Clock:
    """A clock that goes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:1/2", ("redis://h:1/2", "narswarm")),
        ("rediss://user:pass@h/0?prefix=a-B_9", ("rediss://user:pass@h/0", "a-B_9")),
        ("unix:///run/redis.sock?db=3&prefix=x", ("unix:///run/redis.sock?db=3", "x")),
    ],
)
def test_urls(url: str, expected: tuple[str, str]) -> None:
    """What names of keys begin with is a parameter of ours, the rest is Redis'."""
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    "url", ["", "disk", "http://h/0", "redis:/h", "redis://", "unix://", "redis://secret:h@[/0"]
)
def test_what_is_no_url(url: str) -> None:
    """The message has nothing of the URL, which may have a password."""
    with pytest.raises(SettingsError) as caught:
        parse_url(url)
    assert str(caught.value) == "swarms: is neither memory nor redis://HOST:PORT/DATABASE"


@pytest.mark.parametrize("prefix", ["a:b", "{}", "%C3%A9", "*"])
def test_prefixes(prefix: str) -> None:
    """What has a meaning in names of keys or in patterns isn't taken."""
    with pytest.raises(SettingsError) as caught:
        parse_url(f"redis://h/0?prefix={prefix}")
    assert str(caught.value) == "swarms: has a prefix of other than letters, digits, - and _"


def test_parameters_that_redis_does_not_take() -> None:
    """They are an error of the settings, without the URL."""
    with pytest.raises(SettingsError) as caught:
        Link("redis://:secret@127.0.0.1:1/0?socket_timeout=often")
    assert str(caught.value) == "swarms: is not a URL that Redis' Python package takes"


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says how to get it."""
    original = builtins.__import__

    def refuse(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "redis":
            raise ImportError(name)
        return original(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SettingsError) as caught:
        Link("redis://127.0.0.1:1/0")
    assert str(caught.value) == (
        "swarms: needs Redis' Python package: apt install python3-redis,"
        " or pip install narswarm[scale]"
    )


def test_commands_and_their_errors(redis: Engine) -> None:
    """Each command has its own result; one that fails takes no other along."""
    link = Link(redis.url)
    link.ask("SET", "link", "text")
    one, two, three = link.run([("GET", "link"), ("LPUSH", "link", 1), ("ECHO", b"\xff")])
    assert (one, three) == (b"text", b"\xff")
    assert isinstance(two, Exception)
    with pytest.raises(StoreDownError) as caught:
        link.ask("LPUSH", "link", 1)
    assert str(caught.value).startswith("Redis: WRONGTYPE ")
    link.close()


def test_scripts_are_loaded_when_they_are_missing(own: Engine) -> None:
    """A Redis that was restarted knows neither the connection nor the script."""
    link = Link(own.url, "return ARGV[1]")
    for word in (b"one", b"two"):
        commands = [("ECHO", word), ("EVALSHA", link.digest, 0, word)]
        assert link.run(commands) == [word, word]
        own.stop()
        own.start()
    link.close()


def test_pauses(own: Engine) -> None:
    """After a failure nothing is sent for a while, longer each time; then one tries again."""
    clock = Clock()
    link = Link(own.url, clock=clock)
    own.stop()
    for pause in (*PAUSES, PAUSES[-1]):
        with pytest.raises(StoreDownError) as caught:
            link.ask("PING")
        assert str(caught.value).startswith("Redis: does not answer: ")
        clock.now += pause - 0.001
        with pytest.raises(StoreDownError) as caught:
            link.ask("PING")
        assert str(caught.value) == "Redis: does not answer"
        clock.now += 0.002
    own.start()
    assert link.ask("PING") == b"PONG"
    assert link.ask("PING") == b"PONG"
    link.close()


def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that takes connections and says nothing is given up, and not tried twice."""
    monkeypatch.setattr(redis_link, "REPLY_SECONDS", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = Link(f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
        with pytest.raises(StoreDownError):
            link.ask("PING")
        with pytest.raises(StoreDownError) as caught:
            link.ask("PING")
        assert str(caught.value) == "Redis: does not answer"
        link.close()
