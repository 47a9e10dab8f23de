# SPDX-License-Identifier: GPL-3.0-or-later
"""The NAR format, and how a store item is written as one.

A NAR is the canonical archive of a store item: equal trees give equal bytes, whatever machine they
are on, which is what lets strangers serve them under a signed hash.  `str(x)` is an 8-byte
little-endian length, the bytes, and zero padding to 8.  An archive is `str("nix-archive-1")` and a
node; a node is `str("(") str("type")` and one of

* `str("regular") [str("executable") str("")] str("contents") str(bytes)`
* `str("symlink") str("target") str(target)`
* `str("directory") { str("entry") str("(") str("name") str(name) str("node") node str(")") }*`

and `str(")")`, with names in strictly ascending byte order (Guix: guix/serialization.scm,
`write-file` and `restore-file`).  Reading is `narswarm.narparser`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Final, NamedTuple

from narswarm.errors import InvalidInputError, NotFoundError

CHUNK: Final = 256 * 1024
"""Bytes that `dump` gives at a time, about."""

MAX_NAME: Final = 255
"""NAME_MAX of Linux: longer names can't be in a store, nor be restored to one."""

MAX_TARGET: Final = 4095
"""PATH_MAX of Linux without the NUL: the longest target that a symbolic link can have."""

MAX_DEPTH: Final = 4096
"""Directories inside each other.  A bound on memory and descriptors, far above any real item."""

MAX_PATH: Final = 3072
"""Relative paths grow to this many bytes before a descriptor of the directory takes over.

Together with one more name this stays below PATH_MAX, so depth isn't bounded by it.
"""

PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class NarError(InvalidInputError):
    """Bytes that aren't a NAR, or a file that a NAR can't hold."""


def text(value: bytes) -> bytes:
    """Return `value` as a string of the format: length, bytes, padding."""
    return len(value).to_bytes(8, "little") + value + bytes(-len(value) % 8)


MAGIC: Final = text(b"nix-archive-1")
_TYPE: Final = text(b"(") + text(b"type")
REGULAR: Final = _TYPE + text(b"regular")
EXECUTABLE: Final = text(b"executable") + text(b"")
CONTENTS: Final = text(b"contents")
SYMLINK: Final = _TYPE + text(b"symlink") + text(b"target")
DIRECTORY: Final = _TYPE + text(b"directory")
ENTRY: Final = text(b"entry") + text(b"(") + text(b"name")
NODE: Final = text(b"node")
CLOSE: Final = text(b")")

FILE_END: Final = tuple(bytes(-size % 8) + CLOSE for size in range(8))
"""What follows the contents of a file, by its size modulo 8."""

_FILE_START: Final = (REGULAR + CONTENTS, REGULAR + EXECUTABLE + CONTENTS)


def file_start(size: int, *, executable: bool) -> bytes:
    """Return the node of a regular file of `size` bytes up to its contents."""
    return _FILE_START[executable] + size.to_bytes(8, "little")


def whole_path(prefix: bytes, path: bytes) -> bytes:
    """Return `path` as if it hadn't begun at a descriptor, which is that of `prefix` if not empty.

    A prefix ends in a slash, and a path that has one is `.` or begins with `./`.
    """
    if prefix:
        return prefix + (b"" if path == b"." else path.removeprefix(b"./"))
    return path


def shown_path(prefix: bytes, path: bytes) -> str:
    """Return the whole path for people; more than 1,000 bytes lose their middle."""
    whole = whole_path(prefix, path)
    if len(whole) > 1000:
        whole = whole[:500] + b"[...]" + whole[-500:]
    return os.fsdecode(whole)


def dump(path: PathLike, chunk_size: int = CHUNK) -> Iterator[bytes]:
    """Give the NAR of a file, directory or symbolic link in chunks, in constant memory.

    Small files are gathered to chunks of about `chunk_size` bytes; large ones are read in pieces of
    that size.  A file is executable if its owner may execute it, as in Guix.  Links are never
    followed.

    Args:
        path: what to archive; names in it are bytes in whatever encoding.
        chunk_size: bytes, at least 1.

    Yields:
        Chunks that together are the NAR.

    Raises:
        NarError: a device, socket or FIFO; a file that changes its size while it is read; too deep.
        NotFoundError: something doesn't exist or can't be read.
    """
    pending: list[bytes] = []
    size = 0
    with closing(_walk(os.fsencode(path))) as nodes:
        for node in nodes:
            if isinstance(node, bytes):
                pending.append(node)
                size += len(node)
            else:
                with closing(_read(node, chunk_size)) as pieces:
                    for piece in pieces:
                        pending.append(piece)
                        size += len(piece)
                        if size >= chunk_size:
                            yield b"".join(pending)
                            pending.clear()
                            size = 0
            if size >= chunk_size:
                yield b"".join(pending)
                pending.clear()
                size = 0
    if pending:
        yield b"".join(pending)


