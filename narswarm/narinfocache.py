# SPDX-License-Identifier: GPL-3.0-or-later
"""Narinfos kept on disk, as Guix keeps its own.

guix-daemon starts a new process for each session and asks for the same items again and again.
What is kept is what servers sent, not what was found to be true: signatures are checked at each
use. So a damaged or forged file costs one more request, and an old one stays as good as its
signature: it is given back as not fresh, for times when no server can be reached.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from narswarm import narinfo, storepath
from narswarm.httpmessage import Validator

KEEP: Final = 30 * 86400
"""Seconds that an entry stays after its time, for when its server can't be reached."""

PRUNE_INTERVAL: Final = 86400
"""Seconds from one clean-up to the next."""

MAX_ENTRIES: Final = 200_000
"""Entries over all servers that a clean-up leaves: about 200 MB, the closure of many systems."""

_HEADER = re.compile(
    rb"narswarm-narinfo 1 (hit|miss) ([0-9]{1,12}) ([0-9]{1,9})(?:\t([ -~]*)\t([ -~]*))?\n"
)
_LONGEST_HEADER = 384
_STAMP = ".pruned"


class Cached(NamedTuple):
    """What a server said of an item."""

    raw: bytes | None
    """The narinfo, None where the server had none."""
    fresh: bool
    """Whether the server needn't be asked again yet."""
    validator: Validator = Validator()
    """What the server called this version."""


class NarinfoCache:
    """A directory of narinfos; any number of processes may share it.

    Nothing here raises: without a directory that can be written there is just no cache.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, server: str, hash_part: str, now: float) -> Cached | None:
        """Give what is kept, None if there is nothing that can be used.

        Args:
            server: URL of the substitute server.
            hash_part: the 32 digits of the item.
            now: seconds since 1970.
        """
        try:
            with self._file(server, hash_part).open("rb") as file:
                content = file.read(_LONGEST_HEADER + narinfo.MAX_BYTES + 1)
        except OSError:
            return None
        header = _HEADER.match(content[:_LONGEST_HEADER])
        if header is None:
            return None
        raw = content[header.end() :]
        if len(raw) > narinfo.MAX_BYTES or bool(raw) != (header[1] == b"hit"):
            return None
        # A date in the future is one of a clock that was wrong.
        fresh = 0 <= now - int(header[2]) < int(header[3])
        if not (fresh or raw):
            return None
        fields = {"etag": header[4] or b"", "last-modified": header[5] or b""}
        validator = Validator.of({name: value.decode() for name, value in fields.items()})
        return Cached(raw or None, fresh, validator)

    def put(
        self,
        server: str,
        hash_part: str,
        raw: bytes | None,
        now: float,
        ttl: float,
        validator: Validator = Validator(),  # noqa: B008 - it is immutable
    ) -> None:
        """Keep what a server said.

        Args:
            server: URL of the substitute server.
            hash_part: the 32 digits of the item.
            raw: the narinfo, None where the server has none.
            now: seconds since 1970.
            ttl: seconds for which the server needn't be asked again.
            validator: what the server called this version.
        """
        file = self._file(server, hash_part)
        date, life = int(now), int(ttl)
        version = f"\t{validator.etag}\t{validator.modified}" if raw and any(validator) else ""
        kind = "hit" if raw else "miss"
        header = f"narswarm-narinfo 1 {kind} {date} {life}{version}\n".encode()
        temporary = file.with_name(f".{hash_part}.{os.getpid()}.{threading.get_ident()}")
        with suppress(OSError):
            file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            try:
                temporary.write_bytes(header + (raw or b""))
                # The clean-up sees by this, without opening the file, when it expires.
                os.utime(temporary, (now, date + life))
                temporary.replace(file)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def hash_parts(self) -> set[str]:
        """Of which items anything is kept, of any server."""
        return {entry.name for entry in self._entries() if storepath.is_hash_part(entry.name)}

    def prune_if_due(self, now: float) -> None:
        """Clean up in the background, once a day over all processes."""
        stamp = self._directory / _STAMP
        with suppress(OSError):
            try:
                if 0 <= now - stamp.stat().st_mtime < PRUNE_INTERVAL:
                    return
            except FileNotFoundError:
                if not self._directory.is_dir():
                    return
            stamp.touch()
            os.utime(stamp, (now, now))
            threading.Thread(target=self.prune, args=(now,), daemon=True).start()

    def prune(self, now: float, most: int = MAX_ENTRIES) -> None:
        """Remove what is of no use any more, and the oldest of what is too much.

        Args:
            now: seconds since 1970.
            most: number of entries to leave.
        """
        kept: list[tuple[float, str]] = []
        for entry in self._entries():
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                # Temporary files of processes that were killed have no life of their own.
                keep = KEEP if storepath.is_hash_part(entry.name) else 0
                if status.st_mtime + keep < now:
                    Path(entry.path).unlink()
                elif keep:
                    kept.append((status.st_mtime, entry.path))
        kept.sort()
        for _, path in kept[: max(0, len(kept) - most)]:
            with suppress(OSError):
                Path(path).unlink()

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        with suppress(OSError), os.scandir(self._directory) as servers:
            for server in servers:
                with suppress(OSError), os.scandir(server.path) as entries:
                    yield from entries

    def _file(self, server: str, hash_part: str) -> Path:
        digest = hashlib.sha256(server.rstrip("/").encode()).hexdigest()
        return self._directory / digest[:32] / hash_part
