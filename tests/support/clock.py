"""A clock that stands still until it is told to move."""

from __future__ import annotations

import time


class Clock:
    """Monotonic seconds, from 0."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    sleep = advance


class MovingClock(Clock):
    """A clock that goes as clocks do, and can be put forward besides."""

    def __call__(self) -> float:
        return self.now + time.monotonic()
