"""One thread that checks, for all requests that wait in this process, whether they are to go on waiting.

A client may have disconnected, or the worker been told to stop. A thousand threads that each wake up
several times a second to check that themselves take a quarter of a processor.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from .._lib.sleeper import Sleeper
from ..model import TooManyWaiting

CHECK_EVERY = 0.1
"""Seconds between two checks of one request."""

CHECKS_PER_SECOND = 10_000
"""Checks per second that there are at most: with more requests waiting, each is checked less often."""

AT_ONCE = 25
"""Checks between two pauses: a thousand in one go would keep other threads from running."""


class Lookout:
    """Runs the thread as long as somebody waits. Of one process: not to be used after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[Sleeper, Callable[[], bool]] = {}
        self._runs = False

    @contextlib.contextmanager
    def watch(self, sleeper: Sleeper, may_wait: Callable[[], bool]) -> Iterator[None]:
        """Wake the sleeper when ``may_wait`` no longer holds.

        :param may_wait: returns ``False``, or raises, when the sleeper is to wait no longer. It must not
            block. It is called in another thread, so whoever is woken calls it again.
        :raises TooManyWaiting: no thread could be started.
        """
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
            each = max(CHECK_EVERY / len(watched), 1 / CHECKS_PER_SECOND)
            for first in range(0, len(watched), AT_ONCE):
                batch = watched[first : first + AT_ONCE]
                for sleeper, may_wait in batch:
                    if sleeper in self._watched and not _wants_to_wait(may_wait):
                        sleeper.wake()
                time.sleep(each * len(batch))


def _wants_to_wait(may_wait: Callable[[], bool]) -> bool:
    try:
        return may_wait()
    except BaseException:  # noqa: BLE001  whoever is woken calls it, and meets the error, again
        return False
