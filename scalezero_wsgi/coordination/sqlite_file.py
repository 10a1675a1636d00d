"""The file of the SQLite store: its layout, who may use it, and what its errors mean."""

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
"""Tells our files from other programs' (``PRAGMA application_id``)."""

VERSION = 1

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


class _OldFile(sqlite3.DatabaseError):
    pass


def prepare(connection: sqlite3.Connection) -> None:
    """Lay a new file out, and empty one from before the last boot.

    :raises CoordinationError: it is another program's, or a later release's.
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
    connection.execute("PRAGMA synchronous = OFF")  # nothing here is worth a disk's time
    if not tables:
        _lay_out(connection)
    elif fetch(connection, "SELECT id FROM boot")[0][0] != _boot_id():
        _empty(connection)


def _lay_out(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA:
        connection.execute(statement)
    connection.execute("INSERT INTO boot VALUES (?, 0)", (_boot_id(),))
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _empty(connection: sqlite3.Connection) -> None:
    """The times of an earlier boot mean nothing now."""
    connection.execute("BEGIN IMMEDIATE")
    for table in ("leases", "known", "workers"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608
    connection.execute("UPDATE boot SET id = ?, token = 0", (_boot_id(),))
    connection.execute("COMMIT")


def fetch(connection: sqlite3.Connection, statement: str, *values: object) -> list[Any]:
    """Run a statement to its end and return all rows."""
    # All rows, always: a statement that has not come to its end keeps its transaction open.
    return connection.execute(statement, values).fetchall()


def reuse_log(connection: sqlite3.Connection) -> None:
    """Have the log begin anew in the room it has.

    To close the connection would free that room, and the store would come and go while the disk is full.
    """
    with contextlib.suppress(sqlite3.Error):  # the file itself may have to grow
        fetch(connection, "PRAGMA wal_checkpoint")


def is_full(error: BaseException) -> bool:
    """Return whether there was no room to write."""
    # The latter is what SQLite makes of a quota and of a limit to the size of files.
    extended = getattr(error, "sqlite_errorcode", None)
    return extended in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)


def is_busy(error: BaseException) -> bool:
    """Return whether another process was at it."""
    return isinstance(error, BlockingIOError) or _code(error) == sqlite3.SQLITE_BUSY


def is_useless(error: BaseException) -> bool:
    """Return whether the file itself is of no use."""
    return isinstance(error, _OldFile) or _code(error) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def _code(error: BaseException) -> int | None:
    extended = getattr(error, "sqlite_errorcode", None)
    return None if extended is None else extended & 0xFF


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Raise what goes wrong as :class:`CoordinationError`."""
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
    """Make the file's directory if there is none, and refuse what is not the owner's alone.

    :raises SettingError: it names the path and what is wrong.
    """
    try:
        try:
            path.parent.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            if not path.parent.is_dir():
                raise
        else:  # never what another user made: this may be root
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
