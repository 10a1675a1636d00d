"""A process's connection to a SQLite file, which is closed while the process forks."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref

FORK_WAITS = 10.0
"""Seconds for which a fork waits for a thread that uses a connection: longer than a busy disk takes.

SQLite has mutexes for the whole process. A child that is forked while another thread holds one waits for it
for ever, as soon as it uses SQLite itself. The wait has an end since a signal's handler may fork within the
very thread that uses a connection.
"""


class ProcessConnection:
    """What all threads of a process share; to be used under its lock.

    SQLite's locks belong to the process. A forked child does not inherit them, but its copy of the connection
    behaves as if it had: the log may be deleted while the child uses it.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.connection: sqlite3.Connection | None = None
        _all.add(self)

    def close(self) -> None:
        """Close the connection, if it is open."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def __del__(self) -> None:
        if self.pid == os.getpid():
            self.close()


_all: weakref.WeakSet[ProcessConnection] = weakref.WeakSet()
_forking: list[ProcessConnection] = []


def _connections() -> list[ProcessConnection]:
    while True:
        try:
            return list(_all)
        except RuntimeError:  # another thread has just made one: the set has changed while it was copied
            continue


def _before_fork() -> None:
    for each in _connections():
        if each.pid == os.getpid() and each.lock.acquire(timeout=FORK_WAITS):
            each.close()
            _forking.append(each)


def _after_fork() -> None:
    while _forking:
        _forking.pop().lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
