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


def until(
    condition: Callable[[], object],
    timeout: float = PATIENCE,
    pause: float | None = None,
    ignoring: tuple[type[Exception], ...] = (),
) -> None:
    """Wait until the condition holds, and fail if it does not within ``timeout`` seconds.

    :param pause: seconds between two looks; by default one millisecond at first and ten in the end, for a
        look at a server or an engine costs something.
    :param ignoring: errors of the condition that mean that it does not hold yet.
    """
    deadline = time.monotonic() + timeout
    next_pause = 0.001 if pause is None else pause
    while True:
        with contextlib.suppress(*ignoring):
            if condition():
                return
        assert time.monotonic() < deadline, f"waited {timeout} s in vain"
        time.sleep(next_pause)
        if pause is None:
            next_pause = min(1.2 * next_pause, 0.01)


@contextlib.contextmanager
def ended_threads() -> Iterator[None]:
    """Wait at the end of the block until the threads that were started in it have ended."""
    before = set(threading.enumerate())
    yield
    until(lambda: set(threading.enumerate()) <= before)
