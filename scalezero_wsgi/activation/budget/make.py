"""Make what keeps starts within the budget, as the settings say."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...coordination.base import DrainingCoordination
from ...coordination.memory import MemoryCoordination
from ...model import Function, ReplicaStatus
from ..idling.busy import Busy
from ..idling.gate import Gate
from ..refresh import Context
from .budget import Budget
from .ledger import Ledger
from .limits import Limits
from .survey import Survey

if TYPE_CHECKING:
    from ...settings import Settings


def make_budget(
    settings: Settings,
    context: Context,
    store: DrainingCoordination,
    gate: Gate,
    busy: Busy,
    may_go: Callable[[Function, ReplicaStatus], bool],
    is_ours: Callable[[Function], bool],
) -> Budget:
    """Return what keeps starts within the budget that the settings say.

    :param may_go: whether a function may be stopped for another.
    :param is_ours: whether a function is served, and requests may wake it.
    """
    limits = Limits(
        settings.max_running, settings.max_memory, settings.max_running_of, settings.max_memory_of
    )
    ledger = Ledger(store, context.peers, context.clock, context.pause)
    all_listed = (
        settings.idle_default == "all"
        or settings.allow is not None
        or settings.wake is not None
        or getattr(context.provider, "lists_only_functions", False)
    )
    return Budget(
        context,
        store,
        gate,
        limits,
        Survey(context, store, ledger, limits, is_ours, all_listed),
        ledger,
        may_go=may_go,
        busy=busy,
        min_uptime=settings.min_uptime,
        shared=not isinstance(store, MemoryCoordination),
        off="with dry_run nothing is stopped" if settings.dry_run else "",
    )
