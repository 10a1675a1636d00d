"""Requests in the order in which they came: a server logs each when it ends."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import TypeVar

WINDOW = 600.0
"""Seconds within which a line may be late."""

MOST = 100_000
"""Lines that are held back at most."""

T = TypeVar("T")


def in_order(requests: Iterable[tuple[float, float, T]]) -> Iterator[tuple[float, float, T]]:
    """Yield when each request came, how long it took, and of what it is, in seconds and by when they came.

    One that is later than ``WINDOW`` is yielded with the others, out of its order.
    """
    held: list[tuple[float, int, float, T]] = []
    latest = -float("inf")
    for number, (came_at, duration, what) in enumerate(requests):
        heapq.heappush(held, (came_at, number, duration, what))
        latest = max(latest, came_at + duration)
        while held[0][0] < latest - WINDOW or len(held) > MOST:
            first = heapq.heappop(held)
            yield first[0], first[2], first[3]
    while held:
        first = heapq.heappop(held)
        yield first[0], first[2], first[3]
