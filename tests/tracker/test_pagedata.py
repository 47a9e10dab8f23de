# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tracker's page says, worked out from values."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import base32, gcrypt, sexp
from tracker import pagedata
from tracker.claims import IndexedTorrent
from tracker.pagedata import (
    NARROWEST,
    WIDTH,
    Addresses,
    Kept,
    Kind,
    Question,
    addresses,
    ago,
    counted,
    health,
    parse_question,
)
from tracker.wire_http import Counts

NAR = bytes(range(32))
PART = "0123456789abcdfghijklmnpqrsvwxyz"
V1, V2 = b"\xab" * 20, b"\xcd" * 32


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("", Question(Kind.NOTHING)),
        (" \t ", Question(Kind.NOTHING)),
        (base32.encode(NAR), Question(Kind.NAR, NAR)),
        (f" {base32.format_hash(NAR)}\n", Question(Kind.NAR, NAR)),
        (NAR.hex(), Question(Kind.DIGEST, NAR)),
        (f"sha256:{NAR.hex().upper()}", Question(Kind.DIGEST, NAR)),
        (V1.hex(), Question(Kind.INFOHASH, V1)),
        (V1.hex().upper(), Question(Kind.INFOHASH, V1)),
        (f"magnet:?xt=urn:btih:{V1.hex()}&dn=x", Question(Kind.INFOHASH, V1)),
        (
            f"magnet:?xt=urn:btih:{V1.hex()}&xt=urn:btmh:1220{V2.hex()}&dn=x",
            Question(Kind.INFOHASH, V2),
        ),
        (PART, Question(Kind.HASH_PART, words=(PART,))),
        (f"{PART}-hello-2.12", Question(Kind.HASH_PART, words=(PART,))),
        (f"/gnu/store/{PART}-hello-2.12", Question(Kind.HASH_PART, words=(PART,))),
        (f"/gnu/store/{PART}-hello-2.12/bin/hello", Question(Kind.HASH_PART, words=(PART,))),
        (f"{PART}.narinfo", Question(Kind.HASH_PART, words=(PART,))),
        ("GCC Toolchain gcc", Question(Kind.NAME, words=("gcc", "toolchain"))),
        ("a b c d e f g", Question(Kind.NAME, words=("a", "b", "c", "d", "e", "f"))),
        ("z" * 52, Question(Kind.NAME, words=("z" * 52,))),
        (PART[1:], Question(Kind.NAME, words=(PART[1:],))),
        ("x" * 400, Question(Kind.NAME, words=("x" * 300,))),
    ],
)
def test_questions(text: str, question: Question) -> None:
    """A hash, path or link is known by its form; everything else is words of a name."""
    assert parse_question(text) == question


@given(st.text(max_size=400))
def test_any_text_is_a_question(text: str) -> None:
    """Whatever somebody types is understood as something."""
    question = parse_question(text)
    assert (question.kind is Kind.NOTHING) is (not text[:300].strip())
    assert len(question.digest) in {0, 20, 32}


def test_health() -> None:
    """Torrents are sorted by their seeds, and each class has its part of the bar."""
    found = health([0, 0, 1, 2, 4, 5, 500, 3])
    assert [(share.key, share.torrents) for share in found.shares] == [
        ("none", 2),
        ("one", 1),
        ("few", 3),
        ("many", 2),
    ]
    assert found.total == 8
    assert [(share.x, share.width) for share in found.shares] == [
        (0, 150),
        (150, 75),
        (225, 225),
        (450, 150),
    ]


@given(st.lists(st.integers(0, 9), max_size=2000))
def test_bar_of_health(seeds: list[int]) -> None:
    """What is there shows, what isn't doesn't, and all together is the whole bar."""
    found = health(seeds)
    for share in found.shares:
        assert (share.width >= NARROWEST * 0.95) is bool(share.torrents)
    total = sum(share.width for share in found.shares)
    assert total == pytest.approx(WIDTH if seeds else 0, abs=0.05)


def test_health_of_nothing() -> None:
    """Without torrents there is nothing to draw."""
    assert health([]).total == 0


def test_joined() -> None:
    """Who is in both swarms of a torrent counts once."""
    assert pagedata.joined(Counts(1, 5, 2, 3), Counts(2, 4, 2, 0)) == Counts(2, 5, 2, 3)


