"""Takes the functions that may go to zero there when their last server ends, by the same hand-shake.

For whoever asks for it: by default a deployment leaves its functions, since the next one will use them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from functools import partial

from ...coordination.base import CoordinationError, DrainingCoordination
from ...coordination.heartbeat import APART
from ...coordination.leadership import LeasedLeadership
from ...coordination.worker_name import has_ended
from ...model import Function, FunctionNotFound, ReplicaStatus, TooManyWaiting
from ...providers.base import ListingProvider
from ...servers.server import when_ending
from ..refresh import Context
from ..single_flight import Flight, SingleFlight
from .busy import Busy
from .drain import FunctionDrain, Outcome, Result
from .gate import SUFFIX, Gate
from .idler import AT_ONCE, NEWLY_LED
from .ladder import IdleAfter

logger = logging.getLogger("scalezero_wsgi")

EXIT = Function(".exit")
"""The name of the lease of the one that does it: a store that forgets everything forgets it, too."""

TURN = 0.01
"""Seconds between two looks at how far it is."""

AGAIN = 0.1
"""Seconds after which a function is tried again that a killed worker had in its hands."""

DONE = (Outcome.STOPPED, Outcome.AT_ZERO, Outcome.GONE, Outcome.NOT_IDLE, Outcome.DRY_RUN)
TRY_AGAIN = (Outcome.BUSY, Outcome.CANCELLED, Outcome.LOST)


class AtExit:
    """Of the process that outlives all workers, and of its main thread.

    :param may_go: returns ``None`` of a function that may not go to zero, or not now.
    :param busy: says of a function that serves nothing whether it is busy all the same.
    :param dry_run: whether it is only said what would be stopped.
    """

    def __init__(
        self,
        context: Context,
        store: DrainingCoordination,
        gate: Gate,
        may_go: IdleAfter,
        busy: Busy,
        dry_run: bool,
    ) -> None:
        self._context = context
        self._clock = context.clock
        self._store = store
        self._gate = gate
        self._may_go = may_go
        self._busy = busy
        self._dry_run = dry_run
        self._drains: SingleFlight[Function, Result] = SingleFlight("scalezero-exit", AT_ONCE, context.clock)
        when_ending(self.stop)

    def stop(self, within: float, killed: Collection[int] = ()) -> None:
        """Stop what may be stopped, unless other workers of the fleet go on. Nothing is raised.

        :param within: seconds after which the rest is left as it is.
        :param killed: the process ids of workers that were killed and not waited for yet.
        """
        deadline = self._clock() + within
        if not isinstance(self._context.provider, ListingProvider):
            kind = type(self._context.provider).__name__
            logger.warning("no function is stopped at the end: %s cannot list them", kind)
            return
        try:
            self._stop(self._context.provider, deadline, killed)
        except CoordinationError as error:
            logger.warning("no function is stopped at the end: %s", error)
        except Exception:
            logger.exception("no more functions are stopped at the end")
        finally:
            self._gate.leave()
            self._context.peers.close()

    def _stop(self, provider: ListingProvider, deadline: float, killed: Collection[int]) -> None:
        peers = self._context.peers
        for report in peers.use(self._store.workers):
            if has_ended(report.worker, killed):  # it had no time to leave
                peers.leave(report.worker)
        lead = peers.lead(EXIT, lambda: deadline)
        if lead is None:
            logger.info("another server ends at the same time, and stops the functions")
            return
        with lead:
            begun = self._clock()
            while self._clock() < min(begun + NEWLY_LED, deadline):
                self._turn()
            others = self._others()
            if others:
                logger.info(
                    "no function is stopped at the end, for other workers go on: %s", ", ".join(others)
                )
                return
            self._stop_all(list(map(Function._make, provider.list_functions())), lead, deadline)

    def _others(self) -> list[str]:
        reports = self._context.peers.use(self._store.workers)
        names = {report.worker.removesuffix(SUFFIX) for report in reports}
        return sorted(
            name for name in names if not name.endswith(APART) and name != self._context.peers.worker
        )

    def _stop_all(self, functions: list[Function], lead: LeasedLeadership, deadline: float) -> None:
        flights: dict[Function, Flight[Result]] = {}
        for function in functions:
            while function not in flights and self._clock() < deadline:
                with contextlib.suppress(TooManyWaiting):
                    one = partial(self._stop_one, function, lead, deadline)
                    flights[function] = self._drains.join(function, one, deadline)
                    break
                self._turn()
        while self._clock() < deadline and not all(flight.landed for flight in flights.values()):
            self._turn()
        ended = {function: _result(flight) for function, flight in flights.items() if flight.landed}
        stopped = [function for function, result in ended.items() if result.outcome is Outcome.STOPPED]
        logger.info("at the end %d functions were stopped", len(stopped))
        for function in functions:
            result = ended.get(function)
            if result is None or result.outcome not in DONE:
                why = "there was no more time" if result is None else result.reason or result.outcome.value
                logger.warning("%s: not stopped at the end: %s", function, why)

    def _stop_one(
        self,
        function: Function,
        lead: LeasedLeadership,
        deadline: float,
        flight: object = None,  # noqa: ARG002
    ) -> Result:
        try:
            while True:
                result = self._try(function, lead)
                if result.outcome not in TRY_AGAIN or self._clock() > deadline:
                    return result
                self._context.pause(AGAIN)
        except FunctionNotFound:
            return Result(Outcome.GONE)
        except Exception as error:  # noqa: BLE001  another's provider may raise anything
            return Result(Outcome.FAILED, str(error) or repr(error))

    def _try(self, function: Function, lead: LeasedLeadership) -> Result:
        status = self._context.provider.get_replicas(*function)
        if not (status.replicas or status.available_replicas or status.paused):
            return Result(Outcome.AT_ZERO)
        if self._may_go(function, status) is None:
            return Result(Outcome.NOT_IDLE)
        if status.replicas and self._busy(function, status):
            return Result(Outcome.VETOED)
        drain = _Drain(
            self._context,
            function,
            self._store,
            self._gate,
            self._idle_at_once,
            0.0,
            lead.holds,
            self._dry_run,
        )
        return drain.stop()

    def _idle_at_once(self, function: Function, status: ReplicaStatus) -> float | None:
        return None if self._may_go(function, status) is None else 0.0

    def _turn(self) -> None:
        self._gate.turn()
        self._context.pause(TURN)


def _result(flight: Flight[Result]) -> Result:
    try:
        return flight.result()
    except BaseException as error:  # noqa: BLE001  there was no thread; or another's provider ended it
        return Result(Outcome.FAILED, str(error) or repr(error))


class _Drain(FunctionDrain):
    reason = "exit"
