"""What an operator does by hand to a function of the fleet, from within any of its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from ..coordination.base import (
    CoordinationError,
    Drain,
    DrainingCoordination,
    DrainPhase,
    SharedStatus,
    WorkerReport,
)
from ..coordination.leadership import LEASE
from ..model import AT_ZERO, Function, FunctionNotFound, ReplicaStatus, ScaleZeroError
from .idling.drain import ACKNOWLEDGE_POLL, FunctionDrain, Outcome, Result
from .idling.gate import KEEP_DRAIN, Gate
from .idling.idler import LONGEST_PACE, NEWLY_LED, Idler
from .idling.kept_up import LOOK_EVERY
from .refresh import Context
from .scaler import FunctionScaler
from .single_flight import Flight, SingleFlight
from .state import NEVER, FunctionMeta

AT_ONCE = 16
"""Functions that may be stopped by hand at once."""

HANGS = 120.0
"""Seconds after which a stop counts as one that hangs."""

INTEREST = 60.0
"""Seconds for which a start by hand is watched."""

BUSY_FOR = 2.0
"""Seconds for which a function is tried again whose lease another worker has: for a query, that is enough."""

CLOSED_WITHIN = LONGEST_PACE
"""Seconds within which each worker looks what it may pass down."""

PATIENCE = 2 * LEASE
"""Seconds for which a worker tries to set the mark: one that has died holds its lease for ``LEASE``."""

MARK = Function(".by-hand")
"""A shared status of this name tells since when the store has forgotten nothing."""


class Stopped(NamedTuple):
    """What became of a stop.

    :ivar in_use: how many requests were in flight or waited, in the whole fleet.
    :ivar reason: more of why, for people.
    """

    outcome: Outcome
    in_use: int
    reason: str = ""


class ByHand:
    """Starts, stops and keeps up. Safe for threads and after a fork.

    :param idler: knows how to stop without losing a request; ``None``: nothing brings functions to zero here.
    :param reports: returns what each worker of the fleet does, once for each.
    """

    def __init__(
        self,
        scaler: FunctionScaler,
        idler: Idler | None,
        reports: Callable[[], Iterable[WorkerReport]],
    ) -> None:
        self._scaler = scaler
        self._idler = idler
        self._reports = reports
        self._clock = scaler.context.clock
        self._stops: SingleFlight[Function, Stopped] = SingleFlight("scalezero-by-hand", AT_ONCE, self._clock)

    def start(self, function: Function, multiprocess: bool) -> Flight[FunctionMeta]:
        """Have a function started, and do not wait. A stop that is under way is undone, or waited for.

        :param multiprocess: whether the server has other processes that serve the same application.
        :raises ScaleZeroError: as :meth:`.scaler.FunctionScaler.start`.
        """
        since = NEVER
        if self._idler is not None:
            room = self._scaler.context.room
            if room is not None:
                room.enter(multiprocess)
            if not self._idler.enter(function, multiprocess):
                since = self._clock()
        return self._scaler.start(function, self._clock() + INTEREST, since=since)

    def keep_up(self, function: Function, seconds: float, multiprocess: bool) -> Flight[FunctionMeta]:
        """Start a function, and keep it up in the whole fleet although nobody uses it.

        :param seconds: an hour at most.
        :raises CoordinationError: the workers' store cannot be used.
        :raises ScaleZeroError: nothing brings functions to zero here; or as :meth:`start`.
        """
        idler = self._started(multiprocess)
        if idler is None or idler.kept_up is None:
            raise ScaleZeroError("nothing brings idle functions to zero here, so nothing is kept up")
        idler.kept_up.keep(function, seconds)
        # A worker that has looked just before may still begin to stop it, which start() undoes.
        self._scaler.context.pause(1.5 * LOOK_EVERY)
        return self.start(function, multiprocess)

    @property
    def can_keep_up(self) -> bool:
        """Whether anything here brings functions to zero."""
        return self._idler is not None and not self._idler.off

    def idle_after(self, function: Function, status: ReplicaStatus) -> float | None:
        """Return after how many seconds without use a function's next step is due; ``None``: never."""
        return None if self._idler is None else self._idler.idle_after(function, status)

    def _started(self, multiprocess: bool) -> Idler | None:
        """Return the idler, which runs; ``None``: there is none, or it can do nothing here."""
        if self._idler is not None:
            self._idler.start(multiprocess)
        return None if self._idler is None or self._idler.off else self._idler

    def kept_up(self) -> dict[Function, float]:
        """Return what is kept up, and for how many more seconds."""
        if self._idler is None or self._idler.kept_up is None:
            return {}
        return self._idler.kept_up.left()

    def in_use(self, function: Function) -> int:
        """Return how many requests are in flight or wait in the whole fleet, as its workers said last."""
        return sum(
            report.in_flight.get(function, 0) + report.waiting.get(function, 0) for report in self._reports()
        )

    def stop(self, function: Function, cut: bool, multiprocess: bool) -> Flight[Stopped]:
        """Have a function stopped, and do not wait. It is kept up no more.

        With an idler it goes the steps of "Back to zero" in ``ARCHITECTURE.md``, and no request is lost.
        Without one the provider is told, and a request that another worker passes down meanwhile may fail.

        :param cut: whether it is stopped although requests are in flight or it says that it is busy. Those
            requests are cut; with an idler those that come later wait, and start it again.
        :raises TooManyWaiting: too many are being stopped.
        """
        stop = partial(self._stop, function, cut, multiprocess)
        return self._stops.join(function, stop, self._clock() + HANGS)

    def _stop(self, function: Function, cut: bool, multiprocess: bool, flight: object = None) -> Stopped:  # noqa: ARG002
        in_use = self.in_use(function)
        if in_use and not cut:
            return Stopped(Outcome.CANCELLED, in_use)
        try:
            idler = self._started(multiprocess)
            if idler is None:
                return self._at_once(function, in_use)
            return self._by_hand_shake(idler, function, cut, in_use)
        except FunctionNotFound:
            return Stopped(Outcome.GONE, in_use)
        except CoordinationError as error:
            return Stopped(Outcome.LOST, in_use, str(error))
        except Exception as error:  # noqa: BLE001  another's provider may raise anything
            return Stopped(Outcome.FAILED, in_use, str(error) or repr(error))

    def _by_hand_shake(self, idler: Idler, function: Function, cut: bool, in_use: int) -> Stopped:
        if not cut and idler.is_busy(function):
            return Stopped(Outcome.VETOED, in_use)
        if idler.kept_up is not None and function in idler.kept_up.left():
            idler.kept_up.keep(function, 0.0)
        idler.gate.turn()  # a worker that has not reported yet acknowledges nothing
        mark = self._await_known(idler.store)
        context, gate, store = self._scaler.context, idler.gate, idler.store
        try_until = self._clock() + BUSY_FOR
        while True:
            drain = _Stop(context, function, store, gate, lambda: self._mark(store) == mark, cut)
            result = drain.stop()
            if result.outcome is not Outcome.BUSY or self._clock() > try_until:
                break
            context.pause(0.05)
        if result.outcome is Outcome.CANCELLED:
            in_use = self.in_use(function)
        return Stopped(result.outcome, in_use, result.reason)

    def _at_once(self, function: Function, in_use: int) -> Stopped:
        context = self._scaler.context
        status = context.provider.get_replicas(*function)
        if not (status.replicas or status.available_replicas or status.paused):
            return Stopped(Outcome.AT_ZERO, in_use)
        context.provider.set_replicas(*function, 0)
        context.cache.mark_suspect(function)
        self._scaler.refresh(function)
        return Stopped(Outcome.STOPPED, in_use)

    # The store may just have forgotten everything

    def _await_known(self, store: DrainingCoordination) -> str:
        """Wait until the store has forgotten nothing for ``NEWLY_LED`` seconds.

        Then each worker that can pass requests down has reported.

        :return: the name of the mark by which that is known.

        :raises CoordinationError: the store cannot be used.
        """
        context = self._scaler.context
        until = self._clock() + NEWLY_LED + PATIENCE
        while self._clock() < until:
            shared = context.peers.use(store.known, MARK)
            if shared is None:
                lead = context.peers.lead(MARK, lambda: until)
                if lead is not None:
                    with lead:
                        lead.publish(SharedStatus(AT_ZERO))
            elif shared.age >= NEWLY_LED:
                return shared.name
            context.pause(0.05)
        raise CoordinationError("the workers' store has just forgotten everything")

    def _mark(self, store: DrainingCoordination) -> str:
        shared = self._scaler.context.peers.use(store.known, MARK)
        return "" if shared is None else shared.name


