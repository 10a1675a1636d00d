"""Waits for what other threads or processes do, instead of for a fixed time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

PATIENCE = 30.0
"""Seconds after which a test that hangs fails."""

SOON = 2.0
"""Seconds that stand for "at once" beside much longer waits, however busy the machine is."""


def until(condition: Callable[[], object], timeout: float = PATIENCE, pause: float = 0.001) -> None:
    """Wait until the condition holds, and fail if it does not within ``timeout`` seconds.

    :param pause: seconds between two looks; more of them where a look costs something.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain"
        time.sleep(pause)


@contextlib.contextmanager
def ended_threads() -> Iterator[None]:
    """Wait at the end of the block until the threads that were started in it have ended."""
    before = set(threading.enumerate())
    yield
    until(lambda: set(threading.enumerate()) <= before)
