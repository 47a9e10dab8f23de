# SPDX-License-Identifier: GPL-3.0-or-later
"""Narinfos: what binds a store path to the hash and size of its NAR, under a signature.

This is the first of the two gates that everything passes (the second is the hash of the NAR
itself), so the rules are those of `guix/narinfo.scm` and `guix/pki.scm`: what is signed is every
byte before the first `Signature:`, wherever that stands. StorePath, NarHash, NarSize, References
and Deriver are only ever taken from there. URL, Compression and FileSize are not under the
signature: anybody may rewrite them, and they are hints about where to fetch.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from narswarm import base32, gcrypt, sexp, storepath
from narswarm.errors import InvalidInputError

if TYPE_CHECKING:
    from narswarm.acl import Acl
    from narswarm.gcrypt import KeyPair

MAX_BYTES: Final = 1 << 20
"""Longest narinfo: that of an item with some 15,000 references."""

MAX_REFERENCES: Final = 20_000
MAX_SOURCES: Final = 32
MAX_URL: Final = 4096
MAX_NAR_SIZE: Final = (1 << 63) - 1

_SIGNATURE = b"Signature:"
_MANDATORY = ("StorePath", "NarHash", "References")
_FIELD_START = re.compile(r"[^\W\d_]|%")
_NUMBER = re.compile(r"[0-9]{1,19}")
_ABSOLUTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_URL = re.compile(r"[!-~]+")
_HOST = re.compile(r"[!-:<-~]*")


class Verdict(StrEnum):
    """What a signature is worth, in Guix's words and in the order in which it looks."""

    UNSIGNED = "unsigned"
    """No signature that can be read, or a mandatory field that is not above it."""
    CORRUPT_SIGNATURE = "corrupt-signature"
    """The signature names no data or no key."""
    UNAUTHORIZED_KEY = "unauthorized-key"
    """The key is not in the access control list."""
    HASH_MISMATCH = "hash-mismatch"
    """The signature is one of other bytes."""
    INVALID_SIGNATURE = "invalid-signature"
    """The arithmetic says no."""
    VALID_SIGNATURE = "valid-signature"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a server has the NAR, a hint that nobody signed."""

    url: str
    """Absolute, or relative to the server where no base URL was given."""
    compression: str
    """`none`, `gzip`, `zstd`, `lzip` or another word."""
    file_size: int | None = None
    """Bytes to transfer, if the server says."""


@dataclass(frozen=True, slots=True)
class Narinfo:
    """A narinfo whose fields are well-formed; `verdict` says whether they are true."""

    store_path: str
    """Absolute path of the store item."""
    nar_hash: bytes
    """SHA-256 of the uncompressed NAR, 32 bytes."""
    nar_size: int
    """Its length in bytes."""
    references: tuple[str, ...]
    """Base names of the items it refers to, maybe itself among them."""
    deriver: str | None
    """Base name of the derivation that built it."""
    sources: tuple[Source, ...]
    raw: bytes
    """The whole text."""
    signed: bytes
    """The bytes that a signature has to cover; all of `raw` when there is none."""
    signature: bytes | None
    """The text of the signature's s-expression, None if there is none that can be read."""

    @property
    def hash_part(self) -> str:
        """The 32 digits under which servers keep the narinfo."""
        start = len(storepath.STORE) + 1
        return self.store_path[start : start + storepath.HASH_LENGTH]


