# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases: peers, those who publish torrents, and those who have an authorised key."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from narswarm.payload import compress_chunk
from tests.conformance import adversary_nars as nars
from tests.conformance import adversary_peers as peers
from tests.conformance.adversary_stage import SIZE, Stage
from tests.conformance.adversary_table import (
    ALL_FAIL,
    FROM_SERVER,
    FROM_SWARM,
    PEER,
    PUBLISHER,
    SIGNER,
    Table,
)
from tests.substituter import trackers

_TABLE = Table()
CASES = _TABLE.cases
case = _TABLE.case


def _one_peer(stage: Stage, behaviour: peers.Behaviour) -> None:
    torrent, meta, _ = stage.torrent()
    stage.track(torrent, stage.peer(meta, behaviour))
    stage.policy("swarm-first")
    stage.honest()


def _beside_honest(stage: Stage, behaviour: peers.Behaviour) -> None:
    torrent, address = stage.seed()
    _, meta, _ = stage.torrent()
    stage.track(torrent, stage.peer(meta, behaviour), address)
    stage.answer(stage.server, stage.narinfo())
    stage.policy("swarm-only")


for _attack, _bound, _behaviour in (
    ("sends wrong blocks", "the peer is dropped", peers.wrong_blocks),
    ("of version 2 sends wrong blocks", "the peer is dropped", peers.wrong_blocks_v2),
    ("sends two bytes a second", "8 KiB a second on average, and `stall_timeout`", peers.drip),
    ("drips its handshake", "`first_byte_timeout`", peers.dripping_handshake),
    ("takes requests and sends nothing", "`first_byte_timeout`", peers.unchoked_silence),
    ("says nothing at all", "`first_byte_timeout`", peers.silence),
    ("begins a message of 4 GiB", "libtorrent's limits", peers.huge_message),
    ("has pieces that don't exist", "the peer is dropped", peers.nonsense),
    ("answers for another torrent", "the peer is dropped", peers.other_torrent),
):
    case(PEER, f"{_attack}; it is the only one", FROM_SERVER, _bound)(
        partial(_one_peer, behaviour=_behaviour)
    )
    case(PEER, f"{_attack}; another one is honest", FROM_SWARM, _bound)(
        partial(_beside_honest, behaviour=_behaviour)
    )


def _lie(stage: Stage, make: Callable[[Stage], bytes]) -> None:
    torrent, address = stage.seed(make(stage))
    stage.track(torrent, address)
    stage.policy("swarm-first")
    stage.honest()


def _other_nar(stage: Stage) -> bytes:
    wrong = bytearray(stage.item.nar)
    wrong[SIZE // 2] ^= 1
    return compress_chunk(bytes(wrong))


for _attack, _bound, _make, _said in (
    (
        "publishes a torrent of another NAR in this one's name",
        "once: the torrent is never used again",
        _other_nar,
        "expected sha256:",
    ),
    (
        "publishes a payload of 1 GiB of zeros as zstd",
        "NarSize bytes of output",
        lambda _: nars.zstd_bomb(),
        "decompresses to more than|NAR",
    ),
    (
        "publishes a payload whose frame says it is small",
        "4 MiB a frame",
        lambda _: nars.zstd_bomb(content_size=1 << 20),
        "is damaged|decompresses|NAR",
    ),
    (
        "publishes a payload whose frame says it has 16 EiB",
        "NarSize bytes of output",
        lambda _: nars.zstd_bomb(content_size=2**64 - 3),
        "is damaged|decompresses|NAR",
    ),
    (
        "publishes a payload that isn't zstd",
        "the first block",
        lambda _: b"PK\3\4" * 5000,
        "is not zstd",
    ),
    (
        "publishes half a payload",
        "what came",
        lambda stage: stage.torrent()[2][: SIZE // 2],
        "is cut off",
    ),
    (
        "publishes a payload with something behind its end",
        "what came",
        lambda stage: stage.torrent()[2] + b"behind",
        "is not zstd|is cut off|is damaged|",
    ),
    (
        "publishes a NAR with an entry ..",
        "nothing of it is kept",
        lambda _: compress_chunk(nars.HOSTILE[0].nar),
        nars.HOSTILE[0].reason,
    ),
    (
        "publishes a NAR with a file below a symbolic link",
        "nothing of it is kept",
        lambda _: compress_chunk(nars.HOSTILE[8].nar),
        nars.HOSTILE[8].reason,
    ),
):
    case(PUBLISHER, _attack, FROM_SERVER, _bound, says=_said)(partial(_lie, make=_make))


@case(
    PUBLISHER,
    "publishes 15 torrents of other NARs beside an honest one",
    FROM_SWARM,
    "16 torrents of an item",
    says="expected sha256:",
)
def _(stage: Stage) -> None:
    listed, places = [], set()
    for number in range(15):
        wrong = bytearray(stage.item.nar)
        wrong[SIZE // 2 + number] ^= 1
        torrent, address = stage.seed(compress_chunk(bytes(wrong)))
        listed.append(torrent)
        places.add(address)
    torrent, address = stage.seed()
    trackers.serve(stage.tracker, stage.item, *listed, torrent, peers=[address])
    stage.answer(stage.server, stage.narinfo())
    stage.policy("swarm-only")


def _signed(stage: Stage, nar: bytes, off: int = 0) -> None:
    stage.item = stage.make("signed", nar, len(nar) + off)
    stage.serve(nar)


for _hostile in nars.HOSTILE:
    case(
        SIGNER,
        f"signs {_hostile.name}" if "NAR" in _hostile.name else f"signs a NAR with {_hostile.name}",
        ALL_FAIL,
        "nothing of it is kept",
        says=_hostile.reason,
    )(partial(_signed, nar=_hostile.nar))

_SMALL = nars.archive(nars.directory((b"file", nars.regular(b"small\n" * 99))))
case(
    SIGNER, "signs a NarSize that is too large", ALL_FAIL, "NarSize", says="ended after [0-9]+ of"
)(partial(_signed, nar=_SMALL, off=1000))
case(SIGNER, "signs a NarSize that is too small", ALL_FAIL, "NarSize", says="")(
    partial(_signed, nar=_SMALL, off=-100)
)
case(SIGNER, "signs a NarSize of 8 EiB", ALL_FAIL, "what came", says="ended after [0-9]+ of")(
    partial(_signed, nar=_SMALL, off=2**63 - 1 - len(_SMALL))
)


@case(SIGNER, "signs an item that is a link out of the store", "is put in place", "never followed")
def _(stage: Stage) -> None:
    _signed(stage, nars.archive(nars.symlink(b"../beside/inner")))
