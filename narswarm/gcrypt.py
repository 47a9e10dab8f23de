# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures of Guix, made and checked by libgcrypt: the only module that loads it.

Guix signs with ECDSA (RFC 6979) over the group of the curve Ed25519, which is not EdDSA and which
hardly any other library knows. libgcrypt does it, and the RSA keys of old access control lists too.
It is loaded at the first use, because most runs of a program need no signature.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from narswarm import sexp
from narswarm.errors import ExitCode, InvalidInputError, NarswarmError

if TYPE_CHECKING:
    import ctypes

    from narswarm.sexp import Sexp

GUIX_KEY = b"(genkey (ecdsa (curve Ed25519) (flags rfc6979)))"
"""What `guix archive --generate-key` asks libgcrypt for."""

_SONAME = "libgcrypt.so.20"
_NEEDED = "libgpg-error.so.0"
_DISABLE_SECMEM = 37
_INITIALIZATION_FINISHED = 38
_INITIALIZATION_FINISHED_P = 39
_CANONICAL = 1
_BAD_SIGNATURE = 8
_ERROR_CODE_MASK = 0xFFFF


class GcryptMissingError(NarswarmError):
    """libgcrypt is not installed."""

    exit_code: ClassVar[ExitCode] = ExitCode.SETTINGS

    def __init__(self) -> None:
        super().__init__(
            _SONAME,
            "is not installed; install libgcrypt (package libgcrypt20 of Debian, libgcrypt of "
            "Guix, Fedora and Arch)",
        )


class KeyPair(NamedTuple):
    """A signing key, as the texts of `/etc/guix/signing-key.pub` and `signing-key.sec`."""

    public: bytes
    private: bytes


def verify(signature: Sexp) -> bool:
    """Whether the `sig-val` in a signature is one of its `data` by its `public-key`.

    It says nothing about whether that key is authorised or what the data is. All three are looked
    up by `sexp.find` and given to libgcrypt in canonical form each, so that another reading of
    the same text can't put a foreign key in the place of the one which was authorised.

    Args:
        signature: the s-expression, parsed, or its text.

    Raises:
        InvalidInputError: the text is not an s-expression.
        GcryptMissingError: no libgcrypt here.
    """
    tree = _tree(signature, "signature")
    parts = [sexp.find(tree, name) for name in (b"sig-val", b"data", b"public-key")]
    if None in parts:
        return False
    library = _load()
    with library.expressions() as new:
        handles = [new(sexp.canonical(part)) for part in parts if part is not None]
        return all(handles) and library.pk_verify(*handles) == 0


def generate_key(parameters: bytes = GUIX_KEY) -> KeyPair:
    """Make a key pair, as `guix archive --generate-key=PARAMETERS` does.

    Raises:
        InvalidInputError: libgcrypt refuses the parameters.
        GcryptMissingError: no libgcrypt here.
    """
    pair = _load().call("gcry_pk_genkey", sexp.parse(parameters, "key parameters"))
    public, private = sexp.find(pair, b"public-key"), sexp.find(pair, b"private-key")
    if public is None or private is None:
        raise InvalidInputError("key parameters", "gave no key pair")
    return KeyPair(sexp.advanced(public), sexp.advanced(private))


def sign(digest: bytes, key: KeyPair) -> bytes:
    """Sign a SHA-256 digest (32 bytes) with `key`.

    Returns:
        The text of the `signature` expression, the bytes that Guix would have written: the
        signature is deterministic.

    Raises:
        InvalidInputError: the key is not one that libgcrypt can sign with.
        GcryptMissingError: no libgcrypt here.
    """
    private = sexp.parse(key.private, "private key")
    public = sexp.parse(key.public, "public key")
    flags = b"pkcs1" if sexp.find(private, b"rsa") else b"rfc6979"
    data: Sexp = [b"data", [b"flags", flags], [b"hash", b"sha256", digest]]
    value = _load().call("gcry_pk_sign", data, private)
    return sexp.advanced([b"signature", data, value, public])


def _tree(value: Sexp, source: str) -> Sexp:
    return sexp.parse(value, source) if isinstance(value, bytes) else value


