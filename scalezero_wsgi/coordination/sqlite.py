"""The workers of one host meet in a SQLite file: no daemon, short transactions, WAL.

Another process's commit shows in ``PRAGMA data_version``, which costs microseconds to ask, so a change is
noticed within milliseconds without a socket. Times are ``time.monotonic()``, which all processes of a
host have in common until it boots again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from .._lib.per_process import PerProcess
from ..model import Function
from .base import Changes, Lease, SharedStatus, WorkerReport
from .codec import pack, pack_row, unpack, unpack_row
from .sqlite_file import check_private, errors, fetch, is_busy, is_full, is_useless, prepare, reuse_log

T = TypeVar("T")

logger = logging.getLogger("scalezero_wsgi")

BUSY = 0.5
"""Seconds for which other processes may keep the file to themselves before it counts as out of order. To take
a lease, look and renew it are three calls, for which there must be time while it lasts."""

ROOM_TRIES = 10
"""Tries to write into the room that the log has, when there is no more: readers may be in the way."""

LOOK_EVERY = 0.004
"""Seconds between two looks for a change."""

_HELD = "FROM leases WHERE name = ? AND namespace = ? AND token = ? AND expires > ?"


class _Process:
    """What this process has of a file: one connection for all threads, which is closed while it forks.

    SQLite's locks are the process's, not the connection's, and a forked child has none of them but believes
    it has: with a connection that was open over a fork, the log is deleted under the child's feet.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: sqlite3.Connection | None = None
        self.inode = 0
        self.log_index: int | None = None
        self.opened = 0
        self.pid = os.getpid()
        _processes.add(self)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def __del__(self) -> None:
        if self.pid == os.getpid():
            self.close()


_processes: weakref.WeakSet[_Process] = weakref.WeakSet()
_forking: list[_Process] = []


def _before_fork() -> None:
    for process in list(_processes):
        if process.pid == os.getpid() and process.lock.acquire(timeout=BUSY):
            process.close()
            _forking.append(process)


def _after_fork() -> None:
    while _forking:
        _forking.pop().lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


class _Changes:
    def __init__(self, look: Callable[[], tuple[object, Callable[[], object]]]) -> None:
        self._look = look
        self._version: object = None
        self._state: object = None
        self._changed()

    def wait(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while not self._changed():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(LOOK_EVERY, left))
        return True

    def _changed(self) -> bool:
        version, state_of = self._look()
        if version == self._version:
            return False
        state = state_of()
        changed = state != self._state
        self._version, self._state = version, state
        return changed


