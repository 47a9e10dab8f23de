# SPDX-License-Identifier: GPL-3.0-or-later
"""What an argument of mkmeta stands for: a stream of NAR bytes, wherever they come from."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, Final, NamedTuple

from narswarm import nar, storepath
from narswarm.errors import InvalidInputError, MismatchError, NotFoundError
from narswarm.restore import NarDigest, scan

STDIN: Final = "-"
_READ: Final = 1024 * 1024


class NarInput(NamedTuple):
    """A NAR that can be read once.

    Attributes:
        label: what messages call it.
        chunks: its bytes; an error if they turn out not to be a NAR, or not `size` of them.
        size: bytes, None if that shows only at the end.
        store_path: the store item that it is of, if it was named as one.
    """

    label: str
    chunks: Iterator[bytes]
    size: int | None
    store_path: str | None


@contextmanager
def open_nar(path: str) -> Iterator[NarInput]:
    """Open the NAR that an argument stands for.

    Args:
        path: `-` for a NAR on standard input; a regular file whose name ends in `.nar`, which is
            taken as a NAR; anything else, of which the NAR is made: a store item, whatever its
            name, or any other file, directory or symbolic link, which isn't followed.

    Raises:
        NotFoundError: there is no such file, or it can't be read.
        InvalidInputError: it is of a kind that no NAR can hold.
    """
    if path == STDIN:
        # A file that is standard input has a size, which saves work; a pipe has none.
        with _written_nar("standard input", _standard_input()) as given:
            yield given
        return
    store_path = store_item(path)
    if store_path is None and is_nar_file(path):
        with open_file(path) as file, _written_nar(path, file.fileno()) as given:
            yield given
        return
    size = nar.dump_size(path)
    with closing(_sized(nar.dump(path, _READ), size, path)) as chunks:
        yield NarInput(path, chunks, size, store_path)


def is_nar_file(path: str) -> bool:
    """Return whether this is a regular file that is taken as a NAR, by its name."""
    try:
        return path.endswith(".nar") and stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def store_item(path: str) -> str | None:
    """Return the path of the store item that is named, None if it isn't one."""
    full = Path(path).absolute()
    if str(full.parent) != storepath.STORE:
        return None
    try:
        return storepath.parse(str(full)).path
    except InvalidInputError:
        return None


@contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
    """Open a file to read, or say why that isn't possible.

    Raises:
        NotFoundError: there is no such file, or it can't be read.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb", buffering=0))
        except OSError as error:
            raise NotFoundError(path, error.strerror or str(error)) from None
        yield file


@contextmanager
def _written_nar(label: str, descriptor: int) -> Iterator[NarInput]:
    """Check what strangers may have written: that it is a NAR, and doesn't change."""
    size = _rest(descriptor)
    blocks = _blocks(descriptor, label)
    with closing(_checked(blocks if size is None else _sized(blocks, size, label), label)) as it:
        yield NarInput(label, it, size, None)


def _standard_input() -> int:
    """Return the descriptor of standard input, which a caller may have closed."""
    if sys.stdin is None:
        raise NotFoundError("standard input", "is closed")
    return sys.stdin.fileno()


def _blocks(descriptor: int, label: str) -> Iterator[bytes]:
    """Give what a file holds, as it comes: a buffer that waits to be full is deaf to signals."""
    try:
        while block := os.read(descriptor, _READ):
            yield block
    except OSError as error:
        raise NotFoundError(label, error.strerror or str(error)) from None


def _rest(descriptor: int) -> int | None:
    """Return how many bytes a regular file still has to give, None for a pipe."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        return None
    return max(0, found.st_size - os.lseek(descriptor, 0, os.SEEK_CUR))


def _sized(chunks: Iterator[bytes], size: int, label: str) -> Generator[bytes]:
    """Give the chunks, and an error as soon as they can't be `size` bytes together."""
    given = 0
    for chunk in chunks:
        given += len(chunk)
        if given > size:
            break
        yield chunk
    if given != size:
        raise MismatchError(label, "changed while it was read")


def _checked(chunks: Iterator[bytes], label: str) -> Generator[bytes]:
    """Give the chunks of a NAR while a thread checks their structure.

    Raises:
        NarError: they aren't exactly one NAR; at the latest after the last of them.
    """
    handed: SimpleQueue[bytes | None] = SimpleQueue()
    taken = threading.Semaphore(8)  # chunks that may wait to be checked
    over = threading.Event()

    def hand_over() -> Iterator[bytes]:
        while (chunk := handed.get()) is not None:
            taken.release()
            yield chunk

    def check() -> NarDigest:
        try:
            return scan(hand_over(), subject=label)
        finally:
            over.set()
            taken.release()

    with ThreadPoolExecutor(1, "mkmeta-check") as pool:
        result: Future[NarDigest] = pool.submit(check)
        try:
            for chunk in chunks:
                taken.acquire()
                if over.is_set():
                    break
                handed.put(chunk)
                yield chunk
        finally:
            handed.put(None)
        result.result()
