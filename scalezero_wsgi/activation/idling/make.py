"""Make what brings idle functions to zero, as the settings say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...coordination.base import Coordination, DrainingCoordination
from ...coordination.memory import MemoryCoordination
from ...events import IdlingOff
from ...model import Function
from ..request_queue import RequestQueue
from ..scaler import FunctionScaler
from .busy import Busy
from .gate import Gate
from .idleness import Idleness
from .idler import LEAST_PACE, PACE, Idler
from .keep_alive import KeepAlive
from .keep_warm import KeepWarm
from .ladder import Ladder

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

    :param settings: ``idle_after`` and the like.
    :param store: where the workers meet.
    :param is_ours: whether a function is served, and requests may wake it.
    :param wall_clock: seconds since the epoch.
    """
    if settings.idle_after is None:
        return None
    context, idle_after = scaler.context, settings.idle_after
    if not isinstance(store, DrainingCoordination):
        reason = f"the store {type(store).__name__} has no drains() and change_drain()"
        context.report(IdlingOff(reason))
        return None
    pace = min(PACE, max(LEAST_PACE, idle_after / 4))
    idleness = Idleness(idle_after, settings.idle_default == "all", is_ours)
    keep_alive = None
    if settings.keep_alive_max > 0:
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
    warm = KeepWarm(scaler, idleness, is_ours, settings.keep_warm, settings.dry_run, wall_clock)
    ladder = Ladder(settings.idle_action, warm, context.provider)
    return Idler(
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
    )
