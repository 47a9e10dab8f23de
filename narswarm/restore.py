# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores a NAR as a store item: the gate that content passes on its way into the store.

What is written is canonical, as guix-daemon expects of a substituter (Guix: guix/serialization.scm
`restore-file-set`, nix/libstore/local-store.cc `canonicalisePathMetaData`): files 0444 or 0555,
directories 0555, every time stamp one second after the epoch, symbolic links included.  The SHA-256
is that of the bytes that were restored, made while restoring them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

from narswarm import base32
from narswarm.errors import AlreadyExistsError, NarswarmError
from narswarm.nar import FILE_END, MAGIC, MAX_PATH, PathLike, file_start, shown_path, whole_path
from narswarm.narparser import NarDigest, Sink, parse
from narswarm.worker import Job, Worker

__all__ = ["Deduplicator", "NarDigest", "RestoreError", "delete", "restore", "scan"]

DEDUPLICATE_FROM: Final = 8192
"""Bytes: smaller files aren't worth a link (Guix: guix/store/deduplication.scm)."""

_BESIDE: Final = 1 << 20
"""Bytes from which on a file is hashed in a thread beside the one that writes it."""

_CANONICAL_TIME: Final = (10**9, 10**9)
"""1970-01-01 00:00:01 in nanoseconds, as access and modification time."""

_DIRECTORY_MODE: Final = 0o555

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class RestoreError(NarswarmError):
    """The system refused to write a file: no space, no permission, no such directory."""


