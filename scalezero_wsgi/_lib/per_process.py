"""A separate value for each process.

After a fork, a held lock stays held in the child, a thread is dead and a socket is shared. A lock made
before gevent patches the standard library freezes gevent's hub. So locks, threads and sockets are made on
first use, once in each process, and never at import or in a constructor.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Calls ``make`` on first use in each process and keeps its result.

    Safe for threads without a lock of its own: ``make`` may run twice if two threads call ``get``
    first at the same time, but both get the same value (``dict.setdefault`` is atomic).
    """

    __slots__ = ("_make", "_values")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int, T] = {}

    def get(self) -> T:
        """Return this process's value."""
        pid = os.getpid()
        try:
            return self._values[pid]
        except KeyError:
            return self._values.setdefault(pid, self._make())
