"""Back to zero: one worker of the fleet finds out which functions nobody uses any more, and stops them.

Every worker has a thread for it, which counts its use (:mod:`.gate`). One of them holds a lease to decide; it
asks nothing of a request, so it also runs where none comes.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from ..._lib.backoff import backoff_step
from ..._lib.per_process import PerProcess
from ...coordination.base import (
    CoordinationError,
    Drain,
    DrainingCoordination,
    DrainPhase,
    WorkerReport,
)
from ...coordination.leadership import LeasedLeadership
from ...events import IdlingOff, StopRefused
from ...model import Function, ReplicaStatus, TooManyWaiting
from ...providers.base import ListingProvider
from ...servers.server import when_serving
from ..refresh import Context, Refresh
from ..single_flight import Flight, SingleFlight
from ..state import NEVER, FunctionState
from .busy import Busy
from .drain import FunctionDrain, Outcome, Result
from .fleet_uses import FleetUses
from .gate import Gate
from .ladder import ToZero, held_since, status_by

logger = logging.getLogger("scalezero_wsgi")

PACE, LEAST_PACE = 0.25, 0.01
"""Seconds between two turns, usually, and where functions are idle after a moment."""

LEAD = Function(".idler")
"""The name of the lease of the worker that decides; no function's name begins with a dot."""

TRY_EVERY = 0.5
"""Seconds after which another worker tries to become the one that decides."""

LEAD_ENDS = 5.0
"""Seconds after its last turn when the worker that decides counts as one that hangs."""

NEWLY_LED = 3.0
"""Seconds for which a worker that has just begun to decide stops nothing: if the store has forgotten the
workers, each has reported again by then."""

AT_ONCE = 16
"""Functions that may be on their way to zero at once."""

LIST_EVERY = 60.0
"""Seconds between two looks at functions that nobody has used."""

SCAN_PAUSE = 0.0005
"""Seconds for each known function between two looks at all of them: with 10,000 every 5 s."""

LIST_PAUSE = 0.02
"""Seconds between two questions for them."""

PUT_OFF = {
    Outcome.BUSY: 0.1,
    Outcome.NOT_IDLE: 1.0,
    Outcome.VETOED: 5.0,
    Outcome.DRY_RUN: 600.0,
    Outcome.LOST: 1.0,
    Outcome.FAILED: 10.0,
    Outcome.UNANSWERED: 5.0,
}
"""Seconds after which a function is looked at again."""

REFUSED_FIRST, REFUSED_LONGEST = 60.0, 3600.0
"""Seconds after which a provider that refuses zero is asked again, at first and in the end."""

IdleAfter = Callable[[Function, ReplicaStatus], float | None]
"""Returns after how many seconds without use a function is idle; ``None``: never."""


