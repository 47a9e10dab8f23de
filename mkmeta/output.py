# SPDX-License-Identifier: GPL-3.0-or-later
"""Files whose names are known only when they are finished, and which appear together or not at all.

A payload is named after the hash of the NAR, which is known after its last byte.  So it grows under
a temporary name in the directory where it is to be, and the torrent joins it at the end.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from narswarm.errors import AlreadyExistsError, NarswarmError, NotFoundError


class Output:
    """New files of one directory; used as a context manager, which removes what isn't placed.

    Args:
        directory: where they are to be.
        force: whether files that are there already may be replaced.
    """

    def __init__(self, directory: Path, *, force: bool) -> None:
        self._directory = directory
        self._force = force
        self._stack = ExitStack()
        self._temporary: list[tuple[BinaryIO, Path]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        if isinstance(error, OSError) and error.filename is None:
            # Writing to a descriptor, the system doesn't say where the disk is full.
            raise NarswarmError(self._directory, error.strerror or str(error)) from None

    def new(self) -> BinaryIO:
        """Begin a file.

        Raises:
            NotFoundError: the directory isn't there, or nothing may be written to it.
        """
        try:
            descriptor, name = tempfile.mkstemp(prefix=".mkmeta-", dir=self._directory)
        except OSError as error:
            raise NotFoundError(self._directory, error.strerror or str(error)) from None
        path = Path(name)
        self._stack.callback(path.unlink, missing_ok=True)
        file = self._stack.enter_context(os.fdopen(descriptor, "wb"))
        self._temporary.append((file, path))
        return file

    def place(self, names: list[str]) -> list[Path]:
        """Give the files their names, in the order in which they were begun.

        Returns:
            Where they are.

        Raises:
            AlreadyExistsError: one of them is there already; none of ours is.
        """
        paths = [self._directory / name for name in names]
        for file, _ in self._temporary:
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
            file.close()
        placed: list[Path] = []
        try:
            for path, (_, temporary) in zip(paths, self._temporary, strict=True):
                if self._force:
                    temporary.replace(path)
                else:
                    self._link(temporary, path)
                    placed.append(path)
        except BaseException:
            for path in placed:
                path.unlink(missing_ok=True)
            raise
        _sync(self._directory)
        return paths

    def _link(self, temporary: Path, path: Path) -> None:
        """Give a file its name unless something has it."""
        try:
            # Unlike a rename, a link never replaces what appeared in the meantime.
            path.hardlink_to(temporary)
        except FileExistsError:
            raise AlreadyExistsError(path, "exists already") from None
        except OSError:
            # A file system without hard links.
            if os.path.lexists(path):
                raise AlreadyExistsError(path, "exists already") from None
            temporary.rename(path)


def _sync(directory: Path) -> None:
    """Make the names of new files survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
