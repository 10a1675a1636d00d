"""What the lines of this package's ``JsonLog`` tell: how long starts and stops take, and when there was use.

They also tell how late it is noticed that a function is idle, which depends on how fast the machine is.

They do not tell of requests to a function that was up. But a function that was stopped had not been used for
the ``idle_after`` of that time; so it is known when it was used last, and what a longer one would have done.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..model import Function, InvalidFunctionName

MOST_TIMES = 1000
"""Starts of a function that are remembered."""

MOST_FUNCTIONS = 10_000

MOST_STOPS = 10_000
"""Stops of which it is remembered how late they were, the last ones."""


class EventReader:
    """Reads events, one after another. Of one thread.

    :param read_function: reads a function's name.
    :param decided_after: seconds from the end of a use until it was decided to stop a function.
    :ivar starts: how many seconds starts took.
    :ivar stops: how many seconds passed from each decision to stop a function until it was at zero.
    """

    def __init__(self, read_function: Callable[[str], Function], decided_after: float = 0.0) -> None:
        self._read_function = read_function
        self._decided_after = decided_after
        self.starts: dict[Function, list[float]] = {}
        self.stops: dict[Function, list[float]] = {}
        self._ready: dict[Function, tuple[float, float]] = {}
        self._late: deque[float] = deque(maxlen=MOST_STOPS)
        self.last = 0.0

    @property
    def late(self) -> float | None:
        """For how many seconds beyond ``idle_after`` functions had been idle when that was noticed:
        the median. ``None``: no event tells it."""
        return statistics.median(self._late) if self._late else None

    def __call__(self, event: Mapping[str, Any]) -> tuple[float, float, Function] | None:
        """Take an event; return the use that it ends: when that began, for how long it lasted, and of what.

        :raises ValueError: it has no time, or not the fields that belong to it.
        """
        try:
            kind, at = event["event"], float(event["time"])
            self.last = max(self.last, at)
            if kind not in ("function_ready", "function_stopped", "function_paused"):
                return None
            function, after = self._read_function(event["function"]), float(event["after"])
            late = event.get("late")  # events of an earlier release have none
            if late is not None:
                self._late.append(float(late))
        except (KeyError, TypeError, InvalidFunctionName) as error:
            raise ValueError(f"it is no event of a JsonLog: {error}") from None
        if kind == "function_ready":
            if event.get("led", True):
                self._note(self.starts, function, after)
            if len(self._ready) < MOST_FUNCTIONS:
                self._ready.setdefault(function, (at - after, at))
            return None
        self._note(self.stops, function, after)
        ready = self._ready.pop(function, None)
        if ready is None:
            return None
        came_at, ready_at = ready
        return came_at, max(0.0, at - after - self._decided_after - ready_at), function

    def unended(self) -> Iterator[tuple[float, float, Function]]:
        """Yield the uses of functions that were still up at the last line: as if in use until then."""
        for function, (came_at, ready_at) in self._ready.items():
            yield came_at, max(0.0, self.last - ready_at), function

    @staticmethod
    def _note(times: dict[Function, list[float]], function: Function, seconds: float) -> None:
        if function in times or len(times) < MOST_FUNCTIONS:
            known = times.setdefault(function, [])
            if len(known) < MOST_TIMES:
                known.append(seconds)
