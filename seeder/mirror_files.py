# SPDX-License-Identifier: GPL-3.0-or-later
"""A server's file: fetched politely, continued where it broke off, and checked before it counts.

What is kept is what an authorised narinfo says: the file has to decompress to a NAR with its hash
and size. The torrent is made in the same pass.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from narswarm import base32, compression
from narswarm.errors import InvalidInputError, MismatchError, NarswarmError, NetworkError
from narswarm.httpclient import HttpClient, Stream
from narswarm.httpmessage import Validator
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.narinfo import Narinfo, Source
from narswarm.payload import max_length
from narswarm.storepath import parse
from seeder.publish_cache import open_file

_READ: Final = 1 << 20
_PARTIAL: Final = 206
_UNSATISFIABLE: Final = 416
_NOT_MODIFIED: Final = 304
_BUSY: Final = frozenset({429, 503})
_MAX_DELAY: Final = 86_400
_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/(?:[0-9]{1,18}|\*)")
_LENGTH = re.compile(r"bytes \*/([0-9]{1,18})")


class OverloadedError(NetworkError):
    """A server asks to be left alone.

    Attributes:
        seconds: for how long, 0 if it doesn't say.
    """

    def __init__(self, url: str, status: int, seconds: int) -> None:
        super().__init__(url, f"the server answered {status}")
        self.seconds = seconds


class EndedError(NarswarmError):
    """The seeder is about to end."""

    def __init__(self) -> None:
        super().__init__("mirror", "the seeder is about to end")


class Downloader:
    """Fetches files of servers, one at a time.

    Args:
        client: makes requests.
        directory: where partial files are kept.
        rate: bytes a second in the mean, 0 without limit.
        pause: waits a number of seconds; true if the seeder is about to end.
        clock: seconds from any start, never going back.
    """

    def __init__(
        self,
        client: HttpClient,
        directory: Path,
        rate: int,
        pause: Callable[[float], bool],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._directory = directory
        self._rate = rate
        self._pause = pause
        self._clock = clock

    def fetch(self, source: Source, info: Narinfo) -> Path:
        """Fetch a file, or what is missing of it.

        Returns:
            Where it is, complete but not checked.

        Raises:
            OverloadedError: the server has too much to do.
            NetworkError: it doesn't give the file; what came is kept if it can be continued.
            MismatchError: the file is longer than it can be, or the server has still the one that
                was rejected.
            EndedError: the seeder is about to end.
            OSError: the disk is full, or not ours.
        """
        part = self._directory / f"{base32.encode(info.nar_hash)}.part"
        note = part.with_suffix(".note")
        have, validator = _continued(part, note, source.url)
        if have and have == source.file_size:
            return part
        headers = (
            {"Range": f"bytes={have}-", "If-Range": validator}
            if have
            else _rejected(part, source.url).conditions()
        )
        # `guix publish` sends plain NARs without a length, of which a kept connection shows no end.
        keep = source.compression != "none"
        with self._client.stream(source.url, headers=headers, keep=keep) as response:
            if response.status == _NOT_MODIFIED and not have and headers:
                raise MismatchError(source.url, "is still not what is signed")
            if response.status == _UNSATISFIABLE:
                length = _LENGTH.fullmatch(response.headers.get("content-range", ""))
                if have and length is not None and int(length[1]) == have:
                    return part  # it was complete
                discard(part)
            have = _begin(response, have)
            bound = max_length(info.nar_size)
            if have + (response.length or 0) > bound:
                raise MismatchError(source.url, f"is longer than {bound} bytes")
            called = Validator.of(response.headers)
            # Without a length, a file that was cut off looks complete, and its name says nothing.
            whole = called if response.length is not None else Validator()
            note.write_text("\n".join([source.url, _continuable(called), *whole]))
            with part.open("r+b" if have else "wb") as file:
                file.truncate(have)
                file.seek(have)
                for chunk in self._paced(response):
                    have += len(chunk)
                    if have > bound:
                        raise MismatchError(source.url, f"is longer than {bound} bytes")
                    file.write(chunk)
        if source.file_size not in (None, have):
            discard(part)
            raise NetworkError(source.url, f"has {have} bytes instead of {source.file_size}")
        return part

    def _paced(self, chunks: Iterator[bytes] | Stream) -> Iterator[bytes]:
        begin, size = self._clock(), 0
        for chunk in chunks:
            yield chunk
            size += len(chunk)
            ahead = size / self._rate - (self._clock() - begin) if self._rate else 0.0
            if self._pause(max(0.0, ahead)):
                raise EndedError


SCRAPS: Final = frozenset({".part", ".note", ".wrong"})
"""Suffixes of what is known of files that aren't here."""


