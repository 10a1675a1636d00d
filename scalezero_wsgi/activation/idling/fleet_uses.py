"""When each function was used last, by the reports of all workers."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import replace

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
        self._unasked_at: dict[Function, float] = {}
        self._kept_until: dict[Function, float] = {}
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
            is_known = before is not None and before[0] == report
            seen[report.worker] = before if before is not None and is_known else (report, now)
            at = seen[report.worker][1]
            in_use.update(function for function, count in report.in_flight.items() if count)
            if is_known:
                continue
            for function, unused_for in report.unused_for.items():
                used_at[function] = max(used_at.get(function, NEVER), at - unused_for)
                kept_for = report.kept_for.get(function)
                notes, time = (
                    (self._unasked_at, at - unused_for)
                    if kept_for is None
                    else (self._kept_until, at + kept_for)
                )
                notes[function] = max(notes.get(function, NEVER), time)
        self._seen = seen
        return in_use

    def idle_since(
        self, function: Function, idle_after: float, came_up_at: float, known_since: float
    ) -> float:
        """Return the moment from which ``idle_after`` counts.

        That is the end of the last use; or, if clients have asked for longer or shorter, so much later or
        earlier.

        :param came_up_at: when the function came up; it is not idle before it was ever used.
        :param known_since: since when it is known to be up.
        """
        kept_until = self._kept_until.get(function)
        if kept_until is None:
            return max(self.used_at.get(function, known_since), came_up_at)
        if came_up_at <= self.used_at.get(function, NEVER):
            came_up_at = NEVER
        return max(self._unasked_at.get(function, NEVER), came_up_at, kept_until - idle_after)

    def forget(self, function: Function) -> None:
        """Forget the uses of a function that is at zero."""
        for notes in (self._kept_until, self._unasked_at, self.used_at):
            notes.pop(function, None)

    def forget_others(self, functions: Container[Function]) -> None:
        """Forget the uses of all but these, and but those that a worker still reports."""
        told = {function for report, _ in self._seen.values() for function in report.unused_for}
        for function in [each for each in self.used_at if each not in functions and each not in told]:
            self.forget(function)


def one_each(reports: Iterable[WorkerReport]) -> list[WorkerReport]:
    """Return one report of each worker: one that stops functions has a second one, of its use.

    Of that one counts when functions were used and for how long they are kept up. All else it would say
    twice, and for a while yet after the worker was killed.
    """
    joined: dict[str, WorkerReport] = {}
    uses: list[WorkerReport] = []
    for report in reports:
        if report.worker.endswith(SUFFIX):
            uses.append(report)
        else:
            joined[report.worker] = report
    for use in uses:
        name = use.worker.removesuffix(SUFFIX)
        report = joined.get(name, WorkerReport(name))
        unused_for = dict(report.unused_for)
        for function, seconds in use.unused_for.items():
            unused_for[function] = min(seconds, unused_for.get(function, seconds))
        joined[name] = replace(report, unused_for=unused_for, kept_for=use.kept_for)
    return list(joined.values())
