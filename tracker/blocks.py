# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator keeps out: NARs, torrents, publishers and addresses.

Blocks are rows of the index's database, which a command writes and the running tracker reads when
it is told, so that they hold whether or not it runs. A block hides what is there; a withdrawal
deletes it as well. Either way it can't be published again before the block is lifted.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Iterable
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

from narswarm import base32, storepath
from narswarm.errors import InvalidInputError, NotFoundError
from tracker.database import Connection
from tracker.wire_http import HASH_BYTES

_HASH_BYTES = 32
_INFOHASH = re.compile(r"[0-9a-fA-F]{40}|[0-9a-fA-F]{64}")
_MAPPED = bytes(10) + b"\xff\xff"


class Kind(StrEnum):
    """What a block is about."""

    NAR = "nar"
    INFOHASH = "infohash"
    PUBLISHER = "publisher"
    ADDRESS = "address"


class Block(NamedTuple):
    """One block.

    Attributes:
        kind: what it is about.
        value: a NAR's hash (32 bytes), an infohash as on the wire (20), a publisher's key (32), or
            a network as text.
        reason: for operators.
        added: seconds since the epoch.
        withdrawn: the hash of the NAR whose withdrawal made this block, or nothing.
    """

    kind: Kind
    value: bytes
    reason: str
    added: int
    withdrawn: bytes | None = None

    @property
    def text(self) -> str:
        """The value as commands read and write it."""
        match self.kind:
            case Kind.NAR:
                return base32.format_hash(self.value)
            case Kind.INFOHASH:
                return self.value.hex()
            case Kind.PUBLISHER:
                return base64.b64encode(self.value).decode()
            case Kind.ADDRESS:
                return self.value.decode()


def parse(kind: Kind, text: str) -> bytes:
    """Read what is to be blocked.

    Raises:
        InvalidInputError: it isn't a value of that kind.
    """
    match kind:
        case Kind.NAR:
            return parse_nar_hash(text)
        case Kind.INFOHASH:
            if not _INFOHASH.fullmatch(text):
                raise InvalidInputError(text, "is not an infohash of 40 or 64 hexadecimal digits")
            return bytes.fromhex(text)[:HASH_BYTES]
        case Kind.PUBLISHER:
            try:
                key = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                key = b""
            if len(key) != _HASH_BYTES:
                raise InvalidInputError(text, "is not a publisher's key, 32 bytes in base64")
            return key
        case Kind.ADDRESS:
            try:
                return str(ip_network(text)).encode()
            except ValueError as error:
                raise InvalidInputError("address", str(error)) from None


def parse_nar_hash(text: str) -> bytes:
    """Read a NAR's hash, with `sha256:` before it or without.

    Raises:
        InvalidInputError: it isn't one.
    """
    return base32.parse_hash(text if text.startswith("sha256:") else f"sha256:{text}")