def parse(raw: bytes, base_url: str = "") -> Narinfo:
    """Read a narinfo, signed or not.

    Args:
        raw: the text as a server sent it.
        base_url: URL of the server, to which relative URLs are appended. Without it they stay as
            they are.

    Raises:
        InvalidInputError: it is malformed, beyond a limit, or lacks a field above the signature
            which a NAR can't be checked without.
    """
    text = _decode(raw)
    signed = raw.partition(_SIGNATURE)[0]
    above = _first(_fields(signed.decode()))
    every = _fields(text)
    missing = [name for name in (*_MANDATORY, "NarSize") if name not in above]
    if missing:
        raise InvalidInputError("narinfo", f"has no {missing[0]} above its signature")
    path = above["StorePath"]
    if not path.startswith(f"{storepath.STORE}/"):
        raise InvalidInputError(path[:300], f"is not in {storepath.STORE}")
    item = storepath.parse(path)
    references = above["References"].split()
    if len(references) > MAX_REFERENCES:
        raise InvalidInputError(path, f"has more than {MAX_REFERENCES} references")
    for name in (*references, *filter(None, [above.get("Deriver")])):
        if storepath.parse(name).base_name != name:
            raise InvalidInputError(path, f"refers to {name}, which is not a base name")
    nar_size = _number(above["NarSize"])
    if nar_size is None:
        raise InvalidInputError(path, "has a NarSize that is not a number of bytes")
    return Narinfo(
        store_path=item.path,
        nar_hash=base32.parse_hash(above["NarHash"]),
        nar_size=nar_size,
        references=tuple(references),
        deriver=above.get("Deriver") or None,
        sources=_sources(every, base_url),
        raw=raw,
        signed=signed,
        signature=_signature(_first(every).get("Signature")),
    )


def verdict(narinfo: bytes | Narinfo, acl: Acl) -> Verdict:
    """Judge the signature of a narinfo as Guix does, given its text or what `parse` made of it.

    Raises:
        InvalidInputError: the text is not a narinfo at all, so that Guix would give up on it.
        GcryptMissingError: no libgcrypt here to check a signature that is good so far.
    """
    if isinstance(narinfo, Narinfo):
        signed, signature = narinfo.signed, narinfo.signature
    else:
        text = _decode(narinfo)
        signed = narinfo.partition(_SIGNATURE)[0]
        signature = _signature(_first(_fields(text)).get("Signature"))
    above = _first(_fields(signed.decode()))
    if signature is None or any(name not in above for name in _MANDATORY):
        return Verdict.UNSIGNED
    tree = sexp.parse(signature, "signature")
    data, key = sexp.find(tree, b"data"), sexp.find(tree, b"public-key")
    if data is None or key is None:
        return Verdict.CORRUPT_SIGNATURE
    if not acl.authorizes(key):
        return Verdict.UNAUTHORIZED_KEY
    signed_hash = sexp.find(data, b"hash") or []
    if signed_hash[1:3] != [b"sha256", hashlib.sha256(signed).digest()]:
        return Verdict.HASH_MISMATCH
    if not gcrypt.verify(tree):
        return Verdict.INVALID_SIGNATURE
    return Verdict.VALID_SIGNATURE


def compose(
    store_path: str,
    nar_hash: bytes,
    nar_size: int,
    references: Iterable[str],
    deriver: str | None = None,
) -> bytes:
    """Write the part of a narinfo that gets signed, as `guix publish` does.

    Args:
        store_path: absolute path of the item.
        nar_hash: SHA-256 of the NAR, 32 bytes.
        nar_size: its length in bytes.
        references: paths or base names, in the order to write.
        deriver: path or base name of the derivation.

    Raises:
        InvalidInputError: a name is not that of a store item.
    """
    names = " ".join(storepath.parse(name).base_name for name in references)
    lines = [
        f"StorePath: {storepath.parse(store_path).path}",
        f"NarHash: {base32.format_hash(nar_hash)}",
        f"NarSize: {nar_size}",
        f"References: {names}",
    ]
    if deriver:
        lines.append(f"Deriver: {storepath.parse(deriver).base_name}")
    return "".join(f"{line}\n" for line in lines).encode()


def sign(unsigned: bytes, key: KeyPair, host: str) -> bytes:
    """Append a signature to what `compose` wrote.

    Args:
        unsigned: the text to sign.
        key: the signing key.
        host: name of the signing machine, which only people read.

    Raises:
        InvalidInputError: the text has a signature, or the host name can't stand in one.
    """
    if _SIGNATURE in unsigned or not unsigned.endswith(b"\n"):
        raise InvalidInputError("narinfo", "is not whole lines without a signature")
    if not _HOST.fullmatch(host):
        raise InvalidInputError(host[:300], "is not a host name")
    signature = gcrypt.sign(hashlib.sha256(unsigned).digest(), key)
    text = base64.b64encode(signature).decode()
    return unsigned + f"Signature: 1;{host};{text}\n".encode()


