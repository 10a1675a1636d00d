"""All functions of a log, each with a range of ``idle_after``."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from .._lib.waits import Waits
from ..activation.state import NEVER
from ..model import Function
from .knee import knee
from .regularity import Calendar, Spent, Uses, as_hours, length_of
from .run import Run

IDLE_AFTERS = (60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0)
"""Seconds, tried where nothing else is said."""

NEGLIGIBLE = 0.05
"""A share of the time that is always on: differences far below that are not worth a cold start."""


class Outcome(NamedTuple):
    """What would have come of one ``idle_after``.

    :ivar idle_after: seconds.
    :ivar up: seconds for which the function, or all of them together, would have been up.
    :ivar waits: of the requests that would have waited.
    """

    idle_after: float
    cold_starts: int
    up: float
    waits: Waits


class Warm(NamedTuple):
    """What ``keep_warm`` would bring, beside the recommended ``idle_after``.

    :ivar hours: the text of the setting.
    :ivar spared: cold starts that there would not have been.
    :ivar more_up: seconds for which the function would have been up in addition; about.
    """

    hours: str
    spared: int
    more_up: float


class Prediction(NamedTuple):
    """What is foretold of one function.

    :ivar always_on: seconds from the first line of the log to the last.
    :ivar recommended: the index of the outcome at the knee.
    """

    function: Function
    requests: int
    always_on: float
    outcomes: Sequence[Outcome]
    recommended: int
    warm: Warm | None


class Times:
    """How long functions take to start and to stop.

    :param starts: seconds, of functions of which something is known; each at least one.
    :param otherwise: the seconds that the others take to start.
    :param stops: seconds from the decision to stop a function until it is at zero; 0 for others.
    :param workers: how many the fleet has: of several it notices a little later that a use has ended.
    :param late: see :func:`.run.decided_after`.
    """

    def __init__(
        self,
        starts: Mapping[Function, Sequence[float]],
        otherwise: float,
        stops: Mapping[Function, Sequence[float]] | None = None,
        workers: int = 1,
        late: float | None = None,
    ) -> None:
        self.workers, self.late = workers, late
        self._starts, self._otherwise, self._stops = starts, otherwise, stops or {}

    def starts(self, function: Function) -> Sequence[float]:
        """Return how many seconds its starts take."""
        return self._starts.get(function) or [self._otherwise]

    def knows(self, function: Function) -> bool:
        """Return whether something is known of its starts in particular."""
        return function in self._starts

    def stop(self, function: Function) -> float:
        """Return how many seconds it takes to stop it."""
        stops = self._stops.get(function)
        return sum(stops) / len(stops) if stops else 0.0


class FunctionSimulation:
    """One function, with each ``idle_after``. Of one thread.

    Only those requests are kept that may find the function at zero, or starting, with one of them; all others
    do nothing but use it.
    """

    __slots__ = (
        *("_calendar", "_came_at", "_duration", "_ended_at", "_ended_before", "_idle_afters", "_ready_by"),
        *("_late", "_shortest", "_start_takes", "_starts", "_stop_takes", "_uses", "_workers", "requests"),
    )

    def __init__(
        self, function: Function, idle_afters: Sequence[float], times: Times, calendar: Calendar
    ) -> None:
        self._calendar, self._uses, self._idle_afters = calendar, Uses(calendar), idle_afters
        self._starts, self._stop_takes = times.starts(function), times.stop(function)
        self._workers, self._late = times.workers, times.late
        self._start_takes = max(self._starts) + self._stop_takes
        self._shortest = min(self._run(idle_after).kept_for for idle_after in idle_afters)
        self._came_at, self._duration, self._ended_before = array("d"), array("f"), array("d")
        self._ended_at = self._ready_by = NEVER
        self.requests = 0

    def request(self, came_at: float, duration: float) -> None:
        """Have a request come.

        :param came_at: seconds since the epoch.
        :param duration: seconds for which it is served.
        """
        self.requests += 1
        if came_at >= self._uses.until:
            self._uses.note(came_at)
        ended_at = self._ended_at
        is_late = came_at > ended_at + self._shortest
        if is_late or came_at < self._ready_by:
            self._came_at.append(came_at)
            self._duration.append(duration)
            self._ended_before.append(ended_at)
            if is_late:
                self._ready_by = came_at + self._start_takes
        if came_at + duration > ended_at:
            self._ended_at = came_at + duration

    def _run(self, idle_after: float, was_up: Callable[[float, float], None] | None = None) -> Run:
        return Run(idle_after, self._stop_takes, self._starts, was_up, self._workers, self._late)

    def _ran(
        self, idle_after: float, last: float, was_up: Callable[[float, float], None] | None = None
    ) -> Run:
        run = self._run(idle_after, was_up)
        run.requests(zip(self._came_at, self._duration, self._ended_before, strict=True))
        run.end(last, self._ended_at)
        return run

    def result(self, function: Function, first: float, last: float) -> Prediction:
        """Return what is foretold.

        :param first: the time of the log's first request, in seconds since the epoch; ``last``: of its end.
        """
        runs = [self._ran(idle_after, last) for idle_after in self._idle_afters]
        outcomes = [Outcome(run.idle_after, run.cold_starts, run.up, run.waits) for run in runs]
        points = [(outcome.up, float(outcome.cold_starts)) for outcome in outcomes]
        recommended = knee(points, NEGLIGIBLE * (last - first))
        warm = self._warm(self._idle_afters[recommended], first, last)
        return Prediction(function, self.requests, last - first, outcomes, recommended, warm)

    def _warm(self, idle_after: float, first: float, last: float) -> Warm | None:
        periods = self._calendar.periods(first, last)
        slots = self._uses.regular(periods)
        if not slots:
            return None
        spent = Spent(self._calendar)
        self._ran(idle_after, last, spent.note)
        spared = sum(spent.starts(slot) for slot in slots)
        if not spared:
            return None
        length = length_of(slots, periods)
        up = sum(spent.up(slot) for slot in slots)
        return Warm(as_hours(slots, self._calendar.zone), spared, max(0.0, length - up))


class Simulation:
    """Of one thread. The requests of each function must come in their order; one that comes late counts as
    if it had come with the one before.

    :param idle_afters: seconds, the shortest first.
    """

    def __init__(self, idle_afters: Sequence[float], times: Times, calendar: Calendar) -> None:
        self._idle_afters, self._times, self._calendar = idle_afters, times, calendar
        self._functions: dict[Function, FunctionSimulation] = {}
        self.first, self.last = math.inf, -math.inf

    def run(self, requests: Iterable[tuple[float, float, Function]]) -> None:
        """Have requests come.

        :param requests: when each came, in seconds since the epoch, how many seconds it took, and for what.
        """
        functions, latest = self._functions, -math.inf
        first, last = self.first, self.last
        for came_at, duration, function in requests:
            latest = max(latest, came_at)
            first, last = min(first, came_at), max(last, came_at + duration)
            simulated = functions.get(function)
            if simulated is None:
                simulated = self._begin(function)
            simulated.request(latest, duration)
        self.first, self.last = first, last

    def _begin(self, function: Function) -> FunctionSimulation:
        simulated = FunctionSimulation(function, self._idle_afters, self._times, self._calendar)
        self._functions[function] = simulated
        return simulated

    def results(self, is_known: Callable[[Function], bool] = lambda _: True) -> list[Prediction]:
        """Return what is foretold of each function, by name. Called once."""
        return [
            simulated.result(function, self.first, self.last)
            for function, simulated in sorted(self._functions.items())
            if is_known(function)
        ]


def total(predictions: Sequence[Prediction]) -> list[Outcome]:
    """Return the outcomes of all functions together, for each ``idle_after``. There must be a function."""
    sums = []
    for together in zip(*(prediction.outcomes for prediction in predictions), strict=True):
        waits = Waits()
        for outcome in together:
            waits.include(outcome.waits)
        cold_starts = sum(outcome.cold_starts for outcome in together)
        sums.append(Outcome(together[0].idle_after, cold_starts, math.fsum(o.up for o in together), waits))
    return sums
