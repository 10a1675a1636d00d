"""A wait that several sides may end."""

from __future__ import annotations

import contextlib
import threading


class Sleeper:
    """One thread that waits until any of several others wakes it.

    :meth:`sleep` is for the one thread; :meth:`wake` is safe from any other. Of one process: a copy in a
    forked child is woken by nobody.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def sleep(self, timeout: float) -> None:
        """Block until woken, at most ``timeout`` seconds; not at all if woken already."""
        self._lock.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """End the sleep, or the next one."""
        with contextlib.suppress(RuntimeError):  # has been woken already
            self._lock.release()