def with_sources(raw: bytes, sources: Sequence[Source]) -> bytes:
    """Replace what follows the signature by other places to fetch the NAR from.

    The signature stays good, because it doesn't cover them.

    Raises:
        InvalidInputError: the narinfo has no signature, or a source can't be written on a line.
    """
    signed, mark, rest = raw.partition(_SIGNATURE)
    if not mark:
        raise InvalidInputError("narinfo", "has no signature")
    lines = []
    for source in sources:
        if not _URL.fullmatch(source.url) or not _URL.fullmatch(source.compression):
            raise InvalidInputError(source.url[:300], "is not a URL")
        lines.append(f"URL: {source.url}\nCompression: {source.compression}\n")
        if source.file_size is not None:
            lines.append(f"FileSize: {source.file_size}\n")
    line = rest.partition(b"\n")[0]
    return signed + mark + line + b"\n" + "".join(lines).encode()


def _decode(raw: bytes) -> str:
    if len(raw) > MAX_BYTES:
        raise InvalidInputError("narinfo", f"is longer than {MAX_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError("narinfo", f"is not UTF-8 at byte {error.start}") from error


def _fields(text: str) -> list[tuple[str, str]]:
    """Read fields in the way of `recutils->alist`: up to the first empty line after a field."""
    fields: list[tuple[str, str]] = []
    for line in text.split("\n"):
        if not line:
            if fields:
                break
        elif _FIELD_START.match(line):
            name, colon, value = line.partition(":")
            if not colon:
                raise InvalidInputError("narinfo", f"has a line without a colon: {line[:80]!r}")
            # Only the start is trimmed: a carriage return at the end belongs to the value.
            fields.append((name, value.lstrip()))
        elif line[0] == "+" and fields:
            name, value = fields[-1]
            fields[-1] = name, f"{value}\n{line[1:].removeprefix(' ')}"
        elif line[0] != "#":
            raise InvalidInputError("narinfo", f"has a line that is no field: {line[:80]!r}")
    return fields


def _first(fields: list[tuple[str, str]]) -> dict[str, str]:
    """Give the first value of each field: later ones don't count."""
    return dict(reversed(fields))


def _signature(value: str | None) -> bytes | None:
    """Give the s-expression in `1;HOST;BASE64`, or None where Guix can't read it either."""
    version, _, rest = (value or "").partition(";")
    _, separator, text = rest.partition(";")
    if version != "1" or not separator or ";" in text:
        return None
    try:
        signature = base64.b64decode(text, validate=True)
        sexp.parse(signature)
    except (ValueError, InvalidInputError):
        return None
    return signature


def _number(text: str) -> int | None:
    number = int(text) if _NUMBER.fullmatch(text) else None
    return number if number is None or number <= MAX_NAR_SIZE else None


def _sources(fields: list[tuple[str, str]], base_url: str) -> tuple[Source, ...]:
    """Group each URL with the Compression and FileSize that follow it.

    What can't be fetched over HTTP, or doesn't say how it is compressed, is left out.
    """
    groups: list[dict[str, str]] = []
    for name, value in fields:
        if name == "URL":
            groups.append({name: value})
        elif name in ("Compression", "FileSize") and groups:
            groups[-1].setdefault(name, value)
    sources = []
    for group in groups[:MAX_SOURCES]:
        url, compression = group["URL"], group.get("Compression", "")
        scheme = _ABSOLUTE.match(url)
        if scheme is None and base_url:
            url = f"{base_url.rstrip('/')}/{url}"
            scheme = _ABSOLUTE.match(url)
        if scheme is not None and scheme[1].lower() not in ("http", "https"):
            continue
        if len(url) > MAX_URL or not _URL.fullmatch(url) or not _URL.fullmatch(compression):
            continue
        sources.append(Source(url, compression, _number(group.get("FileSize", ""))))
    return tuple(sources)