def restore(
    chunks: Iterable[bytes],
    destination: PathLike,
    *,
    dedup: Deduplicator | None = None,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> NarDigest:
    """Restore the NAR in `chunks` to `destination`.

    Whoever asked for it still has to compare the digest with the narinfo's, and to `delete` the
    destination when they differ.  When restoring fails or is interrupted, what was written is
    removed here.

    Args:
        chunks: the archive in pieces of any size.
        destination: a path that must not exist, in a directory that does.
        dedup: shares the files with equal ones of the same store.
        limit: bytes that the archive may have at most.
        progress: called with the number of bytes that have come, once a chunk.

    Returns:
        The SHA-256 and the size of the archive that was restored.

    Raises:
        NarError: the bytes aren't exactly one NAR, or more than `limit`.
        AlreadyExistsError: the destination exists; it is left alone.
        RestoreError: a file can't be written.
    """
    path = os.fsencode(destination)
    writer = _Writer(path, dedup)
    try:
        digest = parse(chunks, writer, subject=os.fsdecode(path), limit=limit, progress=progress)
        writer.finish()
        return digest
    except BaseException:
        writer.abort()
        if writer.begun:
            with contextlib.suppress(NarswarmError):
                delete(path)
        raise


def scan(chunks: Iterable[bytes], limit: int | None = None, *, subject: str = "NAR") -> NarDigest:
    """Check that `chunks` are exactly one NAR, writing nothing.

    Args:
        chunks: the archive in pieces of any size.
        limit: bytes that the archive may have at most.
        subject: what errors are about.

    Raises:
        NarError: as `restore` does.
    """
    return parse(chunks, Sink(), subject=subject, limit=limit)


class Deduplicator:
    """Shares files of a store by hard links, as Guix does (guix/store/deduplication.scm).

    `<store>/.links/<nix-base32 SHA-256 of the NAR of the file alone>` is a hard link to the file;
    the name covers the contents and whether the file is executable.  Sharing is only ever an
    economy, so what goes wrong with it (no space, too many links, no permission) is passed over.
    One instance may serve several threads.
    """

    def __init__(self, store: PathLike = "/gnu/store") -> None:
        """Share within `store`."""
        self._links = f"{os.fsdecode(store)}/.links"

    def share(self, path: bytes, anchor: int | None, found: os.stat_result, digest: bytes) -> None:
        """Make the file `path` (relative to `anchor`) one with its equal in the store.

        Args:
            path: a file in its canonical form, in a directory that may be written.
            anchor: a directory's descriptor, or None for the working directory.
            found: the status of the file.
            digest: the SHA-256 of the NAR of the file alone.
        """
        link = f"{self._links}/{base32.encode(digest)}"
        try:
            try:
                os.link(path, link, src_dir_fd=anchor, follow_symlinks=False)
            except FileNotFoundError:
                Path(self._links).mkdir(0o755)
                os.link(path, link, src_dir_fd=anchor, follow_symlinks=False)
        except FileExistsError:
            self._replace(path, anchor, found, link)
        except OSError:
            pass

    def _replace(self, path: bytes, anchor: int | None, found: os.stat_result, link: str) -> None:
        """Replace the file by a link to the one that the store has already."""
        temporary = f"{self._links}/.tmp-link-{os.getpid()}-{threading.get_ident()}"
        try:
            known = os.lstat(link)
            # A file that a crash cut short must not take the place of one that was just verified.
            if (known.st_mode, known.st_size) != (found.st_mode, found.st_size):
                return
            os.link(link, temporary, follow_symlinks=False)
            os.rename(temporary, path, dst_dir_fd=anchor)
        except OSError:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def delete(path: PathLike) -> None:
    """Remove a store item or a part of one, whatever it is; no item is fine, too.

    Directories are made writable first, as those of an item aren't.  Links are never followed, and
    files are never changed: other items may share them.

    Raises:
        RestoreError: something can't be removed.
    """
    root = os.fsencode(path)
    try:
        if not stat.S_ISDIR(os.lstat(root).st_mode):
            Path(os.fsdecode(root)).unlink()
            return
    except FileNotFoundError:
        return
    except OSError as error:
        raise RestoreError(os.fsdecode(root), _reason(error)) from None
    places = [_Doomed(root, None)]
    try:
        while places:
            place = places[-1]
            if place.inner:
                places.append(_Doomed(place.inner.pop(), place))
            else:
                places.pop().remove()
    finally:
        for place in places:
            place.close()


class _Place:
    """A directory of an item: a path below a descriptor, so that depth isn't bounded by PATH_MAX.

    Attributes:
        path: relative to `anchor`, or to the working directory if that is None.
        anchor: descriptor of the nearest directory above (or of this one) that has one.
        prefix: what goes before `path` to make it a path for people.
    """

    __slots__ = ("anchor", "own", "path", "prefix")

    def __init__(self, path: bytes, parent: _Place | None) -> None:
        """Be the directory `path`, which exists, inside `parent`."""
        self.path = path
        self.anchor: int | None = parent.anchor if parent else None
        self.prefix: bytes = parent.prefix if parent else b""
        self.own = False
        if len(path) > MAX_PATH:
            self.anchor = self.open()
            self.prefix = whole_path(self.prefix, path) + b"/"
            self.path, self.own = b".", True

    def open(self) -> int:
        """Return a new descriptor of the directory."""
        try:
            return os.open(self.path, _OPEN_DIRECTORY, dir_fd=self.anchor)
        except OSError as error:
            raise self.failure(self.path, error) from None

    def close(self) -> None:
        """Give the descriptor back, if this place has one."""
        if self.own and self.anchor is not None:
            os.close(self.anchor)
            self.own = False

    def failure(self, path: bytes, error: OSError) -> RestoreError:
        """Return the error for people about `path`, which is relative to the anchor."""
        return RestoreError(shown_path(self.prefix, path), _reason(error))


class _Doomed(_Place):
    """A directory that is being removed: the files are gone, the directories are still to go."""

    __slots__ = ("_outside", "inner")

    def __init__(self, path: bytes, parent: _Doomed | None) -> None:
        self._outside = (path, parent.anchor if parent else None)
        super().__init__(path, parent)
        self.inner: list[bytes] = []
        descriptor = self.open()
        try:
            os.fchmod(descriptor, 0o700)
            with os.scandir(descriptor) as entries:
                found = [(os.fsencode(e.name), e.is_dir(follow_symlinks=False)) for e in entries]
            for name, is_directory in found:
                if is_directory:
                    self.inner.append(self.path + b"/" + name)
                else:
                    os.unlink(name, dir_fd=descriptor)
        except OSError as error:
            self.close()
            raise self.failure(self.path, error) from None
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the directory, which is empty by now."""
        self.close()
        path, anchor = self._outside
        try:
            os.rmdir(path, dir_fd=anchor)
        except OSError as error:
            raise self.failure(self.path, error) from None


class _Writer(Sink):
    """Writes what the parser reads.

    Names have been checked to be plain entry names in strictly ascending order, so nothing is made
    twice, and no path leads through a symbolic link of the archive.

    Attributes:
        begun: the destination has been made.
    """

    def __init__(self, root: bytes, dedup: Deduplicator | None) -> None:
        self.begun = False
        self._root = root
        self._dedup = dedup
        self._places: list[_Place] = []
        self._path = root
        self._anchor: int | None = None
        self._file = -1
        self._mode = 0
        self._size = 0
        self._own: hashlib._Hash | None = None  # of the NAR of this file alone, for sharing
        self._worker = Worker("file hash")

    def directory(self, name: bytes) -> None:
        """Make a directory that can be written for now."""
        self._go(name)
        try:
            os.mkdir(self._path, 0o700, dir_fd=self._anchor)
        except OSError as error:
            raise self._failure(error) from None
        self.begun = True
        self._places.append(_Place(self._path, self._places[-1] if self._places else None))
        self._anchor = self._places[-1].anchor

    def leave(self) -> None:
        """Give a directory its mode and time, after its entries, which change both."""
        # Sharing changes a directory, and needs one that may be changed.
        self._worker.drain()
        place = self._places[-1]
        try:
            os.chmod(place.path, _DIRECTORY_MODE, dir_fd=place.anchor)
            os.utime(place.path, ns=_CANONICAL_TIME, dir_fd=place.anchor, follow_symlinks=False)
        except OSError as error:
            raise place.failure(place.path, error) from None
        self._up()

    def symlink(self, name: bytes, target: bytes) -> None:
        """Make a symbolic link."""
        self._go(name)
        try:
            os.symlink(target, self._path, dir_fd=self._anchor)
            self.begun = True
            os.utime(self._path, ns=_CANONICAL_TIME, dir_fd=self._anchor, follow_symlinks=False)
        except OSError as error:
            raise self._failure(error) from None

    def regular(self, name: bytes, size: int, *, executable: bool) -> None:
        """Make an empty file."""
        self._go(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._mode = 0o555 if executable else 0o444
        try:
            self._file = os.open(self._path, flags, self._mode, dir_fd=self._anchor)
        except OSError as error:
            raise self._failure(error) from None
        self.begun = True
        if self._dedup is not None and size >= DEDUPLICATE_FROM:
            self._size = size
            self._own = hashlib.sha256(MAGIC + file_start(size, executable=executable))

    def write(self, data: memoryview) -> None:
        """Write some of the contents."""
        try:
            written = os.write(self._file, data)
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError as error:
            raise self._failure(error) from None
        if self._own is not None:
            self._beside(partial(self._own.update, data), len(data))

    def close(self) -> None:
        """Give the file its mode and time, and share it."""
        own, self._own = self._own, None
        try:
            # The mode that it was made with has been subject to the umask.
            os.fchmod(self._file, self._mode)
            os.utime(self._file, ns=_CANONICAL_TIME)
            found = os.fstat(self._file) if own is not None else None
            file, self._file = self._file, -1
            os.close(file)
        except OSError as error:
            raise self._failure(error) from None
        if self._dedup is not None and own is not None and found is not None:
            share = partial(self._share, own, self._size, self._path, self._anchor, found)
            self._beside(share, 0)
            if not self._places:
                self._worker.drain()

    def _share(
        self,
        own: hashlib._Hash,
        size: int,
        path: bytes,
        anchor: int | None,
        found: os.stat_result,
    ) -> None:
        own.update(FILE_END[size % 8])
        if self._dedup is not None:
            self._dedup.share(path, anchor, found, own.digest())

    def _beside(self, job: Job, weight: int) -> None:
        """Do something for a large file in the other thread, for small ones here and now."""
        if self._size >= _BESIDE or not self._worker.idle:
            self._worker.put(job, weight)
        else:
            job()

    def finish(self) -> None:
        """End, after everything was written."""
        self._worker.drain()
        self._worker.close()

    def abort(self) -> None:
        """Give all descriptors back."""
        self._worker.close()
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1
        while self._places:
            self._up()

    def _up(self) -> None:
        self._places.pop().close()
        self._anchor = self._places[-1].anchor if self._places else None

    def _go(self, name: bytes) -> None:
        """Let the path be that of the entry `name` of the current directory."""
        self._path = self._places[-1].path + b"/" + name if self._places else self._root

    def _failure(self, error: OSError) -> NarswarmError:
        if self._places:
            return self._places[-1].failure(self._path, error)
        shown = os.fsdecode(self._root)
        if isinstance(error, FileExistsError) and not self.begun:
            return AlreadyExistsError(shown, "exists already")
        return RestoreError(shown, _reason(error))


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
