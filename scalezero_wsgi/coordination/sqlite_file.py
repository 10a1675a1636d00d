"""The file of the SQLite store: its schema, its permissions, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..model import SettingError
from .base import CoordinationError

APPLICATION = 0x73630000
"""The ``PRAGMA application_id`` by which this package's files are recognized."""

VERSION = 1
"""The version of the schema (``PRAGMA user_version``)."""

_SCHEMA = (
    "CREATE TABLE boot (id TEXT NOT NULL, token INTEGER NOT NULL)",
    "CREATE TABLE leases (name TEXT, namespace TEXT, token INTEGER NOT NULL, expires REAL NOT NULL,"
    " PRIMARY KEY (name, namespace)) WITHOUT ROWID",
    "CREATE TABLE known (name TEXT, namespace TEXT, told REAL NOT NULL, expires REAL NOT NULL,"
    " record TEXT NOT NULL, PRIMARY KEY (name, namespace)) WITHOUT ROWID",
    "CREATE TABLE workers (worker TEXT PRIMARY KEY, expires REAL NOT NULL, record TEXT NOT NULL)"
    " WITHOUT ROWID",
    "CREATE INDEX lapsed ON leases (expires)",
    "CREATE INDEX forgotten ON known (expires)",
)

_DRAINS = (
    "CREATE TABLE IF NOT EXISTS drains (name TEXT, namespace TEXT, phase TEXT NOT NULL,"
    " epoch INTEGER NOT NULL, expires REAL NOT NULL, PRIMARY KEY (name, namespace)) WITHOUT ROWID"
)
"""Apart: a file that was made before there were drains has no such table, and is used on."""


class _OldFile(sqlite3.DatabaseError):
    pass


def prepare(connection: sqlite3.Connection) -> None:
    """Set the connection's options, create the tables of a new file, and empty one from before the last boot.

    :raises CoordinationError: the file belongs to another program, or to a later release.
    """
    application, version, tables = (
        fetch(connection, question)[0][0]
        for question in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    )
    if tables and application != APPLICATION:
        raise CoordinationError("the file is a database of another program")
    if tables and version > VERSION:
        raise CoordinationError(f"it is of a later release: version {version}, not {VERSION}")
    if tables and version != VERSION:
        raise _OldFile(f"it has version {version}, not {VERSION}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 100")  # pages: the log stays small
    connection.execute("PRAGMA synchronous = OFF")  # nothing here has to survive a crash of the host
    if not tables:
        _create_tables(connection)
    connection.execute(_DRAINS)
    if tables and fetch(connection, "SELECT id FROM boot")[0][0] != _boot_id():
        _empty(connection)


def _create_tables(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA:
        connection.execute(statement)
    connection.execute("INSERT INTO boot VALUES (?, 0)", (_boot_id(),))
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _empty(connection: sqlite3.Connection) -> None:
    """Delete all entries: their times are of an earlier boot's clock."""
    connection.execute("BEGIN IMMEDIATE")
    for table in ("leases", "known", "workers", "drains"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608
    connection.execute("UPDATE boot SET id = ?, token = 0", (_boot_id(),))
    connection.execute("COMMIT")


def fetch(connection: sqlite3.Connection, statement: str, *values: object) -> list[Any]:
    """Run a statement to its end and return all rows."""
    # Always all rows: a statement that has not ended keeps its transaction open.
    return connection.execute(statement, values).fetchall()


def reuse_log(connection: sqlite3.Connection) -> None:
    """Write the log's content to the file, so that the log's space can be reused.

    Closing the connection would free that space, and the store would come and go while the disk is full.
    """
    with contextlib.suppress(sqlite3.Error):  # the file itself may have to grow
        fetch(connection, "PRAGMA wal_checkpoint")


def is_full(error: BaseException) -> bool:
    """Return whether there is no space to write."""
    # The second is SQLite's code for an exceeded quota and for a limit on the size of files.
    extended = getattr(error, "sqlite_errorcode", None)
    return extended in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)


def is_busy(error: BaseException) -> bool:
    """Return whether another process has a lock."""
    return isinstance(error, BlockingIOError) or _code(error) == sqlite3.SQLITE_BUSY


def is_useless(error: BaseException) -> bool:
    """Return whether the file is corrupt, no database, or of an earlier version."""
    return isinstance(error, _OldFile) or _code(error) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def _code(error: BaseException) -> int | None:
    extended = getattr(error, "sqlite_errorcode", None)
    return None if extended is None else extended & 0xFF


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Turn errors of SQLite and of the file into :class:`CoordinationError`."""
    try:
        yield
    except SettingError as error:
        raise CoordinationError(str(error)) from error
    except (sqlite3.Error, OSError) as error:
        raise CoordinationError(f"{type(error).__name__}: {error}") from error


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    except OSError:
        return "-"


def check_private(path: Path, owner: int) -> None:
    """Make the file's directory if it does not exist; check that only ``owner`` can use both.

    :raises SettingError: others can, or the path cannot be used; the text says which and why.
    """
    try:
        try:
            path.parent.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            if not path.parent.is_dir():
                raise
        else:  # only what was made here: root must not give away what another user made
            if owner != os.geteuid():
                os.chown(path.parent, owner, -1, follow_symlinks=False)
        _check(path.parent, "directory", stat.S_ISDIR, 0o700, owner)
        with contextlib.suppress(FileNotFoundError):
            _check(path, "file", stat.S_ISREG, 0o600, owner)
    except OSError as error:
        raise SettingError(f"{str(path)!r} cannot be used: {error.strerror}") from None


def _check(path: Path, kind: str, is_kind: Callable[[int], bool], mode: int, owner: int) -> None:
    found = path.lstat()
    for wrong, why in (
        (not is_kind(found.st_mode), "a link or of another kind"),
        (kind == "file" and found.st_nlink > 1, "a link to another one"),
        (found.st_uid != owner, "another user's"),
        (found.st_mode & 0o077, f"open to others (mode {stat.S_IMODE(found.st_mode):04o})"),
    ):
        if wrong:
            raise SettingError(f"{str(path)!r} is {why}; it must be one's own {kind} of mode {mode:04o}")
