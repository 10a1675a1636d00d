"""One thread that checks, for all waiting requests of this process, whether they may go on waiting.

A client may have disconnected, or the worker may have been told to stop. If a thousand waiting threads each
woke up several times a second to check that, they would use a quarter of a processor.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from .._lib.per_process import PerProcess
from .._lib.sleeper import Sleeper
from ..model import TooManyWaiting

CHECK_EVERY = 0.1
"""Seconds between two checks of one request."""

MANY, CHECK_MANY_EVERY = 100, 0.25
"""If more requests wait, each is checked less often: a quarter of a second is soon enough to notice."""

CHECKS_PER_SECOND = 10_000
"""The most checks per second: if more requests wait, each is checked less often."""

AT_ONCE = 50
"""Checks between two pauses: a thousand in one go would keep other threads from running; with few in one go
the pauses cost more than the checks."""


class Lookout:
    """Runs the thread while anybody waits. It belongs to one process: do not use it after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[Sleeper, Callable[[], bool]] = {}
        self._runs = False

    @contextlib.contextmanager
    def watch(self, sleeper: Sleeper, may_wait: Callable[[], bool] | None) -> Iterator[None]:
        """Wake the sleeper when ``may_wait`` no longer returns ``True``.

        :param may_wait: returns ``False``, or raises, when the sleeper must stop waiting. It must not block.
            It is called in another thread, so the woken thread calls it again. ``None``: it may always wait.
        :raises TooManyWaiting: no thread could be started.
        """
        if may_wait is None:
            yield
            return
        try:
            with self._lock:
                self._watched[sleeper] = may_wait
                if not self._runs:
                    try:
                        threading.Thread(target=self._run, name="scalezero-lookout", daemon=True).start()
                    except RuntimeError:  # can't start new thread
                        raise TooManyWaiting("no thread could be started") from None
                    self._runs = True
            yield
        finally:
            with self._lock:
                self._watched.pop(sleeper, None)

    def _run(self) -> None:
        time.sleep(CHECK_EVERY)
        while True:
            with self._lock:
                watched = list(self._watched.items())
                if not watched:
                    self._runs = False
                    return
            turn = CHECK_EVERY if len(watched) <= MANY else CHECK_MANY_EVERY
            each = max(turn / len(watched), 1 / CHECKS_PER_SECOND)
            for first in range(0, len(watched), AT_ONCE):
                batch = watched[first : first + AT_ONCE]
                for sleeper, may_wait in batch:
                    if sleeper in self._watched and not _wants_to_wait(may_wait):
                        sleeper.wake()
                time.sleep(each * len(batch))


lookout = PerProcess(Lookout).get
"""Return the lookout of this process."""


def _wants_to_wait(may_wait: Callable[[], bool]) -> bool:
    try:
        return may_wait()
    except BaseException:  # noqa: BLE001  the woken thread calls it again, and meets the error
        return False
