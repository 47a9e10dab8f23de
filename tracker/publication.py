# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody sends to be published, checked without touching anything.

A publication is a torrent and the signed narinfo that vouches for its NAR. The narinfo is what
counts: without the signature of an authorised key nothing gets in, whoever asks. Whether the
torrent's payload really is that NAR can't be seen from here; the index keeps several claims
and whoever downloads checks the NAR.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from narswarm import base32, bencoding, metainfo, narinfo, sexp, storepath
from narswarm.acl import Acl
from narswarm.errors import InvalidInputError, MismatchError, NarswarmError
from narswarm.metainfo import Metainfo
from narswarm.narinfo import Narinfo, Verdict
from narswarm.payload import Kind

MAX_BODY = 4 * 1024 * 1024
"""Bytes of a publication: 52 for each piece, which is enough for payloads of 600 GiB."""

CONTENT_TYPE = "application/x-bencode"

_KEYS = [b"narinfo", b"torrent"]


class RefusedError(NarswarmError):
    """A publication that is well-formed but not allowed."""


class Publication(NamedTuple):
    """A checked publication.

    Attributes:
        meta: the torrent.
        torrent: the torrent as it is kept, without anything outside its identity.
        info: the narinfo.
        narinfo: the narinfo as it is kept: the signed part, its signature, and those of the
            places to fetch the NAR from that belong to known servers.
        sources: how many such places there are.
        signer: the canonical public key that signed the narinfo.
    """

    meta: Metainfo
    torrent: bytes
    info: Narinfo
    narinfo: bytes
    sources: int
    signer: bytes


def check(nar_hash: bytes, body: bytes, acl: Acl, nar_servers: Sequence[str]) -> Publication:
    """Check a publication against the NAR that it was sent for.

    Args:
        nar_hash: 32 bytes.
        body: a bencoded dictionary with the strings `narinfo` and `torrent`.
        acl: whose signature a narinfo needs.
        nar_servers: base URLs of servers whose NARs may be named.

    Raises:
        InvalidInputError: the body, the torrent or the narinfo is malformed.
        RefusedError: no authorised key vouches for the narinfo.
        MismatchError: narinfo or torrent are those of another NAR.
    """
    content = bencoding.decode(body, "publication", max_depth=1)
    if not isinstance(content, dict) or list(content) != _KEYS:
        raise InvalidInputError("publication", "is not a dictionary of narinfo and torrent")
    raw, torrent = content[b"narinfo"], content[b"torrent"]
    if not isinstance(raw, bytes) or not isinstance(torrent, bytes):
        raise InvalidInputError("publication", "has a narinfo or torrent that is not a string")
    info = narinfo.parse(raw)
    if info.nar_hash != nar_hash:
        wanted = base32.encode(nar_hash)
        raise MismatchError(info.store_path, f"has a narinfo for another NAR than {wanted}")
    meta = metainfo.decode(torrent, "torrent")
    metainfo.require_for(meta, nar_hash, info.nar_size)
    if meta.kind is Kind.SERVER and meta.name != storepath.parse(info.store_path).base_name:
        raise MismatchError(meta.name, f"is not what a server calls {info.store_path}")
    # The signature comes last: it costs more than all the rest.
    verdict = narinfo.verdict(info, acl)
    if verdict is not Verdict.VALID_SIGNATURE:
        raise RefusedError(info.store_path, f"has a narinfo with {_describe(verdict)}")
    prefixes = tuple(f"{server.rstrip('/')}/" for server in nar_servers)
    sources = [source for source in info.sources if source.url.startswith(prefixes)]
    return Publication(
        meta=meta,
        torrent=meta.encode(),
        info=info,
        narinfo=narinfo.with_sources(raw, sources),
        sources=len(sources),
        signer=_signer(info),
    )


def _describe(verdict: Verdict) -> str:
    if verdict is Verdict.UNAUTHORIZED_KEY:
        return "a signature by a key that is not authorised here"
    return f"the verdict {verdict}"


def _signer(info: Narinfo) -> bytes:
    """The public key in a signature that was found valid."""
    key = sexp.find(sexp.parse(info.signature or b"", "signature"), b"public-key")
    return sexp.canonical(key or b"")
