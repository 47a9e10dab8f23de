# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker's database in PostgreSQL: one index for several trackers, wherever they are.

The statements are those of SQLite; see `tracker.database`. What differs is here: tables and views,
who else may write meanwhile, how trackers hear of each other's changes, and that a server can go
away and come back.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from narswarm.errors import InvalidInputError, NotFoundError, SettingsError
from tracker.database import Change, DatabaseError

if TYPE_CHECKING:
    import psycopg

POLL_SECONDS = 5.0
"""How often changes are looked for that nobody was notified of."""

KEPT_CHANGES = 100_000
"""Changes that are kept; who missed more of them reads everything anew."""

MOST_CHANGES = 10_000
"""Changes that are taken in one by one."""

_CONNECT_SECONDS = 3
_RETRY_SECONDS = 1.0
_SIZE_SECONDS = 30.0
_LOCK = 0x6E617273
"""Number of the advisory lock that writers hold: "nars"."""

_CHANNEL = "narswarm"
_INSTALL = (
    "needs PostgreSQL's Python package: apt install python3-psycopg, or pip install narswarm[scale]"
)

_TABLES = """
CREATE TABLE signers (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key BYTEA NOT NULL UNIQUE,
    authorized INTEGER NOT NULL
);
CREATE TABLE nars (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    nar_hash BYTEA NOT NULL UNIQUE,
    nar_size BIGINT NOT NULL
);
CREATE TABLE narinfos (
    rowid BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    hash_part TEXT NOT NULL,
    nar BIGINT NOT NULL REFERENCES nars,
    signer BIGINT NOT NULL REFERENCES signers,
    sources INTEGER NOT NULL,
    added BIGINT NOT NULL,
    raw BYTEA NOT NULL,
    UNIQUE (hash_part, nar, signer)
);
CREATE INDEX narinfos_by_nar ON narinfos (nar);
CREATE TABLE torrents (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    nar BIGINT NOT NULL REFERENCES nars,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    length BIGINT NOT NULL,
    piece_length BIGINT NOT NULL,
    infohash_v1 BYTEA NOT NULL,
    infohash_v2 BYTEA NOT NULL UNIQUE,
    added BIGINT NOT NULL,
    metainfo BYTEA NOT NULL
);
CREATE INDEX torrents_by_nar ON torrents (nar);
CREATE TABLE claims (
    torrent BIGINT NOT NULL REFERENCES torrents ON DELETE CASCADE,
    publisher BYTEA NOT NULL,
    added BIGINT NOT NULL,
    PRIMARY KEY (torrent, publisher)
);
CREATE TABLE blocks (
    kind TEXT NOT NULL,
    value BYTEA NOT NULL,
    reason TEXT NOT NULL,
    added BIGINT NOT NULL,
    withdrawn BYTEA,
    PRIMARY KEY (kind, value)
);
CREATE TABLE downloads (info_hash BYTEA PRIMARY KEY, count BIGINT NOT NULL);
CREATE TABLE changes (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    added BYTEA,
    removed BYTEA
);
CREATE FUNCTION forget_downloads() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM downloads WHERE info_hash IN (OLD.infohash_v1, substr(OLD.infohash_v2, 1, 20));
    RETURN NULL;
END $$;
CREATE TRIGGER forget_downloads AFTER DELETE ON torrents
    FOR EACH ROW EXECUTE FUNCTION forget_downloads();
CREATE VIEW vouched AS
    SELECT narinfos.rowid AS narinfo, narinfos.nar
    FROM narinfos JOIN signers ON signers.id = narinfos.signer
    WHERE signers.authorized <> 0 AND NOT EXISTS (
        SELECT 1 FROM nars JOIN blocks ON blocks.kind = 'nar' AND blocks.value = nars.nar_hash
        WHERE nars.id = narinfos.nar
    );
CREATE VIEW blocked_torrents AS
    SELECT id AS torrent, infohash_v1, infohash_v2 FROM torrents
    WHERE EXISTS (SELECT 1 FROM blocks WHERE blocks.kind = 'infohash' AND value = infohash_v1)
        OR EXISTS (
            SELECT 1 FROM blocks
            WHERE blocks.kind = 'infohash' AND value = substr(infohash_v2, 1, 20)
        );
CREATE VIEW support AS
    SELECT torrent, publisher FROM claims
    WHERE NOT EXISTS (SELECT 1 FROM blocks WHERE kind = 'publisher' AND value = publisher)
        AND NOT EXISTS (
            SELECT 1 FROM blocked_torrents WHERE blocked_torrents.torrent = claims.torrent
        );
"""

