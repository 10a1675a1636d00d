"""How long to pause before the next try."""

from __future__ import annotations

from collections.abc import Iterator


def exponential(first: float, longest: float, factor: float) -> Iterator[float]:
    """Yield pauses in seconds, from ``first`` up to ``longest``, each ``factor`` times the one before."""
    pause = first
    while True:
        yield pause
        pause = min(longest, pause * factor)


def backoff_step(failures: int, first: float = 1.0, longest: float = 60.0) -> float:
    """Return the seconds to pause after ``failures`` failures in a row."""
    return min(longest, first * 2.0 ** min(failures - 1, 30))
