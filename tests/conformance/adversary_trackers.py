# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases: trackers that hang, lie and send too much."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

from narswarm import base32
from tests.conformance import adversary_nars as nars
from tests.conformance.adversary_stage import Stage, infohash
from tests.conformance.adversary_table import (
    ALL_FAIL,
    FROM_SERVER,
    FROM_SWARM,
    TRACKER,
    Table,
)
from tests.substituter import trackers

_TABLE = Table()
CASES = _TABLE.cases
case = _TABLE.case


@case(TRACKER, "accepts connections and never answers", FROM_SERVER, "10 s, beside the servers")
def _(stage: Stage) -> None:
    stage.index(stage.raw(pause=1))
    stage.policy("swarm-first")
    stage.honest()


@case(TRACKER, "drips its answer", FROM_SERVER, "10 s for the whole answer")
def _(stage: Stage) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n"
    stage.index(stage.raw(head, again=b" ", pause=0.3))
    stage.policy("swarm-first")
    stage.honest()


def _tracker_sends(stage: Stage, body: bytes) -> None:
    stage.index(stage.raw(body))
    stage.policy("swarm-first")
    stage.honest()


def _tracker_says(stage: Stage, make: Callable[[Stage], bytes]) -> None:
    stage.index(make(stage))
    stage.policy("swarm-first")
    stage.honest()


def _entry(stage: Stage, **changed: object) -> dict[str, object]:
    torrent, meta, _ = stage.torrent()
    return {
        "kind": "nar.zst",
        "name": meta.name,
        "length": meta.length,
        "piece_length": meta.piece_length,
        "infohash_v1": meta.infohash_v1.hex(),
        "infohash_v2": infohash(torrent),
        "seeders": 1,
        "leechers": 0,
        "publishers": 1,
        "peers": [],
        **changed,
    }


def _entries(stage: Stage, *torrents: dict[str, object]) -> bytes:
    answer = {
        "nar_hash": base32.format_hash(stage.item.nar_hash),
        "nar_size": len(stage.item.nar),
        "torrents": torrents,
    }
    return json.dumps(answer).encode()


def _many(count: int) -> Callable[[Stage], bytes]:
    def make(stage: Stage) -> bytes:
        entry = _entry(stage)
        entries = [{**entry, "infohash_v2": f"{number:064x}"} for number in range(count)]
        return _entries(stage, *entries)

    return make


_HTTP_200 = b"HTTP/1.1 200 OK\r\n"

for _attack, _bound, _make, _said in (
    (
        "answers with something else than JSON",
        "the tracker's answer",
        lambda _: b"\xff\xfe{]",
        "answers something that is not JSON",
    ),
    (
        "nests JSON 100,000 deep",
        "the parser's depth",
        lambda _: b"[" * 100_000,
        "answers something that is not JSON",
    ),
    (
        "answers with other types than an index has",
        "the tracker's answer",
        lambda stage: _entries(stage, _entry(stage, peers={"a": [None]})),
        "answers with an invalid peers",
    ),
    (
        "names a payload ../../etc/passwd",
        "the name follows from the NAR",
        lambda stage: _entries(stage, _entry(stage, name="../../etc/passwd")),
        "answers with an invalid name",
    ),
    (
        "names a server's file ../../etc/passwd",
        "names are those of store items",
        lambda stage: _entries(stage, _entry(stage, kind="server", name="../../etc/passwd")),
        "answers with an invalid name",
    ),
    ("lists 10,000 torrents", "256 KiB of answer", _many(10_000), "is longer than 262144 bytes"),
    ("lists 400 torrents that it doesn't have", "16 torrents", _many(400), ""),
):
    case(TRACKER, _attack, FROM_SERVER, _bound, says=_said)(partial(_tracker_says, make=_make))