class SQLiteCoordination:
    """The store of one host's workers. Safe for threads and after a fork; while another process keeps
    the file busy, only the thread or greenlet that needs it waits.

    :param path: of the file, on a local disk. Its directory is made, for its owner alone, if there is none.
    :param owner: the user id of the workers, when root makes the store for them; by default one's own.
    :param clock: monotonic seconds that all workers have in common.
    :raises SettingError: the file or the directory is somebody else's, a link, or open to others.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        owner: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = Path(path).absolute()
        self._clock = clock
        self._process: PerProcess[_Process] = PerProcess(_Process)
        check_private(self._path, os.geteuid() if owner is None else owner)

    def acquire(self, function: Function, worker: str, ttl: float) -> Lease | None:
        """See :class:`~scalezero_wsgi.coordination.base.Coordination`, as for all methods."""

        def take(connection: sqlite3.Connection) -> Lease | None:
            now = self._clock()
            held = "SELECT 1 FROM leases WHERE name = ? AND namespace = ? AND expires > ?"
            if fetch(connection, held, *function, now):
                return None
            # With the time in it a token does not come again in a new file, when this one was deleted.
            connection.execute("UPDATE boot SET token = max(token + 1, ?)", (int(now * 1_000_000),))
            token = fetch(connection, "SELECT token FROM boot")[0][0]
            lease = (*function, token, now + ttl)
            connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", lease)
            return Lease(function, worker, token)

        return self._write(take)

    def renew(self, lease: Lease, ttl: float) -> bool:
        """Keep the lease."""

        def keep(connection: sqlite3.Connection) -> bool:
            now = self._clock()
            update = (
                "UPDATE leases SET expires = ? WHERE name = ? AND namespace = ? AND token = ? AND expires > ?"
            )
            return connection.execute(update, (now + ttl, *lease.function, lease.token, now)).rowcount > 0

        return self._write(keep)

    def release(self, lease: Lease) -> None:
        """Give the lease back."""
        self._write(lambda it: it.execute(f"DELETE {_HELD}", (*lease.function, lease.token, self._clock())))

    def publish(self, lease: Lease, known: SharedStatus) -> bool:
        """Replace what is known."""
        record = pack(known)
        told = self._clock()  # an age is of this moment, however long the file is busy

        def tell(connection: sqlite3.Connection) -> bool:
            now = self._clock()
            connection.execute("DELETE FROM leases WHERE expires <= ?", (now,))
            connection.execute("DELETE FROM known WHERE expires <= ?", (now,))
            insert = f"INSERT OR REPLACE INTO known SELECT name, namespace, ?, ?, ? {_HELD}"
            values = (told, told + known.keep, record, *lease.function, lease.token, now)
            return connection.execute(insert, values).rowcount > 0

        return self._write(tell)

    def known(self, function: Function) -> SharedStatus | None:
        """What is known."""
        now = self._clock()
        select = "SELECT told, record FROM known WHERE name = ? AND namespace = ? AND expires > ?"
        rows = self._use(lambda connection: fetch(connection, select, *function, now))
        return unpack(rows[0][1], now - rows[0][0]) if rows else None

    @contextlib.contextmanager
    def changes(self, function: Function) -> Iterator[Changes]:
        """Subscribe."""
        select = (
            "SELECT (SELECT token FROM leases WHERE name = ? AND namespace = ?), told, record"
            " FROM (SELECT 1) LEFT JOIN known ON name = ? AND namespace = ?"
        )

        def state() -> object:
            return self._use(lambda connection: fetch(connection, select, *function, *function))

        yield _Changes(lambda: (self._version(), state))

    def report(self, row: WorkerReport, ttl: float) -> None:
        """Say what a worker does."""
        record = pack_row(row)

        def tell(connection: sqlite3.Connection) -> None:
            now = self._clock()
            connection.execute("DELETE FROM workers WHERE expires <= ?", (now,))
            values = (row.worker, now + ttl, record)
            connection.execute("INSERT OR REPLACE INTO workers VALUES (?, ?, ?)", values)

        self._write(tell)

    def leave(self, worker: str) -> None:
        """Take a row away."""
        self._write(lambda connection: connection.execute("DELETE FROM workers WHERE worker = ?", (worker,)))

    def workers(self) -> Sequence[WorkerReport]:
        """Who lives."""
        select = "SELECT worker, record FROM workers WHERE expires > ?"
        rows = self._use(lambda connection: fetch(connection, select, self._clock()))
        return [unpack_row(worker, record) for worker, record in rows]

    def _version(self) -> object:
        """Differs after every commit: of other processes, of this one, or in another file."""
        process = self._process.get()

        def version(connection: sqlite3.Connection) -> object:
            data_version = fetch(connection, "PRAGMA data_version")[0][0]
            return process.opened, data_version, connection.total_changes

        return self._use(version)

    # The use of the file

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def transaction(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN IMMEDIATE")
            done = work(connection)
            connection.execute("COMMIT")
            return done

        return self._use(transaction)

    def _use(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do ``work`` as soon as other processes let it, in a good file if this one turns out to be bad."""
        process = self._process.get()
        deadline = time.monotonic() + BUSY
        renewed = False
        room_tries = 0
        with errors():
            while True:
                try:
                    with process.lock:
                        return self._try(process, work)
                except (sqlite3.DatabaseError, BlockingIOError) as error:
                    if is_useless(error) and not renewed:
                        renewed = True
                    elif is_full(error) and room_tries < ROOM_TRIES:
                        room_tries += 1
                    elif not is_busy(error) or time.monotonic() > deadline:
                        raise
                # SQLite's own wait would hold up all greenlets of a gevent worker.
                time.sleep(0.001)

    def _try(self, process: _Process, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return work(self._connection(process))
        except BaseException as error:
            if process.connection is not None and (is_busy(error) or is_full(error)):
                process.connection.rollback()
                if is_full(error):
                    reuse_log(process.connection)
            else:
                process.close()
            if is_useless(error):
                self._set_aside(process.inode, error)
            raise

    def _connection(self, process: _Process) -> sqlite3.Connection:
        # The others meet in a new file when this one was deleted or replaced. The same with the log's index,
        # which has the locks: on a tmpfs its time stands still, and tidy programs take it for abandoned.
        files = (self._inode(), self._inode("-shm"))
        if process.connection is not None and files == (process.inode, process.log_index):
            return process.connection
        process.close()
        return self._open(process)

    def _inode(self, suffix: str = "") -> int | None:
        try:
            return Path(f"{self._path}{suffix}").stat().st_ino
        except FileNotFoundError:
            return None

    def _open(self, process: _Process) -> sqlite3.Connection:
        check_private(self._path, os.geteuid())
        with self._alone():
            if self._inode() is None:
                self._remove_log()  # one that a deleted file has left would be played into the new one
                # A file that is there must not be opened but by SQLite: to close it again would drop
                # the locks that another connection of this process has on it.
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            process.inode = self._path.stat().st_ino
            process.opened += 1
            if not os.access(self._path, os.W_OK):
                # SQLite would open it all the same, and make a log that stays read-only for ever.
                raise PermissionError(errno.EACCES, "it is read-only")
            connection = sqlite3.connect(
                f"{self._path.as_uri()}?mode=rw",  # else it makes one that is gone by now, open to others
                uri=True,
                timeout=0.0,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                prepare(connection)
            except BaseException:
                connection.close()
                raise
            process.log_index = self._inode("-shm")
            process.connection = connection
            return connection

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time make, prepare or replace the file.

        :raises BlockingIOError: another one does.
        """
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(directory)

    def _set_aside(self, inode: int, why: BaseException) -> None:
        """Rename a file that is of no use, unless another process has done so by now."""
        with self._alone():
            if self._inode() == inode:
                aside = self._path.with_name(f"{self._path.name}.bad")
                self._path.replace(aside)
                self._remove_log()
                logger.warning("coordination: set %s aside as %s: %s", self._path, aside.name, why)

    def _remove_log(self) -> None:
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
