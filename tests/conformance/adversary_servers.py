# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases: substitute servers that hang, lie and send too much."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from tests.conformance import adversary_nars as nars
from tests.conformance.adversary_stage import SIZE, Stage
from tests.conformance.adversary_table import (
    FROM_NEXT,
    FROM_SWARM,
    NARINFO,
    SERVER,
    Table,
)
from tests.substituter import trackers

_TABLE = Table()
CASES = _TABLE.cases
case = _TABLE.case


@case(NARINFO, "hangs in the middle of an answer", FROM_NEXT, "0.3 s until the next is asked")
def _(stage: Stage) -> None:
    half = stage.item.narinfo[:100]
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"
    stage.answer(stage.server, stage.raw(head + half, pause=1))
    stage.honest()


@case(NARINFO, "hangs, and only a tracker has the narinfo", FROM_SWARM, "2 s of silence")
def _(stage: Stage) -> None:
    stage.answer(stage.server, stage.raw(pause=1))
    stage.answer(stage.second, stage.raw(pause=1))
    trackers.mirror(stage.tracker, stage.item)
    torrent, address = stage.seed()
    stage.track(torrent, address)


@case(NARINFO, "sends a narinfo that never ends", FROM_NEXT, "1 MiB")
def _(stage: Stage) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"
    stage.answer(stage.server, stage.raw(head, again=b"References: " + b"x" * 65000 + b"\n"))
    stage.honest()


@case(NARINFO, "sends a narinfo of 2 MiB", FROM_NEXT, "1 MiB")
def _(stage: Stage) -> None:
    stage.answer(stage.server, stage.item.narinfo + b"X: " + b"x" * (2 << 20) + b"\n")
    stage.honest()


@case(NARINFO, "answers with a header that never ends", FROM_NEXT, "256 KiB")
def _(stage: Stage) -> None:
    stage.answer(stage.server, stage.raw(b"HTTP/1.1 200 OK\r\n", again=b"X-A: " + b"b" * 900))
    stage.honest()


@case(NARINFO, "answers with header fields that never end", FROM_NEXT, "100 fields")
def _(stage: Stage) -> None:
    stage.answer(stage.server, stage.raw(b"HTTP/1.1 200 OK\r\n", again=b"X-A: b\r\n" * 9))
    stage.honest()


@case(NARINFO, "redirects in a circle", FROM_NEXT, "5 redirects")
def _(stage: Stage) -> None:
    path = f"/{stage.item.hash_part}.narinfo"
    head = f"HTTP/1.1 302 Found\r\nLocation: {path}\r\nContent-Length: 0\r\n\r\n"
    stage.answer(stage.server, stage.raw(head.encode()))
    stage.honest()


@case(NARINFO, "has a signed narinfo of another item under this name", FROM_NEXT, "is not used")
def _(stage: Stage) -> None:
    stage.answer(stage.server, stage.make("other", stage.item.nar).narinfo)
    stage.honest()


@case(NARINFO, "changes hash and size above the signature", FROM_NEXT, "is not used")
def _(stage: Stage) -> None:
    changed = re.sub(rb"NarSize: [0-9]+", b"NarSize: 5", stage.item.narinfo)
    stage.answer(stage.server, changed)
    stage.honest()


@case(NARINFO, "has a store path with .. in it", FROM_NEXT, "is not used")
def _(stage: Stage) -> None:
    path = f"/gnu/store/{stage.item.hash_part}-x/../../../etc/passwd"
    stage.answer(stage.server, stage.make("up", stage.item.nar, path=path).narinfo)
    stage.honest()


@case(
    NARINFO,
    "has a true narinfo with file:, gopher: and broken URLs",
    FROM_NEXT,
    "only http and https are used",
)
def _(stage: Stage) -> None:
    urls = ("file:///etc/passwd", "gopher://127.0.0.1/x", "http://[", "//x")
    stage.answer(stage.server, stage.narinfo(stage.item, *urls))
    stage.honest()


@case(NARINFO, "has a true narinfo without any URL", FROM_NEXT, "the other servers are asked")
def _(stage: Stage) -> None:
    stage.answer(stage.server, stage.narinfo(stage.item))
    stage.honest()


@case(NARINFO, "has a true narinfo with 10,000 URLs", FROM_NEXT, "32 URLs")
def _(stage: Stage) -> None:
    urls = [f"{stage.server.url}/{number}" for number in range(10_000)]
    stage.answer(stage.server, stage.narinfo(stage.item, *urls))
    stage.honest()


