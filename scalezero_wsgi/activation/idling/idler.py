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
import time
import weakref
from collections.abc import Callable
from functools import partial

from ..._lib.per_process import PerProcess
from ...coordination.base import CoordinationError, DrainingCoordination
from ...coordination.leadership import LeasedLeadership
from ...events import IdlingOff
from ...model import Function, TooManyWaiting
from ...servers.server import when_serving
from ..function_cache import Freshness
from ..refresh import Context, Refresh
from ..single_flight import Flight, SingleFlight
from ..state import NEVER
from .busy import Busy
from .candidates import UNDER_WAY, Candidates, IsHeld, never_held
from .drain import FunctionDrain, Outcome, Result
from .gate import Gate
from .kept_up import KeptUp
from .ladder import IdleAfter, ToZero
from .listing import Listing
from .replacing import OutdatedFunctions, Replacement, tells_outdated
from .retries import Retries
from .rivals import Rivals

logger = logging.getLogger("scalezero_wsgi")

PACE, LEAST_PACE = 0.25, 0.01
"""Seconds between two turns, usually, and where functions are idle after a moment."""

REST, LONGEST_PACE = 150, 1.0
"""How many times as long as a turn has used the processor the next one is waited for, and for how many
seconds at most: so the turns take less than 1 % of a core, while one takes less than 10 ms. Not where
functions are idle after a moment."""

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

