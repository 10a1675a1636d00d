"""What is known of each function of the fleet.

It comes from the provider, this worker's cache, the workers' reports and the statuses that they share; the
latest counts.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ..._lib.per_process import PerProcess
from ...coordination.base import SharedStatus
from ...model import Function, ReplicaStatus
from ...operate import Seen
from ...web.routing import as_text
from .survey import Survey

if TYPE_CHECKING:
    from ...coordination.base import WorkerReport
    from ...middleware import ScaleZeroMiddleware
    from ..prometheus import PrometheusMetrics

STATES = ("ready", "starting", "paused", "failed", "unknown", "at zero")
"""All there are, as ``state`` says them; those come first that somebody may have to see to."""

FRESH, REST = 0.25, 5
"""Seconds for which the same is shown again, at least, and how many times as long as it took to put together:
with very many functions that is a tenth of a second."""

SHARED, SHARED_WITHIN = 200, 10.0
"""For how many functions beyond those on a page the workers' store is asked, of those in use or used within
so many seconds."""

COUNTED_FOR = 2.0
"""Seconds for which requests are not counted anew: with many workers that takes a while."""


class Row(NamedTuple):
    """A function.

    :ivar key: its name, as in a form or URL.
    :ivar replicas: ``None``: not known; as is ``available_replicas``.
    :ivar in_flight: requests in the application, in the whole fleet.
    :ivar waiting: requests that are held, in the whole fleet.
    :ivar unused_for: seconds since its last use; ``None``: long ago, or never.
    :ivar idle_in: seconds until it is idle, if nobody uses it; ``None``: it is not up, is in use, never goes
        to zero, or that is not known.
    :ivar kept_up_for: seconds for which an operator has it kept up yet; 0: no.
    :ivar failure: why its last start failed, or it cannot be asked for; empty: it did not.
    :ivar last_starts: seconds that its last starts took, the latest last.
    :ivar requests: how many there were, by outcome; ``None``: nobody counts them.
    """

    function: Function
    key: str
    state: str
    replicas: int | None
    available_replicas: int | None
    in_flight: int
    waiting: int
    unused_for: float | None
    idle_in: float | None
    kept_up_for: float
    failure: str
    last_starts: tuple[float, ...]
    requests: Mapping[str, int] | None


@dataclass(slots=True)
class Use:
    """What the workers report of all functions, and what operators keep up."""

    in_flight: Counter[Function] = field(default_factory=Counter)
    waiting: Counter[Function] = field(default_factory=Counter)
    unused_for: dict[Function, float] = field(default_factory=dict)
    kept_for: dict[Function, float] = field(default_factory=dict)
    kept_up: Mapping[Function, float] = field(default_factory=dict)

    @classmethod
    def of(cls, reports: Iterable[WorkerReport], kept_up: Mapping[Function, float]) -> Use:
        """Sum the reports up."""
        use = cls(kept_up=kept_up)
        for report in reports:
            use.in_flight.update(report.in_flight)
            use.waiting.update(report.waiting)
            for function, seconds in report.unused_for.items():
                use.unused_for[function] = min(seconds, use.unused_for.get(function, seconds))
            for function, seconds in report.kept_for.items():
                use.kept_for[function] = max(seconds, use.kept_for.get(function, seconds))
        return use

    def functions(self) -> set[Function]:
        """Return those of which anything is told."""
        return {*self.in_flight, *self.waiting, *self.unused_for, *self.kept_up}

    def recent(self) -> list[Function]:
        """Return those whose status may just have changed, for they are in use or were a moment ago."""
        busy = {*self.in_flight, *self.waiting}
        late = [each for each, seconds in self.unused_for.items() if seconds < SHARED_WITHIN]
        return [*busy, *(each for each in late if each not in busy)][:SHARED]


class _Look(NamedTuple):
    until: float
    use: Use
    rows: dict[Function, Row]


class Overview:
    """Safe for threads and after a fork.

    :param metrics: counts requests by outcome; ``None``: nobody does.
    """

    def __init__(
        self,
        middleware: ScaleZeroMiddleware,
        metrics: PrometheusMetrics | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._middleware = middleware
        self._metrics = metrics
        self._clock = clock
        self._survey = Survey(middleware.provider, middleware.serves, clock)
        self._looking = PerProcess(lambda: threading.Lock())
        self._last: _Look | None = None
        self._counted: tuple[float, Mapping[str, Mapping[str, int]]] | None = None

    @property
    def trouble(self) -> str:
        """Why what is shown may be old; empty: it is not."""
        return self._survey.trouble

    def rows(self) -> list[Row]:
        """Return all functions by their names. Blocks for a second at most, and the first time alone."""
        return list(self._look().rows.values())

    def now(self, rows: Iterable[Row]) -> list[Row]:
        """Return the rows as the workers' store has them at this moment."""
        use = self._look().use
        return [self._row(row.function, use, self._shared(row.function)) for row in rows]

    def find(self, key: str) -> Function | None:
        """Return the function of that key; ``None``: it is not shown."""
        return next((each for each, row in self._look().rows.items() if row.key == key), None)

    def forget(self) -> None:
        """Put what is shown together anew the next time: something was done."""
        self._last = None

    def _look(self) -> _Look:
        self._survey.look()
        with self._looking.get():
            last, now = self._last, self._clock()
            if last is not None and now <= last.until:
                return last
            middleware = self._middleware
            use = Use.of(middleware.reports(), middleware.by_hand.kept_up())
            recent = set(use.recent())
            known = {state.function for state in middleware.cache.states() if state.meta is not None}
            functions = {*list(self._survey.answers), *known, *use.functions()}
            rows = {
                function: self._row(function, use, self._shared(function) if function in recent else None)
                for function in sorted(functions)
                if middleware.serves(function)
            }
            ended = self._clock()
            self._last = last = _Look(ended + max(FRESH, REST * (ended - now)), use, rows)
            return last

    def _shared(self, function: Function) -> SharedStatus | None:
        return self._middleware.scaler.shared_status(function)

    def _row(self, function: Function, use: Use, shared: SharedStatus | None) -> Row:
        seen = self._seen(function, shared)
        waiting = use.waiting[function]
        failure = self._failure(function, seen, shared)
        state = self._state(seen, waiting, bool(failure))
        status, key = seen.status, as_text(function)
        in_use = bool(waiting or use.in_flight[function])
        return Row(
            function,
            key,
            state,
            None if status is None else status.replicas,
            None if status is None else status.available_replicas,
            use.in_flight[function],
            waiting,
            use.unused_for.get(function),
            None if in_use or status is None else self._idle_in(function, status, use, shared),
            use.kept_up.get(function, 0.0),
            failure,
            self._last_starts(function, shared),
            None if self._metrics is None else self._requests(self._metrics).get(str(function), {}),
        )

    def _seen(self, function: Function, shared: SharedStatus | None) -> Seen:
        """Return what was asked for last."""
        told: list[tuple[float, Seen]] = []
        answer, meta = self._survey.answers.get(function), self._middleware.cache.find(function)
        if answer is not None:
            told.append((answer.at, answer.seen))
        if meta is not None:
            told.append((meta.seen_at, Seen(function, meta.status)))
        if shared is not None and shared.status is not None:
            told.append((self._clock() - shared.age, Seen(function, shared.status)))
        return max(told, key=lambda each: each[0])[1] if told else Seen(function, None)

    def _failure(self, function: Function, seen: Seen, shared: SharedStatus | None) -> str:
        if seen.status is None:
            return seen.trouble
        if seen.status.failure is not None:
            return seen.status.failure
        if shared is not None and shared.failure is not None:
            return shared.failure.reason
        state = self._middleware.cache.peek(function)
        return "" if state is None or state.failure is None else state.failure.reason

    @staticmethod
    def _state(seen: Seen, waiting: int, has_failed: bool) -> str:
        if seen.state in ("at zero", "paused", "unknown") and waiting:
            return "starting"
        return "failed" if seen.state == "at zero" and has_failed else seen.state

    def _last_starts(self, function: Function, shared: SharedStatus | None) -> tuple[float, ...]:
        if shared is not None and shared.durations:
            return shared.durations
        return self._middleware.scaler.last_starts(function)

    def _idle_in(
        self, function: Function, status: ReplicaStatus, use: Use, shared: SharedStatus | None
    ) -> float | None:
        """Return the seconds until its next step to zero, as the worker that decides will find it."""
        if not (status.available_replicas or status.paused):
            return None
        after = self._middleware.by_hand.idle_after(function, status)
        if after is None:
            return None
        if status.paused:
            since = None if shared is None else shared.paused_for
            return None if since is None else max(0.0, after - since)
        left = []
        if function in use.kept_for:
            left.append(use.kept_for[function])
        elif function in use.unused_for:
            left.append(after - use.unused_for[function])
        if shared is not None and shared.start is not None and shared.start.up_for is not None:
            left.append(after - shared.start.up_for)
        return max(0.0, *left) if left else None

    def _requests(self, metrics: PrometheusMetrics) -> Mapping[str, Mapping[str, int]]:
        counted, now = self._counted, self._clock()
        if counted is None or now > counted[0] + COUNTED_FOR:
            self._counted = counted = now, metrics.requests()
        return counted[1]