for _attack, _bound, _raw, _said in (
    (
        "answers in something else than HTTP",
        "the tracker's answer",
        b"SSH-2.0-OpenSSH\r\n" * 99,
        "did not answer in HTTP",
    ),
    (
        "sends a bad chunk",
        "the tracker's answer",
        _HTTP_200 + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        "ended before its end",
    ),
    (
        "says that its answer has two lengths",
        "the tracker's answer",
        _HTTP_200 + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n123456",
        "did not answer in HTTP",
    ),
    (
        "compresses 1 GiB into its answer",
        "nothing is decompressed, and 256 KiB",
        _HTTP_200
        + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(nars.gzip_bomb())
        + nars.gzip_bomb(),
        "is longer than 262144 bytes",
    ),
):
    case(TRACKER, _attack, FROM_SERVER, _bound, says=_said)(partial(_tracker_sends, body=_raw))


@case(TRACKER, "answers with a header that never ends", FROM_SERVER, "256 KiB", says="did not")
def _(stage: Stage) -> None:
    stage.index(stage.raw(_HTTP_200, again=b"X-A: " + b"b" * 900))
    stage.policy("swarm-first")
    stage.honest()


@case(TRACKER, "gives the torrent of another NAR", FROM_SERVER, "nothing is fetched")
def _(stage: Stage) -> None:
    other = stage.make("other", stage.item.nar + bytes(8))
    mine, stage.item = stage.item, other
    torrent, address = stage.seed()
    stage.item = mine
    stage.track(torrent, address)
    stage.policy("swarm-first")
    stage.honest()


@case(TRACKER, "gives another torrent than it has listed", FROM_SERVER, "nothing is fetched")
def _(stage: Stage) -> None:
    listed, address = stage.seed()
    given, _, _ = stage.torrent(b"x" * 1000)
    trackers.serve(stage.tracker, stage.item, listed, given=given, peers=[address])
    stage.policy("swarm-first")
    stage.honest()


@case(
    TRACKER, "lists a payload larger than the NAR can need", FROM_SERVER, "NarSize + 1/64 + 64 KiB"
)
def _(stage: Stage) -> None:
    torrent, address = stage.seed(stage.torrent()[2] + bytes(200_000))
    stage.track(torrent, address)
    stage.policy("swarm-first")
    stage.honest()


@case(TRACKER, "gives a torrent of 9 MiB", FROM_SERVER, "8 MiB")
def _(stage: Stage) -> None:
    torrent, _, _ = stage.torrent()
    trackers.serve(stage.tracker, stage.item, torrent, given=torrent + bytes(9 << 20))
    stage.policy("swarm-first")
    stage.honest()


@case(
    TRACKER,
    "gives a torrent with trackers and web seeds of its own",
    FROM_SWARM,
    "they are ignored",
)
def _(stage: Stage) -> None:
    torrent, meta, payload = stage.torrent()
    _, address = stage.seed()
    evil = meta.encode([f"{stage.second.url}/announce"], [f"{stage.second.url}/seed/"])
    stage.second.bodies[f"/seed/{meta.name}"] = payload
    trackers.serve(stage.tracker, stage.item, torrent, given=evil, peers=[address])
    stage.answer(stage.server, stage.narinfo())
    stage.policy("swarm-only")


@case(TRACKER, "lists 50 peers that don't answer", FROM_SERVER, "`first_byte_timeout`")
def _(stage: Stage) -> None:
    torrent, _, _ = stage.torrent()
    stage.track(torrent, *stage.dead(50))
    stage.policy("swarm-first")
    stage.honest()


@case(TRACKER, "lists 49 peers that don't answer, and one that does", FROM_SWARM, "`patience`")
def _(stage: Stage) -> None:
    torrent, address = stage.seed()
    stage.track(torrent, *stage.dead(49), address)
    stage.answer(stage.server, stage.narinfo())
    stage.policy("swarm-only")


@case(TRACKER, "mirrors a narinfo that nobody has signed", ALL_FAIL, "is not used", says="no auth")
def _(stage: Stage) -> None:
    unsigned = stage.item.narinfo.partition(b"Signature:")[0]
    stage.tracker.bodies[f"/v1/narinfo/{stage.item.hash_part}.narinfo"] = unsigned
    torrent, address = stage.seed()
    stage.track(torrent, address)
