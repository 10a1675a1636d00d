"""Make what brings idle functions to zero, as the settings say."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...coordination.base import Coordination, DrainingCoordination
from ...coordination.memory import MemoryCoordination
from ...events import IdlingOff
from ...model import Function, ReplicaStatus
from ..budget.make import make_budget
from ..request_queue import RequestQueue
from ..scaler import FunctionScaler
from .at_exit import AtExit
from .busy import Busy
from .gate import Gate
from .idleness import Idleness
from .idler import LEAST_PACE, PACE, Idler
from .keep_alive import KeepAlive
from .keep_warm import KeepWarm
from .kept_up import KeptUp
from .ladder import Ladder
from .replacing import tells_outdated
from .rivals import Rivals

if TYPE_CHECKING:
    from ...settings import Settings


def make_idler(
    settings: Settings,
    store: Coordination | None,
    scaler: FunctionScaler,
    queue: RequestQueue,
    is_ours: Callable[[Function], bool],
    wall_clock: Callable[[], float] = time.time,
) -> Idler | None:
    """Return what brings idle functions to zero; ``None``: nothing is to, or nothing can, which is reported.

    Of a provider that tells which functions are outdated, these start anew. With a budget every start claims
    its room from now on, and functions go for others, be they idle or not.

    :param settings: ``idle_after`` and the like, and those of the budget.
    :param store: where the workers meet.
    :param is_ours: whether a function is served, and requests may wake it.
    :param wall_clock: seconds since the epoch.
    """
    context, idle_after = scaler.context, settings.idle_after or math.inf
    if settings.idle_after is None and not settings.has_budget and not tells_outdated(context.provider):
        return None
    if not isinstance(store, DrainingCoordination):
        reason = f"the store {type(store).__name__} has no drains() and change_drain()"
        context.report(IdlingOff(reason))
        return None
    pace = min(PACE, max(LEAST_PACE, idle_after / 4))
    idleness = Idleness(idle_after, settings.idle_default == "all", is_ours)
    keep_alive = None
    if settings.keep_alive_max > 0 and settings.idle_after is not None:
        keep_alive = KeepAlive(settings.keep_alive_max, idleness, context.cache, context.clock)
    gate = Gate(
        store,
        context.peers,
        context.cache,
        queue.by_function,
        context.report,
        pace,
        context.clock,
        stream_idle_after=settings.stream_idle_after,
        keep_alive=keep_alive,
    )
    shared = not isinstance(store, MemoryCoordination)
    busy = Busy(settings.busy, settings.busy_cap, context.clock)
    rivals = Rivals(context.report, context.clock)
    warm = KeepWarm(
        scaler,
        idleness,
        is_ours,
        settings.keep_warm,
        settings.dry_run,
        wall_clock,
        rivals.may_start,
    )
    kept_up = KeptUp(store, context.peers, warm, context.clock, context.pause)
    ladder = Ladder(settings.idle_action, kept_up, context.provider)
    if settings.has_budget:

        def may_go(function: Function, status: ReplicaStatus) -> bool:
            may_go = idleness.may_go(function, status) and not warm.is_due(function, status)
            return may_go and not kept_up.holds(function)

        scaler.limit(make_budget(settings, context, store, gate, busy, may_go, is_ours))
    if settings.idle_after is None:  # each worker's thread is needed all the same
        idler = Idler(context, store, gate, lambda *_: None, pace=pace, shared=shared, lists=False)
        idler.kept_up = kept_up
        return idler
    idler = Idler(
        context,
        store,
        gate,
        ladder,
        pace=pace,
        shared=shared,
        busy=busy,
        dry_run=settings.dry_run,
        keep_warm=warm.turn,
        to_zero=ladder.take,
        rivals=rivals,
        is_held=warm.holds,
    )
    # By the idler it lives for as long as the middleware.
    idler.at_exit = AtExit(context, store, gate, kept_up, busy, settings.dry_run)
    idler.kept_up = kept_up
    return idler
