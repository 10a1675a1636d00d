"""One function's way back to zero: ``ready → draining → stopping → zero``, each step one compare-and-set.

Whoever goes it holds the function's lease, so a start and a stop exclude each other. See "Back to zero" in
``ARCHITECTURE.md`` for why no request is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

from ..._lib.backoff import backoff_step
from ...coordination.base import (
    CoordinationError,
    Drain,
    DrainingCoordination,
    DrainPhase,
    SharedStatus,
    WorkerReport,
)
from ...coordination.heartbeat import APART
from ...coordination.leadership import LeadershipLost, LeasedLeadership
from ...events import FunctionIdle, FunctionPaused, FunctionStopped, ProviderFailed
from ...model import Function, FunctionFailed, FunctionNotFound, ProviderError, ReplicaStatus
from ..refresh import Context, Refresh
from ..state import SETTLE, FunctionMeta
from .gate import ASIDE, KEEP_DRAIN, KEEP_ENDED, SUFFIX, Gate
from .ladder import IdleAfter, ToZero, stop_by

ACKNOWLEDGE = 2.0
"""Seconds within which all workers must have acknowledged: one that hangs keeps no function closed."""

ACKNOWLEDGE_POLL = 0.01
"""Seconds between two looks whether they have."""

END = 60.0
"""Seconds that replicas may take to end after the provider has accepted to scale to zero."""

END_POLL = 0.02

TAKE_EFFECT = 10.0
"""Seconds after which a count that the provider has accepted, and does not show, counts as refused."""


class Outcome(Enum):
    """What became of a drain."""

    STOPPED = "the function is at zero now"
    AT_ZERO = "it was at zero already"
    VETOED = "it serves no request, and is busy all the same"
    DRY_RUN = "it would be stopped now"
    NOT_IDLE = "it is not to be stopped, or not yet"
    BUSY = "somebody else starts it, asks for it or stops it"
    CANCELLED = "a request came, or the function is in use"
    IN_USE = "its requests have not ended in time"
    CHANGED = "somebody else has changed it"
    UNANSWERED = "a worker has not acknowledged"
    REFUSED = "the provider did not scale it to zero"
    GONE = "the provider does not know it any more"
    FAILED = "the provider cannot be asked"
    LOST = "the store cannot be used, or has given the lease to another worker"


class Result(NamedTuple):
    """:ivar reason: more of why, for the log."""

    outcome: Outcome
    reason: str = ""


class FunctionDrain(Refresh):
    """Bring one idle function to zero. Of one thread.

    :param gate: this worker's, whose name must be among those that acknowledge.
    :param idle_after: returns after how many seconds a function with that status is idle; ``None``: never.
    :param idle_for: for how many seconds it has been, as far as is known.
    :param still_leads: whether this worker is the one that decides; asks the store.
    :param dry_run: whether it is only said that the function would be stopped.
    :param to_zero: takes the function to zero, or a paused one further; by default it is stopped.
    """

    reason = "idle"
    """Why the function is stopped, for :class:`~scalezero_wsgi.events.FunctionStopped`."""

    def __init__(
        self,
        context: Context,
        function: Function,
        store: DrainingCoordination,
        gate: Gate,
        idle_after: IdleAfter,
        idle_for: float,
        still_leads: Callable[[], bool],
        dry_run: bool = False,
        to_zero: ToZero | None = None,
    ) -> None:
        super().__init__(context, function)
        self._store = store
        self._gate = gate
        self._idle_after = idle_after
        self._idle_for = idle_for
        self._still_leads = still_leads
        self._dry_run = dry_run
        self._to_zero = to_zero or stop_by(context.provider)
        self._begun = self._clock()
        self._late: float | None = None
        self._lease: LeasedLeadership

    def stop(self) -> Result:
        """Go the whole way, or as far as it goes. Nothing is raised."""
        try:
            lease = self._context.peers.lead(self._function, lambda: self._begun + END)
            if lease is None:
                return Result(Outcome.BUSY)
            self._leadership = self._lease = lease
            with lease:
                before = self._drain_now()
                if before is not None and before.phase in (DrainPhase.DRAINING, DrainPhase.STOPPING):
                    return self._resolve(before)
                return self._begin(before)
        except (CoordinationError, LeadershipLost) as error:
            return Result(Outcome.LOST, str(error))
        except FunctionNotFound:
            return Result(Outcome.GONE)
        except (ProviderError, FunctionFailed) as error:
            self._context.report(ProviderFailed(self._function, error))
            return Result(Outcome.FAILED, str(error))

    def _begin(self, before: Drain | None) -> Result:
        # A store that has forgotten everything has forgotten workers, too. But then it knows of no lead any
        # more nor, if that happens later on, of the function's lease.
        if not self._still_leads():
            return Result(Outcome.LOST)
        known, shared = self._state.meta, self._context.peers.shared_status(self._function)
        if shared is not None:  # since when it is paused
            self._state.apply(shared, self._clock())
        first = self._query()
        if first.status.replicas == 0 and not first.status.paused:
            return Result(Outcome.AT_ZERO)
        idle_after = self._idle_after(self._function, first.status)
        if first.status.paused:
            self._idle_for = self._clock() - self._state.paused_at
        if idle_after is None or self._idle_for < idle_after:
            return Result(Outcome.NOT_IDLE)
        if self.reason == "idle":
            self._late = self._idle_for - idle_after
        if known is not None and known.status.replicas not in (0, first.status.replicas):
            return Result(Outcome.CHANGED, f"it has {first.status.replicas} replicas now")
        if self._dry_run:
            self._context.report(FunctionIdle(self._function, self._idle_for))
            return Result(Outcome.DRY_RUN)
        draining = Drain(DrainPhase.DRAINING, self._lease.token)
        if not self._change(before, draining, KEEP_DRAIN):
            return Result(Outcome.BUSY)
        stopping = Drain(DrainPhase.STOPPING, draining.epoch)
        result = Result(Outcome.FAILED, "it could not be found out whether it is idle")
        try:
            result = self._await_acknowledged(draining, idle_after) or self._look_once_more(first.status)
            if result.outcome is Outcome.STOPPED and not self._change(draining, stopping, KEEP_DRAIN):
                result = Result(Outcome.CANCELLED)
        finally:
            if result.outcome is not Outcome.STOPPED:
                self._undo(draining, result.reason)
        return self._stop(stopping, first.status) if result.outcome is Outcome.STOPPED else result

    # Draining

    def _await_acknowledged(self, draining: Drain, idle_after: float) -> Result | None:
        """Return ``None`` once every worker has acknowledged, and the function is idle for all of them."""
        deadline = self._clock() + ACKNOWLEDGE
        while True:
            reports = self._context.peers.use(self._store.workers)
            missing = [
                report.worker for report in reports if not self._acknowledges(report, reports, draining)
            ]
            here = any(report.worker == self._gate.name for report in reports)
            if self._drain_now() != draining:
                return Result(Outcome.CANCELLED)
            if here and not missing:
                left = [
                    self._left(report, idle_after) for report in reports if report.worker.endswith(SUFFIX)
                ]
                return None if max(left) <= 0 else Result(Outcome.CANCELLED, "it was used since")
            if self._clock() > deadline:
                return Result(Outcome.UNANSWERED, f"no answer of {', '.join(missing) or 'this worker'}")
            self._lease.check()
            self._context.pause(ACKNOWLEDGE_POLL)

    def _left(self, report: WorkerReport, idle_after: float) -> float:
        """Return for how many seconds the function is to stay up yet for the sake of that worker's uses."""
        unused_for = report.unused_for.get(self._function, idle_after)
        return report.kept_for.get(self._function, idle_after - unused_for)

    def _look_once_more(self, status: ReplicaStatus) -> Result:
        """Another writer's change wins over ours."""
        if self._query().status != status:
            return Result(Outcome.CHANGED, "somebody else has changed it meanwhile")
        return Result(Outcome.STOPPED)

    def _acknowledges(self, report: WorkerReport, reports: Sequence[WorkerReport], draining: Drain) -> bool:
        """Return whether a worker is known to pass nothing down."""
        if report.worker.endswith((APART, ASIDE)):
            return True
        if report.worker.endswith(SUFFIX):
            return report.acknowledged.get(self._function) == draining.epoch
        # The heartbeat's: of a worker that must also report its use. One of an earlier release does not.
        return any(other.worker == report.worker + SUFFIX for other in reports)

    def _undo(self, draining: Drain, reason: str) -> None:
        with contextlib.suppress(CoordinationError):
            self._gate.cancel(self._function, draining, reason)

    # Stopping: from here on no request is passed down anywhere, until this has ended

    def _stop(self, stopping: Drain, status: ReplicaStatus) -> Result:
        # Those who come now follow this worker as they would follow one that starts the function.
        self._show(self._see(replace(status, available_replicas=0), self._clock()))
        error: Exception | None = None
        with self._lease.acting():
            if not self._lease.holds():
                return Result(Outcome.LOST)  # whoever takes the lease resolves it
            try:
                self._call(self._to_zero, self._function, status)
            except FunctionNotFound:
                self._change(stopping, None, KEEP_ENDED)
                raise
            except (ProviderError, FunctionFailed) as failed:
                error = failed
            patience = TAKE_EFFECT if error is None else SETTLE
            at_zero = self._await_zero(stopping, patience, status.paused)
        if at_zero is None:
            return Result(Outcome.REFUSED, str(error or "the provider still shows replicas"))
        took = self._clock() - self._begun
        if at_zero.paused:
            self._context.report(FunctionPaused(self._function, took, self._late))
        else:
            self._context.report(FunctionStopped(self._function, took, self.reason, self._late))
        return Result(Outcome.STOPPED)

    def _await_zero(self, stopping: Drain, patience: float, was_paused: bool = False) -> ReplicaStatus | None:
        """Wait until the provider shows that nothing is left, and open the function to its next start.

        :param patience: seconds for which it may still show what was before.
        :param was_paused: whether it was paused before: then that it is paused is not the end.
        :return: the status at zero; ``None``: it is not. Then whoever wants it to be up has won.
        """
        begun, tries = self._clock(), 0
        while True:
            asked_at = self._clock()
            try:
                status = self._call(self._context.provider.get_replicas, *self._function)
            except FunctionNotFound:
                self._change(stopping, None, KEEP_ENDED)
                raise
            except (ProviderError, FunctionFailed):
                status = None
            as_before = status is not None and (status.replicas > 0 or (was_paused and status.paused))
            if status is not None and not as_before and status.available_replicas == 0:
                self._show(self._see(status, asked_at))
                self._change(stopping, Drain(DrainPhase.ZERO, stopping.epoch), KEEP_ENDED)
                return status
            if status is not None and tries == 0:
                # Requests wait for the end of it, instead of taking this worker's silence for the provider's.
                self._show(self._see(replace(status, available_replicas=0), asked_at))
            if self._clock() > begun + (patience if as_before else END):
                self._change(stopping, None, KEEP_ENDED)
                return None
            tries += 1
            self._context.pause(backoff_step(tries, END_POLL, 0.5))

    def _show(self, meta: FunctionMeta) -> None:
        """Publish an entry that does not follow from an answer, or is not to be published before its time."""
        shared = SharedStatus(meta.status, max(0.0, self._clock() - meta.last_refresh))
        self._lease.publish(self._state.share(shared, self._clock()))

    # The store

    def _resolve(self, drain: Drain) -> Result:
        """End what a worker has left that died on the way; its lease has lapsed, so it acts no more.

        While the function drains nothing has been done. Later the provider is asked: the worker may have
        scaled it to zero, or not.
        """
        if drain.phase is DrainPhase.DRAINING:
            self._undo(drain, "the worker that was to stop it has died")
            return Result(Outcome.CANCELLED)
        return Result(Outcome.CANCELLED if self._await_zero(drain, SETTLE) is None else Outcome.STOPPED)

    def _drain_now(self) -> Drain | None:
        return self._context.peers.use(self._store.drains).get(self._function)

    def _change(self, before: Drain | None, after: Drain | None, keep: float) -> bool:
        return self._context.peers.use(self._store.change_drain, self._function, before, after, keep)