class BlockList:
    """What requests have to be asked about, ready to be looked up; it never changes.

    Args:
        info_hashes: blocked ones, 20 bytes each.
        networks: blocked addresses.
        publishers: blocked keys, 32 bytes each.
        nars: hashes of blocked NARs, 32 bytes each.
    """

    def __init__(
        self,
        info_hashes: Collection[bytes] = (),
        networks: Iterable[IPv4Network | IPv6Network] = (),
        publishers: Collection[bytes] = (),
        nars: Collection[bytes] = (),
    ) -> None:
        self.info_hashes = frozenset(info_hashes)
        """Infohashes, 20 bytes each."""
        self.publishers = frozenset(publishers)
        """Keys of publishers, 32 bytes each."""
        self.nars = frozenset(nars)
        """Hashes of NARs, 32 bytes each."""
        # By length of prefix, so that a look-up costs no more with a million networks.
        by_prefix: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            size = network.max_prefixlen
            shift = size - network.prefixlen
            bits = int(network.network_address) >> shift
            by_prefix.setdefault((size // 8, shift), set()).add(bits)
        self._networks = tuple((*key, frozenset(found)) for key, found in by_prefix.items())

    def has_address(self, address: bytes) -> bool:
        """Whether an address of 4 or 16 bytes is blocked; IPv4 within IPv6 is IPv4."""
        if not self._networks:
            return False
        if address.startswith(_MAPPED) and len(address) == 16:
            address = address[len(_MAPPED) :]
        number = int.from_bytes(address)
        return any(
            size == len(address) and number >> shift in found
            for size, shift, found in self._networks
        )

    def packed_networks(self) -> list[tuple[bytes, int]]:
        """The blocked networks: an address of 4 or 16 bytes, and how many of its bits count."""
        return [
            ((bits << shift).to_bytes(size), size * 8 - shift)
            for size, shift, found in self._networks
            for bits in found
        ]

    @property
    def has_networks(self) -> bool:
        """Whether any address is blocked."""
        return bool(self._networks)


def load(connection: Connection) -> BlockList:
    """Read what requests have to be asked about.

    An infohash is blocked by itself, by the other infohash of its torrent, or by its NAR.
    """
    info_hashes = {block.value for block in listed(connection, Kind.INFOHASH)}
    rows = connection.execute(
        "SELECT infohash_v1, infohash_v2 FROM blocked_torrents UNION ALL"
        " SELECT infohash_v1, infohash_v2 FROM blocks"
        " JOIN nars ON nar_hash = value JOIN torrents ON torrents.nar = nars.id"
        " WHERE blocks.kind = 'nar'"
    )
    info_hashes.update(info_hash[:HASH_BYTES] for row in rows for info_hash in row)
    networks = [ip_network(block.text) for block in listed(connection, Kind.ADDRESS)]
    publishers = [block.value for block in listed(connection, Kind.PUBLISHER)]
    nars = [block.value for block in listed(connection, Kind.NAR)]
    return BlockList(info_hashes, networks, publishers, nars)


def listed(connection: Connection, kind: Kind | None = None) -> list[Block]:
    """All blocks, or those of one kind, the oldest first."""
    rows = connection.execute(
        "SELECT kind, value, reason, added, withdrawn FROM blocks ORDER BY added, kind, value"
    )
    return [
        Block(Kind(name), bytes(value), reason, added, withdrawn)
        for name, value, reason, added, withdrawn in rows
        if kind in {None, name}
    ]


def is_blocked(connection: Connection, kind: Kind, value: bytes) -> bool:
    """Whether exactly this is blocked."""
    found = connection.execute(
        "SELECT 1 FROM blocks WHERE kind = ? AND value = ?", (kind, value)
    ).fetchone()
    return found is not None


def add(connection: Connection, block: Block) -> None:
    """Block something; what is blocked already keeps its time and gets the new reason."""
    connection.execute(
        "INSERT INTO blocks (kind, value, reason, added, withdrawn) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (kind, value)"
        " DO UPDATE SET reason = excluded.reason, withdrawn = excluded.withdrawn",
        block,
    )
    connection.note(None)


def remove(connection: Connection, kind: Kind, value: bytes) -> None:
    """Lift a block, and with a withdrawn NAR's those of its torrents.

    Raises:
        NotFoundError: there is no such block.
    """
    removed = connection.execute(
        "DELETE FROM blocks WHERE (kind = ? AND value = ?) OR (withdrawn = ?)",
        (kind, value, value if kind is Kind.NAR else None),
    )
    connection.note(None)
    if not removed.rowcount:
        raise NotFoundError(Block(kind, value, "", 0).text, "is not blocked")


def withdraw(connection: Connection, nar_hash: bytes, reason: str, now: int) -> None:
    """Delete all that is known of a NAR, and block it together with the infohashes of its torrents.

    Raises:
        NotFoundError: the index has nothing of it.
    """
    found = connection.execute("SELECT id FROM nars WHERE nar_hash = ?", (nar_hash,)).fetchone()
    if found is None:
        raise NotFoundError(base32.format_hash(nar_hash), "is not in the index")
    torrents = connection.execute(
        "SELECT infohash_v1, infohash_v2 FROM torrents WHERE nar = ?", found
    ).fetchall()
    for info_hash in (info_hash[:HASH_BYTES] for torrent in torrents for info_hash in torrent):
        # One that was blocked before stays so when the NAR's block is lifted.
        if not is_blocked(connection, Kind.INFOHASH, info_hash):
            add(connection, Block(Kind.INFOHASH, info_hash, reason, now, nar_hash))
    add(connection, Block(Kind.NAR, nar_hash, reason, now, nar_hash))
    connection.execute("DELETE FROM narinfos WHERE nar = ?", found)
    connection.execute("DELETE FROM torrents WHERE nar = ?", found)
    connection.execute("DELETE FROM nars WHERE id = ?", found)


def resolve(connection: Connection, text: str) -> list[bytes]:
    """The hashes of the NARs that an operator means: by hash, or all of a store item's.

    Args:
        connection: the database.
        text: a NAR's hash, or the path or base name of a store item.

    Raises:
        InvalidInputError: it is neither.
        NotFoundError: nothing is known about that store item.
    """
    try:
        return [parse_nar_hash(text)]
    except InvalidInputError:
        try:
            item = storepath.parse(text)
        except InvalidInputError:
            raise InvalidInputError(text, "is neither a NAR's hash nor a store item") from None
    rows = connection.execute(
        "SELECT DISTINCT nar_hash FROM nars JOIN narinfos ON narinfos.nar = nars.id"
        " WHERE hash_part = ?",
        (item.hash_part,),
    ).fetchall()
    if not rows:
        raise NotFoundError(text, "is not in the index")
    return [bytes(nar_hash) for (nar_hash,) in rows]
