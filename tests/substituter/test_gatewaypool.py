# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.gatewaypool: payloads that arrive, break off, and lie."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import zstandard

from narswarm import narinfo
from narswarm.errors import BusyError, NetworkError
from narswarm.narinfo import Narinfo
from narswarm.payload import max_length
from substituter.gatewaypool import HOLD, KEEP, LINGER, PENANCE, ChangedError, Payload, Pool, State
from substituter.gatewaysources import Attempt
from tests.substituter.conftest import Item

Make = Callable[..., Item]
WAIT = 120.0
NOISE = bytes((n * n * 31 + n // 7) % 256 for n in range(40_000)) * 10


class Script:
    """Sources that do what a test says, in place of a machine's."""

    def __init__(self) -> None:
        self.ways: list[tuple[str, int | None, Callable[[], Iterator[bytes]]]] = []
        self.asked = 0
        self.refused: list[str] = []
        self.is_wanted: Callable[[], bool] = lambda: True

    def add(
        self,
        kind: str,
        *blocks: bytes,
        length: int | None = None,
        gate: threading.Event | None = None,
        error: str = "",
    ) -> None:
        """One more source; before its last block it waits for a gate."""

        def chunks() -> Iterator[bytes]:
            for number, block in enumerate(blocks):
                if gate is not None and number + 1 == len(blocks):
                    assert gate.wait(WAIT)
                yield block
            if error:
                raise NetworkError("peer", error)

        self.ways.append((kind, length, chunks))

    def attempts(
        self, _narinfo: Narinfo, is_wanted: Callable[[], bool]
    ) -> Iterator[AbstractContextManager[Attempt]]:
        """See `Finder`."""
        self.asked += 1
        self.is_wanted = is_wanted
        for number, (kind, length, chunks) in enumerate(self.ways):
            attempt = Attempt(kind, length, f"way {number}", f"hash{number}", chunks())
            yield contextlib.nullcontext(attempt)

    def refuse(self, _narinfo: Narinfo, infohash: str) -> None:
        """See `Finder`."""
        self.refused.append(infohash)


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def script() -> Script:
    """The sources."""
    return Script()


@pytest.fixture
def clock() -> Clock:
    """The clock."""
    return Clock()


@pytest.fixture
def pool(tmp_path: Path, script: Script, clock: Clock) -> Pool:
    """Room for some MiB."""
    return Pool(tmp_path / "pool", 4 << 20, script, clock)


@pytest.fixture
def item(make_item: Make) -> Item:
    """What is fetched, larger than what is held back."""
    return make_item("a", NOISE)


def signed(item: Item) -> Narinfo:
    """Its narinfo."""
    return narinfo.parse(item.narinfo)


def packed(item: Item) -> bytes:
    """Its payload."""
    return zstandard.ZstdCompressor(
        level=1,
    ).compress(item.nar)


def everything(payload: Payload, state: State | None = None) -> bytes:
    """All of a payload, by reads of odd sizes."""
    state, data = state or payload.wait_ready(WAIT), b""
    while block := payload.read(state.serial, len(data), 9999, WAIT):
        data += block
    return data


def test_a_payload_arrives(pool: Pool, script: Script, item: Item) -> None:
    """It is there for all who want it, and fetched once."""
    data = packed(item)
    script.add("zstd", data[:1000], data[1000:], length=len(data))
    with pool.payload(signed(item)) as one, pool.payload(signed(item)) as two:
        assert one is two
        assert everything(one) == everything(two) == data
        assert one.wait_ready(WAIT)[1:] == ("zstd", len(data), "way 0")
    with pool.payload(signed(item)) as three:
        assert everything(three) == data
    assert script.asked == 1


@pytest.mark.parametrize("kind", ["none", "any"])
def test_what_is_not_zstd_is_kept_as_the_nar(
    pool: Pool, script: Script, item: Item, kind: str
) -> None:
    """So that it can be read from any place."""
    script.add(kind, item.nar)
    with pool.payload(signed(item)) as payload:
        assert everything(payload) == item.nar
        assert payload.wait_ready(WAIT)[1:3] == ("none", len(item.nar))


def test_bytes_are_given_before_all_are_there(pool: Pool, script: Script, item: Item) -> None:
    """All but those that are held back until the hash is known to be right."""
    gate = threading.Event()
    script.add("none", item.nar[:-10], item.nar[-10:], gate=gate)
    with pool.payload(signed(item)) as payload:
        state = payload.wait_ready(WAIT)
        there = len(item.nar) - 10 - HOLD
        data = b""
        while len(data) < there:
            data += payload.read(state.serial, len(data), 1 << 20, WAIT)
        assert len(data) == there
        assert not payload.complete
        with pytest.raises(NetworkError, match="nothing came in 0 s"):
            payload.read(state.serial, there, 1, 0.01)
        gate.set()
        assert everything(payload) == item.nar


def test_a_lie_is_blamed_and_never_given_whole(pool: Pool, script: Script, make_item: Make) -> None:
    """The next source is taken; whoever read from the first is told."""
    item, other = make_item("a", NOISE), make_item("b", NOISE[:-1] + b"x")
    assert len(item.nar) == len(other.nar)
    gate = threading.Event()
    script.add("none", other.nar[:-1], other.nar[-1:], gate=gate)
    script.add("zstd", packed(item))
    with pool.payload(signed(item)) as payload:
        state = payload.wait_ready(WAIT)
        gate.set()
        with pytest.raises(ChangedError):
            everything(payload, state)
        assert everything(payload) == packed(item)
    assert script.refused == ["hash0"]


@pytest.mark.parametrize(
    ("kind", "data", "length", "reason"),
    [
        ("zstd", b"nonsense" * 10, None, "way 0: "),
        ("zstd", b"x", 10**9, "way 0: has 1000000000 bytes, more than the NAR may need"),
        ("zstd", zstandard.compress(bytes(10**6)), None, "way 0: "),
        ("none", bytes(10**6), None, "way 0: "),
    ],
)
def test_what_is_no_payload(
    pool: Pool, script: Script, item: Item, kind: str, data: bytes, length: int | None, reason: str
) -> None:
    """Bytes that aren't a NAR, or too many; the torrent is blamed."""
    script.add(kind, data, length=length)
    with pool.payload(signed(item)) as payload, pytest.raises(NetworkError) as caught:
        payload.wait_ready(WAIT)
    assert str(caught.value).startswith(f"{item.path}: {reason}")
    assert script.refused == ["hash0"]


def test_a_source_that_breaks_off_is_not_blamed(
    pool: Pool, script: Script, item: Item, clock: Clock
) -> None:
    """The reason is told to all for some seconds, and then it is tried anew."""
    script.add("none", item.nar[:5], error="is gone")
    for moment, asked in ((0.0, 1), (PENANCE - 0.1, 1), (PENANCE, 2)):
        clock.now = 1000.0 + moment
        with pool.payload(signed(item)) as payload, pytest.raises(NetworkError) as caught:
            payload.wait_ready(WAIT)
        assert str(caught.value) == f"{item.path}: peer: is gone"
        assert script.asked == asked
    assert script.refused == []


def test_nobody_has_it(pool: Pool, item: Item) -> None:
    """That is an answer, too."""
    with pool.payload(signed(item)) as payload, pytest.raises(NetworkError) as caught:
        payload.wait_ready(WAIT)
    assert str(caught.value) == f"{item.path}: nobody has it"


def test_what_nobody_waits_for_is_given_up(
    pool: Pool, script: Script, item: Item, clock: Clock
) -> None:
    """Some time after the last reader has gone, who may come back."""
    gate = threading.Event()
    script.add("none", item.nar[:5], item.nar[5:], gate=gate)
    with pool.payload(signed(item)) as payload:
        clock.now += 2 * LINGER
        assert payload._is_wanted()
    clock.now += LINGER - 0.1
    assert payload._is_wanted()
    clock.now += 0.1
    assert not payload._is_wanted()
    gate.set()
    with pytest.raises(NetworkError) as caught:
        payload.read(1, len(item.nar), 1, WAIT)
    assert str(caught.value) == f"{item.path}: way 0: nobody waits for it any more"


def test_room(tmp_path: Path, script: Script, make_item: Make) -> None:
    """What is idle makes room, the least used first; what is read doesn't."""
    items = [make_item(name, name.encode() * 1000) for name in "abc"]
    size = max_length(len(items[0].nar))
    pool = Pool(tmp_path / "pool", len(items[0].nar) + size, script)
    kept: list[Payload] = []
    with contextlib.ExitStack() as stack:
        for item in items:
            script.ways = []
            script.add("none", item.nar)
            if len(kept) == 2:
                with pytest.raises(BusyError) as caught:
                    stack.enter_context(pool.payload(signed(item)))
                assert str(caught.value) == f"{item.path}: the room for payloads is in use"
                break
            kept.append(stack.enter_context(pool.payload(signed(item))))
            assert everything(kept[-1]) == item.nar
    with pool.payload(signed(items[2])) as payload:
        assert payload not in kept
    assert list((tmp_path / "pool").iterdir()) == []


def test_an_item_larger_than_all_room(tmp_path: Path, script: Script, item: Item) -> None:
    """It can't be served, ever."""
    needed = max_length(len(item.nar))
    with (
        pytest.raises(BusyError) as caught,
        Pool(tmp_path, needed - 1, script).payload(signed(item)),
    ):
        pass
    assert str(caught.value) == f"{item.path}: is larger than the room for payloads"
    script.add("none", item.nar)
    with Pool(tmp_path, needed, script).payload(signed(item)) as payload:
        assert everything(payload) == item.nar


def test_what_was_not_used_for_long_goes(
    pool: Pool, script: Script, item: Item, clock: Clock
) -> None:
    """After its time it is fetched anew."""
    script.add("none", item.nar)
    for moment, asked in ((0.0, 1), (KEEP - 1, 1), (2 * KEEP - 1, 2)):
        clock.now = 1000.0 + moment
        pool.prune()
        with pool.payload(signed(item)) as payload:
            assert everything(payload) == item.nar
        assert script.asked == asked
