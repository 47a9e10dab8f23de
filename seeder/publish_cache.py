# SPDX-License-Identifier: GPL-3.0-or-later
"""The cache of `guix publish --cache=DIR`: files that are baked already.

For an item it has `DIR/<compression>/<base name>.nar`, which is what goes over the wire, and beside
it `<base name>.narinfo` (Guix: guix/scripts/publish.scm). `guix publish` removes both when nobody
asked for the item for long, so whatever is here may be gone at the next look.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from narswarm import narinfo, storepath
from narswarm.errors import InvalidInputError, NotFoundError
from narswarm.narinfo import Narinfo

COMPRESSIONS: Final = ("zstd", "lzip", "gzip", "none")
"""Subdirectories; of an item that is in several the first one is taken."""

_NAR: Final = ".nar"
_NARINFO: Final = ".narinfo"


class Baked(NamedTuple):
    """An item of the cache.

    Attributes:
        base_name: of the store item.
        path: its file, absolute.
    """

    base_name: str
    path: Path

    def narinfo(self) -> Narinfo:
        """Its narinfo, whoever signed it; without URLs, since the cache doesn't know its server.

        Raises:
            NotFoundError: it is gone.
            InvalidInputError: it isn't one, or is that of another item.
        """
        path = self.path.with_name(f"{self.base_name}{_NARINFO}")
        try:
            with open_file(path) as file:
                raw = file.read(narinfo.MAX_BYTES + 1)
        except OSError as error:
            raise NotFoundError(path, error.strerror or str(error)) from None
        info = narinfo.parse(narinfo.with_sources(raw, []))
        if storepath.parse(info.store_path).base_name != self.base_name:
            raise InvalidInputError(path, f"is that of {info.store_path}")
        return info


def baked(directory: Path) -> Iterator[Baked]:
    """The items of a cache that have both their files, each once.

    Raises:
        NotFoundError: there is no such directory, or it can't be read.
    """
    seen: set[str] = set()
    try:
        real = directory.resolve(strict=True)
        there = {entry.name for entry in os.scandir(real) if entry.is_dir(follow_symlinks=False)}
    except OSError as error:
        raise NotFoundError(directory, error.strerror or str(error)) from None
    for compression in COMPRESSIONS:
        if compression in there:
            yield from _of(real / compression, seen)


def _of(directory: Path, seen: set[str]) -> Iterator[Baked]:
    try:
        with os.scandir(directory) as entries:
            names = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except OSError as error:
        raise NotFoundError(directory, error.strerror or str(error)) from None
    for name in sorted(names):
        base_name = name.removesuffix(_NAR)
        if base_name == name or base_name in seen or f"{base_name}{_NARINFO}" not in names:
            continue
        try:
            storepath.parse(base_name)
        except InvalidInputError:
            continue
        seen.add(base_name)
        yield Baked(base_name, directory / name)


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading, and nothing that a link leads to.

    Raises:
        OSError: it can't be opened, or is none.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return open(descriptor, "rb")


def stamp(path: Path) -> str:
    """What tells a file from another one in its place; empty if there is no regular file.

    It is also what is looked at every time that many files are, so nothing is opened.
    """
    try:
        found = path.lstat()
    except OSError:
        return ""
    if not stat.S_ISREG(found.st_mode):
        return ""
    # Neither device nor inode: some file systems number them anew when they are mounted.
    return f"{found.st_size} {found.st_mtime_ns}"
