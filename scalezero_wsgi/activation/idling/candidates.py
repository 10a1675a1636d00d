"""Which functions are idle, as far as the worker that decides knows: by the workers' reports and its entries.

With 10,000 functions a look at all of them takes a while, so each is looked at when it may be due, and all of
them now and then.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping

from ...coordination.base import Drain, DrainPhase, WorkerReport
from ...model import Function, ReplicaStatus
from ..function_cache import FunctionCache
from ..state import NEVER, FunctionState
from .fleet_uses import FleetUses
from .ladder import IdleAfter, held_since, status_by
from .retries import Retries
from .rivals import Rivals

SCAN_PAUSE = 0.001
"""Seconds for each known function between two looks at all of them: with 10,000 every 10 s."""

LOOK_PAUSE = 0.004
"""Seconds for each function that is up after which it is looked at again, though it is not due: clients may
have asked for less, or its labels have changed. With 10,000 every 40 s."""

IsHeld = Callable[[Function, ReplicaStatus], bool]


def never_held(_: Function, __: ReplicaStatus) -> bool:
    """Say that a function is kept up by its use alone."""
    return False


UNDER_WAY = (DrainPhase.DRAINING, DrainPhase.STOPPING)


class Candidates:
    """Of one idler and its thread.

    :param idle_after: says what idle means.
    :param is_held: whether a function is kept up although nobody uses it.
    """

    def __init__(
        self,
        cache: FunctionCache,
        idle_after: IdleAfter,
        retries: Retries,
        rivals: Rivals,
        is_held: IsHeld = never_held,
    ) -> None:
        self._cache = cache
        self._idle_after = idle_after
        self._retries = retries
        self._rivals = rivals
        self._is_held = is_held
        self.uses = FleetUses()
        self._scanned_at = NEVER
        self._up_since: dict[Function, float] = {}
        self._shown: set[Function] = set()  # to be up, by the provider, since the fleet took it to zero
        self._due: dict[Function, float] = {}
        self._queue: list[tuple[float, Function]] = []  # a heap; what is not in _due any more does not count

    def find(
        self, reports: Iterable[WorkerReport], drains: Mapping[Function, Drain], now: float
    ) -> Iterator[tuple[Function, float]]:
        """Yield the functions that are idle as far as is known, and for how many seconds."""
        in_use = self.uses.note(reports, now)
        due = self._take_due(now)
        self._look(due, in_use, drains, now)
        due += self._take_due(now)  # what is seen for the first time
        later = now + len(self._up_since) * LOOK_PAUSE
        try:
            while due:
                function = due.pop()
                if function not in self._up_since:
                    continue
                until, idle_for = now, None
                busy = function in in_use or (function in drains and drains[function].phase in UNDER_WAY)
                if not busy:
                    until, idle_for = self._judge(function, now, later)
                self._put_off(function, until)
                if idle_for is not None:
                    yield function, idle_for
        finally:
            for function in due:  # whoever asks has had enough
                self._put_off(function, now)

    def _judge(self, function: Function, now: float, later: float) -> tuple[float, float | None]:
        """Return when to look at a function again, and for how long it has been idle, if it is."""
        not_before = self._retries.not_before(function)
        if now < not_before:
            return not_before, None
        since, idle_after = self._idle_since(function)
        if idle_after is None:
            return later, None
        if now < since + idle_after:
            return min(later, since + idle_after), None
        if self._rivals.may_stop(function, self._up_since[function], self._used_at(function)):
            return now, now - since
        return later, None

    def _look(
        self, due: list[Function], in_use: set[Function], drains: Mapping[Function, Drain], now: float
    ) -> None:
        """Find out which functions are up."""
        used, up_since = set(self.uses.used_at), self._up_since
        ended = {each for each, drain in drains.items() if drain.phase is not DrainPhase.READY}
        self._shown -= ended  # whoever of the fleet took it there
        states: Iterable[FunctionState | None]
        if now >= self._scanned_at + len(self._cache) * SCAN_PAUSE:
            self._scanned_at = now
            states = self._cache.states()
            looked_at = {*up_since}
        else:
            looked_at = {*due, *(used - up_since.keys())}
            states = map(self._cache.peek, looked_at)
        up = set()
        for state in states:
            if state is None or state.meta is None:
                continue
            function, meta = state.function, state.meta
            if meta.status.replicas or meta.status.paused or meta.seen_at < self._used_at(function):
                up.add(function)
                is_shown = meta.status.replicas or meta.status.paused  # else somebody waits for it
                if is_shown and not meta.suspect and function not in ended:
                    self._shown.add(function)
                self._note_up(function, held_since(state, now), now)
                continue
            if function in self._shown and function not in drains:
                self._note_down(function, meta.status, in_use)
            self._shown.discard(function)
            if function in used:
                used.discard(function)
                self.uses.forget(function)
        for function in used - up_since.keys():
            self._note_up(function, now, now)
        for function in looked_at - up - used:
            up_since.pop(function, None)
            self._shown.discard(function)
            self._due.pop(function, None)

    def _note_up(self, function: Function, since: float, now: float) -> None:
        if function not in self._up_since:
            self._up_since[function] = since
            self._put_off(function, now)

    # When each is looked at

    def _put_off(self, function: Function, until: float) -> None:
        self._due[function] = until
        heapq.heappush(self._queue, (until, function))

    def _take_due(self, now: float) -> list[Function]:
        taken: dict[Function, None] = {}
        while self._queue and self._queue[0][0] <= now:
            due, function = heapq.heappop(self._queue)
            if self._due.get(function) == due:
                taken[function] = None
        return list(taken)

    def _used_at(self, function: Function) -> float:
        return self.uses.used_at.get(function, NEVER)

    def _note_down(self, function: Function, status: ReplicaStatus, in_use: set[Function]) -> None:
        """Note whose doing it is that a function which was up is at zero, without a drain."""
        if self._rivals.stopped_since(function, self._up_since[function]) or status.failure is not None:
            return
        if function in in_use or self._is_held(function, status):
            self._rivals.taken_down(function)

    def _idle_since(self, function: Function) -> tuple[float, float | None]:
        """Return the moment from which its time without use counts, and how long that must be to be idle."""
        state = self._cache.peek(function)
        meta = None if state is None else state.meta
        # Of a function that only others use the labels are not known here: they are asked for first.
        status = None if meta is None else status_by(meta, self._used_at(function))
        idle_after = 0.0 if status is None else self._idle_after(function, status)
        if idle_after is None:
            return NEVER, None
        moved_at = NEVER if state is None else state.moved_at
        since = self.uses.idle_since(function, idle_after, moved_at, self._up_since[function])
        return max(since, self._retries.changed_at(function)), idle_after
