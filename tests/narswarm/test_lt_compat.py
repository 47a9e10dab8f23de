# SPDX-License-Identifier: GPL-3.0-or-later
"""libtorrent's bindings by version: torrents, settings, saved state."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from narswarm import bencoding, lt_compat
from narswarm.errors import InvalidInputError, NotFoundError, SettingsError
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo

PIECE = 64 * 1024


def info_of(size: int) -> dict[bytes, bencoding.Value]:
    """The hybrid info dictionary of a payload of zeros."""
    hasher = PieceHasher(None)
    hasher.update(bytes(size))
    return Metainfo.of("zeros.bin", hasher.finish()).info


def torrent_of(size: int, *keys: bytes) -> tuple[bytes, bytes]:
    """A torrent whose info has only KEYS, and the info's bytes."""
    hasher = PieceHasher(None)
    hasher.update(bytes(size))
    meta = Metainfo.of("zeros.bin", hasher.finish())
    info = {key: value for key, value in meta.info.items() if not keys or key in keys}
    layers: dict[bytes, bencoding.Value] = {}
    if meta.piece_layer:
        layers[meta.pieces_root] = meta.piece_layer
    return bencoding.encode({b"info": info, b"piece layers": layers}), bencoding.encode(info)


V1 = (b"length", b"name", b"piece length", b"pieces")
V2 = (b"file tree", b"meta version", b"name", b"piece length")


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE - 1, 5 * PIECE])
@pytest.mark.parametrize("keys", [(), V1, V2], ids=["hybrid", "v1", "v2"])
def test_facts_of_a_torrent(size: int, keys: tuple[bytes, ...]) -> None:
    """Length and pieces are the payload's, without a version 2 torrent's padding."""
    torrent, info = torrent_of(size, *keys)
    facts = lt_compat.load_torrent(torrent)
    infohash = hashlib.sha1(info) if keys == V1 else hashlib.sha256(info)  # noqa: S324
    assert facts[1:] == (
        infohash.hexdigest(),
        "zeros.bin",
        size,
        PIECE,
        -(-size // PIECE),
    )


@pytest.mark.parametrize(
    ("torrent", "reason"),
    [
        (b"", "is not a torrent"),
        (b"le", "is not a torrent"),
        (b"d4:infolee", "is not a torrent"),
        (b"d8:announce3:abce", "is not a torrent"),
        (b"d4:infodee", "libtorrent refuses it: "),
    ],
)
def test_what_is_no_torrent(torrent: bytes, reason: str) -> None:
    """Bytes of strangers raise the project's errors, never libtorrent's."""
    with pytest.raises(InvalidInputError) as caught:
        lt_compat.load_torrent(torrent, "http://tracker/x.torrent")
    assert str(caught.value).startswith(f"http://tracker/x.torrent: {reason}")


def test_several_files_are_refused() -> None:
    """A payload is one file; a torrent of two could write beside it."""
    v1: dict[bytes, bencoding.Value] = {
        b"files": [{b"length": 1, b"path": [b"a"]}, {b"length": 1, b"path": [b"b"]}],
        b"name": b"dir",
        b"piece length": PIECE,
        b"pieces": bytes(20),
    }
    leaf: bencoding.Value = {b"": {b"length": 1, b"pieces root": b"r" * 32}}
    v2: dict[bytes, bencoding.Value] = {
        b"file tree": {b"a": leaf, b"b": leaf},
        b"meta version": 2,
        b"name": b"dir",
        b"piece length": PIECE,
    }
    nested: dict[bytes, bencoding.Value] = v2 | {b"file tree": {b"dir": {b"a": leaf}}}
    for info in (v1, v2, nested):
        with pytest.raises(InvalidInputError) as caught:
            lt_compat.load_torrent(bencoding.encode({b"info": info, b"piece layers": {}}))
        assert str(caught.value) == "torrent: has several files, where a payload is one"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("connections_limit", "5", "is not an integer"),
        ("connections_limit", True, "is not an integer"),
        ("connections_limit", 2**31, "is beyond 2147483647"),
        ("connections_limit", -(2**31), "is beyond 2147483647"),
        ("enable_lsd", 1, "is not a boolean"),
        ("enable_lsd", "yes", "is not a boolean"),
        ("user_agent", 5, "is not a text"),
        ("user_agent", True, "is not a text"),
    ],
)
def test_settings_of_another_type(key: str, value: str | int, reason: str) -> None:
    """What the binding would convert or wrap in silence is refused by name."""
    with pytest.raises(SettingsError) as caught:
        lt_compat.check_settings({key: value})
    assert str(caught.value) == f"libtorrent.{key}: {reason}"


def test_settings_that_are_right() -> None:
    """Also those that `default_settings()` of 2.0 leaves out."""
    lt_compat.check_settings(
        {"connections_limit": 2**31 - 1, "enable_lsd": False, "outgoing_interfaces": "eth0"}
    )


def test_known_drops_what_this_version_lacks() -> None:
    """Presets may name settings of a newer libtorrent."""
    assert lt_compat.known({"connections_limit": 1, "of_the_future": 2}) == {"connections_limit": 1}


def test_a_missing_libtorrent_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "libtorrent", None)
    with pytest.raises(NotFoundError) as caught:
        lt_compat.library()
    assert str(caught.value) == (
        "libtorrent: the Python module is not installed (Debian calls it python3-libtorrent, "
        "Guix libtorrent-rasterbar)"
    )


def test_a_libtorrent_that_lacks_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error says what the loader said."""
    reason = "libstdc++.so.6: cannot open shared object file: No such file or directory"
    (tmp_path / "libtorrent.py").write_text(f"raise ImportError({reason!r})\n")
    monkeypatch.delitem(sys.modules, "libtorrent")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotFoundError) as caught:
        lt_compat.library()
    assert str(caught.value) == f"libtorrent: can't be loaded: {reason}"


def test_a_peer_may_call_itself_anything() -> None:
    """Its name is bytes of a stranger; who has said nothing yet, or not enough, is left out."""
    kinds = lt_compat.library().peer_info
    peers = [
        SimpleNamespace(ip=("10.0.0.1", 1), num_pieces=0, flags=0, client=b"narswarm \xff"),
        SimpleNamespace(ip=("10.0.0.2", 2), num_pieces=3, flags=int(kinds.seed), client=b""),
        SimpleNamespace(ip=("10.0.0.3", 3), num_pieces=0, flags=0, client=b""),
        SimpleNamespace(ip=("10.0.0.4", 4), num_pieces=3, flags=int(kinds.handshake), client=b"x"),
    ]
    assert lt_compat.connected(SimpleNamespace(get_peer_info=lambda: peers)) == [
        lt_compat.Connected("10.0.0.1", 1, seed=False, called=False, client="narswarm \ufffd"),
        lt_compat.Connected("10.0.0.2", 2, seed=True, called=False, pieces=3),
    ]