DRAIN_HANGS = 60.0
"""Seconds after which a function's way to zero counts as one that hangs."""


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
    :param rivals: notices who undoes what is done here.
    :param is_held: whether a function is kept up although nobody uses it.
    :param lists: whether to look for functions that somebody else has started.
    :ivar at_exit: what is to live as long.
    :ivar kept_up: what operators keep up.
    :ivar off: whether nothing can be stopped, for the server's processes do not meet.
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
        rivals: Rivals | None = None,
        is_held: IsHeld = never_held,
        lists: bool = True,
    ) -> None:
        self._context = context
        self._clock = context.clock
        self.store = store
        self.gate = gate
        self.closed, self.is_open = gate.closed, gate.is_open
        self.idle_after = idle_after
        self._pace = pace
        self._shared = shared
        self._busy = busy or Busy(None, 0.0)
        self._dry_run = dry_run
        self._keep_warm = keep_warm
        self._to_zero = to_zero
        self._rivals = rivals or Rivals(context.report, context.clock)
        self._is_held = is_held
        self._lists = lists
        self._drains: SingleFlight[Function, Result] = SingleFlight("scalezero-drain", AT_ONCE, self._clock)
        self.at_exit: object = None
        self.kept_up: KeptUp | None = None
        self._starting = PerProcess(lambda: threading.Lock())
        self._begin()
        _idlers.add(self)
        when_serving(self.start)

    def _begin(self) -> None:
        self._thread: threading.Thread | None = None
        self._stopped: threading.Event | None = None
        self._lead: LeasedLeadership | None = None
        self._led_since = self._tried_at = self._turned_at = NEVER
        self._rivals.begin()
        self._retries = Retries(self._context.report, self._clock)
        self._candidates = Candidates(
            self._context.cache, self.idle_after, self._retries, self._rivals, self._is_held
        )
        self._listing = Listing(self._context)
        self._outdated = OutdatedFunctions(self._context.cache)
        self.off = False

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
        return self.off or self.gate.enter(function)

    # The thread

    def start(self, multiprocess: bool) -> None:
        """Start this process's thread, unless it runs."""
        with self._starting.get():
            if self._thread is not None or self.off:
                return
            if multiprocess and not self._shared:
                self.off = True
                self._context.report(IdlingOff("the server's processes do not meet; set coordination"))
                return
            self._context.peers.begin()  # not in the thread: what that registers at exit may come too late
            self._stopped = threading.Event()
            thread = threading.Thread(target=self._run, name="scalezero-idler", daemon=True)
            with contextlib.suppress(RuntimeError):  # can't start new thread: the next request tries again
                thread.start()
                self._thread = thread
                atexit.register(self.stop, os.getpid())

    def stop(self, pid: int, patience: float = 0.0) -> None:
        """End the thread; the worker leaves those whose use counts. Called at exit.

        :param pid: of the process that has registered it.
        :param patience: seconds to wait for what is on its way to zero.
        """
        if pid != os.getpid() or self._stopped is None or self._thread is None:
            return
        self._stopped.set()
        self._thread.join(1.0)
        if self._lead is not None:
            self._lead.end()
        deadline = self._clock() + patience
        while self._drains.running() and self._clock() < deadline:
            time.sleep(0.01)
        self.gate.leave()

    def _run(self) -> None:
        stopped = self._stopped
        while stopped is not None and not stopped.is_set():
            begun = time.thread_time()
            try:
                self.gate.turn()
                self.turn()
            except CoordinationError:
                pass  # it is reported when it is lost
            except Exception:
                logger.exception("an idler's turn failed")
            rest = REST * (time.thread_time() - begun)
            stopped.wait(max(self._pace, min(rest, LONGEST_PACE)) if self._pace >= PACE else self._pace)

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
        reports = self._context.peers.use(self.store.workers)
        drains = self._context.peers.use(self.store.drains)
        for function, drain in drains.items():
            if drain.phase in UNDER_WAY:
                self._drain(function, now, None)  # left by a worker that has died; else its lease is held
        if tells_outdated(self._context.provider):
            for function in self._outdated.find(now):
                self._replace(function, now)
        for function, idle_for in self._candidates.find(reports, drains, now):
            if not self._drain(function, now, idle_for):
                break  # it stays idle until there is room
        if self._lists:
            self._listing.turn(now)

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

    # Act

    def _drain(self, function: Function, now: float, idle_for: float | None) -> bool:
        """Begin to bring a function to zero, unless that is under way; return whether there was room.

        :param idle_for: for how many seconds it has been idle; ``None``: only what somebody has left of an
            earlier try is ended.
        """
        if not self._drains.under_way(function):
            try:
                self._drains.join(function, partial(self._stop, function, idle_for), now + DRAIN_HANGS)
            except TooManyWaiting:
                return False
        return True

    def _stop(self, function: Function, idle_for: float | None, flight: object = None) -> Result:  # noqa: ARG002
        # What a dead worker has left is ended, busy or not: until then nothing is passed to the function.
        if idle_for is not None and self.is_busy(function):
            return self._note(function, Result(Outcome.VETOED))
        drain = FunctionDrain(
            self._context,
            function,
            self.store,
            self.gate,
            self.idle_after,
            idle_for or 0.0,
            self._still_leads,
            self._dry_run,
            self._to_zero,
        )
        return self._note(function, drain.stop())

    def _replace(self, function: Function, now: float) -> None:
        """Begin to stop a function that is to start anew, unless that is under way, or was tried just now."""
        if now >= self._retries.not_before(function) and not self._drains.under_way(function):
            with contextlib.suppress(TooManyWaiting):  # it stays outdated until there is room
                self._drains.join(function, partial(self._stop_outdated, function), now + DRAIN_HANGS)

    def _stop_outdated(self, function: Function, flight: object = None) -> Result:  # noqa: ARG002
        if self.is_busy(function):
            return self._note(function, Result(Outcome.VETOED))
        way = Replacement(
            self._context, function, self.store, self.gate, self.idle_after, 0.0, self._still_leads
        )
        return self._note(function, way.stop())

    def is_busy(self, function: Function) -> bool:
        """Return whether it is busy, by its present labels and address: others may have started it."""
        cache = self._context.cache
        if cache.freshness(cache.find(function)) is not Freshness.FRESH:
            self._read(function)
        meta = cache.find(function)
        return meta is not None and meta.status.replicas > 0 and self._busy(function, meta.status)

    def _read(self, function: Function) -> None:
        Refresh(self._context, function).run(Flight(self._clock(), self._clock()))

    def _note(self, function: Function, result: Result) -> Result:
        if result.outcome in (Outcome.STOPPED, Outcome.AT_ZERO, Outcome.GONE):
            self._candidates.uses.forget(function)
        if result.outcome is Outcome.STOPPED:
            self._rivals.stopped(function)
        self._retries.note(function, result)
        return result


_idlers: weakref.WeakSet[Idler] = weakref.WeakSet()


def _after_fork() -> None:
    for idler in list(_idlers):
        idler.after_fork()


os.register_at_fork(after_in_child=_after_fork)
