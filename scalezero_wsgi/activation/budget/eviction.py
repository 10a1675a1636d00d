"""Which function goes when another needs its room, and how: by the hand-shake of :mod:`..idling.drain`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ...coordination.base import Drain, DrainingCoordination, WorkerReport
from ...model import Function, ReplicaStatus
from ..idling.drain import FunctionDrain, Outcome, Result
from ..idling.gate import Gate
from ..refresh import Context
from .limits import Limit, Need

LEAST_START = 1.0
"""Seconds that a start counts at least."""

LEAST_AGE = 0.001


class Candidate(NamedTuple):
    """A function that may go.

    :ivar unused_for: seconds since the end of its last use; infinite: it was never used.
    :ivar start: seconds that its starts take.
    """

    function: Function
    need: Need
    unused_for: float
    start: float


def cost(candidate: Candidate, short: Mapping[Limit, int]) -> float:
    """Return what it costs to let a function go: the least goes first.

    It is ``start / (unused_for * share)``. The longer a function has not been used, the less likely it is
    that its next use is near; the quicker it starts, the less its next request waits; the larger the share
    that it frees of what is missing, the fewer others have to go. For functions that start and need alike it
    is LRU: the one that was used longest ago. The idea is that of GreedyDual-Size (P. Cao and S. Irani,
    "Cost-aware WWW proxy caching algorithms", 1997), with the age in place of its inflation.

    Starts count in powers of two, from ``LEAST_START`` up: whether one took 0.4 or 0.5 s by chance is not to
    decide instead of the age.
    """
    share = sum(limit.amount(candidate.need) / limit.most for limit in short)
    start = 2.0 ** math.floor(math.log2(max(LEAST_START, candidate.start)))
    return start / (max(LEAST_AGE, candidate.unused_for) * share)


def choose(candidates: Iterable[Candidate], short: Mapping[Limit, int]) -> list[Function]:
    """Return those that are to go, the cheapest first; none if all together would not free enough."""
    useful = [each for each in candidates if any(limit.amount(each.need) for limit in short)]
    missing = dict(short)
    chosen: list[Candidate] = []
    for each in sorted(useful, key=lambda each: cost(each, short)):
        if any(limit.amount(each.need) for limit, amount in missing.items() if amount > 0):
            chosen.append(each)
            missing = {limit: amount - limit.amount(each.need) for limit, amount in missing.items()}
    if any(amount > 0 for amount in missing.values()):
        return []
    for each in reversed(list(chosen)):  # a large one that came later may have made a small one needless
        without = [other.need for other in chosen if other is not each]
        if all(sum(map(limit.amount, without)) >= amount for limit, amount in short.items()):
            chosen.remove(each)
    return [each.function for each in chosen]


class Eviction(FunctionDrain):
    """Stop a function for the sake of another, whether it is up or paused. Of one thread.

    :param may_go: whether a function with that status may be stopped.
    :param still_known: whether the store still knows the fleet; asks it.
    :param gone: called under the function's lease once it is at zero: whoever starts it again has to claim
        its room anew.
    """

    reason = "evicted"

    def __init__(
        self,
        context: Context,
        function: Function,
        store: DrainingCoordination,
        gate: Gate,
        may_go: Callable[[Function, ReplicaStatus], bool],
        still_known: Callable[[], bool],
        gone: Callable[[Function], None],
    ) -> None:
        super().__init__(
            context, function, store, gate, lambda *of: 0.0 if may_go(*of) else None, 0.0, still_known
        )
        self._gone = gone

    def _begin(self, before: Drain | None) -> Result:
        result = super()._begin(before)
        meta = self._state.meta
        is_left = meta is not None and meta.status.paused  # by an engine that takes a stop for a pause
        if result.outcome in (Outcome.STOPPED, Outcome.AT_ZERO) and not is_left and self._lease.holds():
            self._gone(self._function)  # else somebody may have claimed its room anew
        return result

    def _left(self, report: WorkerReport, idle_after: float) -> float:
        """Not heed what clients wish (``keep_alive_max``): another one waits."""
        return idle_after - report.unused_for.get(self._function, idle_after)
