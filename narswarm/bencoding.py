# SPDX-License-Identifier: GPL-3.0-or-later
"""Bencoding (BEP 3) of bytes that strangers sent: strict, canonical, bounded.

Encoding is bencode.py's.  Its decoder isn't used, because it trusts its input: a negative length in
front of a dictionary's key makes it walk backwards for ever, and it takes unsorted and repeated
keys and numbers such as `1_0`.  An infohash is a hash over encoded bytes, so there must be one
encoding of each value and no other: what `decode` accepts, `encode` gives back byte for byte.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn, cast

import bencodepy

from narswarm.errors import InvalidInputError

Value = int | bytes | list["Value"] | dict[bytes, "Value"]
"""What bencoding can say.  Strings are bytes: BEP 3 knows no text encoding."""

MAX_DEPTH: Final = 16
"""Containers within containers; a torrent of BEP 52 has five."""

MAX_VALUES: Final = 100_000
"""Values in all: a byte or two of input would else take a hundred bytes of memory."""

# 19 digits hold every number that a BEP defines, and keep int() cheap.
_INTEGER: Final = re.compile(rb"i(0|-?[1-9][0-9]{0,18})e")
_LENGTH: Final = re.compile(rb"(0|[1-9][0-9]{0,10}):")


def encode(value: Value) -> bytes:
    """Encode a value; the keys of dictionaries are sorted as raw bytes (BEP 3)."""
    return cast("bytes", bencodepy.encode(value))


def decode(data: bytes, source: object, *, max_depth: int = MAX_DEPTH) -> Value:
    """Decode exactly one canonical value.

    Args:
        data: the encoded bytes; the caller has bounded their number.
        source: where they came from, the subject of errors.
        max_depth: how many containers may be within each other.

    Raises:
        InvalidInputError: the bytes aren't the canonical encoding of one value, nest deeper, or
            hold more than `MAX_VALUES`.
    """
    return _Decoder(data, source, max_depth).run()


class _Container:
    """A list or dictionary whose end hasn't come yet."""

    __slots__ = ("key", "last", "value")

    def __init__(self, *, is_list: bool) -> None:
        self.value: list[Value] | dict[bytes, Value] = [] if is_list else {}
        self.key: bytes | None = None  # of a dictionary, while its value is awaited
        self.last: bytes | None = None  # of a dictionary, the key that came before


class _Decoder:
    """One pass with a stack of its own, so that depth costs no recursion."""

    __slots__ = ("_data", "_max_depth", "_source", "_stack")

    def __init__(self, data: bytes, source: object, max_depth: int) -> None:
        self._data = data
        self._source = source
        self._max_depth = max_depth
        self._stack: list[_Container] = []

    def run(self) -> Value:
        at = 0
        for _ in range(2 * MAX_VALUES):  # containers are seen twice
            mark = self._data[at : at + 1]
            value: Value
            if mark in {b"d", b"l"}:
                self._open(at, is_list=mark == b"l")
                at += 1
                continue
            if mark == b"e" and self._stack:
                value = self._close(at)
                start, at = at, at + 1
            else:
                start = at
                value, at = self._scalar(at)
            if not self._stack:
                break
            self._add(value, start)
        else:
            self._fail("too many values", at)
        if at != len(self._data):
            self._fail("data after the end", at)
        return value

    def _open(self, at: int, *, is_list: bool) -> None:
        if self._stack:
            self._await_value(at)
        if len(self._stack) == self._max_depth:
            self._fail(f"deeper than {self._max_depth} levels", at)
        self._stack.append(_Container(is_list=is_list))

    def _close(self, at: int) -> Value:
        container = self._stack.pop()
        if container.key is not None:
            self._fail("a key without a value", at)
        return container.value

    def _add(self, value: Value, at: int) -> None:
        container = self._stack[-1]
        if isinstance(container.value, list):
            container.value.append(value)
        elif container.key is None:
            if not isinstance(value, bytes):
                self._fail("a key that isn't a string", at)
            if container.last is not None and value <= container.last:
                self._fail("a key out of order", at)
            container.key = container.last = value
        else:
            container.value[container.key] = value
            container.key = None

    def _await_value(self, at: int) -> None:
        container = self._stack[-1]
        if isinstance(container.value, dict) and container.key is None:
            self._fail("a key that isn't a string", at)

    def _scalar(self, at: int) -> tuple[Value, int]:
        if number := _INTEGER.match(self._data, at):
            return int(number[1]), number.end()
        length = _LENGTH.match(self._data, at)
        if length is None:
            self._fail("no canonical value" if at < len(self._data) else "cut off", at)
        end = length.end() + int(length[1])
        if end > len(self._data):
            self._fail("a string longer than the data", at)
        return self._data[length.end() : end], end

    def _fail(self, reason: str, at: int) -> NoReturn:
        raise InvalidInputError(self._source, f"bencoding has {reason} at byte {at}")
