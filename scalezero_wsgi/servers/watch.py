"""Looks up for all who wait in this process: has the client gone, is the worker told to stop?

One thread does it for all. A thousand threads that each wake up for it several times a second take a
quarter of a processor.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from .._lib.sleeper import Sleeper
from ..model import TooManyWaiting

LOOK_EVERY = 0.1
"""Seconds between two looks."""

LOOKS = 10_000
"""Looks per second that there are at most: with more who wait each is looked at less often."""


class Lookout:
    """The thread runs as long as somebody waits. Of one process: not to be used after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[Sleeper, Callable[[], bool]] = {}
        self._runs = False

    @contextlib.contextmanager
    def watch(self, look_up: Callable[[], bool]) -> Iterator[Sleeper]:
        """Wake the sleeper when ``look_up`` says that it is to wait no longer.

        :param look_up: returns ``False`` or raises then. It must not block, and is called in another thread,
            so the one who is woken calls it again.
        :raises TooManyWaiting: no thread could be started.
        """
        sleeper = Sleeper()
        try:
            self._add(sleeper, look_up)
            yield sleeper
        finally:
            with self._lock:
                self._watched.pop(sleeper, None)

    def _add(self, sleeper: Sleeper, look_up: Callable[[], bool]) -> None:
        with self._lock:
            self._watched[sleeper] = look_up
            if not self._runs:
                try:
                    threading.Thread(target=self._run, name="scalezero-lookout", daemon=True).start()
                except RuntimeError:  # can't start new thread
                    raise TooManyWaiting("no thread could be started") from None
                self._runs = True

    def _run(self) -> None:
        count = 1
        while True:
            time.sleep(max(LOOK_EVERY, count / LOOKS))
            with self._lock:
                watched = list(self._watched.items())
                count = len(watched)
                if not count:
                    self._runs = False
                    return
            for number, (sleeper, look_up) in enumerate(watched, 1):
                if sleeper in self._watched and not _wants_to_wait(look_up):
                    sleeper.wake()
                if not number % 100:
                    time.sleep(0)  # a greenlet gives way to the others by nothing else


def _wants_to_wait(look_up: Callable[[], bool]) -> bool:
    try:
        return look_up()
    except BaseException:  # noqa: BLE001  whoever is woken meets it again
        return False