@case(SERVER, "sends another NAR", FROM_NEXT, "the whole NAR, once", says="expected sha256:")
def _(stage: Stage) -> None:
    stage.serve(stage.make("other", stage.item.nar[:-9000]).nar)
    wrong = bytearray(stage.item.nar)
    wrong[SIZE // 2] ^= 1
    stage.serve(bytes(wrong))
    stage.honest()


def _server_nar(stage: Stage, hostile: nars.Hostile) -> None:
    stage.serve(hostile.nar)
    stage.honest()


for _hostile in nars.HOSTILE:
    case(
        SERVER,
        f"sends {_hostile.name}" if "NAR" in _hostile.name else f"sends a NAR with {_hostile.name}",
        FROM_NEXT,
        "nothing of it is kept",
        # What goes on with another server's bytes, or is cut at NarSize, is wrong elsewhere.
        says=f"{_hostile.reason}|does not have|is cut off",
    )(partial(_server_nar, hostile=_hostile))


@case(SERVER, "stops in the middle", FROM_NEXT, "10 s without a byte")
def _(stage: Stage) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(stage.item.nar)
    stage.serve(stage.raw(head + stage.item.nar[: SIZE // 2], pause=1))
    stage.honest()


@case(SERVER, "closes in the middle", FROM_NEXT, "what came")
def _(stage: Stage) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(stage.item.nar)
    stage.serve(stage.raw(head + stage.item.nar[: SIZE // 2]))
    stage.honest()


@case(SERVER, "drips, and a swarm has the item", FROM_SWARM, "the swarm joins and overtakes")
def _(stage: Stage) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(stage.item.nar)
    stage.serve(stage.raw(head, slowly=stage.item.nar, pause=0.5))
    torrent, address = stage.seed()
    stage.track(torrent, address)


@case(SERVER, "drips wrong bytes, and a swarm has the item", FROM_SWARM, "each is tried alone")
def _(stage: Stage) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(stage.item.nar)
    stage.serve(stage.raw(head, again=stage.item.nar[:1], pause=0.5))
    torrent, address = stage.seed()
    stage.track(torrent, address)


@case(
    SERVER,
    "drips, and another server has the item",
    FROM_NEXT,
    "4 KiB a second on average, after 20 s",
)
def _(stage: Stage) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(stage.item.nar)
    stage.serve(stage.raw(head, slowly=stage.item.nar, pause=0.5))
    stage.honest()


@case(SERVER, "sends a bad chunk", FROM_NEXT, "what came")
def _(stage: Stage) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    stage.serve(stage.raw(head + b"10\r\n" + stage.item.nar[:16] + b"\r\nzz\r\n"))
    stage.honest()


@case(SERVER, "sends a NAR that never ends", FROM_NEXT, "NarSize bytes")
def _(stage: Stage) -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n" + nars.ENDLESS
    stage.serve(stage.raw(head, again=bytes(65536)))
    stage.honest()


def _server_bomb(stage: Stage, kind: str, bomb: Callable[[], bytes]) -> None:
    stage.serve(bomb(), kind)
    stage.honest()


for _kind, _attack, _bomb, _said in (
    ("gzip", "1 GiB of zeros as gzip", nars.gzip_bomb, "decompresses to more than|NAR"),
    ("lzip", "1 GiB of zeros as lzip", nars.lzip_bomb, "decompresses to more than|NAR"),
    ("zstd", "1 GiB of zeros as zstd", nars.zstd_bomb, "decompresses to more than|NAR"),
    (
        "zstd",
        "a zstd frame that needs a window of 2 GiB",
        partial(nars.zstd_bomb, 31),
        "needs a window of more than",
    ),
    (
        "zstd",
        "1 GiB of zeros as zstd with the largest window that is taken",
        partial(nars.zstd_bomb, 27),
        "decompresses to more than|NAR",
    ),
    (
        "lzip",
        "an lzip member that needs 512 MiB",
        partial(nars.lzip, bytes(100), 29),
        "needs a dictionary of",
    ),
):
    case(
        SERVER,
        f"sends {_attack}",
        FROM_NEXT,
        "NarSize bytes of output, 1 MiB at a time; windows of 128 MiB",
        says=_said,
    )(partial(_server_bomb, kind=_kind, bomb=_bomb))
