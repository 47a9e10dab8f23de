# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between libtorrent 2.0 and 2.1, and what neither binding says about itself.

Debian has 2.0.x, PyPI has both; the two disagree in how a session is described, which storage
there is, and how the state of the DHT is saved. Everything that asks "which version is this?"
is here, so that `narswarm.swarm` and its parts read as if there were one libtorrent. The import
is late because it costs 20 ms, and a program that only reads narinfos needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from narswarm.errors import InvalidInputError, NotFoundError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TYPE_NAMES = {bool: "a boolean", int: "an integer", str: "a text"}

INT_MAX = 2**31 - 1
"""libtorrent's integer settings are C ints; its binding wraps larger values without a word."""


class TorrentFacts(NamedTuple):
    """What `load_torrent` reads from a .torrent besides libtorrent's own parameters.

    Attributes:
        params: a fresh `libtorrent.add_torrent_params` without trackers, web seeds or DHT nodes.
        infohash: hex; of version 2 (BEP 52) if the torrent has one, else of version 1.
        name: the file's name.
        length: payload bytes, which for torrents of version 2 isn't libtorrent's `total_size()`:
            that one counts the padding after the last piece.
        piece_length: bytes.
        pieces: how many there are.
    """

    params: Any
    infohash: str
    name: str
    length: int
    piece_length: int
    pieces: int


class Connected(NamedTuple):
    """A peer of one torrent.

    Attributes:
        address: IP address.
        port: of the connection's other end.
        seed: it has everything.
        called: it was connected to, so that the port is where it listens.
        pieces: how many it has; none, either, if it hasn't said.
        client: what it calls itself (the "v" of BEP 10), empty if it hasn't said.
    """

    address: str
    port: int
    seed: bool
    called: bool
    pieces: int = 0
    client: str = ""


def library() -> Any:
    """The libtorrent module.

    Raises:
        NotFoundError: it isn't installed, and the reason says which package has it; or it is, and
            a library that it needs isn't.
    """
    try:
        import libtorrent  # noqa: PLC0415  20 ms that most commands don't need
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            raise NotFoundError("libtorrent", f"can't be loaded: {error}") from error
        raise NotFoundError(
            "libtorrent",
            "the Python module is not installed (Debian calls it python3-libtorrent, "
            "Guix libtorrent-rasterbar)",
        ) from error
    return libtorrent


