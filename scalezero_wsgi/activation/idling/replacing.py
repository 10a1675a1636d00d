"""Functions that run with settings which have been changed since, and are stopped to start anew.

Their provider labels them; one that does so has a true attribute ``tells_outdated``. A function in constant
use would never be idle, so its way to zero (:mod:`.drain`) is not undone by requests: who comes waits, as for
a start, until those that are under way have ended and it has been stopped. If they do not end soon, it is
opened again as it was, and tried later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...coordination.base import Drain, DrainPhase, WorkerReport
from ...model import Function, ReplicaStatus
from ..function_cache import FunctionCache
from .drain import FunctionDrain, Outcome, Result
from .gate import KEEP_DRAIN

OUTDATED = "scalezero.outdated"
"""The label."""

SETTLED = 1.5
"""Seconds for which a function has been labelled: a worker that does not know the change yet would start it
as it was."""

LOOK_EVERY, LOOK_PAUSE = 0.5, 0.001
"""Seconds between two looks at all functions, at least and for each."""


def is_outdated(status: ReplicaStatus) -> bool:
    """Return whether a function of that status is up, and is to start anew."""
    return OUTDATED in status.labels and status.replicas > 0


def tells_outdated(provider: object) -> bool:
    """Return whether a provider labels functions so."""
    return bool(getattr(provider, "tells_outdated", False))


class OutdatedFunctions:
    """Of one idler and its thread: finds them among those that this worker knows."""

    def __init__(self, cache: FunctionCache) -> None:
        self._cache = cache
        self._looked_at = float("-inf")
        self._since: dict[Function, float] = {}

    def find(self, now: float) -> Iterator[Function]:
        """Yield those that have been outdated for long enough."""
        if now < self._looked_at + max(LOOK_EVERY, len(self._cache) * LOOK_PAUSE):
            return
        self._looked_at = now
        metas = [(state.function, state.meta) for state in self._cache.states()]
        found = [function for function, meta in metas if meta is not None and is_outdated(meta.status)]
        self._since = {function: self._since.get(function, now) for function in found}
        for function, since in self._since.items():
            if now >= since + SETTLED:
                yield function


class Replacement(FunctionDrain):
    """Stop an outdated function, whoever uses it, without losing a request. Of one thread."""

    reason = "changed"

    def _begin(self, before: Drain | None) -> Result:
        if not self._still_leads():
            return Result(Outcome.LOST)
        first = self._query().status
        if first.replicas == 0:
            return Result(Outcome.AT_ZERO)
        if not is_outdated(first):
            return Result(Outcome.NOT_IDLE)
        stopping = Drain(DrainPhase.STOPPING, self._lease.token)
        if not self._change(before, stopping, KEEP_DRAIN):
            return Result(Outcome.BUSY)
        result = Result(Outcome.FAILED, "it could not be found out whether its requests have ended")
        try:
            # Those who come now follow this worker as they would follow one that starts the function.
            self._show(self._see(replace(first, available_replicas=0), self._clock()))
            result = self._await_acknowledged(stopping, 0.0) or self._look_once_more(first)
        finally:
            if result.outcome is not Outcome.STOPPED:
                self._undo(stopping, "it is to start with other settings, and its requests do not end")
        if result.outcome is Outcome.UNANSWERED:
            return Result(Outcome.IN_USE, result.reason)
        return self._stop(stopping, first) if result.outcome is Outcome.STOPPED else result

    def _left(self, report: WorkerReport, idle_after: float) -> float:  # noqa: ARG002
        """Not heed how long it has not been used: it only matters that nobody does any more."""
        return 0.0
