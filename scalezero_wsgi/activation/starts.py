"""What is remembered of each function's starts: the last one, how long the last ones took, how many failed in
a row, the rest after them.

The workers of a fleet share it: what one of them tells the others learn. So a function in a crash loop is
tried once in each step of its back-off, however many workers there are.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .._lib.backoff import backoff_step
from .._lib.bounded import Bounded
from ..coordination.base import Failure, SharedStatus, Start
from ..events import Reporter, StartFailed
from ..model import Function, FunctionFailed, ReplicaStatus

SETTLE = 2.0
"""Seconds that a provider may take to show the count that was set, before it is set again."""

STABLE = 60.0
"""Seconds after which an end of a function has nothing to do with its start any more."""

REMEMBERED = 5
"""Starts of a function of which it is remembered how long they took."""

OTHERS = 50
"""Functions, those that started last, by which it is estimated how long another one's first start takes."""

MAXSIZE = 10_000


@dataclass(frozen=True, slots=True)
class _Start:
    """The last time that the function was started from zero, by a worker or by somebody else.

    ``shown``: the provider has told since of a count above zero. ``up_at``: when the provider was asked that
    first told of an available replica.
    """

    name: str
    at: float
    shown: bool = False
    up_at: float | None = None


@dataclass(frozen=True, slots=True)
class _Failure:
    """The last failed start: how many in a row, of which start, and until when it is left alone."""

    count: int
    start: str
    reason: str
    retry_at: float


