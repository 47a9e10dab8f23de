# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tracker's page says, worked out from values: addresses, questions, health, words.

Nothing here asks a clock, a database or a network.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Generic, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

from narswarm import base32, sexp, storepath
from narswarm.errors import InvalidInputError
from tracker.claims import IndexedTorrent
from tracker.wire_http import Counts

WIDTH: Final = 600.0
"""Of the bar of health, in units of its drawing."""

NARROWEST: Final = 6.0
"""Of a part of it that isn't empty."""

MAX_WORDS: Final = 6
"""Words of a search that count."""

MAX_QUESTION: Final = 300
"""Characters of a search that count."""

_INFOHASHES: Final = (
    re.compile(r".*\burn:btmh:1220([0-9a-fA-F]{64})\b.*"),
    re.compile(r".*\burn:btih:([0-9a-fA-F]{40})\b.*"),
    re.compile(r"([0-9a-fA-F]{40})"),
)
_HEX = re.compile(r"[0-9a-fA-F]{64}")
_HASH_LENGTH = 52
_PATH = re.compile(rf"(?:{storepath.STORE}/)?([{base32.ALPHABET}]{{32}})(?:-[^/]*)?(?:/.*)?")

T = TypeVar("T")


class Kind(StrEnum):
    """What a question is about."""

    NOTHING = "nothing"
    NAR = "nar"
    INFOHASH = "infohash"
    DIGEST = "digest"
    """64 hexadecimal digits: a NAR's hash, or an infohash v2."""
    HASH_PART = "hash part"
    NAME = "name"


class Question(NamedTuple):
    """What somebody typed, understood.

    Attributes:
        kind: what it is about.
        digest: the hash, if it is one.
        words: the words in small letters, to be looked for in names; of a hash part, it.
    """

    kind: Kind
    digest: bytes = b""
    words: tuple[str, ...] = ()


def parse_question(text: str) -> Question:
    """Understand what somebody typed or pasted: a name, path, hash, infohash or magnet link."""
    text = text[:MAX_QUESTION].strip()
    for pattern in _INFOHASHES:
        if match := pattern.fullmatch(text):
            return Question(Kind.INFOHASH, bytes.fromhex(match[1]))
    bare = text.removeprefix("sha256:").removesuffix(".narinfo")
    if _HEX.fullmatch(bare):
        return Question(Kind.DIGEST, bytes.fromhex(bare))
    if len(bare) == _HASH_LENGTH:
        try:
            return Question(Kind.NAR, base32.decode(bare))
        except InvalidInputError:
            pass  # a long name
    if match := _PATH.fullmatch(bare):
        return Question(Kind.HASH_PART, words=(match[1],))
    words = tuple(dict.fromkeys(text.lower().split()))[:MAX_WORDS]
    return Question(Kind.NAME if words else Kind.NOTHING, words=words)


class Share(NamedTuple):
    """A part of the bar of health.

    Attributes:
        key: what it is called in style sheets.
        text: what it is called.
        torrents: how many they are.
        x: where it begins in the drawing.
        width: of it in the drawing.
    """

    key: str
    text: str
    torrents: int
    x: float
    width: float


class Health(NamedTuple):
    """How many torrents have how many seeds."""

    shares: tuple[Share, ...]
    total: int


_CLASSES: Final = (
    ("none", "no seed", 0),
    ("one", "1 seed", 1),
    ("few", "2 to 4 seeds", 4),
    ("many", "5 seeds or more", None),
)


def health(seeds: Iterable[int]) -> Health:
    """Sort torrents by how many seeds each has, as parts of one bar."""
    counts = [0] * len(_CLASSES)
    for number in seeds:
        place = next(
            place for place, (_, _, most) in enumerate(_CLASSES) if most is None or number <= most
        )
        counts[place] += 1
    total = sum(counts)
    # What is there shows, however little it is.
    widths = [max(NARROWEST, WIDTH * count / total) if count else 0.0 for count in counts]
    scale = WIDTH / (sum(widths) or 1)
    shares, x = [], 0.0
    for (key, text, _), count, width in zip(_CLASSES, counts, widths, strict=True):
        shares.append(Share(key, text, count, round(x, 2), round(width * scale, 2)))
        x += width * scale
    return Health(tuple(shares), total)


