# SPDX-License-Identifier: GPL-3.0-or-later
"""Who sent a request: HTTP message signatures with a publisher's Ed25519 key.

A publisher is nothing but a key. It signs method, path and the digest of the body, so that a claim
can't be forged, altered or attached to another NAR on its way. This is the subset of RFC 9421 that
this needs, with the Content-Digest of RFC 9530; requests made by other implementations
verify as long as they cover just these components.

The key has nothing to do with the keys that sign narinfos: those say what a NAR is, this one says
who offers a torrent for it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from narswarm.errors import NarswarmError, SettingsError

MAX_AGE = 300
"""Seconds for which a signature holds. A replay within them repeats a claim that stands already."""

MAX_AHEAD = 60
"""Seconds that the signer's clock may be ahead."""

_COMPONENTS = ("@method", "@path", "content-digest")
_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_MAX_HEADER = 1024
_MAX_KEY_FILE = 4096

_LABEL = r"[a-z*][a-z0-9_.*-]{0,63}"
_INPUT = re.compile(rf"({_LABEL})=(\((.*)\)(;.*))")
_PARAMETER = re.compile(r';([a-z]+)=([0-9]{1,12}|"[ !#-\[\]-~]*")')
_BYTES = re.compile(rf"({_LABEL})=:([A-Za-z0-9+/]*={{0,2}}):")
_PARAMETERS = frozenset({"created", "keyid", "alg", "nonce", "tag"})


class SignatureError(NarswarmError):
    """A request whose signature is missing, malformed, stale or wrong."""


class PublisherKey:
    """The private key of a publisher.

    Attributes:
        public: the 32 bytes that others know it by.
    """

    __slots__ = ("_private", "public")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        # Not public_bytes_raw: that came with cryptography 40.
        self.public = private.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )

    @classmethod
    def generate(cls) -> Self:
        """Make a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """Read the key of a file, or make both. Of several processes that try, one makes it.

        Raises:
            SettingsError: the file holds something else, or others may read it.
        """
        try:
            if not path.exists():
                pem = Ed25519PrivateKey.generate().private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
                _create(path, pem)
            return cls._load(path, 0o077, "is a private key that others may read; chmod 600 it")
        except OSError as error:
            raise SettingsError(path, error.strerror or str(error)) from error

    @classmethod
    def load_credential(cls, path: Path) -> Self:
        """Read a key that systemd provides.

        systemd lets the service's user in by an access control list, whose mask is what the mode
        shows as the group's permissions; so those may say that it can be read.

        Raises:
            SettingsError: the file holds something else, or others may read it.
        """
        try:
            return cls._load(path, 0o037, "is a credential that others may read")
        except OSError as error:
            raise SettingsError(path, error.strerror or str(error)) from error

    @classmethod
    def _load(cls, path: Path, unwanted: int, reason: str) -> Self:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & unwanted:
                raise SettingsError(path, reason)
            pem = file.read(_MAX_KEY_FILE)
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            raise SettingsError(path, "is not a private key in PEM") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise SettingsError(path, "is not an Ed25519 key")
        return cls(private)

    def sign(self, data: bytes) -> bytes:
        """Make the 64 bytes of an EdDSA signature."""
        return self._private.sign(data)


def _create(path: Path, data: bytes) -> None:
    """Write a private file unless there is one: a link, unlike a rename, never replaces."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        Path(temporary).unlink()


class _Input(NamedTuple):
    """A Signature-Input that is as it must be."""

    label: str
    parameters: str
    components: tuple[str, ...]
    created: int
    key: bytes


