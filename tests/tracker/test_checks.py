# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings looked at without starting a tracker."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from narswarm import gcrypt
from narswarm.acl import render
from narswarm.errors import InvalidInputError, SettingsError
from tests.engines import Engine
from tests.ports import free_port
from tests.tracker.conftest import new_schema
from tracker import checks, database
from tracker.checks import check, described
from tracker.database import FILE_NAME, VERSION, DatabaseError
from tracker.postgres import VERSION as POSTGRES_VERSION
from tracker.postgres import shown
from tracker.settings import Settings


@pytest.fixture(name="settings")
def settings_fixture(tmp_path: Path, acl_text: bytes) -> Settings:
    """Settings that nothing is wrong with."""
    acl = tmp_path / "acl"
    acl.write_bytes(acl_text)
    data = tmp_path / "data"
    database.connect(data, create=True).close()
    return Settings(acl=acl, data=data)


def test_nothing_to_remark(settings: Settings) -> None:
    """Good settings need no words, and nothing is changed."""
    before = {path: path.stat().st_mtime_ns for path in settings.data.iterdir()}
    assert check(settings) == []
    assert {path: path.stat().st_mtime_ns for path in settings.data.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trusted_proxies": ("x",)}, "trusted_proxies: 'x' does not appear to be an IPv4 or IPv6"),
        ({"metrics_from": ("x",)}, "metrics_from: 'x' does not appear to be an IPv4 or IPv6"),
        ({"publishers": ("x",)}, "publishers: 'x' is not 32 bytes in base64"),
        ({"listen": ("x",)}, "listen: 'x' is not HOST:PORT"),
    ],
)
def test_tracker_would_not_start(settings: Settings, changes: dict[str, Any], message: str) -> None:
    """The first reason is said."""
    with pytest.raises(SettingsError) as caught:
        check(replace(settings, **changes))
    assert str(caught.value).startswith(message)


def test_data_that_cannot_be_used(settings: Settings) -> None:
    """A file in the directory's place."""
    with pytest.raises(SettingsError) as caught:
        check(replace(settings, data=settings.acl))
    assert str(caught.value) == f"{settings.acl}: is not a directory"


def test_an_index_that_cannot_be_used(settings: Settings) -> None:
    """Something else in its place, or an index of a later version."""
    path = settings.data / FILE_NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(InvalidInputError) as caught:
        check(settings)
    assert str(caught.value) == f"{path}: has version {VERSION + 1} instead of {VERSION}"
    path.write_bytes(b"x" * 4096)
    with pytest.raises(InvalidInputError) as caught:
        check(settings)
    assert str(caught.value) == f"{path}: is not a usable index: file is not a database"


def test_remarks(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What works, but perhaps not as it was meant, is said in order."""
    missing = settings.acl.with_name("missing")
    found = check(replace(settings, data=missing, acl=missing, open=True))
    assert found == [
        f"{missing}: does not exist and will be made",
        f"{missing}: no such file or directory; nothing can be published",
        "open: any infohash is tracked, and numbers of downloads are not kept",
    ]

    def lacking() -> None:
        raise gcrypt.GcryptMissingError

    settings.acl.write_bytes(render([]))
    monkeypatch.setattr(checks, "generate_key", lacking)
    assert check(settings) == [
        f"{settings.acl}: authorises no key; nothing can be published",
        f"{gcrypt.GcryptMissingError()}; nothing can be published",
    ]


def test_older_index(settings: Settings) -> None:
    """An upgrade is announced and left to the tracker."""
    path = settings.data / FILE_NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1")
    assert check(settings) == [f"{path}: has version 1 and will be upgraded"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)


def test_directory_without_index(settings: Settings) -> None:
    """An index will be made in it; no word is needed."""
    empty = settings.data / "empty"
    empty.mkdir()
    assert check(replace(settings, data=empty)) == []


def test_description(settings: Settings) -> None:
    """Every setting is there, as JSON has it."""
    found = described(settings)
    assert list(found) == [field.name for field in fields(Settings)]
    assert found["data"] == str(settings.data)
    assert found["listen"] == ["[::]:6969"]
    assert found["url"] is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", ""),
        ("memory", "memory"),
        ("redis://:secret@h:1/0", "redis://:***@h:1/0"),
        ("postgresql://user:se:cr@et@h/db", "postgresql://user:***@h/db"),
        ("postgresql://user@h/db?password=secret&x=1", "postgresql://user@h/db?password=***&x=1"),
        ("postgresql:///db?sslpassword=secret", "postgresql:///db?sslpassword=***"),
    ],
)
def test_passwords_are_not_shown(url: str, expected: str) -> None:
    """Settings are shown in bug reports."""
    assert checks._without_password(url) == expected
    if url:
        assert described(Settings(swarms=url) if "redis" in url else Settings())["swarms"] in {
            expected,
            "memory",
        }


def test_index_in_postgres(settings: Settings, postgres: Engine) -> None:
    """Its version is looked at as that of a file is; nothing is made."""
    url = new_schema(postgres.url)
    settings = replace(settings, index=url)
    name = shown(url)
    for _ in range(2):
        assert check(settings) == [f"{name}: has no tracker's index, which will be made"]
    database.connect(url, create=True).close()
    assert check(settings) == []
    for version, remark in ((99, None), (-1, f"{name}: has version -1 and will be upgraded")):
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("UPDATE narswarm SET version = %s", (version,))
        if remark:
            assert check(settings) == [remark]
            continue
        with pytest.raises(InvalidInputError) as caught:
            check(settings)
        assert str(caught.value) == f"{name}: has version 99 instead of {POSTGRES_VERSION}"


def test_servers_that_do_not_answer(settings: Settings) -> None:
    """Without its PostgreSQL a tracker doesn't start; without its Redis it does."""
    port = free_port()
    with pytest.raises(DatabaseError) as caught:
        check(replace(settings, index=f"postgresql://u:secret@127.0.0.1:{port}/db"))
    assert str(caught.value).startswith(f"postgresql://127.0.0.1:{port}/db: ")
    (remark,) = check(replace(settings, swarms=f"redis://:secret@127.0.0.1:{port}/0"))
    assert remark.startswith("swarms: Redis: does not answer: ")
    assert remark.endswith("; announces are refused until it does")
    assert "secret" not in remark
