"""A wait that any of several threads can end."""

from __future__ import annotations

import contextlib
import threading


class Sleeper:
    """One thread that waits until any of several others wakes it.

    Only that thread may call :meth:`sleep`; any other may call :meth:`wake`. It belongs to one process: a
    copy in a forked child is never woken.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def sleep(self, timeout: float) -> None:
        """Block until woken, for at most ``timeout`` seconds; return at once if woken already."""
        self._lock.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """End the current sleep, or else the next one."""
        with contextlib.suppress(RuntimeError):  # woken already
            self._lock.release()
