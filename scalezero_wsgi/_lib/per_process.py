"""A value of its own for every process.

A lock held, a thread started or a socket opened before a fork is dead or shared in the child, and a
lock made before gevent patches the standard library freezes its hub. So nothing of the kind is made at
import or in a constructor: it is made on first use, once in each process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Calls ``make`` on first use in each process and remembers the outcome.

    Safe for threads without a lock of its own: ``make`` may run twice when two threads come first at
    once, but all get the same value (``dict.setdefault`` is atomic).
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