def content_digest(body: bytes) -> str:
    """The value of Content-Digest for a body (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def signature_base(
    method: str, path: str, digest: str, components: Iterable[str], parameters: str
) -> bytes:
    """The bytes that are signed (RFC 9421, section 2.5).

    Args:
        method: the HTTP method.
        path: the path of the request's target, without the query.
        digest: the value of Content-Digest.
        components: which of these are covered, in order.
        parameters: the value of `@signature-params`, from its opening parenthesis.
    """
    values = {"@method": method, "@path": path, "content-digest": digest}
    lines = [f'"{name}": {values[name]}' for name in components]
    return "\n".join([*lines, f'"@signature-params": {parameters}']).encode()


def sign_request(
    key: PublisherKey, method: str, path: str, body: bytes, now: float
) -> dict[str, str]:
    """Make the headers that say who sent a request.

    Args:
        key: whose.
        method: the HTTP method, in capitals.
        path: the path of the request's target, without the query.
        body: all of it.
        now: seconds since the epoch.
    """
    keyid = base64.b64encode(key.public).decode()
    names = " ".join(f'"{name}"' for name in _COMPONENTS)
    parameters = f'({names});created={int(now)};keyid="{keyid}";alg="ed25519"'
    digest = content_digest(body)
    signature = key.sign(signature_base(method, path, digest, _COMPONENTS, parameters))
    return {
        "Content-Digest": digest,
        "Signature-Input": f"sig1={parameters}",
        "Signature": f"sig1=:{base64.b64encode(signature).decode()}:",
    }


def verify_request(
    method: str,
    path: str,
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    body: bytes,
    now: float,
    *,
    max_age: int = MAX_AGE,
) -> bytes:
    """Find out who sent a request.

    Args:
        method: the HTTP method.
        path: the path of the request's target, without the query.
        headers: all of them; names in any case.
        body: all of it.
        now: seconds since the epoch.
        max_age: seconds after which a signature is stale.

    Returns:
        The publisher's public key, 32 bytes.

    Raises:
        SignatureError: naming the header that is wrong.
    """
    fields = _fields(headers)
    digest = fields["content-digest"]
    if digest != content_digest(body):
        raise SignatureError("Content-Digest", "is not the SHA-256 of the body")
    signed = _parse_input(fields["signature-input"])
    label, signature = _parse_bytes(fields["signature"])
    if label != signed.label:
        raise SignatureError("Signature", "has another label than Signature-Input")
    if not -max_age <= signed.created - now <= MAX_AHEAD:
        raise SignatureError("Signature-Input", "was created too long ago or in the future")
    base = signature_base(method, path, digest, signed.components, signed.parameters)
    try:
        Ed25519PublicKey.from_public_bytes(signed.key).verify(signature, base)
    except (InvalidSignature, ValueError):
        raise SignatureError("Signature", "does not verify") from None
    return signed.key


def _fields(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> dict[str, str]:
    """Pick the three headers that count; each must be there once."""
    found: dict[str, str] = {}
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    names = {"content-digest": "Content-Digest", "signature-input": "Signature-Input"}
    names["signature"] = "Signature"
    for name, value in pairs:
        lower = name.lower()
        if lower in names:
            if lower in found:
                raise SignatureError(names[lower], "was sent twice")
            if len(value) > _MAX_HEADER:
                raise SignatureError(names[lower], "is too long")
            found[lower] = value
    for lower, name in names.items():
        if lower not in found:
            raise SignatureError(name, "is missing")
    return found


def _parse_input(value: str) -> _Input:
    """Read a Signature-Input with one signature."""
    match = _INPUT.fullmatch(value)
    if not match:
        raise SignatureError("Signature-Input", "is malformed or has several signatures")
    label, parameters, inner, tail = match.groups()
    components = tuple(name.strip('"') for name in inner.split(" "))
    if inner != " ".join(f'"{name}"' for name in components) or (
        sorted(components) != sorted(_COMPONENTS)
    ):
        raise SignatureError(
            "Signature-Input", 'must cover "@method", "@path" and "content-digest"'
        )
    found = dict(_PARAMETER.findall(tail))
    rebuilt = "".join(f";{name}={text}" for name, text in found.items())
    if rebuilt != tail or not found.keys() <= _PARAMETERS:
        raise SignatureError("Signature-Input", "has malformed or unknown parameters")
    if found.get("alg", '"ed25519"') != '"ed25519"':
        raise SignatureError("Signature-Input", "has an algorithm other than ed25519")
    created = found.get("created", "")
    if not created.isdigit():
        raise SignatureError("Signature-Input", "doesn't say when it was created")
    key = _decode(found.get("keyid", "").strip('"'), _KEY_BYTES)
    if key is None:
        raise SignatureError("Signature-Input", "has a keyid that isn't 32 bytes in base64")
    return _Input(label, parameters, components, int(created), key)


def _parse_bytes(value: str) -> tuple[str, bytes]:
    match = _BYTES.fullmatch(value)
    signature = _decode(match[2], _SIGNATURE_BYTES) if match else None
    if match is None or signature is None:
        raise SignatureError("Signature", "isn't 64 bytes in base64 between colons")
    return match[1], signature


def _decode(text: str, size: int) -> bytes | None:
    """Decode base64 of so many bytes, in its one canonical spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if len(data) == size and base64.b64encode(data).decode() == text else None