def median(durations: Sequence[float]) -> float | None:
    """The middle one, or the later of two; ``None`` if there is none."""
    return sorted(durations)[len(durations) // 2] if durations else None


class Starts:
    """The starts of all functions. Safe for threads.

    :param clock: monotonic seconds.
    :param report: is told of failed starts.
    """

    def __init__(self, clock: Callable[[], float], report: Reporter) -> None:
        self._clock = clock
        self._report = report
        self._starts: Bounded[Function, _Start] = Bounded(MAXSIZE)
        self._failures: Bounded[Function, _Failure] = Bounded(MAXSIZE)
        self._durations: Bounded[Function, tuple[float, ...]] = Bounded(MAXSIZE)
        self._latest: Bounded[Function, float] = Bounded(OTHERS)  # the last duration of each

    def begin(self, function: Function) -> float:
        """Note that a start was asked for; when: now."""
        start = _Start(uuid.uuid4().hex, self._clock())
        self._starts.set(function, start)
        return start.at

    def see(
        self, function: Function, status: ReplicaStatus, asked_at: float, down_at: float | None = None
    ) -> None:
        """Note what a status says of the last start.

        :param asked_at: monotonic seconds at which the provider was asked.
        :param down_at: when it was last found without a replica, if that is what was known until now.
        """
        start = self._starts.get(function)
        available = status.available_replicas > 0
        if start is not None and start.up_at is None and asked_at >= start.at:
            shown = start.shown or status.replicas > 0
            up_at = asked_at if available else None
            if (shown, up_at) != (start.shown, start.up_at):
                self._starts.set(function, replace(start, shown=shown, up_at=up_at))
        elif available and down_at is not None and self.up_at(function) <= down_at < asked_at:
            # Somebody else has started it.
            self._starts.set(function, _Start(uuid.uuid4().hex, asked_at, shown=True, up_at=asked_at))

    def up_at(self, function: Function) -> float:
        """When the function was last seen to come up, in monotonic seconds; minus infinity: never."""
        start = self._starts.get(function)
        return -math.inf if start is None or start.up_at is None else start.up_at

    def last(self, function: Function) -> str:
        """The name of the last start; ``""`` if there is none."""
        start = self._starts.get(function)
        return "" if start is None else start.name

    def unseen(self, function: Function) -> bool:
        """Whether a start was asked for, not long ago, of which the provider has shown nothing yet."""
        start, failure = self._starts.get(function), self._failures.get(function)
        if start is None or start.shown or self._clock() >= start.at + STABLE:
            return False
        return failure is None or failure.start != start.name

    def pending(self, function: Function) -> float | None:
        """When a start was asked for that may show yet, perhaps by a leader that has died since."""
        start = self._starts.get(function)
        if start is None or self._clock() >= start.at + SETTLE or not self.unseen(function):
            return None
        return start.at

    # How long they take

    def took(self, function: Function, duration: float) -> None:
        """Note that a start has ended with a replica, so many seconds after it was asked for."""
        self._durations.change(function, lambda known: (*(known or ()), duration)[-REMEMBERED:])
        self._latest.set(function, duration)

    def durations(self, function: Function) -> tuple[float, ...]:
        """How long the last starts took, in seconds, the latest last."""
        return self._durations.get(function) or ()

    def of_others(self) -> float | None:
        """The median of other functions' last starts, in seconds, for one that has not started yet; ``None``
        if there was none."""
        return median([duration for _, duration in self._latest.items()])

    # Failed starts and the rest after them

    def refuse_while_resting(self, function: Function) -> None:
        """:raises FunctionFailed: the function is left alone after a failed start."""
        failure = self._failures.get(function)
        if failure is not None:
            left = failure.retry_at - self._clock()
            if left > 0:
                raise FunctionFailed(function, failure.reason, left)

    def fail(self, function: Function, reason: str) -> None:
        """The last start failed.

        :raises FunctionFailed: unless the rest is over already.
        """
        self._fail(function, reason, self.last(function) or uuid.uuid4().hex, rest_from=self._clock())

    def ended(self, function: Function, reason: str) -> None:
        """The function ended by itself. Soon after its start that counts as a failed one, once.

        :raises FunctionFailed: it does, unless the rest is over already.
        """
        start, failure = self._starts.get(function), self._failures.get(function)
        if start is None or self._clock() > start.at + STABLE:
            return
        if failure is None or failure.start != start.name:
            self._fail(function, reason, start.name, rest_from=start.at)

    def _fail(self, function: Function, reason: str, start: str, rest_from: float) -> None:
        """Each failure in a row doubles the time to the next start."""
        now = self._clock()
        last = self._failures.get(function)
        in_a_row = last is not None and now <= last.retry_at + STABLE
        count = last.count + 1 if last is not None and in_a_row else 1
        retry_at = rest_from + backoff_step(count)
        self._failures.set(function, _Failure(count, start, reason, retry_at))
        if retry_at > now:
            self._report(StartFailed(function, reason, retry_at - now))
        self.refuse_while_resting(function)

    # What the fleet knows of them

    def tell(self, function: Function, known: SharedStatus) -> SharedStatus:
        """What is known, and with it the last start, how long starts took, and the failures."""
        now = self._clock()
        known = replace(known, durations=self.durations(function))
        failure, start = self._failures.get(function), self._starts.get(function)
        if failure is not None and now <= failure.retry_at + STABLE:
            told = Failure(failure.count, failure.start, failure.reason, failure.retry_at - now)
            known = replace(known, failure=told)
        if start is not None:
            up_for = None if start.up_at is None else now - start.up_at
            known = replace(known, start=Start(start.name, now - start.at, start.shown, up_for))
        return known

    def learn(self, function: Function, told: SharedStatus) -> None:
        """Remember what another worker told."""
        if told.start is not None:
            self._learn_start(function, told.start)
        if told.failure is not None:
            self._learn_failure(function, told.failure)
        if told.durations and told.durations != self.durations(function):
            self._durations.set(function, told.durations[-REMEMBERED:])
            self._latest.set(function, told.durations[-1])

    def _learn_start(self, function: Function, told: Start) -> None:
        now = self._clock()
        learned = _Start(
            told.name, now - told.age, told.shown, None if told.up_for is None else now - told.up_for
        )
        mine = self._starts.get(function)
        if mine is None or (mine.name != told.name and mine.at < learned.at):
            self._starts.set(function, learned)
        elif mine.name == told.name and mine.up_at is None:
            self._starts.set(function, replace(mine, shown=mine.shown or told.shown, up_at=learned.up_at))

    def _learn_failure(self, function: Function, told: Failure) -> None:
        learned = _Failure(told.count, told.start, told.reason, self._clock() + told.left)
        mine = self._failures.get(function)
        if mine is None or (
            (mine.start, mine.count) != (learned.start, learned.count) and mine.retry_at < learned.retry_at
        ):
            self._failures.set(function, learned)
