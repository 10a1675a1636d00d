"""A clock that stands still until it is told to move."""

from __future__ import annotations


class Clock:
    """Monotonic seconds, from 0."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    sleep = advance
