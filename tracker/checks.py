# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings looked at without starting a tracker: could it start, and what would it lack."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Any

from narswarm.acl import Acl
from narswarm.errors import InvalidInputError, NarswarmError, SettingsError
from narswarm.gcrypt import GcryptMissingError, generate_key
from tracker.database import FILE_NAME, VERSION, failing_as_ours
from tracker.settings import Settings, parse_listen
from tracker.stores import open_swarms
from tracker.swarmstore import StoreDownError

_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"
_USER_VERSION = slice(60, 64)
_NO_PUBLICATIONS = "nothing can be published"


def check(settings: Settings) -> list[str]:
    """See whether a tracker could start with these settings; nothing is made or changed.

    Returns:
        What an operator may not have meant, a sentence each.

    Raises:
        SettingsError: it couldn't start.
        InvalidInputError: nor with this index.
        DatabaseError: PostgreSQL doesn't answer.
    """
    settings.policy()
    settings.publisher_keys()
    settings.metrics_networks()
    for address in settings.listen:
        parse_listen(address)
    remarks = _data_remarks(settings.data)
    remarks += (
        _postgres_remarks(settings.index) if settings.index else _index_remarks(settings.data)
    )
    remarks += _swarms_remarks(settings)
    remarks += _acl_remarks(settings.acl)
    try:
        generate_key()
    except GcryptMissingError as error:
        remarks.append(f"{error}; {_NO_PUBLICATIONS}")
    if settings.open:
        remarks.append("open: any infohash is tracked, and numbers of downloads are not kept")
    return remarks


def described(settings: Settings) -> dict[str, Any]:
    """All settings with the values that would be used, as TOML and JSON have them."""
    values: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Path):
            value = str(value)
        values[field.name] = list(value) if isinstance(value, tuple) else value
    for name in ("index", "swarms"):
        values[name] = _without_password(values[name])
    return values


def _without_password(url: str) -> str:
    """A URL whose password, after the user or as a parameter, is three stars."""
    hidden = re.sub(r"(://[^:/@]*:).*@", r"\1***@", url)
    return re.sub(r"([?&](ssl)?password=)[^&]*", r"\1***", hidden)


def _data_remarks(directory: Path) -> list[str]:
    if not directory.exists():
        return [f"{directory}: does not exist and will be made"]
    if not directory.is_dir():
        raise SettingsError(directory, "is not a directory")
    return []


def _postgres_remarks(url: str) -> list[str]:
    from tracker import postgres  # noqa: PLC0415 - only who wants it needs its package

    connection = postgres.PostgresConnection(url)
    try:
        with failing_as_ours(connection):
            version = connection.version()
    finally:
        connection.close()
    name = connection.name
    if version > postgres.VERSION:
        raise InvalidInputError(name, f"has version {version} instead of {postgres.VERSION}")
    if version == 0:
        return [f"{name}: has no tracker's index, which will be made"]
    upgraded = version < postgres.VERSION
    return [f"{name}: has version {version} and will be upgraded"] if upgraded else []


def _swarms_remarks(settings: Settings) -> list[str]:
    swarms = open_swarms(settings, Random())  # noqa: S311 - nothing is chosen
    try:
        swarms.check()
    except StoreDownError as error:
        return [f"swarms: {error}; announces are refused until it does"]
    finally:
        swarms.close()
    return []


def _index_remarks(directory: Path) -> list[str]:
    path = directory / FILE_NAME
    if not path.exists():
        return []
    # Not by SQLite, which leaves files beside a database that it only reads.
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        raise SettingsError(path, error.strerror or str(error)) from error
    if header and not header.startswith(_MAGIC):
        raise InvalidInputError(path, "is not a usable index: file is not a database")
    version = int.from_bytes(header[_USER_VERSION])
    if version > VERSION:
        raise InvalidInputError(path, f"has version {version} instead of {VERSION}")
    # 0 is a new one, of which nothing has reached this file yet.
    upgraded = 0 < version < VERSION
    return [f"{path}: has version {version} and will be upgraded"] if upgraded else []


def _acl_remarks(path: Path) -> list[str]:
    try:
        acl = Acl.load(path)
    except NarswarmError as error:
        return [f"{error}; {_NO_PUBLICATIONS}"]
    except OSError as error:
        return [f"{path}: {error.strerror}; {_NO_PUBLICATIONS}"]
    return [] if len(acl) else [f"{path}: authorises no key; {_NO_PUBLICATIONS}"]
