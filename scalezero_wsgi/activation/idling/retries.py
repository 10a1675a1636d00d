"""When a function may be brought to zero again, after what became of the last try."""

from __future__ import annotations

from collections.abc import Callable

from ..._lib.backoff import backoff_step
from ...events import Reporter, StopRefused
from ...model import Function
from ..state import NEVER
from .drain import Outcome, Result

PUT_OFF = {
    Outcome.BUSY: 0.1,
    Outcome.NOT_IDLE: 1.0,
    Outcome.VETOED: 5.0,
    Outcome.DRY_RUN: 600.0,
    Outcome.LOST: 1.0,
    Outcome.FAILED: 10.0,
    Outcome.UNANSWERED: 5.0,
    Outcome.IN_USE: 30.0,
}
"""Seconds after which a function is looked at again."""

REFUSED_FIRST, REFUSED_LONGEST = 60.0, 3600.0
"""Seconds after which a provider that refuses zero is asked again, at first and in the end."""

KEPT = 32
"""Moments that are kept although they may have passed."""


class Retries:
    """Of one idler. Several threads note, each for another function.

    :param report: is told of refusals.
    :param clock: monotonic seconds.
    """

    def __init__(self, report: Reporter, clock: Callable[[], float]) -> None:
        self._report = report
        self._clock = clock
        self._not_before: dict[Function, float] = {}
        self._refusals: dict[Function, int] = {}
        self._changed_at: dict[Function, float] = {}
        self._sweep_at = KEPT

    def not_before(self, function: Function) -> float:
        """Return the moment before which the function is left alone."""
        return self._not_before.get(function, NEVER)

    def changed_at(self, function: Function) -> float:
        """Return when somebody else was last seen to change the function, which counts as a use."""
        return self._changed_at.get(function, NEVER)

    def note(self, function: Function, result: Result) -> None:
        """Note what became of a try."""
        now = self._clock()
        put_off = PUT_OFF.get(result.outcome, 0.0)
        if result.outcome is Outcome.CHANGED:
            self._changed_at[function] = now
        elif result.outcome is Outcome.REFUSED:
            times = self._refusals[function] = self._refusals.get(function, 0) + 1
            put_off = backoff_step(times, REFUSED_FIRST, REFUSED_LONGEST)
            self._report(StopRefused(function, result.reason, put_off))
        elif result.outcome in (Outcome.STOPPED, Outcome.AT_ZERO, Outcome.GONE):
            self._refusals.pop(function, None)
            self._changed_at.pop(function, None)
        self._not_before[function] = now + put_off
        if len(self._not_before) > self._sweep_at:
            for each, until in list(self._not_before.items()):  # in one step: others note meanwhile
                if until <= now:
                    self._not_before.pop(each, None)
            self._sweep_at = max(KEPT, 2 * len(self._not_before))
