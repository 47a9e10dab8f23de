# SPDX-License-Identifier: GPL-3.0-or-later
"""The ACL, followed while it changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from narswarm.acl import Acl
from narswarm.errors import NotFoundError


class AclFile:
    """The ACL, and whether its file was changed.

    Args:
        path: of the file.

    Raises:
        NotFoundError: it can't be read.
        InvalidInputError: it isn't an ACL.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stat = self._look()
        text = self._read()
        self.acl = Acl.parse(text, path)
        self.fingerprint = hashlib.sha256(text).hexdigest()

    def changed(self) -> bool:
        """Read it again if it was changed; whether it says something else now.

        Raises:
            NotFoundError: it can't be read; what it said last still holds.
            InvalidInputError: it isn't an ACL; the same.
        """
        found = self._look()
        if found == self._stat:
            return False
        text = self._read()
        fingerprint = hashlib.sha256(text).hexdigest()
        if fingerprint != self.fingerprint:
            self.acl = Acl.parse(text, self._path)
        differs, self.fingerprint = fingerprint != self.fingerprint, fingerprint
        self._stat = found
        return differs

    def _look(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise NotFoundError(self._path, error.strerror or str(error)) from None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise NotFoundError(self._path, error.strerror or str(error)) from None
