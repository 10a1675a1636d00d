"""When each function was used last, by the reports of all workers."""

from __future__ import annotations

from collections.abc import Iterable

from ...coordination.base import WorkerReport
from ...model import Function
from ..state import NEVER
from .gate import SUFFIX


class FleetUses:
    """What a worker has used is kept here when it leaves. One thread notes, any may forget.

    :ivar used_at: the end of the last use, of functions that were used.
    """

    def __init__(self) -> None:
        self.used_at: dict[Function, float] = {}
        self._seen: dict[str, tuple[WorkerReport, float]] = {}

    def note(self, reports: Iterable[WorkerReport], now: float) -> set[Function]:
        """Note when each function was used last, and return which are in use."""
        used_at = self.used_at
        in_use: set[Function] = set()
        seen: dict[str, tuple[WorkerReport, float]] = {}
        for report in reports:
            if not report.worker.endswith(SUFFIX):
                continue
            before = self._seen.get(report.worker)
            # Ages are of the report's moment, which is not known: it may be older, so the use is, too.
            seen[report.worker] = before if before is not None and before[0] == report else (report, now)
            at = seen[report.worker][1]
            in_use.update(function for function, count in report.in_flight.items() if count)
            for function, unused_for in report.unused_for.items():
                used_at[function] = max(used_at.get(function, NEVER), at - unused_for)
        self._seen = seen
        return in_use

    def forget(self, function: Function) -> None:
        """Forget the uses of a function that is at zero."""
        self.used_at.pop(function, None)
