# SPDX-License-Identifier: GPL-3.0-or-later
"""What this machine could offer: items of the store, or NARs in a directory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from narswarm import nar, narinfo, storepath
from narswarm.errors import InvalidInputError, NarswarmError, NotFoundError
from narswarm.guixdb import GuixDb

log = logging.getLogger(__name__)

_READ = 1024 * 1024
_DERIVATION = ".drv"


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

    def open(self, item: Item) -> Iterator[bytes]:
        """See `Inventory`."""
        return nar.dump(self._store / storepath.parse(item.store_path).base_name)


class NarDirectory:
    """A directory of NARs with their narinfos.

    What has a name that ends in `.narinfo` is a narinfo; the NAR is beside it as
    `<base name of the store item>.nar`, `<hash part>.nar` or `<name of the narinfo>.nar`. The
    narinfo says what the NAR is, and `seeder.vouchers` whether it may say so.

    Args:
        directory: with both.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ignored: set[str] = set()

    def items(self, after: int = 0) -> Iterator[Item]:
        """See `Inventory`; the order is that in which the narinfos were written."""
        try:
            with os.scandir(self._directory) as entries:
                found = sorted(
                    (entry.stat().st_mtime_ns, entry.name)
                    for entry in entries
                    if entry.name.endswith(".narinfo")
                )
        except OSError as error:
            raise NotFoundError(self._directory, error.strerror or str(error)) from None
        for order, name in found:
            if order <= after:
                continue
            try:
                yield _described(order, _parse(self._directory / name))
            except NarswarmError as error:
                if name not in self._ignored:
                    self._ignored.add(name)
                    log.warning("%s: %s", name, error)

    def item(self, store_path: str) -> Item | None:
        """See `Inventory`."""
        return next((item for item in self.items() if item.store_path == store_path), None)

    def narinfo(self, store_path: str) -> narinfo.Narinfo | None:
        """The narinfo of an item, whoever signed it; None if there is none any more."""
        part = storepath.parse(store_path).hash_part
        for path in (self._directory / f"{part}.narinfo", *self._directory.glob("*.narinfo")):
            try:
                parsed = _parse(path)
            except NarswarmError:
                continue
            if parsed.store_path == store_path:
                return parsed
        return None

    def open(self, item: Item) -> Iterator[bytes]:
        """See `Inventory`."""
        name = storepath.parse(item.store_path)
        for stem in (name.base_name, name.hash_part, *self._stems(item.store_path)):
            path = self._directory / f"{stem}.nar"
            if path.is_file():
                return _read(path)
        raise NotFoundError(item.store_path, f"has no {name.base_name}.nar in {self._directory}")

    def _stems(self, store_path: str) -> Iterator[str]:
        for path in self._directory.glob("*.narinfo"):
            try:
                if _parse(path).store_path == store_path:
                    yield path.name.removesuffix(".narinfo")
            except NarswarmError:
                continue


def _parse(path: Path) -> narinfo.Narinfo:
    try:
        with path.open("rb") as file:
            raw = file.read(narinfo.MAX_BYTES + 1)
    except OSError as error:
        raise NotFoundError(path, error.strerror or str(error)) from None
    if len(raw) > narinfo.MAX_BYTES:
        raise InvalidInputError(path, f"is longer than {narinfo.MAX_BYTES} bytes")
    return narinfo.parse(raw)


def _described(order: int, info: narinfo.Narinfo) -> Item:
    return Item(order, info.store_path, info.nar_hash, info.nar_size)


def _read(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_READ):
                yield chunk
    except OSError as error:
        raise NotFoundError(path, error.strerror or str(error)) from None