def joined(of_v2: Counts, of_v1: Counts) -> Counts:
    """The numbers of a hybrid torrent, most of whose clients are in both of its swarms."""
    return Counts(*(max(pair) for pair in zip(of_v2, of_v1, strict=True)))


class Addresses(NamedTuple):
    """How this tracker is reached.

    Attributes:
        http: the announce URL, which is also what seeders and substituters are told.
        udp: the announce URL for UDP, or None.
    """

    http: str
    udp: str | None

    @property
    def all(self) -> list[str]:
        """All announce URLs."""
        return [self.http, *([self.udp] if self.udp else [])]


def addresses(announce: str, port: int, *, udp: bool) -> Addresses:
    """Work out the announce URLs.

    Args:
        announce: that of HTTP, as it is reached from outside.
        port: where the tracker itself listens, or 0 for the port of that URL; a proxy in front
            passes no UDP.
        udp: whether it answers UDP.
    """
    parts = urlsplit(announce)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return Addresses(announce, f"udp://{host}:{port or parts.port}/announce" if udp else None)


def magnet(torrent: IndexedTorrent, trackers: Sequence[str]) -> str:
    """The magnet link of a torrent, for its v1 and v2 swarms (BEP 9)."""
    fields = [
        f"xt=urn:btih:{torrent.infohash_v1.hex()}",
        f"xt=urn:btmh:1220{torrent.infohash_v2.hex()}",
        f"dn={quote(torrent.name)}",
        f"xl={torrent.length}",
    ]
    fields += [f"tr={quote(tracker, safe='')}" for tracker in trackers]
    return "magnet:?" + "&".join(fields)


def key(publisher: bytes) -> str:
    """A publisher's key as settings and commands have it."""
    return base64.b64encode(publisher).decode()


def signer_name(public: bytes) -> str:
    """What a canonical public key is called: the digits of its point, as Guix's ACL has them."""
    try:
        found = sexp.find(sexp.parse(public, "key"), b"q")
    except InvalidInputError:
        found = None
    point = found[1] if found and len(found) > 1 and isinstance(found[1], bytes) else public
    return point.hex().upper()


def ago(seconds: float) -> str:
    """How long ago something was, in one unit: `3 minutes ago`."""
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            return f"{counted(int(seconds // size), unit)} ago"
    return "just now"


def day(stamp: float) -> str:
    """A time, in seconds since the epoch, as people and `<time>` read it."""
    return datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%d %H:%M UTC")


def machine_time(stamp: float) -> str:
    """The same as `<time datetime=…>` takes it."""
    return datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things: `1 seed`, `12,345 seeds`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


class Kept(Generic[T]):
    """A value that is worked out anew when it is asked for and old; meanwhile the old one serves.

    Args:
        make: works it out.
        seconds: how long it is good for.
        clock: seconds; when it goes back, the value is old.
    """

    def __init__(self, make: Callable[[], T], seconds: float, clock: Callable[[], float]) -> None:
        self._make = make
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._value: tuple[float, T] | None = None

    def get(self) -> T:
        """The value, which somebody else may be working out anew just now."""
        known = self._value
        if known is not None and 0 <= self._clock() - known[0] < self._seconds:
            return known[1]
        if not self._lock.acquire(blocking=known is None) and known is not None:
            return known[1]
        try:
            made = self._value
            if made is None or made is known:  # else who held the lock has just done it
                made = (self._clock(), self._make())
                self._value = made
            return made[1]
        finally:
            self._lock.release()