@pytest.mark.parametrize(
    ("announce", "port", "udp", "expected"),
    [
        ("http://t:6969/announce", 6969, True, "udp://t:6969/announce"),
        ("http://t:8080/announce", 0, True, "udp://t:8080/announce"),
        ("https://t/announce", 6969, True, "udp://t:6969/announce"),
        ("http://[2001:db8::1]:80/announce", 6969, True, "udp://[2001:db8::1]:6969/announce"),
        ("http://t:6969/announce", 6969, False, None),
    ],
)
def test_addresses(announce: str, port: int, udp: bool, expected: str | None) -> None:
    """UDP is answered where the tracker itself listens, whatever is in front of HTTP."""
    found = addresses(announce, port, udp=udp)
    assert found == Addresses(announce, expected)
    assert found.all == ([announce, expected] if expected else [announce])


def test_magnet() -> None:
    """A magnet link has both infohashes, name, length and trackers."""
    torrent = IndexedTorrent(1, "nar.zst", "a b.nar.zst", 7, 8, V1, V2, 1)
    assert pagedata.magnet(torrent, ["http://t/announce", "udp://t:1/announce"]) == (
        f"magnet:?xt=urn:btih:{V1.hex()}&xt=urn:btmh:1220{V2.hex()}&dn=a%20b.nar.zst&xl=7"
        "&tr=http%3A%2F%2Ft%2Fannounce&tr=udp%3A%2F%2Ft%3A1%2Fannounce"
    )


def test_names_of_keys() -> None:
    """A signer is called by the digits that an ACL has, a publisher as settings have it."""
    key = gcrypt.generate_key()
    name = pagedata.signer_name(sexp.canonical(sexp.parse(key.public)))
    assert len(name) == 64
    assert name.encode() in key.public.upper()
    assert pagedata.signer_name(b"(x)") == b"(x)".hex().upper()
    assert pagedata.signer_name(b"\xff") == "FF"
    assert pagedata.key(b"\0\1\2") == "AAEC"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "just now"),
        (59.9, "just now"),
        (60, "1 minute ago"),
        (3599, "59 minutes ago"),
        (3600, "1 hour ago"),
        (86_399, "23 hours ago"),
        (86_400, "1 day ago"),
        (86_400 * 1200, "1,200 days ago"),
    ],
)
def test_ago(seconds: float, text: str) -> None:
    """Times are in the largest unit of which there is one."""
    assert ago(seconds) == text


def test_counted() -> None:
    """One is singular, and large numbers can be read."""
    found = [counted(number, "seed") for number in (0, 1, 2, 12_345)]
    assert found == ["0 seeds", "1 seed", "2 seeds", "12,345 seeds"]


def test_times() -> None:
    """Times are in UTC, for people and for programs."""
    assert pagedata.day(1_700_000_000) == "2023-11-14 22:13 UTC"
    assert pagedata.machine_time(1_700_000_000) == "2023-11-14T22:13:20Z"


def test_kept() -> None:
    """A value is worked out when it is old or the clock went back, not before."""
    now = [100.0]
    made: list[float] = []

    def make() -> int:
        made.append(now[0])
        return len(made)

    kept = Kept(make, 10, lambda: now[0])
    assert made == []
    for moment, value in ((100, 1), (109.9, 1), (110, 2), (119, 2), (50, 3)):
        now[0] = moment
        assert kept.get() == value


def test_kept_that_fails() -> None:
    """A failure is said to who asked, and the next one tries again."""
    answers: Iterator[OSError | int] = iter([OSError("no"), 2])

    def make() -> int:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    kept = Kept(make, 10, lambda: 0.0)
    with pytest.raises(OSError, match="no"):
        kept.get()
    assert kept.get() == 2


def test_kept_while_it_is_made() -> None:
    """Only one works it out: others get the old value, or wait when there is none."""
    now = [0.0]
    began, go_on = threading.Semaphore(0), threading.Semaphore(0)
    made: list[int] = []

    def make() -> int:
        began.release()
        assert go_on.acquire(timeout=120)
        made.append(1)
        return len(made)

    kept = Kept(make, 10, lambda: now[0])
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(kept.get())) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert began.acquire(timeout=120)
    go_on.release()
    for thread in threads:
        thread.join(120)
    assert found == [1, 1, 1]
    now[0] = 20.0
    maker = threading.Thread(target=lambda: found.append(kept.get()))
    maker.start()
    assert began.acquire(timeout=120)
    assert kept.get() == 1
    go_on.release()
    maker.join(120)
    assert (found[-1], kept.get(), made) == (2, 2, [1, 1])