def discard(part: Path) -> None:
    """Remove a partial file, and what is known of it."""
    for suffix in SCRAPS:
        part.with_suffix(suffix).unlink(missing_ok=True)


def reject(part: Path) -> None:
    """Remove a file that isn't what it should be: the server needn't send it a second time."""
    with suppress(FileNotFoundError):
        part.with_suffix(".note").rename(part.with_suffix(".wrong"))
    part.unlink(missing_ok=True)


def read(path: Path, stopping: Callable[[], bool]) -> Iterator[bytes]:
    """The bytes of a file, and not of what a link leads to.

    Raises:
        EndedError: the seeder is about to end.
        OSError: it can't be read.
    """
    with open_file(path) as file:
        while chunk := file.read(_READ):
            if stopping():
                raise EndedError
            yield chunk


def torrent_of(chunks: Iterator[bytes], info: Narinfo) -> Metainfo:
    """Check a server's file, and make its torrent.

    Args:
        chunks: the file.
        info: an authorised narinfo.

    Raises:
        MismatchError: it isn't this NAR, or longer than it can be.
        InvalidInputError: it is damaged.
    """
    name = parse(info.store_path).base_name
    bound = max_length(info.nar_size)
    hasher, digest, size = PieceHasher(bound), hashlib.sha256(), 0

    def hashed() -> Iterator[bytes]:
        for chunk in chunks:
            if hasher.length + len(chunk) > bound:
                raise MismatchError(info.store_path, f"is longer than {bound} bytes")
            hasher.update(chunk)
            yield chunk

    whole = hashed()
    for piece in compression.decompress(whole, "any", info.nar_size, subject=info.store_path):
        digest.update(piece)
        size += len(piece)
    if (digest.digest(), size) != (info.nar_hash, info.nar_size):
        raise MismatchError(info.store_path, "has another NAR at the server than is signed")
    if next(whole, None) is not None:
        raise InvalidInputError(info.store_path, "has something behind its end at the server")
    return Metainfo.of(name, hasher.finish())


def _continued(part: Path, note: Path, url: str) -> tuple[int, str]:
    """How many bytes are here of what a server said can be continued, and its word for that."""
    try:
        have = part.stat().st_size
    except OSError:
        return 0, ""
    validator, *_ = _noted(note, url)
    return (have, validator) if validator else (0, "")


def _rejected(part: Path, url: str) -> Validator:
    """What the server called the file that was rejected."""
    _, etag, modified = _noted(part.with_suffix(".wrong"), url)
    return Validator(etag, modified)


def _noted(note: Path, url: str) -> list[str]:
    """What makes sure that a file is continued by the same one, and its versions' names."""
    try:
        was, *noted = note.read_text().split("\n")
    except (OSError, UnicodeDecodeError):
        return ["", "", ""]
    return noted if was == url and len(noted) == 3 else ["", "", ""]


def _begin(response: Stream, have: int) -> int:
    """Where the body begins that a server sends.

    Raises:
        NetworkError: it sends something else.
    """
    status = response.status
    if status in _BUSY:
        after = response.headers.get("retry-after", "")
        seconds = int(after) if after.isascii() and after.isdigit() and len(after) < 9 else 0
        raise OverloadedError(response.url, status, min(seconds, _MAX_DELAY))
    if status == _PARTIAL and have:
        span = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if span is None or int(span[1]) != have:
            raise NetworkError(response.url, "continues somewhere else")
        return have
    if status != 200:
        raise NetworkError(response.url, f"the server answered {status}")
    return 0


def _continuable(called: Validator) -> str:
    """What makes sure that a file is continued by the same one (RFC 9110, 13.1.5)."""
    return called.etag if called.etag.startswith('"') else called.modified
