# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of narswarm.httpmessage; Python's own client is the oracle for what is valid."""

from __future__ import annotations

import http.client
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm.httpmessage import (
    MAX_FIELDS,
    MAX_LINE,
    Answer,
    MalformedError,
    Validator,
    request,
)

OK = b"HTTP/1.1 200 OK\r\n"
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


def read(data: bytes, method: str = "GET", size: int = 1 << 16) -> tuple[Answer, bytes]:
    """An answer and its body."""
    answer = Answer(io.BufferedReader(io.BytesIO(data)), method)
    body = b""
    while piece := answer.read1(size):
        assert len(piece) <= size
        body += piece
    return answer, body


class _Socket:
    """What http.client reads from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: Any) -> io.BytesIO:
        """Give the bytes."""
        return io.BytesIO(self._data)


ANSWERS = [
    OK + b"Content-Length: 5\r\n\r\nhello",
    OK + b"Content-Length: 5\r\n\r\nhello and more",
    OK + b"content-length:5\r\nX: 1\r\nx: 2\r\n\r\nhello",
    OK + b"\r\nuntil the end",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok",
    OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    OK
    + b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\nA\r\n0123456789\r\n0\r\nT: r\r\n\r\n",
    OK + b"Transfer-Encoding: Chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
    OK.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\nok",
]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("data", ANSWERS)
def test_answers_are_read_as_others_read_them(data: bytes, method: str) -> None:
    """Status, fields, body, its length, and whether the connection stays."""
    expected = http.client.HTTPResponse(_Socket(data), method=method)  # type: ignore[arg-type]
    expected.begin()
    length, stays = expected.length, not expected.will_close
    body = expected.read()
    for size in (1, 3, 1 << 16):
        answer, read_body = read(data, method, size)
        assert (answer.status, read_body) == (expected.status, body)
        assert (answer.length, answer.keeps) == (length, stays)
        names = [(name.lower(), value) for name, value in expected.getheaders()]
        assert answer.fields == names


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.integers(1, 60))
def test_chunks_are_joined(chunks: list[bytes], size: int) -> None:
    """However they are cut."""
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    data = OK + b"Transfer-Encoding: chunked\r\n\r\n" + coded + b"0\r\n\r\n"
    assert read(data, size=size)[1] == b"".join(chunks)


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK",
        OK + b"no colon\r\n\r\n",
        OK + b" folded: first\r\n\r\n",
        OK + b"a b: c\r\n\r\n",
        OK + b": c\r\n\r\n",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: 1, 1\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        OK + b"Content-Length: " + b"9" * 19 + b"\r\n\r\n",
        OK + b"a: b\r\n" * (MAX_FIELDS + 1) + b"\r\n",
        OK + b"a: " + b"b" * MAX_LINE + b"\r\n\r\n",
    ],
)
def test_what_is_no_header_is_refused(head: bytes) -> None:
    """Nothing is guessed: a body must not be taken for a header, nor the other way round."""
    with pytest.raises(MalformedError, match=r"^did not answer in HTTP$"):
        read(head + b"body")


@pytest.mark.parametrize(
    "data",
    [
        OK,
        OK + b"a: b\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
    ],
)
def test_what_breaks_off_is_not_complete(data: bytes) -> None:
    """Where the length isn't known beforehand, the end has to be said."""
    with pytest.raises(MalformedError, match=r"^ended before its end$"):
        read(data)


def test_a_closed_connection_is_no_answer() -> None:
    """It may be tried again on another one."""
    with pytest.raises(EOFError):
        read(b"")


def test_a_body_of_known_length_may_break_off() -> None:
    """Whoever reads it counts."""
    assert read(OK + b"Content-Length: 5\r\n\r\nhel")[1] == b"hel"


def test_fields_may_be_folded_and_repeated() -> None:
    """As old servers write them."""
    answer, _ = read(OK + b"a: b\r\n\tc\r\nA: d\r\nContent-Length: 0\r\n\r\n")
    assert answer.fields[:2] == [("a", "b c"), ("a", "d")]


@pytest.mark.parametrize(
    ("method", "body", "last"),
    [
        ("GET", None, b"Accept-Encoding: identity\r\n\r\n"),
        ("GET", b"x", b"Content-Length: 1\r\n\r\nx"),
        ("POST", None, b"Content-Length: 0\r\n\r\n"),
        ("PUT", b"", b"Content-Length: 0\r\n\r\n"),
    ],
)
def test_requests(method: str, body: bytes | None, last: bytes) -> None:
    """A line, the fields, and how long the body is where there may be one."""
    written = request(method, "/a?b", {"Host": "h", "X": "\xe4"}, body)
    assert written.startswith(method.encode() + b" /a?b HTTP/1.1\r\nHost: h\r\nX: \xe4\r\n")
    assert written.endswith(last)


@pytest.mark.parametrize("value", ["a\r\nB: c", "a\nb", "\r", "\u20ac"])
def test_no_field_can_make_another(value: str) -> None:
    """Nor is there any other alphabet than Latin-1."""
    with pytest.raises(ValueError, match=r"a line break in a header|'latin-1' codec"):
        request("GET", "/", {"X": value}, None)


@pytest.mark.parametrize(
    ("etag", "modified", "conditions"),
    [
        ('"1"', "", {"If-None-Match": '"1"'}),
        ('W/"1"', "", {"If-None-Match": 'W/"1"'}),
        ('""', "", {"If-None-Match": '""'}),
        ("1", "", {}),
        ('"a b"', "", {}),
        ('"a"b"', "", {}),
        ('"a', "", {}),
        ('"' + "x" * 201 + '"', "", {}),
        ("", DATE, {"If-Modified-Since": DATE}),
        ('"1"', DATE, {"If-None-Match": '"1"', "If-Modified-Since": DATE}),
        ("", "yesterday", {}),
        ("", f"{DATE}\nX: y", {}),
    ],
)
def test_versions(etag: str, modified: str, conditions: dict[str, str]) -> None:
    """What a server calls a version is sent back if it is well-formed, else it doesn't count."""
    validator = Validator.of({"etag": etag, "last-modified": modified})
    assert validator.conditions() == conditions
    assert any(validator) is bool(conditions)


def test_no_version() -> None:
    """A server needn't call it anything."""
    assert Validator.of({}) == Validator("", "")