class _Stop(FunctionDrain):
    """Stop a function that nobody uses, idle or not; or whoever uses it.

    :param still_known: whether the store has forgotten nothing since; asks it.
    :param cut: whether requests in flight are cut.
    """

    reason = "by_hand"

    def __init__(
        self,
        context: Context,
        function: Function,
        store: DrainingCoordination,
        gate: Gate,
        still_known: Callable[[], bool],
        cut: bool,
    ) -> None:
        super().__init__(context, function, store, gate, lambda *_: 0.0, 0.0, still_known)
        self._cut = cut

    def _begin(self, before: Drain | None) -> Result:
        if not self._cut:
            return super()._begin(before)
        if not self._still_leads():
            return Result(Outcome.LOST)
        first = self._query()
        if first.status.replicas == 0 and not first.status.paused:
            return Result(Outcome.AT_ZERO)
        # Nobody is asked: those that come from now on wait, as if all had acknowledged.
        stopping = Drain(DrainPhase.STOPPING, self._lease.token)
        if not self._change(before, stopping, KEEP_DRAIN):
            return Result(Outcome.BUSY)
        self._await_closed(stopping)
        return self._stop(stopping, first.status)

    def _await_closed(self, stopping: Drain) -> None:
        """Give every worker the time to see it, so that none passes a request down that is cut at once."""
        until = self._clock() + CLOSED_WITHIN
        while self._clock() < until:
            reports = self._context.peers.use(self._store.workers)
            if all(self._acknowledges(report, reports, stopping) for report in reports):
                return
            self._context.pause(ACKNOWLEDGE_POLL)

    def _left(self, report: WorkerReport, idle_after: float) -> float:
        """Not heed what clients wish (``keep_alive_max``): an operator has decided."""
        return idle_after - report.unused_for.get(self._function, idle_after)
