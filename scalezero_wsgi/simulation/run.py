"""One function with one ``idle_after``: when it would have been up, and who would have waited.

The rules are those of :mod:`scalezero_wsgi.activation.idling`: idle time counts from the end of the last use,
as a worker notices it at its next turn; the function is stopped at the first turn at which it has been idle
for long enough. Requests that come while it starts share that start. One that comes while it is stopped waits
for the end of that, and starts it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .._lib.waits import Waits
from ..activation.idling.gate import REPORT_EVERY
from ..activation.idling.idler import LEAST_PACE, LONGEST_PACE, PACE
from ..activation.state import NEVER

TURN = 0.005
"""Seconds that a turn itself takes, with a store and some functions; as it was measured on a fast machine."""

TURNS = 4
"""At least so many turns there are in ``idle_after``; exactly so many where it is a moment."""


class Run:
    """Of one thread.

    :param idle_after: seconds.
    :param stop_takes: seconds from the decision to stop the function until it is at zero.
    :param start_takes: how many seconds one start after another takes; after the last it is the first again.
    :param was_up: called with the beginning and the end of each time in which the function was up.
    :param workers: how many the fleet has.
    :param late: see :func:`decided_after`.
    :ivar kept_for: seconds from the end of a use until no request keeps the function up any more, on average.
    :ivar up: seconds for which it was up, up to its last stop.
    """

    def __init__(
        self,
        idle_after: float,
        stop_takes: float,
        start_takes: Sequence[float],
        was_up: Callable[[float, float], None] | None = None,
        workers: int = 1,
        late: float | None = None,
    ) -> None:
        # The workers acknowledge at their next turn: up to then a request undoes it.
        acknowledged = turn_of(idle_after, late)
        self.idle_after, self.kept_for = idle_after, decided_after(idle_after, workers, late) + acknowledged
        self._stop_takes = max(0.0, stop_takes - acknowledged)
        self._start_takes, self._was_up = start_takes, was_up
        self._ended_at = self._ready_at = self._up_since = NEVER
        self.cold_starts, self.up, self.waits = 0, 0.0, Waits()

    def requests(self, requests: Iterable[tuple[float, float, float]]) -> None:
        """Have requests come.

        :param requests: in their order when each came, for how many seconds it is served, and when the uses
            before it have ended of which there is no word else, for they found the function up.
        """
        ended_at, ready_at, up_since = self._ended_at, self._ready_at, self._up_since
        kept_for, stop_takes, starts = self.kept_for, self._stop_takes, self._start_takes
        cold_starts, up, waited = self.cold_starts, self.up, self.waits.add
        for came_at, duration, ended_before in requests:
            if ended_before > ended_at:
                ended_at = ended_before
            begin = came_at
            if came_at > ended_at + kept_for:
                gone_at = ended_at + kept_for + stop_takes
                begin = gone_at if gone_at > came_at else came_at
                if cold_starts:
                    up += gone_at - up_since
                    if self._was_up is not None:
                        self._was_up(up_since, gone_at)
                takes = starts[cold_starts % len(starts)]
                cold_starts += 1
                up_since, ready_at = begin, begin + takes
                waited(begin - came_at + takes)
                begin = ready_at
            elif came_at < ready_at:
                waited(ready_at - came_at)
                begin = ready_at
            if begin + duration > ended_at:
                ended_at = begin + duration
        self._ended_at, self._ready_at, self._up_since = ended_at, ready_at, up_since
        self.cold_starts, self.up = cold_starts, up

    def end(self, at: float, ended_at: float = NEVER) -> None:
        """Count the last time in which it was up, as far as it lies before ``at``. Called once.

        :param ended_at: the end of uses of which there was no word else.
        """
        gone_at = max(self._ended_at, ended_at) + self.kept_for + self._stop_takes
        if self.cold_starts and min(at, gone_at) >= self._up_since:
            self.up += min(at, gone_at) - self._up_since
            if self._was_up is not None:
                self._was_up(self._up_since, min(at, gone_at))


def turn_of(idle_after: float, late: float | None = None) -> float:
    """Return how many seconds there are from one turn to the next of the idler that decides.

    :param late: see :func:`decided_after`. Where turns are long, for the machine is slow or there are many
        functions, it rests for longer between them.
    """
    usual = min(PACE, max(LEAST_PACE, idle_after / TURNS)) + TURN
    if late is None or idle_after < TURNS * PACE:
        return usual
    return max(usual, min(2 * late, LONGEST_PACE))


def decided_after(idle_after: float, workers: int = 1, late: float | None = None) -> float:
    """Return how many seconds after a use it is decided to stop a function: on average, for the use may end
    at any time between two turns of its worker, and be long enough ago at any time between two turns of the
    one that decides. Nobody knows which turn that is: each takes some milliseconds more or less.

    :param workers: how many the fleet has. The one that decides knows of another's use by its reports, each
        up to a turn old when it is read, and takes the latest end that follows from any of them.
    :param late: how many seconds functions have been idle for beyond ``idle_after`` at the first turn that
        finds them so, as it was measured; ``None``: half a turn of a fast machine.
    """
    turn = turn_of(idle_after, late)
    if idle_after <= TURNS * PACE:
        late = TURNS * turn - idle_after
    elif late is None:
        late = turn / 2
    reports = max(1.0, idle_after / REPORT_EVERY)
    others = (1 - 1 / workers) * turn * reports / (reports + 1)
    # The turns of the one that decides are the long ones; the others' only report.
    noticed = (turn + (workers - 1) * turn_of(idle_after)) / workers / 2
    return noticed + others + idle_after + late