def known(pack: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of PACK that this libtorrent has; presets may name newer settings."""
    names = library().default_settings()
    return {key: value for key, value in pack.items() if key in names}


def check_settings(extra: Mapping[str, int | str | bool]) -> None:
    """Let through what this libtorrent would take.

    `default_settings()` of 2.0 leaves out texts without a default (`outgoing_interfaces`), so a
    settings pack that is never used is what decides.

    Raises:
        SettingsError: names the first key that is unknown or has a value of another type.
    """
    lt = library()
    defaults = lt.default_settings()
    for key, value in extra.items():
        wanted = type(defaults.get(key, ""))
        probe = lt.session_params()
        try:
            probe.settings = {key: value}
        except KeyError:
            raise SettingsError(
                f"libtorrent.{key}", f"libtorrent {lt.__version__} has no such setting"
            ) from None
        except TypeError:
            raise SettingsError(f"libtorrent.{key}", f"is not {TYPE_NAMES[wanted]}") from None
        if isinstance(value, bool) is not (wanted is bool):
            raise SettingsError(f"libtorrent.{key}", f"is not {TYPE_NAMES[wanted]}")
        if wanted is int and not -INT_MAX <= int(value) <= INT_MAX:
            raise SettingsError(f"libtorrent.{key}", f"is beyond {INT_MAX}")


def new_session(pack: Mapping[str, Any], dht_state: bytes, *, stream: bool) -> Any:
    """A libtorrent session.

    Args:
        pack: its settings, all known to this version.
        dht_state: what `dht_state()` returned once, or nothing. Bytes that can't be read are
            dropped: they are a cache.
        stream: files are read while they arrive. Of 2.1's storages only "posix" has a piece on
            disk when it says so, and it stays small; 2.0 has memory-mapped files alone, which it
            doesn't map when they are below the cut-off, so everything is made to be below.
    """
    lt = library()
    params = lt.session_params()
    if dht_state:
        try:
            params = lt.read_session_params(dht_state, lt.save_state_flags_t.save_dht_state)
        except RuntimeError:
            params = lt.session_params()
    pack = dict(pack)
    if hasattr(params, "disk_io_constructor"):
        if stream:
            params.disk_io_constructor = "posix_disk_io_constructor"
    else:
        pack |= known({"mmap_file_size_cutoff": INT_MAX})
    params.settings = pack
    return lt.session(params)


def let_in_only(session: Any, ranges: Iterable[tuple[str, str]]) -> None:
    """Have SESSION connect to peers in these ranges of addresses, first and last, and no others."""
    rules = library().ip_filter()
    blocked = 1
    rules.add_rule("0.0.0.0", "255.255.255.255", blocked)  # noqa: S104  not an address to bind
    rules.add_rule("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", blocked)
    for first, last in ranges:
        rules.add_rule(first, last, 0)
    session.set_ip_filter(rules)


def keep_out(session: Any, addresses: Iterable[str]) -> None:
    """Have torrents with the flag `apply_ip_filter` connect to none of these peers."""
    rules = library().ip_filter()
    for address in addresses:
        rules.add_rule(address, address, 1)
    session.set_ip_filter(rules)


def connected(handle: Any) -> list[Connected]:
    """The peers of a torrent that have said something of themselves.

    A seed has nothing, either, until it has said what it has.

    Raises:
        RuntimeError: the torrent is gone.
    """
    kinds = library().peer_info
    unfinished = int(kinds.handshake) | int(kinds.connecting)
    return [
        Connected(
            str(peer.ip[0]),
            int(peer.ip[1]),
            seed=bool(int(peer.flags) & int(kinds.seed)),
            called=bool(int(peer.flags) & int(kinds.local_connection)),
            pieces=int(peer.num_pieces),
            client=peer.client.decode(errors="replace"),
        )
        for peer in handle.get_peer_info()
        if (peer.num_pieces or peer.client) and not int(peer.flags) & unfinished
    ]


def dht_state(session: Any) -> bytes:
    """The nodes that SESSION's DHT knows, and its own node ids: bytes for `new_session`."""
    lt = library()
    flags = lt.save_state_flags_t.save_dht_state
    if hasattr(session, "session_state"):
        return bytes(lt.write_session_params_buf(session.session_state(flags), flags))
    return bytes(lt.bencode(session.save_state(int(flags))))


def load_torrent(torrent: bytes, source: str = "torrent") -> TorrentFacts:
    """Read a .torrent of one file, without what else its maker wrote into it.

    Trackers, web seeds and DHT nodes of a torrent are addresses that a stranger wants this
    machine to call; they are dropped before libtorrent sees them.

    Raises:
        InvalidInputError: not a torrent, or one of several files.
    """
    lt = library()
    try:
        top = lt.bdecode(torrent)
    except (RuntimeError, ValueError):
        top = None
    info = top.get(b"info") if isinstance(top, dict) else None
    if not isinstance(top, dict) or not isinstance(info, dict):
        raise InvalidInputError(source, "is not a torrent")
    bare = {key: top[key] for key in (b"info", b"piece layers") if key in top}
    try:
        params = lt.load_torrent_buffer(lt.bencode(bare))
    except RuntimeError as error:
        raise InvalidInputError(source, f"libtorrent refuses it: {error}") from error
    length = _single_file(info)
    if length is None:
        raise InvalidInputError(source, "has several files, where a payload is one")
    hashes = params.ti.info_hashes()
    return TorrentFacts(
        params=params,
        infohash=hash_text(hashes),
        name=params.ti.name(),
        length=length,
        piece_length=params.ti.piece_length(),
        pieces=params.ti.num_pieces(),
    )


def hash_text(hashes: Any) -> str:
    """One hexadecimal name for a libtorrent `info_hash_t`: of version 2 where there is one."""
    return str(hashes.v2 if hashes.has_v2() else hashes.v1)


def _single_file(info: Mapping[bytes, Any]) -> int | None:
    """Length of the one file of an info dictionary that libtorrent accepted, else None."""
    tree = info.get(b"file tree")
    if tree is None:
        return None if b"files" in info else info.get(b"length")
    if len(tree) != 1:
        return None
    entry = next(iter(tree.values()))
    return entry[b""].get(b"length") if b"" in entry else None