_NAMES = """
ALTER TABLE narinfos ADD COLUMN name TEXT COLLATE "C" NOT NULL DEFAULT '';
UPDATE narinfos SET name = lower(split_part(
    split_part(encode(raw, 'escape'), '/gnu/store/' || hash_part || '-', 2), chr(10), 1
));
CREATE INDEX narinfos_by_name ON narinfos (name, hash_part, nar);
CREATE INDEX torrents_by_infohash_v1 ON torrents (infohash_v1);
"""
"""Names of store items in small letters, for people who search."""

_UPGRADES = (_TABLES, _NAMES)
"""What makes a database of each version, from 0 on, one of the next; data stays."""

VERSION = len(_UPGRADES)

_log = logging.getLogger(__name__)


def shown(url: str) -> str:
    """A URL as it may be told: without user, password and parameters."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "postgresql:"
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def connect(url: str, *, create: bool, max_bytes: int | None) -> PostgresConnection:
    """Open a database, and bring it up to date.

    Raises:
        NotFoundError: there are no tables, and none are to be made.
        SettingsError: PostgreSQL's Python package isn't installed, or doesn't take the URL.
        InvalidInputError: the tables are of a later version.
        DatabaseError: PostgreSQL doesn't answer, or doesn't allow what is needed.
    """
    connection = PostgresConnection(url, max_bytes)
    try:
        found = connection.version()
        if found == 0 and not create:
            raise NotFoundError(connection.name, "has no tracker's index")
        if found != VERSION:
            connection.upgrade()
    except connection.failures as error:
        connection.close()
        raise DatabaseError(connection.name, _first_line(error)) from error
    except BaseException:
        connection.close()
        raise
    return connection


class PostgresConnection:
    """A session with PostgreSQL; one that is lost is replaced when the next statement comes.

    Args:
        url: where it is; `PG…` variables and the password file add what it doesn't say.
        max_bytes: how large the database may grow, or None.

    Raises:
        SettingsError: PostgreSQL's Python package isn't installed, or doesn't take the URL.
        DatabaseError: PostgreSQL doesn't answer.
    """

    def __init__(self, url: str, max_bytes: int | None = None) -> None:
        try:
            import psycopg  # noqa: PLC0415 - only who wants it needs it
            from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415
        except ImportError:
            raise SettingsError("index", _INSTALL) from None
        self._psycopg = psycopg
        self.failures: tuple[type[Exception], ...] = (psycopg.Error,)
        self.name = shown(url)
        self._url = url
        self._max_bytes = max_bytes
        self._size = (0.0, 0)
        self._in_transaction = False
        try:
            conninfo_to_dict(url)
        except psycopg.Error:
            raise SettingsError("index", "is not a URL that PostgreSQL takes") from None
        self._again = 0.0
        try:
            self._session = self._open()
        except psycopg.Error as error:
            raise DatabaseError(self.name, _first_line(error)) from error

    def _open(self) -> psycopg.Connection[Any]:
        """Begin a session; right after a failure, fail without trying."""
        if time.monotonic() < self._again:
            raise self._psycopg.OperationalError("does not answer")
        try:
            session = self._psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=_CONNECT_SECONDS,
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=20_000,
                application_name="narswarm tracker",
            )
        except self._psycopg.Error:
            self._again = time.monotonic() + _RETRY_SECONDS
            raise
        session.execute("SET statement_timeout = '60s'")
        session.execute("SET client_min_messages = warning")
        return session

    def close(self) -> None:
        """End the session."""
        self._session.close()

    def execute(self, sql: str, values: Sequence[object] = (), /) -> psycopg.Cursor[Any]:
        """Run one statement. A lost session is replaced, unless something was begun in it."""
        query: Any = sql.replace("?", "%s") if values else sql
        try:
            return self._session.execute(query, values or None)
        except self._psycopg.Error:
            if self._in_transaction or not self._session.closed:
                raise
        self._session = self._open()
        return self._session.execute(query, values or None)

    def executemany(self, sql: str, rows: Sequence[Sequence[object]], /) -> object:
        """Run one statement for each of several rows."""
        query: Any = sql.replace("?", "%s")
        with self._session.cursor() as cursor:
            cursor.executemany(query, rows)
        return None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all of a block or nothing of it; other trackers write before or after it."""
        with self._block("BEGIN"):
            self.execute("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
            yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read what there is at the beginning."""
        with self._block("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
            yield

    @contextmanager
    def _block(self, begin: str) -> Iterator[None]:
        self.execute(begin)
        self._in_transaction = True
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if not self._session.closed:
                self.execute("ROLLBACK")
            raise
        finally:
            self._in_transaction = False

    def note(self, change: Change | None) -> None:
        """Have other trackers know what the transaction changed, when it ends well."""
        self.execute("INSERT INTO changes (added, removed) VALUES (?, ?)", change or (None, None))
        self.execute(
            "DELETE FROM changes WHERE id <= (SELECT max(id) FROM changes) - ?", (KEPT_CHANGES,)
        )
        self.execute("SELECT pg_notify(?, '')", (_CHANNEL,))

    def changes(self, since: int) -> tuple[int, list[Change] | None]:
        """What was noted since a number. Writers take turns, so numbers come in order."""
        first, last = self.execute("SELECT min(id), max(id) FROM changes").fetchone() or (0, 0)
        if (last or 0) == since:
            return since, []
        if last is None or since < first - 1 or last - since > MOST_CHANGES:
            return last or 0, None
        rows = self.execute(
            "SELECT id, added, removed FROM changes WHERE id > ? ORDER BY id", (since,)
        ).fetchall()
        if any(added is None for _, added, _ in rows):
            return rows[-1][0], None
        return rows[-1][0], [Change(added, removed) for _, added, removed in rows]

    def size(self) -> int:
        """Bytes of the database."""
        row = self.execute("SELECT pg_database_size(current_database())").fetchone()
        return int(row[0]) if row else 0

    def is_full(self, error: Exception | None = None) -> bool:
        """Whether the disk is full, or the database as large as it may be, half a minute ago."""
        if error is not None:
            return isinstance(error, self._psycopg.errors.DiskFull)
        if self._max_bytes is None:
            return False
        until, size = self._size
        if time.monotonic() >= until:
            size = self.size()
            self._size = (time.monotonic() + _SIZE_SECONDS, size)
        return size > self._max_bytes

    def version(self) -> int:
        """The version of the tables, 0 when there are none."""
        # Not by to_regclass, which may remember that there were none.
        found = self.execute(
            "SELECT 1 FROM pg_tables WHERE schemaname = current_schema AND tablename = 'narswarm'"
        ).fetchone()
        if found is None:
            return 0
        row = self.execute("SELECT version FROM narswarm").fetchone()
        return int(row[0]) if row else 0

    def upgrade(self) -> None:
        """Make the tables those of this version, one tracker at a time.

        Raises:
            InvalidInputError: they are of a later one.
        """
        with self.transaction():
            # Asked again: another tracker may have been faster.
            found = self.version()
            if found > VERSION:
                raise InvalidInputError(self.name, f"has version {found} instead of {VERSION}")
            if found == 0:
                self.execute("CREATE TABLE narswarm (version INTEGER NOT NULL)")
                self.execute("INSERT INTO narswarm VALUES (0)")
            for script in _UPGRADES[found:]:
                self.execute(script)
            self.execute("UPDATE narswarm SET version = ?", (VERSION,))

    def follow(self, callback: Callable[[], None], /) -> Callable[[], None]:
        """Call back when others change something, from a thread with a session of its own."""
        wake = os.eventfd(0, os.EFD_CLOEXEC)
        stopping = threading.Event()
        arguments = (callback, stopping, wake)
        thread = threading.Thread(target=self._follow, args=arguments, name="index", daemon=True)
        thread.start()

        def stop() -> None:
            stopping.set()
            os.eventfd_write(wake, 1)
            thread.join()
            os.close(wake)

        return stop

    def _follow(self, callback: Callable[[], None], stopping: threading.Event, wake: int) -> None:
        while not stopping.is_set():
            try:
                with self._psycopg.connect(
                    self._url, autocommit=True, connect_timeout=_CONNECT_SECONDS
                ) as session:
                    self._listen(session, callback, stopping, wake)
            except self._psycopg.Error as error:
                _log.debug("changes of others: %s", _first_line(error))
            stopping.wait(_RETRY_SECONDS)

    def _listen(
        self,
        session: psycopg.Connection[Any],
        callback: Callable[[], None],
        stopping: threading.Event,
        wake: int,
    ) -> None:
        session.add_notify_handler(lambda _: None)  # that it was received suffices
        session.execute(f"LISTEN {_CHANNEL}")
        poll = select.poll()
        poll.register(session.fileno(), select.POLLIN)
        poll.register(wake, select.POLLIN)
        while not stopping.is_set():
            callback()
            poll.poll(POLL_SECONDS * 1000)
            session.execute("SELECT 1")  # takes what was notified, and sees whether it still lives


def _first_line(error: Exception) -> str:
    """What PostgreSQL says, without its hints."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
