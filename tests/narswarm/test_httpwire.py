# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.httpwire`: URLs, deadlines and reasons; servers are in test_httpclient.py."""

from __future__ import annotations

import pytest

from narswarm.errors import NetworkError
from narswarm.httpwire import Deadline, reasons, split


@pytest.mark.parametrize(
    ("url", "authority", "path", "name"),
    [
        ("http://a", "a", "/", "http://a/"),
        ("HTTP://A:80/x", "a", "/x", "http://a/x"),
        ("http://a:8080/x?y=z#part", "a:8080", "/x?y=z", "http://a:8080/x"),
        ("https://a:443/x", "a", "/x", "https://a/x"),
        ("https://a:80/%20", "a:80", "/%20", "https://a:80/%20"),
        ("http://[::1]:81/", "[::1]:81", "/", "http://[::1]:81/"),
        ("http://a?y", "a", "/?y", "http://a/"),
    ],
)
def test_urls(url: str, authority: str, path: str, name: str) -> None:
    """A URL is its authority for the Host field and its path for the request line."""
    target = split(url)
    assert (target.authority, target.path, target.name) == (authority, path, name)
    assert split(target.url) == target


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", ": is not an http or https URL"),
        ("x", "x: is not an http or https URL"),
        ("http:///x", "http:///x: is not an http or https URL"),
        ("file:///x", "file:///x: is not an http or https URL"),
        ("http://a:b/", "http://a:b/: is not a URL"),
        ("http://a:99999/", "http://a:99999/: is not a URL"),
        ("http://[::1/", "http://[::1/: is not a URL"),
        ("http://a/\r\nX: y", "http://a/\\r\\nX: y: is not a URL"),
        ("http://a/x y", "http://a/x y: is not a URL"),
        ("http://é/", "http://\\xe9/: is not a URL"),
        ("http://me:secret@a/", "http://a: has a user name in its URL"),
    ],
)
def test_bad_urls(url: str, message: str) -> None:
    """What can't be fetched is refused, and secrets are not repeated."""
    with pytest.raises(NetworkError) as error:
        split(url)
    assert str(error.value) == message


def test_credentials() -> None:
    """A proxy may have a user name and a password, which messages don't show."""
    target = split("http://me:a%20b@proxy:3128", credentials=True)
    assert target.authorization == "Basic bWU6YSBi"
    assert target.name == "http://proxy:3128/"
    assert split("http://proxy:3128", credentials=True).authorization is None


def test_deadline() -> None:
    """A step may take as long as silence is suffered, and no longer than the whole may."""
    now = 0.0
    deadline = Deadline(lambda: now, 10, 25)
    assert deadline.left() == 10
    now = 20
    assert deadline.left() == 5
    deadline.received(1 << 30)
    assert deadline.left() == 5
    now = 25
    with pytest.raises(TimeoutError):
        deadline.left()


def test_deadline_of_streams() -> None:
    """With a rate, received bytes buy time."""
    now = 0.0
    deadline = Deadline(lambda: now, 10, 25)
    deadline.min_rate = 100
    deadline.received(500)
    now = 29
    assert deadline.left() == 1
    now = 30
    with pytest.raises(TimeoutError):
        deadline.left()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError(), "timed out"),
        (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
        (OSError("Odd"), "odd"),
        (OSError(), "failed"),
        (EOFError(), "closed the connection without an answer"),
        (ValueError("x"), "did not answer in HTTP"),
        (NetworkError("http://b", "was not reached"), None),
    ],
)
def test_reasons(error: Exception, reason: str | None) -> None:
    """Whatever happens to a connection becomes one error, once."""
    with pytest.raises(NetworkError) as caught, reasons("http://a"):
        raise error
    assert str(caught.value) == (f"http://a: {reason}" if reason else str(error))


def test_other_errors() -> None:
    """A mistake in the program is not blamed on a server."""
    with pytest.raises(KeyError), reasons("http://a"):
        raise KeyError
