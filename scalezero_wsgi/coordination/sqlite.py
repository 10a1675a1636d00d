"""The store of workers on one host: a SQLite file in WAL mode, with short transactions and no daemon.

``PRAGMA data_version`` changes when another process commits, and takes microseconds to query, so changes are
noticed within milliseconds by polling. Times are ``time.monotonic()``, which all processes of a host share
until it reboots.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from .._lib.per_process import PerProcess
from .._lib.process_connection import ProcessConnection
from ..model import Function
from .base import Changes, Drain, Lease, SharedStatus, WorkerReport
from .codec import pack, pack_row, read_drain, unpack, unpack_row
from .sqlite_file import check_private, errors, fetch, is_busy, is_full, is_useless, prepare, reuse_log

T = TypeVar("T")

logger = logging.getLogger("scalezero_wsgi")

BUSY = 0.5
"""Seconds for which other processes may keep the file locked before the store counts as lost. A leader
acquires its lease, reads and renews it: three calls, which must fit into the lease."""

ROOM_TRIES = 10
"""Attempts to reuse the log's space when the disk is full: readers may prevent it for a moment."""

SWEEP_EVERY = 1.0
"""Seconds between two removals of what has expired, which nobody reads any more."""

CHANGE_POLL = 0.004
"""Seconds between two polls for a change."""

_HELD = "FROM leases WHERE name = ? AND namespace = ? AND token = ? AND expires > ?"


class _Process(ProcessConnection):
    """A process's connection, and the file to which it belongs."""

    def __init__(self) -> None:
        super().__init__()
        self.inode = 0
        self.log_index: int | None = None
        self.opened = 0
        self.swept_at = -math.inf


