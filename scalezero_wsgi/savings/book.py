"""The SQLite file in which the workers of a host write down how long functions were up and requests waited.

What happens is added up at once, for each function and hour: so nothing grows with the traffic, and nothing
is lost that was written, whichever process is killed. Hours older than ``KEEP_HOURS`` are added up to days.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import unquote

from .._lib.per_process import PerProcess
from .._lib.process_connection import ProcessConnection
from .._lib.waits import Waits, class_of
from ..coordination.sqlite_file import check_private, fetch
from ..model import Function, ScaleZeroError, SettingError
from .life import UNHEARD, Change, Life, Span, State, seen

APPLICATION, VERSION = 0x737A7362, 1
"""The ``PRAGMA application_id`` by which these files are recognized, and the version of the schema."""

HOUR, DAY = 3600, 86400

KEEP_HOURS, KEEP_DAYS = 35 * DAY, 800 * DAY
"""Seconds for which hours, and days, are kept."""

BUSY = 0.25
"""Seconds that a call waits for another process that writes."""

_SCHEMA = (
    "CREATE TABLE functions (name TEXT, namespace TEXT, known_since REAL NOT NULL, state TEXT NOT NULL,"
    " since REAL NOT NULL, seen_at REAL NOT NULL, replicas INTEGER NOT NULL, PRIMARY KEY (name, namespace))"
    " WITHOUT ROWID",
    "CREATE TABLE spent (name TEXT, namespace TEXT, hour INTEGER, up REAL NOT NULL, paused REAL NOT NULL,"
    " unknown REAL NOT NULL, starts INTEGER NOT NULL, failures INTEGER NOT NULL,"
    " PRIMARY KEY (name, namespace, hour)) WITHOUT ROWID",
    "CREATE TABLE waits (name TEXT, namespace TEXT, hour INTEGER, class INTEGER, count INTEGER NOT NULL,"
    " seconds REAL NOT NULL, longest REAL NOT NULL, PRIMARY KEY (name, namespace, hour, class))"
    " WITHOUT ROWID",
    "CREATE TABLE watch (one INTEGER PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL,"
    " pruned_at REAL NOT NULL)",
    "INSERT INTO watch VALUES (1, '', 0, 0)",
)

T = TypeVar("T")


class BookError(ScaleZeroError):
    """The file cannot be read or written."""


class Entry(NamedTuple):
    """What a book says of one function, in a time.

    :ivar up: seconds for which replicas were up, those of each added up; ``paused`` and ``unknown`` likewise.
    :ivar always_on: seconds for which one would have been up, if it had been all the time.
    """

    function: Function
    up: float
    paused: float
    unknown: float
    always_on: float
    starts: int
    failures: int
    waits: Waits
    state: State

    @property
    def saved(self) -> float:
        """The seconds saved for sure: what is not known counts as up."""
        return self.always_on - self.up - self.unknown


class Answer(NamedTuple):
    """What a provider says of a function.

    :ivar at: when it was asked, in seconds since the epoch.
    """

    at: float
    state: State
    replicas: int

    def like(self, other: Answer) -> bool:
        """Return whether the other one says the same."""
        return self[1:] == other[1:]


class Book:
    """Safe for threads, after a fork, and for a process that is killed.

    :param path: the file, on a local disk.
    :param owner: the user id of the workers, if root makes it for them; by default the process's own.
    :raises SettingError: the file or its directory belongs to another user, or is open to others.
    """

    def __init__(self, path: str | os.PathLike[str], *, owner: int | None = None) -> None:
        self.path = Path(path).absolute()
        self._connection = PerProcess(ProcessConnection)
        check_private(self.path, os.geteuid() if owner is None else owner)

    # Write

    def change(self, function: Function, at: float, how: Callable[[Life], Change]) -> None:
        """Have a function's life go on.

        :param at: when that happened, in seconds since the epoch.
        :raises BookError: it could not be written; nothing was.
        """
        self._write(lambda connection: self._change(connection, function, at, how))

    def look(self, told: Mapping[Function, Answer], before: Mapping[Function, Life]) -> None:
        """Note what the provider has answered.

        :param before: the lives as they were before it was asked: what has changed since is not touched.
        :raises BookError: it could not be written; nothing was.
        """

        def note(connection: sqlite3.Connection) -> None:
            now = _lives(connection)
            for function, (at, state, replicas) in told.items():
                if now.get(function) == before.get(function):
                    how = partial(seen, at=at, state=state, replicas=replicas)
                    self._change(connection, function, at, how)

        self._write(note)

    @staticmethod
    def _change(
        connection: sqlite3.Connection, function: Function, at: float, how: Callable[[Life], Change]
    ) -> None:
        life = _life(connection, function) or UNHEARD
        changed = how(life)
        after = changed.life
        if after == life or after.since == -math.inf:  # nothing new, or nothing yet
            return
        connection.execute(
            "INSERT INTO functions VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name, namespace) DO UPDATE SET"
            " state = excluded.state, since = excluded.since, seen_at = excluded.seen_at,"
            " replicas = excluded.replicas",
            (*function, min(at, after.since), after.state.value, after.since, after.seen_at, after.replicas),
        )
        for span in changed.spans:
            for hour, seconds in by_hour(span):
                column = _COLUMNS[span.state]
                _add(connection, function, hour, {column: seconds * span.replicas})
        for start in changed.starts:
            _add(connection, function, _hour(start), {"starts": 1})

    def failed(self, function: Function, at: float) -> None:
        """Count a failed start.

        :raises BookError: it could not be written.
        """
        self._write(lambda connection: _add(connection, function, _hour(at), {"failures": 1}))

    def waited(self, function: Function, at: float, seconds: float) -> None:
        """Count a request that waited.

        :raises BookError: it could not be written.
        """
        values = (*function, _hour(at), class_of(seconds), 1, seconds, seconds)
        self._write(
            lambda connection: connection.execute(
                "INSERT INTO waits VALUES (?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (name, namespace, hour, class) DO UPDATE SET"
                " count = count + 1, seconds = seconds + excluded.seconds,"
                " longest = max(longest, excluded.longest)",
                values,
            )
        )

    def watches(self, owner: str, at: float, seconds: float) -> bool:
        """Return whether the owner is the one that watches, for some seconds from now on.

        Once a day old hours are added up to days.

        :raises BookError: the file cannot be used.
        """

        def take(connection: sqlite3.Connection) -> bool:
            taken = connection.execute(
                "UPDATE watch SET owner = ?, expires = ? WHERE owner = ? OR expires < ? OR expires > ?",
                (owner, at + seconds, owner, at, at + 100 * seconds),  # the last: the clock was put back
            ).rowcount
            if (
                taken
                and connection.execute(
                    "UPDATE watch SET pruned_at = ? WHERE abs(pruned_at - ?) > ?", (at, at, DAY)
                ).rowcount
            ):
                _prune(connection, at)
            return taken > 0

        return self._write(take)

    # Read

    def lives(self) -> dict[Function, Life]:
        """Return what each function is.

        :raises BookError: the file cannot be read.
        """
        return self._read(_lives)

    def entries(self, until: float, since: float = 0.0) -> list[Entry]:
        """Return what there is of each function, up to a moment.

        :param since: from the hour, or what is older the day, in which that lies.
        :raises BookError: the file cannot be read.
        """
        return self._read(lambda connection: _entries(connection, since, until))

    def close(self) -> None:
        """Close this process's connection; it is opened again when it is used."""
        connection = self._connection.get()
        with connection.lock:
            connection.close()

    def _write(self, do: Callable[[sqlite3.Connection], T]) -> T:
        def write(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = do(connection)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            return result

        return self._read(write)

    def _read(self, do: Callable[[sqlite3.Connection], T]) -> T:
        own = self._connection.get()
        if not own.lock.acquire(timeout=BUSY):
            raise BookError(f"{self.path}: it is in use for too long")
        try:
            if own.connection is None:
                own.connection = self._connect()
            return do(own.connection)
        except (sqlite3.Error, OSError) as error:
            own.close()
            raise BookError(f"{self.path}: {type(error).__name__}: {error}") from error
        finally:
            own.lock.release()

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            application = fetch(connection, "PRAGMA application_id")[0][0]
            if not application:
                connection.execute("BEGIN IMMEDIATE")
                if not fetch(connection, "SELECT count(*) FROM sqlite_master")[0][0]:
                    for statement in _SCHEMA:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {VERSION}")
                connection.execute("COMMIT")
                application = fetch(connection, "PRAGMA application_id")[0][0]
            if application != APPLICATION or fetch(connection, "PRAGMA user_version")[0][0] != VERSION:
                raise BookError(f"{self.path}: it is a database of another program, or of another release")
        except BaseException:
            connection.close()
            raise
        return connection


_COLUMNS = {State.UP: "up", State.PAUSED: "paused", State.UNKNOWN: "unknown"}


def path_of(url: str) -> str:
    """Return the path that a URL names.

    :raises SettingError: it is not of the form ``sqlite:///path/of/file``.
    """
    scheme, _, rest = url.partition("://")
    if scheme != "sqlite" or not re.fullmatch(r"/[^?#]+/[^?#/]+", rest):
        raise SettingError(f"{url!r} is not allowed; it must be sqlite:///path/of/file, and absolute")
    return unquote(rest)


def by_hour(span: Span) -> Iterator[tuple[int, float]]:
    """Yield the beginning of each hour that a span touches, and how many of its seconds lie in it."""
    begin = span.begin
    while begin < span.end:
        hour = _hour(begin)
        until = min(span.end, float(hour + HOUR))
        yield hour, until - begin
        begin = until


def _hour(at: float) -> int:
    return int(at // HOUR) * HOUR


def _life(connection: sqlite3.Connection, function: Function) -> Life | None:
    rows = fetch(
        connection,
        "SELECT state, since, seen_at, replicas FROM functions WHERE name = ? AND namespace = ?",
        *function,
    )
    return Life(State(rows[0][0]), *rows[0][1:]) if rows else None


def _lives(connection: sqlite3.Connection) -> dict[Function, Life]:
    rows = fetch(connection, "SELECT name, namespace, state, since, seen_at, replicas FROM functions")
    return {Function(name, namespace): Life(State(state), *rest) for name, namespace, state, *rest in rows}


def _add(connection: sqlite3.Connection, function: Function, hour: int, amounts: Mapping[str, float]) -> None:
    names = ("up", "paused", "unknown", "starts", "failures")
    values = [amounts.get(name, 0) for name in names]
    connection.execute(
        "INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (name, namespace, hour) DO UPDATE SET up = up + excluded.up,"
        " paused = paused + excluded.paused, unknown = unknown + excluded.unknown,"
        " starts = starts + excluded.starts, failures = failures + excluded.failures",
        (*function, hour, *values),
    )


def _prune(connection: sqlite3.Connection, now: float) -> None:
    before = int((now - KEEP_HOURS) // DAY) * DAY
    for table, keys, sums in (
        ("spent", "", "sum(up), sum(paused), sum(unknown), sum(starts), sum(failures)"),
        ("waits", ", class", "sum(count), sum(seconds), max(longest)"),
    ):
        days = f"SELECT name, namespace, hour - hour % {DAY} AS day{keys}, {sums} FROM {table}"  # noqa: S608
        for statement in (
            f"CREATE TEMP TABLE days AS {days} WHERE hour < {before} GROUP BY name, namespace, day{keys}",
            f"DELETE FROM {table} WHERE hour < {before}",  # noqa: S608
            f"INSERT INTO {table} SELECT * FROM temp.days",  # noqa: S608
            "DROP TABLE temp.days",
            f"DELETE FROM {table} WHERE hour < {_hour(now - KEEP_DAYS)}",  # noqa: S608
        ):
            connection.execute(statement)


def _entries(connection: sqlite3.Connection, since: float, until: float) -> list[Entry]:
    first = _hour(since)
    spent = {
        Function(name, namespace): sums
        for name, namespace, *sums in fetch(
            connection,
            "SELECT name, namespace, sum(up), sum(paused), sum(unknown), sum(starts), sum(failures)"
            " FROM spent WHERE hour >= ? AND hour <= ? GROUP BY name, namespace",
            first,
            until,
        )
    }
    waits: dict[Function, Waits] = {}
    for name, namespace, *counted in fetch(
        connection,
        "SELECT name, namespace, class, sum(count), sum(seconds), max(longest) FROM waits"
        " WHERE hour >= ? AND hour <= ? GROUP BY name, namespace, class",
        first,
        until,
    ):
        waits.setdefault(Function(name, namespace), Waits()).add_class(*counted)
    known_since = {
        Function(name, namespace): at
        for name, namespace, at in fetch(connection, "SELECT name, namespace, known_since FROM functions")
    }
    found = []
    for function, life in sorted(_lives(connection).items()):
        up, paused, unknown, starts, failures = spent.get(function, (0.0, 0.0, 0.0, 0, 0))
        for span in life.spans(until):
            seconds = max(0.0, span.end - max(span.begin, first)) * span.replicas
            up += seconds if span.state is State.UP else 0.0
            paused += seconds if span.state is State.PAUSED else 0.0
            unknown += seconds if span.state is State.UNKNOWN else 0.0
        always_on = max(0.0, until - max(known_since[function], first))
        told = waits.get(function, Waits())
        found.append(Entry(function, up, paused, unknown, always_on, starts, failures, told, life.state))
    return found


def total(entries: Sequence[Entry]) -> Entry:
    """Return all functions as one."""
    waits = Waits()
    for entry in entries:
        waits.include(entry.waits)
    return Entry(
        Function(""),
        math.fsum(entry.up for entry in entries),
        math.fsum(entry.paused for entry in entries),
        math.fsum(entry.unknown for entry in entries),
        math.fsum(entry.always_on for entry in entries),
        sum(entry.starts for entry in entries),
        sum(entry.failures for entry in entries),
        waits,
        State.UNKNOWN,
    )
