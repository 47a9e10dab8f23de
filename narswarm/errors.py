# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors that users see, and the exit codes they end a command with.

Every message reads "subject: reason", so that one line tells what is wrong with what.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the four commands exit with (`docs/exit-codes.md` is the same table for people)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    SETTINGS = 3
    INVALID = 4
    NOT_FOUND = 5
    EXISTS = 6
    MISMATCH = 7
    NETWORK = 8
    BUSY = 9
    CODEC = 10
    INTERRUPTED = 130


class NarswarmError(Exception):
    """Base of all errors that are shown to users.

    Attributes:
        subject: what the error is about, such as a file, a URL or a store item.
        reason: what is wrong with it, a phrase without a full stop.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, subject: object, reason: str) -> None:
        self.subject = str(subject)
        self.reason = reason
        super().__init__(f"{self.subject}: {self.reason}")


class SettingsError(NarswarmError):
    """A settings file, environment variable or flag is wrong."""

    exit_code = ExitCode.SETTINGS


class InvalidInputError(NarswarmError):
    """Bytes that don't follow their format: a NAR, narinfo, torrent, ACL, key, database."""

    exit_code = ExitCode.INVALID


class NotFoundError(NarswarmError):
    """Something that was named does not exist or can't be read."""

    exit_code = ExitCode.NOT_FOUND


class AlreadyExistsError(NarswarmError):
    """Refused to overwrite something."""

    exit_code = ExitCode.EXISTS


class MismatchError(NarswarmError):
    """Bytes are well-formed but are not those that were promised."""

    exit_code = ExitCode.MISMATCH


class NetworkError(NarswarmError):
    """A server or peer could not be reached, or did not answer as its protocol says."""

    exit_code = ExitCode.NETWORK


class BusyError(NarswarmError):
    """Another process holds what this one needs."""

    exit_code = ExitCode.BUSY


class CodecError(NarswarmError):
    """This machine's zstd does not make the bytes of profile 1."""

    exit_code = ExitCode.CODEC
