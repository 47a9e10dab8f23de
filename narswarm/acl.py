# SPDX-License-Identifier: GPL-3.0-or-later
"""Access control lists: whose signatures this machine believes.

The file is Guix's `/etc/guix/acl`, which `guix archive --authorize` writes (`guix/pki.scm`). It is
read whole or not at all: an entry that isn't understood may be one that was meant to restrict.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from narswarm import sexp
from narswarm.errors import InvalidInputError, NotFoundError
from narswarm.sexp import Sexp

GUIX_ACL: Final = Path("/etc/guix/acl")
"""The list of the daemon on this machine."""

_TAG: Final[Sexp] = [b"tag", [b"guix", b"import"]]


class Acl:
    """A set of public keys that may vouch for store items."""

    def __init__(self, public_keys: Iterable[Sexp] = ()) -> None:
        self._keys = frozenset(sexp.canonical(key) for key in public_keys)

    @classmethod
    def parse(cls, text: bytes, source: object = "access control list") -> Acl:
        """Read the text of an ACL.

        Raises:
            InvalidInputError: it is not an ACL, or has an entry which is not just a public key with
                the tag `(guix import)`. Guix refuses such a file, too.
        """
        tree = sexp.parse(text, source)
        if not isinstance(tree, list) or tree[:1] != [b"acl"]:
            raise InvalidInputError(source, "is not an access control list")
        keys = []
        for number, entry in enumerate(tree[1:], 1):
            match entry:
                case [b"entry", [b"public-key", *_] as key, tag] if tag == _TAG:
                    keys.append(key)
                case _:
                    raise InvalidInputError(
                        source, f"entry {number} is not a public key tagged (guix import)"
                    )
        return cls(keys)

    @classmethod
    def load(cls, path: Path = GUIX_ACL) -> Acl:
        """Read an ACL file.

        Raises:
            NotFoundError: it does not exist or can't be read.
            InvalidInputError: see `parse`.
        """
        try:
            with path.open("rb") as file:
                text = file.read(sexp.MAX_BYTES + 1)
        except OSError as error:
            reason = error.strerror or "can't be read"
            raise NotFoundError(path, f"{reason[0].lower()}{reason[1:]}") from error
        return cls.parse(text, path)

    def authorizes(self, public_key: Sexp) -> bool:
        """Whether a `(public-key …)` expression is structurally equal to one of the list."""
        return sexp.canonical(public_key) in self._keys

    def __len__(self) -> int:
        """Number of distinct keys."""
        return len(self._keys)

    def __bool__(self) -> bool:
        """Whether anybody is authorised at all."""
        return bool(self._keys)


def render(public_keys: Iterable[Sexp]) -> bytes:
    """Write an ACL in Guix's exact layout; a key that comes again is left out.

    Args:
        public_keys: the keys in order, each parsed or as the text of a `signing-key.pub`.

    Raises:
        InvalidInputError: a text is not a public key.
    """
    entries: dict[bytes, Sexp] = {}
    for public_key in public_keys:
        key = sexp.parse(public_key, "public key") if isinstance(public_key, bytes) else public_key
        if not isinstance(key, list) or key[:1] != [b"public-key"]:
            raise InvalidInputError("public key", "is not a public-key expression")
        entries.setdefault(sexp.canonical(key), [b"entry", key, _TAG])
    return sexp.advanced([b"acl", *entries.values()])
