# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int = 0o644, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when the block ends well.

    Args:
        path: where it appears; the temporary file is in the same directory.
        mode: permissions of the new file.
        durable: whether it is to survive a power failure (costs an fsync of file and directory).

    Raises:
        OSError: as the file system says; nothing is left behind.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 -- mkstemp gives a text
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    if durable:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = False) -> None:
    """Write a whole file as `atomic_file` does."""
    with atomic_file(path, mode=mode, durable=durable) as file:
        file.write(data)