def dump_size(path: PathLike) -> int:
    """Return how many bytes the NAR of `path` has, without reading any file.

    Raises:
        NarError: as `dump` does.
        NotFoundError: something doesn't exist or can't be read.
    """
    size = 0
    with closing(_walk(os.fsencode(path))) as nodes:
        for node in nodes:
            if isinstance(node, bytes):
                size += len(node)
                continue
            try:
                found = os.stat(node.path, dir_fd=node.anchor, follow_symlinks=False)
            except OSError as error:
                raise node.unreadable(error) from None
            length = found.st_size
            executable = bool(found.st_mode & stat.S_IXUSR)
            size += len(file_start(length, executable=executable)) + length
            size += len(FILE_END[length % 8])
    return size


class _File(NamedTuple):
    """A regular file that the walk came to: a path below a directory's descriptor, if any."""

    path: bytes
    anchor: int | None
    prefix: bytes

    def error(self, reason: str) -> NarError:
        return NarError(shown_path(self.prefix, self.path), reason)

    def unreadable(self, error: OSError) -> NotFoundError:
        return _unreadable(self.prefix, self.path, error)


class _Directory:
    """A directory that is being walked, with the entries that are left."""

    __slots__ = ("anchor", "entries", "own", "path", "prefix")

    def __init__(self, path: bytes, anchor: int | None, prefix: bytes) -> None:
        """List the directory `path`, relative to `anchor` if that isn't None."""
        self.path, self.anchor, self.prefix = path, anchor, prefix
        self.own = False
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, dir_fd=anchor)
        except OSError as error:
            raise _unreadable(prefix, path, error) from None
        try:
            with os.scandir(descriptor) as found:
                entries = [(os.fsencode(entry.name), _kind(entry)) for entry in found]
        except OSError as error:
            os.close(descriptor)
            raise _unreadable(prefix, path, error) from None
        entries.sort()
        self.entries = iter(entries)
        if len(path) > MAX_PATH:
            self.prefix, self.path = whole_path(prefix, path) + b"/", b"."
            self.anchor, self.own = descriptor, True
        else:
            os.close(descriptor)

    def close(self) -> None:
        """Give the descriptor back, if this directory has one."""
        if self.own and self.anchor is not None:
            os.close(self.anchor)
            self.own = False


def _kind(entry: os.DirEntry[str]) -> int:
    """Return the file type bits of an entry, from the directory itself where it holds them."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink():
        return stat.S_IFLNK
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)


def _walk(root: bytes) -> Generator[bytes | _File, None, None]:
    """Give the structure as bytes and the regular files, each in its place.

    An own stack instead of recursion: depth is the item's, not the interpreter's.
    """
    try:
        kind = stat.S_IFMT(os.lstat(root).st_mode)
    except OSError as error:
        raise _unreadable(b"", root, error) from None
    yield MAGIC
    if kind != stat.S_IFDIR:
        yield _leaf(root, None, b"", kind)
        return
    stack = [_Directory(root, None, b"")]
    try:
        yield DIRECTORY
        while stack:
            directory = stack[-1]
            for name, kind in directory.entries:
                path = directory.path + b"/" + name
                if kind == stat.S_IFDIR:
                    if len(stack) >= MAX_DEPTH:
                        shown = shown_path(directory.prefix, path)
                        raise NarError(shown, f"is deeper than {MAX_DEPTH} levels")
                    stack.append(_Directory(path, directory.anchor, directory.prefix))
                    yield ENTRY + text(name) + NODE + DIRECTORY
                    break
                yield ENTRY + text(name) + NODE
                yield _leaf(path, directory.anchor, directory.prefix, kind)
                yield CLOSE
            else:
                stack.pop().close()
                yield CLOSE + CLOSE if stack else CLOSE
    finally:
        for directory in stack:
            directory.close()


def _leaf(path: bytes, anchor: int | None, prefix: bytes, kind: int) -> bytes | _File:
    """Return the node of what isn't a directory, or the file whose node is still to be read."""
    if kind == stat.S_IFREG:
        return _File(path, anchor, prefix)
    if kind == stat.S_IFLNK:
        try:
            target = os.readlink(path, dir_fd=anchor)
        except OSError as error:
            raise _unreadable(prefix, path, error) from None
        return SYMLINK + text(target) + CLOSE
    reason = f"is a {_KINDS.get(kind, 'special file')}, which no NAR can hold"
    raise NarError(shown_path(prefix, path), reason)


_KINDS: Final = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
}


def _read(file: _File, chunk_size: int) -> Generator[bytes, None, None]:
    """Give the node of a regular file; its header is a piece of its own."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(file.path, flags, dir_fd=file.anchor)
    except OSError as error:
        raise file.unreadable(error) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise file.error("became another kind of file while it was read")
        size = left = found.st_size
        yield file_start(size, executable=bool(found.st_mode & stat.S_IXUSR))
        probed = False
        while left > 0:
            # One byte more than there should be, so that growth shows without a further call.
            probed = left < chunk_size
            data = os.read(descriptor, left + 1 if probed else chunk_size)
            if not data:
                raise file.error("became shorter while it was read")
            left -= len(data)
            if left >= 0:
                yield data
        if left < 0 or (not probed and os.read(descriptor, 1)):
            raise file.error("became longer while it was read")
        yield FILE_END[size % 8]
    except OSError as error:
        raise file.unreadable(error) from None
    finally:
        os.close(descriptor)


def _unreadable(prefix: bytes, path: bytes, error: OSError) -> NotFoundError:
    return NotFoundError(shown_path(prefix, path), error.strerror or str(error))