class Idler:
    """Brings idle functions to zero. Safe for threads and after a fork; its thread starts on first use.

    :param store: where the workers meet.
    :param gate: this worker's part.
    :param idle_after: says what idle means.
    :param pace: seconds between two turns.
    :param shared: whether several processes can use the store.
    :param busy: says of a function that serves nothing whether it is busy all the same.
    :param dry_run: whether it is only said what would be stopped.
    :param keep_warm: called in each turn of the worker that decides, to start what should be up.
    :param to_zero: takes a function to zero; by default it is stopped.
    """

    def __init__(
        self,
        context: Context,
        store: DrainingCoordination,
        gate: Gate,
        idle_after: IdleAfter,
        *,
        pace: float,
        shared: bool,
        busy: Busy | None = None,
        dry_run: bool = False,
        keep_warm: Callable[[], None] = lambda: None,
        to_zero: ToZero | None = None,
    ) -> None:
        self._context = context
        self._clock = context.clock
        self._store = store
        self.gate = gate
        self.closed, self.is_open = gate.closed, gate.is_open
        self._idle_after = idle_after
        self._pace = pace
        self._shared = shared
        self._busy = busy or Busy(None, 0.0)
        self._dry_run = dry_run
        self._keep_warm = keep_warm
        self._to_zero = to_zero
        self._listing = context.provider if isinstance(context.provider, ListingProvider) else None
        self._drains: SingleFlight[Function, Result] = SingleFlight("scalezero-drain", AT_ONCE, self._clock)
        self._listings: SingleFlight[None, None] = SingleFlight("scalezero-list", 1, self._clock)
        self._starting = PerProcess(lambda: threading.Lock())
        self._begin()
        _idlers.add(self)
        when_serving(self.start)

    def _begin(self) -> None:
        self._thread: threading.Thread | None = None
        self._stopped: threading.Event | None = None
        self._lead: LeasedLeadership | None = None
        self._scanned_at = self._led_since = self._tried_at = self._turned_at = self._listed_at = NEVER
        self._uses = FleetUses()
        self._up_since: dict[Function, float] = {}
        self._changed_at: dict[Function, float] = {}
        self._not_before: dict[Function, float] = {}
        self._refusals: dict[Function, int] = {}
        self._off = False

    def after_fork(self) -> None:
        """Become a worker of its own, to which nothing is known yet. Called in a forked child."""
        self._begin()
        self.gate.begin()
        for state in self._context.cache.states():
            state.meta, state.in_flight = None, set()

    # In requests

    def enter(self, function: Function, multiprocess: bool) -> bool:
        """See :meth:`.gate.Gate.enter`, for the first time as well.

        :param multiprocess: whether the server has other processes that serve the same application.
        """
        if self._thread is None:
            self.start(multiprocess)
        return self._off or self.gate.enter(function)

    # The thread

    def start(self, multiprocess: bool) -> None:
        """Start this process's thread, unless it runs."""
        with self._starting.get():
            if self._thread is not None or self._off:
                return
            if multiprocess and not self._shared:
                self._off = True
                self._context.report(IdlingOff("the server's processes do not meet; set coordination"))
                return
            self._stopped = threading.Event()
            thread = threading.Thread(target=self._run, name="scalezero-idler", daemon=True)
            with contextlib.suppress(RuntimeError):  # can't start new thread: the next request tries again
                thread.start()
                self._thread = thread
                atexit.register(self.stop, os.getpid())

    def stop(self, pid: int) -> None:
        """End the thread; the worker leaves those whose use counts. Called at exit.

        :param pid: of the process that has registered it.
        """
        if pid != os.getpid() or self._stopped is None or self._thread is None:
            return
        self._stopped.set()
        self._thread.join(1.0)
        if self._lead is not None:
            self._lead.end()
        self.gate.leave()

    def _run(self) -> None:
        stopped = self._stopped
        while stopped is not None and not stopped.is_set():
            try:
                self.gate.turn()
                self.turn()
            except CoordinationError:
                pass  # it is reported when it is lost
            except Exception:
                logger.exception("an idler's turn failed")
            stopped.wait(self._pace)

    # Decide

    def turn(self) -> None:
        """Stop what is idle, and start what should be up, if this is the worker that decides.

        :raises CoordinationError: the store cannot be used.
        """
        now = self._turned_at = self._clock()
        if not self._leads():
            return
        self._keep_warm()
        if now < self._led_since + NEWLY_LED:
            return
        reports = self._context.peers.use(self._store.workers)
        drains = self._context.peers.use(self._store.drains)
        for function, drain in drains.items():
            if drain.phase in (DrainPhase.DRAINING, DrainPhase.STOPPING):
                self._drain(function, now, 0.0)  # left by a worker that has died; else its lease is held
        for function, idle_for in self._idle(reports, drains, now):
            self._drain(function, now, idle_for)
        if self._listing is not None and now >= self._listed_at + LIST_EVERY:
            self._listed_at = now
            self._begin_list(self._listing, now)

    def _leads(self) -> bool:
        if self._lead is not None:
            if self._lead.holds():
                return True
            self._lead.end()
            self._lead = None
        if self._clock() >= self._tried_at + TRY_EVERY:
            self._tried_at = self._led_since = self._clock()
            self._lead = self._context.peers.lead(LEAD, lambda: self._turned_at + LEAD_ENDS)
        return self._lead is not None

    def _still_leads(self) -> bool:
        lead = self._lead
        return lead is not None and lead.holds()

    def _idle(
        self, reports: Iterable[WorkerReport], drains: Mapping[Function, Drain], now: float
    ) -> list[tuple[Function, float]]:
        """Return the functions that are idle as far as is known, and for how many seconds."""
        in_use = self._uses.note(reports, now)
        used_at, cache = self._uses.used_at, self._context.cache
        up: dict[Function, FunctionState | None] = dict.fromkeys(used_at)
        if now >= self._scanned_at + len(cache) * SCAN_PAUSE:
            self._scanned_at = now
            states = cache.states()
        else:
            states = [state for state in map(cache.peek, {*used_at, *self._up_since}) if state is not None]
        for state in states:
            meta = state.meta
            if meta is not None:
                is_held = meta.status.replicas or meta.status.paused
                if is_held or meta.last_refresh < used_at.get(state.function, NEVER):
                    up[state.function] = state
                else:
                    up.pop(state.function, None)
                    self._uses.forget(state.function)
        before = self._up_since
        self._up_since = {each: before[each] if each in before else held_since(up[each], now) for each in up}
        idle = []
        for function, state_ in up.items():
            if function in in_use or now < self._not_before.get(function, NEVER):
                continue
            if function in drains and drains[function].phase in (DrainPhase.DRAINING, DrainPhase.STOPPING):
                continue
            meta = None if state_ is None else state_.meta
            # Of a function that only others use the labels are not known here: they are asked for first.
            status = None if meta is None else status_by(meta, used_at.get(function, NEVER))
            idle_after = 0.0 if status is None else self._idle_after(function, status)
            if idle_after is None:
                continue
            moved_at = NEVER if state_ is None else state_.moved_at
            since = max(
                self._uses.idle_since(function, idle_after, moved_at, self._up_since[function]),
                self._changed_at.get(function, NEVER),
            )
            if now >= since + idle_after:
                idle.append((function, now - since))
        return idle

    # Act

    def _drain(self, function: Function, now: float, idle_for: float) -> None:
        if self._drains.under_way(function):
            return
        with contextlib.suppress(TooManyWaiting):  # it stays idle until there is room
            self._drains.join(function, partial(self._stop, function, idle_for), now + LIST_EVERY)

    def _begin_list(self, provider: ListingProvider, now: float) -> None:
        with contextlib.suppress(TooManyWaiting):
            self._listings.join(None, partial(self._list, provider), now + LIST_EVERY)

    def _stop(self, function: Function, idle_for: float, flight: object = None) -> Result:  # noqa: ARG002
        meta = self._context.cache.find(function)
        if meta is not None and meta.status.replicas and self._busy(function, meta.status):
            return self._note(function, Result(Outcome.VETOED))
        drain = FunctionDrain(
            self._context,
            function,
            self._store,
            self.gate,
            self._idle_after,
            idle_for,
            self._still_leads,
            self._dry_run,
            self._to_zero,
        )
        return self._note(function, drain.stop())

    def _note(self, function: Function, result: Result) -> Result:
        now = self._clock()
        put_off = PUT_OFF.get(result.outcome, 0.0)
        if result.outcome is Outcome.CHANGED:
            self._changed_at[function] = now
        if result.outcome is Outcome.REFUSED:
            times = self._refusals[function] = self._refusals.get(function, 0) + 1
            put_off = backoff_step(times, REFUSED_FIRST, REFUSED_LONGEST)
            self._context.report(StopRefused(function, result.reason, put_off))
        elif result.outcome in (Outcome.STOPPED, Outcome.AT_ZERO, Outcome.GONE):
            self._uses.forget(function)
            self._refusals.pop(function, None)
            self._changed_at.pop(function, None)
        self._not_before[function] = now + put_off
        if len(self._not_before) > 2 * AT_ONCE:
            self._not_before = {each: until for each, until in self._not_before.items() if until > now}
        return result

    def _list(self, provider: ListingProvider, flight: Flight[None] | None = None) -> None:
        """Ask for the functions that nobody has used: somebody else may have started them."""
        for function in map(Function._make, provider.list_functions()):
            meta = self._context.cache.find(function)
            if meta is None or meta.status.replicas == 0:
                Refresh(self._context, function).run(flight or Flight(self._clock(), self._clock()))
                self._context.pause(LIST_PAUSE)


_idlers: weakref.WeakSet[Idler] = weakref.WeakSet()


def _after_fork() -> None:
    for idler in list(_idlers):
        idler.after_fork()


os.register_at_fork(after_in_child=_after_fork)
