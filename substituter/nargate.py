# SPDX-License-Identifier: GPL-3.0-or-later
"""The NAR gate: bytes become a store item only if they are what the narinfo promised.

guix-daemon believes a helper's `success` blindly, so this is where trust is decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from narswarm import base32
from narswarm.errors import MismatchError
from narswarm.narinfo import Narinfo
from narswarm.restore import Deduplicator, delete, restore


class WrongNarError(MismatchError):
    """A source delivered a NAR other than the one that was signed.

    Attributes:
        actual: the SHA-256 of what came.
    """

    def __init__(self, narinfo: Narinfo, actual: bytes) -> None:
        super().__init__(
            narinfo.store_path,
            f"expected {base32.format_hash(narinfo.nar_hash)}, got {base32.format_hash(actual)}",
        )
        self.actual = actual


class Gate:
    """Restores the NAR of one item to its destination.

    Args:
        narinfo: an authorised narinfo.
        destination: the path that guix-daemon gave; the store path or that with `.tmp`.
        deduplicator: shares files through `.links`, or None.
    """

    def __init__(
        self, narinfo: Narinfo, destination: str, deduplicator: Deduplicator | None
    ) -> None:
        self.narinfo = narinfo
        self.destination = destination
        self._deduplicator = deduplicator

    def restore(self, nar: Iterable[bytes]) -> None:
        """Put the item in place, or leave nothing there.

        Raises:
            WrongNarError: a well-formed NAR with another hash or size.
            InvalidInputError: what came is no NAR.
            NarswarmError: what the source or the file system says.
        """
        self.clear()
        try:
            digest = restore(
                nar, self.destination, dedup=self._deduplicator, limit=self.narinfo.nar_size
            )
            if digest != (self.narinfo.nar_hash, self.narinfo.nar_size):
                raise WrongNarError(self.narinfo, digest.sha256)
        except BaseException:
            self.clear()
            raise

    def clear(self) -> None:
        """Remove what an earlier try has left."""
        delete(self.destination)


def exactly(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The first `size` bytes.

    `guix publish` sends plain NARs without a length and may keep the connection open.
    """
    left = size
    for chunk in chunks:
        yield chunk[:left]
        left -= len(chunk)
        if left <= 0:
            return
