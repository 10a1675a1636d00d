"""What this worker uses, found out by looking now and then: a request counts nothing itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from ...coordination.base import KEEP
from ...model import Function
from ..function_cache import FunctionCache
from ..request_queue import PAGE_INTEREST
from ..state import NEVER, FunctionState
from .keep_alive import KeepAlive


class Uses:
    """The functions in use, and when those were used last that are not. Of one thread at a time.

    :param cache: knows which requests are in flight.
    :param waiting: returns how many requests wait in this process, for each function.
    :param clock: monotonic seconds.
    :param stream_idle_after: seconds after which a request in flight does not count any more that carries
        nothing. Since when it does, its token says by an attribute ``silent_since``; one without it counts.
    :param keep_alive: what clients ask for; ``None``: it is not heeded.
    :ivar in_use: how many requests are in flight or wait, as of the last look.
    :ivar in_flight: which of them have requests in flight.
    :ivar ended_at: the end of the last use, or the last look at which it was in use.
    """

    def __init__(
        self,
        cache: FunctionCache,
        waiting: Callable[[], Mapping[Function, int]],
        clock: Callable[[], float] = time.monotonic,
        stream_idle_after: float | None = None,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        self._cache = cache
        self._waiting = waiting
        self._clock = clock
        self._stream_idle_after = stream_idle_after
        self._keep_alive = keep_alive
        self.begin()

    def begin(self) -> None:
        """Start as a worker that has used nothing yet, after a fork as well."""
        self.in_use: dict[Function, int] = {}
        self.in_flight: frozenset[Function] = frozenset()
        self.ended_at: dict[Function, float] = {}
        self._last_used: dict[Function, float] = {}
        self._looked_at = NEVER
        if self._keep_alive is not None:
            self._keep_alive.begin()

    def look(self) -> None:
        """Note what is in use, and which uses have ended since the last look."""
        now = self._clock()  # before: what ends after it is noted the next time
        if self._keep_alive is not None:
            self._keep_alive.begin_look()
        in_use, last_used, asked_since = dict(self._waiting()), {}, now - PAGE_INTEREST
        in_flight: dict[Function, list[object]] = {}
        # Of many functions most are not used here. A request sets the first before it is in flight.
        states = self._cache.states()
        for state in [
            each for each in states if each.last_used != NEVER or each.page_asked_at >= asked_since
        ]:
            function = state.function
            counting = self._counting(state)
            if counting or state.page_asked_at >= asked_since:
                in_use[function] = in_use.get(function, 0) + max(1, len(counting))
            if counting:
                in_flight.setdefault(function, []).extend(counting)
            if state.last_used != NEVER:
                last_used[function] = state.last_used
        if self._keep_alive is not None:
            self._keep_alive.look(now, in_flight)
        for function in {*self.in_use, *last_used}:
            is_used = function in in_use or function in self.in_use
            if is_used or last_used.get(function) != self._last_used.get(function):
                self.ended_at[function] = now
        for function, ended_at in list(self.ended_at.items()):
            meta = self._cache.find(function)
            if function not in in_use and (
                now > ended_at + KEEP if meta is None else meta.status.replicas == 0
            ):
                del self.ended_at[function]
                if self._keep_alive is not None:
                    self._keep_alive.forget(function)
        self.in_use, self._last_used, self._looked_at = in_use, last_used, now
        self.in_flight = frozenset(in_flight)

    def unused_for(self, now: float) -> dict[Function, float]:
        """Return for how many seconds each function has not been used; those used long ago are left out."""
        return {function: now - ended_at for function, ended_at in self.ended_at.items()}

    def kept_for(self, now: float) -> dict[Function, float]:
        """Return for how many seconds functions are to stay up yet, where clients may ask for that."""
        if self._keep_alive is None:
            return {}
        kept = {function: self._keep_alive.kept_for(function, now) for function in self.ended_at}
        return {function: duration for function, duration in kept.items() if duration is not None}

    def _counting(self, state: FunctionState) -> list[object]:
        """Return the tokens in flight that count as use."""
        tokens = list(state.in_flight)  # in one step: requests come and go
        if self._stream_idle_after is None or not tokens:
            return tokens
        # One that has carried something since the last look counts, too, be it silent again.
        silent_before = min(self._clock() - self._stream_idle_after, self._looked_at)
        return [token for token in tokens if getattr(token, "silent_since", math.inf) > silent_before]