class _Expressions:
    """Holds expressions of libgcrypt for the time of one call and releases them all after it."""

    def __init__(self, library: _Library) -> None:
        self._library = library
        self._handles: list[ctypes.c_void_p] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            self._library.sexp_release(handle)

    def __call__(self, text: bytes) -> ctypes.c_void_p:
        """Give libgcrypt an expression in canonical form; a null pointer says it is refused."""
        handle = self.empty()
        self._library.sexp_new(self._library.byref(handle), text, len(text), 1)
        return handle

    def empty(self) -> ctypes.c_void_p:
        """A place for an expression that libgcrypt makes."""
        handle = self._library.void_pointer()
        self._handles.append(handle)
        return handle


class _Library:
    """libgcrypt, initialised, with the types of the functions that are used."""

    def __init__(self) -> None:
        # Not at the top: this costs milliseconds, and many runs need no signature.
        import ctypes  # noqa: PLC0415

        self._library = library = _open(ctypes.CDLL)
        self.void_pointer = pointer = ctypes.c_void_p
        self.byref = ctypes.byref
        self._buffer = ctypes.create_string_buffer
        library.gcry_check_version.argtypes = [ctypes.c_char_p]
        library.gcry_check_version.restype = ctypes.c_char_p
        library.gcry_strerror.argtypes = [ctypes.c_uint]
        library.gcry_strerror.restype = ctypes.c_char_p
        library.gcry_control.restype = ctypes.c_uint
        result_place = ctypes.POINTER(pointer)
        self.sexp_new = library.gcry_sexp_new
        self.sexp_new.argtypes = [result_place, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
        self.sexp_new.restype = ctypes.c_uint
        self.sexp_release = library.gcry_sexp_release
        self.sexp_release.argtypes = [pointer]
        self.sexp_release.restype = None
        self._sexp_sprint = library.gcry_sexp_sprint
        self._sexp_sprint.argtypes = [pointer, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
        self._sexp_sprint.restype = ctypes.c_size_t
        self.pk_verify = library.gcry_pk_verify
        self.pk_verify.argtypes = [pointer, pointer, pointer]
        self.pk_verify.restype = ctypes.c_uint
        library.gcry_pk_genkey.argtypes = [result_place, pointer]
        library.gcry_pk_sign.argtypes = [result_place, pointer, pointer]
        library.gcry_pk_genkey.restype = library.gcry_pk_sign.restype = ctypes.c_uint
        # The version has to be asked for before anything else: that initialises the library.
        library.gcry_check_version(None)
        if not library.gcry_control(_INITIALIZATION_FINISHED_P):
            library.gcry_control(_DISABLE_SECMEM, 0)
            library.gcry_control(_INITIALIZATION_FINISHED, 0)

    def expressions(self) -> _Expressions:
        return _Expressions(self)

    def call(self, name: str, *arguments: Sexp) -> Sexp:
        """Call a function that makes an expression of others and give that expression."""
        with self.expressions() as new:
            result = new.empty()
            handles = [new(sexp.canonical(argument)) for argument in arguments]
            error = getattr(self._library, name)(self.byref(result), *handles)
            if error:
                reason = self._library.gcry_strerror(error).decode(errors="replace")
                raise InvalidInputError(name, f"libgcrypt refuses: {reason}")
            size = self._sexp_sprint(result, _CANONICAL, None, 0)
            buffer = self._buffer(size)
            self._sexp_sprint(result, _CANONICAL, buffer, size)
            return sexp.parse(buffer.raw, name)


def _open(load: type[ctypes.CDLL]) -> ctypes.CDLL:
    """Load the system's library, else the one that a virtual environment carries."""
    with contextlib.suppress(OSError):
        return load(_SONAME)
    own = f"{sys.prefix}/lib/"
    with contextlib.suppress(OSError):
        # What it needs is beside it, where the loader doesn't look: loaded first, it is known.
        load(own + _NEEDED)
        return load(own + _SONAME)
    raise GcryptMissingError


_lock = threading.Lock()
_library: _Library | None = None


def _load() -> _Library:
    """Give the library, loaded and initialised by whichever thread comes first."""
    global _library  # noqa: PLW0603 - a process has one libgcrypt
    with _lock:
        if _library is None:
            _library = _Library()
        return _library
