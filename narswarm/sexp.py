# SPDX-License-Identifier: GPL-3.0-or-later
"""S-expressions, in which libgcrypt and Guix write keys, signatures and access control lists.

They are Rivest's (RFC 9804): an atom is bytes, however it was spelled, and a list holds atoms and
lists. What libgcrypt doesn't write (display hints, base 64) is not read here. The rules for
spelling atoms and for the layout are those of `src/sexp.c` of libgcrypt, because Guix signs and
compares texts that it printed.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from narswarm.errors import InvalidInputError

Sexp: TypeAlias = "bytes | list[Sexp]"

MAX_BYTES: Final = 1 << 20
"""Longest text that is parsed: an ACL of some 8,000 keys."""

MAX_DEPTH: Final = 32
"""Deepest nesting: the signatures of Guix have 4 levels."""

MAX_ATOM: Final = 0xFFFF
"""Longest atom in bytes: libgcrypt keeps its length in 16 bits."""

_TOKEN = re.compile(
    rb"""[ \t\n\v\f\r]*(?:
        (?P<open>\()
      | (?P<close>\))
      | \#(?P<hex>(?:[ \t\n\v\f\r]*[0-9A-Fa-f])*[ \t\n\v\f\r]*)\#
      | (?P<token>[A-Za-z./_:*+=-][A-Za-z0-9./_:*+=-]*)
      | (?P<length>0|[1-9][0-9]{0,4}):
      | "(?P<string>(?:[^"\\]|\\[^0-9x\r\n]|\\x[0-9A-Fa-f]{2}|\\[0-3][0-7]{2}|\\\r?\n)*)"
    )""",
    re.VERBOSE | re.DOTALL,
)
_BLANKS = b" \t\n\v\f\r\0"
_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|([0-3][0-7]{2})|(\r?\n)|(.))", re.DOTALL)
_ESCAPES = {b"b": b"\b", b"t": b"\t", b"v": b"\v", b"n": b"\n", b"f": b"\f", b"r": b"\r"}
_ESCAPES |= {b'"': b'"', b"'": b"'", b"\\": b"\\"}
_SPELLINGS = {value[0]: b"\\" + key for key, value in _ESCAPES.items()}

_PRINTABLE_TOKEN = re.compile(rb"[A-Za-z./_:*+=-][A-Za-z0-9./_:*+=-]*")
_BINARY = re.compile(rb"[\x01-\x07\x0e-\x1f\x7f-\xa0]")


def parse(data: bytes, source: object = "s-expression") -> Sexp:
    """Read one s-expression in advanced or canonical syntax.

    Args:
        data: the text, at most `MAX_BYTES`. Blanks and NULs may follow the expression.
        source: what errors name.

    Raises:
        InvalidInputError: not exactly one s-expression, or one beyond the limits.
    """
    if len(data) > MAX_BYTES:
        raise InvalidInputError(source, f"is longer than {MAX_BYTES} bytes")
    stack: list[list[Sexp]] = []
    position = 0
    while True:
        match = _TOKEN.match(data, position)
        if match is None:
            raise InvalidInputError(source, f"is not an s-expression at byte {position}")
        position = match.end()
        kind = match.lastgroup
        node: Sexp
        if kind == "open":
            if len(stack) == MAX_DEPTH:
                raise InvalidInputError(source, f"is nested deeper than {MAX_DEPTH} lists")
            stack.append([])
            continue
        if kind == "close":
            if not stack:
                raise InvalidInputError(source, f"closes no list at byte {position - 1}")
            node = stack.pop()
        else:
            node = _atom(match, source)
            if kind == "length":
                position += len(node)
        if stack:
            stack[-1].append(node)
        elif data[position:].strip(_BLANKS):
            raise InvalidInputError(source, f"goes on after the s-expression at byte {position}")
        else:
            return node


def _atom(match: re.Match[bytes], source: object) -> bytes:
    """Give the bytes of an atom, which follow the match if it has their number."""
    if match.lastgroup == "token":
        atom = match["token"]
    elif match.lastgroup == "length":
        length = int(match["length"])
        atom = match.string[match.end() : match.end() + length]
        if len(atom) < length:
            raise InvalidInputError(source, f"ends in an atom of {length} bytes")
    elif match.lastgroup == "hex":
        atom = _hexadecimal(match, source)
    else:
        atom = _string(match, source)
    if len(atom) > MAX_ATOM:
        raise InvalidInputError(source, f"has an atom longer than {MAX_ATOM} bytes")
    return atom


def _hexadecimal(match: re.Match[bytes], source: object) -> bytes:
    digits = match["hex"].translate(None, _BLANKS)
    if len(digits) % 2:
        raise InvalidInputError(
            source, f"has an odd number of hexadecimal digits at byte {match.start()}"
        )
    return bytes.fromhex(digits.decode())


def _string(match: re.Match[bytes], source: object) -> bytes:
    def unescape(escape: re.Match[bytes]) -> bytes:
        hexadecimal, octal, line_end, letter = escape.groups()
        if hexadecimal:
            return bytes.fromhex(hexadecimal.decode())
        if octal:
            return bytes([int(octal, 8)])
        if line_end:
            return b""
        if letter not in _ESCAPES:
            raise InvalidInputError(
                source, f"has an unknown escape in the string at byte {match.start()}"
            )
        return _ESCAPES[letter]

    return _ESCAPE.sub(unescape, match["string"])


def canonical(sexp: Sexp) -> bytes:
    """Write the canonical form, which is unique: equal expressions, equal bytes."""
    if isinstance(sexp, bytes):
        return b"%d:%b" % (len(sexp), sexp)
    return b"(" + b"".join([canonical(item) for item in sexp]) + b")"


def find(sexp: Sexp, name: bytes) -> list[Sexp] | None:
    """Give the first list that starts with the atom `name`, in the order of the text.

    This is `gcry_sexp_find_token`: a list comes before the lists in it.
    """
    if isinstance(sexp, bytes):
        return None
    if sexp and sexp[0] == name:
        return sexp
    for item in sexp:
        if isinstance(item, list):
            found = find(item, name)
            if found is not None:
                return found
    return None


def advanced(sexp: Sexp) -> bytes:
    """Write the text that libgcrypt prints and Guix stores, byte for byte.

    Lists start new lines and are indented by their depth; what follows a list does, too.
    """
    out: list[bytes] = []
    _print(sexp, 0, out)
    return b"".join(out) + b"\n"


def _print(sexp: Sexp, depth: int, out: list[bytes]) -> None:
    if isinstance(sexp, bytes):
        out.append(_spell(sexp))
        return
    if depth:
        out.append(b"\n" + b" " * depth)
    out.append(b"(")
    after_list = False
    for index, item in enumerate(sexp):
        if isinstance(item, bytes) and after_list:
            out.append(b"\n" + b" " * (depth + 1))
        _print(item, depth + 1, out)
        after_list = isinstance(item, list)
        if not after_list and index + 1 < len(sexp):
            out.append(b" ")
    if after_list:
        out.append(b"\n" + b" " * (depth + 1))
    out.append(b")")


def _spell(atom: bytes) -> bytes:
    """Spell an atom as a token if it can be one, else as a string if it is text, else in hex.

    libgcrypt puts a NUL inside a token as it is and can't read that back; it is escaped here.
    """
    if not atom:
        return b'""'
    if _PRINTABLE_TOKEN.fullmatch(atom):
        return atom
    # A first byte of 0 or above 127 marks a number, which is never shown as text.
    if atom[0] & 0x80 or not atom[0] or _BINARY.search(atom):
        return b"#" + atom.hex().upper().encode() + b"#"
    return b'"' + b"".join([_SPELLINGS.get(c) or _character(c) for c in atom]) + b'"'


def _character(byte: int) -> bytes:
    return bytes([byte]) if byte else b"\\x00"
