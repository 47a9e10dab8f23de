# SPDX-License-Identifier: GPL-3.0-or-later
"""Files whose names are known only when they are finished, and which appear together or not at all.

A payload is named after the hash of the NAR, which is known after its last byte.  So it grows
without a name in the directory where it is to be, and the torrent joins it at the end: whatever
ends the process before, nothing is left.  On file systems without O_TMPFILE it grows under a
temporary name.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from narswarm.errors import AlreadyExistsError, NarswarmError, NotFoundError

_PREFIX = ".mkmeta-"


class _New(NamedTuple):
    """A file that hasn't got its name yet.

    Attributes:
        file: open for writing.
        temporary: the name that it has meanwhile, None if it has none.
    """

    file: BinaryIO
    temporary: Path | None

    def link(self, path: Path) -> None:
        """Give it a name that nothing has.

        Raises:
            FileExistsError: something has it.
            NarswarmError: the file system refuses.
        """
        try:
            # Unlike a rename, a link never replaces what appeared in the meantime.
            if self.temporary is not None:
                os.link(self.temporary, path)
            else:
                # With a descriptor, which stands for nothing here, Python calls linkat(), which
                # can follow the link in /proc to the file.
                descriptor = self.file.fileno()
                os.link(_proc(descriptor), path, src_dir_fd=descriptor, follow_symlinks=True)
        except FileExistsError:
            raise
        except OSError as error:
            if self.temporary is None:
                raise NarswarmError(path, error.strerror or str(error)) from None
            # A file system without hard links.
            if os.path.lexists(path):
                raise FileExistsError from None
            self.temporary.rename(path)


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
        self._new: list[_New] = []

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
        temporary = None
        descriptor = _unnamed(self._directory)
        if descriptor is None:
            try:
                descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=self._directory)
            except OSError as error:
                raise NotFoundError(self._directory, error.strerror or str(error)) from None
            temporary = Path(name)
            self._stack.callback(temporary.unlink, missing_ok=True)
        file = self._stack.enter_context(os.fdopen(descriptor, "wb"))
        self._new.append(_New(file, temporary))
        return file

    def place(self, names: list[str]) -> list[Path]:
        """Give the files their names, in the order in which they were begun.

        Returns:
            Where they are.

        Raises:
            AlreadyExistsError: one of them is there already; none of ours is.
        """
        paths = [self._directory / name for name in names]
        for new in self._new:
            new.file.flush()
            os.fchmod(new.file.fileno(), 0o644)
            os.fsync(new.file.fileno())
        placed: list[Path] = []
        try:
            for path, new in zip(paths, self._new, strict=True):
                if self._force:
                    self._replace(new, path)
                else:
                    _place(new, path)
                    placed.append(path)
        except BaseException:
            for path in placed:
                path.unlink(missing_ok=True)
            raise
        _sync(self._directory)
        return paths

    def _replace(self, new: _New, path: Path) -> None:
        """Give a file its name, in one step from whatever has it."""
        temporary = new.temporary
        if temporary is None:
            # Only a name can be put in the place of another.
            temporary = self._directory / f"{_PREFIX}{secrets.token_hex(8)}"
            self._stack.callback(temporary.unlink, missing_ok=True)
            new.link(temporary)
        temporary.replace(path)


def _place(new: _New, path: Path) -> None:
    """Give a file its name unless something has it."""
    try:
        new.link(path)
    except FileExistsError:
        raise AlreadyExistsError(path, "exists already") from None


def _unnamed(directory: Path) -> int | None:
    """A new file of a directory that has no name; None if there can't be one, for any reason."""
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    if not os.path.lexists(_proc(descriptor)):
        os.close(descriptor)  # without /proc it would never get a name
        return None
    return descriptor


def _proc(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _sync(directory: Path) -> None:
    """Make the names of new files survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
