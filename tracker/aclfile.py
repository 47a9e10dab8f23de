# SPDX-License-Identifier: GPL-3.0-or-later
"""The access control list that a running tracker goes by, read again when the file changes."""

from __future__ import annotations

import logging
from pathlib import Path

from narswarm import sexp
from narswarm.acl import Acl
from narswarm.errors import NarswarmError
from tracker.index import Index

_log = logging.getLogger(__name__)


class AclFile:
    """Keeps an index in step with an ACL file.

    A file that vanishes or breaks while the tracker runs changes nothing: the list read last
    stays, since a key that is revoked is taken out of a list, not a list taken away.

    Args:
        path: the file.
        index: what is vouched for by the keys of the list.
    """

    def __init__(self, path: Path, index: Index) -> None:
        self._path = path
        self._index = index
        self._seen: tuple[int, int, int] | None = None
        self._complaint = ""
        self.acl: Acl | None = None
        """The list, or nothing as long as there never was one."""

    def refresh(self) -> Acl | None:
        """Read the file if it changed, apply it to the index, and return the list."""
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen != self._seen:
                acl = Acl.load(self._path)
                self._index.authorize(lambda key: acl.authorizes(sexp.parse(key, "public key")))
                self.acl, self._seen, self._complaint = acl, seen, ""
        except (OSError, NarswarmError) as error:
            self._complain(
                f"{self._path}: {error.strerror}" if isinstance(error, OSError) else str(error)
            )
        return self.acl

    def _complain(self, complaint: str) -> None:
        """Say what is wrong with the file, once for each thing."""
        if complaint != self._complaint:
            consequence = (
                "publications are refused" if self.acl is None else "the list read last stays"
            )
            _log.warning("%s; %s", complaint, consequence)
            self._complaint = complaint
