# SPDX-License-Identifier: GPL-3.0-or-later
"""What this machine could offer: items of the store, or NARs in a directory."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from narswarm import nar, narinfo, storepath
from narswarm.errors import InvalidInputError, NarswarmError, NotFoundError
from narswarm.guixdb import GuixDb

log = logging.getLogger(__name__)

_READ = 1024 * 1024
_DERIVATION = ".drv"
_NARINFO = ".narinfo"
_NAR = ".nar"


class Item(NamedTuple):
    """A store item of which this machine has the NAR, or can make it.

    Attributes:
        order: increases with time, as far as that is known; newest items have the largest.
        store_path: the absolute path under which the world knows it.
        nar_hash: SHA-256 of its NAR, 32 bytes.
        nar_size: bytes of its NAR.
    """

    order: int
    store_path: str
    nar_hash: bytes
    nar_size: int


class Inventory(Protocol):
    """Where items come from."""

    def items(self, after: int = 0) -> Iterator[Item]:
        """The items whose `order` is larger than AFTER.

        Raises:
            NarswarmError: they can't be listed now.
        """

    def item(self, store_path: str) -> Item | None:
        """An item by its path, None if it is no longer there.

        Raises:
            NarswarmError: that can't be said now.
        """

    def paths(self) -> Iterator[str]:
        """The store paths of all items.

        Raises:
            NarswarmError: they can't be listed now.
        """

    def count(self) -> int:
        """How many items there are.

        Raises:
            NarswarmError: they can't be counted now.
        """

    def stamp(self) -> object:
        """Something that is another one when items came or went, and cheap to have.

        Raises:
            NarswarmError: that can't be said now.
        """

    def open(self, item: Item) -> Iterator[bytes]:
        """The bytes of an item's NAR.

        Raises:
            NarswarmError: they can't be read.
        """


class StoreInventory:
    """The valid items of a store, without derivations, which nobody substitutes.

    Args:
        database: guix-daemon's.
        store: where the files are.
    """

    def __init__(self, database: Path, store: Path) -> None:
        self._database = GuixDb(database)
        self._store = store

    def items(self, after: int = 0) -> Iterator[Item]:
        """See `Inventory`."""
        for row in self._database.items(after):
            if not row.path.endswith(_DERIVATION):
                yield Item(row.id, row.path, row.nar_hash, row.nar_size)

    def item(self, store_path: str) -> Item | None:
        """See `Inventory`."""
        row = self._database.item(store_path)
        return None if row is None else Item(row.id, row.path, row.nar_hash, row.nar_size)

    def paths(self) -> Iterator[str]:
        """See `Inventory`."""
        return (item.store_path for item in self.items())

    def count(self) -> int:
        """See `Inventory`."""
        return self._database.count(_DERIVATION)

    def stamp(self) -> object:
        """See `Inventory`."""
        return self._database.stamp()

    def open(self, item: Item) -> Iterator[bytes]:
        """See `Inventory`."""
        return nar.dump(self._store / storepath.parse(item.store_path).base_name)


class _Pair(NamedTuple):
    """A NAR and its narinfo, as files of one directory."""

    item: Item
    narinfo: str
    nar: str


class NarDirectory:
    """A directory of NARs with their narinfos.

    What has a name that ends in `.narinfo` is a narinfo; the NAR is beside it as
    `<base name of the store item>.nar`, `<hash part>.nar` or `<name of the narinfo>.nar`. The
    narinfo says what the NAR is, and `seeder.vouchers` whether it may say so. Narinfos without a
    NAR are none of this machine's items.

    Args:
        directory: with both.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._parsed: dict[str, tuple[int, Item | None]] = {}
        self._listed: tuple[int, dict[str, _Pair]] = (0, {})

    def items(self, after: int = 0) -> Iterator[Item]:
        """See `Inventory`; the order is that in which the files came here."""
        items = sorted(pair.item for pair in self._list().values())
        return iter([item for item in items if item.order > after])

    def item(self, store_path: str) -> Item | None:
        """See `Inventory`."""
        pair = self._pairs().get(store_path)
        return None if pair is None else pair.item

    def narinfo(self, store_path: str) -> narinfo.Narinfo | None:
        """The narinfo of an item, whoever signed it; None if there is none any more."""
        pair = self._pairs().get(store_path)
        if pair is None:
            return None
        with contextlib.suppress(NarswarmError):
            return _parse(self._directory / pair.narinfo)
        return None

    def paths(self) -> Iterator[str]:
        """See `Inventory`."""
        return iter(self._list())

    def count(self) -> int:
        """See `Inventory`."""
        return len(self._list())

    def stamp(self) -> object:
        """See `Inventory`."""
        return hash(frozenset(self._files().items()))

    def open(self, item: Item) -> Iterator[bytes]:
        """See `Inventory`."""
        pair = self._pairs().get(item.store_path)
        if pair is None:
            raise NotFoundError(item.store_path, f"has no NAR in {self._directory}")
        return _read(self._directory / pair.nar)

    def _pairs(self) -> dict[str, _Pair]:
        """What was there when files came or went last, by store path."""
        with contextlib.suppress(OSError):
            changed, pairs = self._listed
            if self._directory.stat().st_mtime_ns == changed:
                return pairs
        return self._list()

    def _files(self) -> dict[str, int]:
        """The names of what may be NARs and narinfos, and when they changed."""
        try:
            with os.scandir(self._directory) as entries:
                names = [entry for entry in entries if entry.name.endswith((_NARINFO, _NAR))]
        except OSError as error:
            raise NotFoundError(self._directory, error.strerror or str(error)) from None
        changed: dict[str, int] = {}
        for entry in names:
            # One that was just deleted, or is a link to nowhere, mustn't hide the others.
            with contextlib.suppress(OSError):
                # Not the time of its contents: files that were copied here may have an old one.
                changed[entry.name] = entry.stat().st_ctime_ns
        return changed

    def _list(self) -> dict[str, _Pair]:
        """What is there now, by store path; only what changed is read."""
        since = 0
        with contextlib.suppress(OSError):
            since = self._directory.stat().st_mtime_ns
        changed = self._files()
        pairs: dict[str, _Pair] = {}
        with self._lock:
            self._parsed = {name: seen for name, seen in self._parsed.items() if name in changed}
            for name in sorted(changed):
                item = self._described(name, changed[name]) if name.endswith(_NARINFO) else None
                if item is None:
                    continue
                nar_name = _nar_name(item.store_path, name, changed)
                if nar_name is not None:
                    order = max(changed[name], changed[nar_name])
                    pairs[item.store_path] = _Pair(item._replace(order=order), name, nar_name)
        self._listed = (since, pairs)
        return pairs

    def _described(self, name: str, changed: int) -> Item | None:
        """The item of a narinfo; None, and a warning once, if it isn't one."""
        seen = self._parsed.get(name)
        if seen is None or seen[0] != changed:
            item = None
            try:
                info = _parse(self._directory / name)
                item = Item(changed, info.store_path, info.nar_hash, info.nar_size)
            except NarswarmError as error:
                log.warning("%s: %s", name, error)
            seen = self._parsed[name] = (changed, item)
        return seen[1]


def _nar_name(store_path: str, narinfo_name: str, names: Container[str]) -> str | None:
    item = storepath.parse(store_path)
    stems = (item.base_name, item.hash_part, narinfo_name.removesuffix(_NARINFO))
    return next((f"{stem}{_NAR}" for stem in stems if f"{stem}{_NAR}" in names), None)


def _parse(path: Path) -> narinfo.Narinfo:
    try:
        with path.open("rb") as file:
            raw = file.read(narinfo.MAX_BYTES + 1)
    except OSError as error:
        raise NotFoundError(path, error.strerror or str(error)) from None
    if len(raw) > narinfo.MAX_BYTES:
        raise InvalidInputError(path, f"is longer than {narinfo.MAX_BYTES} bytes")
    return narinfo.parse(raw)


def _read(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_READ):
                yield chunk
    except OSError as error:
        raise NotFoundError(path, error.strerror or str(error)) from None
