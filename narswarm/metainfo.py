# SPDX-License-Identifier: GPL-3.0-or-later
"""The canonical torrent of a NAR (profile 1): hybrid metainfo that all holders make alike.

The info dictionary holds nothing but what follows from the NAR, so the infohashes do too.  What a
stranger sends is accepted only if it is of exactly this form, its own hashes agree with each other,
and its encoding is canonical; all of that is known before a byte of the payload is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn, Self
from urllib.parse import quote

from narswarm import base32, bencoding
from narswarm.errors import InvalidInputError, MismatchError
from narswarm.merkle import PieceHashes, layer_root, piece_count, piece_length
from narswarm.payload import Kind, kind_of, max_length, parse_file_name

MAX_LENGTH: Final = 2**40
"""Bytes of the longest payload: 1 TiB."""

MAX_BYTES: Final = 8 * 1024 * 1024
"""Bytes of the longest torrent: the hashes of 1 TiB take 6.5 MiB."""

_META_VERSION: Final = 2
_INFO_KEYS: Final = (
    b"file tree",
    b"length",
    b"meta version",
    b"name",
    b"piece length",
    b"pieces",
)


@dataclass(frozen=True, slots=True)
class Metainfo:
    """A torrent of one payload.

    Attributes:
        name: the payload's, `<NarHash>.nar.zst` or `<NarHash>.nar`; of a server's file that of the
            store item.
        length: bytes of the payload.
        piece_length: bytes of a piece, which follows from the length.
        pieces_root: 32 bytes (BEP 52).
        piece_layer: 32 bytes for each piece, or nothing when there is only one (BEP 52).
        pieces: 20 bytes for each piece (BEP 3).
    """

    name: str
    length: int
    piece_length: int
    pieces_root: bytes
    piece_layer: bytes
    pieces: bytes

    @classmethod
    def of(cls, name: str, hashes: PieceHashes) -> Self:
        """Return the torrent of the payload that has these hashes."""
        return cls(name, *hashes)

    @property
    def nar_hash(self) -> bytes:
        """SHA-256 of the NAR that the name promises, 32 bytes.

        Raises:
            InvalidInputError: it promises none, being that of a server's file.
        """
        return parse_file_name(self.name)[0]

    @property
    def kind(self) -> Kind:
        """What the payload is."""
        return kind_of(self.name)

    @property
    def info(self) -> dict[bytes, bencoding.Value]:
        """The info dictionary (BEP 3, BEP 52), with one file in both of its forms."""
        name = self.name.encode()
        return {
            b"file tree": {name: {b"": {b"length": self.length, b"pieces root": self.pieces_root}}},
            b"length": self.length,
            b"meta version": _META_VERSION,
            b"name": name,
            b"piece length": self.piece_length,
            b"pieces": self.pieces,
        }

    @property
    def info_bytes(self) -> bytes:
        """The encoded info dictionary, over which the infohashes are."""
        return bencoding.encode(self.info)

    @property
    def infohash_v1(self) -> bytes:
        """SHA-1 of the info dictionary, 20 bytes (BEP 3)."""
        return hashlib.sha1(self.info_bytes, usedforsecurity=False).digest()

    @property
    def infohash_v2(self) -> bytes:
        """SHA-256 of the info dictionary, 32 bytes (BEP 52)."""
        return hashlib.sha256(self.info_bytes).digest()

    def encode(
        self,
        trackers: Sequence[str] = (),
        web_seeds: Sequence[str] = (),
        comment: str | None = None,
    ) -> bytes:
        """Return the `.torrent` file.  No argument changes the infohashes.

        Args:
            trackers: announce URLs in the order of preference, each its own tier (BEP 12).
            web_seeds: URLs of the payload (BEP 19).
            comment: for people.
        """
        layers: bencoding.Value = {}
        if self.piece_layer:
            layers = {self.pieces_root: self.piece_layer}
        torrent: dict[bytes, bencoding.Value] = {b"info": self.info, b"piece layers": layers}
        if trackers:
            torrent[b"announce"] = trackers[0].encode()
        if len(trackers) > 1:
            torrent[b"announce-list"] = [[tracker.encode()] for tracker in trackers]
        if web_seeds:
            torrent[b"url-list"] = [url.encode() for url in web_seeds]
        if comment is not None:
            torrent[b"comment"] = comment.encode()
        return bencoding.encode(torrent)

    def magnet(self, trackers: Sequence[str] = ()) -> str:
        """Return the magnet link, for v1 and v2 swarms (BEP 9)."""
        fields = [
            f"xt=urn:btih:{self.infohash_v1.hex()}",
            f"xt=urn:btmh:1220{self.infohash_v2.hex()}",
            f"dn={self.name}",
            f"xl={self.length}",
        ]
        fields += [f"tr={quote(tracker, safe='')}" for tracker in trackers]
        return "magnet:?" + "&".join(fields)


class Outside(NamedTuple):
    """What a torrent says beside its info dictionary: advice, without part in its identity.

    Attributes:
        trackers: announce URLs in order, without repetitions.
        web_seeds: URLs.
        comment: for people.
    """

    trackers: tuple[str, ...]
    web_seeds: tuple[str, ...]
    comment: str | None


def decode(data: bytes, source: object) -> Metainfo:
    """Read a torrent of profile 1.

    Trackers, web seeds and everything else outside the info dictionary is left alone: what this
    machine connects to is said by its settings, never by a torrent.

    Args:
        data: the `.torrent` file.
        source: where it came from, the subject of errors.

    Raises:
        InvalidInputError: it isn't a canonical torrent of one payload.
    """
    return _Reader(source).read(data)


def decode_outside(data: bytes, source: object) -> Outside:
    """Read what a torrent says for people outside its info dictionary.

    Entries that aren't UTF-8 texts are passed over.

    Raises:
        InvalidInputError: the bytes aren't a torrent at all.
    """
    reader = _Reader(source)
    torrent = reader.torrent(data)
    trackers = _texts(torrent.get(b"announce")) + _texts(torrent.get(b"announce-list"))
    comment = _texts(torrent.get(b"comment"))
    return Outside(
        tuple(dict.fromkeys(trackers)),
        tuple(_texts(torrent.get(b"url-list"))),
        comment[0] if comment else None,
    )


def require_for(meta: Metainfo, nar_hash: bytes, nar_size: int) -> None:
    """Make sure that a torrent may carry a NAR, before anything of it is fetched.

    Raises:
        MismatchError: its name is another NAR's, or its payload is longer than that of this NAR
            can be. The name of a server's file says nothing about the NAR.
    """
    if meta.kind is not Kind.SERVER and meta.nar_hash != nar_hash:
        wanted = base32.encode(nar_hash)
        raise MismatchError(meta.name, f"is not a payload of the NAR {wanted}")
    if meta.kind is Kind.NAR and meta.length != nar_size:
        raise MismatchError(meta.name, f"has {meta.length} bytes, and the NAR {nar_size}")
    if meta.length > max_length(nar_size):
        raise MismatchError(meta.name, f"has {meta.length} bytes, too many for a NAR of {nar_size}")


def _texts(value: bencoding.Value | None) -> list[str]:
    """Return the texts in a value: itself, or those of the lists that it consists of."""
    if isinstance(value, bytes):
        try:
            return [value.decode()]
        except UnicodeDecodeError:
            return []
    if isinstance(value, list):
        return [text for entry in value for text in _texts(entry)]
    return []


class _Reader:
    """The checks of `decode`, in the order in which they can be made."""

    __slots__ = ("_source",)

    def __init__(self, source: object) -> None:
        self._source = source

    def torrent(self, data: bytes) -> dict[bytes, bencoding.Value]:
        """Return the outermost dictionary."""
        if len(data) > MAX_BYTES:
            self._fail(f"torrent has {len(data)} bytes, more than {MAX_BYTES}")
        torrent = bencoding.decode(data, self._source)
        if not isinstance(torrent, dict):
            self._fail("torrent is not a dictionary")
        return torrent

    def read(self, data: bytes) -> Metainfo:
        """Return the torrent when everything in it fits together."""
        torrent = self.torrent(data)
        info = torrent.get(b"info")
        if not isinstance(info, dict):
            self._fail("torrent has no info dictionary")
        for key in _INFO_KEYS:
            if key not in info:
                self._fail(f"info dictionary has no {key.decode()!r}")
        for key in info:
            if key not in _INFO_KEYS:
                self._fail(f"info dictionary has {key!r}, which is not part of profile 1")
        if info[b"meta version"] != _META_VERSION:
            self._fail("meta version is not 2")
        name = self._name(info[b"name"])
        length, piece = self._sizes(info[b"length"], info[b"piece length"])
        root = self._root(info[b"file tree"], name, length)
        count = piece_count(length, piece)
        pieces = info[b"pieces"]
        if not isinstance(pieces, bytes) or len(pieces) != 20 * count:
            self._fail(f"pieces are not {count} SHA-1 hashes")
        layer = self._layer(torrent.get(b"piece layers", {}), root, count, piece)
        return Metainfo(name, length, piece, root, layer, pieces)

    def _name(self, value: bencoding.Value) -> str:
        try:
            name = value.decode("ascii") if isinstance(value, bytes) else ""
            kind_of(name)
        except (UnicodeDecodeError, InvalidInputError):
            self._fail("name is not that of a payload")
        return name

    def _sizes(self, length: bencoding.Value, piece: bencoding.Value) -> tuple[int, int]:
        if not isinstance(length, int) or not 0 < length <= MAX_LENGTH:
            self._fail(f"length is not from 1 to {MAX_LENGTH}")
        wanted = piece_length(length)
        if not isinstance(piece, int) or piece != wanted:
            self._fail(f"piece length is not {wanted}, as it is for {length} bytes")
        return length, piece

    def _root(self, tree: bencoding.Value, name: str, length: int) -> bytes:
        match tree:
            case {**files} if list(files) == [name.encode()]:
                entry = files[name.encode()]
            case _:
                self._fail("file tree is not the one file of the name")
        match entry:
            case {b"": {b"length": found, b"pieces root": bytes(root), **more}, **others} if (
                len(root) == 32 and not more and not others
            ):
                pass
            case _:
                self._fail("file tree has no length and pieces root, or more than these")
        if found != length:
            self._fail("file tree has another length than the info dictionary")
        return root

    def _layer(self, layers: bencoding.Value, root: bytes, count: int, piece: int) -> bytes:
        if count == 1:
            if layers != {}:
                self._fail("piece layers are not empty, though there is one piece")
            return b""
        match layers:
            case {**found} if list(found) == [root]:
                layer = found[root]
            case _:
                self._fail("piece layers are not that of the one file")
        if not isinstance(layer, bytes) or len(layer) != 32 * count:
            self._fail(f"piece layer is not {count} SHA-256 hashes")
        if layer_root(layer, piece) != root:
            self._fail("piece layer does not lead to the pieces root")
        return layer

    def _fail(self, reason: str) -> NoReturn:
        raise InvalidInputError(self._source, reason)
