"""Notices somebody else who undoes what is done here: who starts again what was taken to zero, or takes to
zero what is held up. That one has won, for a time that grows with each round; and it is said.

Two rounds in a row make a fight: once is what an operator does. A function that nobody else touches is only
ever started by its use, or for its hours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..._lib.backoff import backoff_step
from ..._lib.bounded import Bounded
from ...events import FunctionContested, Reporter
from ...model import Function
from ..state import NEVER

SHORTLY = 300.0
"""Seconds within which a change undoes the last one. A controller that repairs what it finds looks every few
minutes (Argo CD: 180 s), and here it is noticed up to a minute later."""

ROUNDS = 2
"""Rounds in a row that make a fight."""

REST_FIRST, REST_LONGEST = 60.0, 3600.0
"""Seconds for which the function is left to the other, at first and in the end."""

KEPT = 10_000
"""Functions of which that is remembered."""


class _Round(NamedTuple):
    """:ivar number: how many there were in a row.
    :ivar at: when the last one was noticed.
    :ivar rest_until: when the function is not left alone any more.
    """

    number: int
    at: float
    rest_until: float = NEVER


class Rivals:
    """Of the worker that decides. Safe for threads; a fork must :meth:`begin` anew.

    :param report: is told of fights.
    :param clock: monotonic seconds.
    """

    def __init__(self, report: Reporter, clock: Callable[[], float]) -> None:
        self._report = report
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """Know of nothing yet."""
        self._stopped_at: Bounded[Function, float] = Bounded(KEPT)
        self._ups: Bounded[Function, _Round] = Bounded(KEPT)
        self._downs: Bounded[Function, _Round] = Bounded(KEPT)

    def stopped(self, function: Function) -> None:
        """Note that the function was taken to zero, here."""
        self._stopped_at.set(function, self._clock())

    def stopped_since(self, function: Function, since: float) -> bool:
        """Return whether it was, after that moment."""
        return (self._stopped_at.get(function) or NEVER) >= since

    def may_stop(self, function: Function, up_since: float, used_at: float) -> bool:
        """Return whether an idle function may be stopped; not one that somebody else wants to be up.

        :param up_since: when it was first seen to be up.
        :param used_at: the end of its last use, before or after that.
        """
        now, stopped_at, last = self._clock(), self._stopped_at.get(function), self._ups.get(function)
        if stopped_at is None or up_since < stopped_at:
            return last is None or now >= last.rest_until
        self._stopped_at.pop(function)  # each stop is judged once
        if used_at > stopped_at or up_since > stopped_at + SHORTLY:
            self._ups.pop(function)
            return True
        reason = "somebody else starts it again whenever it was taken to zero"
        return not self._fights(self._ups, function, reason, now)

    def may_start(self, function: Function) -> bool:
        """Return whether a function that is to be up may be started without a request."""
        last = self._downs.get(function)
        return last is None or self._clock() >= last.rest_until

    def taken_down(self, function: Function) -> None:
        """Note that a function which is held up was found at zero, and not stopped here."""
        now, last = self._clock(), self._downs.get(function)
        if last is not None and now > max(last.at, last.rest_until) + SHORTLY:
            self._downs.pop(function)
        reason = "somebody else takes it to zero, or it ends by itself, whenever it is held up"
        self._fights(self._downs, function, reason, now)

    def _fights(self, rounds: Bounded[Function, _Round], function: Function, reason: str, now: float) -> bool:
        last = rounds.get(function)
        count = 1 if last is None else last.number + 1
        if count < ROUNDS:
            rounds.set(function, _Round(count, now))
            return False
        rest = backoff_step(count - ROUNDS + 1, REST_FIRST, REST_LONGEST)
        rounds.set(function, _Round(count, now, now + rest))
        self._report(FunctionContested(function, reason, rest))
        return True
