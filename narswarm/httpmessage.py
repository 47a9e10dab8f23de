# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages of HTTP/1.1 (RFC 9112) as a client writes and reads them.

Python's own `http.client` takes longer to load than a small item takes to fetch, for what is a
line, some fields and a body of one of three forms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, Protocol

MAX_LINE: Final = 65_536
"""Longest line of a header, in bytes."""

MAX_FIELDS: Final = 100

_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n]*)?")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")
_NO_BODY: Final = frozenset({204, 304})


_ETAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,200}"')
_DATE: Final = re.compile(r"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT")


class Validator(NamedTuple):
    """What a server calls a version of something (RFC 9110, section 8.8).

    Attributes:
        etag: with its quotes, empty if there is none.
        modified: the date of its last change as the server wrote it, empty if there is none.
    """

    etag: str = ""
    modified: str = ""

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Validator:
        """That of an answer, by its fields in lower case; what isn't well-formed doesn't count."""
        etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
        return cls(
            etag if _ETAG.fullmatch(etag) else "", modified if _DATE.fullmatch(modified) else ""
        )

    def conditions(self) -> dict[str, str]:
        """Fields of a request that is to be answered by 304 if nothing has changed."""
        fields = {"If-None-Match": self.etag, "If-Modified-Since": self.modified}
        return {name: value for name, value in fields.items() if value}


class MalformedError(Exception):
    """An answer which is not one; the message is the reason."""


class Reader(Protocol):
    """Where an answer is read from: a buffered file."""

    def readline(self, size: int, /) -> bytes:
        """A line of at most `size` bytes."""

    def read1(self, size: int, /) -> bytes:
        """Some bytes, as they come."""

    def close(self) -> None:
        """Let go of it."""


def request(method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """Write a request.

    Raises:
        ValueError: a field holds a line break or isn't Latin-1.
    """
    fields = dict(headers)
    fields.setdefault("Accept-Encoding", "identity")
    if body is not None:
        fields["Content-Length"] = str(len(body))
    elif method in {"PUT", "POST", "PATCH"}:
        fields["Content-Length"] = "0"
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a line break in a header")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class Answer:
    """An answer: its header is read at once, its body as it comes.

    Args:
        reader: where it comes from.
        method: of the request.

    Attributes:
        status: the number.
        fields: names in lower case and values, in order.
        length: bytes of the body; None where they aren't known beforehand.
        keeps: whether the server means to keep the connection.

    Raises:
        EOFError: the server closed the connection instead.
        MalformedError: something else than an answer.
    """

    def __init__(self, reader: Reader, method: str) -> None:
        self._reader = reader
        while True:
            version, self.status = self._status_line()
            self.fields = self._read_fields()
            if self.status >= 200:
                break
        named = dict(reversed(self.fields))
        self._chunked = named.get("transfer-encoding", "").lower() == "chunked"
        tokens = {token.strip().lower() for token in named.get("connection", "").split(",")}
        self.keeps = "close" not in tokens and (version == 1 or "keep-alive" in tokens)
        self.length: int | None = None
        if method == "HEAD" or self.status in _NO_BODY:
            self.length, self._chunked = 0, False
        elif not self._chunked:
            self.length = self._content_length(named)
            self.keeps = self.keeps and self.length is not None
        self._left = 0 if self._chunked else self.length
        self._after_chunk = False
        self._ended = self.length == 0

    def read1(self, size: int) -> bytes:
        """Some of the body, nothing at its end or where the connection ends before."""
        if self._ended:
            return b""
        if self._chunked:
            return self._read_chunk(size)
        data = self._reader.read1(size if self._left is None else min(size, self._left))
        if self._left is not None:
            self._left -= len(data)
        self._ended = not data or self._left == 0
        return data

    def close(self) -> None:
        """Let go of what it is read from."""
        self._reader.close()

    def _status_line(self) -> tuple[int, int]:
        line = self._reader.readline(MAX_LINE + 1)
        if not line:
            raise EOFError
        match = _STATUS.fullmatch(line.rstrip(b"\r\n"))
        if match is None or not line.endswith(b"\n"):
            raise MalformedError("did not answer in HTTP")
        return int(match[1]), int(match[2])

    def _read_fields(self) -> list[tuple[str, str]]:
        fields: list[tuple[str, str]] = []
        while (line := self._line()) != b"":
            name, colon, value = line.partition(b":")
            if line[:1] in b" \t" and fields:  # folded, as old servers did
                last, before = fields.pop()
                fields.append((last, f"{before} {line.strip().decode('latin-1')}"))
                continue
            if not colon or not _NAME.fullmatch(name) or len(fields) >= MAX_FIELDS:
                raise MalformedError("did not answer in HTTP")
            fields.append((name.decode().lower(), value.strip(b" \t").decode("latin-1")))
        return fields

    def _line(self) -> bytes:
        line = self._reader.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise MalformedError("did not answer in HTTP")
        if not line.endswith(b"\n"):
            raise MalformedError("ended before its end")
        return line.rstrip(b"\r\n")

    def _content_length(self, fields: Mapping[str, str]) -> int | None:
        text = fields.get("content-length")
        if text is None:
            return None
        if not _LENGTH.fullmatch(text) or len(_all(self.fields, "content-length")) > 1:
            raise MalformedError("did not answer in HTTP")
        return int(text)

    def _read_chunk(self, size: int) -> bytes:
        if not self._left:
            if self._after_chunk and self._line():
                raise MalformedError("ended before its end")
            self._after_chunk = True
            match = _CHUNK_SIZE.fullmatch(self._line())
            if match is None:
                raise MalformedError("ended before its end")
            self._left = int(match[1], 16)
            if not self._left:
                for _ in range(MAX_FIELDS):
                    if not self._line():
                        break
                self._ended = True
                return b""
        data = self._reader.read1(min(size, self._left))
        if not data:
            raise MalformedError("ended before its end")
        self._left -= len(data)
        return data


def _all(fields: Iterable[tuple[str, str]], name: str) -> set[str]:
    return {value for each, value in fields if each == name}