class _Changes:
    """A subscription that polls.

    :param look: returns a version, which differs after every commit, and a function that reads the state of
        the one function that is subscribed to.
    """

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
            time.sleep(min(CHANGE_POLL, left))
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
    """The store of the workers on one host.

    It is safe for threads and after a fork. While another process keeps the file busy, only the thread or
    greenlet that needs it waits.

    :param path: the file, on a local disk. Its directory is made if it does not exist, for its owner only.
    :param owner: the user id of the workers, if root makes the store for them; by default the process's own.
    :param clock: returns monotonic seconds, the same in all workers.
    :raises SettingError: the file or the directory belongs to another user, is a link, or is open to others.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        owner: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = Path(path).absolute()
        self._files = self._path, self._path.with_name(f"{self._path.name}-shm")
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
            # Tokens contain the time, so that they do not recur in a new file after this one was deleted.
            connection.execute("UPDATE boot SET token = max(token + 1, ?)", (int(now * 1_000_000),))
            token = fetch(connection, "SELECT token FROM boot")[0][0]
            lease = (*function, token, now + ttl)
            connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", lease)
            return Lease(function, worker, token)

        return self._write(take)

    def renew(self, lease: Lease, ttl: float) -> bool:
        """Extend the lease."""

        def keep(connection: sqlite3.Connection) -> bool:
            now = self._clock()
            update = (
                "UPDATE leases SET expires = ? WHERE name = ? AND namespace = ? AND token = ? AND expires > ?"
            )
            return connection.execute(update, (now + ttl, *lease.function, lease.token, now)).rowcount > 0

        return self._write(keep)

    def release(self, lease: Lease) -> None:
        """Release the lease."""

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute(f"DELETE {_HELD}", (*lease.function, lease.token, self._clock()))

        self._write(delete)

    def publish(self, lease: Lease, known: SharedStatus) -> bool:
        """Replace the shared status."""
        record, process = pack(known), self._process.get()
        published_at = self._clock()  # ages are of this moment, however long the file is busy

        def replace(connection: sqlite3.Connection) -> bool:
            now = self._clock()
            if now >= process.swept_at + SWEEP_EVERY:
                connection.execute("DELETE FROM leases WHERE expires <= ?", (now,))
                connection.execute("DELETE FROM known WHERE expires <= ?", (now,))
                process.swept_at = now
            insert = f"INSERT OR REPLACE INTO known SELECT name, namespace, ?, ?, ? {_HELD}"
            values = (published_at, published_at + known.keep, record, *lease.function, lease.token, now)
            return connection.execute(insert, values).rowcount > 0

        return self._write(replace)

    def known(self, function: Function) -> SharedStatus | None:
        """Return the shared status."""
        now = self._clock()
        select = "SELECT told, record FROM known WHERE name = ? AND namespace = ? AND expires > ?"
        rows = self._use(lambda connection: fetch(connection, select, *function, now))
        return unpack(rows[0][1], now - rows[0][0]) if rows else None

    @contextlib.contextmanager
    def changes(self, function: Function) -> Iterator[Changes]:
        """Subscribe to changes."""
        select = (
            "SELECT (SELECT token FROM leases WHERE name = ? AND namespace = ?), told, record"
            " FROM (SELECT 1) LEFT JOIN known ON name = ? AND namespace = ?"
        )

        def state() -> object:
            return self._use(lambda connection: fetch(connection, select, *function, *function))

        yield _Changes(lambda: (self._version(), state))

    def report(self, row: WorkerReport, ttl: float) -> None:
        """Replace the worker's report."""
        record = pack_row(row)

        def replace(connection: sqlite3.Connection) -> None:
            now = self._clock()
            connection.execute("DELETE FROM workers WHERE expires <= ?", (now,))
            values = (row.worker, now + ttl, record)
            connection.execute("INSERT OR REPLACE INTO workers VALUES (?, ?, ?)", values)

        self._write(replace)

    def leave(self, worker: str) -> None:
        """Remove the worker's report."""
        self._write(lambda connection: connection.execute("DELETE FROM workers WHERE worker = ?", (worker,)))

    def workers(self) -> Sequence[WorkerReport]:
        """Return the reports that have not expired."""
        select = "SELECT worker, record FROM workers WHERE expires > ?"
        rows = self._use(lambda connection: fetch(connection, select, self._clock()))
        return [unpack_row(worker, record) for worker, record in rows]

    def drains(self) -> Mapping[Function, Drain]:
        """Return the drains that are remembered."""
        select = "SELECT name, namespace, phase, epoch FROM drains WHERE expires > ?"
        rows = self._use(lambda connection: fetch(connection, select, self._clock()))
        return {Function(name, namespace): read_drain(phase, epoch) for name, namespace, phase, epoch in rows}

    def change_drain(
        self, function: Function, before: Drain | None, after: Drain | None, keep: float
    ) -> bool:
        """Compare and set the function's drain."""

        def change(connection: sqlite3.Connection) -> bool:
            now = self._clock()
            connection.execute("DELETE FROM drains WHERE expires <= ?", (now,))
            select = "SELECT phase, epoch FROM drains WHERE name = ? AND namespace = ?"
            expected = [] if before is None else [(before.phase.value, before.epoch)]
            if fetch(connection, select, *function) != expected:
                return False
            if after is None:
                connection.execute("DELETE FROM drains WHERE name = ? AND namespace = ?", function)
            else:
                row = (*function, after.phase.value, after.epoch, now + keep)
                connection.execute("INSERT OR REPLACE INTO drains VALUES (?, ?, ?, ?, ?)", row)
            return True

        return self._write(change)

    def _version(self) -> object:
        """Return what differs after every commit, of this process or another, and in another file."""
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
        """Do ``work`` once other processes do not lock the file; replace the file if it is corrupt.

        :raises CoordinationError: the file stays locked for ``BUSY`` seconds, or cannot be used.
        """
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
        # If the file was deleted or replaced, other workers use the new one. The same goes for the log's
        # index, which has the locks: on a tmpfs its modification time never changes, so that programs which
        # clean up take it for abandoned.
        files = tuple(map(_inode, self._files))
        if process.connection is not None and files == (process.inode, process.log_index):
            return process.connection
        process.close()
        return self._open(process)

    def _open(self, process: _Process) -> sqlite3.Connection:
        check_private(self._path, os.geteuid())
        with self._alone():
            if _inode(self._files[0]) is None:
                self._remove_log()  # SQLite would replay the log of a deleted file into the new one
                # Only make a file here, never open an existing one: to close it again would drop the
                # locks that another connection of this process has on it.
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            process.inode = self._path.stat().st_ino
            process.opened += 1
            if not os.access(self._path, os.W_OK):
                # SQLite would open it nevertheless, and make a log that stays read-only.
                raise PermissionError(errno.EACCES, "it is read-only")
            connection = sqlite3.connect(
                f"{self._path.as_uri()}?mode=rw",  # rw: else SQLite makes a missing file, open to others
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
            process.log_index = _inode(self._files[1])
            process.connection = connection
            return connection

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold this to make, prepare or replace the file, which one process at a time may do.

        :raises BlockingIOError: another process does so now.
        """
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(directory)

    def _set_aside(self, inode: int, why: BaseException) -> None:
        """Rename a corrupt or outdated file, unless another process has already done so."""
        with self._alone():
            if _inode(self._files[0]) == inode:
                aside = self._path.with_name(f"{self._path.name}.bad")
                self._path.replace(aside)
                self._remove_log()
                logger.warning("coordination: set %s aside as %s: %s", self._path, aside.name, why)

    def _remove_log(self) -> None:
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)


def _inode(file: Path) -> int | None:
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return None
